"""Training on rows of one's own: the position in the data survives moves, workers and interruptions, not other data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_train import metrics, numbers, train
from vero_jax.data import mini
from vero_jax.data.processor import Processor

SETTINGS = ("model.build.tokenizer=mini", "trainer.val_before=false", "trainer.export=false")


def write_config(folder: Path, source: str, rows) -> None:
    (folder / source).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / source / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:2]), folder / source / "val-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Built-in questions in the layout of a hub snapshot, a folder for each domain."""
    folder = tmp_path_factory.mktemp("hub")
    by_domain: dict[str, list] = {}
    for _, row in mini.generate_rows("train", 120, 5):
        if row["extra_info"]["reward_type"] not in ("llm_judge", "instruction_following_llm_judge"):
            by_domain.setdefault(row["ability"], []).append(row)
    for domain, rows in by_domain.items():
        write_config(folder, f"{domain}-made", rows)
    return folder


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_but_not_on_other_data(hub, tmp_path):
    whole, parts, cache = tmp_path / "whole", tmp_path / "parts", tmp_path / "cache"
    train(whole, cache, *SETTINGS, f"data.source={hub}")
    assert all(line["timing_s/data_wait"] >= 0 and line["data/replaced"] == 0 for line in metrics(whole))
    train(parts, cache, *SETTINGS, f"data.source={hub}", "trainer.steps=2")
    prepared = tmp_path / "prepared"
    done = subprocess.run(
        [sys.executable, "-m", "vero_jax.data.prepare", "--source", str(hub), "--out", str(prepared)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Another place, made by another command, read by worker processes: the same rows, the same numbers.
    train(parts, cache, *SETTINGS, f"data.source={prepared}", "data.workers=2")
    assert numbers(parts) == numbers(whole)

    rows = pq.read_table(hub / "stem-made" / "train-00000-of-00001.parquet").to_pylist()
    rows[0]["reward_model"]["ground_truth"] = "something else"
    write_config(hub, "stem-made", rows)
    output = train(parts, cache, *SETTINGS, f"data.source={hub}", "trainer.steps=4", code=2)
    assert "the data changed since the checkpoint was written, in stem-made" in output


@pytest.mark.slow
def test_a_single_file_of_plain_questions_trains(tmp_path):
    lines = []
    for number, (_, row) in enumerate(mini.generate_rows("train", 36, 5)):
        if row["extra_info"]["reward_type"] == "string_match":
            (tmp_path / f"{number}.png").write_bytes(row["image"]["bytes"])
            question = {"question": row["extra_info"]["question"], "answer": row["reward_model"]["ground_truth"]}
            lines.append(json.dumps({**question, "image": f"{number}.png"}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    run = tmp_path / "run"
    output = train(
        run, tmp_path / "cache", *SETTINGS, f"data.source={tmp_path / 'mine.jsonl'}", "trainer.steps=1",
        "cold_start.steps=0",
    )  # fmt: skip
    assert "the data has no rows of 'val': 2% of the training rows are held out" in output
    assert metrics(run, "validation")[-1]["stage"] == "final"


@pytest.mark.slow
def test_a_policy_keeps_the_system_prompt_it_was_trained_with(hub, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    prompt = "Look at the picture twice."
    train(
        run, cache, f"data.source={hub}", f"data.system_prompt={prompt}", "data.max_prompt_length=96",
        "rollout.prompt_buckets=96", "trainer.steps=1", "cold_start.steps=0", "trainer.val_before=false",
    )  # fmt: skip
    meta = next((run / "checkpoints").rglob("meta/metadata"), None)
    assert meta is not None and json.loads(meta.read_text())["data_position"] == 6  # questions
    convert = [sys.executable, "-m", "vero_jax.convert", str(run), str(tmp_path / "converted")]
    assert subprocess.run(convert, capture_output=True, timeout=300).returncode == 0
    for folder in (run / "hf", tmp_path / "converted"):
        processor = Processor.from_folder(folder)
        text = processor.tokenizer.decode(
            processor.chat([{"role": "user", "content": "How many?"}]).token_ids, skip_special_tokens=False
        )
        assert text.startswith(f"<|im_start|>system\n{prompt}<|im_end|>")
    assert prompt not in (run / "policy" / "chat_template.jinja").read_text()
