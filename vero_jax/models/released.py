"""The sizes of the released checkpoints, for work without their files: parameter counts, memory, compilation.

Instruct and Thinking editions of a Qwen3-VL have the same sizes. A checkpoint's own config.json always wins over this
table.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import NamedTuple

from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig

_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


class _Sizes(NamedTuple):
    """A row of the table: width, layers, heads, key-value heads, MLP width, tied head, blocks of the tower, its width
    and its MLP width."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    tied: bool
    depth: int
    vision_width: int
    vision_ffn: int


_QWEN3_VL = {
    "Qwen3-VL-2B": _Sizes(2048, 28, 16, 8, 6144, True, 24, 1024, 4096),
    "Qwen3-VL-4B": _Sizes(2560, 36, 32, 8, 9728, True, 24, 1024, 4096),
    "Qwen3-VL-8B": _Sizes(4096, 36, 32, 8, 12288, False, 27, 1152, 4304),
    "Qwen3-VL-32B": _Sizes(5120, 64, 64, 8, 25600, False, 27, 1152, 4304),
    "Qwen3-VL-30B-A3B": _Sizes(2048, 48, 32, 4, 6144, False, 27, 1152, 4304),
    "Qwen3-VL-235B-A22B": _Sizes(4096, 94, 64, 4, 12288, False, 27, 1152, 4304),
}
_EXPERT_FFN = {"Qwen3-VL-30B-A3B": 768, "Qwen3-VL-235B-A22B": 1536}
_QWEN2_5_VL = {
    "Qwen2.5-VL-3B": _Sizes(2048, 36, 16, 2, 11008, True, 32, 1280, 3420),
    "Qwen2.5-VL-7B": _Sizes(3584, 28, 28, 4, 18944, False, 32, 1280, 3420),
    "Qwen2.5-VL-32B": _Sizes(5120, 64, 40, 8, 27648, False, 32, 1280, 3456),
    "Qwen2.5-VL-72B": _Sizes(8192, 80, 64, 8, 29568, False, 32, 1280, 3456),
    "MiMo-VL-7B": _Sizes(4096, 36, 32, 8, 11008, False, 32, 1280, 3456),
}
_VOCABULARY = {"Qwen2.5-VL-3B": 151936, "MiMo-VL-7B": 151680}
RELEASED = (*_QWEN3_VL, *_QWEN2_5_VL)
"""The names that `released_config` knows."""


def released_config(name: str) -> ModelConfig:
    """The config of a released model, by its name without the edition, such as "Qwen3-VL-8B".

    Raises:
      UserError: the name is not in `RELEASED`.
    """
    if name in _QWEN3_VL:
        return _qwen3_vl(name, _QWEN3_VL[name])
    if name in _QWEN2_5_VL:
        return _qwen2_5_vl(name, _QWEN2_5_VL[name])
    near = difflib.get_close_matches(name, RELEASED, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"there is no released model {name!r}{hint} Known are {', '.join(RELEASED)}")


def _qwen3_vl(name: str, sizes: _Sizes) -> ModelConfig:
    experts = name in _EXPERT_FFN
    text = TextConfig(
        vocab_size=151936,
        hidden_size=sizes.width,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=128,
        ffn_size=sizes.ffn,
        rope_theta=5_000_000,
        mrope_section=(24, 20, 20),
        bos_token_id=151643,
        eos_token_id=151645,
    )
    if experts:
        text = dataclasses.replace(
            text,
            num_experts=128,
            experts_per_token=8,
            expert_ffn_size=_EXPERT_FFN[name],
            sparse_layers=tuple(range(sizes.layers)),
        )
    vision = VisionConfig(
        depth=sizes.depth,
        hidden_size=sizes.vision_width,
        num_heads=16,
        ffn_size=sizes.vision_ffn,
        out_hidden_size=sizes.width,
        num_positions=2304,
        deepstack_layers=(5, 11, 17) if sizes.depth == 24 else (8, 16, 24),
    )
    return ModelConfig(
        text, vision, **_IDS, tie_word_embeddings=sizes.tied, model_type="qwen3_vl_moe" if experts else "qwen3_vl"
    )


def _qwen2_5_vl(name: str, sizes: _Sizes) -> ModelConfig:
    mimo = name.startswith("MiMo")
    text = TextConfig(
        vocab_size=_VOCABULARY.get(name, 152064),
        hidden_size=sizes.width,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=128,
        ffn_size=sizes.ffn,
        rope_theta=640_000.0 if mimo else 1_000_000.0,
        mrope_section=(16, 24, 24),
        mrope_interleaved=False,
        qk_norm=False,
        qkv_bias=True,
        rms_norm_eps=1e-5 if mimo else 1e-6,
        max_position_embeddings=128000,
        bos_token_id=151643,
        eos_token_id=151645,
    )
    vision = VisionConfig(
        depth=sizes.depth,
        hidden_size=sizes.vision_width,
        num_heads=16,
        ffn_size=sizes.vision_ffn,
        out_hidden_size=sizes.width,
        num_positions=0,
        deepstack_layers=(),
        patch_size=14,
        style="qwen2_5_vl",
        window=4,
        full_attention_layers=(7, 15, 23, 31),
        tokens_per_second=2.0,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )
    return ModelConfig(text, vision, **_IDS, tie_word_embeddings=sizes.tied, model_type="qwen2_5_vl")
