"""The benchmark scripts still run and count right, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vero_jax.models.policy import ModelDef
from vero_jax.models.released import released_config

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def printed(name: str, *args: str) -> list[str]:
    """The lines that a script prints, run as a user runs it, on one device and not on the eight of other tests."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *args], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()


def run_script(name: str, *args: str) -> dict[str, Any]:
    """The JSON that a script prints."""
    return json.loads(printed(name, *args)[-1])


@pytest.fixture
def gpu_policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_policy

    return gpu_policy


def test_a_policy_on_one_accelerator_is_measured_against_its_limits() -> None:
    report = run_script("gpu_policy.py", "--toy")
    assert report["copy_gb_per_s"] > 0 and report["matmul_tflops"] > 0 and report["left_out"] == []
    (decode,), (update,) = report["decode"], report["update"]
    assert decode["lanes"] == 16
    np.testing.assert_allclose(decode["tokens_per_s"] / decode["limit_tokens_per_s"], decode["share_of_limit"])
    # Responses that share their prompt leave less to read than those that do not.
    assert decode["limit_tokens_per_s"] > decode["read_per_lane_limit_tokens_per_s"]
    assert (update["row_tokens"], update["rows"]) == (128, 2)
    np.testing.assert_allclose(update["tflops_per_s"] * update["step_s"], update["model_tflops"])
    assert 0 < update["share_of_matmul"] < 1


def test_nothing_begins_after_the_budget() -> None:
    report = run_script("gpu_policy.py", "--toy", "--budget", "0")
    assert report["left_out"] == ["decode 16", "update 128"]
    assert report["decode"] == report["update"] == []


def test_the_gpu_script_needs_no_packages_of_the_data_pipeline() -> None:
    code = "import sys, gpu_policy; print([m for m in ('grain', 'tensorflow_datasets', 'orbax') if m in sys.modules])"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=BENCHMARKS, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["Qwen3-VL-2B", "Qwen3-VL-8B"])  # a tied head, and one of its own
def test_nearly_all_parameters_are_weights_of_linear_maps(gpu_policy: Any, name: str) -> None:
    config = released_config(name)
    counted = sum(gpu_policy.linear_weights(config).values())
    if not config.tie_word_embeddings:
        counted += config.text.vocab_size * config.text.hidden_size  # the table of embeddings, which is only looked up
    np.testing.assert_allclose(counted, ModelDef(config).num_params(), rtol=2e-3)


def test_model_flops_are_those_of_the_written_out_sum(gpu_policy: Any) -> None:
    config = gpu_policy.toy_sizes().config
    # By hand: two layers of width 32 (q and out 32 x 32, k and v 32 x 16, three of the MLP 32 x 64), a head of 160 ids.
    layers, head = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64), 160 * 32
    # Two blocks of width 32 (4 x 32 x 32, 2 x 32 x 64), patches of 1536; merger and one DeepStack map of 128.
    blocks, merging = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 1536 * 32, 2 * (128 * 128 + 128 * 32)
    linear = layers * (10 + 5) + head * 5 + blocks * 16 + merging * 4
    pairs = 55 + (3 * 10 + 6) + (2 * 10 + 3)  # prompt of 10; responses of 3 and 2 see it and themselves
    attention = 4 * 2 * 32 * pairs + 4 * 2 * 32 * 16**2
    assert gpu_policy.update_flops(config, 10, 16, [3, 2]) == 3 * (2 * linear + attention)


def test_a_decode_step_reads_weights_once_and_each_prompt_once(gpu_policy: Any) -> None:
    config = gpu_policy.toy_sizes().config
    weights = 2 * (2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 160 * 32)
    per_token = 2 * 2 * 2 * 1 * 16  # keys and values, two bytes, two layers, one head of 16
    found = gpu_policy.step_bytes(config, 16, 100, 7.0)
    assert found["shared"] == weights + (2 * 100 + 16 * 7) * per_token
    assert found["read_per_lane"] == weights + 16 * (100 + 7) * per_token


def test_the_group_step_prints_its_rows() -> None:
    report = run_script("group_step.py", "--toy", "--ours-only", "--json", "--only", "sampling_64")
    (row,) = report["rows"]
    assert set(row) >= {"work", "ours_s", "peer", "peer_s", "ratio", "phases"}
    assert row["work"] == "sampling_64" and row["ours_s"] > 0 and row["ratio"] is None
    assert row["phases"]["ours"]["tokens_per_s"] > 0


def test_the_table_of_decoding_has_a_line_per_way_of_choosing() -> None:
    title, header, *lines = printed(
        "bench_decode.py", "--groups", "2", "--n", "2", "--tokens", "6", "--vocab", "64", "--hidden", "32"
    )
    assert "2 groups x 2 samples x 6 tokens" in title and header.split()[-1] == "tokens/s"
    assert [line.split("  ")[0] for line in lines] == ["temperature", "greedy", "top-p 0.9"]
    assert all(int(line.split()[-3]) >= 6 and float(line.split()[-1]) > 0 for line in lines)


def test_the_table_of_scoring_has_a_line_per_benchmark_that_rules_score() -> None:
    header, *lines = printed("bench_evaluation.py", "--answers", "200")
    assert header.split()[:3] == ["benchmark", "answers", "seconds"]
    rows = {line.split()[0]: line.split() for line in lines}
    assert {"chartqa", "mathvision_test", "screenspot", "all"} <= set(rows) and len(rows) > 15
    assert int(rows["all"][1]) == sum(int(row[1]) for name, row in rows.items() if name != "all") == 200
    assert float(rows["all"][2]) < 60
