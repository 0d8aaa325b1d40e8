"""The mistakes that ports of this model make: each, put in on purpose, must be seen by the parity tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import Batch, case_folders, load_case, logits, outputs

from vero_jax.models import language, layers, rope, vision
from vero_jax.models.policy import ModelDef

pytestmark = pytest.mark.golden_model

FOLDERS = case_folders()
original_rotary = rope.patch_rotary
original_deepstack = language.add_deepstack


def chunked_axes(section: Any, count: int) -> np.ndarray:
    return np.repeat(np.arange(3, dtype=np.int32), section)


def corners_not_aligned(coords: Any, sizes: Any, side: int) -> Any:
    return jnp.clip((coords + 0.5) * side / jnp.maximum(sizes, 1) - 0.5, 0, side - 1)


def rotate_then_norm(norm: Any, x: Any, cos: Any, sin: Any) -> Any:
    return norm(rope.rotate(x, cos, sin))


def rms_norm_other_eps(self: Any, x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 10 * self.eps) * self.scale[...]


def layer_norm_other_eps(self: Any, x: Any) -> Any:
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 10 * self.eps) * self.scale[...] + self.bias[...]


SWAPPED_FUNCTIONS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "chunked instead of interleaved rotary positions": (rope, "interleaved_axes", chunked_axes),
    "position table read without aligned corners": (vision, "position_sources", corners_not_aligned),
    "tanh GELU in the mergers": (vision, "merger_gelu", lambda x: jax.nn.gelu(x, approximate=True)),
    "erf GELU in the blocks": (vision, "block_gelu", lambda x: jax.nn.gelu(x, approximate=False)),
    "DeepStack dropped": (language, "add_deepstack", lambda x, taps, index, layer: x),
    "DeepStack reversed": (
        language,
        "add_deepstack",
        lambda x, taps, index, layer: original_deepstack(x, taps[::-1], index, layer),
    ),
    "DeepStack of the neighbouring row": (
        language,
        "add_deepstack",
        lambda x, taps, index, layer: original_deepstack(x, jnp.roll(taps, 1, axis=1), index, layer),
    ),
    "query and key normed after rotation": (language, "qk_norm_then_rotate", rotate_then_norm),
    "rows and columns swapped in the patch rotary": (
        vision,
        "patch_rotary",
        lambda coords, head_dim: original_rotary(coords[..., ::-1], head_dim),
    ),
    "RMSNorm epsilon 1e-5": (layers.RMSNorm, "__call__", rms_norm_other_eps),
    "LayerNorm epsilon 1e-5": (layers.LayerNorm, "__call__", layer_norm_other_eps),
}


def no_rotary_axes(batch: Batch) -> Batch:
    plain = np.cumsum(batch.mask, axis=1) - 1
    return dataclasses.replace(batch, positions=np.repeat(plain[..., None], 3, axis=-1))


def swapped_positions(batch: Batch) -> Batch:
    return dataclasses.replace(batch, positions=batch.positions[..., [0, 2, 1]])


def changed_vision(batch: Batch, **changes: Any) -> Batch:
    assert batch.vision is not None
    return dataclasses.replace(batch, vision=dataclasses.replace(batch.vision, **changes))


def one_segment(batch: Batch) -> Batch:
    return changed_vision(batch, segments=np.minimum(batch.vision.segments, 1))


def raster_coords(batch: Batch) -> Batch:
    """Coordinates of patches in raster order, though the patches come in merge-block order."""
    coords = np.array(batch.vision.coords)
    for row, segments in enumerate(batch.vision.segments):
        for segment in set(segments.tolist()) - {0}:
            here = segments == segment
            height, width = batch.vision.sizes[row][here][0]
            coords[row, here] = np.stack(np.unravel_index(np.arange(height * width), (height, width)), axis=-1)
    return changed_vision(batch, coords=coords)


def padding_seen(batch: Batch) -> Batch:
    return dataclasses.replace(batch, mask=np.ones_like(batch.mask))


CHANGED_INPUTS: dict[str, Callable[[Batch], Batch]] = {
    "text positions everywhere": no_rotary_axes,
    "height and width swapped in the positions": swapped_positions,
    "attention across images": one_segment,
    "patch coordinates in raster order": raster_coords,
    "left padding not masked": padding_seen,
}


def change_of_logits(mutate: Callable[[Batch], Batch] = lambda batch: batch) -> float:
    """How far the first recorded case moves, in units of its tolerance."""
    case = load_case(FOLDERS[0])
    batch = case.batch("left")
    right = outputs(FOLDERS[0], "left")[0]
    wrong = logits(case, mutate(batch), ModelDef(case.model_def.config))
    return float(np.abs(wrong - right)[batch.mask].max() / case.tolerance("left"))


def test_nothing_changes_without_a_mistake() -> None:
    assert change_of_logits() < 0.5


@pytest.mark.parametrize("mistake", SWAPPED_FUNCTIONS)
def test_parity_would_see(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs(FOLDERS[0], "left")  # computed before the mistake is made
    place, name, wrong = SWAPPED_FUNCTIONS[mistake]
    monkeypatch.setattr(place, name, wrong)
    assert change_of_logits() > 1.0


@pytest.mark.parametrize("mistake", CHANGED_INPUTS)
def test_parity_would_see_inputs(mistake: str) -> None:
    assert change_of_logits(CHANGED_INPUTS[mistake]) > 1.0
