"""The paper's Tables 5 to 7: what each row trains, the arithmetic of the tables, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.ablations import paired as comparing
from sycoca_ds.ablations.__main__ import main
from sycoca_ds.ablations.following import answering, whole_pictures
from sycoca_ds.ablations.launch import launcher, reason_in, with_port
from sycoca_ds.ablations.record import length_line
from sycoca_ds.ablations.report import averaged, markdown, paired_table, pooled_error, ranks, spearman, spread, tables
from sycoca_ds.ablations.runs import Run, check_same, evaluate_command, found_precision, parse_sets, plan_runs, sets_of
from sycoca_ds.ablations.tables import PAPER_COLUMNS, PAPER_TITLES, ROWS, TITLES, configurations, row_options, select, trained_as
from sycoca_ds.config import LossConfig, MaskingConfig, check_model, with_vocabulary
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.stats.paired import KEY, each_file
from sycoca_ds.model.flops import step_flops
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import parse_options, to_json
from sycoca_ds.presets import PRESETS
from tests.worlds.data.data_sets import questions_on, write_labels

# name: family, mim, mask_by, r_h, r_l, lambda_TM; None where the family has no masks
LITERAL = {
    "table5.itc": ("clip", None, None, None, None, None),
    "table5.coca": ("coca", None, None, None, None, None),
    "table5.coca_masked": ("sycoca", "none", "attention", 0.5, 0.5, 1.0),
    "table5.mim_random": ("sycoca", "plain", "random", 0.5, 0.5, 1.0),
    "table5.mim_attentive": ("sycoca", "plain", "attention", 0.5, 0.5, 1.0),
    "table5.tg_mim_random": ("sycoca", "text_guided", "random", 0.5, 0.5, 1.0),
    "table5.sycoca": ("sycoca", "text_guided", "attention", 0.5, 0.5, 1.0),
    "table6.a_low25_high75": ("sycoca", "text_guided", "attention", 0.75, 0.25, 1.0),
    "table6.a_low50_high50": ("sycoca", "text_guided", "attention", 0.5, 0.5, 1.0),
    "table6.a_low75_high25": ("sycoca", "text_guided", "attention", 0.25, 0.75, 1.0),
    "table6.b_high25": ("sycoca", "text_guided", "attention", 0.25, 0.5, 1.0),
    "table6.b_high50": ("sycoca", "text_guided", "attention", 0.5, 0.5, 1.0),
    "table6.b_high75": ("sycoca", "text_guided", "attention", 0.75, 0.5, 1.0),
    "table6.c_low25": ("sycoca", "text_guided", "attention", 0.5, 0.25, 1.0),
    "table6.c_low50": ("sycoca", "text_guided", "attention", 0.5, 0.5, 1.0),
    "table6.c_low75": ("sycoca", "text_guided", "attention", 0.5, 0.75, 1.0),
    "table7.lambda0.1": ("sycoca", "text_guided", "attention", 0.5, 0.5, 0.1),
    "table7.lambda0.5": ("sycoca", "text_guided", "attention", 0.5, 0.5, 0.5),
    "table7.lambda1.0": ("sycoca", "text_guided", "attention", 0.5, 0.5, 1.0),
    "table7.lambda2.0": ("sycoca", "text_guided", "attention", 0.5, 0.5, 2.0),
}


def test_the_rows_are_these_in_this_order() -> None:
    assert [name for name, row in ROWS.items() if row.table in PAPER_TITLES] == list(LITERAL)


@pytest.mark.parametrize("name", LITERAL)
def test_a_row_changes_its_fields_and_nothing_else_and_builds_the_right_parts(name: str) -> None:
    family, mim, mask_by, high, low, weight = LITERAL[name]
    # a base that differs from every row, so that a field a row forgets to set is seen
    base = ["--model.masking.high-ratio", "0.3", "--model.masking.low-ratio", "0.1", "--loss.mim", "7", "--model.family", "coca"]
    start, config = parse_options(["--preset", "tiny", *base]), parse_options(["--preset", "tiny", *base, *row_options(ROWS[name])])
    masking, loss = start.model.masking, start.loss
    if mim is not None:
        masking = dataclasses.replace(masking, mim=mim, mask_by=mask_by, high_ratio=high, low_ratio=low)
        loss = dataclasses.replace(loss, mim=weight)
    model = dataclasses.replace(start.model, family=family, masking=masking)
    assert config == dataclasses.replace(start, model=model, loss=loss)

    check_model(config.model)
    with torch.device("meta"):
        built = SyCoCa(with_vocabulary(config.model, 49152), config.loss)
    assert (built.text_decoder is not None) == (family != "clip")
    assert (built.image_decoder is not None) == (mim in ("plain", "text_guided"))
    if built.image_decoder is not None:
        guided = [key for key, _ in built.image_decoder.named_parameters() if "cross" in key]
        assert bool(guided) == (mim == "text_guided")


def test_the_default_row_is_the_default_configuration() -> None:
    config = parse_options(["--preset", "paper-base", *row_options(ROWS["table5.sycoca"])])
    assert config == PRESETS["paper-base"] and config.model.masking == MaskingConfig() and config.loss == LossConfig()


def test_equal_rows_are_trained_once() -> None:
    for name, fields in LITERAL.items():
        assert trained_as(ROWS[name]) == next(other for other in LITERAL if LITERAL[other] == fields)
    every = [row.name for row in configurations([row for row in ROWS.values() if row.table in PAPER_TITLES])]
    assert every == [name for name in LITERAL if trained_as(ROWS[name]) == name] and len(every) == 16
    assert [row.name for row in configurations(select(("7",), ()))] == [
        "table5.sycoca",
        "table7.lambda0.1",
        "table7.lambda0.5",
        "table7.lambda2.0",
    ]


def test_rows_of_masks_are_whole_whatever_they_start_from() -> None:
    """Each sets all that another one sets, so none depends on the preset's own choice; the first two are CoCa, without masks."""
    rows = [ROWS[name] for name in ROWS if name.startswith("masking.")]
    base = ["--model.masking.similarity", "global", "--model.masking.words", "all", "--model.image.pooling", "mean"]
    base += ["--loss.late-interaction", "3", "--model.family", "clip", "--model.masking.mask-by", "random"]
    for row, pooling in zip(rows, ("cls", "mean"), strict=False):
        config = parse_options(["--preset", "tiny", *base, *row_options(row)])
        assert (config.model.family, config.loss.late_interaction) == ("coca", 0), row.name
        assert config.model.image.pooling == config.model.text.pooling == pooling, row.name
    for row in rows[2:]:
        configs = [parse_options(["--preset", "tiny", *start, *row_options(row)]) for start in ([], base)]
        assert configs[0] == configs[1] and configs[0].model.family == "sycoca", row.name
        check_model(configs[0].model)
    configs = {row.name: parse_options(["--preset", "tiny", *row_options(row)]) for row in rows}
    assert len({repr(config) for config in configs.values()}) == len(rows)
    paper = configs["masking.eq7"].model.masking
    assert (paper.mask_by, paper.similarity, paper.words) == ("attention", "token_max", "all")


def test_a_table_of_our_own_has_no_papers_column() -> None:
    names = ["masking.none", "masking.random", "masking.content"]
    columns = ["w mTR", "w named over unnamed"]
    numbers = {"masking.none": {"0": [10, 0.5]}, "masking.random": {"0": [20, 0.55]}, "masking.content": {"0": [30, None]}}
    record = small_record(names, columns, numbers, content="why not")
    lines = markdown(record).splitlines()
    assert "| row |  | n | w mTR | w named over unnamed | avg |" in lines
    assert "| `masking.random` | random masks | 1 | 20.0 | 0.55 | 20.0 |" in lines, "the masks' numbers are no part of avg"
    assert not any(line.startswith("Rank agreement") for line in lines)
    assert (
        "- `masking.none` to `masking.random`: +10.00; fewer than two seeds on one side, so no spread to compare it with" in lines
    )


def test_the_papers_numbers_are_consistent() -> None:
    """Its avg is the mean of the eight columns to the rounding of the print, and the default's numbers recur in all tables."""
    assert len(PAPER_COLUMNS) == 8 and [sum(row.table == table for row in ROWS.values()) for table in TITLES] == [7, 9, 4, 14]
    for row in ROWS.values():
        if row.table == "masking":
            assert not row.paper and row.paper_avg is None
            continue
        assert len(row.paper) == 8 and abs(statistics.fmean(row.paper) - row.paper_avg) <= 0.0501, row.name
        if trained_as(row) == "table5.sycoca":
            assert (row.paper, row.paper_avg) == (ROWS["table5.sycoca"].paper, 35.9)
    assert ROWS["table5.coca"].paper[:2] == (37.5, 28.7) and ROWS["table7.lambda2.0"].paper[-1] == 40.0
    assert round(100 * (35.9 / ROWS["table5.coca"].paper_avg - 1), 1) == 12.5  # the gain that the paper prints


# ---- arithmetic ---------------------------------------------------------------------------------------------------------------


def test_spread_ranks_and_errors_by_hand() -> None:
    assert spread([]) == {"n": 0, "mean": None, "sd": None} and spread([3.0]) == {"n": 1, "mean": 3.0, "sd": None}
    assert spread([1.0, 2.0, 6.0]) == {"n": 3, "mean": 3.0, "sd": pytest.approx(7**0.5)}  # (4 + 1 + 9) / 2 = 7
    assert ranks([10.0, 30.0, 10.0, 20.0]) == [1.5, 4.0, 1.5, 3.0]
    assert spearman([1, 2, 3], [5, 6, 7]) == pytest.approx(1) and spearman([1, 2, 3], [7, 6, 5]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    # ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, squares 1.5 and 2
    assert spearman([4, 4, 9], [1, 2, 3]) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1, 2], [1, 2]) is None
    assert pooled_error([1.0], [1.0, 2.0]) is None
    # squares 2 (of 1, 3: around 2) and 8 (of 4, 6, 8: around 6), 3 degrees: 10/3 * (1/2 + 1/3)
    assert pooled_error([1.0, 3.0], [4.0, 6.0, 8.0]) == pytest.approx((10 / 3 * 5 / 6) ** 0.5)


def small_record(names: list[str], columns: list[str], numbers: dict[str, dict[str, list[float | None]]], **missing: str) -> dict:
    """A record of the shape ablations.json has. `numbers`: {row: {seed: [value a column]}}."""
    runs = {
        row: {
            seed: {
                "numbers": dict(zip(columns, values, strict=True)),
                "missing": {c: missing[row.split(".")[1]] for c, v in zip(columns, values, strict=True) if v is None},
            }
            for seed, values in seeds.items()
        }
        for row, seeds in numbers.items()
    }
    record = {"rows": names, "columns": columns, "runs": runs, "training": "a model", "evaluated": ["a set"], "notes": ["a note"]}
    return record | {"tables": tables(record)}


def test_a_table_by_hand() -> None:
    record = small_record(
        ["table5.itc", "table5.coca", "table5.mim_random"],
        ["flickr30k mTR", "world top-1", "world CIDEr"],
        {
            "table5.itc": {"0": [10, 20, None], "1": [12, 24, None]},  # avg 15, 18
            "table5.coca": {"0": [30, 40, 1.5], "1": [None, None, None]},  # avg 35 and none
            "table5.mim_random": {"0": [16, 17, 0.25], "1": [15, 17, 0.75]},  # avg 16.5, 16
        },
        itc="no text decoder",
        coca="training ended with status 1: it broke",
    )
    made = record["tables"]["5"]
    first = made["rows"][0]
    assert first["ours"]["flickr30k mTR"] == {"n": 2, "mean": 11, "sd": pytest.approx(2**0.5)}
    assert first["avg"] == {"n": 2, "mean": 16.5, "sd": pytest.approx(4.5**0.5)}  # CIDEr is no part of it
    assert first["paper"] == {"flickr30k mTR": 32.0} and first["paper_avg"] == 30.2
    # ours 16.5, 35, 16.25; the paper's 30.2, 31.9, 33.0: ranks 2 3 1 against 1 2 3, sum d^2 = 6
    assert made["rank_agreement"] == {"rows": 3, "spearman": pytest.approx(1 - 6 * 6 / (3 * 8))}
    assert [pair["difference"] for pair in made["neighbours"]] == [18.5, -18.75]
    assert [pair["standard_error"] for pair in made["neighbours"]] == [None, None]
    lines = markdown(record).splitlines()
    assert "| row |  | n | flickr30k mTR | (paper) | world top-1 | world CIDEr | avg | paper's avg |" in lines
    assert "| `table5.itc` | ITC | 2 | 11.0 +- 1.4 | 32.0 | 22.0 +- 2.8 | - | 16.5 +- 2.1 | 30.2 |" in lines
    assert "| `table5.coca` | CoCa: ITC + IC | 1 | 30.0 | 37.5 | 40.0 | 1.50 | 35.0 | 31.9 |" in lines
    assert any(line.endswith("| 0.50 +- 0.35 | 16.2 +- 0.4 | 33.0 |") for line in lines)
    assert "- no text decoder: `table5.itc` (world CIDEr) seeds 0, 1" in lines
    assert "- training ended with status 1: it broke: `table5.coca` seed 1" in lines
    assert any("over 3 configurations is -0.50." in line for line in lines)
    assert any(line.startswith("- `table5.itc` to `table5.coca`: +18.50; fewer than two seeds") for line in lines)
    assert "- a note" in lines


def test_neighbours_against_their_pooled_error_and_a_cell_with_fewer_seeds() -> None:
    record = small_record(
        ["table7.lambda0.1", "table7.lambda0.5", "table7.lambda1.0"],
        ["w mTR", "w mIR"],
        {
            "table7.lambda0.1": {"0": [1, 1], "1": [3, 3]},
            "table7.lambda0.5": {"0": [4, 4], "1": [6, 6], "2": [8, 8]},
            "table5.sycoca": {"0": [7, 7], "1": [7, 7], "2": [7, None]},
        },
        sycoca="not evaluated yet",
    )
    lines = markdown(record).splitlines()
    # avg 2 and 6; error as in the test above
    assert "- `table7.lambda0.1` to `table7.lambda0.5`: +4.00, standard error 1.67: exceeds it" in lines
    # avg 6 and 7 (two seeds): squares 8 and 0, 3 degrees: sqrt(8/3 * 5/6) = 1.49
    assert "- `table7.lambda0.5` to `table7.lambda1.0`: +1.00, standard error 1.49: does not exceed it" in lines
    assert "| `table7.lambda1.0` | lambda_TM = 1.0 | 3 | 7.0 +- 0.0 | 7.0 +- 0.0 (n = 2) | 7.0 +- 0.0 (n = 2) | 35.9 |" in lines
    assert "- not evaluated yet: `table7.lambda1.0` (w mIR) seed 2" in lines


def test_table_6_counts_its_recurring_default_once_and_compares_within_its_parts() -> None:
    names = [name for name in ROWS if ROWS[name].table == "6"]
    numbers = {trained_as(ROWS[name]): {"0": [float(place)]} for place, name in enumerate(names)}
    made = small_record(names, ["w mTR"], numbers)["tables"]["6"]
    assert made["rank_agreement"]["rows"] == 7 and len(made["neighbours"]) == 6
    assert ("table6.a_low75_high25", "table6.b_high25") not in [(pair["from"], pair["to"]) for pair in made["neighbours"]]


# ---- what is refused ----------------------------------------------------------------------------------------------------------


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
    assert "is a file: expected a folder" in refusal("--out", str(tmp_path / "file"), *given[2:], *train)
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
    size = Tokenizer(data_set / "tokenizer.json").vocab_size
    cost = {run.row: step_flops(with_vocabulary(run.config.model, size), loss=run.config.loss) for run in runs}
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
    """What the evaluations left is matched by the pictures' names, seed by seed; a run without a number has no part in it, nor have
    answers, which leave none of each picture."""
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

    def finished(run: Run, chosen: object) -> dict | None:
        path = each_file(run.folder / "eval/w", "retrieval")
        return {"tasks": {task: {"status": "done"} for task in ("retrieval", "vqa")}} if path.exists() else None

    monkeypatch.setattr(comparing, "finished_evaluation", finished)
    found = comparing.compare(rows, runs, sets, "masking.random")
    assert list(found) == ["masking.eq7"] and list(found["masking.eq7"]) == ["w mTR"]
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
