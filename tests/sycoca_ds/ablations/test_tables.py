"""What each row of the tables trains, and the arithmetic of what is printed of them."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
import torch

from sycoca_ds.ablations.report import markdown, pooled_error, ranks, spearman, spread, tables
from sycoca_ds.ablations.tables import PAPER_COLUMNS, PAPER_TITLES, ROWS, TITLES, configurations, row_options, select, trained_as
from sycoca_ds.config import LossConfig, MaskingConfig, check_model, with_vocabulary
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import parse_options
from sycoca_ds.presets import PRESETS

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
    assert len(PAPER_COLUMNS) == 8 and [sum(row.table == table for row in ROWS.values()) for table in TITLES] == [7, 9, 4, 15]
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
