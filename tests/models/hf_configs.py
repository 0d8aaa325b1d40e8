"""config.json as the hub has it (transformers 4) and as transformers 5 saves it, for a `ModelConfig` of any family."""

from __future__ import annotations

import copy
from typing import Any

from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig

ARCHITECTURES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
FLAT = ("qwen2_5_vl", "qwen3", "qwen2")
"""Families whose hub files keep the language model's keys at the top level."""


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The hub's spelling (transformers 4)."""
    family, text = config.model_type, _text(config, dtype)
    raw: dict[str, Any] = {"architectures": [ARCHITECTURES[family]], "model_type": family}
    raw |= text if family in FLAT else {"text_config": text}
    raw["tie_word_embeddings"] = config.tie_word_embeddings
    raw["transformers_version"] = "4.57.0"
    if config.vision is not None:
        raw["vision_config"] = _vision(config.vision, family)
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            raw[key] = getattr(config, key)
    return raw


def v5(raw: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 5 saves it."""
    raw = copy.deepcopy(raw)
    family = raw["model_type"]
    text = raw.get("text_config", raw)
    rope = dict(text.pop("rope_scaling", None) or {})
    text["rope_parameters"] = {"rope_type": "default", **rope, "rope_theta": text.pop("rope_theta")}
    raw["dtype"] = text.pop("dtype", None) or text.pop("torch_dtype", None)
    raw["transformers_version"] = "5.23.0"
    if family == "qwen2_5_vl":
        outer = {"architectures", "model_type", "dtype", "tie_word_embeddings", "transformers_version", "vision_config"}
        outer |= {key for key in raw if key.endswith("_token_id") and not key.startswith(("bos", "eos"))}
        text = {key: raw.pop(key) for key in list(raw) if key not in outer}
        raw["text_config"] = {**text, "model_type": "qwen2_5_vl_text", "dtype": raw["dtype"]}
    if family == "qwen3_vl_moe":
        text["num_local_experts"] = text.pop("num_experts")
        text.pop("norm_topk_prob")
        text["tie_word_embeddings"] = True  # meaningless, and there all the same
    if "vision_config" in raw:
        vision = raw["vision_config"]
        vision["model_type"] = f"{family}_vision"
        vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": 10000.0}
        if "in_chans" in vision:
            vision["in_channels"] = vision["in_chans"]
    return raw


def _text(config: ModelConfig, dtype: str) -> dict[str, Any]:
    family, text = config.model_type, config.text
    raw: dict[str, Any] = {
        "bos_token_id": text.bos_token_id,
        "torch_dtype" if family in FLAT else "dtype": dtype,
        "eos_token_id": text.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.ffn_size,
        "max_position_embeddings": text.max_position_embeddings,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "use_cache": True,
        "vocab_size": text.vocab_size,
    }
    if family in FLAT:
        raw |= {"max_window_layers": text.num_layers, "sliding_window": None, "use_sliding_window": False}
    else:
        raw |= {"model_type": f"{family}_text"}
    if family.startswith("qwen3"):
        raw |= {"attention_bias": False, "head_dim": text.head_dim}
    section = list(text.mrope_section)
    if family == "qwen2_5_vl":
        raw["rope_scaling"] = {"type": "mrope", "mrope_section": section}
    elif family.startswith("qwen3_vl"):
        raw["rope_scaling"] = {"mrope_interleaved": True, "mrope_section": section, "rope_type": "default"}
    if family == "qwen3_vl" and config.tie_word_embeddings:
        raw["tie_word_embeddings"] = True
    if family == "qwen3_vl_moe":
        raw |= _experts(text)
    return raw


def _experts(text: TextConfig) -> dict[str, Any]:
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(text.dense_layers),
        "moe_intermediate_size": text.expert_ffn_size,
        "norm_topk_prob": True,
        "num_experts": text.num_experts,
        "num_experts_per_tok": text.experts_per_token,
    }


def _vision(vision: VisionConfig, family: str) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_size,
        "num_heads": vision.num_heads,
        "out_hidden_size": vision.out_hidden_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    if vision.style == "qwen2_5_vl":
        return raw | {
            "fullatt_block_indexes": list(vision.full_attention_layers),
            "hidden_act": "silu",
            "in_chans": vision.in_channels,
            "spatial_patch_size": vision.patch_size,
            "tokens_per_second": int(vision.tokens_per_second),
            "window_size": vision.window * vision.patch_size * vision.merge_size,
        }
    return raw | {
        "deepstack_visual_indexes": list(vision.deepstack_layers),
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": vision.in_channels,
        "initializer_range": 0.02,
        "model_type": family,
        "num_position_embeddings": vision.num_positions,
    }
