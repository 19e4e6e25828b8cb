"""The paper's numbers, against what else the paper prints of them, and the cells against what an evaluation leaves."""

import pytest

from sycoca_ds.ablations.tables import PAPER_COLUMNS, SYCOCA
from sycoca_ds.eval.datasets.registry import PAPER, SETS, SUITES
from sycoca_ds.eval.paper.tables import FINE_TUNED, PRIMARY, PROBED, TABLES, VQA, ZERO_SHOT
from sycoca_ds.eval.registry import METRICS

BY_NUMBER = {table.number: table for table in TABLES}
GAINS = {  # "%Gains" of Tables 1 and 2, relative, as printed
    "1": (5.4, 5.4, 2.3, 14.7, 8.2, 6.8, 14.7, 10.5, 9.6, 12.4, 10.9, 9.8),
    "2": (5.2, 4.4, 6.3, 3.7, 1.6, 1.8, 2.6, 1.0, 9.1, 9.0, 8.3),
}


@pytest.mark.parametrize("number", GAINS)
def test_numbers_give_the_gains_that_the_paper_prints(number):
    table = BY_NUMBER[number]
    made = [100 * (ours / coca - 1) for coca, ours in zip(table.numbers["CoCa"], table.numbers["SyCoCa"], strict=True)]
    assert made == pytest.approx(GAINS[number], abs=0.06)


def test_table_5_is_that_of_the_ablations():
    table = BY_NUMBER["5"]
    assert table.numbers["SyCoCa"] == SYCOCA[0] and table.averages == {"ITC": 30.2, "CoCa": 31.9, "SyCoCa": 35.9}
    cells = [(part.name, cell.metric) for part in table.parts for cell in part.cells]
    assert cells == [(name, metric.replace("-", "")) for name, metric in PAPER_COLUMNS]
    for model, numbers in table.numbers.items():
        assert sum(numbers) / 8 == pytest.approx(table.averages[model], abs=0.05)


def test_lost_bodies_are_gaps():
    assert [number for number, table in BY_NUMBER.items() if not table.numbers] == ["3", "4"]
    assert all("not known" in BY_NUMBER[number].remark for number in "34")


def test_every_cell_is_a_number_that_an_evaluation_leaves():
    named = set()
    for table in TABLES:
        cells = [cell for part in table.parts for cell in part.cells]
        assert all(len(numbers) == len(cells) for numbers in table.numbers.values())
        for part in table.parts:
            named.add(part.name)
            assert part.name == VQA or part.task in SETS[part.name].tasks
            for cell in part.cells:
                metric = SETS[part.name].primary if cell.metric == PRIMARY and part.name != VQA else cell.metric
                assert cell.kept_back or part.task not in METRICS or metric in METRICS[part.task]
    assert named - {VQA} | {"vqa_v2"} == set(SUITES[PAPER]), "the suite has the tables' sets"
    assert set(ZERO_SHOT) == {name for name, entry in SETS.items() if entry.tasks == ("classification",)}
    assert set(PROBED) == {name for name, entry in SETS.items() if entry.tasks == ("linear_probe",)}
    assert not {VQA, FINE_TUNED} & set(SETS), "folders in OUT beside those of the sets"
