"""The recipe on the other families of models: a recorded checkpoint is trained, exported, and opened again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import golden_dir

from vero_jax.checkpoints.weights import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.golden_model]

SHORT = (
    "cold_start.steps=1", "cold_start.warmup_steps=0", "cold_start.batch_size=4", "cold_start.max_solution_length=256",
    "trainer.steps=1", "trainer.prompts_per_step=6", "trainer.val_every=0", "actor.mini_batch_prompts=6", "rollout.n=2",
    "rollout.concurrent_responses=12", "rollout.max_response_length=16", "reward.overlong_buffer=4", "optim.lr=1e-3",
    "optim.warmup_steps=0", "optim.schedule=constant", "data.mini.train_size=60", "data.mini.val_size=18",
    "data.max_val_examples=6", "data.max_prompt_length=512", "rollout.prompt_buckets=512",
    "rollout.patch_buckets=[256,1024]",
    "actor.row_length=1024", "actor.row_patches=1024", "actor.entropy_coef=0.01",
)  # fmt: skip


def folders() -> dict[str, Path]:
    """The first recorded checkpoint of every family but Qwen3-VL's dense one, on which everything else is tested."""
    found: dict[str, Path] = {}
    for config in sorted(golden_dir("model").glob("*/config.json")):
        family = json.loads(config.read_text())["model_type"]
        if family != "qwen3_vl":
            found.setdefault(family, config.parent)
    return found


FOLDERS = folders()


@pytest.mark.parametrize("family", FOLDERS)
def test_a_policy_of_the_family_learns_and_comes_back_out(family: str, tmp_path: Path) -> None:
    run, source = tmp_path / "run", FOLDERS[family]
    settings = (f"run_dir={run}", f"data.cache_dir={tmp_path / 'cache'}", f"model.path={source}")
    done = subprocess.run(
        [sys.executable, "-m", "vero_jax.train", *settings, *SHORT], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["phase"] == "reinforcement"]
    assert len(steps) == 1 and np.isfinite(steps[0]["actor/grad_norm"]) and steps[0]["actor/grad_norm"] > 0
    with Checkpoint(source) as before, Checkpoint(run / "hf") as after:
        assert before.names == after.names
        moved = {name for name in before.names if not np.array_equal(before.read(name), after.read(name))}
    assert moved == before.names, "every tensor gets a gradient, or decays"
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
        assert (run / "hf" / name).read_bytes() == (source / name).read_bytes()
    said = subprocess.run(
        [sys.executable, "-m", "vero_jax.generate", str(run / "hf"), "Hello", "--max-tokens", "4"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
