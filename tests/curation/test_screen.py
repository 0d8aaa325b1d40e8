"""The heuristic screen: which sources it drops, why, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.curation.curation_rows import read, row, write
from vero_jax.curation.__main__ import main

BIG = {"size": (500, 500)}


def run(tmp_path: Path, rows: list, *options: str) -> tuple[int, dict]:
    source = write(tmp_path / "in", rows)
    status = main(["screen", str(source), "--min-rows", "2", "--json", str(tmp_path / "report.json"), *options])
    found = json.loads((tmp_path / "report.json").read_text())
    return status, {entry["source"]: entry for entry in found["sources"]}


def test_small_sources_small_images_and_binary_questions_are_dropped_with_their_reason(tmp_path: Path) -> None:
    rows = [row(n, source="good", **BIG) for n in range(3)]
    rows += [row(0, source="few", **BIG)]
    rows += [row(n, source="tiny", size=(30, 40)) for n in range(2)]
    rows += [row(n, source="binary", truth="yes", **BIG) for n in range(2)]
    status, found = run(tmp_path, rows)
    assert status == 0
    assert {name: entry["kept"] for name, entry in found.items()} == {
        "good": True, "few": False, "tiny": False, "binary": False,
    }  # fmt: skip
    assert found["few"]["reasons"] == ["1 rows, fewer than 2"]
    assert found["tiny"]["reasons"] == ["mean image area 1,200 pixels, below 200,000"]
    assert found["binary"]["reasons"] == ["100% of the questions are yes/no, more than 90%"]
    assert found["good"]["mean_area"] == 250_000


def test_the_area_is_the_mean_and_not_the_median(tmp_path: Path) -> None:
    rows = [row(0, size=(100, 100)), row(1, size=(100, 100)), row(2, size=(900, 900))]
    _, found = run(tmp_path, rows)
    assert found["pets"]["mean_area"] == pytest.approx((2 * 10_000 + 810_000) / 3, abs=0.1) and found["pets"]["kept"]


def test_exceptions_by_name_are_allowed_and_must_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(n, source="tiny") for n in range(2)]
    assert run(tmp_path, rows, "--allow-small", "tiny")[1]["tiny"]["kept"]
    assert main(["screen", str(tmp_path / "in/train.jsonl"), "--allow-small", "tny"]) == 2
    assert "--allow-small names 'tny', which the data does not have; it has tiny" in capsys.readouterr().err


def test_some_yes_no_questions_are_fine(tmp_path: Path) -> None:
    rows = [row(n, truth="yes" if n else "cat", **BIG) for n in range(4)]
    assert run(tmp_path, rows)[1]["pets"]["binary_share"] == 0.75
    assert run(tmp_path, rows)[1]["pets"]["kept"]
    assert not run(tmp_path, rows, "--max-binary-share", "0.5")[1]["pets"]["kept"]


def test_only_the_headers_of_images_are_read(tmp_path: Path) -> None:
    rows = [row(n, **BIG) for n in range(2)]
    source = write(tmp_path / "in", rows)
    for picture in (tmp_path / "in/pictures").iterdir():
        picture.write_bytes(picture.read_bytes()[:200])  # the pixels are gone
    assert main(["screen", str(source), "--min-rows", "2", "--json", str(tmp_path / "report.json")]) == 0


def test_an_image_without_a_header_is_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [row(n, **BIG) for n in range(2)])
    (tmp_path / "in/pictures/pets_1.png").write_bytes(b"no image")
    main(["screen", str(source), "--min-rows", "2", "--json", str(tmp_path / "report.json")])
    entry = json.loads((tmp_path / "report.json").read_text())["sources"][0]
    assert (entry["images"], entry["unreadable_images"], entry["mean_area"]) == (2, 1, 250_000)


def test_rows_of_kept_sources_are_written_and_the_folder_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(n, source="good", **BIG) for n in range(2)] + [row(0, source="few", **BIG)]
    out = tmp_path / "out"
    run(tmp_path, rows, "--out", str(out))
    assert [entry["data_source"] for entry in read(out / "train.jsonl")] == ["good", "good"]
    assert main(["screen", str(tmp_path / "in/train.jsonl"), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_nothing_left_is_status_1(tmp_path: Path) -> None:
    assert run(tmp_path, [row(0)])[0] == 1


@pytest.mark.parametrize("share", ["1.5", "-1"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", [row(0)])
    assert main(["screen", str(source), f"--max-binary-share={share}"]) == 2
    assert "it is a share and must lie between 0 and 1" in capsys.readouterr().err


@pytest.mark.real_data
def test_a_snapshot_of_real_sources_is_screened(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["screen", str(shared / "data/real_mini/hub"), "--min-rows", "8", "--allow-small", "mmk12"]) == 0
    printed = capsys.readouterr().out
    assert "15 of 19 sources kept" in printed and "mean image area 70,318 pixels" in printed
