"""Speed of one forward and backward pass against transformers on torch, float32, on one CPU core. Prints a table.

    python benchmarks/bench_model.py [--rows 4] [--prompt 102] [--response 64] [--repeats 11] [--tie] [--core 0]

Both sides read the same random checkpoint and the same batch: rows of a prompt with one picture and a response. The
loss is the mean negative log-likelihood of the response tokens. Before anything is timed the losses and the gradients
of every tensor must agree to 1e-4 of its norm. Each side is a process of its own, held to the same core, and they take
turns. Figures are medians of CPU seconds: the wall clock counts whatever else the machine does. Positions are worked
out beforehand on both sides.

Paths: "learner" is the function that training differentiates (log-probabilities and entropies of the response tokens by
blocks of the vocabulary, computed again in the backward pass), "full logits" a plain softmax over all tokens' logits.
torch has both too: `logits_to_keep` leaves the prompt's logits out. Needs the extra `parity`.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# The sides import jax or torch in their own processes, after these are held to one core: both libraries count the
# cores once, and make as many threads.
import numpy as np

IMAGE, VIDEO, START, END = 3, 4, 1, 2
VOCAB, WIDTH, VISION_WIDTH, PATCH = 8192, 256, 128, 16
VARIANTS = (
    ("torch", "eager, full logits"),
    ("torch", "eager, logits_to_keep"),
    ("torch", "sdpa, full logits"),
    ("torch", "sdpa, logits_to_keep"),
    ("vero_jax", "learner"),
    ("vero_jax", "full logits"),
)
TOLERANCE = 1e-4
Run = Callable[[], tuple[float, dict[str, np.ndarray]]]
"""One pass: the loss and the gradients, in the layout of the checkpoint's tensors."""


@dataclasses.dataclass(frozen=True)
class Shape:
    rows: int
    prompt: int
    response: int
    side: int
    """Patches along a side of the picture."""

    @property
    def visual(self) -> int:
        return self.side**2 // 4


def hf_config(tie: bool) -> Any:
    """The policy that is measured, as transformers describes it."""
    from transformers import Qwen3VLConfig

    text = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 4,
        "hidden_size": VISION_WIDTH,
        "num_heads": 4,
        "intermediate_size": 384,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [1, 2],
        "patch_size": PATCH,
    }
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tie, **ids)


def draw(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Token ids 'rows T' and raw pixels 'rows P E'."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCAB, (shape.rows, shape.prompt + shape.response)).astype(np.int32)
    ids[:, 0], ids[:, 1 : 1 + shape.visual], ids[:, 1 + shape.visual] = START, IMAGE, END
    return ids, rng.integers(0, 256, (shape.rows, shape.side**2, 3 * 2 * PATCH**2), np.uint8)


def place(ids: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grids of the picture, rotary positions 'T 3' and visual token of each place of one row."""
    from vero_jax.data.geometry import mrope_positions

    grids = np.asarray([[1, shape.side, shape.side]], np.int32)
    return grids, *mrope_positions(ids, grids, image_token_id=IMAGE, video_token_id=VIDEO)


def torch_side(folder: str, shape: Shape) -> dict[str, Run]:
    """transformers' model; run first, it writes the checkpoint's weights anew (normal, variance 1 / inputs)."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    torch.set_num_threads(1)
    ids, pixels = draw(shape)
    places = [place(row, shape) for row in ids]
    # What the image processor would hand over: (u8 / 255 - 0.5) / 0.5.
    values = (pixels.reshape(-1, pixels.shape[-1]) * (1 / 255)).astype(np.float32)
    batch = {
        "input_ids": torch.from_numpy(ids).long(),
        "pixel_values": torch.from_numpy((values - np.float32(0.5)) / np.float32(0.5)),
        "image_grid_thw": torch.from_numpy(np.concatenate([grids for grids, _, _ in places])).long(),
        "position_ids": torch.from_numpy(np.stack([positions for _, positions, _ in places])).permute(2, 0, 1).long(),
        "use_cache": False,
    }
    targets = batch["input_ids"][:, shape.prompt :]

    def make(attention: str, keep: bool) -> Run:
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
        model.train()
        more = {"logits_to_keep": shape.response + 1} if keep else {}

        def run() -> tuple[float, dict[str, np.ndarray]]:
            model.zero_grad(set_to_none=True)
            scores = model(**batch, **more).logits[:, -shape.response - 1 : -1]
            loss = torch.nn.functional.cross_entropy(scores.reshape(-1, VOCAB), targets.reshape(-1))
            loss.backward()
            return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}

        return run

    return {
        f"{attention}, {logits}": make(attention, logits == "logits_to_keep")
        for attention in ("eager", "sdpa")
        for logits in ("full logits", "logits_to_keep")
    }


def our_side(folder: str, shape: Shape) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from vero_jax.checkpoints.weights import disk_tensors, load_params, to_disk
    from vero_jax.learning.programs import model_forward
    from vero_jax.learning.rows import RowPlan, Rows
    from vero_jax.models.attention import shared_prefix_attention
    from vero_jax.models.config import ModelConfig
    from vero_jax.models.policy import ModelDef
    from vero_jax.types import Example, Group, Prompt, Response

    model_def = ModelDef(ModelConfig.from_folder(folder))
    params = load_params(folder, model_def)
    ids, pixels = draw(shape)
    groups = []
    for row, patches in zip(ids, pixels, strict=True):
        grids, positions, index = place(row[: shape.prompt], shape)
        prompt = Prompt(
            Example("", "stem", "bench", (), (), "", "", {}), row[: shape.prompt], positions, index, patches, grids
        )
        answer = Response(row[shape.prompt :], np.zeros(shape.response, np.float32), "stop")
        groups.append(Group(prompt, (answer,)))
    plan = RowPlan(
        groups=tuple(groups),
        row_length=ids.shape[1],
        row_patches=pixels.shape[1],
        rows_per_micro_batch=shape.rows,
        contents=tuple(((number, (0,)),) for number in range(shape.rows)),
        sequences=shape.rows,
        tokens=shape.rows * shape.response,
        seen_sequences=shape.rows,
        seen_tokens=shape.rows * shape.response,
    )
    rows = jax.device_put(plan.micro_batch(0)[0])
    forward = model_forward(model_def)

    def learner(params: Any, rows: Rows) -> jax.Array:
        return -forward(params, rows)[0].sum() / rows.responses.mask.sum()

    def full_logits(params: Any, rows: Rows) -> jax.Array:
        model, tokens = model_def.bind(params), rows.tokens
        features = model.encode_images(rows.vision)
        x = model.embed(tokens.token_ids, features, tokens.image_index)

        def attend(q: Any, k: Any, v: Any, _: Any) -> tuple[jax.Array, None]:
            return shared_prefix_attention(q, k, v, tokens.groups, tokens.branches, 512), None

        hidden, _ = model.decode(x, tokens.positions, attend, None, features, tokens.image_index)
        scores = jnp.einsum("btd,vd->btv", hidden, model.head_weight())[:, -shape.response - 1 : -1]
        logprobs = jax.nn.log_softmax(scores, axis=-1)
        return -jnp.take_along_axis(logprobs, rows.targets[..., None], axis=-1).mean()

    def make(loss: Callable[..., jax.Array]) -> Run:
        compiled = jax.jit(jax.value_and_grad(loss))

        def run() -> tuple[float, dict[str, np.ndarray]]:
            value, gradients = jax.block_until_ready(compiled(params, rows))
            return float(value), gradients

        return run

    def on_disk(run: Run) -> tuple[float, dict[str, np.ndarray]]:
        value, gradients = run()
        flat = flatten_dict(gradients)
        return value, {name: to_disk(flat, pieces) for name, pieces in disk_tensors(model_def).items()}

    sides = {"learner": make(learner), "full logits": make(full_logits)}
    return sides | {f"check {name}": lambda run=run: on_disk(run) for name, run in sides.items()}


def worker(pipe: Connection, side: str, folder: str, shape: Shape, core: int) -> None:
    """Answers ("check", name) with the loss and gradients, and ("time", name) with the seconds of one pass."""
    os.sched_setaffinity(0, {core})
    runs = (torch_side if side == "torch" else our_side)(folder, shape)
    pipe.send(len(os.listdir("/proc/self/task")))
    while (order := pipe.recv()) is not None:
        what, name = order
        if what == "check":
            pipe.send(runs.get(f"check {name}", runs[name])())
            continue
        start = time.process_time()
        runs[name]()
        pipe.send(time.process_time() - start)


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, str]:
    """Of all tensors' gradients, in norms; a gradient that is 0 in exact arithmetic counts against the largest norm."""
    if set(ours) - {"lm_head.weight"} != set(theirs) - {"lm_head.weight"}:
        raise SystemExit(f"the two sides name different tensors: {sorted(set(ours) ^ set(theirs))[:4]}")
    floor = 1e-3 * max(np.linalg.norm(gradient) for gradient in theirs.values())
    found = []
    for name in set(ours) & set(theirs):
        norm = max(float(np.linalg.norm(theirs[name])), floor)
        found.append((float(np.linalg.norm(ours[name] - theirs[name])) / norm, name))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rows": 4, "prompt": 102, "response": 64, "side": 14, "repeats": 11, "core": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tie", action="store_true", help="the output head is the table of token embeddings")
    args = parser.parse_args()
    shape = Shape(args.rows, args.prompt, args.response, args.side)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        writer = context.Process(target=write_checkpoint, args=(folder, args.tie))
        writer.start()
        writer.join()
        pipes, workers = {}, []
        for side in ("torch", "vero_jax"):
            pipes[side], far = context.Pipe()
            workers.append(context.Process(target=worker, args=(far, side, folder, shape, args.core), daemon=True))
            workers[-1].start()
            pipes[side].recv()
        compare(pipes, args)
        for pipe, process in zip(pipes.values(), workers, strict=True):
            pipe.send(None)
            process.join()


def write_checkpoint(folder: str, tie: bool) -> None:
    """Normal weights of variance 1 / inputs, norms around 1, biases around 0: every tensor has a gradient."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration(hf_config(tie))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(("norm" in name and name.endswith("weight")) + 0.1 * noise)
            else:
                p.copy_(noise * (p[0].numel() ** -0.5))
    model.save_pretrained(folder)


def compare(pipes: dict[str, Connection], args: argparse.Namespace) -> None:
    def ask(side: str, what: str, name: str) -> Any:
        pipes[side].send((what, name))
        return pipes[side].recv()

    loss, gradients = ask("torch", "check", VARIANTS[0][1])
    for side, name in VARIANTS:
        value, own = ask(side, "check", name)
        worst, where = largest_difference(own, gradients)
        print(f"{side + ' ' + name:32} loss {value:.6f}, largest difference of a gradient {worst:.1e} ({where})")
        if abs(value - loss) > TOLERANCE * loss or worst > TOLERANCE:
            raise SystemExit("the two sides do not compute the same; nothing was timed")
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in VARIANTS}
    for repeat in range(args.repeats + 2):
        for side, name in VARIANTS:
            seconds = ask(side, "time", name)
            if repeat >= 2:
                times[side, name].append(seconds)
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    best = {
        logits: min(medians[variant] for variant in VARIANTS if variant[0] == "torch" and variant[1].endswith(logits))
        for logits in ("full logits", "logits_to_keep")
    }
    print(
        f"\n{args.rows} rows of {args.prompt} + {args.response} tokens, one picture of {args.side**2} patches each, "
        f"{'tied' if args.tie else 'untied'} head, float32, one core, medians of {args.repeats}"
    )
    print(f"{'':32} {'ms':>8} {'fastest':>8} {'torch full / this':>18} {'torch keep / this':>18}")
    for variant in VARIANTS:
        middle = medians[variant]
        ratios = "".join(f"{best[logits] / middle:19.2f}" for logits in ("full logits", "logits_to_keep"))
        print(f"{' '.join(variant):32} {middle * 1e3:8.1f} {min(times[variant]) * 1e3:8.1f}{ratios}")


if __name__ == "__main__":
    main()
