"""config.json in both spellings, its mistakes, and the sizes of the released models."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_vl import tiny_config

from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef

PARAMETERS = {
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
}


def as_saved_by_transformers_5(raw: dict[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    text = raw["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    raw["dtype"] = text.pop("dtype")
    text.pop("tie_word_embeddings")
    raw["vision_config"]["model_type"] = "qwen3_vl_vision"
    raw["vision_config"]["rope_parameters"] = {"rope_type": "axial", "rope_theta": 10000.0}
    return raw


def test_what_is_written_is_read_back() -> None:
    config = tiny_config()
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf("bfloat16")))) == config


def test_both_spellings_say_the_same() -> None:
    config = tiny_config()
    assert ModelConfig.from_hf(as_saved_by_transformers_5(config.to_hf())) == config


def test_the_tie_is_read_at_the_top_level() -> None:
    raw = tiny_config().to_hf()
    raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"] = False, True
    assert ModelConfig.from_hf(raw).tie_word_embeddings is False


def test_the_image_statistics_come_from_the_preprocessor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf()))
    assert ModelConfig.from_folder(tmp_path).vision.image_mean == (0.5, 0.5, 0.5)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    vision = ModelConfig.from_folder(tmp_path).vision
    assert (vision.image_mean, vision.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_config_can_be_a_static_argument() -> None:
    assert hash(ModelDef(tiny_config())) == hash(ModelDef(tiny_config()))
    assert ModelDef(tiny_config(), dtype="bfloat16") != ModelDef(tiny_config())


def test_all_missing_keys_are_named_at_once() -> None:
    raw = tiny_config().to_hf()
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
    raw = tiny_config().to_hf()
    del raw["vision_config"]
    with pytest.raises(UserError, match="vision_config"):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "llama", None])
def test_an_unsupported_model_is_named(model_type: str | None) -> None:
    with pytest.raises(UserError, match=f"{model_type!r} is not supported"):
        ModelConfig.from_hf(tiny_config().to_hf() | {"model_type": model_type})


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
    raw = tiny_config().to_hf()
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


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_models_have_their_size_to_the_last_digit(name: str, shared: Path) -> None:
    raw = json.loads((shared / "assets" / "configs" / f"{name}.config.json").read_text())
    model_def = ModelDef(ModelConfig.from_hf(raw), dtype="bfloat16", param_dtype="bfloat16")
    assert model_def.num_params() == PARAMETERS[name]


def test_released_configs_of_other_models_are_refused_by_name(shared: Path) -> None:
    for path in sorted((shared / "assets" / "configs").glob("*.config.json")):
        raw = json.loads(path.read_text())
        if raw["model_type"] != "qwen3_vl":
            with pytest.raises(UserError, match=raw["model_type"]):
                ModelConfig.from_hf(raw)


def test_deepstack_may_be_absent() -> None:
    config = tiny_config()
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, deepstack_layers=()))
    assert "deepstack" not in ModelDef(config).abstract_params()["vision"]
