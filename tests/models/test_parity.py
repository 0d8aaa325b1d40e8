"""The model against recorded outputs of Hugging Face's, for every recorded checkpoint that is supported."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from golden_cases import Batch, batch_names, case_folders, load_case, masked_attend, outputs, run_model

from vero_jax.checkpoints.weights import disk_tensors, to_disk
from vero_jax.models.rope import text_rotary
from vero_jax.models.vision import normalise_patches

pytestmark = pytest.mark.golden_model

FOLDERS = case_folders()
BATCHES = [
    pytest.param(folder, batch, id=f"{folder.name}-{batch}") for folder in FOLDERS for batch in batch_names(folder)
]
IDS = [folder.name for folder in FOLDERS]


def logprobs_of(scores: np.ndarray, batch: Batch) -> np.ndarray:
    """Log-probability of each next token, 0 where either end is padding; as recorded."""
    table = np.asarray(jax.nn.log_softmax(jnp.asarray(scores), axis=-1))
    chosen = np.take_along_axis(table[:, :-1], batch.token_ids[:, 1:, None].astype(int), axis=-1)[..., 0]
    return np.where(batch.mask[:, :-1] & batch.mask[:, 1:], chosen, 0.0)


@pytest.mark.parametrize(("folder", "name"), BATCHES)
def test_logits_and_logprobs(folder: Any, name: str) -> None:
    case = load_case(folder)
    batch = case.batch(name)
    ours = outputs(folder, name)[0]
    assert np.isfinite(ours).all()
    if "logits" in batch.recorded:
        difference = np.abs(ours - batch.recorded["logits"])[batch.mask]
        assert difference.max() <= case.tolerance(name)
    np.testing.assert_allclose(logprobs_of(ours, batch), batch.recorded["logprobs"], atol=case.tolerance(name), rtol=0)


@pytest.mark.parametrize(("folder", "name"), BATCHES)
def test_image_features(folder: Any, name: str) -> None:
    case = load_case(folder)
    batch = case.batch(name)
    if batch.vision is None:
        pytest.skip("a batch of text")
    config = case.model_def.config
    _, features, last = outputs(folder, name)
    assert features is not None and last is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(features))
    for token, kind in ((config.image_token_id, "image"), (config.video_token_id, "video")):
        if f"{kind}_embeds" not in batch.recorded:
            continue
        row, column = np.nonzero(batch.token_ids == token)
        merged = batch.image_index[row, column]
        close(features.embeds[row, merged], batch.recorded[f"{kind}_embeds"])
        if config.vision.deepstack_layers:
            close(features.deepstack[:, row, merged], batch.recorded[f"{kind}_deepstack"])
        if config.vision.window:  # recorded in the order of the windows, which is that of the buffer
            merged = merged[np.lexsort((merged, row))]
        patches = (4 * merged[:, None] + np.arange(4)).reshape(-1)
        close(last[np.repeat(row, 4), patches], batch.recorded[f"{kind}_last_hidden"])


def close(ours: Any, recorded: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.shape == recorded.shape
    assert np.abs(np.asarray(ours) - recorded).max() <= tolerance * max(1.0, np.abs(recorded).max())


@pytest.mark.parametrize(
    ("folder", "name"),
    [p for p in BATCHES if f"{p.values[1]}.hidden_states" in np.load(p.values[0] / "io.npz").files],
)
def test_hidden_states_of_every_layer(folder: Any, name: str) -> None:
    case = load_case(folder)
    batch = case.batch(name)
    recorded = batch.recorded["hidden_states"]
    config = case.model_def.config.text

    def run(params: Any) -> list[jax.Array]:
        model = case.model_def.bind(params)
        features = None if batch.vision is None else model.encode_images(batch.vision)
        index = jnp.asarray(batch.image_index)
        x = model.embed(jnp.asarray(batch.token_ids), features, index)
        cos, sin = text_rotary(
            jnp.asarray(batch.positions),
            config.head_dim,
            config.rope_theta,
            config.mrope_section,
            interleaved=config.mrope_interleaved,
        )
        states = [x]
        for number in range(config.num_layers):
            sparse = config.is_sparse(number)
            graph, stacked = nnx.split(model.language.sparse_layers if sparse else model.language.layers)
            place = (config.sparse_layers if sparse else config.dense_layers).index(number)
            layer = nnx.merge(graph, jax.tree.map(lambda leaf, place=place: leaf[place], stacked))
            x, _ = layer(x, cos, sin, masked_attend(batch.mask), None)
            states.append(x)
            if features is not None and number < len(features.deepstack):
                rows = jnp.take_along_axis(features.deepstack[number], jnp.maximum(index, 0)[..., None], axis=1)
                x = x + jnp.where(index[..., None] >= 0, rows, 0)
        states[-1] = model.language.norm(x)
        return states

    with jax.default_matmul_precision("highest"):
        states = jax.jit(run)(case.params)
    for ours, theirs in zip(states, recorded, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_gradients(folder: Any) -> None:
    case = load_case(folder)
    recorded = case.meta["grad"]
    batch = case.batch(recorded["batch"])
    response = batch.recorded["response_mask"][:, 1:].astype(bool)

    def loss(params: Any) -> jax.Array:
        scores = run_model(case.model_def.bind(params), batch)[0][:, :-1]
        table = jax.nn.log_softmax(scores, axis=-1)
        chosen = jnp.take_along_axis(table, batch.token_ids[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(response, chosen, 0.0)) / response.sum()

    with jax.default_matmul_precision("highest"):
        value, gradients = jax.jit(jax.value_and_grad(loss))(case.params)
    assert abs(float(value) - recorded["loss"]) <= 1e-5 * recorded["loss"]
    flat = flatten_dict(gradients)
    tensors = disk_tensors(case.model_def)
    # Whether a tied head is listed under a second name is the recorder's matter.
    assert set(tensors) == set(recorded["params"]) - ({"lm_head.weight"} - set(tensors))
    for name, pieces in tensors.items():
        gradient = to_disk(flat, pieces).astype(np.float64).reshape(-1)
        norm, projection = recorded["params"][name]
        assert abs(np.linalg.norm(gradient) - norm) <= 1e-4 * norm, name
        wave = np.cos(0.7 * np.arange(gradient.size) + 0.3)
        assert abs(gradient @ wave - projection) <= 1e-4 * max(norm, abs(projection)), name


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_greedy_tokens_by_full_recomputation(folder: Any) -> None:
    case = load_case(folder)
    batch = case.batch("gen")
    wanted = batch.recorded["tokens"]
    rows, length, steps = *batch.token_ids.shape, wanted.shape[1]
    real = batch.mask.sum(axis=1, keepdims=True)
    later = real + np.arange(steps) + batch.recorded["rope_deltas"]
    batch = dataclasses.replace(
        batch,
        positions=np.concatenate([batch.positions, np.repeat(later[..., None], 3, axis=-1)], axis=1),
        mask=np.concatenate([batch.mask, np.ones((rows, steps), bool)], axis=1),
        image_index=np.concatenate([batch.image_index, np.full((rows, steps), -1, np.int32)], axis=1),
    )
    run = jax.jit(lambda params, ids: run_model(case.model_def.bind(params), batch, ids)[0])
    ids = np.concatenate([batch.token_ids, np.zeros((rows, steps), np.int32)], axis=1)
    for step in range(steps):
        scores = np.asarray(run(case.params, ids))[:, length + step - 1]
        ids[:, length + step] = scores.argmax(axis=-1)
        table = np.asarray(jax.nn.log_softmax(scores, axis=-1))
        np.testing.assert_allclose(table.max(axis=-1), batch.recorded["logprobs"][:, step], atol=1.5e-4)
    np.testing.assert_array_equal(ids[:, length:], wanted)


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_raw_pixels_are_normalised_bit_for_bit(folder: Any) -> None:
    case = load_case(folder)
    config = case.model_def.config.vision
    values = case.io.get("left.pixel_values")
    if values is None:
        pytest.skip("no images")
    per_channel = (len(values), config.in_channels, -1)
    mean, std = (np.asarray(x)[:, None] for x in (config.image_mean, config.image_std))
    raw = np.rint((values.reshape(per_channel) * std + mean) * 255).astype(np.uint8).reshape(1, *values.shape)
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: normalise_patches(x, config))(raw))[0], values)
