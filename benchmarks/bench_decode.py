"""Speed of group sampling: prefill and decoding of random prompts on a random policy. Prints a table.

    python benchmarks/bench_decode.py [--groups 24] [--n 8] [--tokens 48] [--vocab 1024] [--hidden 128] ...

Nothing ends early (there is no stop id), so every row draws `--tokens` tokens for every sample. ms/step is the whole
call over its steps, prefill included.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from vero_jax.config import MeshConfig, RolloutConfig, SamplingConfig
from vero_jax.data.geometry import merged_counts, mrope_positions
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine
from vero_jax.types import Example, Prompt

IMAGE, VIDEO = 3, 4


def build_model(args: argparse.Namespace) -> ModelDef:
    """A Qwen3-VL of the given width; its feed-forward layers are three times as wide."""
    text = TextConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        num_layers=args.layers,
        num_heads=args.hidden // args.head_dim,
        num_kv_heads=max(1, args.hidden // args.head_dim // 2),
        head_dim=args.head_dim,
        ffn_size=3 * args.hidden,
        rope_theta=5e6,
        mrope_section=(args.head_dim // 2 - 2 * (args.head_dim // 6), args.head_dim // 6, args.head_dim // 6),
    )
    vision = VisionConfig(
        depth=4,
        hidden_size=128,
        num_heads=4,
        ffn_size=384,
        out_hidden_size=args.hidden,
        num_positions=256,
        deepstack_layers=(1, 2),
    )
    config = ModelConfig(
        text=text,
        vision=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=1,
        vision_end_token_id=2,
        tie_word_embeddings=True,
    )
    return ModelDef(config, dtype=args.dtype, param_dtype=args.dtype)


def build_prompt(number: int, args: argparse.Namespace, elements: int) -> Prompt:
    """One square image, and text up to the wanted length."""
    rng = np.random.default_rng(number)
    side = args.side
    grids = np.asarray([[1, side, side]], np.int32)
    visual = int(merged_counts(grids)[0])
    words = rng.integers(6, args.vocab, max(1, args.prompt - visual - 2)).tolist()
    token_ids = np.asarray([1, *[IMAGE] * visual, 2, *words], np.int32)
    positions, image_index = mrope_positions(token_ids, grids, image_token_id=IMAGE, video_token_id=VIDEO)
    patches = rng.integers(0, 256, (side * side, elements), dtype=np.uint8)
    example = Example(str(number), "chart_ocr", "bench", (), (), "", "", {})
    return Prompt(example, token_ids, positions, image_index, patches, grids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "groups": 24, "n": 8, "tokens": 48, "prompt": 96, "side": 12, "vocab": 1024, "hidden": 128, "layers": 4,
        "head-dim": 32, "repeats": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()

    model_def = build_model(args)
    mesh = make_mesh(MeshConfig())
    params = model_def.init_params(0)
    bucket = -(-args.prompt // 32) * 32
    rollout = RolloutConfig(
        concurrent_responses=args.groups * args.n,
        prompt_buckets=(bucket,),
        patch_buckets=(args.side**2,),
    )
    prompts = [build_prompt(number, args, model_def.config.vision.patch_elements) for number in range(args.groups)]
    print(
        f"{jax.default_backend()} x {jax.device_count()}, {model_def.num_params() / 1e6:.2f} M parameters, "
        f"{args.groups} groups x {args.n} samples x {args.tokens} tokens, prompts of {args.prompt} tokens, {args.dtype}"
    )
    print(f"{'sampling':12} {'first s':>8} {'call s':>8} {'steps':>6} {'ms/step':>8} {'tokens/s':>9}")
    engine = Engine(model_def, rollout, mesh, stop_ids=[])
    for name, sampling in {
        "temperature": SamplingConfig(),
        "greedy": SamplingConfig(temperature=0.0),
        "top-p 0.9": SamplingConfig(top_p=0.9),
    }.items():
        times, best = [], None
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            for _ in engine.generate(
                params, prompts, n=args.n, sampling=sampling, seed=0, step=0, max_new_tokens=args.tokens
            ):
                pass
            times.append(time.perf_counter() - start)
            if best is None or times[-1] <= min(times):
                best = engine.stats
        assert best is not None
        print(
            f"{name:12} {times[0]:8.2f} {min(times[1:]):8.3f} {best.decode_steps:6} "
            f"{best.seconds / max(best.decode_steps, 1) * 1e3:8.2f} {best.tokens_per_s:9.0f}"
        )


if __name__ == "__main__":
    main()
