"""Small made-up groups, and small policies that read packed rows."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vero_jax.data.geometry import mrope_positions
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.policy import ModelDef
from vero_jax.types import Example, Group, Prompt, Response, Score


def make_group(
    responses: Sequence[Sequence[int]],
    *,
    prompt: Sequence[int] = (5, 6, 7),
    grids: Sequence[tuple[int, int, int]] = (),
    image_token: int = 99,
    scores: Sequence[float | Score] = (),
    advantages: Sequence[float] | None = None,
    stop_reasons: Sequence[str] = (),
    domain: str = "stem",
    seed: int = 0,
) -> Group:
    """A group from bare token ids. `prompt` must hold the placeholders that `grids` call for."""
    rng = np.random.default_rng(seed)
    grid_array = np.array(grids, np.int32).reshape(-1, 3)
    ids = np.array(prompt, np.int32)
    positions, image_index = mrope_positions(ids, grid_array, image_token_id=image_token)
    example = Example(f"q{seed}", domain, "src", (), (), "exact", "", {})
    patches = rng.integers(0, 256, (int(grid_array.prod(axis=1).sum()), 1536), dtype=np.uint8)
    stops = list(stop_reasons) or ["stop"] * len(responses)
    return Group(
        prompt=Prompt(example, ids, positions, image_index, patches, grid_array),
        responses=tuple(
            Response(np.array(r, np.int32), rng.normal(-1, 0.3, len(r)).astype(np.float32), stop)
            for r, stop in zip(responses, stops, strict=True)
        ),
        scores=tuple(s if isinstance(s, Score) else Score(s, s, 1.0) for s in scores),
        advantages=None if advantages is None else np.array(advantages, np.float32),
    )


def table_policy(params, rows):
    """logits = tanh(E[ids]) W + b: the policy of the recorded update steps. It looks at one token only."""
    hidden = jnp.tanh(params["E"][rows.tokens.token_ids])
    predicting = jax.vmap(lambda h, index: h[index])(hidden, rows.sources)
    logp = jax.nn.log_softmax(predicting @ params["W"] + params["b"])
    chosen = jnp.take_along_axis(logp, rows.targets[..., None], axis=-1)[..., 0]
    return chosen, -(jnp.exp(logp) * logp).sum(-1)


IMAGE_TOKEN = 99


def tiny_model() -> ModelDef:
    """A Qwen3-VL of two layers with every part of the real one."""
    return ModelDef(
        ModelConfig(
            text=TextConfig(128, 32, 2, 4, 2, 8, 48, 1e4, (2, 1, 1)),
            vision=VisionConfig(2, 32, 2, 48, 32, 16, (0,)),
            image_token_id=IMAGE_TOKEN,
            video_token_id=98,
            vision_start_token_id=97,
            vision_end_token_id=96,
            tie_word_embeddings=True,
        )
    )


def random_groups(count: int = 7, n: int = 4, *, seed: int = 0, longest: int = 20, images: bool = True) -> list[Group]:
    """Groups of different lengths, some with one or two images, with advantages that are sometimes zero."""
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(count):
        text = rng.integers(1, 90, int(rng.integers(3, 12))).tolist()
        grids = [(1, 4, 4), (1, 2, 4)][: g % 3] if images else []
        prompt = list(text)
        for frames, height, width in grids:
            prompt += [97, *[IMAGE_TOKEN] * (frames * height * width // 4), 96]
        prompt += rng.integers(1, 90, 3).tolist()
        responses = [rng.integers(1, 90, int(rng.integers(1, longest))).tolist() for _ in range(n)]
        advantages = rng.normal(size=n) if g % 4 != 3 else np.zeros(n)
        groups.append(
            make_group(
                responses, prompt=prompt, grids=grids, image_token=IMAGE_TOKEN, advantages=advantages, seed=100 + g
            )
        )
    return groups
