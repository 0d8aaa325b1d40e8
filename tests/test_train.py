"""The whole recipe, as a user starts it: real processes, a real run directory, interruptions and mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

REPO = Path(__file__).resolve().parent.parent
TINY = (
    "cold_start.steps=3", "cold_start.warmup_steps=1", "cold_start.batch_size=12", "cold_start.log_every=1",
    "trainer.steps=3", "trainer.prompts_per_step=6", "trainer.val_every=2", "trainer.save_every=1",
    "trainer.samples_every=2", "actor.mini_batch_prompts=3", "rollout.n=2", "rollout.concurrent_responses=12",
    "rollout.max_response_length=24", "actor.rows_per_micro_batch=4", "reward.overlong_buffer=8",
    "data.mini.train_size=120", "data.mini.val_size=18", "data.max_val_examples=6", "optim.lr=1e-3",
    "optim.schedule=constant",
    "model.build.num_layers=3", "model.build.vision_depth=2", "model.build.deepstack_layers=0,1",
    "model.build.hidden_size=32", "model.build.vision_hidden_size=32", "model.build.ffn_size=64",
    "model.build.vision_ffn_size=64", "model.build.num_heads=2", "model.build.num_kv_heads=1",
    "model.build.head_dim=16", "model.build.vision_heads=2",
)  # fmt: skip


def command(run: Path, cache: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "vero_jax.train", f"run_dir={run}", f"data.cache_dir={cache}", *TINY, *settings]


def environment(devices: int = 1) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PJRT_NPROC")}
    return env | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def quick_environment(devices: int = 1) -> dict[str, str]:
    """With programs that compile in half of the time, for tests of what happens to a run, not of what it computes."""
    env = environment(devices)
    return env | {"XLA_FLAGS": env["XLA_FLAGS"] + " --xla_backend_optimization_level=0"}


def train(run: Path, cache: Path, *settings: str, devices: int = 1, code: int = 0) -> str:
    done = subprocess.run(
        command(run, cache, *settings), env=environment(devices), capture_output=True, text=True, timeout=800
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(run: Path, phase: str = "reinforcement") -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def numbers(run: Path) -> list[dict]:
    """The metrics that must not depend on when or where the run went on."""
    return [
        {key: value for key, value in line.items() if not key.startswith(("timing", "perf/"))} for line in metrics(run)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One cache of data and compiled programs for all runs of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    output = train(run, cache)
    assert "Finished 3 steps" in output and "vero_jax.generate" in output
    return run


def test_a_run_leaves_everything_that_the_readme_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for figure in ("accuracy", "accuracy_greedy"):
        assert set(summary[figure]) == {"before", "after_cold_start", "final"}
        assert set(summary[figure]["final"]) == {"overall", "domains"}
    assert summary["seed"] == 0 and summary["seconds"]["total"] > 0 and "jax" in summary["versions"]
    for name in ("config.yaml", "curves.png", "samples/index.html", "samples/step_000002.html", "hf/config.json",
                 "hf/model.safetensors", "hf/tokenizer.json", "hf/chat_template.jinja"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert any((finished / "tensorboard").rglob("events.*"))
    assert len(metrics(finished, "cold_start")) == 3
    assert [line["step"] for line in metrics(finished)] == [1, 2, 3]
    assert [line["stage"] for line in metrics(finished, "validation")] == [
        "before",
        "after_cold_start",
        "during",
        "final",
    ]


def test_metrics_carry_verl_names_and_sampler_and_learner_agree(finished):
    for line in metrics(finished):
        for name in (
            "critic/score/mean",
            "actor/pg_clipfrac",
            "actor/grad_norm",
            "response_length/mean",
            "timing_s/gen",
        ):
            assert name in line
        assert line["rewards/missing"] == 0
    # A step in which every group's scores are equal computes nothing, and has nothing to compare.
    differences = [line.get("training/rollout_logprobs_diff_max") for line in metrics(finished)]
    assert any(value is not None for value in differences)
    assert all(value is None or value < 5e-5 for value in differences)
    validation = metrics(finished, "validation")[-1]
    assert any(name.startswith("val-core/mini_") and name.endswith("/reward/mean@1") for name in validation)
    assert "val/blind_changed" in validation


def test_after_the_first_step_of_a_phase_nothing_is_traced_again(finished):
    """The rungs of the row ladder may each be traced once; the sampler has one shape."""
    traces = [line["perf/traces"] for line in metrics(finished)]
    assert traces[-1] - traces[0] <= 4


@pytest.mark.slow
def test_a_run_that_compiled_everything_first_traces_nothing_later_and_prints_the_same_numbers(
    finished, cache, tmp_path
):
    run = tmp_path / "warm"
    output = train(run, cache, "trainer.warm_up=true")
    for what in ("sampling", "the cold start", "learning"):
        assert f"compiling what {what} needs" in output
    assert numbers(run) == numbers(finished)
    assert len({line["perf/traces"] for line in metrics(run)}) == 1


@pytest.mark.slow
def test_a_run_killed_at_any_point_prints_the_same_numbers_as_one_that_was_not(finished, cache, tmp_path):
    run = tmp_path / "killed"
    process = subprocess.Popen(
        command(run, cache), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (run / "checkpoints" / "4").is_dir():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    output = train(run, cache)
    assert "resuming from the checkpoint" in output
    assert numbers(run) == numbers(finished)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(finished, cache, tmp_path):
    run = tmp_path / "stopped"
    process = subprocess.Popen(
        command(run, cache), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (run / "checkpoints" / "1").is_dir():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output[-2000:]
    assert "run the same command again" in output
    assert "resuming from the checkpoint" in train(run, cache)
    assert numbers(run) == numbers(finished)


@pytest.mark.slow
def test_a_finished_run_is_continued_with_more_steps(finished, cache, tmp_path):
    import shutil

    run = tmp_path / "longer"
    shutil.copytree(finished, run)
    train(run, cache, "trainer.steps=4")
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    assert json.loads((run / "summary.json").read_text())["steps"] == 4


ADAPTERS = ("model.lora.rank=4", "model.lora.alpha=8", "actor.kl_loss_coef=0.01")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, cache) -> Path:
    """A run that trained adapters, with a reference policy, and exported them alone."""
    run = tmp_path_factory.mktemp("runs") / "adapted"
    output = train(run, cache, *ADAPTERS, "model.lora.export=adapter")
    # 3 layers x rank 4 x (in + out) of the seven maps: q, k, v, o, gate, up, down.
    assert "policy: 0.20 M parameters, 0.01 M trained" in output
    return run


def stored_names(run: Path, step: int) -> set[str]:
    """The arrays in a checkpoint, by their place in the tree."""
    tree = json.loads((run / "checkpoints" / str(step) / "state" / "_METADATA").read_text())["tree_metadata"].values()
    return {"/".join(str(key["key"]) for key in entry["key_metadata"]) for entry in tree}


@pytest.mark.slow
def test_a_run_with_adapters_keeps_the_frozen_base_once_in_a_checkpoint(adapted):
    assert all(np.isfinite(line["actor/kl_loss"]) for line in metrics(adapted))
    names = stored_names(adapted, 6)
    assert "state/params/language/embed/embedding" in names
    for part in ("state/opt_state/", "reference/"):
        leaves = [name for name in names if name.startswith(part) and name.count("/") > 3]
        assert leaves and all(name.endswith(("/lora_a", "/lora_b")) for name in leaves)
    tensors = load_file(adapted / "hf" / "adapter_model.safetensors")
    assert len(tensors) == 3 * 7 * 2
    assert all(np.any(value) for value in tensors.values())  # B began as zero
    config = json.loads((adapted / "hf" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(adapted / "policy")


@pytest.fixture(scope="module")
def merged(tmp_path_factory, adapted, cache) -> Path:
    """The same run, stopped after two steps, taken up again, and exported as whole weights."""
    run = tmp_path_factory.mktemp("runs") / "merged"
    train(run, cache, *ADAPTERS, "trainer.steps=2")
    assert "resuming from the checkpoint" in train(run, cache, *ADAPTERS)
    return run


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_bit_equal(adapted, merged):
    assert numbers(merged) == numbers(adapted)


@pytest.mark.slow
def test_merged_weights_are_the_base_and_the_adapters(adapted, merged):
    base, whole = (load_file(folder / "model.safetensors") for folder in (merged / "policy", merged / "hf"))
    adapters = load_file(adapted / "hf" / "adapter_model.safetensors")
    assert set(base) == set(whole)
    moved = 0
    for name, before in base.items():
        a, b = (adapters.get(f"base_model.model.{name[:-7]}.lora_{m}.weight") for m in "AB")
        if a is None or b is None:
            np.testing.assert_array_equal(whole[name], before)
        else:
            np.testing.assert_allclose(whole[name], before + 2 * b @ a, rtol=1e-5, atol=1e-7)
            moved += not np.array_equal(whole[name], before)
    assert moved == len(adapters) // 2 == 21


@pytest.mark.slow
def test_an_exported_adapter_answers_like_the_merged_weights(adapted, merged):
    answers = []
    for folder in (adapted / "hf", merged / "hf"):
        words = [sys.executable, "-m", "vero_jax.generate", str(folder), "How many?", "--temperature", "0"]
        done = subprocess.run(
            [*words, "--max-tokens", "8"], env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answers.append(done.stdout)
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter(adapted, cache, tmp_path):
    run, start = tmp_path / "further", adapted / "hf"
    settings = (*ADAPTERS, "model.lora.export=adapter", f"model.path={adapted / 'policy'}", f"model.lora.path={start}")
    train(run, cache, *settings, "cold_start.steps=0", "trainer.steps=0", "trainer.val_before=false")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (start, run / "hf"))
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    output = train(tmp_path / "other", cache, *settings, "model.lora.rank=8", code=2)
    assert "has rank 4, but this policy's adapters have 8; set model.lora.rank=4" in output
    output = train(tmp_path / "alone", cache, f"model.path={start}", code=2)
    assert "is an adapter alone; set model.lora.path to it" in output


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(finished, cache, tmp_path):
    run = tmp_path / "sharded"
    train(run, cache, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "actor.rows_per_micro_batch=1", devices=8)
    for one, eight in zip(numbers(finished), numbers(run), strict=True):
        for name in ("critic/score/mean", "actor/pg_loss", "actor/grad_norm", "response_length/mean", "actor/entropy"):
            np.testing.assert_allclose(eight[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("actor.kl_loss_coef=0.01",),
        ("algorithm.kl_in_reward=true", "algorithm.kl_coef=0.01"),
        ("actor.loss_mode=vanilla", "actor.loss_agg_mode=token-mean", "actor.entropy_coef=0.01"),
        ("model.freeze_vision=true", "algorithm.adv_estimator=rloo"),
    ],
    ids=["kl-loss", "kl-reward", "ppo-entropy", "frozen-vision"],
)
def test_the_other_recipes_run_too(settings, cache, tmp_path):
    run = tmp_path / "run"
    train(run, cache, "trainer.steps=2", "trainer.export=false", *settings)
    lines = metrics(run)
    assert len(lines) == 2 and all(np.isfinite(line["actor/grad_norm"]) for line in lines)
    if "algorithm.kl_in_reward=true" in settings:
        assert lines[0]["actor/reward_kl_penalty"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["optim.weight_decy=1"], "optim.weight_decay"),
        (["trainer.steps=many"], "many"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["data.source=/no/such/folder"], "/no/such/folder"),
        (["model.path=/no/such/model"], "/no/such/model"),
        (["model.path=no/such/id/at/all"], "a hub id, a folder in vero_jax's own format"),
        (["model.lora.rank=2", "model.lora.targets=q_prj"], "the nearest is 'q_proj'"),
        (["mesh.data=7"], "7"),
        (["data.max_pixels=32768"], "data.max_pixels to at most 12288"),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(settings, named, cache, tmp_path):
    done = subprocess.run(
        [*command(tmp_path / "run", cache), *settings] if not settings[0].endswith(".yaml")
        else [sys.executable, "-m", "vero_jax.train", *settings],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and named in errors[0]
    assert "Traceback" not in done.stderr


def test_help_lists_the_settings():
    done = subprocess.run(
        [sys.executable, "-m", "vero_jax.train", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "actor.clip_ratio_low" in done.stdout and "mini.yaml" in done.stdout
