"""Reads recorded parity cases: a small checkpoint, what went in, and what Hugging Face's model answered."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conftest import golden_dir

from vero_jax.checkpoints.weights import load_params
from vero_jax.models.config import ModelConfig
from vero_jax.models.hf_config import SUPPORTED
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.models.qwen_vl import ImageFeatures, QwenVL


def case_folders() -> list[Path]:
    """The recorded cases whose model this package supports."""
    found = []
    for config in sorted(golden_dir("model").glob("*/config.json")):
        if json.loads(config.read_text())["model_type"] in SUPPORTED:
            found.append(config.parent)
    return found


def batch_names(folder: Path) -> list[str]:
    return list(json.loads((folder / "meta.json").read_text())["batches"])


@dataclasses.dataclass(frozen=True)
class Batch:
    """One recorded batch as the model takes it: rows of tokens, and each row's patches in a buffer of its own."""

    token_ids: np.ndarray  # B T
    positions: np.ndarray  # B T 3
    mask: np.ndarray  # B T, bool
    image_index: np.ndarray  # B T
    vision: VisionInputs | None
    recorded: dict[str, np.ndarray]


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = json.loads((folder / "meta.json").read_text())
        self.io = dict(np.load(folder / "io.npz"))
        self.model_def = ModelDef(ModelConfig.from_folder(folder))
        self.params = load_params(folder, self.model_def)

    def tolerance(self, batch: str) -> float:
        return max(1.5e-4, 3 * self.meta["f64_vs_f32_max"].get(batch, 0.0))

    def batch(self, name: str) -> Batch:
        prefix = name + "."
        recorded = {key.removeprefix(prefix): value for key, value in self.io.items() if key.startswith(prefix)}
        source = recorded
        # The same pictures in another batch are recorded once.
        if (
            pixels_from := self.meta["gen_pixels_from"]
            if name == "gen"
            else self.meta["batches"][name].get("pixels_from")
        ):
            prefix = pixels_from + "."
            source = {key.removeprefix(prefix): value for key, value in self.io.items() if key.startswith(prefix)}
        ids, mask = recorded["input_ids"], recorded["attention_mask"].astype(bool)
        index, vision = self._pack(ids, source)
        return Batch(ids, recorded["position_ids"].transpose(1, 2, 0), mask, index, vision, recorded)

    def _pack(self, ids: np.ndarray, source: dict[str, np.ndarray]) -> tuple[np.ndarray, VisionInputs | None]:
        """Each row's images, then its videos, in one buffer; tokens point into it."""
        config, layout = self.model_def.config, self.model_def.config.patch_layout
        index = np.full(ids.shape, -1, np.int32)
        rows: list[list[tuple[np.ndarray, ...]]] = [[] for _ in ids]
        for token, pixels, grids in (
            (config.image_token_id, "pixel_values", "image_grid_thw"),
            (config.video_token_id, "pixel_values_videos", "video_grid_thw"),
        ):
            if pixels not in source:
                continue
            values, left = source[pixels], list(source[grids])
            for row in range(len(ids)):
                places = np.flatnonzero(ids[row] == token)
                own: list[np.ndarray] = []
                while sum(np.prod(grid) for grid in own) < 4 * len(places):
                    own.append(left.pop(0))
                arranged = layout.arrange(np.asarray(own).reshape(-1, 3))
                before = sum(len(part[0]) for part in rows[row]) // 4
                index[row, places] = before + arranged.places
                offset = 1000 * len(rows[row])  # keeps the frames of images and videos apart
                labels = [arranged.segments + offset]
                if arranged.windows is not None:
                    labels.append(arranged.windows + offset)
                rows[row].append((values[arranged.order], arranged.coords, arranged.sizes, *labels))
                values = values[4 * len(places) :]
        if not any(rows):
            return index, None
        joined = [[np.concatenate(column) for column in zip(*row, strict=True)] for row in rows]
        longest = max(len(row[0]) for row in joined)
        # Four patches of padding more than anyone needs, so that padding is always there.
        padded = [
            np.stack(
                [np.pad(row[i], [(0, longest + 4 - len(row[i]))] + [(0, 0)] * (row[i].ndim - 1)) for row in joined]
            )
            for i in range(len(joined[0]))
        ]
        return index, VisionInputs(*padded)


@functools.cache
def load_case(folder: Path) -> Case:
    return Case(folder)


def masked_attend(mask: np.ndarray) -> Callable[..., tuple[jax.Array, None]]:
    """Plain causal attention over the real tokens, written as plainly as can be."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any) -> tuple[jax.Array, None]:
        repeats = q.shape[2] // k.shape[2]
        k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
        scores = jnp.einsum("bthc,bshc->bhts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        visible = jnp.tril(jnp.ones(scores.shape[-2:], bool)) & mask[:, None, None, :]
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
        return jnp.einsum("bhts,bshc->bthc", weights.astype(v.dtype), v), None

    return attend


def run_model(model: QwenVL, batch: Batch, token_ids: Any = None) -> tuple[jax.Array, ImageFeatures | None]:
    """Logits 'B T V' and the image features."""
    features = None if batch.vision is None else model.encode_images(batch.vision)
    index = jnp.asarray(batch.image_index)
    x = model.embed(jnp.asarray(batch.token_ids if token_ids is None else token_ids), features, index)
    hidden, _ = model.decode(x, jnp.asarray(batch.positions), masked_attend(batch.mask), None, features, index)
    return hidden @ model.head_weight().T, features


def logits(case: Case, batch: Batch, model_def: ModelDef | None = None) -> np.ndarray:
    """Compiled anew at every call, so that a test may exchange a function in between."""
    with jax.default_matmul_precision("highest"):
        bind = (model_def or case.model_def).bind
        return np.asarray(jax.jit(lambda params: run_model(bind(params), batch)[0])(case.params))


@functools.cache
def outputs(folder: Path, name: str) -> tuple[np.ndarray, ImageFeatures | None, np.ndarray | None]:
    """Logits, image features, and the vision tower's last hidden states, of one recorded batch."""
    case = load_case(folder)
    batch = case.batch(name)

    def run(params: Any) -> Any:
        model = case.model_def.bind(params)
        scores, features = run_model(model, batch)
        last = None if batch.vision is None else model.vision.run_blocks(batch.vision, jnp.dtype("float32"))[0]
        return scores, features, last

    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, jax.jit(run)(case.params))
