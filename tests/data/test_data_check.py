"""The check command names every mistake by file, row and id, says what to do, and ends with the right status."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vero_jax.config import DataConfig
from vero_jax.data import check, prepare, row_checks, schema
from vero_jax.errors import UserError


def picture(width: int = 64, height: int = 48, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(stream, kind)
    return stream.getvalue()


BOX = {"bbox_2d": [10, 10, 20, 20], "label": "x"}
GOOD = {"problem": "<image>\nWhat is it?", "answer": "a cat", "images": ["good.png"], "ability": "stem"}
GROUNDING = {"reward_type": "grounding"}

PROBLEMS = {
    "columns of no known format": {"text": "x"},
    "row is no object": [1],
    "no image": {**GOOD, "images": None},
    "image of a wrong type": {**GOOD, "images": 5},
    "image is a web address": {**GOOD, "images": ["https://example.org/a.png"]},
    "image file missing": {**GOOD, "images": ["gone.png"]},
    "image not readable": {**GOOD, "images": ["broken.png"]},
    "image too large": {**GOOD, "images": ["huge.ppm"]},
    "image shape not usable": {**GOOD, "images": ["flat.png"]},
    "no question": {**GOOD, "problem": None},
    "image markers do not match the images": {**GOOD, "problem": "<image><image>?"},
    "no ability": {**GOOD, "ability": None},
    "videos are not read": {**GOOD, "videos": ["a.mp4"]},
    "empty ground truth": {**GOOD, "answer": ""},
    "ground truth without boxes": {**GOOD, **GROUNDING},
    "ground truth without instructions": {**GOOD, "reward_type": "instruction_following"},
    "ground truth is no action": {**GOOD, "reward_type": "web_action"},
    "ground truth is no number": {**GOOD, "reward_type": "numeric"},
    "ground truth without numbers": {**GOOD, "reward_type": "number_list"},
    "ground truth is an empty list": {**GOOD, "answer": "[]", "reward_type": "list_string_match"},
    "reward_model is no object": {"prompt": "<image>?", "images": ["good.png"], "reward_model": "x"},
    "extra_info is no object": {"prompt": "<image>?", "images": ["good.png"], "reward_model": {}, "extra_info": 3},
}
WARNINGS = {
    "letter is not among the options": {
        "problem": "Which?\nA. x\nB. y",
        "answer": "D",
        "reward_type": "multiple_choice",
    },
    "multiple choice without a letter": {"reward_type": "multiple_choice"},
    "number with more than a number": {"answer": "12 cm", "reward_type": "numeric"},
    "number list with a repeated number": {"answer": "1, 1", "reward_type": "number_list"},
    "one text instead of a list": {"reward_type": "list_string_match"},
    "count without a number": {"answer": "several", "reward_type": "counting"},
    "action without ACTION": {"answer": '{"MARK": 3}', "reward_type": "web_action"},
    "no instructions, only a reference": {"reward_type": "instruction_following_llm_judge"},
    "box outside of the image": {"answer": [BOX, {"bbox_2d": [10, 10, 800, 900]}], **GROUNDING},
    "box without an area": {"answer": [{"bbox_2d": [30, 10, 20, 20]}], **GROUNDING},
    "tolerance is no number": {"tolerance": "5%"},
    "wrong suffix": {"images": ["named.png"]},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "good.png").write_bytes(picture())
    (tmp_path / "named.png").write_bytes(picture(kind="JPEG"))
    (tmp_path / "flat.png").write_bytes(picture(402, 2))
    (tmp_path / "broken.png").write_bytes(picture()[:300])
    (tmp_path / "huge.ppm").write_bytes(b"P6 30000 30000 255\n")
    return tmp_path


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mistakes(folder: Path) -> Path:
    """One row for every mistake, after two rows that share an id."""
    rows = [{**GOOD, "id": "same"}, {**GOOD, "id": "same"}]
    rows += [{"id": reason, **row} if isinstance(row, dict) else row for reason, row in PROBLEMS.items()]
    rows += [{**GOOD, "id": reason, **changes} for reason, changes in WARNINGS.items()]
    path = write(folder / "mistakes.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"problem": "\xff"}\n{"problem": "cut')
    return path


def test_every_mistake_is_found_where_it_is_with_advice(folder):
    summary = check.check(mistakes(folder))
    assert summary.status == 1
    found = {(item.problem, item.reason): item for items in summary.findings.values() for item in items}
    broken = ["line is not UTF-8", "line is not JSON"]
    assert {reason for problem, reason in found if problem} == {*PROBLEMS, *broken}
    assert {reason for problem, reason in found if not problem} == {*WARNINGS, "duplicate id"}
    lines = {reason: number for number, reason in enumerate([*PROBLEMS, *WARNINGS, *broken], 3)}
    for (_, reason), item in found.items():
        assert item.number == lines.get(reason, 2), reason
        assert item.advice, reason
        assert item.row_id == reason or reason in ("duplicate id", "row is no object", *broken)
    assert summary.problems.total() == len(PROBLEMS) + 2
    assert summary.rows["train"] == 2 + len(PROBLEMS) + len(WARNINGS) + 2


def test_reading_leaves_out_the_rows_that_preparing_leaves_out(folder):
    path = mistakes(folder)
    summary = check.check(path)
    prepared = prepare.prepare(str(path), DataConfig(cache_dir=str(folder / "cache")))
    # Only the model's own rule for shapes is applied later, when rows are selected for a run.
    assert prepared.count("train") == sum(summary.kept.values()) + summary.problems["image shape not usable"]


def test_every_advice_is_for_a_reason_that_exists(folder):
    known = {*PROBLEMS, *WARNINGS, "line is not UTF-8", "line is not JSON", "duplicate id"}
    elsewhere = {"list is not JSON", "text is not UTF-8", "value of a wrong type", "last turn is the assistant's"}
    assert set(row_checks.ADVICE) == known | elsewhere


def test_the_command_prints_places_reasons_advice_and_tables(folder, capsys):
    assert check.main([str(mistakes(folder))]) == 1
    out = capsys.readouterr().out
    assert "EasyR1 (problem, answer, images), 1 file; columns problem, answer, images, ability, id" in out
    assert f"{len(PROBLEMS) + 2} rows would be left out of a run:" in out
    assert "image file missing: 1 row\n    -> paths are relative to the folder of the file" in out
    assert "line 8 (id image file missing): gone.png (No such file or directory)" in out
    assert "line 2 (id same): also line 1" in out
    assert "line 33 (id box outside of the image): [10.0, 10.0, 800.0, 900.0] in 64x48 pixels; are they thousand" in out
    assert "named.png holds a JPEG image" in out
    assert "without a reward_type: it was guessed" in out
    assert out.endswith("\n24 rows of 38 cannot be used\n")


def test_a_clean_file_is_said_to_be_clean(folder, capsys):
    path = write(folder / "clean.jsonl", [{**GOOD, "id": str(number), "reward_type": "search"} for number in range(3)])
    assert check.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "every row can be used" in out
    assert "look" not in out
    assert "stem    search                 3        0" in out


def test_unknown_domains_and_types_are_named_once_with_the_nearest(folder, capsys):
    row = {**GOOD, "ability": "chart-ocr", "reward_type": "numerical", "answer": "5"}
    assert check.main([str(write(folder / "a.jsonl", [row] * 30))]) == 0
    out = capsys.readouterr().out
    assert out.count("domain 'chart-ocr' (30 rows) is none of the recipe's; did you mean 'chart_ocr'?") == 1
    assert out.count("did you mean 'numeric'?") == 1


def test_rows_without_a_domain_are_told_which_weight_to_set(folder, capsys):
    row = {key: value for key, value in GOOD.items() if key != "ability"}
    assert check.main([str(write(folder / "a.jsonl", [row]))]) == 0
    assert "domain 'custom'" not in capsys.readouterr().out  # alone it needs no weight
    assert check.main([str(write(folder / "b.jsonl", [GOOD, {**GOOD, "ability": "mine", "id": "2"}]))]) == 0
    out = capsys.readouterr().out
    assert "domain 'mine' (1 row) has no weight by default" in out
    assert "set data.domain_weights.mine=1" in out
    assert "did you mean" not in out


def test_rows_of_a_reason_are_shown_up_to_a_limit(folder, capsys):
    path = write(folder / "a.jsonl", [{**GOOD, "answer": ""}] * 25)
    assert check.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert "line 20 (" in out
    assert "line 21 (" not in out
    assert "and 5 more (--all shows them)" in out
    assert check.main([str(path), "--all"]) == 1
    assert "line 25 (" in capsys.readouterr().out
    assert check.main([str(path), "--limit", "2"]) == 1
    assert "rows: train 2\n" in capsys.readouterr().out


def test_the_findings_can_be_written_for_a_program(folder, capsys):
    out = folder / "found.json"
    assert check.main([str(mistakes(folder)), "--json", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["status"] == 1
    assert found["problems"] == dict.fromkeys([*PROBLEMS, "line is not UTF-8", "line is not JSON"], 1)
    assert found["rows"] == {"train": 38}
    assert found["domains"] == {"stem": 2 + len(WARNINGS)}
    assert found["guessed"] == {"string_match": 4}
    finding = next(item for item in found["findings"] if item["reason"] == "image file missing")
    assert finding["file"].endswith("mistakes.jsonl")
    assert (finding["number"], finding["problem"]) == (8, True)
    assert check.main([str(folder / "mistakes.jsonl"), "--json", str(folder / "no" / "x.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_broken_file_is_said_and_the_others_are_read(folder, capsys):
    row = {**GOOD, "images": [{"bytes": picture(), "path": None}], "reward_type": "search"}
    for name in ("a", "b", "c"):
        (folder / "hub" / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row] * 2), folder / "hub" / name / "train-0.parquet")
    broken = folder / "hub" / "b" / "train-0.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    assert check.main([str(folder / "hub")]) == 2
    out = capsys.readouterr().out
    assert f"cannot be read: {broken} is not readable as Parquet" in out
    assert "rows: train 4\n" in out


def test_nothing_to_read_is_status_2(folder, capsys):
    for path in (folder / "gone", write(folder / "empty.jsonl", []), folder / "good.png"):
        assert check.main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err
    with pytest.raises(UserError, match="--limit"):
        check.main.__wrapped__([str(folder), "--limit", "0"])


def test_a_split_can_be_named(folder, capsys):
    write(folder / "zoo_test.jsonl", [GOOD])
    write(folder / "zoo_train.jsonl", [GOOD, GOOD])
    assert check.main([str(folder), "--split", "test"]) == 0
    assert "rows: test 1\n" in capsys.readouterr().out


def test_the_last_turn_of_an_assistant_is_a_warning():
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    row = {"prompt": turns, "reward_model": {"ground_truth": "2"}, "extra_info": {"reward_type": "numeric"}}
    checked = row_checks.check_row(("x", row, schema.read_beside(Path())))
    assert [reason for reason, _ in checked.warnings] == ["last turn is the assistant's"]


def test_boxes_in_fractions_are_suspected(folder):
    row = {**GOOD, **GROUNDING, "answer": [{"bbox_2d": [0.1, 0.2, 0.5, 0.9]}]}
    (item,) = check.check(write(folder / "a.jsonl", [row])).findings[False, "box without an area"]
    assert "fractions" in item.detail


def test_the_command_loads_no_jax(folder):
    path = write(folder / "a.jsonl", [GOOD])
    code = (
        "import sys\n"
        "from vero_jax.data.check import main\n"
        f"assert main([{str(path)!r}]) == 0\n"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real_data
def test_real_questions_are_clean(shared, capsys):
    for name in ("hub", "formatted"):
        summary = check.check(shared / "data" / "real_mini" / name)
        assert summary.status == 0
        assert summary.rows == {"train": 183, "val": 45}
        assert summary.warnings == {"wrong suffix": 1}  # put there on purpose
        assert not any(guessed for _, _, guessed in summary.kept)
        assert len({reward_type for _, reward_type, _ in summary.kept}) == 13
