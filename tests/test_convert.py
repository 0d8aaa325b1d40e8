"""Checkpoints between the two formats and out of training: the same bits, all other files, and no half folders."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from checkpoint_cases import assert_equal_tensors, assert_equal_trees, new_params, tensors, write
from conftest import golden_dir
from golden_cases import case_folders, load_case, logits
from hf_configs import hf_config, v5
from tiny_vl import FAMILIES, tiny_config

from vero_jax import convert
from vero_jax.checkpoints import native, origin, saved_params, transfer
from vero_jax.checkpoints.weights import load_params
from vero_jax.config import MeshConfig
from vero_jax.errors import UserError
from vero_jax.learning.programs import TrainState
from vero_jax.models.layers import LoRA
from vero_jax.models.lora import merge_lora
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.runtime.checkpoint import CheckpointMeta, Checkpoints
from vero_jax.runtime.output_folder import new_folder

SIDE_FILES = {
    "tokenizer.json": "{}",
    "README.md": "a model",
    "LICENSE": "Apache",
    "configuration.json": "{}",
    "additional_chat_templates/tools.jinja": "{{ x }}",
}


def add_side_files(folder: Path) -> None:
    for name, text in SIDE_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "record").write_text("of a download")
    (folder / "pytorch_model.bin").write_bytes(b"other weights")


def side_files(folder: Path) -> dict[str, str]:
    kept = (path for path in folder.rglob("*") if path.is_file() and native.PARAMS not in path.parts)
    ours = ("config.json", native.MARKER)
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in kept
        if path.name not in ours and ".safetensors" not in path.name
    }


def run(*words: Any) -> int:
    return convert.main([str(word) for word in words])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_way_there_and_back_gives_the_same_bits_and_files(tmp_path: Path, family: str, dtype: str) -> None:
    model_def = ModelDef(tiny_config(False, family), param_dtype=dtype)
    params = write(tmp_path / "hf", model_def)
    add_side_files(tmp_path / "hf")
    assert run(tmp_path / "hf", tmp_path / "ours") == 0
    assert native.is_native(tmp_path / "ours")
    assert_equal_trees(load_params(tmp_path / "ours", model_def), params)
    assert run(tmp_path / "ours", tmp_path / "back", "--max-shard-bytes", 20_000) == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert_equal_tensors(tensors(tmp_path / "hf"), tensors(tmp_path / "back"))
    for folder in ("ours", "back"):
        assert side_files(tmp_path / folder) == SIDE_FILES
        assert (tmp_path / folder / "config.json").read_bytes() == (tmp_path / "hf" / "config.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "ours"]


def test_both_layouts_of_experts_come_back_as_they_were(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config(False, "qwen3_vl_moe"))
    params = write(tmp_path / "hf", model_def, experts="transformers5")
    assert run(tmp_path / "hf", tmp_path / "ours") == 0
    assert run(tmp_path / "ours", tmp_path / "back") == 0
    assert run(tmp_path / "hf", tmp_path / "straight", "--to", "hf") == 0
    exported = convert.export_hf(params, model_def, tmp_path / "ours", tmp_path / "exported")
    for folder in (tmp_path / "back", tmp_path / "straight", exported):
        assert_equal_tensors(tensors(tmp_path / "hf"), tensors(folder))


@pytest.mark.parametrize("block", [300, 5000])
def test_small_blocks_change_nothing(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CHUNK", 8)
    monkeypatch.setattr(native, "_FILE_BYTES", 2 * block)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", block)
    for module in (convert, origin):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
    model_def = ModelDef(tiny_config(False, "qwen3_vl_moe"))
    params = write(tmp_path / "hf", model_def)
    for source, out, to in (("hf", "a", "vero_jax"), ("a", "b", "vero_jax"), ("b", "c", "hf"), ("c", "d", "hf")):
        assert run(tmp_path / source, tmp_path / out, "--to", to) == 0
    assert_equal_tensors(tensors(tmp_path / "hf"), tensors(tmp_path / "d"))
    assert_equal_trees(load_params(tmp_path / "b", model_def), params)


@pytest.mark.parametrize("way", [["hf"], ["vero_jax", "hf"]])
def test_weights_can_be_rounded_and_the_config_says_so(tmp_path: Path, way: list[str]) -> None:
    model_def = ModelDef(tiny_config(tie=False))
    params = write(tmp_path / "source", model_def)
    source = tmp_path / "source"
    for number, to in enumerate(way):
        assert run(source, tmp_path / f"{number}", "--to", to, "--dtype", "bfloat16") == 0
        source = tmp_path / f"{number}"
    norm = tensors(source)["model.visual.pos_embed.weight"]
    wanted = np.asarray(params["vision"]["pos_embed"]["embedding"]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(norm, wanted)
    raw = json.loads((source / "config.json").read_text())
    assert raw == hf_config(model_def.config, "bfloat16")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", ["hub", "v5"])
def test_the_config_is_the_source_s_but_for_the_type(tmp_path: Path, family: str, spelling: str) -> None:
    model_def = ModelDef(tiny_config(False, family))
    params = write(tmp_path / "hf", model_def)
    configs = [hf_config(model_def.config, dtype) for dtype in ("float32", "bfloat16")]
    before, after = (v5(raw) for raw in configs) if spelling == "v5" else configs
    before["kept_by"], after["kept_by"] = "me", "me"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(before))
    out = convert.export_hf(params, model_def, tmp_path / "hf", tmp_path / "out", dtype="bfloat16")
    assert json.loads((out / "config.json").read_text()) == after


def test_an_export_rounds_and_carries_all_files(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config())
    params = write(tmp_path / "source", model_def)
    add_side_files(tmp_path / "source")
    out = convert.export_hf(params, model_def, tmp_path / "source", tmp_path / "out", dtype="bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert side_files(out) == SIDE_FILES
    found = tensors(out)["model.visual.pos_embed.weight"]
    np.testing.assert_array_equal(
        found, np.asarray(params["vision"]["pos_embed"]["embedding"]).astype(ml_dtypes.bfloat16)
    )
    with pytest.raises(UserError, match="exists already"):
        convert.export_hf(params, model_def, tmp_path / "source", out)


def test_a_checkpoint_in_our_format_loads_onto_a_mesh(tmp_path: Path) -> None:
    model_def = ModelDef(tiny_config(False, "qwen3_vl_moe"))
    params = write(tmp_path / "hf", model_def)
    assert run(tmp_path / "hf", tmp_path / "ours") == 0
    shardings = model_def.shardings(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    placed = load_params(tmp_path / "ours", model_def, shardings)
    assert_equal_trees(placed, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == shardings


@pytest.mark.parametrize("harm", ["bits", "gone", "version"])
def test_a_damaged_checkpoint_in_our_format_is_named(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "hf", ModelDef(tiny_config()))
    assert run(tmp_path / "hf", tmp_path / "ours") == 0
    array = tmp_path / "ours" / native.PARAMS / "language.norm.scale"
    if harm == "bits":
        file = next(path for path in array.rglob("*") if path.is_file() and path.name != "zarr.json")
        content = bytearray(file.read_bytes())
        content[3] ^= 1
        file.write_bytes(content)
    elif harm == "gone":
        (array / "zarr.json").unlink()
    else:
        header = tmp_path / "ours" / native.MARKER
        header.write_text(header.read_text().replace('"version": 1', '"version": 9'))
    assert run(tmp_path / "ours", tmp_path / "back") == 2
    errors = capsys.readouterr().err
    assert {"bits": "cannot be read", "gone": "not a readable zarr", "version": "version 9"}[harm] in errors
    assert not (tmp_path / "back").exists()


def training(folder: Path, model_def: ModelDef, lora: LoRA | None = None, steps: tuple[int, ...] = (1, 3)) -> Any:
    """A run directory as `vero_jax.train` leaves it; returns the parameters of the steps."""
    write(folder / "start", ModelDef(model_def.config))
    add_side_files(folder / "start")
    settings: dict[str, Any] = {"path": str(folder / "start")}
    if lora is not None:
        settings["lora"] = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({"model": settings}))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    saved = {}
    with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
        for step in steps:
            params = jax.tree.map(lambda leaf, step=step: leaf * step, new_params(model_def))
            saved[step] = params
            placed = jax.device_put(params, model_def.shardings(mesh))
            number = jnp.int32(step)
            state = TrainState(placed, {"mu": placed["language"]["norm"]}, number, number, number)
            meta = CheckpointMeta(step, "reinforcement", step, 0, step, 0, "")
            checkpoints.save(step, {"state": state}, meta)
    return saved


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"])
@pytest.mark.parametrize("piece", [0, 10**8])
def test_a_run_is_exported_as_its_newest_or_a_chosen_step(
    tmp_path: Path, family: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_params, "_PIECE_BYTES", piece)
    model_def = ModelDef(tiny_config(family == "qwen3_vl", family))
    saved = training(tmp_path, model_def)
    assert run(tmp_path / "run", tmp_path / "newest") == 0
    assert run(tmp_path / "run", tmp_path / "first", "--step", 1, "--to", "vero_jax") == 0
    assert_equal_trees(load_params(tmp_path / "newest", model_def), saved[3])
    assert_equal_trees(load_params(tmp_path / "first", model_def), saved[1])
    assert side_files(tmp_path / "newest") == side_files(tmp_path / "first") == SIDE_FILES


def test_a_run_s_adapters_are_merged(tmp_path: Path) -> None:
    lora = LoRA(2, 8.0, ("q", "down"))
    plain = ModelDef(tiny_config())
    saved = training(tmp_path, dataclasses.replace(plain, lora=lora))
    assert run(tmp_path / "run", tmp_path / "out") == 0
    found = load_params(tmp_path / "out", plain)
    wanted = merge_lora(saved[3], lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_mistakes_with_runs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training(tmp_path, ModelDef(tiny_config()))
    assert run(tmp_path / "run", tmp_path / "out", "--step", 2) == 2
    assert "lacks the checkpoint 2; it has 1, 3" in capsys.readouterr().err
    assert run(tmp_path / "start", tmp_path / "out", "--step", 2) == 2
    assert "--step 2" in capsys.readouterr().err
    (tmp_path / "start" / "config.json").write_text(json.dumps(hf_config(tiny_config(tie=False))))
    assert run(tmp_path / "run", tmp_path / "out") == 2
    assert "does not fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_s_checkpoint_with_other_bits_than_were_saved_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(tmp_path, ModelDef(tiny_config()))
    meta = tmp_path / "run" / "checkpoints" / "3" / "meta" / "metadata"
    raw = json.loads(meta.read_text())
    raw["checksums"]["state/params/language/norm/scale"] += 1
    meta.write_text(json.dumps(raw))
    assert run(tmp_path / "run", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "is damaged: the bits of language.norm.scale are not" in errors
    assert run(tmp_path / "run", tmp_path / "out", "--step", 1) == 0


@pytest.mark.parametrize("to", ["hf", "vero_jax"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "hf", ModelDef(tiny_config()))

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(native.NativeWriter, "write", full)
    assert run(tmp_path / "hf", tmp_path / "out", "--to", to) == 2
    assert f"cannot write {tmp_path / 'out'}: the disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_changed_tensor_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "hf", ModelDef(tiny_config()))
    plain = native.NativeWriter.write

    def wrong(self: Any, path: Any, number: int, box: Any, values: np.ndarray) -> None:
        plain(self, path, number, box, values + 1 if path == ("language", "norm", "scale") else values)

    monkeypatch.setattr(native.NativeWriter, "write", wrong)
    with pytest.raises(RuntimeError, match=r"1 tensors changed on the way, among them \['language\.norm\.scale'\]"):
        run(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "hf", ModelDef(tiny_config()))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for words, text in (
        ((tmp_path / "hf", tmp_path / "taken"), "exists already"),
        ((tmp_path / "nowhere", tmp_path / "out"), "does not exist"),
        ((tmp_path / "hf", tmp_path / "out", "--max-shard-bytes", 0), "--max-shard-bytes 0"),
    ):
        assert run(*words) == 2
        errors = capsys.readouterr().err
        assert text in errors and errors.count("\n") == 1
    with new_folder(tmp_path / "busy"):
        assert run(tmp_path / "hf", tmp_path / "busy") == 2
    assert "is being written by another process" in capsys.readouterr().err


@pytest.mark.golden_model
@pytest.mark.parametrize("name", [folder.name for folder in case_folders()])
def test_a_recorded_checkpoint_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = golden_dir("model") / name
    assert run(folder, tmp_path / "ours") == 0
    assert run(tmp_path / "ours", tmp_path / "back", "--max-shard-bytes", 100_000) == 0
    assert run(folder, tmp_path / "straight", "--to", "hf") == 0
    for out in ("back", "straight"):
        assert_equal_tensors(tensors(folder), tensors(tmp_path / out))
        for file in folder.iterdir():
            if ".safetensors" not in file.name:
                assert (tmp_path / out / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parity
@pytest.mark.golden_model
@pytest.mark.parametrize("name", [folder.name for folder in case_folders()])
def test_transformers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = golden_dir("model") / name
    case = load_case(folder)
    assert run(folder, tmp_path / "ours") == 0
    assert run(tmp_path / "ours", tmp_path / "out") == 0
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if case.model_def.config.text.sparse_layers:
        model.set_experts_implementation("eager")  # the other one needs widths that are multiples of 16 bytes
    batch_name = next(name for name in case.meta["batches"] if name.startswith("single"))
    batch = case.batch(batch_name)
    fields = (
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        "pixel_values",
        "image_grid_thw",
        "pixel_values_videos",
        "video_grid_thw",
        "second_per_grid_ts",
    )
    inputs = {key: torch.from_numpy(batch.recorded[key]) for key in fields if key in batch.recorded}
    inputs = {key: value if value.is_floating_point() else value.long() for key, value in inputs.items()}
    with torch.no_grad():
        theirs = model(**inputs).logits.numpy()
    assert np.abs(logits(case, batch) - theirs)[batch.mask].max() <= case.tolerance(batch_name)
