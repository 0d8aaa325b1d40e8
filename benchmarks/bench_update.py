"""Speed of one optimizer update: groups packed with shared prefixes against one sequence per response. Prints a table.

    python benchmarks/bench_update.py [--groups 24] [--n 8] [--prompt 80] [--response 40] [--rows 512,1024,2048] ...

Times are of forward, backward and optimizer step together on random groups, every response with an advantage, after a
first call that compiles. "naive" is a row per response, which repeats prompt and image n times, in the same program.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from vero_jax.config import ActorConfig, MeshConfig, OptimConfig
from vero_jax.data.geometry import mrope_positions
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.types import Example, Group, Prompt, Response

IMAGE, VIDEO = 3, 4
WIDTHS = (12, 22, 8, 9, 11, 10, 10)


def build_model(args: argparse.Namespace) -> ModelDef:
    """A Qwen3-VL of the given width; its feed-forward layers are three times as wide."""
    text = TextConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        num_layers=args.layers,
        num_heads=args.hidden // 32,
        num_kv_heads=max(1, args.hidden // 64),
        head_dim=32,
        ffn_size=3 * args.hidden,
        rope_theta=5e6,
        mrope_section=(6, 5, 5),
    )
    vision = VisionConfig(4, args.hidden, args.hidden // 32, 3 * args.hidden, args.hidden, 256, (1, 2))
    return ModelDef(ModelConfig(text, vision, IMAGE, VIDEO, 1, 2, tie_word_embeddings=True))


def random_group(rng: np.random.Generator, args: argparse.Namespace, index: int) -> Group:
    """One image of `args.patches` patches (8 wide), a prompt around it, and n responses of about equal length."""
    grids = np.array([[1, args.patches // 8, 8]], np.int32) if args.patches else np.zeros((0, 3), np.int32)
    ids = rng.integers(5, args.vocab, args.prompt).astype(np.int32)
    ids[2 : 2 + args.patches // 4] = IMAGE
    positions, image_index = mrope_positions(ids, grids, image_token_id=IMAGE)
    lengths = rng.integers(args.response * 3 // 4, args.response * 5 // 4 + 1, args.n)
    return Group(
        Prompt(
            Example(f"q{index}", "stem", "random", (), (), "", "", {}),
            ids,
            positions,
            image_index,
            rng.integers(0, 256, (args.patches, 1536), np.uint8),
            grids,
        ),
        tuple(
            Response(rng.integers(5, args.vocab, n).astype(np.int32), np.full(n, -1, np.float32), "stop")
            for n in lengths
        ),
        advantages=rng.normal(size=args.n).astype(np.float32),
    )


def naive(groups: Sequence[Group]) -> list[Group]:
    """Every response as a group of its own."""
    return [
        dataclasses.replace(group, responses=(response,), advantages=np.array([advantage], np.float32))
        for group in groups
        for response, advantage in zip(group.responses, group.advantages, strict=True)
    ]


def measure(model_def: ModelDef, groups: Sequence[Group], args: argparse.Namespace, rows: int, per_micro: int) -> list:
    """Builds a learner, compiles, and times `--repeats` updates."""
    actor = ActorConfig(
        row_length=rows, row_patches=65536, rows_per_micro_batch=per_micro, mini_batch_prompts=len(groups)
    )
    mesh = make_mesh(MeshConfig())
    policy = TrainablePolicy.of_model(
        model_def, mesh, attention_block=args.attention_block, vocab_block=args.vocab_block
    )
    learner = Learner(policy, actor, OptimConfig(), mesh, max_response_length=2 * args.response)
    state = learner.init_state(model_def.init_params(0))
    times = []
    for step in range(1, args.repeats + 2):
        start = time.perf_counter()
        state, metrics = learner.step(state, groups, step)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    plan = learner.pack(groups)
    tokens = sum(len(response.token_ids) for group in groups for response in group.responses)
    best = min(times[1:])
    shape = "x".join(str(size) for size in plan.shape)
    return [shape, plan.micro_batches, metrics["rows/padding"], times[0] - best, best, tokens / best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "groups": 24, "n": 8, "prompt": 80, "response": 40, "patches": 64, "hidden": 128, "layers": 4, "vocab": 1024,
        "attention_block": 128, "vocab_block": 16384, "repeats": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--rows", default="512,1024,2048", help="row lengths to try, packed")
    parser.add_argument("--no-naive", action="store_true", help="leave out the layout with one response per row")
    args = parser.parse_args()
    model_def = build_model(args)
    rng = np.random.default_rng(0)
    groups = [random_group(rng, args, index) for index in range(args.groups)]
    print(
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}; "
        f"{model_def.num_params() / 1e6:.1f}M parameters; {args.groups} groups of {args.n}, "
        f"prompt {args.prompt} tokens ({args.patches} patches), responses of about {args.response}"
    )
    names = ("layout", "B x T x P x U", "passes", "padding", "compile s", "update s", "tokens/s")
    print("".join(name.rjust(width) for name, width in zip(names, WIDTHS, strict=True)))
    trials = [("packed", groups, int(rows), 1) for rows in args.rows.split(",")]
    if not args.no_naive:
        trials.append(("naive", naive(groups), 128 * -(-(args.prompt + 2 * args.response) // 128), 8))
    for name, laid_out, rows, per_micro in trials:
        shape, passes, padding, compiling, best, speed = measure(model_def, laid_out, args, rows, per_micro)
        cells = (f"{name} {rows}", shape, passes, f"{padding:.0%}", f"{compiling:.1f}", f"{best:.2f}", f"{speed:.0f}")
        print("".join(str(cell).rjust(width) for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


if __name__ == "__main__":
    main()
