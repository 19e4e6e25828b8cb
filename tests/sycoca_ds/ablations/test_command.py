"""The command: what is refused, which trainings and evaluations follow from its options, and rows against one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.ablations import paired as comparing
from sycoca_ds.ablations.__main__ import main
from sycoca_ds.ablations.following import answering, whole_pictures
from sycoca_ds.ablations.launch import launcher, reason_in, with_port
from sycoca_ds.ablations.record import length_line
from sycoca_ds.ablations.report import averaged, paired_table
from sycoca_ds.ablations.runs import Run, check_same, evaluate_command, found_precision, parse_sets, plan_runs, sets_of
from sycoca_ds.ablations.tables import select
from sycoca_ds.config import with_vocabulary
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.stats.paired import KEY, each_file
from sycoca_ds.model.flops import step_flops
from sycoca_ds.options import to_json
from tests.worlds.data.data_sets import questions_on, write_labels


@pytest.fixture(scope="module")
def labels(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(data_set, tmp_path_factory.mktemp("labels") / "labels.json")


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        main(list(arguments))
    return str(caught.value)


def test_what_cannot_be_meant_is_refused_before_anything_starts(data_set: Path, labels: Path, tmp_path: Path) -> None:
    given = ["--out", str(tmp_path / "out"), "--launch", "python", "--evaluate", f"w={data_set}"]
    train = ["--", "--preset", "tiny", "--data.train", str(data_set)]
    assert "no such row; did you mean table5.tg_mim_random?" in refusal(*given, "--rows", "table5.tgmim_random", *train)
    assert "--table 8: no such table" in refusal(*given, "--table", "8", *train)
    assert "leaves its table out; add 7" in refusal(*given, "--table", "5", "--rows", "table7.lambda0.1", *train)
    assert "--evaluate is not set" in refusal(*given[:4], *train)
    assert "the name w is given twice" in refusal(*given, f"w={data_set},{labels}", *train)
    assert "expected NAME=DATA_DIR" in refusal(*given[:5], str(data_set), *train)
    assert "labels none of the images" in refusal(*given[:5], f"w={data_set},{other_labels(labels, tmp_path)}", *train)
    assert "the paper's column cifar10 is classification, which needs labels" in refusal(*given[:5], f"cifar10={data_set}", *train)
    assert "--model.masking.low_ratio is set by each row of the tables (table6.a_low25_high75: 0.25): take it out" in refusal(
        *given, "--table", "6", *train, "--model.masking.low_ratio", "0.1"
    )
    assert "--model.family is set by each row" in refusal(*given, *train, "--model.family=coca")
    assert "--run.seed is set by --seeds" in refusal(*given, *train, "--run.seed", "3")
    assert "--seeds 1 1: expected different" in refusal(*given, "--seeds", "1", "1", *train)
    assert "--launch nosuchlauncher -n 2: nosuchlauncher is no program" in refusal(
        *given[:2], "--launch", "nosuchlauncher -n 2", *given[4:], *train
    )
    assert "--launch 'x: No closing quotation" in refusal(*given[:2], "--launch", "'x", *given[4:], *train)
    (tmp_path / "file").touch()
    no_folder = refusal("--out", str(tmp_path / "file"), *given[2:], *train)
    assert "file: expected a folder, or a place for one (Not a directory)" in no_folder
    assert "--whole-pictures trains captioning, which nothing measures" in refusal(*given, "--whole-pictures", "5", *train)
    assert "--answering trains answers to questions: give those" in refusal(*given, "--answering", "5", *train)
    assert "--against masking.eq7: expected one of the rows" in refusal(*given, "--against", "masking.eq7", *train)
    assert "did you mean --optim.lr?" in refusal(*given, *train, "--optim.lrr", "1")
    assert "data.train is not set" in refusal(*given, "--", "--preset", "tiny")
    assert "unrecognized" in refusal(*given, "--seed", "3", *train).lower()
    assert not (tmp_path / "out").exists()


def other_labels(labels: Path, folder: Path) -> Path:
    value = json.loads(labels.read_text())
    (folder / "other.json").write_text(json.dumps(value | {"labels": {"http://elsewhere/1.jpg": 0}}))
    return folder / "other.json"


def test_an_existing_folder_with_another_configuration_is_refused(data_set: Path, tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--data.train", str(data_set)]
    rows = select(("5",), ("table5.coca",))
    (run,) = plan_runs(rows, (0,), tmp_path, words)
    assert not check_same(run, found_precision(tmp_path))
    run.folder.mkdir(parents=True)

    tokenizer = Tokenizer(data_set / "tokenizer.json")
    left_out_ids = tokenizer.meaningless_ids(run.config.model.masking.common_words)
    settled = with_vocabulary(run.config.model, tokenizer.vocab_size, left_out_ids)
    assert settled.masking.left_out_ids, "the preset leaves words out"
    moved = dataclasses.replace(run.config.run, out="/elsewhere", precision="bf16")
    (run.folder / "config.json").write_text(to_json(dataclasses.replace(run.config, model=settled, run=moved)))
    assert check_same(run, found_precision(tmp_path)) and found_precision(tmp_path) == "bf16"
    (other,) = plan_runs(rows, (0,), tmp_path, [*words, "--optim.lr", "0.5", "--optim.eps", "7"])
    with pytest.raises(UserError, match=r"was trained with optim.lr = 0.0014 \(now 0.5\), optim.eps = 1e-06 \(now 7.0\): give the"):
        check_same(other, "bf16")
    (fewer,) = plan_runs(rows, (0,), tmp_path, [*words, "--run.keep-checkpoints", "1", "--data.workers", "0"])
    assert check_same(fewer, "bf16"), "what learns nothing may change"
    with pytest.raises(UserError, match=r"run.precision = bf16 \(now fp32\)"):
        check_same(run, "fp32")  # the folder's other runs are in float32
    with pytest.raises(UserError, match=r"run.precision = bf16 \(now fp32\)"):
        check_same(plan_runs(rows, (0,), tmp_path, [*words, "--run.precision", "fp32"])[0], "bf16")


def test_sets_named_as_the_papers_classification_columns_are_classified_only(data_set: Path, labels: Path) -> None:
    sets = parse_sets([f"w={data_set}", f"stl10={data_set},{labels}", f"mscoco={data_set},{labels}"], captioning=True)
    assert [chosen.tasks for chosen in sets] == [
        ("retrieval", "captioning"),
        ("classification",),
        ("retrieval", "classification", "captioning"),
    ]
    columns = [column for chosen in sets for column in chosen.columns]
    assert columns == ["w mTR", "w mIR", "w CIDEr", "stl10 top-1", "mscoco mTR", "mscoco mIR", "mscoco top-1", "mscoco CIDEr"]


def test_seeds_come_after_rows_and_every_launch_gets_a_port_if_it_takes_one(data_set: Path, tmp_path: Path) -> None:
    runs = plan_runs(select(("5", "7"), ()), (3, 1), tmp_path, ["--preset", "tiny", "--data.train", str(data_set)])
    assert len(runs) == 2 * 10 and [run.seed for run in runs] == [3] * 10 + [1] * 10
    assert runs[6].serves(select(("5", "7"), ())) == ["table5.sycoca", "table7.lambda1.0"]
    for run in runs:
        assert (run.config.run.seed, Path(run.config.run.out)) == (run.seed, tmp_path / run.name / f"seed_{run.seed}")
    deepspeed = launcher("deepspeed --num_accelerators 2")
    port = with_port(deepspeed)
    assert port[1] == "--master_port" and 29500 <= int(port[2]) < 30600 and port[3:] == ["--num_accelerators", "2"]
    for text in ("python", "deepspeed --master_port 5", "torchrun --master-port=5"):
        words = launcher(text)
        assert with_port(words) == words


def test_rows_at_equal_compute(data_set: Path, tmp_path: Path) -> None:
    """CoCa, which has neither a second encoder pass nor an image decoder, gets more steps; FLOPs are then equal to half a step."""
    words = ["--preset", "tiny", "--data.train", str(data_set), "--optim.steps", "600"]
    names = ("masking.none", "masking.random", "masking.eq7", "masking.cross_attention", "masking.late")
    runs = plan_runs(select(("masking",), names), (0,), tmp_path, words, equal_compute="masking.eq7")
    steps = {run.row: run.config.optim.steps for run in runs}
    assert steps["masking.eq7"] == 600 and steps["masking.none"] > 900
    assert length_line(runs).startswith(f"{min(steps.values())} to {steps['masking.none']} steps at equal compute (masking.none ")
    assert length_line([run for run in runs if run.row == "masking.eq7"]) == "600 steps"
    assert steps["masking.random"] > 600 > steps["masking.cross_attention"] and 600 > steps["masking.late"]
    tokenizer = Tokenizer(data_set / "tokenizer.json")
    with contextlib.ExitStack() as opened:
        tars = [opened.enter_context(tarfile.open(path)) for path in sorted((data_set / "shards").glob("*.tar"))]
        said = [tar.extractfile(member).read().decode() for tar in tars for member in tar if member.name.endswith(".txt")]
    real = float(np.mean([np.count_nonzero(row) for row in tokenizer.encode(said, 40)]))
    assert runs[0].config.model.text.context_length == 40 and real < 30, "padding would cost something"
    for pieces in (1, 4):
        more = ["--optim.accumulation-steps", str(pieces)]
        runs = plan_runs(select(("masking",), names), (0,), tmp_path, [*words, *more], equal_compute="masking.eq7")
        steps = {run.row: run.config.optim.steps for run in runs}
        sized = {run.row: with_vocabulary(run.config.model, tokenizer.vocab_size) for run in runs}
        cost = {run.row: step_flops(sized[run.row], real, accumulation_steps=pieces, loss=run.config.loss) for run in runs}
        for row, count in steps.items():
            assert abs(count * cost[row] - 600 * cost["masking.eq7"]) <= cost[row] / 2, row
    with pytest.raises(UserError, match="no such row; did you mean masking.eq7?"):
        plan_runs(select(("masking",), names), (0,), tmp_path, words, equal_compute="masking.eq8")
    with pytest.raises(UserError, match="needs --optim.steps"):
        plan_runs(select(("masking",), names), (0,), tmp_path, ["--preset", "base", *words[2:4]], equal_compute="masking.eq7")


def test_captioning_on_whole_pictures_follows_each_run_that_captions(data_set: Path, tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--data.train", str(data_set), "--optim.steps", "600"]
    rows = select(("5", "masking"), ("table5.itc", "table5.coca", "masking.late"))
    runs = plan_runs(rows, (4,), tmp_path, words, followings=[whole_pictures(100)])
    assert [run.name for run in runs] == [
        *("table5.itc", "table5.coca", "table5.coca whole-picture", "masking.late", "masking.late whole-picture")
    ]
    first, then = runs[3:]
    assert then.folder.parent == first.folder and then.config.run.weights == str(first.folder)
    model, loss, optim = then.config.model, then.config.loss, then.config.optim
    assert model.family == "coca" and (loss.itc, loss.ic, loss.late_interaction) == (0, 2, 0)
    assert (optim.steps, optim.warmup_steps, optim.lr) == (100, 10, first.config.optim.lr / 4)
    sets = parse_sets([f"w={data_set}"], captioning=True)
    assert [chosen.columns for chosen in sets_of(then, sets)] == [["w whole-picture CIDEr"]]
    assert sets_of(first, sets) == sets and averaged(["w mTR", "w whole-picture CIDEr"]) == ["w mTR"]
    assert then.serves(rows) == ["masking.late"]


def test_answers_to_questions_follow_too(data_set: Path, tmp_path: Path) -> None:
    """From the run's weights, not from those after captioning; on the pictures that it trained on."""
    words = ["--preset", "tiny", "--data.train", str(data_set), "--optim.epochs", "2", "--data.validation", str(data_set)]
    rows = select(("5",), ("table5.itc", "table5.sycoca"))
    followings = [whole_pictures(100), answering(40, ["q.json", "r.json"])]
    runs = plan_runs(rows, (0,), tmp_path, words, followings=followings)
    assert [run.name for run in runs] == [
        *("table5.itc", "table5.sycoca", "table5.sycoca whole-picture", "table5.sycoca after questions")
    ]
    first, whole, then = runs[1:]
    assert then.folder == first.folder / "questions" and then.config.run.weights == whole.config.run.weights == str(first.folder)
    config = then.config
    assert (config.task, config.model.family, config.model.fusion) == ("vqa", "coca", True)
    assert (config.loss.itc, config.loss.ic, config.loss.mim, config.loss.late_interaction) == (0, 0, 0, 0)
    assert (config.optim.steps, config.optim.epochs, config.optim.warmup_steps, config.optim.lr) == (
        40,
        None,
        4,
        first.config.optim.lr,
    )
    assert config.data.questions == ("q.json", "r.json") and config.data.train == first.config.data.train
    assert config.optim.global_batch_size == first.config.optim.global_batch_size and config.data.validation is None


def test_compositions_and_questions_belong_to_a_set(data_set: Path, tmp_path: Path) -> None:
    given, asked = [f"w={data_set}", f"v={data_set}"], questions_on(data_set, tmp_path / "q.json")
    first, second = parse_sets(given, captioning=False, questions=[f"v={asked}"])
    assert (first.questions, second.questions) == ("", str(asked)) and first.tasks == second.tasks == ("retrieval",)
    words = ["--preset", "tiny", "--data.train", str(data_set)]
    run, then = plan_runs(select(("5",), ("table5.coca",)), (0,), tmp_path, words, followings=[answering(5, [str(asked)])])
    (chosen,) = sets_of(then, [first, second])
    assert chosen.columns == ["v after questions accuracy", "v after questions accuracy other picture"]
    words = evaluate_command(then, chosen, "x")
    assert words[words.index("--questions") + 1] == str(asked) and words[-2:] == ["--tasks", "vqa"]
    assert "--questions" not in evaluate_command(run, second, "x") and averaged(chosen.columns) == []
    for option in ("compositions", "questions"):
        with pytest.raises(UserError, match=f"--{option} x=y: no evaluation set has that name"):
            parse_sets(given, captioning=False, **{option: ["x=y"]})
    with pytest.raises(UserError, match="/nowhere is no folder"):
        parse_sets(given, captioning=False, compositions=["w=sugarcrepe=/nowhere"])
    with pytest.raises(UserError, match="/nowhere.json is not readable"):
        parse_sets(given, captioning=False, questions=["w=/nowhere.json"])


def test_rows_against_one_of_them_over_the_same_pictures(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the evaluations left is matched by the pictures' names, seed by seed; a run without a number has no part in it. A
    picture counts by its questions."""
    words = ["--preset", "tiny", "--data.train", str(data_set), "--optim.steps", "600"]
    rows = select(("masking",), ("masking.random", "masking.eq7", "masking.content"))
    runs = plan_runs(rows, (0, 1), tmp_path, words)
    answered = parse_sets([f"w={data_set}"], captioning=False)
    sets = [dataclasses.replace(chosen, tasks=(*chosen.tasks, "vqa")) for chosen in answered]
    names, value = np.array(["a", "b", "c"]), {"masking.random": [0, 50, 100], "masking.eq7": [10, 60, 113]}
    for run in runs:
        if run.row in value and (run.row, run.seed) != ("masking.eq7", 1):
            order = [2, 0, 1] if run.seed else [0, 1, 2]
            each = {KEY: names[order], "mTR": np.array(value[run.row])[order], "i2t_r1": np.zeros(3)}
            each_file(run.folder / "eval/w", "retrieval").parent.mkdir(parents=True)
            np.savez(each_file(run.folder / "eval/w", "retrieval"), **each)
            asked = {"accuracy": np.array(value[run.row])[order], "accuracy_count": np.array([1.0, 1.0, 2.0])[order]}
            np.savez(each_file(run.folder / "eval/w", "vqa"), **{KEY: names[order]}, **asked)

    def finished(run: Run, chosen: object) -> dict | None:
        path = each_file(run.folder / "eval/w", "retrieval")
        return {"tasks": {task: {"status": "done"} for task in ("retrieval", "vqa")}} if path.exists() else None

    monkeypatch.setattr(comparing, "finished_evaluation", finished)
    found = comparing.compare(rows, runs, sets, "masking.random")
    assert list(found) == ["masking.eq7"] and list(found["masking.eq7"]) == ["w mTR", "w accuracy"]
    assert found["masking.eq7"]["w accuracy"]["difference"] == pytest.approx((10 + 10 + 2 * 13) / 4)
    told = found["masking.eq7"]["w mTR"]
    assert told["difference"] == 11 and (told["images"], told["seeds"], told["seeds_above"]) == (3, 1, 1)
    lines = paired_table(found, "masking.random", ["w mTR", "w mIR"], [row.name for row in rows])
    assert lines[-3:] == ["| row | w mTR |", "|---|---:|", f"| `masking.eq7` | +11.00 (+10.00 to {told['high']:+.2f}), 1 of 1 |"]
    with pytest.raises(UserError, match="--against table5.itc: expected one of the rows of this command: masking.random"):
        comparing.compare(rows, [], [], "table5.itc")


def test_the_reason_is_the_line_that_says_most(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, reason in (
        ("$ x\nerror: bad --flag\nTraceback\nValueError: 1\nlater\n", "bad --flag"),
        ("$ x\nTraceback\ntorch.OutOfMemoryError: no memory\nlauncher exits\n", "torch.OutOfMemoryError: no memory"),
        ("$ x\nlast words\n\n", "last words"),
        ("$ x\n", "it printed nothing"),
    ):
        log.write_text(text)
        assert reason_in(log) == reason
