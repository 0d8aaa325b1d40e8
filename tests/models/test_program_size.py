"""The program does not grow with the number of layers, and no picture's geometry compiles it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from tiny_vl import tiny_config

from vero_jax.data.geometry import mrope_positions
from vero_jax.learning.programs import model_forward
from vero_jax.learning.rows import RowPlan, Rows
from vero_jax.models.config import ModelConfig
from vero_jax.models.layers import Remat
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.trace_guard import TraceGuard, UnexpectedTraceError
from vero_jax.types import Example, Group, Prompt, Response

SEEING = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl")
PATCHES = 64
RESPONSE = np.arange(5, 11, dtype=np.int32)
PICTURES = {
    "one picture": [[(1, 4, 6)], [(1, 2, 2)]],
    "another picture": [[(1, 6, 4)], [(1, 8, 8)]],
    "several pictures": [[(1, 4, 4), (1, 2, 6), (1, 6, 2)], [(1, 2, 4), (1, 2, 4)]],
    "a video": [[(3, 2, 4)], [(1, 4, 4)]],
    "text alone beside a picture": [[], [(1, 6, 6)]],
    "a wide picture": [[(1, 2, 30)], [(1, 30, 2)]],
}
"""Grids of the pictures of two rows."""


def with_depth(config: ModelConfig, layers: int, blocks: int) -> ModelConfig:
    text = dataclasses.replace(config.text, num_layers=layers)
    if text.sparse_layers:
        text = dataclasses.replace(text, sparse_layers=tuple(range(layers)))
    vision = dataclasses.replace(config.vision, depth=blocks)
    if vision.deepstack_layers:
        vision = dataclasses.replace(vision, deepstack_layers=(0, blocks - 1))
    if vision.window:
        vision = dataclasses.replace(vision, full_attention_layers=tuple(range(1, blocks, 2)))
    return dataclasses.replace(config, text=text, vision=vision)


def rows_of(config: ModelConfig, pictures: list[list[tuple[int, int, int]]]) -> Rows:
    """One prompt and one response in every row, all rows of the same shape."""
    groups = []
    for number, grids in enumerate(pictures):
        rng = np.random.default_rng(number)
        counts = [frames * height * width // 4 for frames, height, width in grids]
        words = [[7, 8]] + [[config.image_token_id] * count + [9] for count in counts]
        ids = np.asarray([token for part in words for token in part], np.int32)
        scales = np.ones(len(grids)) if config.vision.window else None
        packed = np.asarray(grids, np.int32).reshape(-1, 3)
        positions, index = mrope_positions(
            ids, packed, image_token_id=config.image_token_id, video_token_id=None, time_scales=scales
        )
        patches = rng.integers(0, 256, (4 * sum(counts), config.vision.patch_elements), np.uint8)
        example = Example("", "stem", "test", (), (), "", "", {})
        prompt = Prompt(example, ids, positions, index, patches, packed)
        groups.append(Group(prompt, (Response(RESPONSE, np.zeros(len(RESPONSE), np.float32), "stop"),)))
    plan = RowPlan(
        groups=tuple(groups),
        row_length=48,
        row_patches=PATCHES,
        rows_per_micro_batch=len(groups),
        contents=tuple(((number, (0,)),) for number in range(len(groups))),
        sequences=len(groups),
        tokens=len(groups) * len(RESPONSE),
        seen_sequences=len(groups),
        seen_tokens=len(groups) * len(RESPONSE),
        patch_layout=config.patch_layout,
        patch_kind=(config.vision.patch_elements, "uint8"),
    )
    return plan.micro_batch(0)[0]


def gradient(model_def: ModelDef, attention_block: int = 512) -> Callable[[Any, Rows], Any]:
    forward = model_forward(model_def, attention_block=attention_block, vocab_block=40)
    return jax.grad(lambda params, rows: -forward(params, rows)[0].mean())


def size(config: ModelConfig, attention_block: int, remat: Remat) -> tuple[int, int]:
    """Operations of the traced forward and backward pass, and matrix products of the lowered one.

    Those inside loops and branches count once. (Lines of the lowered program would count helpers of a few lines, which
    two loops share when their lengths happen to be the same.)
    """
    model_def = ModelDef(config, remat=remat)
    rows = rows_of(config, PICTURES["one picture"])
    traced = jax.jit(gradient(model_def, attention_block)).trace(model_def.abstract_params(), rows)
    return count(traced.jaxpr.jaxpr), traced.lower().as_text().count("stablehlo.dot_general")


def count(jaxpr: Jaxpr) -> int:
    inner = [
        getattr(part, "jaxpr", part)
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for part in (value if isinstance(value, tuple | list) else [value])
        if isinstance(part, ClosedJaxpr | Jaxpr)
    ]
    return len(jaxpr.eqns) + sum(map(count, inner))


@pytest.mark.parametrize(("attention_block", "remat"), [(512, "products"), (16, "layers")])
@pytest.mark.parametrize("family", SEEING)
def test_more_layers_or_blocks_make_the_same_program(family: str, attention_block: int, remat: Remat) -> None:
    config = tiny_config(family=family)
    depths = ((3, 3), (9, 3), (3, 9))
    sizes = {depth: size(with_depth(config, *depth), attention_block, remat) for depth in depths}
    assert min(sizes.values()) > (500, 50)
    assert len(set(sizes.values())) == 1, sizes


def test_which_blocks_deepstack_taps_does_not_change_the_program() -> None:
    config = with_depth(tiny_config(), 9, 9)
    sizes = set()
    for taps in ((0, 1), (3, 8), (7, 8)):
        vision = dataclasses.replace(config.vision, deepstack_layers=taps)
        sizes.add(size(dataclasses.replace(config, vision=vision), 512, "products"))
    assert len(sizes) == 1


@pytest.mark.parametrize("family", SEEING)
def test_every_mixture_of_pictures_in_a_bucket_runs_the_same_compiled_program(family: str) -> None:
    config = tiny_config(family=family)
    model_def = ModelDef(config)
    params = model_def.init_params(0)
    guard = TraceGuard()
    run = jax.jit(guard.watch("gradient", gradient(model_def)))
    run(params, rows_of(config, PICTURES["one picture"]))
    guard.freeze()
    for name, pictures in PICTURES.items():
        result = run(params, rows_of(config, pictures))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result)), name
    assert run._cache_size() == 1
    with pytest.raises(UnexpectedTraceError, match="gradient"):
        run(params, rows_of(config, PICTURES["one picture"][:1]))
