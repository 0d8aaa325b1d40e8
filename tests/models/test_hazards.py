"""The mistakes that ports of these models make: each, put in on purpose, must be seen by the parity tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_cases import Batch, Case, case_folders, load_case, outputs, run_model

from vero_jax.models import language, layers, moe, rope, vision
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef

pytestmark = pytest.mark.golden_model

original_rotary = rope.patch_rotary
original_deepstack = language.add_deepstack
original_sources = vision.position_sources
original_route = moe.route


def first_case(family: str, kind: str) -> Path:
    """The first recorded case of a family whose batch "left" holds images, or a video; with grouped query heads."""
    pixels = {"image": "left.pixel_values", "video": "left.pixel_values_videos"}[kind]
    for folder in case_folders():
        raw = json.loads((folder / "config.json").read_text())
        text = raw.get("text_config", raw)
        grouped = kind == "video" or text["num_key_value_heads"] < text["num_attention_heads"]
        if raw["model_type"] == family and grouped and pixels in np.load(folder / "io.npz").files:
            return folder
    pytest.skip(f"no recorded case of {family} with a {kind}")


@dataclasses.dataclass
class Trial:
    """What a mistake may change before the model runs."""

    patch: pytest.MonkeyPatch
    case: Case
    batch: Batch
    params: Any
    config: ModelConfig

    def swap(self, place: Any, name: str, wrong: Callable[..., Any]) -> None:
        self.patch.setattr(place, name, wrong)

    def change(self, **values: Any) -> None:
        self.batch = dataclasses.replace(self.batch, **values)

    def change_vision(self, **values: Any) -> None:
        assert self.batch.vision is not None
        self.change(vision=dataclasses.replace(self.batch.vision, **values))

    def change_text(self, **values: Any) -> None:
        self.config = dataclasses.replace(self.config, text=dataclasses.replace(self.config.text, **values))

    def change_tower(self, **values: Any) -> None:
        assert self.config.vision is not None
        self.config = dataclasses.replace(self.config, vision=dataclasses.replace(self.config.vision, **values))

    def change_params(self, change: Callable[[tuple[str, ...], jax.Array], Any]) -> None:
        flat = flatten_dict(self.params)
        self.params = unflatten_dict({path: change(path, leaf) for path, leaf in flat.items()})

    def frames(self) -> np.ndarray:
        """Patches as (row, patch, channel, frame, pixel)."""
        tower = self.config.vision
        assert tower is not None and self.batch.vision is not None
        patches = np.asarray(self.batch.vision.patches)
        return patches.reshape(*patches.shape[:2], tower.in_channels, tower.temporal_patch_size, -1)


# --- mistakes of the language model


def other_axes(trial: Trial) -> None:
    name = "interleaved_axes" if trial.config.text.mrope_interleaved else "chunked_axes"
    trial.swap(rope, name, rope.chunked_axes if name == "interleaved_axes" else rope.interleaved_axes)


def text_positions_everywhere(trial: Trial) -> None:
    plain = np.cumsum(trial.batch.mask, axis=1) - 1
    trial.change(positions=np.repeat(plain[..., None], 3, axis=-1))


def time_axis_only(trial: Trial) -> None:
    trial.change(positions=trial.batch.positions[..., [0, 0, 0]])


def height_and_width_swapped(trial: Trial) -> None:
    trial.change(positions=trial.batch.positions[..., [0, 2, 1]])


def text_after_images_counts_their_tokens(trial: Trial) -> None:
    """A picture advances the text behind it by its tokens, not by its longer side."""
    positions = np.array(trial.batch.positions)
    for row, index in enumerate(trial.batch.image_index):
        visual = index >= 0
        spans = np.flatnonzero(np.diff(np.concatenate([[0], visual.astype(int), [0]])))
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            if end < len(index):
                positions[row, end:] += end - (positions[row, end, 0] - positions[row, start].min() + start)
    trial.change(positions=positions)


def other_sections(trial: Trial) -> None:
    half = trial.config.text.head_dim // 2
    trial.change_text(mrope_section=(half - 2, 1, 1))


def another_theta(trial: Trial) -> None:
    trial.change_text(rope_theta=10_000.0)


def rotate_then_norm(norm: Any, x: Any, cos: Any, sin: Any) -> Any:
    return norm(rope.rotate(x, cos, sin))


def rms_norm_other_eps(self: Any, x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 10 * self.eps) * self.scale[...]


def heads_tiled(trial: Trial) -> None:
    """Key-value head j serves query heads j, j + K, ... instead of neighbouring ones."""
    text = trial.config.text

    def tile(path: tuple[str, ...], leaf: jax.Array) -> Any:
        if path[0] == "language" and path[-3:-1] == ("attn", "q"):
            shape = (*leaf.shape[:-1], text.num_kv_heads, -1, text.head_dim)
            return leaf.reshape(shape).swapaxes(-3, -2).reshape(leaf.shape)
        return leaf

    trial.change_params(tile)


def padding_seen(trial: Trial) -> None:
    trial.change(mask=np.ones_like(trial.batch.mask))


def qkv_bias_dropped(trial: Trial) -> None:
    trial.change_params(lambda path, leaf: 0 * leaf if path[0] == "language" and path[-1] == "bias" else leaf)


# --- DeepStack


def taps(change: Callable[[Any], Any]) -> Callable[[Trial], None]:
    def mistake(trial: Trial) -> None:
        trial.swap(language, "add_deepstack", lambda x, taps, *rest: original_deepstack(x, change(taps), *rest))

    return mistake


# --- mistakes of the vision tower


def corners_not_aligned(coords: Any, sizes: Any, side: int) -> Any:
    return jnp.clip((coords + 0.5) * side / jnp.maximum(sizes, 1) - 0.5, 0, side - 1)


def layer_norm_other_eps(self: Any, x: Any) -> Any:
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 10 * self.eps) * self.scale[...] + self.bias[...]


def attention_across_pictures(trial: Trial) -> None:
    visual = trial.batch.vision
    assert visual is not None
    trial.change_vision(segments=np.minimum(visual.segments, 1))


def raster_coords(trial: Trial) -> None:
    """Coordinates of patches in raster order, though the patches come in blocks."""
    visual = trial.batch.vision
    assert visual is not None
    coords = np.array(visual.coords)
    for row, segments in enumerate(visual.segments):
        for segment in set(segments.tolist()) - {0}:
            here = segments == segment
            height, width = visual.sizes[row][here][0]
            coords[row, here] = np.stack(np.unravel_index(np.arange(height * width), (height, width)), axis=-1)
    trial.change_vision(coords=coords)


def rotary_swapped(trial: Trial) -> None:
    trial.swap(vision, "patch_rotary", lambda coords, head_dim: original_rotary(coords[..., ::-1], head_dim))


def first_frame_only(trial: Trial) -> None:
    patches = trial.frames().copy()
    patches[:, :, :, 1:] = 0
    trial.change_vision(patches=patches.reshape(*patches.shape[:2], -1))


def frames_swapped(trial: Trial) -> None:
    patches = trial.frames()[:, :, :, ::-1]
    trial.change_vision(patches=patches.reshape(*patches.shape[:2], -1))


def pixels_transposed(trial: Trial) -> None:
    tower, patches = trial.config.vision, trial.frames()
    assert tower is not None
    side = (*patches.shape[:4], tower.patch_size, tower.patch_size)
    trial.change_vision(patches=patches.reshape(side).swapaxes(-1, -2).reshape(*patches.shape[:2], -1))


def no_windows(trial: Trial) -> None:
    trial.change_tower(full_attention_layers=tuple(range(trial.config.vision.depth)))  # type: ignore[union-attr]


def windows_everywhere(trial: Trial) -> None:
    trial.change_tower(full_attention_layers=())


def windows_cut_from_raster_runs(trial: Trial) -> None:
    """Windows of the right sizes, but of patches that follow each other row by row."""
    visual = trial.batch.vision
    assert visual is not None and visual.windows is not None
    labels = np.array(visual.windows)
    for row, segments in enumerate(visual.segments):
        for segment in set(segments.tolist()) - {0}:
            here = np.flatnonzero(segments == segment)
            order = np.lexsort((visual.coords[row, here, 1] // 2, visual.coords[row, here, 0] // 2))
            labels[row, here[order]] = labels[row, here]
    trial.change_vision(windows=labels)


# --- mistakes of the mixture of experts


def weights_not_renormalised(logits: Any, count: int) -> Any:
    return jax.lax.top_k(jax.nn.softmax(logits, axis=-1), count)


def weights_of_neighbouring_expert(logits: Any, count: int) -> Any:
    weights, chosen = original_route(logits, count)
    return jnp.roll(weights, 1, axis=-1), chosen


def gate_and_up_swapped(trial: Trial) -> None:
    flat = flatten_dict(trial.params)
    place = ("language", "sparse_layers", "moe")
    flat[(*place, "gate")], flat[(*place, "up")] = flat[(*place, "up")], flat[(*place, "gate")]
    trial.params = unflatten_dict(flat)


def gate_and_up_interleaved(trial: Trial) -> None:
    flat = flatten_dict(trial.params)
    place = ("language", "sparse_layers", "moe")
    both = jnp.concatenate([flat[(*place, "gate")], flat[(*place, "up")]], axis=-1)
    flat[(*place, "gate")], flat[(*place, "up")] = both[..., ::2], both[..., 1::2]
    trial.params = unflatten_dict(flat)


def function(place: Any, name: str, wrong: Callable[..., Any]) -> Callable[[Trial], None]:
    return lambda trial: trial.swap(place, name, wrong)


ANYWHERE: dict[str, Callable[[Trial], None]] = {
    "the other order of rotary axes": other_axes,
    "text positions everywhere": text_positions_everywhere,
    "all axes read the time position": time_axis_only,
    "height and width swapped in the positions": height_and_width_swapped,
    "text after a picture counts its tokens": text_after_images_counts_their_tokens,
    "rotary theta of another model": another_theta,
    "RMSNorm epsilon 1e-5": function(layers.RMSNorm, "__call__", rms_norm_other_eps),
    "left padding not masked": padding_seen,
    "tanh GELU in the mergers": function(vision, "merger_gelu", lambda x: jax.nn.gelu(x, approximate=True)),
    "attention across pictures": attention_across_pictures,
    "patch coordinates in raster order": raster_coords,
    "rows and columns swapped in the patch rotary": rotary_swapped,
    "first frame of the patch only": first_frame_only,
    "rows and columns of a patch's pixels swapped": pixels_transposed,
}
QWEN3: dict[str, Callable[[Trial], None]] = {
    "mrope_section of another model": other_sections,
    "query and key normed after rotation": function(language, "qk_norm_then_rotate", rotate_then_norm),
    "LayerNorm epsilon 1e-5": function(layers.LayerNorm, "__call__", layer_norm_other_eps),
    "erf GELU in the blocks": function(vision, "block_gelu", lambda x: jax.nn.gelu(x, approximate=False)),
    "position table read without aligned corners": function(vision, "position_sources", corners_not_aligned),
    "position table read at the nearest entry": function(
        vision, "position_sources", lambda *args: jnp.round(original_sources(*args))
    ),
    "DeepStack dropped": taps(lambda taps: 0 * taps),
    "DeepStack reversed": taps(lambda taps: taps[::-1]),
    "DeepStack one layer early": taps(lambda taps: jnp.roll(taps, -1, axis=0)),
    "DeepStack one layer late": taps(lambda taps: jnp.roll(taps, 1, axis=0)),
    "DeepStack of the neighbouring row": taps(lambda taps: jnp.roll(taps, 1, axis=1)),
}
MISTAKES = {
    ("qwen3_vl", "image"): ANYWHERE | QWEN3 | {"query heads tiled over key heads": heads_tiled},
    ("qwen3_vl", "video"): {
        "attention across frames": attention_across_pictures,
        "frames of a patch swapped": frames_swapped,
    },
    ("qwen3_vl_moe", "image"): {
        "expert weights not renormalised": function(moe, "route", weights_not_renormalised),
        "expert weights given to the wrong expert": function(moe, "route", weights_of_neighbouring_expert),
        "gate and up swapped": gate_and_up_swapped,
        "gate and up interleaved": gate_and_up_interleaved,
    },
    ("qwen2_5_vl", "image"): ANYWHERE
    | {
        "no windows": no_windows,
        "windows in every block": windows_everywhere,
        "windows of raster runs": windows_cut_from_raster_runs,
        "biases of query, key and value dropped": qkv_bias_dropped,
        "query heads tiled over key heads": heads_tiled,
    },
    ("qwen2_5_vl", "video"): {
        "attention across frames": attention_across_pictures,
        "frames of a patch swapped": frames_swapped,
    },
}
CASES = [
    pytest.param(family, kind, mistake, id=f"{family}-{kind}-{mistake.replace(' ', '_')}")
    for (family, kind), mistakes in MISTAKES.items()
    for mistake in mistakes
]


def change_of_logits(folder: Path, patch: pytest.MonkeyPatch, mistake: Callable[[Trial], None] | None) -> float:
    """How far the logits of batch "left" move, in units of the parity tests' tolerance."""
    case = load_case(folder)
    right, batch = outputs(folder, "left")[0], case.batch("left")
    trial = Trial(patch, case, batch, case.params, case.model_def.config)
    if mistake is not None:
        mistake(trial)
    bind = ModelDef(trial.config).bind
    with jax.default_matmul_precision("highest"):
        wrong = np.asarray(jax.jit(lambda params: run_model(bind(params), trial.batch)[0])(trial.params))
    return float(np.abs(wrong - right)[batch.mask].max() / case.tolerance("left"))


@pytest.mark.parametrize(("family", "kind"), MISTAKES)
def test_nothing_changes_without_a_mistake(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert change_of_logits(first_case(family, kind), monkeypatch, None) < 0.5


@pytest.mark.parametrize(("family", "kind", "mistake"), CASES)
def test_parity_would_see(family: str, kind: str, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert change_of_logits(first_case(family, kind), monkeypatch, MISTAKES[family, kind][mistake]) > 1.0
