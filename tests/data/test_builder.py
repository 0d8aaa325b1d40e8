"""Preparing: every usable row comes back unchanged and in order, the others are counted, interruptions do no harm."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_rows import hub_row, picture, write_hub
from PIL import Image

from vero_jax.config import DataConfig, MiniConfig
from vero_jax.data import builder, images, mini, prepare, schema
from vero_jax.errors import UserError

SMALL = MiniConfig(train_size=60, val_size=24, seed=5)


def config(tmp_path: Path, **changes) -> DataConfig:
    return DataConfig(cache_dir=str(tmp_path / "cache"), mini=SMALL, **changes)


def prepared_rows(data: prepare.PreparedData, split: str):
    source = data.examples(split)
    return [source[place] for place in range(len(source))]


def test_mini_comes_back_in_order(tmp_path):
    data = prepare.prepare("vero_mini", config(tmp_path))
    assert (data.count("train"), data.count("val")) == (60, 24)
    wanted = [row for _, row in mini.generate_rows("train", 60, 5)]
    got = prepared_rows(data, "train")
    assert [example.id for example in got] == [row["id"] for row in wanted]
    for example, row in zip(got, wanted, strict=True):
        assert example.images == (row["image"]["bytes"],)
        assert example.messages == tuple(row["prompt"])
        assert example.extra_info == row["extra_info"]
        assert example.solution == row["extra_info"]["solution"]
    index = data.index("val", ["id", "widths"])
    assert index["id"] == [example.id for example in prepared_rows(data, "val")]
    with pytest.raises(IndexError):
        data.examples("val")[24]


def test_prepared_data_is_reused_and_a_change_prepares_anew(tmp_path):
    first = prepare.prepare("vero_mini", config(tmp_path))
    said: list[str] = []
    again = prepare.prepare("vero_mini", config(tmp_path), say=said.append)
    assert not said
    assert again.fingerprint == first.fingerprint
    other = dataclasses.replace(config(tmp_path), mini=dataclasses.replace(SMALL, seed=6))
    assert prepare.prepare("vero_mini", other).fingerprint != first.fingerprint


def test_unusable_rows_are_counted_by_reason(tmp_path):
    jpeg = picture(64, 64, "JPEG")
    rows = [
        hub_row(0),
        hub_row(1, image={"bytes": b"no picture", "path": "a.png"}),
        hub_row(2, image={"bytes": jpeg[: len(jpeg) // 2], "path": "a.jpg"}),
        hub_row(3, image={"bytes": None, "path": "gone.png"}),
        hub_row(4, reward_model={"style": "rule", "ground_truth": ""}),
        hub_row(5, ability="cooking"),
        hub_row(6, extra_info={**hub_row(6)["extra_info"], "reward_type": "magic"}),
        hub_row(7, image={"bytes": jpeg, "path": "named.png"}),
    ]
    data = prepare.prepare(str(write_hub(tmp_path / "hub", rows)), config(tmp_path))
    assert [example.id for example in prepared_rows(data, "train")] == ["row0", "row5", "row6", "row7"]
    assert data.report.by_reason() == {"image not readable": 2, "image file missing": 1, "empty ground truth": 1}
    table = data.table()
    for text in ("image not readable", "row1", "unknown reward type 'magic': 1", "unknown domain 'cooking': 1", "made"):
        assert text in table
    assert data.count("val") == 0


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((700, 500), 50).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


PICTURES = {
    "jpeg": encoded("JPEG"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    "grey jpeg": encoded("JPEG", "L"),
    "jpeg with a large header": encoded("JPEG", icc_profile=bytes(150_000)),
    "jpeg with something after its end": encoded("JPEG") + b"written by a camera",
    "palette png": encoded("PNG", "P"),
    "transparent png": encoded("PNG", "RGBA"),
    "gif": encoded("GIF", "P"),
    "webp": encoded("WEBP"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_whole_images_pass_the_check_and_cut_ones_do_not(kind):
    data = PICTURES[kind]
    assert builder.image_size(data) == (700, 500)
    with pytest.raises(images.ImageError, match="not readable"):
        builder.image_size(data[: len(data) * 3 // 4])


def test_a_jpeg_whose_tables_are_broken_does_not_pass_though_its_end_is_there():
    data = bytearray(PICTURES["jpeg"])
    at = data.index(b"\xff\xc4") + 5  # how many codes of each length
    data[at : at + 16] = b"\xff" * 16
    with pytest.raises(images.ImageError, match="not readable"):
        builder.image_size(bytes(data))


def test_an_image_beside_the_parquet_is_found(tmp_path):
    folder = write_hub(tmp_path / "hub", [hub_row(0, image={"bytes": None, "path": "here.png"})])
    (folder / "stem-made" / "here.png").write_bytes(picture())
    assert prepare.prepare(str(folder), config(tmp_path)).count("train") == 1


@pytest.mark.parametrize("kind", ["missing", "empty", "corrupt", "columns", "no rows", "json"])
def test_a_broken_source_is_one_clear_sentence(tmp_path, kind):
    folder = tmp_path / "hub"
    if kind != "missing":
        folder.mkdir()
    if kind == "corrupt":
        (folder / "stem-made").mkdir()
        (folder / "stem-made" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing more")
    if kind == "columns":
        write_hub(folder, [{"text": "other data"}])
    if kind == "no rows":
        write_hub(folder, [hub_row(0, image={"bytes": b"x", "path": None})])
    if kind == "json":
        folder = folder / "train.jsonl"
        folder.write_text("{not json\n")
    with pytest.raises(UserError) as caught:
        prepare.prepare(str(folder), config(tmp_path))
    assert str(folder) in str(caught.value)
    assert not list((tmp_path / "cache").rglob(".making-*"))


def test_leftovers_of_a_killed_process_are_removed_and_of_a_living_one_kept(tmp_path):
    root = tmp_path / "cache" / "prepared"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = root / f".making-{socket.gethostname()}-{ended.pid}-aa"
    alive = root / f".making-{socket.gethostname()}-{os.getpid()}-bb"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    prepare.prepare("vero_mini", config(tmp_path))
    assert not dead.exists()
    assert alive.exists()


def test_two_processes_at_once_both_get_the_data(tmp_path):
    code = (
        "from vero_jax.config import DataConfig, MiniConfig\n"
        "from vero_jax.data.prepare import prepare\n"
        f"cfg = DataConfig(cache_dir={str(tmp_path)!r}, mini=MiniConfig(60, 24, 5))\n"
        "data = prepare('vero_mini', cfg)\n"
        "print(data.fingerprint, data.examples('train')[59].id)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert answers[0] == answers[1]
    assert "mini_captions" in answers[0] or "mini_rules" in answers[0]


def test_damaged_prepared_data_is_said(tmp_path):
    data = prepare.prepare("vero_mini", config(tmp_path))
    (data.parts[0].folder / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="damaged") as caught:
        data.examples("train")[0]
    assert str(data.parts[0].folder / "dataset_info.json") in str(caught.value)


def test_the_command_prints_the_table_and_names_a_missing_source(tmp_path, capsys):
    folder = write_hub(tmp_path / "hub", [hub_row(0), hub_row(1, ability=None)])
    assert prepare.main(["--source", str(folder), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "train: 1 rows kept, 1 dropped" in out
    assert "no ability" in out
    assert prepare.main(["--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_preparing_loads_neither_tensorflow_nor_jax(tmp_path):
    arguments = ["--source", str(write_hub(tmp_path / "hub", [hub_row(0)])), "--out", str(tmp_path / "out")]
    code = (
        "import sys\n"
        "from vero_jax.data.prepare import main\n"
        f"assert main({arguments!r}) == 0\n"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_real_rows_are_all_prepared_and_come_back_equal(tmp_path, shared):
    hub = shared / "data" / "real_mini" / "hub"
    data = prepare.prepare(str(hub), config(tmp_path))
    assert (data.count("train"), data.count("val")) == (183, 45)
    assert not data.report.dropped
    assert not data.report.notes()
    for split in ("train", "val"):
        examples = prepared_rows(data, split)
        rows = [row for path in sorted(hub.glob(f"*/{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]
        assert [example.id for example in examples] == [row["id"] for row in rows]
        for example, row in zip(examples, rows, strict=True):
            assert example.images == (row["image"]["bytes"],)
            assert [message["content"] for message in example.messages] == row["prompt"]["content"]
            assert example.ground_truth == row["reward_model"]["ground_truth"]
            assert example.extra_info == row["extra_info"]
            assert (example.domain, example.source) == (row["ability"], row["data_source"])


@pytest.mark.real_data
def test_the_official_export_gives_the_same_examples_and_can_be_written(tmp_path, shared):
    folder = shared / "data" / "real_mini"
    hub = prepare.prepare(str(folder / "hub"), config(tmp_path))
    export = prepare.prepare(str(folder / "formatted" / "vero_600k_train.verl.jsonl"), config(tmp_path))
    for split in ("train", "val"):
        assert export.count(split) == hub.count(split)
        lines = (folder / "formatted" / f"vero_600k_{split}.verl.jsonl").read_text(encoding="utf-8").splitlines()
        left, right = prepared_rows(hub, split), prepared_rows(export, split)
        paths = [json.loads(line)["images"] for line in lines]
        for number, (a, b, line) in enumerate(zip(left, right, lines, strict=True)):
            assert (a.id, a.images, a.messages, a.ground_truth, a.domain) == (
                b.id,
                b.images,
                b.messages,
                b.ground_truth,
                b.domain,
            )
            record = schema.export_record(a, paths[number], split, a.extra_info["index"])
            assert json.dumps(record, ensure_ascii=False) == line
