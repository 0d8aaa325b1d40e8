"""A small policy and random prompts with pictures, and the plain way to compute what the engine computes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vero_jax.config import MeshConfig, RolloutConfig
from vero_jax.data.geometry import merged_counts, mrope_positions, patch_geometry
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine
from vero_jax.types import Example, Group, Prompt

IMAGE, VIDEO, STOP = 3, 4, 5
VOCAB = 61

CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_size=48,
        rope_theta=1e4,
        mrope_section=(2, 1, 1),
    ),
    vision=VisionConfig(
        depth=2,
        hidden_size=16,
        num_heads=2,
        ffn_size=24,
        out_hidden_size=32,
        num_positions=16,
        deepstack_layers=(0,),
        patch_size=4,
    ),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=1,
    vision_end_token_id=2,
    tie_word_embeddings=True,
)
MODEL = ModelDef(CONFIG)
ROLLOUT = RolloutConfig(
    concurrent_responses=12,
    prompt_buckets=(48,),
    patch_buckets=(64,),
    prompt_page=16,
    response_page=5,
    vocab_block=17,
    attention_block=16,
)


@functools.cache
def params() -> Any:
    """Random weights; the head's are of a size that makes distributions neither flat nor certain."""
    tree = MODEL.init_params(0)
    embedding = np.random.default_rng(0).normal(0, 0.4, (VOCAB, CONFIG.text.hidden_size))
    tree["language"]["embed"]["embedding"] = jnp.asarray(embedding, jnp.float32)
    return tree


def mesh(devices: int = 1, **sizes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(**sizes), jax.devices()[:devices])


@functools.cache
def engine(devices: int = 1, **sizes: int) -> Engine:
    return Engine(MODEL, ROLLOUT, mesh(devices, **sizes), stop_ids=[STOP], banned_ids=[1, 2, IMAGE, VIDEO])


def engine_with(**rollout: Any) -> Engine:
    """One with other settings, on one device."""
    settings = dataclasses.replace(ROLLOUT, **rollout)
    return Engine(MODEL, settings, mesh(), stop_ids=[STOP], banned_ids=[1, 2, IMAGE, VIDEO])


def make_prompt(seed: int, grids: list[tuple[int, int, int]] | None = None, text: int | None = None) -> Prompt:
    """A random prompt; by default with none, one or two small images."""
    rng = np.random.default_rng(seed)
    if grids is None:
        grids = [(1, 2 * int(h), 2 * int(w)) for h, w in rng.integers(1, 3, (rng.integers(0, 3), 2))]
    array = np.asarray(grids, np.int32).reshape(-1, 3)
    words = lambda: rng.integers(6, VOCAB, text or rng.integers(1, 6)).tolist()  # noqa: E731
    ids = words()
    for count in merged_counts(array):
        ids += [1] + [IMAGE] * int(count) + [2] + words()
    token_ids = np.asarray(ids, np.int32)
    positions, image_index = mrope_positions(token_ids, array, image_token_id=IMAGE, video_token_id=VIDEO)
    patches = rng.integers(0, 256, (int(array.prod(1).sum()), CONFIG.vision.patch_elements), dtype=np.uint8)
    return Prompt(
        example=Example(f"p{seed}", "chart_ocr", "s", (), (), "string_match", "", {}),
        token_ids=token_ids,
        positions=positions,
        image_index=image_index,
        patches=patches,
        grids=array,
    )


def plain_attend(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, None]:
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bthc,bshc->bhts", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores, -1), v), None


@functools.partial(jax.jit, static_argnums=0)
def _plain(
    model_def: ModelDef, weights: Any, vision: VisionInputs, tokens: Any, positions: Any, index: Any
) -> jax.Array:
    model = model_def.bind(weights)
    features = model.encode_images(vision)
    x = model.embed(tokens, features, index)
    hidden, _ = model.decode(x, positions, plain_attend, None, features, index)
    return hidden @ model.head_weight().T


def plain_logits(model_def: ModelDef, weights: Any, prompt: Prompt, response: np.ndarray) -> np.ndarray:
    """Logits of every response token, by one plain forward pass over the whole sequence (padded: one program)."""
    T, R, P = len(prompt.token_ids), len(response), len(prompt.patches)
    after = prompt.next_position + np.repeat(np.arange(R)[:, None], 3, axis=1)

    def padded(parts: tuple[np.ndarray, ...], size: int, fill: int = 0) -> np.ndarray:
        whole = np.concatenate(parts)
        return np.pad(whole, [(0, size - len(whole))] + [(0, 0)] * (whole.ndim - 1), constant_values=fill)[None]

    tokens = padded((prompt.token_ids, response), 128)
    positions = padded((prompt.positions, after.astype(np.int32)), 128)
    index = padded((prompt.image_index,), 128, -1)
    vision = VisionInputs(*(padded((x,), 128) for x in (prompt.patches, *patch_geometry(prompt.grids))))
    assert P <= 128
    return np.array(_plain(model_def, weights, vision, tokens, positions, index)[0, T - 1 : T + R - 1])


def plain_logprobs(prompt: Prompt, response: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    logits = plain_logits(MODEL, params(), prompt, response).astype(np.float64) / temperature
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(len(response)), response]


def same(a: Group, b: Group, exact: bool = True) -> None:
    """Asserts that two groups hold the same tokens, and the same log-probabilities (or nearly)."""
    assert a.prompt.example.id == b.prompt.example.id and len(a.responses) == len(b.responses)
    for x, y in zip(a.responses, b.responses, strict=True):
        np.testing.assert_array_equal(x.token_ids, y.token_ids)
        np.testing.assert_allclose(x.logprobs, y.logprobs, atol=0 if exact else 2e-5)
        assert x.stop_reason == y.stop_reason
