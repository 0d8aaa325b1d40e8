"""Adapters: they start as nothing, merge exactly, and go to PEFT and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_cases import masked_attend
from hf_configs import hf_config
from safetensors.numpy import load_file, save_file
from tiny_vl import FAMILIES, tiny_config

from vero_jax.checkpoints.weights import load_params
from vero_jax.config import LoRASettings, MeshConfig
from vero_jax.errors import UserError
from vero_jax.models.layers import LORA_TARGETS, LoRA
from vero_jax.models.lora import (
    adapter_base,
    adapter_lora,
    is_adapter,
    is_lora,
    load_adapter,
    lora_from,
    merge_lora,
    new_lora,
    save_adapter,
)
from vero_jax.models.policy import ModelDef, join_params, split_params
from vero_jax.parallel.mesh import make_mesh

ATTENTION = LORA_TARGETS[:4]
TOKENS = np.random.default_rng(5).integers(3, 80, (2, 9)).astype(np.int32)


def adapted(family: str = "qwen3_vl", targets: tuple[str, ...] | None = None, **options: Any) -> ModelDef:
    """A tiny policy with adapters on every linear map that can have one."""
    targets = targets or (ATTENTION if family.endswith("moe") else LORA_TARGETS)
    return ModelDef(tiny_config(family=family), lora=LoRA(4, 6.0, targets), **options)


def with_trained_adapters(model_def: ModelDef, seed: int = 0) -> Any:
    """Parameters whose B is not zero."""
    flat = flatten_dict(model_def.init_params(seed))
    rng = np.random.default_rng(seed)
    for path, leaf in flat.items():
        if path[-1] == "lora_b":
            flat[path] = jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)
    return unflatten_dict(flat)


def saved(model_def: ModelDef, place: Path, base: str = "some/model") -> Path:
    """A PEFT folder of trained adapters."""
    save_adapter(place / "out", with_trained_adapters(model_def), model_def, base)
    return place / "out"


def logits(model_def: ModelDef, params: Any, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Of rows of text."""
    positions = np.broadcast_to(np.arange(tokens.shape[1])[None, :, None], (*tokens.shape, 3))

    def run(params: Any) -> jax.Array:
        model = model_def.bind(params)
        attend = masked_attend(np.ones(tokens.shape, bool))
        hidden, _ = model.decode(model.embed(jnp.asarray(tokens), None, None), jnp.asarray(positions), attend, None)
        return hidden @ model.head_weight().T

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(run)(params), np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_no_bit_of_the_logits(family):
    model_def = adapted(family)
    plain = dataclasses.replace(model_def, lora=None)
    base = plain.init_params(1)
    params = join_params(base, new_lora(model_def, 7))
    np.testing.assert_allclose(logits(model_def, params), logits(plain, base), atol=5e-6)
    with jax.disable_jit():  # operation by operation: what XLA fuses differs, and with it the last bits
        np.testing.assert_array_equal(logits(model_def, params), logits(plain, base))


def test_new_adapters_follow_peft_and_depend_on_the_seed_only():
    model_def = adapted()
    mesh = make_mesh(MeshConfig(2, 2, 2))
    places = split_params(model_def.shardings(mesh), is_lora)[0]
    one, sharded, other = (flatten_dict(new_lora(model_def, *args)) for args in ((7,), (7, places), (8,)))
    assert set(one) == {path for path in flatten_dict(model_def.abstract_params()) if is_lora(path)}
    assert len(one) == 2 * len(LORA_TARGETS)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, sharded[path])
        if path[-1] == "lora_b":
            assert not np.any(leaf)
            continue
        bound = leaf.shape[1] ** -0.5
        assert 0.9 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.2)
        assert not np.array_equal(leaf, other[path])


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_logits_of_the_adapters(family):
    model_def = adapted(family)
    plain = dataclasses.replace(model_def, lora=None)
    params = with_trained_adapters(model_def)
    merged = merge_lora(params, model_def.lora)
    assert jax.tree.structure(merged) == jax.tree.structure(plain.abstract_params())
    ours, theirs = logits(model_def, params), logits(plain, merged)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(ours).max())
    base = logits(plain, split_params(params, is_lora)[1])
    assert np.abs(base - ours).max() > 0.01 * np.abs(ours).max()


@pytest.mark.parametrize(("kept", "wanted"), [("bfloat16", None), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_merging_rounds_once(kept, wanted):
    model_def = adapted(param_dtype=kept)
    params = flatten_dict(with_trained_adapters(model_def))
    merged = flatten_dict(merge_lora(unflatten_dict(params), model_def.lora, wanted))
    path = ("language", "layers", "attn", "q")
    kernel, a, b = (np.asarray(params[(*path, name)], np.float32) for name in ("kernel", "lora_a", "lora_b"))
    found = merged[(*path, "kernel")]
    assert found.dtype == (wanted or kept)
    exact = kernel + np.float32(1.5) * np.matmul(a.astype(np.float64), b.astype(np.float64))
    expected = np.asarray(jnp.asarray(exact, jnp.float32).astype(found.dtype), np.float32)
    # The sum's last float32 bit may tip a rounding; two roundings would move far more entries.
    assert np.mean(np.asarray(found, np.float32) != expected) < (0.5 if found.dtype == np.float32 else 0.005)
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=2**-7)


def test_merging_keeps_the_layout_of_the_weights():
    model_def = adapted()
    places = model_def.shardings(make_mesh(MeshConfig(2, 2, 2)))
    params = jax.device_put(with_trained_adapters(model_def), places)
    merged = flatten_dict(merge_lora(params, model_def.lora))
    for path, place in flatten_dict(split_params(places, is_lora)[1]).items():
        assert merged[path].sharding.is_equivalent_to(place, merged[path].ndim), path


def test_settings_name_the_maps_in_their_order_and_rank_0_is_none():
    config = tiny_config()
    assert LoRASettings().targets == LORA_TARGETS
    assert lora_from(LoRASettings(), config) is None
    found = lora_from(LoRASettings(rank=8, alpha=16, targets=("up_proj", "q_proj")), config)
    assert found == LoRA(8, 16, ("q_proj", "up_proj")) and found.scale == 2


def test_experts_are_no_targets():
    config = tiny_config(family="qwen3_vl_moe")
    with pytest.raises(UserError, match=r"gate_proj, up_proj, down_proj, but every layer .*targets=q_proj,k_proj"):
        lora_from(LoRASettings(rank=4), config)
    assert lora_from(LoRASettings(rank=4, targets=ATTENTION), config) == LoRA(4, 32.0, ATTENTION)


def mixed_layers() -> ModelDef:
    """Layer 1 has experts, layers 0 and 2 an MLP."""
    config = tiny_config(family="qwen3_vl_moe")
    text = dataclasses.replace(config.text, sparse_layers=(1,))
    return ModelDef(dataclasses.replace(config, text=text), lora=LoRA(2, 4.0, ("k_proj", "down_proj")))


def test_peft_names_and_layouts(tmp_path):
    model_def = mixed_layers()
    params = with_trained_adapters(model_def)
    save_adapter(tmp_path / "out", params, model_def, "some/model")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    layer = "base_model.model.model.language_model.layers"
    assert {name: list(value.shape) for name, value in tensors.items()} == {
        **{f"{layer}.{n}.self_attn.k_proj.lora_A.weight": [2, 24] for n in range(3)},
        **{f"{layer}.{n}.self_attn.k_proj.lora_B.weight": [16, 2] for n in range(3)},
        **{f"{layer}.{n}.mlp.down_proj.lora_A.weight": [2, 40] for n in (0, 2)},
        **{f"{layer}.{n}.mlp.down_proj.lora_B.weight": [24, 2] for n in (0, 2)},
    }
    dense, sparse = params["language"]["layers"], params["language"]["sparse_layers"]
    for number, stack, place in ((0, dense, 0), (1, sparse, 0), (2, dense, 1)):
        np.testing.assert_array_equal(
            tensors[f"{layer}.{number}.self_attn.k_proj.lora_A.weight"], stack["attn"]["k"]["lora_a"][place].T
        )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 4.0, "some/model")
    text = adapted("qwen3")
    save_adapter(tmp_path / "text", with_trained_adapters(text), text, "b")
    names = load_file(tmp_path / "text" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight" in names


@pytest.mark.parametrize("make", [adapted, mixed_layers, lambda: adapted("qwen2")], ids=["vl", "mixed", "text"])
def test_a_saved_adapter_reads_back_equal(make, tmp_path):
    model_def = make()
    params = with_trained_adapters(model_def)
    folder = tmp_path / "out"
    save_adapter(folder, params, model_def, "some/model")
    assert is_adapter(folder) and adapter_base(folder) == "some/model" and adapter_lora(folder) == model_def.lora
    found = load_adapter(folder, model_def)
    jax.tree.map(np.testing.assert_array_equal, found, split_params(params, is_lora)[0])
    places = split_params(model_def.shardings(make_mesh(MeshConfig(2, 2, 2))), is_lora)[0]
    sharded = load_adapter(folder, model_def, places)
    jax.tree.map(np.testing.assert_array_equal, found, sharded)
    jax.tree.map(lambda leaf, place: pytest.fail() if leaf.sharding != place else None, sharded, places)


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        (LoRA(8, 6.0, LORA_TARGETS), r"has rank 4, but this policy's adapters have 8; set model\.lora\.rank=4"),
        (LoRA(4, 8.0, LORA_TARGETS), r"has alpha 6, but .* have 8; set model\.lora\.alpha=6"),
        (LoRA(4, 6.0, ATTENTION), r"has targets q_proj,.*,down_proj, but .* set model\.lora\.targets=q_proj,k_proj,v_"),
    ],
    ids=["rank", "alpha", "targets"],
)
def test_an_adapter_of_other_settings_is_refused(lora, sentence, tmp_path):
    model_def = adapted()
    folder = saved(model_def, tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_adapter(folder, dataclasses.replace(model_def, lora=lora))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    model_def = adapted()
    folder = saved(model_def, tmp_path)
    config = model_def.config
    for text, sentence in (
        ({"num_layers": 4}, r"lacks base_model\..*layers\.3\..*same base model"),
        ({"num_layers": 2}, r"has base_model\..*layers\.2\..*no place for"),
        ({"ffn_size": 48}, r"down_proj\.lora_A\.weight of shape \[4, 40\], where this policy asks for \[4, 48\]"),
    ):
        other = dataclasses.replace(config, text=dataclasses.replace(config.text, **text))
        with pytest.raises(UserError, match=sentence):
            load_adapter(folder, dataclasses.replace(model_def, config=other))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "LOHA"}, "has peft_type=LOHA; only plain LoRA"),
        ({"use_rslora": True}, "has use_rslora=True; only plain LoRA"),
        ({"bias": "all"}, "has bias=all"),
        ({"r": None}, "no usable r and lora_alpha"),
        ("{", "cannot be read"),
        ("[]", "is not a PEFT config"),
    ],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused(change, sentence, tmp_path):
    folder = saved(adapted(), tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=sentence):
        load_adapter(folder, adapted())


def test_damaged_and_absent_files_are_named(tmp_path):
    folder = saved(adapted(), tmp_path, base="")
    with pytest.raises(UserError, match="no base_model_name_or_path"):
        adapter_base(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is not a readable"):
        load_adapter(folder, adapted())
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        load_adapter(tmp_path / "nowhere", adapted())


@pytest.mark.parity
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3", "qwen2"])
def test_peft_loads_an_exported_adapter_and_gives_its_logits(family, tmp_path, recwarn):
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    model_def = adapted(family)
    plain = dataclasses.replace(model_def, lora=None)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model_def.config)))
    auto = (
        transformers.AutoModelForCausalLM if family in ("qwen3", "qwen2") else transformers.AutoModelForImageTextToText
    )
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tmp_path, local_files_only=True)
    theirs = auto.from_config(config, attn_implementation="eager").float().eval()
    if family.endswith("moe"):
        theirs.set_experts_implementation("eager")  # torch's grouped product asks for rows of 16 bytes
    theirs.save_pretrained(tmp_path)
    base = load_params(tmp_path, plain)
    params = join_params(base, split_params(with_trained_adapters(model_def), is_lora)[0])
    folder = tmp_path / "adapter"
    save_adapter(folder, params, model_def, tmp_path)

    adapter = peft.PeftModel.from_pretrained(theirs, str(folder))
    assert not [str(w.message) for w in recwarn if "key" in str(w.message)]
    names = [name for name, _ in adapter.named_modules() if name.endswith("lora_A.default")]
    assert len(names) == len(model_def.lora.targets) * model_def.config.text.num_layers
    assert not any("visual" in name for name in names)
    kept = peft.get_peft_model_state_dict(adapter)
    assert set(kept) == set(load_file(folder / "adapter_model.safetensors"))
    with torch.no_grad():
        expected = adapter(input_ids=torch.tensor(TOKENS.astype(np.int64)), use_cache=False).logits.numpy()
    found = logits(model_def, params)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(logits(plain, base) - found).max() > 1e-2
    # And the way back: what PEFT writes can be trained on here.
    adapter.save_pretrained(tmp_path / "theirs")
    again = load_adapter(tmp_path / "theirs", model_def)
    jax.tree.map(np.testing.assert_array_equal, again, split_params(params, is_lora)[0])


def test_tensors_beside_the_language_model_are_refused(tmp_path):
    folder = saved(adapted(), tmp_path)
    path = folder / "adapter_model.safetensors"
    extra = {"base_model.model.model.visual.blocks.0.attn.proj.lora_A.weight": np.zeros((4, 16), np.float32)}
    save_file(load_file(path) | extra, path)
    with pytest.raises(UserError, match=r"has .*visual\.blocks\.0.* no place for"):
        load_adapter(folder, adapted())
