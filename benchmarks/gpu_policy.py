"""A policy of Qwen3-VL-2B's sizes with random weights on one accelerator: decoding and the update against the limits.

    python benchmarks/gpu_policy.py [--lanes 64 128 256] [--rows 8192 16384] > gpu_policy.json
    python benchmarks/gpu_policy.py --toy           # tiny sizes, on any machine, to see that it works

Activations are bfloat16, master weights and Adam's moments float32. The table goes to standard error, JSON to standard
output. What has not begun after `--budget` seconds is left out and named.

*Decoding*: `lanes` responses side by side, 8 to a prompt, none of which ends early. Timed are the tokens after the
first round, so prefill is not in them. A step has to read every weight of the language model, the keys and values of
every prompt once, and those of every response: these bytes over the bandwidth of a plain copy are the least time of a
step, and `share_of_limit` is that time over the measured one. The limit with `read_per_lane`, where every response
reads its prompt for itself, is the best that an engine could reach which does not share prompts.

*The update*: one `Learner.step` with recomputation of whole layers, rows packed full of one prompt with an image and 8
responses. Model FLOPs are those of one forward and one backward pass (three times the forward's); what is computed a
second time does not count. Per token two for every weight of a linear map, the head at response tokens only; attention
by pairs of tokens that see each other; each image once. `share_of_peak` compares with `--peak` (TFLOP/s, dense
bfloat16; 989 for an H100 or H200), `share_of_matmul` with a large product that is measured first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vero_jax.config import ActorConfig, MeshConfig, OptimConfig, RolloutConfig, SamplingConfig
from vero_jax.data.geometry import merged_counts, mrope_positions
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.policy import ModelDef
from vero_jax.models.released import released_config
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine
from vero_jax.sampling.inputs import sample_keys
from vero_jax.sampling.session import Request
from vero_jax.types import Example, Group, Prompt, Response

SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    config: ModelConfig
    prompt_tokens: int
    new_tokens: int
    page: int
    side: int
    """Of the update's images, in patches."""
    row_prompt_share: float
    """Of a row, the part that is the prompt."""
    rows_per_step: int
    square: int
    """Side of the matrices whose product measures the peak."""
    copy_mb: int
    """Of the array that measures the bandwidth."""
    repeats: int


def real_sizes(name: str) -> Sizes:
    return Sizes(released_config(name), 512, 320, 64, 28, 1 / 8, 4, 8192, 2048, 3)


def toy_sizes() -> Sizes:
    text = TextConfig(
        vocab_size=160, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, ffn_size=64,
        rope_theta=1e4, mrope_section=(4, 2, 2),
    )  # fmt: skip
    vision = VisionConfig(
        depth=2, hidden_size=32, num_heads=2, ffn_size=64, out_hidden_size=32, num_positions=64, deepstack_layers=(0,)
    )
    return Sizes(ModelConfig(text, vision, 3, 4, 1, 2, tie_word_embeddings=True), 16, 12, 4, 4, 1 / 4, 2, 128, 1, 1)


def make_prompt(number: int, tokens: int, side: int, config: ModelConfig) -> Prompt:
    """Random text up to `tokens`, behind a random image of side x side patches (none where `side` is 0)."""
    rng = np.random.default_rng(number)
    grids = np.asarray([[1, side, side]] if side else np.zeros((0, 3)), np.int32)
    visual = int(merged_counts(grids).sum())
    words = rng.integers(6, min(config.text.vocab_size, 150_000), tokens - visual)
    ids = np.asarray([*[config.image_token_id] * visual, *words], np.int32)
    positions, image_index = mrope_positions(
        ids, grids, image_token_id=config.image_token_id, video_token_id=config.video_token_id
    )
    elements = config.vision.patch_elements if config.vision else 0
    patches = rng.integers(0, 256, (side * side, elements), np.uint8)
    return Prompt(
        Example(f"q{number}", "stem", "random", (), (), "", "", {}), ids, positions, image_index, patches, grids
    )


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Median after one call that compiles."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def copy_bandwidth(sizes: Sizes) -> float:
    """Bytes read and written per second by x + 1 over a large array, ten times in a row."""
    x = jnp.zeros(sizes.copy_mb * 2**20 // 2, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def ten_times() -> Any:
        nonlocal x
        for _ in range(10):
            x = add(x)
        return x

    return 20 * x.nbytes / seconds_of(ten_times, 3)


def matmul_rate(sizes: Sizes) -> float:
    """FLOP/s of a square bfloat16 product, ten times in a row."""
    side = sizes.square
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16) * side**-0.5
    multiply = jax.jit(lambda x, a: x @ a)

    def ten_times() -> Any:
        x = a
        for _ in range(10):
            x = multiply(x, a)
        return x

    return 20 * side**3 / seconds_of(ten_times, 3)


def linear_weights(config: ModelConfig) -> dict[str, int]:
    """Weights of linear maps by what they are applied to: "tokens", "patches", "merged" (image tokens), "head"."""
    found = {"tokens": 0, "patches": 0, "merged": 0}
    for path, leaf in flatten_dict(ModelDef(config).abstract_params()).items():
        if path[-1] != "kernel":
            continue
        merging = path[0] == "vision" and ("merger" in path or "deepstack" in path)
        found["tokens" if path[0] == "language" else "merged" if merging else "patches"] += leaf.size
    # The head is a table of embeddings in the tree, its own or the tied one.
    return found | {"head": config.text.vocab_size * config.text.hidden_size}


def update_flops(config: ModelConfig, prompt: int, patches: int, responses: Sequence[int]) -> float:
    """Model FLOPs of one group, forward and backward; see the head of this file.

    Args:
      prompt: tokens, image included.
      patches: of its one image.
      responses: tokens of each.
    """
    weights, text, vision = linear_weights(config), config.text, config.vision
    drawn = sum(responses)
    linear = weights["tokens"] * (prompt + drawn) + weights["head"] * drawn
    linear += weights["patches"] * patches + weights["merged"] * (patches // 4)
    pairs = prompt * (prompt + 1) / 2 + sum(r * prompt + r * (r + 1) / 2 for r in responses)
    attention = 4 * text.num_layers * text.num_heads * text.head_dim * pairs
    if vision is not None:
        attention += 4 * vision.depth * vision.hidden_size * patches**2
    return 3 * (2 * linear + attention)


def step_bytes(config: ModelConfig, lanes: int, prompt: int, own: float) -> dict[str, float]:
    """Bytes that a decode step has to read, bfloat16.

    Args:
      own: tokens of a response at that step.
    """
    weights, text = linear_weights(config), config.text
    per_token = 2 * 2 * text.num_layers * text.num_kv_heads * text.head_dim
    model, responses = 2.0 * (weights["tokens"] + weights["head"]), lanes * own * per_token
    return {
        "shared": model + responses + lanes // SAMPLES * prompt * per_token,
        "read_per_lane": model + responses + lanes * prompt * per_token,
    }


def measure_decode(sizes: Sizes, params: Any, lanes: int, bandwidth: float) -> dict[str, float]:
    """Tokens per second of `lanes` responses after the first round."""
    config = sizes.config
    rollout = RolloutConfig(
        n=SAMPLES, concurrent_responses=lanes, prompt_buckets=(sizes.prompt_tokens,), patch_buckets=(sizes.side**2,),
        prompt_page=min(128, sizes.prompt_tokens), response_page=sizes.page,
        response_kv_tokens=lanes * (sizes.new_tokens + sizes.page),
    )  # fmt: skip
    engine = Engine(ModelDef(config, dtype="bfloat16"), rollout, make_mesh(MeshConfig()), stop_ids=[])
    prompts = [make_prompt(number, sizes.prompt_tokens, 0, config) for number in range(lanes // SAMPLES)]

    def run() -> dict[str, float]:
        session = engine.session(params, n=SAMPLES, max_new_tokens=sizes.new_tokens)
        jax.block_until_ready(session.params)
        begin = time.perf_counter()
        for prompt, keys in zip(prompts, sample_keys(prompts, SAMPLES, 0, 0), strict=True):
            session.submit(Request(prompt, keys, SamplingConfig(), sizes.new_tokens))
        first = sum(len(drawn.token_ids) for drawn in session.advance())
        start, tokens = time.perf_counter(), 0
        while not session.idle:
            tokens += sum(len(drawn.token_ids) for drawn in session.advance())
        end = time.perf_counter()
        return {"begun": first / lanes, "tokens": tokens, "seconds": end - start, "with_prefill": end - begin}

    began = time.perf_counter()
    run()
    compiled = time.perf_counter() - began
    found = run()
    if found["begun"] + found["tokens"] / lanes != sizes.new_tokens or not found["tokens"]:
        raise RuntimeError(f"{lanes} lanes drew {found}, not {sizes.new_tokens} tokens each, or all in the first round")
    steps = found["tokens"] / lanes
    needed = step_bytes(config, lanes, sizes.prompt_tokens, (found["begun"] + sizes.new_tokens) / 2)
    step_s = found["seconds"] / steps
    return {
        "lanes": lanes,
        "first_run_s": compiled,
        "tokens_per_s": found["tokens"] / found["seconds"],
        "tokens_per_s_with_prefill": lanes * sizes.new_tokens / found["with_prefill"],
        "ms_per_step": 1e3 * step_s,
        "gb_per_step": needed["shared"] / 1e9,
        "limit_tokens_per_s": lanes * bandwidth / needed["shared"],
        "share_of_limit": needed["shared"] / bandwidth / step_s,
        "read_per_lane_limit_tokens_per_s": lanes * bandwidth / needed["read_per_lane"],
    }


def measure_update(sizes: Sizes, params: Any, row: int, peaks: dict[str, float]) -> dict[str, float]:
    """Seconds and FLOP/s of an update of `rows_per_step` full rows."""
    config, patches = sizes.config, sizes.side**2
    prompt_tokens = round(row * sizes.row_prompt_share)
    length = (row - prompt_tokens) // SAMPLES
    prompt_tokens = row - SAMPLES * length
    actor = ActorConfig(
        mini_batch_prompts=sizes.rows_per_step, row_length=row, row_patches=patches, row_rungs=1,
    )  # fmt: skip
    mesh = make_mesh(MeshConfig())
    policy = TrainablePolicy.of_model(ModelDef(config, dtype="bfloat16", remat="layers"), mesh)
    learner = Learner(policy, actor, OptimConfig(warmup_steps=0), mesh, max_response_length=length)
    rng = np.random.default_rng(0)
    groups = []
    for number in range(sizes.rows_per_step):
        ids = rng.integers(6, min(config.text.vocab_size, 150_000), (SAMPLES, length)).astype(np.int32)
        responses = tuple(Response(drawn, np.full(length, -10, np.float32), "length") for drawn in ids)
        prompt = make_prompt(number, prompt_tokens, sizes.side, config)
        groups.append(Group(prompt, responses, advantages=rng.normal(size=SAMPLES).astype(np.float32)))
    plan = learner.pack(groups)
    if plan.micro_batches != sizes.rows_per_step:
        raise RuntimeError(f"{sizes.rows_per_step} groups were packed into {plan.micro_batches} rows of {plan.shape}")
    state, norms, times = learner.init_state(params), [], []
    for step in range(1, sizes.repeats + 2):
        start = time.perf_counter()
        state, metrics = learner.step(state, groups, step)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
        norms.append(metrics["actor/grad_norm"])
    if not np.isfinite(norms).all():
        raise RuntimeError(f"the gradients' norms are not finite: {norms}")
    seconds = statistics.median(times[1:])
    flops = sizes.rows_per_step * update_flops(config, prompt_tokens, patches, [length] * SAMPLES)
    return {
        "row_tokens": row,
        "rows": sizes.rows_per_step,
        "first_step_s": times[0],
        "step_s": seconds,
        "tokens_per_s": sizes.rows_per_step * row / seconds,
        "model_tflops": flops / 1e12,
        "tflops_per_s": flops / seconds / 1e12,
        "share_of_peak": flops / seconds / peaks["peak"],
        "share_of_matmul": flops / seconds / peaks["matmul"],
    }


def table(report: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{report['device']}, jax {report['jax']}, {report['parameters_b']:.3g} B parameters; "
        f"copy {report['copy_gb_per_s']:.0f} GB/s, product {report['matmul_tflops']:.0f} TFLOP/s"
    ]
    for name in ("decode", "update"):
        for row in report[name]:
            lines.append(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if report["left_out"]:
        lines.append(f"left out, the budget was spent: {', '.join(report['left_out'])}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen3-VL-2B", help="a released size, see models/released.py")
    parser.add_argument("--lanes", nargs="+", type=int, default=None, help="responses side by side, multiples of 8")
    parser.add_argument("--rows", nargs="+", type=int, default=None, help="tokens of a row")
    parser.add_argument("--peak", type=float, default=989.0, help="dense bfloat16 TFLOP/s of the device")
    parser.add_argument("--budget", type=float, default=130.0, help="seconds after which nothing new begins")
    parser.add_argument("--toy", action="store_true", help="tiny sizes")
    args = parser.parse_args(argv)
    sizes = toy_sizes() if args.toy else real_sizes(args.model)
    lanes = args.lanes or ([16] if args.toy else [64, 256, 128])
    rows = args.rows or ([128] if args.toy else [8192, 16384])
    if any(count < SAMPLES or count % SAMPLES for count in lanes):
        parser.error(f"--lanes {lanes}: each must be a multiple of {SAMPLES}")
    # Weights, a copy of them, moments and gradients of 2 B parameters are 43 GB, and jax leaves a quarter of the memory
    # alone. This is read when the first array is made.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if jax.device_count() != 1:
        parser.error(f"there are {jax.device_count()} devices; choose one (CUDA_VISIBLE_DEVICES=0)")
    start = time.perf_counter()
    model_def = ModelDef(sizes.config, dtype="bfloat16")
    bandwidth, matmul = copy_bandwidth(sizes), matmul_rate(sizes)
    report: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "parameters_b": model_def.num_params() / 1e9,
        "copy_gb_per_s": bandwidth / 1e9,
        "matmul_tflops": matmul / 1e12,
        "decode": [],
        "update": [],
        "left_out": [],
    }
    params = model_def.init_params(0)
    peaks = {"peak": args.peak * 1e12, "matmul": matmul}
    # The two shortest first, so that a small budget has something of both.
    trials: list[tuple[str, int]] = [("decode", lanes[0]), ("update", rows[0])]
    trials += [("decode", count) for count in lanes[1:]] + [("update", row) for row in rows[1:]]
    for kind, size in trials:
        if time.perf_counter() - start > args.budget:
            report["left_out"].append(f"{kind} {size}")
            continue
        if kind == "decode":
            report["decode"].append(measure_decode(sizes, params, size, bandwidth))
        else:
            report["update"].append(measure_update(sizes, params, size, peaks))
        print(f"{time.perf_counter() - start:.0f} s: {kind} {size} done", file=sys.stderr, flush=True)
    report["seconds"] = time.perf_counter() - start
    print(table(report), file=sys.stderr)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
