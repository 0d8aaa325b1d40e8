"""Data that is meant to break an evaluation: each row is asked, or counted by reason, or the benchmark is not run."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.evaluation.data_sets import ROWS, picture, right_answer, stored, write
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.loaders import Broken, Question, questions
from vero_jax.evaluation.registry import all_benchmarks, benchmark
from vero_jax.evaluation.results import result, score_answers, table
from vero_jax.evaluation.rows import MissingData
from vero_jax.evaluation.variants import VARIANTS

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF")
PATHS = {
    "chartqa": "image",  # {"bytes", "path"}
    "chartqa_pro": "image",  # bytes
    "erqa": "images",  # a list
    "mmvetv2": "image_0",  # several, made into one
    "countqa": "image",  # a row with several questions
    "mm_mt_bench": "image",  # likewise, conversations
    "blink": "image_1",  # several configs
    "mathvista_testmini": "decoded_image",
    "mme_realworld_lite": "bytes",  # base64 text
    "mmifeval": "image",  # likewise, rows that belong to others
    "aerialvg_bbox": "image",
}
"""A benchmark for every way in which pictures are stored in Parquet files, and the column of its (first) picture."""
WRONG: list[Any] = [
    None, 0, -1, 2**62, 1.5, float("nan"), float("inf"), True, "", "x", "\x00", "[" * 3_000, "a" * 5_000, "../../etc",
    b"", b"x", [], [None], [[]], ["x"] * 40, {"bytes": None, "path": None}, {"bytes": b"", "path": "a"},
    {"a": {"b": 1}},
]  # fmt: skip


def outcome(task: Benchmark, root: Path, count: int | None = None) -> Counter[str]:
    """Reads, answers, scores and sums up whatever lies there; "asked", "not run" and reasons with their numbers."""
    try:
        found = list(questions(task, root, VARIANTS["reasoning"]))
    except MissingData as error:
        assert "\n" not in str(error)
        return Counter(["not run"])
    asked = [item for item in found if isinstance(item, Question)]
    broken = Counter(item.reason for item in found if isinstance(item, Broken))
    assert len(asked) + broken.total() == len(found)
    assert len({item.id for item in found}) == len(found), "every question has a name of its own"
    assert count is None or len(found) == count
    for question in asked:
        parts = [part["type"] for turn in question.messages for part in turn["content"]]
        assert parts.count("image") <= len(question.images) or task.name == "mm_mt_bench"
        assert all(min(Image.open(io.BytesIO(data)).size) >= 28 for data in question.images)
    scores = score_answers(task, [item.row for item in asked], [right_answer(task)] * len(asked), VARIANTS["reasoning"])
    figures = result(task, scores, broken)
    assert sum(figures.left_out.values()) >= broken.total()
    table([figures]).summary()
    return broken + Counter({"asked": len(asked)})


def written(task: Benchmark, root: Path, value: Any, column: str | None = None) -> None:
    """The task's rows with another value in a column, by default in the picture's."""
    column = column or PATHS[task.name]
    rows = [{**row, column: value} for row in ROWS[task.name]]
    write(task, root, rows)


def encoded(task: Benchmark, data: bytes) -> Any:
    """A picture as the task's rows hold it."""
    if task.source.base64:
        return base64.b64encode(data).decode()
    return data if task.name == "chartqa_pro" else [stored(data)] if task.name == "erqa" else stored(data)


def noise(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture that does not compress to nothing."""
    image = Image.effect_noise(size, 80).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header claims a size, with chunks behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


BOMBS = {
    "a header of 10 gigapixels": png(100_000, 100_000, chunk(b"IDAT", zlib.compress(bytes(1_000)))),
    "text that unpacks to 300 MB": png(
        40, 40, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000), 9)), chunk(b"IDAT", zlib.compress(b""))
    ),
    "a profile that unpacks to 300 MB": png(
        40, 40, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000), 9)), chunk(b"IDAT", zlib.compress(b""))
    ),
    "a GIF of 4 gigapixels": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
    "a BMP of 10 gigapixels": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 100_000, 100_000, 1, 24, *[0] * 6),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", FORMATS)
def test_corrupt_pictures_are_counted(name: str, kind: str, tmp_path: Path) -> None:
    task, whole = benchmark(name), noise(kind)
    configs = max(len(task.source.configs), 1)
    for number, data in enumerate((whole[: len(whole) // 2], whole[:20], whole[:8] + b"\xff" * 200, b"", b"\0" * 300)):
        root = tmp_path / str(number)
        written(task, root, encoded(task, data))
        found = outcome(task, root)
        assert set(found) <= {"image not readable", "image missing"}, (kind, number, found)
        assert found.total() >= configs * len(ROWS[name])
    written(task, tmp_path / "whole", encoded(task, whole))
    assert set(outcome(task, tmp_path / "whole")) == {"asked"}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_pictures_that_would_fill_the_memory_are_counted(name: str, bomb: str, tmp_path: Path) -> None:
    task = benchmark(name)
    written(task, tmp_path, encoded(task, BOMBS[bomb]))
    assert set(outcome(task, tmp_path)) <= {"image too large", "image not readable"}


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"mmvetv2"}))
def test_pictures_of_extreme_shapes_are_asked_enlarged_or_counted(name: str, tmp_path: Path) -> None:
    task = benchmark(name)
    written(task, tmp_path / "dot", encoded(task, picture((1, 1))))
    assert set(outcome(task, tmp_path / "dot")) == {"asked"}
    for size in ((30_000, 1), (1, 30_000)):
        written(task, tmp_path / str(size), encoded(task, picture(size)))
        assert set(outcome(task, tmp_path / str(size))) == {"image shape not usable"}


def test_a_sheet_of_extreme_shapes_is_asked_or_counted(tmp_path: Path) -> None:
    task = benchmark("mmvetv2")
    for size in ((1, 1), (30_000, 1), (1, 30_000)):
        written(task, tmp_path / str(size), stored(picture(size)))
        assert set(outcome(task, tmp_path / str(size))) <= {"asked", "image shape not usable"}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_values_of_wrong_types_in_any_column_cost_their_own_rows(name: str, tmp_path: Path) -> None:
    task = benchmark(name)
    rows = ROWS[name]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for number, (column, value) in enumerate([(column, value) for column in columns for value in WRONG]):
        root = tmp_path / str(number)
        try:
            write(task, root, [{**row, column: value} for row in rows])
        except (pa.ArrowException, TypeError, OverflowError):  # nothing that a file can hold (bytes in JSON)
            continue
        outcome(task, root)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_rows_of_nothing_and_rows_without_a_column_are_asked_or_counted(name: str, tmp_path: Path) -> None:
    task, rows = benchmark(name), ROWS[name]
    configs = max(len(task.source.configs), 1)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write(task, tmp_path / "none", [dict.fromkeys(columns) for _ in range(3)])
    found = outcome(task, tmp_path / "none", 3 * configs)
    assert "asked" not in found or found["asked"] == 0
    for column in columns:
        rest = [{key: value for key, value in row.items() if key != column} for row in rows]
        write(task, tmp_path / column, rest)
        assert outcome(task, tmp_path / column).total() >= len(rows)


def test_a_row_without_any_question_is_counted(tmp_path: Path) -> None:
    for name, column, value in (("countqa", "questions", []), ("mm_mt_bench", "conversation", "[]")):
        row = {**ROWS[name][0], column: value}
        if name == "countqa":
            row["answers"] = []
        write(benchmark(name), tmp_path, [row, ROWS[name][0]])
        found = outcome(benchmark(name), tmp_path)
        assert found == {"row not usable": 1, "asked": 2}


def test_rows_of_which_only_the_pictures_are_there_are_counted(tmp_path: Path) -> None:
    write(benchmark("countqa"), tmp_path, [{"image": stored()} for _ in range(5)])
    assert outcome(benchmark("countqa"), tmp_path) == {"row not usable": 5}


@pytest.mark.parametrize("name", PATHS)
def test_a_parquet_file_that_is_cut_off_is_not_run(name: str, tmp_path: Path) -> None:
    task = benchmark(name)
    file = next(write(task, tmp_path).rglob("*.parquet"))
    whole = file.read_bytes()
    for end in (0, 1, 4, 7, 12, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert outcome(task, tmp_path) == {"not run": 1}


@pytest.mark.parametrize("name", ["chartqa", "countqa"])
@pytest.mark.parametrize("step", [7, 11])
def test_a_parquet_file_with_changed_bytes_never_stops_the_run(name: str, step: int, tmp_path: Path) -> None:
    task = benchmark(name)
    file = next(write(task, tmp_path).rglob("*.parquet"))
    whole = file.read_bytes()
    for place in range(4, len(whole), len(whole) // (10 * step)):
        data = bytearray(whole)
        data[place] ^= 0xFF
        file.write_bytes(data)
        outcome(task, tmp_path)


def test_duplicate_ids_of_rows_are_questions_of_their_own(tmp_path: Path) -> None:
    rows = [{**ROWS["chartqa"][0], "id": "same"} for _ in range(4)]
    write(benchmark("chartqa"), tmp_path, rows)
    assert outcome(benchmark("chartqa"), tmp_path, 4) == {"asked": 4}
    aux = [row | {"id": 1, "del_cons": "style"} for row in ROWS["mmifeval"] * 2]
    write(benchmark("mmifeval"), tmp_path, aux)
    assert outcome(benchmark("mmifeval"), tmp_path, 6) == {"asked": 6}


JUNK = ["", "{", "[]", "7", "null", '"text"', "{}", '{"image": "a.png"}', "\x00", '{"a": ' * 3_000, "nan", "{'a': 1}"]


@pytest.mark.parametrize("junk", JUNK)
def test_broken_lines_of_jsonl_cost_themselves_only(junk: str, tmp_path: Path) -> None:
    (tmp_path / "ChartQA" / "images").mkdir(parents=True)
    (tmp_path / "ChartQA" / "images" / "a.png").write_bytes(picture())
    good = json.dumps({"image": "a.png", "question": "How many?", "answer": ["14"]})
    file = tmp_path / "ChartQA" / "test.jsonl"
    file.write_text(f"{good}\n{junk}\n{good}")
    found = outcome(benchmark("chartqa"), tmp_path)
    assert found["asked"] == 2 and found.total() == 2 + bool(junk.strip())
    file.write_bytes(good.encode() + b"\n\xff\xfe\n" + good.encode()[:-3])
    assert outcome(benchmark("chartqa"), tmp_path) == {"asked": 1, "line is not UTF-8": 1, "line is not JSON": 1}


@pytest.mark.parametrize("junk", ["", "[", "{", "[1, null, [], 3", "7", "[" * 100_000, '{"a": 1}', "\xff", "PAR1"])
def test_broken_annotations_are_counted_or_not_run(junk: str, tmp_path: Path) -> None:
    task = benchmark("screenspotpro")
    folder = write(task, tmp_path)
    (folder / "annotations" / "z.json").write_text(junk, "latin-1")
    found = outcome(task, tmp_path)
    assert found == {"not run": 1} or found["asked"] == 1


@pytest.mark.parametrize("name", ["chartqa", "screenspotpro", "blink"])
def test_folders_without_data_are_not_run(name: str, tmp_path: Path) -> None:
    task = benchmark(name)
    folder = tmp_path / task.source.repo
    folder.mkdir(parents=True)
    assert outcome(task, tmp_path) == {"not run": 1}
    for inside in ("data", "annotations", "images", "test-00000-of-00001.parquet"):
        (folder / inside).mkdir()
    (folder / "README.md").write_bytes(b"---\nconfigs: [\xff\n---\n")
    assert outcome(task, tmp_path) == {"not run": 1}
    folder.joinpath("data", f"{task.source.split}.parquet").symlink_to(tmp_path / "nowhere")
    assert outcome(task, tmp_path) == {"not run": 1}


def test_a_file_of_no_rows_is_run_and_has_no_figure(tmp_path: Path) -> None:
    task = benchmark("chartqa")
    file = next(write(task, tmp_path).rglob("*.parquet"))
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert outcome(task, tmp_path, 0).total() == 0
    assert result(task, []).score is None and result(task, []).reason == "no question could be used"


def test_of_two_layouts_at_once_one_is_read(tmp_path: Path) -> None:
    task = benchmark("chartqa")
    folder = write(task, tmp_path)
    (folder / "test.jsonl").write_text("{broken")
    pq.write_table(pa.table({"question": ["no picture"] * 3}), folder / "test-00000-of-00001.parquet")
    write(task, tmp_path / "other")
    (tmp_path / "other" / task.source.repo).rename(tmp_path / "ChartQA")
    assert outcome(task, tmp_path, 1) == {"asked": 1}
    pq.write_table(pq.read_table(folder / "data" / "test-00000-of-00001.parquet"), folder / "data" / "test-1.parquet")
    assert outcome(task, tmp_path, 2) == {"asked": 2}
    write(task, tmp_path / "more")
    (tmp_path / "more" / task.source.repo / "data" / "test-00000-of-00001.parquet").rename(
        folder / "data" / "test-00000-of-00002.parquet"
    )
    assert outcome(task, tmp_path) == {"not run": 1}, "a mixture of two downloads"


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["a.png", "A", "14"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_row_of_jsonl_is_asked_or_counted(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    task = data.draw(st.sampled_from([task for task in all_benchmarks().values() if not task.source.annotations]))
    row = {name: data.draw(_VALUES) for name in dict.fromkeys(name for row in ROWS[task.name] for name in row)}
    folder = tmp_path_factory.mktemp("rows") / task.source.repo
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(picture())
    (folder / f"{task.source.split}.jsonl").write_text(json.dumps(row))
    assert outcome(task, folder.parents[1]).total() >= 1
