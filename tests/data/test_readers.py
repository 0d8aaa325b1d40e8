"""Rows come out of every kind of file in order, split by split, in bounded memory; broken files say so."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vero_jax.data import readers, schema
from vero_jax.errors import UserError

SPLITS = ("train", "val")


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    return stream.getvalue()


def easy(number: int, **changes):
    picture = {"bytes": png(), "path": None}
    return {"id": str(number), "problem": "<image>What?", "answer": "red", "images": [picture], **changes}


def write(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, splits=SPLITS) -> dict[tuple[str, str], list[str]]:
    """Ids by (name, split)."""
    return {
        (files.name, split): [schema.parse_row(row, fallback, read_file).id for fallback, row, read_file in rows()]
        for files in readers.find_row_files(path, splits)
        for split, rows in files.rows.items()
    }


def text(number: int, **changes):
    return {"id": str(number), "question": "What?", "answer": "red", **changes}


def test_the_hubs_layout_is_one_config_per_folder(tmp_path):
    for name, numbers in (("b", [1, 2]), ("a", [3])):
        write(tmp_path / name / "train-00000-of-00001.parquet", [easy(number) for number in numbers])
    write(tmp_path / "a" / "val-00001-of-00002.parquet", [easy(5)])
    write(tmp_path / "a" / "val-00000-of-00002.parquet", [easy(4)])
    write(tmp_path / "a" / "test-00000-of-00001.parquet", [easy(6)])
    assert read(tmp_path) == {("a", "train"): ["3"], ("a", "val"): ["4", "5"], ("b", "train"): ["1", "2"]}


def test_the_usual_folder_of_a_set_without_configs_takes_the_name_around_it(tmp_path):
    write(tmp_path / "zoo" / "data" / "train-00000-of-00001.parquet", [easy(1)])
    assert read(tmp_path / "zoo") == {("zoo", "train"): ["1"]}
    write(tmp_path / "zoo" / "train.parquet", [easy(2)])
    assert read(tmp_path / "zoo") == {("data", "train"): ["1"], ("zoo", "train"): ["2"]}


def test_a_single_parquet_file_and_its_sibling_of_the_other_split(tmp_path):
    train = write(tmp_path / "my zoo_train.parquet", [easy(1), easy(2)])
    assert read(train) == {("my_zoo_train", "train"): ["1", "2"]}
    write(tmp_path / "my zoo_val.parquet", [easy(3)])
    assert read(train)["my_zoo_train", "val"] == ["3"]
    val = read(tmp_path / "my zoo_val.parquet")
    assert val == {("my_zoo_val", "train"): ["1", "2"], ("my_zoo_val", "val"): ["3"]}


def test_a_folder_of_parquet_files_that_name_no_split_is_the_first_split(tmp_path):
    for number in (2, 1):
        write(tmp_path / "zoo" / f"part-{number}.parquet", [easy(number)])
    write(tmp_path / "zoo" / "test.parquet", [easy(3)])
    assert read(tmp_path / "zoo") == {("zoo", "train"): ["1", "2"]}


def test_files_of_other_splits_only_are_named(tmp_path):
    write(tmp_path / "test.parquet", [easy(1)])
    with pytest.raises(UserError, match=r"named for test: set data\.train_split"):
        read(tmp_path)
    assert read(tmp_path, ("train", "test")) == {(tmp_path.name, "test"): ["1"]}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_files_are_split_by_their_names(tmp_path, suffix):
    train = write(tmp_path / f"zoo_train.x{suffix}", [text(1), text(2, extra_info={"split": "val"})])
    write(tmp_path / f"zoo_val.x{suffix}", [text(3)])
    write(tmp_path / f"zoo_test.x{suffix}", [text(4)])
    assert read(train) == {("jsonl", "train"): ["1", "2"], ("jsonl", "val"): ["3"]}
    assert read(tmp_path) == {("jsonl", "train"): ["1", "2"], ("jsonl", "val"): ["3"]}


def test_a_json_file_that_names_no_split_is_split_by_its_rows(tmp_path):
    rows = [text(1), text(2, extra_info={"split": "val"}), text(3, extra_info='{"split": "test"}')]
    path = write(tmp_path / "evaluation.jsonl", rows)
    assert read(path) == {("jsonl", "train"): ["1", "3"], ("jsonl", "val"): ["2"]}
    assert read(tmp_path) == {("jsonl", "train"): ["1", "3"], ("jsonl", "val"): ["2"]}


def test_rows_without_ids_are_numbered_through_all_files_of_a_split(tmp_path):
    for shard in range(2):
        rows = [{key: value for key, value in easy(0).items() if key != "id"} for _ in range(2)]
        write(tmp_path / "zoo" / f"train-{shard}.parquet", rows)
    assert read(tmp_path) == {("zoo", "train"): [f"zoo_train_{number}" for number in range(4)]}


def test_rows_know_their_places(tmp_path):
    path = tmp_path / "zoo.jsonl"
    path.write_text("\n" + json.dumps(text(1)) + "\n\n{\n" + json.dumps(text(2)) + "\n")
    (files,) = readers.find_row_files(path, ("train",))
    assert [place for place, _ in files.places["train"]()] == [(path, 2), (path, 4), (path, 5)]
    write(tmp_path / "a.parquet", [easy(1), easy(2)])
    (files,) = readers.find_row_files(tmp_path / "a.parquet", ("train",))
    assert [place[1] for place, _ in files.places["train"]()] == [1, 2]


def test_pictures_are_named_where_rows_name_files(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("images/a.png", "images/b.JPG", "images/notes.txt"):
        (tmp_path / name).write_bytes(png())
    row, other = easy(1, images=["images/a.png"]), easy(1, images=[{"path": "images/a.png"}])
    for path, stored in ((tmp_path / "a.jsonl", row), (tmp_path / "a.parquet", row), (tmp_path / "c.parquet", other)):
        (files,) = readers.find_row_files(write(path, [stored]), SPLITS)
        assert [picture.name for picture in files.pictures] == ["a.png", "b.JPG"]
        assert read(path)
    assert not readers.find_row_files(write(tmp_path / "b.parquet", [easy(1)]), SPLITS)[0].pictures


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "x"}], "no known row format ('text')"),
        ([{"problem": "x", "images": ["a"]}], "none of ground_truth, answer, solution"),
        ([{"prompt": 5, "answer": "x"}], "numbers (int64) in its column 'prompt'"),
        ([easy(1) | {"images": 5}], "numbers (int64) in its column 'images'"),
        ([{"prompt": "x", "reward_model": 0.5}], "numbers (double) in its column 'reward_model'"),
        ([{"prompt": "<image>x", "reward_model": {"ground_truth": "a"}}], "no column 'image'"),
    ],
)
def test_parquet_of_which_no_row_could_be_used_is_a_sentence(tmp_path, rows, says):
    path = write(tmp_path / "train.parquet", rows)
    with pytest.raises(UserError) as caught:
        read(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.99])
def test_truncated_parquet_is_a_sentence(tmp_path, kept):
    path = write(tmp_path / "train.parquet", [easy(number) for number in range(20)])
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(UserError, match="not readable as Parquet") as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_parquet_with_a_damaged_page_is_a_sentence(tmp_path):
    path = write(tmp_path / "train.parquet", [easy(number) for number in range(20)])
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(UserError, match="not readable as Parquet"):
        read(path)


def test_text_that_is_not_utf8_is_one_broken_row(tmp_path):
    table = pa.table(
        {
            "question": pa.array([b"fine", b"\xff\xfe", b"fine too"]).view(pa.utf8()),
            "answer": ["a", "b", "c"],
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    (files,) = readers.find_row_files(tmp_path / "train.parquet", SPLITS)
    rows = [row for _, row, _ in files.rows["train"]()]
    assert [row.get("prompt") for row in rows] == ["fine", None, "fine too"]
    with pytest.raises(schema.RowError, match="not UTF-8"):
        schema.parse_row(rows[1], "x", schema.read_beside(tmp_path))


def test_what_is_no_data_is_a_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "gone")
    with pytest.raises(UserError, match="neither a folder"):
        read(tmp_path / "a.txt")
    with pytest.raises(UserError, match="has no data"):
        read(tmp_path)


@pytest.mark.parametrize("closed", ["a", "a/train.parquet", "b.jsonl"])
def test_what_may_not_be_read_is_a_sentence(closed):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write(root / "a" / "train.parquet", [easy(1)])
        write(root / "b.jsonl", [text(1)])
        (root / closed).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
                read(root / "b.jsonl" if closed == "b.jsonl" else root)
            with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
                read(root / closed / "inside" if closed == "a" else root / closed)
        finally:
            os.seteuid(user)
            (root / closed).chmod(0o755)


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    """pyarrow holds a whole row group where its columns are read without a buffer: here 240 MB and a copy."""
    block = os.urandom(1 << 20)
    rows = [{"question": "q", "answer": "a", "image": {"bytes": block[place:], "path": None}} for place in range(8)]
    pages = pa.concat_tables([pa.Table.from_pylist(rows)] * 30)  # pages end where chunks do
    pq.write_table(pages, tmp_path / "train.parquet", row_group_size=len(pages), use_dictionary=False)
    assert pq.ParquetFile(tmp_path / "train.parquet").metadata.num_row_groups == 1
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vero_jax.data import readers\n"
        "(files,) = readers.find_row_files(Path(sys.argv[1]), ('train',))\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "peak = lambda: int(status().partition('VmHWM:')[2].split()[0]) // 1024\n"
        "before = peak()\n"
        "print(sum(1 for _ in files.rows['train']()), peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "train.parquet")], check=True, capture_output=True, text=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 240
    assert grown < 150, "MiB"


@pytest.mark.real_data
def test_the_hubs_files_and_the_official_export_give_the_same_examples(shared):
    folder = shared / "data" / "real_mini"

    def examples(path: Path, split: str):
        found = {}
        for files in readers.find_row_files(path, SPLITS):
            for fallback, row, read_file in files.rows[split]():
                example = schema.parse_row(row, fallback, read_file)
                found[example.id] = example
        return found

    for split, count in (("train", 183), ("val", 45)):
        hub, export = examples(folder / "hub", split), examples(folder / "formatted", split)
        assert len(hub) == count
        assert list(hub) == list(export)
        for example in hub.values():
            other = export[example.id]
            shown = [item.__dict__ | {"extra_info": None} for item in (example, other)]
            assert shown[0] == shown[1]
            assert not {schema.GUESSED_KEY, schema.DOUBT_KEY} & set(example.extra_info)
            assert other.extra_info == {**example.extra_info, "question": other.extra_info["question"]}
