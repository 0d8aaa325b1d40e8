"""`python -m vero_jax.compile`: the programs of a config, as a user asks for them (real processes)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hf_configs import hf_config
from tiny_vl import tiny_config

from vero_jax.compile import _largest, report
from vero_jax.config_loader import load_config
from vero_jax.errors import UserError
from vero_jax.models.policy import ModelDef
from vero_jax.planning.flops import attention_flops, expert_flops, model_flops, product_flops
from vero_jax.planning.plan import Measured, Plan, model_of

TINY = (
    "configs/mini.yaml", "model.build.num_layers=2", "model.build.hidden_size=64", "model.build.vision_depth=2",
    "model.build.deepstack_layers=0", "model.build.vision_hidden_size=64", "mesh.data=2", "mesh.fsdp=2",
    "mesh.tensor=2",
)  # fmt: skip


PLUGIN = os.environ.get("VERO_JAX_CUDA_PLUGIN", "")
"""Folder of jax's plugin for CUDA, where it is not installed beside jax."""


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess:
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), PLUGIN)))
    done = subprocess.run(
        [sys.executable, "-m", "vero_jax.compile", *words], capture_output=True, text=True, timeout=900, env=environ
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def tiny() -> dict:
    """A tiny policy on eight devices of this machine."""
    return json.loads(run(*TINY, "--topology", "cpu:8", "--json").stdout)


def test_every_program_of_a_run_is_reported(tiny):
    names = [program["name"].split(",")[0] for program in tiny["programs"]]
    assert names == ["reshard", "prefill", "decode", "update", "log-probabilities", "optimizer"]
    assert tiny["mesh"] == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    # Devices of the host share its memory.
    assert tiny["fits"] is True and tiny["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
    for program in tiny["programs"]:
        beside = program["arguments"] + program["outputs"] - program["reused"] + program["temporary"]
        assert program["peak"] >= beside > 0 and program["compile_s"] > 0 and program["error"] is None
    by_name = dict(zip(names, tiny["programs"], strict=True))
    assert by_name["update"]["received"] > 0  # gradients are summed over the devices
    assert 0 < by_name["update"]["model_flops"] < by_name["update"]["flops"] < 2 * by_name["update"]["model_flops"]
    assert by_name["optimizer"]["reused"] > 0  # the old state's buffers


def test_what_is_held_is_split_over_the_devices(tiny):
    """Adam's two moments beside the weights, and gradients like them, in float32."""
    held = tiny["held"]
    assert held["optimizer"] == pytest.approx(2 * held["weights"], rel=0.01)
    assert held["gradients"] == held["weights"]
    whole = 4 * tiny["parameters"]
    assert whole / 4 <= held["weights"] < whole / 2  # over fsdp x tensor, but for what does not divide
    assert held["weights"] < held["weights of sampling"] <= whole


def test_the_report_is_a_table_with_a_verdict():
    done = run(*TINY, "--topology", "cpu:8", "--only", "optimizer")
    assert "held on each device" in done.stdout and "fits: peak" in done.stdout
    assert "compiling: optimizer" in done.stderr and "compiling: update" not in done.stderr


def plan_with_experts(folder: Path, only: str) -> dict:
    """Of a tiny policy on 2 x 4 devices of this machine, the latter along the axis of experts."""
    config = tiny_config(family="qwen3_vl_moe")
    text = dataclasses.replace(config.text, num_experts=8, expert_ffn_size=96)
    config = dataclasses.replace(config, text=text)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    words = (f"model.path={folder}", "mesh.data=1", "mesh.fsdp=2", "mesh.expert=4", "--topology", "cpu:8")
    return json.loads(run("configs/mini.yaml", *words, "--only", only, "--json").stdout)


def test_experts_are_held_by_the_devices_of_their_axis(tmp_path):
    """Each of 2 x 4 devices holds an eighth of the experts and of all else that divides; in sampling a fourth of the
    experts, and all else."""
    found = plan_with_experts(tmp_path, "optimizer")
    assert found["mesh"] == {"data": 1, "fsdp": 2, "expert": 4, "tensor": 1}
    experts = 3 * 3 * 8 * 24 * 96  # maps x layers x experts x width x hidden width
    others = found["parameters"] - experts
    assert experts > others
    assert (experts + others) / 8 * 4 <= found["held"]["weights"] < (experts / 8 + others / 4) * 4
    assert experts / 4 * 4 < found["held"]["weights of sampling"] <= (experts / 4 + others) * 4


@pytest.mark.slow
def test_an_update_counts_the_experts_that_its_tokens_meet(tmp_path):
    (update,) = plan_with_experts(tmp_path, "update")["programs"]
    assert update["received"] > 0
    assert 0.9 * update["model_flops"] < update["flops"] < 2 * update["model_flops"]


def test_ragged_products_are_counted_by_their_rows_and_on_several_devices_by_formula():
    def product(x, w, sizes):
        return jax.lax.ragged_dot(x, w, sizes)

    inputs = jnp.ones((8, 4)), jnp.ones((3, 4, 5)), jnp.asarray([2, 2, 2])
    assert product_flops(jax.jit(product).trace(*inputs).jaxpr) == 2 * 8 * 4 * 5
    mesh = jax.make_mesh((8,), ("x",))
    whole = jax.sharding.PartitionSpec()
    split = jax.shard_map(product, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    assert product_flops(jax.jit(split).trace(*inputs).jaxpr, devices=8) == 0
    config = model_of(load_config(["model.path=Qwen/Qwen3-VL-30B-A3B-Instruct"]))
    # 48 layers, 8 of 128 experts, three maps between 2048 and 768.
    assert expert_flops(config, 10) == 2 * 48 * 8 * 3 * 2048 * 768 * 10


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("configs/mini.yaml", "--topology", "v9-8"), "there is no slice 'v9-8'"),
        (("configs/mini.yaml", "--topology", "cpu-8"), "'cpu-8' must be cpu or cpu:<number of devices>"),
        (("configs/mini.yaml", "--topology", "cpu:2", "mesh.data=3"), "there are 2 devices"),
        (("configs/mini.yaml", "--topology", "cpu", "model.path=no/such-model"), "whose sizes are known"),
        (("configs/mini.yaml", "--topology", "cpu", "--only", "nothing"), "no program begins with 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence(words, named):
    done = run(*words, code=2)
    assert named in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "billions"),
    [("Qwen/Qwen3-VL-8B-Instruct", 8.8), ("Qwen/Qwen3-VL-30B-A3B-Thinking", 31.1), ("X/MiMo-VL-7B-RL-2508", 8.3)],
)  # fmt: skip
def test_released_models_are_known_without_their_files(path, billions):
    config = load_config([f"model.path={path}"])
    assert ModelDef(model_of(config)).num_params() / 1e9 == pytest.approx(billions, abs=0.06)


def test_products_are_counted_as_often_as_loops_turn():
    def run(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=7)[0]

    assert product_flops(jax.jit(run).trace(jnp.ones((8, 8))).jaxpr) == 7 * 2 * 8**3
    recomputed = jax.jit(jax.grad(lambda x: jax.checkpoint(run)(x).sum())).trace(jnp.ones((8, 8)))
    assert product_flops(recomputed.jaxpr) == 7 * 2 * 8**3 * 4  # twice forward, two products backward


def test_the_models_own_work_follows_its_sizes():
    config = model_of(load_config(["model.path=Qwen/Qwen3-VL-8B-Instruct"]))
    params = ModelDef(config).abstract_params()
    # 36 layers of 4096 x (2 x 4096 + 2 x 1024) for attention and 3 x 4096 x 12288 for the MLP, two operations each.
    layers = 2 * 36 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288)
    assert model_flops(config, params, 1, 0, 0) == pytest.approx(layers, rel=1e-3)
    assert model_flops(config, params, 0, 1, 0) == 2 * 4096 * 151936
    assert attention_flops(config, 1000, 1000, 0, 0) == 4 * 36 * 4096 * 1000 * 1000 / 2
    with pytest.raises(UserError, match="neither a folder nor a released model"):
        model_of(load_config(["model.path=someone/else"]))


SMALL = ("model.path=Qwen/Qwen3-VL-2B-Instruct", "model.dtype=bfloat16", "model.remat=layers", "mesh.data=1",
         "mesh.fsdp=4", "data.max_prompt_length=1024", "rollout.max_response_length=1024",
         "rollout.prompt_buckets=1024", "rollout.patch_buckets=4096", "actor.row_length=2048",
         "actor.row_patches=4096", "reward.overlong_buffer=256", "rollout.concurrent_responses=32")  # fmt: skip
"""2B on four devices, short rows."""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_slice_is_compiled_for_its_real_compiler():
    """Kernels, sharding and memory of the real program (compiled, not run)."""
    words = SMALL
    found = json.loads(run(*words, "--topology", "v6e:2x2", "--json", "--only", "update").stdout)
    (update,) = found["programs"]
    assert found["fits"] is True and update["error"] is None
    assert update["peak"] / 2**30 == pytest.approx(GUARDED_PEAK_GIB, rel=0.1)
    assert update["received"] > 0 and update["flops"] > update["model_flops"] > 0
    assert update["roofline"] >= update["flops"] / 918e12
    decode = json.loads(run(*words, "--topology", "v6e:2x2", "--json", "--only", "decode").stdout)["programs"][0]
    assert decode["roofline"] > 0 and decode["peak"] < update["peak"]


@pytest.mark.slow
@pytest.mark.skipif(
    not PLUGIN and importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="no compiler for GPUs is installed",
)
def test_gpus_are_compiled_for_without_one():
    """Every program of a run, kernels included (compiled, not run)."""
    found = json.loads(run(*SMALL, "--topology", "h100-4", "--json").stdout)
    names = [program["name"].split(",")[0] for program in found["programs"]]
    assert names == ["reshard", "prefill", "decode", "update", "log-probabilities", "optimizer"]
    assert found["fits"] is True and found["memory"] / 2**30 == pytest.approx(79 * 0.92)
    update = found["programs"][3]
    assert update["peak"] / 2**30 == pytest.approx(GUARDED_GPU_PEAK_GIB, rel=0.1)
    assert update["received"] > 0 and update["roofline"] >= update["flops"] / 989e12
    small = json.loads(run(*SMALL, "--topology", "a100:4", "--json", "--only", "optimizer").stdout)
    assert small["programs"][0]["arguments"] == found["programs"][-1]["arguments"]


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is not None, reason="it is installed")
def test_the_compiler_for_gpus_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(globals(), "PLUGIN", "")
    done = run(*TINY, "--topology", "h100-8", code=2)
    assert "pip install --no-deps jax-cuda12-plugin" in done.stderr and "Traceback" not in done.stderr


GUARDED_GPU_PEAK_GIB = 15.28
"""The same for GPUs, as compiled by jax's plugin for CUDA 0.10.2."""
GUARDED_PEAK_GIB = 15.57
"""Of the update above, as compiled by jax 0.10.2 and libtpu 0.0.42 (not run)."""


def test_the_verdict_is_that_of_the_worst_program():
    small = Measured("small", "sampling", 1, 1, 0, 1, 90.0, 1, 1, 0, False, None, 0.1)
    large = dataclasses.replace(small, name="large", peak=96.9)

    def plan_of(*programs: Measured) -> Plan:
        return Plan("a machine", "a policy", 1, {"data": 1}, 100.0, {}, 1, 1, list(programs))

    assert plan_of(small, large).fits is True and plan_of(small, large).peak == 96.9
    assert plan_of(small, dataclasses.replace(large, peak=97.1)).fits is False  # 3 % are kept free
    assert plan_of(dataclasses.replace(small, error="RESOURCE_EXHAUSTED")).fits is False
    assert plan_of(small).to_json()["fits"] is True
    assert "does not fit: peak" in "\n".join(report(plan_of(dataclasses.replace(large, peak=99.0))))


def test_the_largest_that_fits_is_estimated_by_proportion():
    update = Measured("update, 1 row", "learning", 10, 1, 1, 30.0, 50.0, 1, 1, 0, False, None, 0.1)
    decode = Measured("decode, 8 answers", "sampling", 10, 1, 1, 4.0, 60.0, 1, 1, 0, False, None, 0.1)
    held = {"weights": 10.0, "keys of answers": 16.0}
    plan = Plan("a machine", "a policy", 1, {"data": 1}, 100.0, held, 1000, 8, [update, decode])
    # 97 usable; 20 lie beside the update's 30, and 40 beside the 20 of decoding.
    assert plan.estimate == {"row_length": int(1000 * 77 / 30), "concurrent_responses": int(8 * 57 / 20)}
    lines = "\n".join(report(plan))
    assert "actor.row_length=2566, rollout.concurrent_responses=22" in lines
    searched = "\n".join(report(plan, {"row_length": 2500, "concurrent_responses": 64}))
    assert "the most that fits: actor.row_length=2500, rollout.concurrent_responses=64 or more" in searched
    assert dataclasses.replace(plan, programs=[decode]).estimate["row_length"] is None


@pytest.mark.parametrize("limit", [3, 8, 9, 13, 20, 31, 64, 200])
def test_the_search_finds_the_largest_to_an_eighth(limit):
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found = _largest(fits)
    assert found <= limit and len(tried) <= 9
    assert found == 0 if limit < 1 else min(limit, 64) - found <= max(found // 8, 1)
