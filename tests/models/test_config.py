"""config.json of every family in both spellings, and its mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hf_configs import hf_config, v5
from tiny_vl import FAMILIES, tiny_config

from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig
from vero_jax.models.language import layer_runs
from vero_jax.models.policy import ModelDef


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_are_read(family: str) -> None:
    config = tiny_config(family=family)
    raw = json.loads(json.dumps(hf_config(config)))
    assert ModelConfig.from_hf(raw) == config
    assert ModelConfig.from_hf(v5(raw)) == config


def test_the_tie_is_read_at_the_top_level() -> None:
    raw = hf_config(tiny_config())
    raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"] = False, True
    assert ModelConfig.from_hf(raw).tie_word_embeddings is False


def test_the_image_statistics_come_from_the_preprocessor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(tiny_config())))
    assert ModelConfig.from_folder(tmp_path).vision.image_mean == (0.5, 0.5, 0.5)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    vision = ModelConfig.from_folder(tmp_path).vision
    assert (vision.image_mean, vision.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_config_can_be_a_static_argument() -> None:
    assert hash(ModelDef(tiny_config())) == hash(ModelDef(tiny_config()))
    assert ModelDef(tiny_config(), dtype="bfloat16") != ModelDef(tiny_config())


def test_all_missing_keys_are_named_at_once() -> None:
    raw = hf_config(tiny_config())
    del raw["text_config"]["head_dim"], raw["text_config"]["rope_theta"], raw["vision_config"]["depth"]
    del raw["tie_word_embeddings"]
    with pytest.raises(UserError) as error:
        ModelConfig.from_hf(raw, where="some/config.json")
    for name in (
        "some/config.json",
        "text_config.head_dim",
        "rope_theta",
        "vision_config.depth",
        "tie_word_embeddings",
    ):
        assert name in str(error.value)


def test_a_missing_section_is_named() -> None:
    raw = hf_config(tiny_config())
    del raw["vision_config"]
    with pytest.raises(UserError, match="vision_config"):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "llama", None])
def test_an_unsupported_model_is_named(model_type: str | None) -> None:
    with pytest.raises(UserError, match=f"{model_type!r} is not supported"):
        ModelConfig.from_hf(hf_config(tiny_config()) | {"model_type": model_type})


@pytest.mark.parametrize(
    ("family", "section", "key"),
    [
        ("qwen3_vl_moe", "text_config", "num_experts"),
        ("qwen3_vl_moe", "text_config", "num_experts_per_tok"),
        ("qwen3_vl_moe", "text_config", "moe_intermediate_size"),
        ("qwen2_5_vl", "vision_config", "fullatt_block_indexes"),
        ("qwen2_5_vl", "vision_config", "window_size"),
        ("qwen2_5_vl", "vision_config", "tokens_per_second"),
        ("qwen2_5_vl", "", "num_hidden_layers"),
        ("qwen2_5_vl", "", "rope_scaling"),
        ("qwen2_5_vl", "", "video_token_id"),
        ("qwen3", "", "head_dim"),
        ("qwen2", "", "rope_theta"),
    ],
)
def test_what_a_family_needs_is_not_guessed(family: str, section: str, key: str) -> None:
    raw = hf_config(tiny_config(family=family))
    del (raw[section] if section else raw)[key]
    with pytest.raises(UserError, match=f"lacks .*{key}"):
        ModelConfig.from_hf(raw)


def test_layers_without_experts_are_those_that_the_config_says() -> None:
    raw = hf_config(tiny_config(family="qwen3_vl_moe"))
    raw["text_config"] |= {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    text = ModelConfig.from_hf(raw).text
    assert (text.sparse_layers, text.dense_layers) == ((1, 5), (0, 2, 3, 4))
    assert [run.span for run in layer_runs(text)] == [slice(0, 1), slice(0, 1), slice(1, 4), slice(1, 2)]


def test_a_window_smaller_than_a_token_is_refused() -> None:
    raw = hf_config(tiny_config(family="qwen2_5_vl"))
    raw["vision_config"]["window_size"] = 7
    with pytest.raises(UserError, match="window_size 7 is smaller than one merged token of 8 pixels"):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("text_config", "hidden_act", "gelu", "hidden_act"),
        ("text_config", "attention_bias", True, "attention_bias"),
        ("text_config", "num_hidden_layers", "four", "num_hidden_layers"),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "mrope_section": [2, 1, 1]}, "yarn"),
        ("text_config", "rope_scaling", {"mrope_section": [9, 9, 9]}, "mrope_section"),
        ("text_config", "num_key_value_heads", 3, "multiple"),
        ("vision_config", "num_position_embeddings", 17, "square"),
        ("vision_config", "out_hidden_size", 7, "out_hidden_size"),
        ("vision_config", "deepstack_visual_indexes", [0, 99], "deepstack_visual_indexes"),
        ("vision_config", "hidden_act", "gelu", "gelu_pytorch_tanh"),
    ],
)
def test_what_cannot_be_run_is_refused(section: str, key: str, value: Any, message: str) -> None:
    raw = hf_config(tiny_config())
    raw[section][key] = value
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf(raw)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ModelConfig.from_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(UserError, match="not valid JSON"):
        ModelConfig.from_folder(tmp_path)


def test_deepstack_may_be_absent() -> None:
    config = tiny_config()
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, deepstack_layers=()))
    assert "deepstack" not in ModelDef(config).abstract_params()["vision"]


def test_the_image_statistics_may_be_nested_in_one_file_of_all_processors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(tiny_config(family="qwen2_5_vl"))))
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": statistics, "processor_class": "x"}))
    vision = ModelConfig.from_folder(tmp_path).vision
    assert (vision.image_mean, vision.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
