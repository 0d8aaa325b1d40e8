"""`loaders.questions(...)`: a limit that keeps some questions of all parts of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.data_sets import ROWS, write
from vero_jax.evaluation.loaders import questions
from vero_jax.evaluation.registry import benchmark
from vero_jax.evaluation.variants import variant

SETTING = variant("reasoning")


def _ids(name: str, root: Path, limit: int | None) -> list[str]:
    found = questions(benchmark(name), root, SETTING, limit=limit)
    return [item.id.removeprefix(f"{name}-") for item in found]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "0123456789"), (99, "0123456789"), (10, "0123456789"), (4, "0257"), (9, "012345678"), (1, "0")],
)
def test_questions_lie_at_equal_distances(tmp_path, limit, expected):
    write(benchmark("chartqa"), tmp_path, ROWS["chartqa"] * 10)
    assert _ids("chartqa", tmp_path, limit) == list(expected)


def test_questions_are_counted_and_not_the_rows_that_hold_several(tmp_path):
    write(benchmark("countqa"), tmp_path, ROWS["countqa"] * 3)
    assert _ids("countqa", tmp_path, None) == ["0", "0-1", "1", "1-1", "2", "2-1"]
    assert _ids("countqa", tmp_path, 3) == ["0", "1", "2"]
    assert _ids("countqa", tmp_path, 4) == ["0", "0-1", "1-1", "2"]


def test_rows_that_go_to_another_question_come_with_it_wherever_they_stand(tmp_path):
    fact, main, other = ROWS["mmifeval"]
    mains = [{**main, "id": number} for number in range(4)]
    others = [{**other, "id": number} for number in reversed(range(4))]
    write(benchmark("mmifeval"), tmp_path, [*mains, *others, {**fact, "id": 99}])
    # Of the five questions 0 and 2; the answers that they are compared with are rows 7 (of 0) and 5 (of 2).
    assert _ids("mmifeval", tmp_path, 2) == ["0", "2", "5", "7"]


def test_a_row_that_does_not_tell_where_it_belongs_is_a_question_itself(tmp_path):
    fact, _, other = ROWS["mmifeval"]
    lost = {key: value for key, value in other.items() if key != "del_cons"}
    folder = tmp_path / "MMIFEval"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (lost, fact, {**fact, "id": 5})))
    assert _ids("mmifeval", tmp_path, 2) == ["0", "1"]
