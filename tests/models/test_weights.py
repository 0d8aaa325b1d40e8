"""Checkpoints: read and written under Hugging Face's names, every tensor accounted for."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from golden_cases import case_folders, load_case, logits
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file
from tiny_vl import tiny_config

from vero_jax import convert
from vero_jax.config import MeshConfig
from vero_jax.errors import UserError
from vero_jax.models.policy import ModelDef
from vero_jax.models.weights import INDEX_FILE, SINGLE_FILE, load_params, save_params, stored_dtype
from vero_jax.parallel.mesh import make_mesh


@functools.cache
def new_params(model_def: ModelDef) -> dict[str, Any]:
    return model_def.init_params(3)


def write(folder: Path, model_def: ModelDef, **options: Any) -> dict[str, Any]:
    params = new_params(model_def)
    save_params(folder, model_def, params, **options)
    (folder / "config.json").write_text(json.dumps(model_def.config.to_hf(model_def.param_dtype.name)))
    return params


def assert_equal_trees(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_a_round_trip_is_bit_for_bit(tmp_path: Path, tie: bool, param_dtype: str, max_shard_bytes: int) -> None:
    model_def = ModelDef(tiny_config(tie), param_dtype=param_dtype)
    params = write(tmp_path, model_def, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / INDEX_FILE).exists() == (max_shard_bytes < 10**6)
    assert_equal_trees(load_params(tmp_path, model_def), params)
    assert stored_dtype(tmp_path).name == param_dtype


def test_the_index_lists_every_tensor_and_the_total_size(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def, max_shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 4 * model_def.num_params()
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)


def test_writing_again_leaves_nothing_of_the_old_weights(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def, max_shard_bytes=20_000)
    params = write(tmp_path, model_def)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [SINGLE_FILE]
    assert_equal_trees(load_params(tmp_path, model_def), params)


def test_parameters_load_onto_a_mesh(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    params = write(tmp_path, model_def)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = model_def.shardings(mesh)
    placed = load_params(tmp_path, model_def, shardings)
    assert_equal_trees(placed, params)
    assert placed["language"]["layers"]["mlp"]["up"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    save_params(tmp_path / "again", model_def, placed)
    assert_equal_trees(load_params(tmp_path / "again", model_def), params)


def test_names_from_before_transformers_4_52_are_read(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    params = write(tmp_path, model_def)

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")] = tensors.pop(
                name
            )

    edit(tmp_path, rename)
    assert_equal_trees(load_params(tmp_path, model_def), params)


def test_a_tied_head_may_be_written_twice_if_it_is_the_same(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    params = write(tmp_path, model_def)
    embedding = "model.language_model.embed_tokens.weight"
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].copy()}))
    assert_equal_trees(load_params(tmp_path, model_def), params)
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding] + 1}))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_params(tmp_path, model_def)


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def)

    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.visual.pos_embed.weight"]
        tensors["model.visual.surplus.weight"] = np.zeros(3, np.float32)

    edit(tmp_path, change)
    with pytest.raises(UserError) as error:
        load_params(tmp_path, model_def)
    assert "lacks model.visual.pos_embed.weight" in str(error.value)
    assert "has model.visual.surplus.weight" in str(error.value)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    edit(tmp_path, lambda tensors: tensors.update({name: np.zeros((24, 40), np.float32)}))
    with pytest.raises(UserError) as error:
        load_params(tmp_path, model_def)
    for part in ("does not fit the config", name, SINGLE_FILE, "[24, 40]", "[40, 24]"):
        assert part in str(error.value)


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def)
    name = "model.language_model.norm.weight"
    edit(tmp_path, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
    with pytest.raises(UserError, match="stored as I8"):
        load_params(tmp_path, model_def)


@pytest.mark.parametrize("damage", ["truncated", "rubbish", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def)
    file = tmp_path / SINGLE_FILE
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-100], "rubbish": b"\xff" * 64, "empty": b""}[damage])
    with pytest.raises(UserError, match=f"{SINGLE_FILE} is not a readable safetensors file"):
        load_params(tmp_path, model_def)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    with pytest.raises(UserError, match="has neither"):
        load_params(tmp_path, model_def)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        load_params(tmp_path, model_def)
    write(tmp_path, model_def, max_shard_bytes=20_000)
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name} is missing"):
        load_params(tmp_path, model_def)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    write(tmp_path, model_def, max_shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    index["weight_map"]["model.other.weight"] = sorted(index["weight_map"].values())[0]
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model\.other\.weight"):
        load_params(tmp_path, model_def)
    (tmp_path / INDEX_FILE).write_text('{"weight_map": ')
    with pytest.raises(UserError, match="not a valid index"):
        load_params(tmp_path, model_def)


def test_float32_parameters_are_exported_rounded(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    source = tmp_path / "source"
    params = write(source, model_def)
    (source / "tokenizer.json").write_text("{}")
    out = convert.export_hf(params, model_def, source, tmp_path / "out", dtype="bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert (out / "tokenizer.json").exists()
    assert json.loads((out / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"
    norm = load_file(out / SINGLE_FILE)["model.visual.pos_embed.weight"]
    np.testing.assert_array_equal(
        norm, np.asarray(params["vision"]["pos_embed"]["embedding"]).astype(ml_dtypes.bfloat16)
    )
    with pytest.raises(UserError, match="exists already"):
        convert.export_hf(params, model_def, source, out)


def test_the_command_checks_the_way_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    write(source, ModelDef(tiny_config(tie=False)))
    assert convert.main([str(source), str(tmp_path / "half"), "--dtype", "bfloat16", "--max-shard-bytes", "20000"]) == 0
    assert "every tensor equal" in capsys.readouterr().out
    assert convert.main([str(source), str(tmp_path / "same")]) == 0
    before, after = load_file(source / SINGLE_FILE), load_file(tmp_path / "same" / SINGLE_FILE)
    assert all(np.array_equal(before[name], after[name]) for name in before | after)
    assert convert.main([str(source), str(tmp_path / "same")]) == 2
    assert convert.main([str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    errors = capsys.readouterr().err
    assert "exists already" in errors
    assert "does not exist" in errors


@pytest.mark.golden_model
@pytest.mark.parametrize("folder", case_folders(), ids=lambda folder: folder.name)
def test_a_recorded_checkpoint_comes_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    assert convert.main([str(folder), str(tmp_path / "out")]) == 0
    before: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        before |= load_file(file)
    after = load_file(tmp_path / "out" / SINGLE_FILE)
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name])


@pytest.mark.parity
@pytest.mark.golden_model
@pytest.mark.parametrize("folder", case_folders(), ids=lambda folder: folder.name)
def test_transformers_reads_what_is_written(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = load_case(folder)
    out = convert.export_hf(case.params, case.model_def, folder, tmp_path / "out")
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    name = next(name for name in case.meta["batches"] if name.startswith("single"))
    batch = case.batch(name)
    fields = (
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        "pixel_values",
        "image_grid_thw",
        "pixel_values_videos",
        "video_grid_thw",
    )
    inputs = {key: torch.from_numpy(batch.recorded[key]) for key in fields if key in batch.recorded}
    inputs = {key: value if value.is_floating_point() else value.long() for key, value in inputs.items()}
    with torch.no_grad():
        theirs = model(**inputs).logits.numpy()
    ours = logits(case, batch)
    assert np.abs(ours - theirs)[batch.mask].max() <= case.tolerance(name)
    shutil.rmtree(out)
