"""The paper's ablations (arXiv 2401.02137, Tables 5 to 7, trained on CC3M) as named configurations, with its numbers, and a
table of our own: what chooses the masks.

A row is the fields it sets; everything else is the run's own. Equal rows of different tables (the default is in all three) are one
configuration, trained once under the name of its first appearance: `trained_as`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError

SOURCE = "arXiv 2401.02137"
PAPER_TITLES = {"5": "training objectives", "6": "masking ratios", "7": "weight of TG-MIM"}
TITLES = {**PAPER_TITLES, "masking": "what chooses the masks"}
PAPER_COLUMNS = (
    ("flickr30k", "mTR"),
    ("flickr30k", "mIR"),
    ("mscoco", "mTR"),
    ("mscoco", "mIR"),
    ("imagenet1k", "top-1"),
    ("cifar10", "top-1"),
    ("stl10", "top-1"),
    ("caltech101", "top-1"),
)
"""(evaluation set, metric) of the paper's eight columns, in percent. mTR and mIR are means of R@1, R@5 and R@10."""
CLASSIFICATION_ONLY = tuple(name for name, metric in PAPER_COLUMNS if metric == "top-1")
"""Sets of which the paper prints classification alone: retrieval among class names would mean nothing."""


@dataclass(frozen=True)
class Row:
    """One row of one table."""

    table: str
    name: str
    """`table5.coca`."""
    title: str
    """As the table prints it."""
    fields: tuple[tuple[str, str | float], ...]
    """(dotted field of TrainConfig, value), all the row sets."""
    paper: tuple[float, ...] = ()
    """The paper's eight numbers, in the order of PAPER_COLUMNS, percent; empty in a table of our own."""
    paper_avg: float | None = None
    """The paper's "Avg.", as printed: the plain mean of the eight."""
    group: str = ""
    """Part of the table, `a`, `b` or `c`; only rows of one part are neighbours."""


def objective(family: str = "sycoca", mim: str = "text_guided", mask_by: str = "attention", **more: float) -> tuple:
    """The fields of a row: the paper's defaults (r_h = r_l = 50 %, lambda_TM = 1) with what the row changes.

    `clip` and `coca` have no masks and no image decoder, so nothing but the family is theirs.
    """
    if family != "sycoca":
        return (("model.family", family),)
    values = {"high_ratio": 0.5, "low_ratio": 0.5, "weight": 1.0, **more}
    return (
        ("model.family", family),
        ("model.masking.mim", mim),
        ("model.masking.mask_by", mask_by),
        ("model.masking.high_ratio", values["high_ratio"]),
        ("model.masking.low_ratio", values["low_ratio"]),
        ("loss.mim", values["weight"]),
    )


SYCOCA = (42.6, 32.4, 18.3, 18.4, 11.6, 51.1, 73.6, 39.5), 35.9
"""The paper's full model; the same numbers stand in all three tables."""

# Table 5. Its check marks say which objectives a row has and whether MIM's masks are random (RM) or attentive (AM). They do not
# say what captioning sees in the rows with random masks: here the masks of both are random there, and independent of each other.
TABLE_5 = (
    Row("5", "table5.itc", "ITC", objective("clip"), (32.0, 24.4, 13.5, 14.8, 10.7, 41.0, 68.4, 36.7), 30.2),
    Row("5", "table5.coca", "CoCa: ITC + IC", objective("coca"), (37.5, 28.7, 16.1, 16.0, 10.4, 39.6, 69.2, 37.8), 31.9),
    Row(
        "5",
        "table5.coca_masked",
        "CoCa, attentive masking of captioning's input",
        objective(mim="none"),
        (41.1, 31.4, 17.5, 18.3, 11.4, 40.0, 71.7, 39.1),
        33.8,
    ),
    Row(
        "5",
        "table5.mim_random",
        "+ MIM, random masking",
        objective(mim="plain", mask_by="random"),
        (36.0, 27.1, 15.8, 16.3, 11.8, 46.6, 71.5, 38.5),
        33.0,
    ),
    Row(
        "5",
        "table5.mim_attentive",
        "+ MIM, attentive masking",
        objective(mim="plain"),
        (37.7, 27.8, 15.2, 16.2, 11.6, 43.5, 72.1, 35.9),
        32.5,
    ),
    Row(
        "5",
        "table5.tg_mim_random",
        "+ TG-MIM, random masking",
        objective(mask_by="random"),
        (35.8, 26.4, 14.4, 15.2, 11.9, 44.8, 71.4, 39.2),
        32.4,
    ),
    Row("5", "table5.sycoca", "SyCoCa: + TG-MIM, attentive masking", objective(), *SYCOCA),
)

# Table 6. Only the middle row of each part can be told from the paper's text (it is the default, its numbers recur). The labels of
# the outer rows are lost; ascending order, that of r_l in part (a), is the most usual and is taken here. The numbers do not decide
# it: if the effects of r_h in (b) and r_l in (c) added up, this order of (a) would make its last row's avg 0.6 better than its
# first, the other order 0.6 worse, and the paper has 0.3 worse; of the eight columns three agree with this order, three with the
# other, and two (no difference in the paper) with neither.
ORDER_NOTE = (
    "Which of the paper's outer rows in each part has 25 % and which 75 % cannot be told from its text (the middle rows are "
    "certain). Ascending order is assumed: the paper's numbers of the two may be exchanged."
)


def ratios(part: str, low: float, high: float, paper: tuple[float, ...], paper_avg: float) -> Row:
    name = {"a": f"low{low:.0%}_high{high:.0%}", "b": f"high{high:.0%}", "c": f"low{low:.0%}"}[part].replace("%", "")
    title = f"({part}) r_l = {low:.0%}, r_h = {high:.0%}"
    return Row("6", f"table6.{part}_{name}", title, objective(low_ratio=low, high_ratio=high), paper, paper_avg, part)


TABLE_6 = (
    ratios("a", 0.25, 0.75, (40.1, 31.0, 17.5, 17.8, 11.1, 49.7, 73.3, 39.4), 35.0),
    ratios("a", 0.50, 0.50, *SYCOCA),
    ratios("a", 0.75, 0.25, (40.7, 31.1, 17.5, 17.3, 11.1, 47.6, 72.2, 39.8), 34.7),
    ratios("b", 0.50, 0.25, (42.5, 32.4, 18.3, 18.3, 11.1, 48.0, 73.9, 39.4), 35.5),
    ratios("b", 0.50, 0.50, *SYCOCA),
    ratios("b", 0.50, 0.75, (42.8, 32.6, 18.4, 18.4, 11.9, 48.3, 72.7, 40.1), 35.6),
    ratios("c", 0.25, 0.50, (42.4, 32.3, 18.3, 18.3, 11.5, 49.9, 74.1, 36.5), 35.4),
    ratios("c", 0.50, 0.50, *SYCOCA),
    ratios("c", 0.75, 0.50, (43.2, 33.3, 18.6, 18.8, 11.7, 51.2, 73.1, 39.0), 36.1),
)


def weight(value: float, paper: tuple[float, ...], paper_avg: float) -> Row:
    return Row("7", f"table7.lambda{value}", f"lambda_TM = {value}", objective(weight=value), paper, paper_avg)


TABLE_7 = (
    weight(0.1, (42.1, 32.4, 18.3, 18.2, 11.3, 46.5, 73.2, 39.8), 35.2),
    weight(0.5, (42.8, 32.2, 18.2, 18.2, 11.5, 46.1, 73.6, 38.6), 35.1),
    weight(1.0, *SYCOCA),
    weight(2.0, (40.5, 31.3, 17.7, 17.8, 11.3, 47.3, 72.2, 40.0), 34.8),
)


def pooled(by: str) -> tuple:
    """How both encoders make one vector of their tokens."""
    return ("model.image.pooling", by), ("model.text.pooling", by)


def unmasked(name: str, title: str, pooling: str) -> Row:
    return Row("masking", f"masking.{name}", title, (*objective("coca"), *pooled(pooling), ("loss.late_interaction", 0.0)))


def masks(
    name: str,
    title: str,
    similarity: str = "token_max",
    words: str = "content",
    mask_by: str = "attention",
    pooling: str = "cls",
    late: float = 0.0,
) -> Row:
    """A row of our own table: masks by one of the candidates, and what trains their scores (docs/masking.md)."""
    fields = (
        ("model.family", "sycoca"),
        ("model.masking.mim", "text_guided"),
        ("model.masking.mask_by", mask_by),
        ("model.masking.similarity", similarity),
        ("model.masking.words", words),
        *pooled(pooling),
        ("loss.late_interaction", late),
    )
    return Row("masking", f"masking.{name}", title, fields)


LATE = 0.1
"""Weight of the late interaction where there is one."""
TABLE_MASKING = (
    unmasked("none", "no masks: CoCa", "cls"),
    unmasked("none_mean", "no masks: CoCa, pooling by the mean", "mean"),
    masks("random", "random masks", mask_by="random"),
    masks("random_mean", "random masks, pooling by the mean", mask_by="random", pooling="mean"),
    masks("random_late", "random masks, late interaction", mask_by="random", late=LATE),
    masks("eq7", "eq. 7 as printed", words="all"),
    masks("content", "eq. 7, content words"),
    masks("others", "less what other pictures match", "centred_over_pictures"),
    masks("cross_attention", "the decoder's cross-attention", "cross_attention"),
    masks("value_path", "value path through [CLS]", "value_path"),
    masks("mean", "eq. 7, content words, pooling by the mean", pooling="mean"),
    masks("late", "eq. 7, content words, late interaction", late=LATE),
    masks("late_others", "less what other pictures match, late interaction", "centred_over_pictures", late=LATE),
    masks("saliency", "saliency, no text", "saliency"),
    masks("saliency_mean", "saliency, no text, pooling by the mean", "saliency", pooling="mean"),
)
"""The first five choose no masks by a caption: what the candidates have to beat, and models that are fair to all of them."""

ROWS = {row.name: row for row in (*TABLE_5, *TABLE_6, *TABLE_7, *TABLE_MASKING)}
"""Every row by its name, the paper's in its order, then our own."""


def row_options(row: Row) -> list[str]:
    """The row's fields as options of train.py."""
    return [word for name, value in row.fields for word in (f"--{name.replace('_', '-')}", str(value))]


def trained_as(row: Row) -> str:
    """The name of the first row with the same fields: the folder in which all of them are trained."""
    return next(other.name for other in ROWS.values() if other.fields == row.fields)


def select(tables: Sequence[str], names: Sequence[str]) -> list[Row]:
    """The rows of the tables, or those of them that are named, in the paper's order.

    Raises:
        UserError: no such table or row, or a row of a table that is left out.
    """
    if not tables:
        raise UserError(f"--table is empty: expected some of {' '.join(TITLES)}")
    for table in tables:
        if table not in TITLES:
            raise UserError(f"--table {table}: no such table; there are {' '.join(TITLES)}, the first three are the paper's")
    for name in names:
        if name not in ROWS:
            raise UserError(f"--rows {name}: no such row{nearest(name, list(ROWS))} (rows: {', '.join(ROWS)})")
        if ROWS[name].table not in tables:
            raise UserError(f"--rows {name}: --table {' '.join(tables)} leaves its table out; add {ROWS[name].table}")
    return [row for row in ROWS.values() if row.table in tables and (not names or row.name in names)]


def configurations(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows to train: one for each distinct configuration, under its own name, in the paper's order."""
    wanted = {trained_as(row) for row in rows}
    return (row for row in ROWS.values() if row.name in wanted)
