"""Rows in from any source and out as JSONL that training reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.curation.curation_rows import read, row, write
from vero_jax.curation.rows import Rows, RowWriter, check_names, table
from vero_jax.data import readers, schema
from vero_jax.errors import UserError


def test_rows_know_where_they_stand_and_unusable_ones_are_counted(tmp_path: Path) -> None:
    broken = row(1) | {"images": ["pictures/none.png"]}
    file = write(tmp_path, [row(0), row(2)])
    file.write_text(file.read_text() + json.dumps({k: v for k, v in broken.items() if k[0] != "_"}) + "\n")
    rows = Rows(file)
    found = list(rows)
    assert [(item.split, item.index, item.source, item.question) for item in found] == [
        ("train", 0, "pets", "What is it?"),
        ("train", 1, "pets", "What is it?"),
    ]
    assert found[0].files == (tmp_path / "pictures/pets_0.png",)
    assert list(rows.unusable.values()) == [1] and "image file missing" in rows.unusable_lines()[0]
    assert list(rows) == found and list(rows.unusable.values()) == [1]  # again, and not twice as many


def test_only_the_sources_that_are_named_are_given(tmp_path: Path) -> None:
    file = write(tmp_path, [row(0), row(0, source="cars")])
    assert [item.source for item in Rows(file, only=["cars"])] == ["cars"]
    with pytest.raises(UserError, match=r"--sources names 'car', which the data does not have; it has .*cars"):
        list(Rows(file, only=["car"]))


def test_rows_are_written_with_all_they_had_and_train_on_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [row(0, difficulty=0.25, tolerance=0.05), row(1, index="seven")])
    out = tmp_path / "out"
    out.mkdir()
    with RowWriter(out) as writer:
        for item in Rows(source):
            writer.add(item)
    first, second = read(out / "train.jsonl")
    assert list(first) == ["id", "data_source", "prompt", "images", "ability", "reward_model", "extra_info"]
    assert first["extra_info"] == {
        "id": "pets_0", "split": "train", "index": 0, "question": "What is it?", "answer": "cat",
        "reward_type": "string_match", "tolerance": 0.05, "difficulty": 0.25,
    }  # fmt: skip
    assert second["extra_info"]["index"] == 1
    before = [item.example for item in Rows(source)]
    after = [item.example for item in Rows(out / "train.jsonl")]
    assert [item.images for item in before] == [item.images for item in after]
    assert [(i.id, i.messages, i.ground_truth, i.reward_type, i.domain, i.source) for i in before] == [
        (i.id, i.messages, i.ground_truth, i.reward_type, i.domain, i.source) for i in after
    ]


def test_image_files_are_linked_and_where_that_fails_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", [row(0)])
    for name, links in (("linked", True), ("copied", False)):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another disk")))
        out = tmp_path / name
        out.mkdir()
        with RowWriter(out) as writer:
            writer.add(next(iter(Rows(source))))
        image = out / read(out / "train.jsonl")[0]["images"][0]
        original = tmp_path / "in/pictures/pets_0.png"
        assert image.read_bytes() == original.read_bytes() and image.samefile(original) == links


def test_several_images_a_row_are_written_and_read_again(tmp_path: Path) -> None:
    entry = row(0)
    entry["images"] = ["pictures/a.png", "pictures/b.png"]
    entry["prompt"][0]["content"] = "<image><image>\nWhich?"
    source = write(tmp_path / "in", [entry])
    out = tmp_path / "out"
    out.mkdir()
    with RowWriter(out) as writer:
        writer.add(next(iter(Rows(source))))
    assert len(set(read(out / "train.jsonl")[0]["images"])) == 2
    assert len(next(iter(Rows(out / "train.jsonl"))).example.images) == 2


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a:b c/d", "", "..", "é" * 300])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    entry = row(0) | {"id": name}
    source = write(tmp_path / "in", [entry])
    out = tmp_path / "out"
    out.mkdir()
    with RowWriter(out) as writer:
        writer.add(next(iter(Rows(source))))
    image = out / read(out / "train.jsonl")[0]["images"][0]
    assert image.is_file() and out.resolve() in image.resolve().parents


@pytest.mark.real_data
def test_a_snapshot_and_its_export_give_the_same_rows(shared: Path, tmp_path: Path) -> None:
    hub = {item.example.id: item for item in Rows(shared / "data/real_mini/hub")}
    export = list(Rows(shared / "data/real_mini/formatted/vero_600k_train.verl.jsonl"))
    assert len(hub) == len(export) == 228
    assert all(item.example.images == hub[item.example.id].example.images for item in export)
    assert all(item.question == hub[item.example.id].question for item in export)
    with RowWriter(tmp_path) as writer:
        for item in hub.values():
            writer.add(item)
    found = readers.find_row_files(tmp_path / "train.jsonl", ("train", "val"))[0]
    counts = {split: sum(1 for entry in start() if schema.parse_row(entry[1], entry[0], entry[2])) for split, start in
              found.rows.items()}  # fmt: skip
    assert counts == {"train": 183, "val": 45}


def test_names_that_are_not_there_are_refused_with_the_nearest() -> None:
    check_names("--x", ["a"], ["a", "b"])
    with pytest.raises(UserError, match=r"--x names 'chartq', .* it has chartqa"):
        check_names("--x", ["chartq"], ["chartqa", "gqa"])
    with pytest.raises(UserError, match="it has none"):
        check_names("--x", ["chartq"], [])


def test_a_table_stands_in_columns() -> None:
    assert table([("a", "1"), ("bbb", "200")], ("name ", "n")) == ["name     n", "a        1", "bbb    200"]
