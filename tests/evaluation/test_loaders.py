"""From folders in the hub's layout to questions; what is missing or broken is said and counted."""

from __future__ import annotations

import io
import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.data_sets import ROWS, SIZE, picture, right_answer, stored, write
from vero_jax.evaluation.loaders import Broken, Question, picture_bytes, questions
from vero_jax.evaluation.registry import all_benchmarks, benchmark
from vero_jax.evaluation.results import result, score_answers
from vero_jax.evaluation.rows import MissingData, ParquetRows
from vero_jax.evaluation.variants import VARIANTS

REASONING = VARIANTS["reasoning"]


def _all(name: str, root: Path, variant: str = "reasoning") -> list[Question | Broken]:
    return list(questions(benchmark(name), root, VARIANTS[variant]))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_benchmark_is_read_from_its_parquet_files_and_scored(name: str, tmp_path: Path) -> None:
    task = benchmark(name)
    write(task, tmp_path)
    found = _all(name, tmp_path)
    usable = [question for question in found if isinstance(question, Question)]
    assert len(usable) == len(found) > 0
    for question in usable:
        parts = [part["type"] for turn in question.messages for part in turn["content"]]
        assert parts.count("image") == len(question.images) > 0
        assert not any(isinstance(value, bytes) for value in question.row.values())
    scores = score_answers(task, [q.row for q in usable], [right_answer(task)] * len(usable), REASONING)
    if task.judge is None:
        assert [score.value for score in scores] == [score.strict for score in scores] == [1.0] * len(scores)
    else:
        assert [score.missing for score in scores] == ["unjudged"] * len(scores)
        assert result(task, scores).score is None


def test_there_are_rows_here_for_all_tasks() -> None:
    assert set(ROWS) == set(all_benchmarks())


def test_a_row_with_several_questions_becomes_all_of_them(tmp_path: Path) -> None:
    write(benchmark("countqa"), tmp_path)
    write(benchmark("mm_mt_bench"), tmp_path)
    assert [q.row["question"] for q in _all("countqa", tmp_path)] == ["How many?", "How few?"]
    turns = _all("mm_mt_bench", tmp_path)
    assert [len(q.messages) for q in turns] == [1, 3]
    assert turns[1].messages[1]["content"] == [{"type": "text", "text": "A cat."}], (
        "history holds the reference's answer"
    )


def test_sub_tasks_are_read_together_and_their_names_are_unique(tmp_path: Path) -> None:
    write(benchmark("blink"), tmp_path)
    found = _all("blink", tmp_path)
    assert len(found) == 14 and len({q.id for q in found}) == 14
    assert all(len(q.images) == 2 for q in found)


@pytest.mark.parametrize("place", ["owner/name", "name", "cache"])
def test_a_data_set_may_lie_in_any_of_the_usual_places(place: str, tmp_path: Path) -> None:
    task = benchmark("chartqa")
    written = write(task, tmp_path / "written")
    target = {
        "owner/name": tmp_path / "root" / "lmms-lab" / "ChartQA",
        "name": tmp_path / "root" / "ChartQA",
        "cache": tmp_path / "root" / "datasets--lmms-lab--ChartQA" / "snapshots" / "0123abcd",
    }[place]
    target.parent.mkdir(parents=True)
    written.rename(target)
    assert len(_all("chartqa", tmp_path / "root")) == 1


def test_rows_of_jsonl_name_pictures_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "ChartQA"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(picture())
    row = {"question": "How many?", "answer": ["14"], "type": "human_test"}
    images = ["images/a.png", "a.png", "../secret.png", "/etc/hostname", "none.png", 7, None]
    lines = [json.dumps({**row, "image": image}) for image in images] + ["{broken"]
    (folder / "test.jsonl").write_text("\n".join(lines))
    (tmp_path / "secret.png").write_bytes(picture())
    found = _all("chartqa", tmp_path)
    assert [isinstance(q, Question) for q in found] == [True, True] + [False] * 6
    assert Counter(q.reason for q in found if isinstance(q, Broken)) == {"image missing": 5, "line is not JSON": 1}


def test_missing_data_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no folder lmms-lab/ChartQA or ChartQA"):
        _all("chartqa", tmp_path)
    folder = write(benchmark("mmmu_pro_vision"), tmp_path)
    with pytest.raises(MissingData, match=r"standard \(10 options\)"):
        _all("mmmu_pro_standard", tmp_path)
    file = next(folder.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(MissingData, match="not readable as Parquet"):
        _all("mmmu_pro_vision", tmp_path)
    write(benchmark("chartqa"), tmp_path).joinpath("data", "test-00000-of-00001.parquet").unlink()
    with pytest.raises(MissingData, match=r"no test-\*.parquet"):
        _all("chartqa", tmp_path)


def test_corrupt_pictures_and_rows_are_counted_and_the_others_stay(tmp_path: Path) -> None:
    whole = picture()
    good = {"image": stored(), "question": "How many?", "answer": ["14"], "type": "human_test"}
    rows: list[dict[str, Any]] = [
        good,
        {**good, "image": stored(whole[: len(whole) // 2])},
        {**good, "image": stored(b"no picture")},
        {**good, "image": {"bytes": None, "path": None}},
        {**good, "question": None, "answer": None},
        good,
    ]
    task = benchmark("chartqa")
    write(task, tmp_path, rows)
    found = _all("chartqa", tmp_path)
    broken = Counter(q.reason for q in found if isinstance(q, Broken))
    assert broken == {"image not readable": 2, "image missing": 1}
    usable = [q for q in found if isinstance(q, Question)]
    scores = score_answers(task, [q.row for q in usable], [right_answer(task)] * len(usable), REASONING)
    counted = result(task, scores, broken)
    assert counted.left_out == broken
    assert counted.answers == 3 and counted.score == pytest.approx(100 * 2 / 3)


def test_a_corrupt_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    task = benchmark("countbenchqa")
    rows = [{"image": stored(), "question": f"How many {n}?", "number": 14} for n in range(6)]
    file = write(task, tmp_path, rows) / "data" / "test-00000-of-00001.parquet"
    data = bytearray(file.read_bytes())
    import pyarrow.parquet as pq

    column = pq.read_metadata(file).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    file.write_bytes(data)
    found = _all("countbenchqa", tmp_path)
    assert [isinstance(q, Question) for q in found] == [True, True, False, False, True, True]
    assert {q.reason for q in found if isinstance(q, Broken)} == {"row not readable"}


def test_rows_can_be_read_in_any_order_and_in_several_processes(tmp_path: Path) -> None:
    task = benchmark("countbenchqa")
    rows = [{"image": stored(), "question": str(n), "number": n} for n in range(9)]
    file = write(task, tmp_path, rows) / "data" / "test-00000-of-00001.parquet"
    source = ParquetRows(file.parent, [file])
    copy = deepcopy(source)  # through the same methods as Grain's way to its workers
    for number in (8, 0, 5, 4, 5, 7, 1):
        assert source[number]["number"] == copy[number]["number"] == number
    assert len(source) == 9


def test_small_pictures_are_enlarged_for_qwen_and_the_row_keeps_the_stored_size(tmp_path: Path) -> None:
    task = benchmark("screenspot")
    row = {**ROWS["screenspot"][0], "image": stored(picture((40, 10)))}
    write(task, tmp_path, [row])
    (question,) = _all("screenspot", tmp_path)
    assert Image.open(io.BytesIO(question.images[0])).size == (112, 28)
    assert (question.row["width"], question.row["height"]) == (40, 10)
    (question,) = _all("screenspot", tmp_path, "mimo_zs")
    assert Image.open(io.BytesIO(question.images[0])).size == (40, 10)


def test_other_pictures_are_passed_on_byte_for_byte(tmp_path: Path) -> None:
    write(benchmark("chartqa"), tmp_path)
    (question,) = _all("chartqa", tmp_path)
    assert question.images == (picture(),) and (question.row["width"], question.row["height"]) == SIZE


def test_mm_vet_s_pictures_become_one_numbered_sheet(tmp_path: Path) -> None:
    write(benchmark("mmvetv2"), tmp_path)
    (question,) = _all("mmvetv2", tmp_path)
    sheet = Image.open(io.BytesIO(question.images[0]))
    assert len(question.images) == 1 and sheet.size == (1008, 2 * 756)
    assert sheet.getpixel((2, 2)) == (255, 255, 255) and sheet.getpixel((900, 300)) == (200, 30, 30)


def test_base64_with_an_address_in_front_is_read(tmp_path: Path) -> None:
    import base64

    encoded = base64.b64encode(picture()).decode()
    for value in (encoded, f"data:image/png;base64,{encoded}"):
        assert picture_bytes(value, tmp_path, base64_text=True) == picture()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("chartqa", "chartqa"),
        ("game_qa_lite", "game_qa_examples"),
        ("mathvision_test", "mathvision"),
        ("screenspot", "screenspot"),
    ],
)
def test_real_samples_are_read_and_their_own_answers_are_right(
    name: str, folder: str, shared: Path, tmp_path: Path
) -> None:
    samples, task = shared / "data" / "veroeval_samples" / folder, benchmark(name)
    place = tmp_path / task.source.repo
    place.mkdir(parents=True)
    rows = [json.loads(line) for line in (samples / "samples.jsonl").read_text("utf-8").splitlines()]
    # The samples name the picture of every set alike.
    lines = [json.dumps({**row, "decoded_image": row["image"]}) for row in rows]
    (place / f"{task.source.split}.jsonl").write_text("\n".join(lines))
    (place / "images").symlink_to(samples / "images")
    found = _all(name, tmp_path)
    assert len(found) == len(rows) and all(isinstance(question, Question) for question in found)
    for question in found:
        assert isinstance(question, Question)
        if name == "screenspot":
            (left, top, right, bottom), width, height = (question.row[key] for key in ("bbox", "width", "height"))
            answer = json.dumps([{"point_2d": [(left + right) / 2 * width, (top + bottom) / 2 * height]}])
        else:
            truth = question.row["answer"]
            answer = f"\\boxed{{{truth[0] if isinstance(truth, list) else truth}}}"
        (score,) = score_answers(task, [question.row], [f"</think><answer>{answer}</answer>"], REASONING)
        assert (score.value, score.strict) == (1.0, 1.0), (question.id, answer)
