"""Activations in bfloat16: no further from the float32 answer than transformers' own bfloat16 run of the same model."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import Batch, batch_names, case_folders, load_case

from vero_jax.models.attention import shared_prefix_attention
from vero_jax.models.head import token_logprobs
from vero_jax.models.policy import ModelDef

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.golden_model, pytest.mark.parity]

FOLDERS = case_folders()
DENSE = [folder for folder in FOLDERS if load_case(folder).model_def.config.text.num_experts == 0]
SPARSE = [folder for folder in FOLDERS if folder not in DENSE]
CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


def ours(folder: Path, batch: Batch, param_dtype: str) -> np.ndarray:
    """Log-probability of each next token by the functions of the learner; garbage at padding."""
    case = load_case(folder)
    model_def = dataclasses.replace(case.model_def, dtype="bfloat16", param_dtype=param_dtype)
    return np.asarray(_run(model_def, jax.tree.map(lambda x: x.astype(param_dtype), case.params), batch_arrays(batch)))


def batch_arrays(batch: Batch) -> tuple[Any, ...]:
    return batch.token_ids, batch.positions, batch.mask, batch.image_index, batch.vision


@functools.partial(jax.jit, static_argnums=0)
def _run(model_def: ModelDef, params: Any, arrays: tuple[Any, ...]) -> jax.Array:
    ids, positions, mask, index, vision = arrays
    model = model_def.bind(params)
    features = None if vision is None else model.encode_images(vision)
    groups = mask.astype(jnp.int32)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return shared_prefix_attention(q, k, v, groups, jnp.zeros_like(groups), 512), None

    hidden, _ = model.decode(model.embed(ids, features, index), positions, attend, None, features, index)
    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    values, _ = token_logprobs(flat, model.head_weight(), ids[:, 1:].reshape(-1), temperature=1.0, block=4096)
    return values.reshape(ids.shape[0], -1)


@functools.cache
def reference(folder: Path) -> Any:
    model = getattr(transformers, CLASSES[load_case(folder).model_def.config.model_type]).from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True
    )
    if hasattr(model, "set_experts_implementation"):  # the grouped product wants sizes that these models do not have
        model.set_experts_implementation("eager")
    return model


def theirs(folder: Path, batch: Batch) -> np.ndarray:
    """The same by transformers; the positions are the recorded ones, as in our run."""
    inputs = {
        "input_ids": torch.from_numpy(batch.token_ids).long(),
        "attention_mask": torch.from_numpy(batch.mask).long(),
        "position_ids": torch.from_numpy(batch.positions).permute(2, 0, 1).long(),
        "use_cache": False,
    }
    for key in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        if key in batch.recorded:
            values = torch.from_numpy(batch.recorded[key])
            inputs[key] = values.long() if key.endswith("thw") else values
    with torch.no_grad():
        table = torch.log_softmax(reference(folder)(**inputs).logits.float(), dim=-1)
    return table[:, :-1].gather(-1, inputs["input_ids"][:, 1:, None])[..., 0].numpy()


@functools.cache
def distances(folder: Path, who: str) -> np.ndarray:
    """|difference from the recorded float32 values| of every token, for "transformers" or our type of parameters."""
    case, found = load_case(folder), []
    for name in batch_names(folder):
        if case.meta["batches"][name].get("pixels_from"):
            continue  # the same pictures and texts as in another batch
        batch = case.batch(name)
        values = theirs(folder, batch) if who == "transformers" else ours(folder, batch, who)
        found.append(np.abs(values - batch.recorded["logprobs"])[batch.mask[:, 1:] & batch.mask[:, :-1]])
    return np.concatenate(found)


@pytest.mark.slow
def test_float32_parameters_are_no_further_from_float32_than_transformers() -> None:
    """Over all cases; in one alone chance, and how a CPU multiplies, moves the ratio by a few hundredths."""
    means = np.array([[distances(folder, who).mean() for who in ("float32", "transformers")] for folder in DENSE])
    assert means[:, 0].sum() <= means[:, 1].sum()
    assert (means[:, 0] <= 1.05 * means[:, 1]).all()


def test_bfloat16_parameters_are_no_further_from_float32_than_transformers() -> None:
    """Over one case of each kind of model: the chance of one case alone is as large as the difference."""
    folders = [
        folder for folder in DENSE if folder.name in ("q25vl_video_tied", "q3vl_tied_gqa2", "q3vl_mha_gqa1_bf16")
    ]
    assert len(folders) == 3
    own, reference = (np.concatenate([distances(f, who) for f in folders]) for who in ("bfloat16", "transformers"))
    assert own.mean() <= reference.mean()


@pytest.mark.parametrize("folder", SPARSE, ids=[folder.name for folder in SPARSE])
def test_the_median_token_of_a_mixture_of_experts_is_no_further_from_float32(folder: Path) -> None:
    """Not the mean: a token whose last two experts are nearly equal may take the other one, here as there."""
    assert np.median(distances(folder, "float32")) <= np.median(distances(folder, "transformers"))
