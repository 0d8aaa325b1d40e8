"""What a checkpoint's config.json says about the model, read from either spelling and written back in the hub's.

Two spellings of one file are in use: the hub's (transformers 4: `rope_theta` and `rope_scaling` side by side) and the
one that transformers 5 saves (`rope_parameters`). `ModelConfig` is frozen and hashable, so it can be a static argument.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError

SUPPORTED = ("qwen3_vl",)
"""The `model_type` values that this package can run."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model: a Qwen3 decoder."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Rotary frequencies that read the time, height and width axis; they add up to half of `head_dim`."""
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 262144
    bos_token_id: int | None = None
    eos_token_id: int | None = None


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: a ViT over patches, with a merger in front of the language model."""

    depth: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    out_hidden_size: int
    """Width of a merged visual token; equal to the language model's hidden size."""
    num_positions: int
    """Entries of the learned position table, a square number."""
    deepstack_layers: tuple[int, ...]
    """Blocks whose output is also merged and added after the first language layers, in this order."""
    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    in_channels: int = 3
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel; from preprocessor_config.json, as is `image_std`."""
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_elements(self) -> int:
        """E: numbers in one patch, ordered (channel, frame, row, column)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def positions_side(self) -> int:
        return math.isqrt(self.num_positions)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A vision-language policy. `UserError` when the numbers contradict each other."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool
    model_type: str = "qwen3_vl"

    def __post_init__(self) -> None:
        text, vision = self.text, self.vision
        rules = [
            (text.head_dim % 2 == 0, f"text head_dim {text.head_dim} must be even"),
            (
                len(text.mrope_section) == 3 and sum(text.mrope_section) == text.head_dim // 2,
                f"mrope_section {list(text.mrope_section)} must be three numbers that add up to half of head_dim "
                f"{text.head_dim}",
            ),
            (
                text.num_heads % text.num_kv_heads == 0,
                f"num_attention_heads {text.num_heads} must be a multiple of num_key_value_heads {text.num_kv_heads}",
            ),
            (
                vision.hidden_size % vision.num_heads == 0 and vision.head_dim % 4 == 0,
                f"vision hidden_size {vision.hidden_size} over {vision.num_heads} heads must give a multiple of 4",
            ),
            (
                vision.positions_side**2 == vision.num_positions,
                f"num_position_embeddings {vision.num_positions} must be a square number",
            ),
            (
                vision.out_hidden_size == text.hidden_size,
                f"vision out_hidden_size {vision.out_hidden_size} must equal the text hidden_size {text.hidden_size}",
            ),
            (
                list(vision.deepstack_layers) == sorted(set(vision.deepstack_layers))
                and all(0 <= layer < vision.depth for layer in vision.deepstack_layers),
                f"deepstack_visual_indexes {list(vision.deepstack_layers)} must rise and lie below the vision depth "
                f"{vision.depth}",
            ),
            (
                len(vision.deepstack_layers) <= text.num_layers,
                f"{len(vision.deepstack_layers)} deepstack_visual_indexes need as many language layers, "
                f"num_hidden_layers is {text.num_layers}",
            ),
            (
                len(vision.image_mean) == vision.in_channels == len(vision.image_std),
                f"image_mean and image_std need {vision.in_channels} numbers each",
            ),
        ]
        for holds, complaint in rules:
            if not holds:
                raise UserError(f"the model config is inconsistent: {complaint}")

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelConfig:
        """Reads config.json and, if there, the image statistics of preprocessor_config.json."""
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"model folder {folder} does not exist; give a folder with config.json and safetensors files"
            )
        raw = _read_json(folder / "config.json")
        images = {}
        if (folder / "preprocessor_config.json").is_file():
            images = _read_json(folder / "preprocessor_config.json")
        return cls.from_hf(raw, images, where=str(folder / "config.json"))

    @classmethod
    def from_hf(
        cls, raw: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, where: str = "config.json"
    ) -> ModelConfig:
        """From a parsed config.json in either spelling.

        Args:
            preprocessor: the parsed preprocessor_config.json; without its mean and deviation both are 0.5.
            where: how errors call the file.
        """
        model_type = raw.get("model_type")
        if model_type not in SUPPORTED:
            raise UserError(
                f"{where}: model_type {model_type!r} is not supported; this version runs {', '.join(SUPPORTED)}"
            )
        _check_keys(raw, where)
        return cls(
            text=_read_text(raw["text_config"], where),
            vision=_read_vision(raw["vision_config"], preprocessor or {}, where),
            # Only the top level counts: larger checkpoints carry a meaningless value inside text_config.
            tie_word_embeddings=bool(raw["tie_word_embeddings"]),
            image_token_id=raw["image_token_id"],
            video_token_id=raw["video_token_id"],
            vision_start_token_id=raw["vision_start_token_id"],
            vision_end_token_id=raw["vision_end_token_id"],
            model_type=model_type,
        )

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """config.json in the hub's spelling, which transformers 4.57 and 5 both load.

        Args:
            dtype: of the tensors that are saved with it, as in "bfloat16".
        """
        text, vision = self.text, self.vision
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "image_token_id": self.image_token_id,
            "model_type": self.model_type,
            "text_config": {
                "attention_bias": False,
                "attention_dropout": 0.0,
                "bos_token_id": text.bos_token_id,
                "dtype": dtype,
                "eos_token_id": text.eos_token_id,
                "head_dim": text.head_dim,
                "hidden_act": "silu",
                "hidden_size": text.hidden_size,
                "initializer_range": 0.02,
                "intermediate_size": text.ffn_size,
                "max_position_embeddings": text.max_position_embeddings,
                "model_type": "qwen3_vl_text",
                "num_attention_heads": text.num_heads,
                "num_hidden_layers": text.num_layers,
                "num_key_value_heads": text.num_kv_heads,
                "rms_norm_eps": text.rms_norm_eps,
                "rope_scaling": {
                    "mrope_interleaved": True,
                    "mrope_section": list(text.mrope_section),
                    "rope_type": "default",
                },
                "rope_theta": text.rope_theta,
                "tie_word_embeddings": self.tie_word_embeddings,
                "use_cache": True,
                "vocab_size": text.vocab_size,
            },
            "tie_word_embeddings": self.tie_word_embeddings,
            "transformers_version": "4.57.0",
            "video_token_id": self.video_token_id,
            "vision_config": {
                "deepstack_visual_indexes": list(vision.deepstack_layers),
                "depth": vision.depth,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": vision.hidden_size,
                "in_channels": vision.in_channels,
                "initializer_range": 0.02,
                "intermediate_size": vision.ffn_size,
                "model_type": "qwen3_vl",
                "num_heads": vision.num_heads,
                "num_position_embeddings": vision.num_positions,
                "out_hidden_size": vision.out_hidden_size,
                "patch_size": vision.patch_size,
                "spatial_merge_size": vision.merge_size,
                "temporal_patch_size": vision.temporal_patch_size,
            },
            "vision_end_token_id": self.vision_end_token_id,
            "vision_start_token_id": self.vision_start_token_id,
        }


_INTEGERS = {
    "": ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    "text_config": (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
    ),
    "vision_config": (
        "depth",
        "hidden_size",
        "num_heads",
        "intermediate_size",
        "out_hidden_size",
        "num_position_embeddings",
        "patch_size",
        "temporal_patch_size",
        "spatial_merge_size",
    ),
}
"""Keys that must be there and be whole numbers, by section. Guessing a missing one would give wrong answers quietly."""


def _check_keys(raw: Mapping[str, Any], where: str) -> None:
    """Names every missing or misformed key at once."""
    missing, wrong = [], []
    for section, keys in _INTEGERS.items():
        values = raw.get(section) if section else raw
        if not isinstance(values, Mapping):
            missing.append(section)
            continue
        for key in keys:
            name = f"{section}.{key}" if section else key
            value = values.get(key)
            if value is None:
                missing.append(name)
            elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
                wrong.append(f"{name} = {value!r}")
    text, vision = raw.get("text_config"), raw.get("vision_config")
    if isinstance(text, Mapping):
        rope = _rope(text)
        missing += [f"text_config.{key} (or rope_parameters)" for key in ("rope_theta",) if rope.get(key) is None]
        missing += [f"text_config.rope_scaling.{key}" for key in ("mrope_section",) if rope.get(key) is None]
        if text.get("rms_norm_eps") is None:
            missing.append("text_config.rms_norm_eps")
    if isinstance(vision, Mapping) and vision.get("deepstack_visual_indexes") is None:
        missing.append("vision_config.deepstack_visual_indexes")
    if raw.get("tie_word_embeddings") is None:
        missing.append("tie_word_embeddings")
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; is it the config of a {raw['model_type']} checkpoint?")
    if wrong:
        raise UserError(f"{where}: {', '.join(wrong)} must be whole numbers")


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of either spelling as one table."""
    table = {"rope_theta": text.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        table.update({name: value for name, value in (text.get(key) or {}).items() if value is not None})
    return table


def _read_text(raw: Mapping[str, Any], where: str) -> TextConfig:
    rope = _rope(raw)
    _expect(where, "text_config rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
    _expect(where, "text_config mrope_interleaved", rope.get("mrope_interleaved", True), True)
    _expect(where, "text_config.hidden_act", raw.get("hidden_act", "silu"), "silu")
    _expect(where, "text_config.attention_bias", bool(raw.get("attention_bias")), False)
    section = tuple(int(part) for part in rope["mrope_section"])
    return TextConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        ffn_size=raw["intermediate_size"],
        rope_theta=rope["rope_theta"],
        mrope_section=section,  # type: ignore[arg-type]  # its length is checked by ModelConfig
        rms_norm_eps=float(raw["rms_norm_eps"]),
        max_position_embeddings=raw.get("max_position_embeddings") or 262144,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=raw.get("eos_token_id"),
    )


def _read_vision(raw: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> VisionConfig:
    _expect(where, "vision_config.hidden_act", raw.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh")
    rope = raw.get("rope_parameters") or {}
    _expect(where, "vision_config rope_type", rope.get("rope_type", "axial"), "axial")
    _expect(where, "vision_config rope_theta", float(rope.get("rope_theta", 10000.0)), 10000.0)
    channels = raw.get("in_channels") or 3
    half = (0.5,) * channels
    return VisionConfig(
        depth=raw["depth"],
        hidden_size=raw["hidden_size"],
        num_heads=raw["num_heads"],
        ffn_size=raw["intermediate_size"],
        out_hidden_size=raw["out_hidden_size"],
        num_positions=raw["num_position_embeddings"],
        deepstack_layers=tuple(raw["deepstack_visual_indexes"]),
        patch_size=raw["patch_size"],
        temporal_patch_size=raw["temporal_patch_size"],
        merge_size=raw["spatial_merge_size"],
        in_channels=channels,
        image_mean=tuple(preprocessor.get("image_mean") or half),
        image_std=tuple(preprocessor.get("image_std") or half),
    )


def _expect(where: str, name: str, value: Any, supported: Any) -> None:
    if value != supported:
        raise UserError(f"{where}: {name} is {value!r}; only {supported!r} is supported")


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
