"""Parameters read and written under Hugging Face's names: every tensor accounted for, read once, and no more of it
than the devices need."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from checkpoint_cases import assert_equal_tensors, assert_equal_trees, edit, new_params, rename, tensors, write
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, SingleDeviceSharding
from safetensors.numpy import load_file, save_file
from tiny_vl import FAMILIES, tiny_config

from vero_jax.checkpoints import placement, transfer
from vero_jax.checkpoints.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    disk_tensors,
    load_params,
    save_params,
    sources,
    stored_dtype,
    to_disk,
)
from vero_jax.config import MeshConfig
from vero_jax.errors import UserError
from vero_jax.models.layers import LoRA
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh

TEXT = "model.language_model."


def message(folder: Path, model_def: ModelDef) -> str:
    with pytest.raises(UserError) as error:
        load_params(folder, model_def)
    return str(error.value)


def model(family: str = "qwen3_vl", tie: bool = True, **options: Any) -> ModelDef:
    return ModelDef(tiny_config(tie and family != "qwen3_vl_moe", family), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_a_round_trip_is_bit_for_bit(
    tmp_path: Path, family: str, tie: bool, param_dtype: str, max_shard_bytes: int
) -> None:
    model_def = model(family, tie, param_dtype=param_dtype)
    params = write(tmp_path, model_def, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / INDEX_FILE).exists() == (max_shard_bytes < 10**6)
    assert_equal_trees(load_params(tmp_path, model_def), params)
    assert stored_dtype(tmp_path).name == param_dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_any_size_give_the_same(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_def = model(family, tie=False)
    params = write(tmp_path / "large", model_def)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 400)
    write(tmp_path / "small", model_def)
    assert_equal_tensors(tensors(tmp_path / "large"), tensors(tmp_path / "small"))
    assert_equal_trees(load_params(tmp_path / "large", model_def), params)


def test_both_layouts_of_experts_are_read_and_written(tmp_path: Path) -> None:
    model_def = model("qwen3_vl_moe")
    params = write(tmp_path / "hub", model_def)
    write(tmp_path / "later", model_def, experts="transformers5")
    hub, later = tensors(tmp_path / "hub"), tensors(tmp_path / "later")
    names = [name for name in hub if ".experts." in name]
    assert len(names) == 2 * 3
    for name in hub:
        wanted = hub[name].swapaxes(1, 2) if name in names else hub[name]
        np.testing.assert_array_equal(later[name], wanted)
    gate_up = hub[TEXT + "layers.1.mlp.experts.gate_up_proj"]
    moe = params["language"]["sparse_layers"]["moe"]
    np.testing.assert_array_equal(gate_up[..., :9], moe["gate"][1])
    np.testing.assert_array_equal(gate_up[..., 9:], moe["up"][1])
    for folder in ("hub", "later"):
        assert_equal_trees(load_params(tmp_path / folder, model_def), params)


@pytest.mark.parametrize("ffn", [12, 24])  # twice the first, and the second, is the model's width
@pytest.mark.parametrize("experts", ["hub", "transformers5"])
def test_the_layout_of_experts_is_told_where_one_tensor_fits_both(tmp_path: Path, ffn: int, experts: Any) -> None:
    config = tiny_config(False, "qwen3_vl_moe")
    assert config.text.hidden_size == 24
    model_def = ModelDef(dataclasses.replace(config, text=dataclasses.replace(config.text, expert_ffn_size=ffn)))
    params = write(tmp_path, model_def, experts=experts)
    assert_equal_trees(load_params(tmp_path, model_def), params)


def test_dense_layers_among_sparse_ones_keep_their_place(tmp_path: Path) -> None:
    config = tiny_config(False, "qwen3_vl_moe")
    model_def = ModelDef(dataclasses.replace(config, text=dataclasses.replace(config.text, sparse_layers=(0, 2))))
    params = write(tmp_path, model_def)
    found = tensors(tmp_path)
    np.testing.assert_array_equal(
        found[TEXT + "layers.1.mlp.up_proj.weight"], params["language"]["layers"]["mlp"]["up"]["kernel"][0].T
    )
    np.testing.assert_array_equal(
        found[TEXT + "layers.2.mlp.gate.weight"],
        params["language"]["sparse_layers"]["moe"]["router"]["kernel"][1].T,
    )
    assert TEXT + "layers.1.mlp.gate.weight" not in found
    assert_equal_trees(load_params(tmp_path, model_def), params)


def test_the_index_lists_every_tensor_and_the_total_size(tmp_path: Path) -> None:
    model_def = model()
    write(tmp_path, model_def, max_shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 4 * model_def.num_params()
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)


def test_writing_again_leaves_nothing_of_the_old_weights(tmp_path: Path) -> None:
    model_def = model()
    write(tmp_path, model_def, max_shard_bytes=20_000)
    params = write(tmp_path, model_def)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [SINGLE_FILE]
    assert_equal_trees(load_params(tmp_path, model_def), params)


def test_what_is_stored_in_one_type_is_read_in_another(tmp_path: Path) -> None:
    params = write(tmp_path, model(param_dtype="bfloat16"))
    wide = load_params(tmp_path, model())
    assert_equal_trees(wide, jax.tree.map(lambda leaf: leaf.astype("float32"), params))
    save_params(tmp_path / "wide", model(), wide)
    assert_equal_trees(load_params(tmp_path / "wide", model(param_dtype="bfloat16")), params)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on_device", [False, True])
def test_parameters_load_onto_a_mesh_and_are_saved_from_it(
    tmp_path: Path, family: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_def = model(family, tie=False)
    params = write(tmp_path, model_def)
    shardings = model_def.shardings(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    if on_device:  # as on an accelerator
        monkeypatch.setattr(placement.jax, "default_backend", lambda: "gpu")
    placed = load_params(tmp_path, model_def, shardings)
    assert_equal_trees(placed, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings
    save_params(tmp_path / "again", model_def, placed)
    assert_equal_tensors(tensors(tmp_path), tensors(tmp_path / "again"))


class _HalfOfTheMesh(NamedSharding):
    """A sharding as one of two processes sees it: it holds the first half of the devices."""

    def addressable_devices_indices_map(self, global_shape: Any) -> Any:
        every = NamedSharding(self.mesh, self.spec).addressable_devices_indices_map(global_shape)
        return {device: index for device, index in every.items() if device.id < len(every) // 2}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_a_process_reads_only_what_its_devices_hold_and_that_once(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_def = model(family, tie=False)
    params = write(tmp_path, model_def)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    places = {
        path: _HalfOfTheMesh(sharding.mesh, sharding.spec)
        for path, sharding in flatten_dict(model_def.shardings(mesh)).items()
    }
    requested: list[tuple[int, int]] = []
    plain = Checkpoint.read_bytes

    def counting(self: Checkpoint, file: str, offset: int, into: memoryview) -> None:
        requested.append((offset, len(into)))
        plain(self, file, offset, into)

    monkeypatch.setattr(Checkpoint, "read_bytes", counting)
    leaves = flatten_dict(model_def.abstract_params())
    sink = placement.Placement(leaves, places)
    with Checkpoint(tmp_path) as checkpoint:
        transfer.read_into(checkpoint, sources(model_def), sink)
    held = sum(
        4 * int(np.prod([stop - start for start, stop in box])) for path in leaves for box in set(sink.wanted(path))
    )
    assert sum(count for _, count in requested) == held
    everything = 4 * model_def.num_params()
    assert 0.45 * everything < held < 0.75 * everything  # what no axis of the mesh divides is held by both
    ordered = sorted(requested)
    assert all(start + count <= after for (start, count), (after, _) in itertools.pairwise(ordered))
    for path, parts in sink._params.items():
        whole = np.asarray(flatten_dict(params)[path])
        for box, buffer in zip(parts.boxes, parts._buffers, strict=True):
            np.testing.assert_array_equal(buffer, whole[tuple(slice(*interval) for interval in box)])


def test_every_byte_is_read_once_without_shardings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_def = model()
    write(tmp_path, model_def)
    counts: list[int] = []
    plain = Checkpoint.read_bytes

    def counting(self: Checkpoint, file: str, offset: int, into: memoryview) -> None:
        counts.append(len(into))
        plain(self, file, offset, into)

    monkeypatch.setattr(Checkpoint, "read_bytes", counting)
    load_params(tmp_path, model_def)
    assert sum(counts) == 4 * model_def.num_params()


def test_parameters_on_the_cpu_lie_in_the_memory_they_were_read_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_def = model()
    write(tmp_path, model_def)
    addresses = []
    plain = placement.aligned_empty

    def noting(*args: Any) -> np.ndarray:
        buffer = plain(*args)
        addresses.append(buffer.ctypes.data)
        return buffer

    monkeypatch.setattr(placement, "aligned_empty", noting)
    here = SingleDeviceSharding(jax.devices()[0])
    params = load_params(tmp_path, model_def, jax.tree.map(lambda leaf: here, model_def.abstract_params()))
    assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)} == set(addresses)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("prefixes", [("model.language_model.", "model.visual."), ("model.", "visual.")])
def test_both_kinds_of_names_are_read(tmp_path: Path, family: str, prefixes: tuple[str, str]) -> None:
    model_def = model(family)
    params = write(tmp_path, model_def)
    hub = ("model.", "visual.") if family == "qwen2_5_vl" else ("model.language_model.", "model.visual.")
    assert {name.partition("layers.")[0] for name in tensors(tmp_path) if ".layers." in name} == {hub[0]}

    def change(name: str) -> str:
        if name.startswith(hub[1]):
            return prefixes[1] + name.removeprefix(hub[1])
        return prefixes[0] + name.removeprefix(hub[0])

    edit(tmp_path, rename(change))
    assert_equal_trees(load_params(tmp_path, model_def), params)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    model_def = model()
    write(tmp_path, model_def)
    name = TEXT + "norm.weight"
    edit(tmp_path, lambda found: found.update({"model.norm.weight": found[name].copy()}))
    assert f"holds {name} twice" in message(tmp_path, model_def)


def test_adapters_are_neither_read_nor_written(tmp_path: Path) -> None:
    adapted = model(lora=LoRA(2, 4.0, ("q", "down")))
    plain = dataclasses.replace(adapted, lora=None)
    save_params(tmp_path, adapted, new_params(adapted))
    found = load_params(tmp_path, adapted)
    assert jax.tree.structure(found) == jax.tree.structure(plain.abstract_params())
    assert set(disk_tensors(adapted)) == set(disk_tensors(plain)) == set(tensors(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_tensor_can_be_made_from_its_parameters(tmp_path: Path, family: str) -> None:
    model_def = model(family)
    flat = flatten_dict(write(tmp_path, model_def))
    found = tensors(tmp_path)
    for name, pieces in disk_tensors(model_def).items():
        np.testing.assert_array_equal(to_disk(flat, pieces), found[name])
        for path, source in pieces:
            layer = flat[path] if source.layer is None else flat[path][source.layer]
            np.testing.assert_array_equal(source.to_param(found[name]), layer)


def test_a_tied_head_may_be_written_twice_if_it_is_the_same(tmp_path: Path) -> None:
    model_def = model()
    params = write(tmp_path, model_def)
    embedding = TEXT + "embed_tokens.weight"
    edit(tmp_path, lambda found: found.update({"lm_head.weight": found[embedding].copy()}))
    assert_equal_trees(load_params(tmp_path, model_def), params)
    edit(tmp_path, lambda found: found.update({"lm_head.weight": found[embedding] + 1}))
    assert "tie_word_embeddings" in message(tmp_path, model_def)


def test_all_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    model_def = model()
    write(tmp_path, model_def)

    def change(found: dict[str, np.ndarray]) -> None:
        del found["model.visual.pos_embed.weight"]
        for layer in range(3):
            found[f"{TEXT}layers.{layer}.self_attn.qnorm.weight"] = found.pop(
                f"{TEXT}layers.{layer}.self_attn.q_norm.weight"
            )
            found[f"{TEXT}layers.{layer}.mlp.up_proj.weight"] = np.zeros((24, 40), np.float32)
        found["surplus"] = np.zeros(3, np.float32)
        found[f"{TEXT}layers.3.input_layernorm.weight"] = np.zeros(24, np.float32)

    edit(tmp_path, change)
    text = message(tmp_path, model_def)
    assert "\n" not in text and str(tmp_path) in text
    missing, unexpected, wrong = text.split("; it ")
    assert "lacks" in missing and "model.visual.pos_embed.weight" in missing
    assert TEXT + "layers.{0..2}.self_attn.q_norm.weight (3 tensors)" in missing
    near = "(nearest expected: " + TEXT + "layers.{0..2}.self_attn.q_norm.weight (3 tensors))"
    assert TEXT + "layers.{0..2}.self_attn.qnorm.weight (3 tensors) " + near in unexpected
    near = "(nearest expected: " + TEXT + "layers.{0..2}.input_layernorm.weight (3 tensors))"
    assert TEXT + "layers.3.input_layernorm.weight " + near in unexpected
    assert "surplus, which the model does not know" in unexpected
    assert TEXT + "layers.{0..2}.mlp.up_proj.weight (3 tensors) of shape [24, 40]" in wrong
    assert "config.json asks for [40, 24]" in wrong


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    model_def = model()
    write(tmp_path, model_def)

    def change(found: dict[str, np.ndarray]) -> None:
        for layer in range(3):
            name = f"{TEXT}layers.{layer}.mlp.up_proj.weight"
            found[name] = found[name].astype(np.int8)
            found[name + "_scale"] = np.zeros(1, np.float32)

    edit(tmp_path, change)
    text = message(tmp_path, model_def)
    assert "layers.{0..2}.mlp.up_proj.weight (3 tensors) stored as I8" in text
    assert "not quantised" in text


@pytest.mark.parametrize("damage", ["truncated", "longer", "rubbish", "empty", "holes"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    model_def = model()
    write(tmp_path, model_def)
    file = tmp_path / SINGLE_FILE
    whole = file.read_bytes()
    harm = {
        "truncated": whole[:-100],
        "longer": whole + b"0" * 100,
        "rubbish": b"\xff" * 64,
        "empty": b"",
        "holes": whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'),
    }
    assert harm[damage] != whole
    file.write_bytes(harm[damage])
    assert f"{SINGLE_FILE} is not a readable safetensors file" in message(tmp_path, model_def)


def test_a_pointer_instead_of_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4967215360\n"
    )
    assert "Git LFS pointer" in message(tmp_path, model())


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    write(tmp_path, model())
    with Checkpoint(tmp_path) as checkpoint:
        file = tmp_path / SINGLE_FILE
        file.write_bytes(file.read_bytes()[:-50])
        last = checkpoint.in_order(checkpoint.names)[-1]
        with pytest.raises(UserError, match="truncated"):
            checkpoint.read(last)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    model_def = model()
    assert "has neither" in message(tmp_path, model_def)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin" in message(tmp_path, model_def)
    write(tmp_path, model_def, max_shard_bytes=20_000)
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first.unlink()
    assert f"{first.name} is missing" in message(tmp_path, model_def)


def test_an_index_that_promises_too_much_or_is_broken_is_refused(tmp_path: Path) -> None:
    model_def = model()
    write(tmp_path, model_def, max_shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    files = sorted(index["weight_map"].values())
    for name, file, text in (
        ("model.other.weight", files[0], "lacks model.other.weight"),
        ("model.other.weight", "../secret.safetensors", "not a valid index"),
    ):
        (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {**index["weight_map"], name: file}}))
        assert text in message(tmp_path, model_def)
    (tmp_path / INDEX_FILE).write_text('{"weight_map": ')
    assert "not a valid index" in message(tmp_path, model_def)


def test_an_error_of_the_disk_while_writing_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, model())


def test_the_files_are_those_of_the_safetensors_package(tmp_path: Path) -> None:
    write(tmp_path, model(param_dtype="bfloat16"))
    found = tensors(tmp_path)
    save_file(found, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert_equal_tensors(found, load_file(tmp_path / "theirs.safetensors"))
    assert (tmp_path / SINGLE_FILE).stat().st_size - (tmp_path / "theirs.safetensors").stat().st_size in range(-64, 65)
