"""`choosing.chosen`: which questions a limit keeps."""

import json
from pathlib import Path

import pytest

from tests.evaluation.data_sets import ROWS, write
from vero_jax.evaluation.choosing import chosen
from vero_jax.evaluation.registry import benchmark
from vero_jax.evaluation.rows import MissingData

CHARTQA, MMIFEVAL = benchmark("chartqa"), benchmark("mmifeval")


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (4, 0, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (10, 4, [0, 2, 5, 7]),
        (1000, 1, [0]),
        (0, 5, []),
    ],
)
def test_a_limit_keeps_questions_at_equal_distances(count, limit, expected):
    assert chosen(CHARTQA, Path("unused"), count, limit) == expected


def test_every_kept_number_is_another_one_and_the_last_part_of_the_data_has_its_share():
    kept = chosen(CHARTQA, Path("unused"), 1000, 50)
    assert len(set(kept)) == 50 and kept == sorted(kept)
    assert sum(number >= 900 for number in kept) == 5


def test_rows_that_go_to_another_question_come_with_it_wherever_they_stand(tmp_path):
    fact, main, other = ROWS["mmifeval"]
    mains = [{**main, "id": number} for number in range(4)]
    others = [{**other, "id": number} for number in reversed(range(4))]
    write(MMIFEVAL, tmp_path, [*mains, *others, {**fact, "id": 99}])
    # Of the five questions 0 and 2; the answers that they are compared with are rows 7 (of 0) and 5 (of 2).
    assert chosen(MMIFEVAL, tmp_path, 9, 2) == [0, 2, 5, 7]


def test_a_row_without_what_tells_its_question_is_one_itself(tmp_path):
    fact, _, other = ROWS["mmifeval"]
    lost = {key: value for key, value in other.items() if key != "del_cons"}
    folder = tmp_path / "MMIFEval"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (lost, fact, {**fact, "id": 5})))
    assert chosen(MMIFEVAL, tmp_path, 3, 2) == [0, 1]


def test_missing_data_is_the_callers_to_report(tmp_path):
    with pytest.raises(MissingData):
        chosen(MMIFEVAL, tmp_path, 9, 2)
