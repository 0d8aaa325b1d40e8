"""The names on disk: as many tensors as the released checkpoints have, and under the hub's names."""

from __future__ import annotations

import pytest
from tiny_vl import FAMILIES, tiny_config

from vero_jax.checkpoints.accounting import grouped
from vero_jax.checkpoints.names import canonical_name, disk_tensors, expert_layout, sources
from vero_jax.models.policy import ModelDef
from vero_jax.models.released import released_config


@pytest.mark.parametrize(("name", "count"), [("Qwen3-VL-8B", 750), ("Qwen3-VL-30B-A3B", 882)])
def test_released_models_have_as_many_tensors_as_their_checkpoints(name: str, count: int) -> None:
    assert len(disk_tensors(ModelDef(released_config(name)))) == count


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("qwen3_vl", ["model.language_model.layers.1.self_attn.q_norm.weight", "model.visual.blocks.2.attn.qkv.bias"]),
        ("qwen3_vl_moe", ["model.language_model.layers.1.mlp.gate.weight", "model.visual.merger.linear_fc1.weight"]),
        ("qwen2_5_vl", ["visual.merger.ln_q.weight", "visual.merger.mlp.2.bias", "visual.blocks.0.mlp.up_proj.bias"]),
        ("qwen2", ["model.layers.0.self_attn.k_proj.bias", "model.embed_tokens.weight", "lm_head.weight"]),
        ("qwen3", ["model.layers.0.self_attn.k_norm.weight", "model.norm.weight"]),
    ],
)
def test_each_family_has_the_hub_s_names(family: str, names: list[str]) -> None:
    found = disk_tensors(ModelDef(tiny_config(tie=False, family=family)))
    assert set(names) <= set(found)
    assert all(canonical_name(name, family) == name for name in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_tensor_are_disjoint_and_all_of_it(family: str) -> None:
    model_def = ModelDef(tiny_config(tie=False, family=family))
    for experts in ("hub", "transformers5"):
        for name, pieces in disk_tensors(model_def, experts).items():
            assert [source.part for _, source in pieces] == list(range(pieces[0][1].parts)), name
            assert len({source.shape for _, source in pieces}) == 1
            for _, source in pieces:
                assert source.to_view(source.from_view(source.region)) == source.region


def test_other_names_of_the_same_tensor_are_known() -> None:
    for name in ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"):
        assert canonical_name(name, "qwen3_vl") == "model.language_model.layers.3.mlp.up_proj.weight"
        assert canonical_name(name, "qwen2_5_vl") == "model.layers.3.mlp.up_proj.weight"
    for name in ("visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"):
        assert canonical_name(name, "qwen2_5_vl") == "visual.merger.ln_q.weight"
    for family in FAMILIES:
        assert canonical_name("lm_head.weight", family) == "lm_head.weight"
    assert canonical_name("model.language_model.other", "qwen3_vl") == "model.language_model.other"


def test_the_layout_of_experts_is_the_hub_s_unless_both_tensors_fit_the_other() -> None:
    model_def = ModelDef(tiny_config(False, "qwen3_vl_moe"))
    later = {layers[0].name: layers[0].shape for layers in sources(model_def, "transformers5").values()}
    assert expert_layout(model_def, later) == "transformers5"
    assert expert_layout(model_def, {}) == "hub"
    assert expert_layout(ModelDef(tiny_config()), later) == "hub"
    broken = {name: (1, 2, 3) if name.endswith("down_proj") else shape for name, shape in later.items()}
    assert expert_layout(model_def, broken) == "hub"


def test_long_lists_of_names_are_grouped() -> None:
    names = [f"layers.{layer}.norm.weight" for layer in (0, 1, 2, 5, 7, 8)]
    names += [f"layers.{layer}.experts.{expert}.up" for layer in (0, 1) for expert in range(4)]
    assert grouped([*names, "head"]) == (
        "head, layers.{0..1}.experts.{0..3}.up (8 tensors), layers.{0..2,5,7..8}.norm.weight (6 tensors)"
    )
    assert grouped([*names[6:-1], "layers.4.norm"]) == (
        "layers.0.experts.{0..3}.up (4 tensors), layers.1.experts.{0..2}.up (3 tensors), layers.4.norm"
    )
