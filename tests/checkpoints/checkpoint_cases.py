"""Tiny checkpoints on disk, for tests of reading, writing and converting them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hf_configs import hf_config
from safetensors.numpy import load_file, save_file

from vero_jax.checkpoints.safetensors_io import SINGLE_FILE
from vero_jax.checkpoints.weights import save_params
from vero_jax.models.policy import ModelDef


@functools.cache
def new_params(model_def: ModelDef) -> dict[str, Any]:
    """Random in every parameter, norms and biases too, so that none can be taken for another."""
    leaves, tree = jax.tree.flatten(model_def.abstract_params())
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(tree, [jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


def write(folder: Path, model_def: ModelDef, **options: Any) -> dict[str, Any]:
    """A Hugging Face folder; returns its parameters."""
    params = new_params(model_def)
    save_params(folder, model_def, params, **options)
    (folder / "config.json").write_text(json.dumps(hf_config(model_def.config, model_def.param_dtype.name)))
    return params


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a Hugging Face folder, read by the safetensors package."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_equal_tensors(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        assert tensor.tobytes() == other[name].tobytes(), name


def assert_equal_trees(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Changes the tensors of a folder that has them in one file."""
    found = load_file(folder / SINGLE_FILE)
    change(found)
    save_file(found, folder / SINGLE_FILE, metadata={"format": "pt"})


def rename(change: Callable[[str], str]) -> Callable[[dict[str, np.ndarray]], None]:
    """An edit that gives every tensor another name."""

    def apply(found: dict[str, np.ndarray]) -> None:
        for name in list(found):
            found[change(name)] = found.pop(name)

    return apply
