"""Reads a checkpoint's config.json, in either of the two spellings in use, into a `ModelConfig`.

The hub's spelling (transformers 4) has `rope_theta` and `rope_scaling` side by side, the one that transformers 5 saves
has `rope_parameters`. Qwen2.5-VL's hub files have the language model's keys at the top level, later ones in
`text_config`. Nothing that decides an answer is guessed: a missing key is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig

VISION_LANGUAGE = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl")
TEXT_ONLY = ("qwen3", "qwen2")
SUPPORTED = VISION_LANGUAGE + TEXT_ONLY
"""The `model_type` values that this package can run. MiMo-VL calls itself qwen2_5_vl."""

_TEXT_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
_VISION_INTEGERS = (
    "depth",
    "hidden_size",
    "num_heads",
    "intermediate_size",
    "out_hidden_size",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
)
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_FLAT = ("qwen2_5_vl", *TEXT_ONLY)
"""Families whose hub files keep the language model's keys at the top level."""


def read_folder(path: str | Path) -> ModelConfig:
    """The config of a checkpoint folder; see `ModelConfig.from_folder`."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; give a folder with config.json and safetensors files")
    raw = _read_json(folder / "config.json")
    # Transformers 5 nests the image processor's settings in a file of all processors.
    nested = _read_if_there(folder / "processor_config.json").get("image_processor")
    images = nested if isinstance(nested, dict) else _read_if_there(folder / "preprocessor_config.json")
    return read_config(raw, images, where=str(folder / "config.json"))


def read_config(
    raw: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, where: str = "config.json"
) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    family = raw.get("model_type")
    if family not in SUPPORTED:
        raise UserError(
            f"{where}: model_type {family!r} is not supported; this version runs {', '.join(SUPPORTED)} "
            "(MiMo-VL is a qwen2_5_vl)"
        )
    text = raw.get("text_config")
    if text is None and family in _FLAT:
        text = raw
    _check_keys(family, raw, text, where)
    seeing = family in VISION_LANGUAGE
    ids = {key: raw[key] if seeing else None for key in _TOKEN_IDS}
    return ModelConfig(
        text=_read_text(family, text or {}, where),
        vision=_read_vision(family, raw["vision_config"], preprocessor or {}, where) if seeing else None,
        # Only the top level counts: larger checkpoints carry a meaningless value inside text_config.
        tie_word_embeddings=bool(raw["tie_word_embeddings"]),
        model_type=family,
        **ids,
    )


def _required(family: str, raw: Mapping[str, Any], text: Any) -> list[tuple[str, Any, tuple[str, ...]]]:
    """(name of the section, its values, the whole numbers it must hold)."""
    text_keys = list(_TEXT_INTEGERS)
    if family.startswith("qwen3"):
        text_keys.append("head_dim")
    if family == "qwen3_vl_moe":
        text_keys += ["num_experts_per_tok", "moe_intermediate_size"]
    sections: list[tuple[str, Any, tuple[str, ...]]] = [("" if text is raw else "text_config", text, tuple(text_keys))]
    if family in VISION_LANGUAGE:
        vision_keys: tuple[str, ...] = _VISION_INTEGERS
        vision_keys += ("window_size",) if family == "qwen2_5_vl" else ("num_position_embeddings",)
        sections += [("", raw, _TOKEN_IDS), ("vision_config", raw.get("vision_config"), vision_keys)]
    return sections


def _check_keys(family: str, raw: Mapping[str, Any], text: Any, where: str) -> None:
    """Names every missing or misformed key at once."""
    missing, wrong = [], []
    for section, values, keys in _required(family, raw, text):
        prefix = f"{section}." if section else ""
        if not isinstance(values, Mapping):
            missing.append(section)
            continue
        for key in keys:
            value = values.get(key)
            if value is None:
                missing.append(prefix + key)
            elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
                wrong.append(f"{prefix}{key} = {value!r}")
    if isinstance(text, Mapping):
        prefix = "" if text is raw else "text_config."
        rope = _rope(text)
        if rope.get("rope_theta") is None:
            missing.append(f"{prefix}rope_theta (or rope_parameters)")
        if family in VISION_LANGUAGE and rope.get("mrope_section") is None:
            missing.append(f"{prefix}rope_scaling.mrope_section")
        if text.get("rms_norm_eps") is None:
            missing.append(f"{prefix}rms_norm_eps")
        if family == "qwen3_vl_moe" and _num_experts(text) is None:
            missing.append(f"{prefix}num_experts")
    vision = raw.get("vision_config")
    if isinstance(vision, Mapping):
        for owner, key in (
            ("qwen3", "deepstack_visual_indexes"),
            ("qwen2_5", "fullatt_block_indexes"),
            ("qwen2_5", "tokens_per_second"),
        ):
            if family.startswith(owner) and vision.get(key) is None:
                missing.append(f"vision_config.{key}")
    if raw.get("tie_word_embeddings") is None:
        missing.append("tie_word_embeddings")
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; is it the config of a {family} checkpoint?")
    if wrong:
        raise UserError(f"{where}: {', '.join(wrong)} must be whole numbers")


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of either spelling as one table."""
    table = {"rope_theta": text.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        table.update({name: value for name, value in (text.get(key) or {}).items() if value is not None})
    return table


def _num_experts(text: Mapping[str, Any]) -> int | None:
    return text.get("num_experts", text.get("num_local_experts"))


def _read_text(family: str, raw: Mapping[str, Any], where: str) -> TextConfig:
    rope = _rope(raw)
    interleaved = family.startswith("qwen3_vl")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not (kind == "mrope" and family == "qwen2_5_vl"):
        _expect(where, "rope_type", kind, "default")
    _expect(where, "mrope_interleaved", bool(rope.get("mrope_interleaved", interleaved)), interleaved)
    _expect(where, "hidden_act", raw.get("hidden_act", "silu"), "silu")
    _expect(where, "use_sliding_window", bool(raw.get("use_sliding_window")), False)
    if family.startswith("qwen3"):
        _expect(where, "attention_bias", bool(raw.get("attention_bias")), False)
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    section = tuple(int(part) for part in rope.get("mrope_section") or (head_dim // 2, 0, 0))
    layers = raw["num_hidden_layers"]
    sparse: tuple[int, ...] = ()
    if family == "qwen3_vl_moe":
        dense, step = set(raw.get("mlp_only_layers") or ()), raw.get("decoder_sparse_step") or 1
        sparse = tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)
    return TextConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=layers,
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=head_dim,
        ffn_size=raw["intermediate_size"],
        rope_theta=rope["rope_theta"],
        mrope_section=section,  # type: ignore[arg-type]  # its length is checked by ModelConfig
        mrope_interleaved=interleaved,
        qk_norm=family.startswith("qwen3"),
        qkv_bias=family.startswith("qwen2"),
        rms_norm_eps=float(raw["rms_norm_eps"]),
        num_experts=(_num_experts(raw) or 0) if sparse else 0,
        experts_per_token=raw["num_experts_per_tok"] if sparse else 0,
        expert_ffn_size=raw["moe_intermediate_size"] if sparse else 0,
        sparse_layers=sparse,
        max_position_embeddings=raw.get("max_position_embeddings") or 262144,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=raw.get("eos_token_id"),
    )


def _read_vision(family: str, raw: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> VisionConfig:
    windowed = family == "qwen2_5_vl"
    activation = "silu" if windowed else "gelu_pytorch_tanh"
    _expect(where, "vision_config.hidden_act", raw.get("hidden_act", activation), activation)
    rope = raw.get("rope_parameters") or {}
    _expect(where, "vision_config rope_type", rope.get("rope_type", "axial"), "axial")
    _expect(where, "vision_config rope_theta", float(rope.get("rope_theta", 10000.0)), 10000.0)
    channels = raw.get("in_channels") or raw.get("in_chans") or 3
    half = (0.5,) * channels
    window = raw["window_size"] // (raw["patch_size"] * raw["spatial_merge_size"]) if windowed else 0
    if windowed and window < 1:
        raise UserError(
            f"{where}: vision_config.window_size {raw['window_size']} is smaller than one merged token of "
            f"{raw['patch_size'] * raw['spatial_merge_size']} pixels"
        )
    return VisionConfig(
        depth=raw["depth"],
        hidden_size=raw["hidden_size"],
        num_heads=raw["num_heads"],
        ffn_size=raw["intermediate_size"],
        out_hidden_size=raw["out_hidden_size"],
        num_positions=0 if windowed else raw["num_position_embeddings"],
        deepstack_layers=() if windowed else tuple(raw["deepstack_visual_indexes"]),
        patch_size=raw["patch_size"],
        temporal_patch_size=raw["temporal_patch_size"],
        merge_size=raw["spatial_merge_size"],
        in_channels=channels,
        image_mean=tuple(preprocessor.get("image_mean") or half),
        image_std=tuple(preprocessor.get("image_std") or half),
        style="qwen2_5_vl" if windowed else "qwen3_vl",
        window=window,
        full_attention_layers=tuple(raw["fullatt_block_indexes"]) if windowed else (),
        tokens_per_second=float(raw["tokens_per_second"]) if windowed else 0.0,
    )


def _expect(where: str, name: str, value: Any, supported: Any) -> None:
    if value != supported:
        raise UserError(f"{where}: {name} is {value!r}; only {supported!r} is supported")


def _read_if_there(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give a folder with a checkpoint in Hugging Face's format") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy the checkpoint again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value
