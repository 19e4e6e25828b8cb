"""The task on questions in miniature: a model that knows all, one that never looks, a real one, VQA v2's files and submissions."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.world.drawn.demo_scenes import questions as asked_of
from data_pipeline.world.drawn.demo_scenes import sample_scenes
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.runner.cache import Cache
from sycoca_ds.eval.task import Outcome
from sycoca_ds.eval.tasks.vqa import NUMBERS, most_usual, run_vqa
from sycoca_ds.eval.vqa.answering import Answerer
from sycoca_ds.eval.vqa.items import QuestionPictures, Request
from sycoca_ds.eval.vqa.submission import entries, fault
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from sycoca_ds.model.pixels import normalise
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import finish, start_warm
from tests.worlds.published.questions import as_published, official
from tests.worlds.trainings.eval_world import SMALL, made_of_pictures, make_data, make_run, url_of

CPU, IMAGES = torch.device("cpu"), 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes, their questions, an untrained run of a model that answers, and one of a model that does not."""
    folder = tmp_path_factory.mktemp("vqa")
    make_data(folder / "data", images=IMAGES)
    scenes = enumerate(sample_scenes(IMAGES, seed=5))
    entries = [{"url": url_of(number), **entry} for number, scene in scenes for entry in asked_of(scene, 0)]
    (folder / "questions.json").write_text(json.dumps({"name": "small", "questions": entries}))
    make_run(folder / "run", dataclasses.replace(SMALL, family="coca", fusion=True, init_std=0.3))
    make_run(folder / "pretrained")
    return folder


class Knowing(torch.nn.Module):
    """Says the right answer to what it has seen, the first candidate to anything else.

    Args:
        looks: False: it is told the question alone, and says what is right for the first picture with it.
    """

    def __init__(self, bench: Bench, looks: bool = True):
        super().__init__()
        self.looks, self.answer = looks, {}
        asked = bench.inputs.questions
        for row, number in zip(asked.table.to_pylist(), asked.picture_Q.tolist(), strict=True):
            key = self._key(normalise(bench.collection.image(number)[None])[0], bench.ids([row["question"]])[0])
            self.answer.setdefault(key, asked.candidates.index(row["answers"][0]))

    def _key(self, image_CHW: torch.Tensor, ids_L: torch.Tensor) -> tuple:
        return (image_CHW.numpy().tobytes() if self.looks else b"", ids_L.numpy().tobytes())

    def forward(self, task, image_BCHW, text_QL, answer_CL, keep, image_of_Q):
        assert task == "rank_answers"
        chosen = [self.answer.get(self._key(image_BCHW[of], ids), 0) for of, ids in zip(image_of_Q.tolist(), text_QL, strict=True)]
        likelihood = torch.full((len(text_QL), len(answer_CL)), -9.0).scatter(1, torch.tensor(chosen)[:, None], -1.0)
        return {"candidate_QK": torch.arange(len(answer_CL)).expand(len(text_QL), -1), "likelihood_QK": likelihood}


def load_looking(*given, **named):
    """An untrained model as drawn hardly looks, and says one thing to everything."""
    loaded = load_for_inference(*given, **named)
    with torch.no_grad():
        for block in (*loaded.model.text_decoder.cross_blocks, *loaded.model.fusion.blocks):
            block.attention.out.weight *= 30
    return loaded


def bench_of(world: Path, request: Request, batch_size: int = 16, beams: int = 1) -> Bench:
    loaded = load_looking(world / "run")
    collection = Collection(world / "data", SMALL.image.image_size)
    options = SuiteOptions(tasks=("vqa",), batch_size=batch_size, beams=beams)
    inputs = Inputs(options, questions=request.open(collection))
    return Bench(loaded.model, loaded.config, loaded.tokenizer, collection, CPU, inputs)


def outcome_of(world: Path, looks: bool) -> Outcome:
    bench = bench_of(world, Request(str(world / "questions.json")))
    bench.model = Knowing(bench, looks)
    return run_vqa(bench)


def test_who_knows_everything_gets_all_of_it_and_the_controls_do_not(world: Path) -> None:
    found = outcome_of(world, looks=True).numbers
    assert found["accuracy"] == found["accuracy_low"] == found["accuracy_high"] == found["accuracy_ceiling"] == 100
    for control in ("other_picture", "blind", "majority", "shuffled"):
        assert found[f"accuracy_{control}"] < 40, control
    assert found["accuracy_blind"] < found["accuracy_usual"] < 70 and found["looked"] > 50


def test_who_never_looks_gets_the_same_on_another_picture_and_on_none(world: Path) -> None:
    outcome = outcome_of(world, looks=False)
    found = outcome.numbers
    assert found["accuracy"] == found["accuracy_other_picture"] == found["accuracy_blind"] and found["looked"] == 0
    assert found["accuracy"] < 70 and outcome.chance == {"accuracy": found["accuracy_usual"]}


def test_numbers_of_types_that_the_questions_do_not_have_say_so(world: Path) -> None:
    outcome = outcome_of(world, looks=True)
    assert set(outcome.numbers) | set(outcome.reasons) == set(NUMBERS)
    assert outcome.reasons == {
        f"accuracy_{name}": f"no question has the answer type {kind}"
        for name, kind in (("yes_no", "yes/no"), ("number", "number"), ("other", "other"))
    }
    types = outcome.details["by_answer_type"]
    assert set(types) == {"color", "shape", "place", "count", "background", "exists"} and types["exists"]["usual"] == 50
    assert sum(of["questions"] for of in types.values()) == outcome.details["questions"]
    assert outcome.details["submission"] == "these questions are no VQA v2"


def test_the_usual_answer_by_type() -> None:
    answers = [["a"] * 10, ["b"] * 10, ["b"] * 10, ["c"] * 10]
    assert most_usual(answers, ["x", "x", "x", "y"]) == ["b", "b", "b", "c"]


@pytest.mark.parametrize("how", ["rank", "generate"])
def test_batches_change_no_answer(how: str, world: Path) -> None:
    said = []
    for size in (1, 7, 64):
        bench = bench_of(world, Request(str(world / "questions.json"), how=how), size)
        asked = bench.inputs.questions
        said.append(Answerer(bench, asked).answers(asked.picture_Q, ""))
        assert set(said[-1]) <= set(asked.candidates)
    assert said[0] == said[1] == said[2] and len(set(said[0])) > 1


def test_as_many_beams_as_candidates_say_what_ranking_says(world: Path) -> None:
    bench = bench_of(world, Request(str(world / "questions.json")))
    asked = bench.inputs.questions
    ranked = Answerer(bench, asked).answers(asked.picture_Q, "")
    beams = bench_of(world, Request(str(world / "questions.json"), how="generate"), beams=len(asked.candidates))
    assert Answerer(beams, beams.inputs.questions).answers(asked.picture_Q, "") == ranked


@pytest.mark.parametrize("how", ["rank", "generate"])
def test_answers_go_on_where_they_were_killed(how: str, world: Path, tmp_path: Path) -> None:
    """Of 5 batches 3 are there: the other two are asked for, and the answers are those of one go."""
    whole = bench_of(world, Request(str(world / "questions.json"), how=how))
    asked, size = whole.inputs.questions, -(-len(whole.inputs.questions.table) // 5)
    expected = Answerer(whole, asked).answers(asked.picture_Q, "")
    calls: list[int] = []

    def stopped(most: int) -> Bench:
        bench = bench_of(world, Request(str(world / "questions.json"), how=how), size)
        bench.resources, bench.weights = Resources(cache=Cache(tmp_path)), "these"
        call = bench.call

        def counted(task, **inputs):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(len(inputs["text_QL"]))
            return call(task, **inputs)

        bench.call = counted
        return bench

    with pytest.raises(KeyboardInterrupt):
        Answerer(stopped(3), asked).answers(asked.picture_Q, "")
    calls.clear()
    assert Answerer(stopped(9), asked).answers(asked.picture_Q, "") == expected and len(calls) == 2
    blind = Answerer(stopped(9), asked).answers(None, "")
    assert len(calls) == 7 and blind != expected, "other pictures are another question"


@pytest.mark.slow
def test_two_ranks_say_what_one_says(world: Path, tmp_path: Path) -> None:
    given = {"checkpoint": world / "run", "data": world / "data", "questions": world / "questions.json"}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    words += ["--tasks", "vqa", "--device", "cpu", "--batch-size", "7"]
    script, found = tmp_path / "evaluate.py", []
    script.write_text(
        f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom sycoca_ds.engine.checkpoint import weights\n"
        f"from {__name__} import load_looking\nweights.load_for_inference = load_looking\n"
        "from sycoca_ds.evaluate import main\nsys.exit(main())\n"
    )
    for ranks in (0, 2):
        out = tmp_path / str(ranks)
        status, said = finish(start_warm([*words, "--out", str(out)], ranks=ranks, script=script))
        assert status == 0, said[-2000:]
        answers = json.loads((out / "samples/vqa_results.json").read_text())
        found.append((answers, json.loads((out / "results.json").read_text())["tasks"]["vqa"]["metrics"]))
    assert found[0] == found[1] and len({answer["answer"] for answer in found[0][0]}) > 1


def test_vqa_v2_from_its_files_and_from_a_data_set_are_the_same(world: Path, tmp_path: Path) -> None:
    files, pictures = official(world / "data", tmp_path, "val2014")
    found = []
    for name, words in (
        ("folder", {"questions": f"{files},{pictures.parent}"}),
        ("data", {"questions": files, "data": str(world / "data")}),
    ):
        out = tmp_path / name
        more = {"answers": (files.split(",")[1],), "answer_count": 3, "device": "cpu", "tasks": ("vqa",)}
        assert evaluate(EvaluateConfig(str(world / "run"), out=str(out), **words, **more)) == 0
        results = json.loads((out / "results.json").read_text())["tasks"]["vqa"]
        found.append((results["metrics"], json.loads((out / "samples/vqa_results.json").read_text())))
        details = results["details"]
        assert details["submission"] == "complete" and details["candidates"] == 3 and details["left_out"] == 0
    assert found[0] == found[1]
    made = made_of_pictures(tmp_path / "data", "vqa")
    own = {f"accuracy{kind}" for kind in ("", "_yes_no", "_number", "_other_picture", "_blind", "_shuffled")}
    assert made == {*own, "accuracy_other", "looked"}
    metrics, said = found[0]
    assert all(metrics[f"accuracy_{kind}"] is not None for kind in ("yes_no", "number", "other")) and metrics[
        "accuracy_number"
    ] in (0, 100)
    assert {entry["answer"] for entry in said} <= {"yes", "2", "dog"} and len(said) == 2 * IMAGES


def test_questions_whose_answers_are_kept_back_are_answered(world: Path, tmp_path: Path) -> None:
    files, pictures = official(world / "data", tmp_path, "test2015")
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    more = {"answers": (str(tmp_path / "answers.txt"),), "device": "cpu"}
    config = EvaluateConfig(str(world / "run"), out=str(tmp_path / "out"), questions=f"{files.split(',')[0]},{pictures}", **more)
    assert evaluate(config) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["vqa"]
    assert set(results["null_reasons"].values()) == {"the answers of these questions are kept back"}
    assert results["details"]["submission"].startswith("48 questions; the server takes all 447,793 of test2015")
    said = json.loads((tmp_path / "out/samples/vqa_results.json").read_text())
    assert len(said) == 48 and all(set(entry) == {"question_id", "answer"} for entry in said)
    with pytest.raises(UserError, match="has no answers: give those to choose from"):
        evaluate(dataclasses.replace(config, answers=(), out=str(tmp_path / "none")))


def test_what_is_wrong_with_a_submission_is_named(world: Path, tmp_path: Path) -> None:
    files, _ = official(world / "data", tmp_path, "val2014")
    asked = Request(files).read()
    whole = entries(asked.table["id"].to_pylist(), ["yes"] * len(asked))
    assert fault(whole, asked) is None and fault(list(reversed(whole)), asked) is None
    assert fault(whole[1:], asked) == f"1 questions are not answered, the first is {whole[0]['question_id']}"
    assert "answered twice" in fault([*whole, whole[3]], asked) and "not asked" in fault(
        [*whole, {"question_id": 7**9, "answer": ""}], asked
    )
    for bad in ({"question_id": "1", "answer": "a"}, {"question_id": 1, "answer": 2}, {"question_id": True, "answer": "a"}):
        assert "is not {" in fault([*whole, bad], asked)


def test_a_model_that_was_not_fine_tuned_says_how_it_would_be(world: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        str(world / "pretrained"), str(world / "data"), out=str(tmp_path), questions=str(world / "questions.json")
    )
    assert evaluate(dataclasses.replace(config, tasks=("vqa",), device="cpu")) == 0
    reasons = json.loads((tmp_path / "results.json").read_text())["tasks"]["vqa"]["null_reasons"]
    assert set(reasons.values()) == {"the model answers no questions: fine-tune it, train.py --task vqa"}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda q, a: q["questions"].append(q["questions"][0]), "stands there 2 times"),
        (lambda q, a: a["annotations"].pop(), "has no annotation of 1 questions"),
        (lambda q, a: q["questions"][3].pop("image_id"), "is not as VQA v2's"),
        (
            lambda q, a: a["annotations"][5]["answers"][9].update(answer=None),
            r"questions_annotations.json: question 22: an answer is null",
        ),
        (
            lambda q, a: a["annotations"][2].update(question_type=None),
            r"questions_annotations.json: question 11: question_type is null",
        ),
        (
            lambda q, a: a["annotations"][2].update(answer_type=None),
            r"questions_annotations.json: question 11: answer_type is null",
        ),
        (lambda q, a: q["questions"][2].update(question=None), r"questions.json: question 11: question is null"),
        (lambda q, a: q.update(questions=[]), "expected an object with a list of questions"),
        (lambda q, a: [entry.update(image_id=10**9) for entry in q["questions"]], "none of 48 questions is on a picture of"),
    ],
)
def test_files_that_are_not_as_published_are_named(change, said: str, world: Path, tmp_path: Path) -> None:
    files, _ = official(world / "data", tmp_path, "val2014")
    contents = [json.loads(Path(file).read_text()) for file in files.split(",")]
    change(*contents)
    for file, content in zip(files.split(","), contents, strict=True):
        Path(file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        Request(files).open(Collection(world / "data", SMALL.image.image_size))


def test_pictures_that_are_not_there_are_named(world: Path, tmp_path: Path) -> None:
    files, pictures = official(world / "data", tmp_path, "val2014")
    (pictures / "COCO_val2014_000000000003.jpg").unlink()
    with pytest.raises(UserError, match="1 of 24 pictures are not in .*, the first is COCO_val2014_000000000003.jpg"):
        QuestionPictures(Request(f"{files},{pictures}"), 48)
    shutil.rmtree(pictures)
    with pytest.raises(UserError, match="24 of 24 pictures are not in"):
        QuestionPictures(Request(f"{files},{pictures}"), 48)


def test_vqa_v2_in_a_data_root_and_for_its_server(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same numbers as from the files by name, the answers for the server, and what is there."""
    root, out = as_published(world / "data", tmp_path), tmp_path / "out"
    more = {"answer_count": 3, "device": "cpu"}
    config = EvaluateConfig(str(world / "run"), data_root=str(root), out=str(out), sets=("vqa_v2",), submit=("vqa_v2",), **more)
    assert evaluate(config) == 0
    sets = json.loads((out / "sets.json").read_text())
    assert sets["sets"]["vqa_v2"]["counts"]["pictures"] == IMAGES and sets["sets"]["vqa_v2"]["split"] == "val2014"
    assert "24 pictures, officially 40,504" in sets["sets"]["vqa_v2"]["not_as_published"]
    annotations = root / "VQA_v2/v2_mscoco_val2014_annotations.json"
    named = f"{root / 'VQA_v2/v2_OpenEnded_mscoco_val2014_questions.json'},{annotations},{root / 'coco/val2014'}"
    by_name = {"questions": named, "answers": (str(annotations),), "tasks": ("vqa",)}
    assert evaluate(EvaluateConfig(str(world / "run"), out=str(tmp_path / "named"), **by_name, **more)) == 0
    expected = json.loads((tmp_path / "named/results.json").read_text())["tasks"]["vqa"]["metrics"]
    assert sets["sets"]["vqa_v2"]["metrics"]["vqa"] == expected and expected["accuracy"] is not None
    record = sets["submissions"]["vqa_v2/test2015"]
    assert record["status"] == "done" and "48 questions, officially 447,793" in record["not_as_published"]
    said = json.loads((out / "vqa_v2" / record["file"]).read_text())
    assert len(said) == record["written"] == 48 and all(set(entry) == {"question_id", "answer"} for entry in said)
    told = capsys.readouterr().out
    assert "vqa_v2: no annotations of train2014" in told and "vqa_test2015_coca_results.json, 48 answers" in told
    rest = dataclasses.replace(config, checkpoint=str(world / "pretrained"), out=str(tmp_path / "rest"))
    assert evaluate(dataclasses.replace(rest, sets=(), submit=(), suite="paper", tasks=("vqa",))) == 0
    record = json.loads((tmp_path / "rest/sets.json").read_text())["sets"]["vqa_v2"]
    assert record["status"] == "not run" and record["reason"].startswith("the model answers no questions")
    assert evaluate(dataclasses.replace(rest, sets=())) == 1, "an answer file that was asked for cannot be written"
    shutil.rmtree(root / "coco")
    assert evaluate(dataclasses.replace(config, submit=(), out=str(tmp_path / "gone"))) == 1
    reason = json.loads((tmp_path / "gone/sets.json").read_text())["sets"]["vqa_v2"]["reason"]
    assert "vqa_v2, split val2014" in reason and "../coco/val2014/" in reason


def test_vqa_s_cell_of_the_paper_comes_from_the_data_root_too(world: Path, tmp_path: Path) -> None:
    from sycoca_ds.eval.paper.cells import content

    root = as_published(world / "data", tmp_path)
    more = {"data_root": str(root), "device": "cpu", "answer_count": 3}
    assert evaluate(EvaluateConfig(str(world / "run"), out=str(tmp_path / "paper/vqa"), sets=("vqa_v2",), **more)) == 0
    (tmp_path / "paper/sets.json").write_text(json.dumps({"checkpoint": "x", "sets": {}}))
    (part,) = [part for table in content(tmp_path / "paper")["tables"] for part in table["parts"] if part["set"] == "vqa"]
    assert part["page"] == "vqa/vqa_v2/report.html" and part["rows"][0]["ours"] is not None
    assert "48 questions, officially 214,354" in part["notes"]
