"""The export is the official one, byte for byte, and can be repeated after an interruption."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest
from made_rows import hub_row, picture, write_hub

from vero_jax.data import export, origins, prepare
from vero_jax.errors import UserError


def export_of(source: Path, folder: Path, say=lambda line: None) -> dict[Path, int]:
    return export.export_jsonl(origins.local_origins(source, ("train", "val")), folder, ("train", "val"), say=say)


def records(folder: Path, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (folder / export.jsonl_name(split)).read_text(encoding="utf-8").splitlines()]


@pytest.mark.real_data
def test_every_byte_is_that_of_the_official_export(tmp_path, shared):
    official = shared / "data" / "real_mini" / "formatted"
    assert prepare.main(["--source", str(shared / "data/real_mini/hub"), "--jsonl", str(tmp_path)]) == 0
    wanted = sorted(path.relative_to(official) for path in official.rglob("*") if path.is_file())
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()) == wanted
    assert len(wanted) == 230
    different = filecmp.cmpfiles(official, tmp_path, map(str, wanted), shallow=False)[1:]
    assert different == ([], [])


@pytest.mark.real_data
def test_an_export_of_the_export_has_the_same_rows(tmp_path, shared):
    official = shared / "data" / "real_mini" / "formatted"
    counts = export_of(official / "vero_600k_train.verl.jsonl", tmp_path)
    assert list(counts.values()) == [183, 45]
    for again, first in zip(records(tmp_path), records(official), strict=True):
        assert (tmp_path / again["images"][0]).read_bytes() == (official / first["images"][0]).read_bytes()
        assert {**again, "images": 0} == {**first, "images": 0}


def test_rows_that_training_leaves_out_are_exported_with_the_official_defaults(tmp_path):
    extra = {"question": "Why?", "answer": None, "reward_type": None, "tolerance": 0.1, "index": None, "id": "own:id"}
    rows = [
        hub_row(0, id=None, extra_info=extra, reward_model={"style": None, "ground_truth": None}, ability=None),
        hub_row(1, id=None, image={"bytes": b"no picture", "path": "sub/Name.JPG"}),
    ]
    export_of(write_hub(tmp_path / "hub", rows), tmp_path / "out")
    first, second = records(tmp_path / "out")
    assert first["images"] == ["images/train/stem-made/00000000_own_id.png"]
    assert (first["id"], first["ability"], first["reward_model"]) == ("own:id", "", {"style": "", "ground_truth": ""})
    assert first["extra_info"] == {
        "id": "own:id", "split": "train", "index": 0, "question": "Why?", "answer": "", "reward_type": "",
        "tolerance": 0.1,
    }  # fmt: skip
    assert list(second) == ["id", "data_source", "prompt", "images", "ability", "reward_model", "extra_info"]
    assert second["id"] == "stem-made_train_1"
    assert second["images"] == ["images/train/stem-made/00000001_stem-made_train_1.jpg"]
    assert (tmp_path / "out" / second["images"][0]).read_bytes() == b"no picture"


def test_image_files_that_are_there_are_kept_and_a_row_without_its_image_is_told(tmp_path):
    folder = write_hub(tmp_path / "hub", [hub_row(0), hub_row(1, image={"bytes": None, "path": "gone.png"})])
    there = tmp_path / "out" / "images" / "train" / "stem-made" / "00000000_row0.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    said: list[str] = []
    assert export_of(folder, tmp_path / "out", said.append)[tmp_path / "out" / export.jsonl_name("train")] == 1
    assert there.read_bytes() == b"mine"
    assert any("row1" in line and "left out" in line for line in said)


def test_no_jsonl_appears_before_all_rows_are_written(tmp_path):
    folder = write_hub(tmp_path / "hub", [hub_row(0)])
    (folder / "z-broken").mkdir()
    (folder / "z-broken" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match="z-broken"):
        export_of(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_several_images_of_a_row_get_a_file_each(tmp_path):
    row = hub_row(0, images=[{"bytes": picture(), "path": "a.png"}, {"bytes": picture(8, 8), "path": "b.jpg"}])
    del row["image"]
    row["prompt"] = [{"role": "user", "content": "<image><image>\nWhich?"}]
    export_of(write_hub(tmp_path / "hub", [row]), tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert [Path(name).name for name in record["images"]] == ["00000000_row0_0.png", "00000000_row0_1.jpg"]
    assert all((tmp_path / "out" / name).is_file() for name in record["images"])


def test_prepared_data_is_no_source_of_an_export(tmp_path, capsys):
    source = write_hub(tmp_path / "hub", [hub_row(0)])
    assert prepare.main(["--source", str(source), "--out", str(tmp_path / "out")]) == 0
    assert prepare.main(["--source", str(tmp_path / "out"), "--jsonl", str(tmp_path / "jsonl")]) == 2
    assert "what it was made from" in capsys.readouterr().err
