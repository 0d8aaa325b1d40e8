"""What the rest of the package relies on: packing, padding, gradients, caches, types, and one compilation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import masked_attend
from tiny_vl import tiny_config, vision_inputs

from vero_jax.config import MeshConfig
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.models.vision import normalise_patches, pixel_table
from vero_jax.parallel.mesh import make_mesh
from vero_jax.parallel.sharding import row_sharding

CONFIG = tiny_config()
MODEL = ModelDef(CONFIG)


@pytest.fixture(scope="module")
def params() -> Any:
    return MODEL.init_params(0)


def encode(params: Any, vision: VisionInputs, model_def: ModelDef = MODEL) -> Any:
    return jax.jit(lambda params, vision: model_def.bind(params).encode_images(vision))(params, vision)


def loss(params: Any, vision: VisionInputs, image_index: Any, model_def: ModelDef = MODEL) -> jax.Array:
    """A number that depends on every hidden state, for two rows of twelve tokens."""
    model = model_def.bind(params)
    features = model.encode_images(vision)
    ids = jnp.arange(24).reshape(2, 12)
    positions = jnp.broadcast_to(jnp.arange(12)[None, :, None], (2, 12, 3))
    x = model.embed(ids, features, image_index)
    attend = masked_attend(np.ones((2, 12), bool))
    hidden, _ = model.decode(x, positions, attend, None, features, image_index)
    return jnp.sum(jnp.sin(hidden.astype(jnp.float32)))


value_and_grad = jax.jit(jax.value_and_grad(loss))
IMAGES = vision_inputs(CONFIG, [[(1, 4, 4)], [(1, 2, 4)]], patches=20)
PLACES = np.full((2, 12), -1, np.int32)
PLACES[0, 2:6], PLACES[1, 5:7] = np.arange(4), np.arange(2)


def test_pictures_packed_together_are_encoded_as_if_alone(params: Any) -> None:
    grids = [(1, 4, 6), (2, 2, 4), (1, 2, 2)]
    together = vision_inputs(CONFIG, [grids], patches=56)
    packed = encode(params, together)
    start = 0
    for frames, height, width in grids:
        for _ in range(frames):
            part = slice(start, start + height * width)
            alone = VisionInputs(
                together.patches[:, part],
                together.coords[:, part],
                together.sizes[:, part],
                np.ones((1, height * width), np.int32),
            )
            merged = slice(part.start // 4, part.stop // 4)
            features = encode(params, alone)
            np.testing.assert_allclose(packed.embeds[:, merged], features.embeds, atol=2e-5)
            np.testing.assert_allclose(packed.deepstack[:, :, merged], features.deepstack, atol=2e-5)
            start = part.stop


def test_one_compilation_serves_every_mixture_of_images(params: Any) -> None:
    traces = []

    @jax.jit
    def run(params: Any, vision: VisionInputs) -> Any:
        traces.append(1)
        return MODEL.bind(params).encode_images(vision)

    for grids in ([(1, 4, 4)], [(1, 2, 2), (1, 2, 4)], [(1, 2, 10)], []):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(params, vision_inputs(CONFIG, [grids], 20))))
    assert len(traces) == 1


def test_padding_has_no_influence_and_no_gradient(params: Any) -> None:
    value, gradients = value_and_grad(params, IMAGES, PLACES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    padding = (np.asarray(IMAGES.segments) == 0)[..., None]
    noise = np.random.default_rng(1).integers(0, 256, IMAGES.patches.shape, np.uint8)
    noisy = dataclasses.replace(IMAGES, patches=np.where(padding, noise, IMAGES.patches))
    again, other = value_and_grad(params, noisy, PLACES)
    assert float(value) == float(again)
    jax.tree.map(np.testing.assert_array_equal, gradients, other)


def test_text_alone_gives_the_vision_tower_a_gradient_of_zero(params: Any) -> None:
    nowhere = np.full_like(PLACES, -1)
    _, gradients = value_and_grad(params, IMAGES, nowhere)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients["vision"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["language"]))


def test_every_parameter_has_a_gradient(params: Any) -> None:
    _, gradients = value_and_grad(params, IMAGES, PLACES)
    without = [
        jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradients) if not np.any(g)
    ]
    # A constant added to all keys of a head moves no softmax.
    assert [path for path in without if not path.endswith("['k']['bias']")] == []


def test_recomputation_changes_no_number(params: Any) -> None:
    plain = value_and_grad(params, IMAGES, PLACES)
    again = ModelDef(CONFIG, remat="layers")
    recomputed = jax.jit(jax.value_and_grad(lambda *args: loss(*args, model_def=again)))(params, IMAGES, PLACES)

    def close(a: Any, b: Any) -> None:  # the compiler may fuse the two differently
        assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(a).max())

    jax.tree.map(close, plain, recomputed)


def test_bytes_are_looked_up_per_channel() -> None:
    vision = dataclasses.replace(CONFIG.vision, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6))
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, vision.patch_elements), np.uint8)
    values = np.asarray(normalise_patches(jnp.asarray(raw), vision)).reshape(2, 3, 3, -1)
    by_channel = raw.reshape(2, 3, 3, -1)
    for channel in range(3):
        expected = (by_channel[:, :, channel] / 255 - vision.image_mean[channel]) / vision.image_std[channel]
        np.testing.assert_allclose(values[:, :, channel], expected, atol=1e-6)
        np.testing.assert_array_equal(values[:, :, channel], pixel_table(vision)[channel][by_channel[:, :, channel]])


def test_attend_gets_the_slices_of_the_cache_and_its_output_is_stacked(params: Any) -> None:
    layers = CONFIG.text.num_layers
    cache = {"mark": jnp.arange(layers, dtype=jnp.float32)}

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return jnp.repeat(v, 2, axis=2), {"keys": k, "mark": cache["mark"] + 1}

    x = jnp.ones((2, 5, CONFIG.text.hidden_size))
    _, kept = MODEL.bind(params).decode(x, jnp.zeros((2, 5, 3), jnp.int32), attend, cache)
    assert kept["keys"].shape == (layers, 2, 5, CONFIG.text.num_kv_heads, CONFIG.text.head_dim)
    np.testing.assert_array_equal(kept["mark"], np.arange(layers) + 1)


def test_activations_have_the_chosen_type(params: Any) -> None:
    half = ModelDef(CONFIG, dtype="bfloat16")
    features = encode(params, IMAGES, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype("bfloat16")}
    hidden = jax.eval_shape(
        lambda params: half.bind(params).decode(
            half.bind(params).embed(jnp.zeros((2, 12), jnp.int32), features, jnp.asarray(PLACES)),
            jnp.zeros((2, 12, 3), jnp.int32),
            masked_attend(np.ones((2, 12), bool)),
            None,
            features,
            jnp.asarray(PLACES),
        )[0],
        params,
    )
    assert hidden.dtype == jnp.bfloat16
    close = np.asarray(features.embeds, np.float32) - np.asarray(encode(params, IMAGES).embeds)
    assert np.abs(close).max() < 0.1


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_has_a_name_for_each_axis(tie: bool) -> None:
    model_def = ModelDef(tiny_config(tie))
    axes = model_def.logical_axes()

    def check(leaf: Any, names: Any) -> None:
        assert isinstance(names, tuple)
        assert len(names) == len(leaf.shape)

    jax.tree.map(check, model_def.abstract_params(), axes)
    assert axes["language"]["embed"]["embedding"] == ("vocab", "embed")
    assert axes["language"]["layers"]["attn"]["k"]["kernel"] == ("layers", "embed", "kv_heads")
    assert ("head" in axes) is not tie


def test_new_parameters_depend_on_the_seed_alone() -> None:
    first, again, other = MODEL.init_params(1), MODEL.init_params(1), MODEL.init_params(2)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = ("language", "layers", "mlp", "up", "kernel")
    a, b = first, other
    for name in kernel:
        a, b = a[name], b[name]
    assert not np.array_equal(a, b)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), first) == jax.tree.map(
        lambda x: (x.shape, x.dtype), MODEL.abstract_params()
    )


def test_a_mesh_changes_no_number(params: Any) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))  # more ways than there are key-value heads
    shardings = MODEL.shardings(mesh)
    rows = row_sharding(mesh)
    spread = jax.jit(jax.value_and_grad(loss), in_shardings=(shardings, rows, rows), out_shardings=(None, shardings))
    value, gradients = spread(params, IMAGES, PLACES)
    expected, expected_gradients = value_and_grad(params, IMAGES, PLACES)
    assert abs(float(value) - float(expected)) <= 1e-4

    def close(a: Any, b: Any) -> None:
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * max(1.0, np.abs(np.asarray(b)).max())

    jax.tree.map(close, gradients, expected_gradients)
