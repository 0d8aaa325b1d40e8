"""Small made-up groups, and a policy of a few parameters that reads packed rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    from vero_jax.data.geometry import mrope_positions

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
