"""The table of released sizes: parameter counts to the last digit, and what the checkpoints' own configs say."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef
from vero_jax.models.released import RELEASED, released_config

PARAMETERS = {
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
    "Qwen3-VL-30B-A3B": 31_070_754_032,
    "Qwen3-VL-235B-A22B": 235_670_022_896,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "MiMo-VL-7B": 8_306_217_216,
}
VISION_MILLIONS = {
    "Qwen3-VL-2B": 407.0,
    "Qwen3-VL-4B": 415.3,
    "Qwen3-VL-8B": 576.4,
    "Qwen3-VL-32B": 595.3,
    "Qwen3-VL-30B-A3B": 538.6,
    "Qwen3-VL-235B-A22B": 576.4,
    "Qwen2.5-VL-3B": 668.7,
    "Qwen2.5-VL-7B": 676.6,
    "Qwen2.5-VL-32B": 688.8,
    "Qwen2.5-VL-72B": 704.6,
    "MiMo-VL-7B": 683.6,
}


def test_every_released_model_is_known() -> None:
    assert set(RELEASED) == set(PARAMETERS)


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts_to_the_last_digit(name: str) -> None:
    model_def = ModelDef(released_config(name))
    assert model_def.num_params() == PARAMETERS[name]
    vision = sum(leaf.size for leaf in jax.tree.leaves(model_def.abstract_params()["vision"]))
    assert round(vision / 1e6, 1) == VISION_MILLIONS[name]


@pytest.mark.real_data
@pytest.mark.parametrize("name", RELEASED)
def test_the_checkpoints_own_config_says_the_same(name: str, shared: Path) -> None:
    raw = json.loads((shared / "assets" / "configs" / f"{name}.config.json").read_text())
    statistics = {
        "image_mean": released_config(name).vision.image_mean,
        "image_std": released_config(name).vision.image_std,
    }
    assert ModelConfig.from_hf(raw, statistics) == released_config(name)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean Qwen3-VL-8B\?"):
        released_config("Qwen3-VL-8b")
