"""The text files of a new Qwen3-VL checkpoint folder: configs, tokenizer, chat template, preprocessor.

The weights are added by `vero_jax.models.build`; this file imports no jax.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vero_jax.config import BuildConfig
from vero_jax.data.tokenizer import load_tokenizer, read_json, save_tokenizer, train_tokenizer, write_json
from vero_jax.errors import UserError

COPIED_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
"""What a policy takes over from the folder whose tokenizer it uses, as far as it is there."""

CONFIG_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "eos_token_id": "<|im_end|>",
    "bos_token_id": "<|endoftext|>",
}

PATCH_SIZE = 16
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
QWEN_SECTION = (24, 20, 20)
"""Rotary frequencies of Qwen3-VL's head of 128 for time, height and width."""


def mrope_section(head_dim: int) -> list[int]:
    """Qwen3-VL's shares of the head_dim / 2 rotary frequencies for time, height and width.

    Height and width take every third frequency from the first on, so neither may have more than a third.
    """
    half = head_dim // 2
    side = half * QWEN_SECTION[1] // sum(QWEN_SECTION)
    return [half - 2 * side, side, side]


def write_policy_files(out_dir: Path, build: BuildConfig, corpus: Iterable[str] = ()) -> None:
    """Writes everything of a checkpoint folder but the weights.

    Args:
      out_dir: the folder, made if needed.
      build: sizes, and where the tokenizer comes from.
      corpus: texts for training the tokenizer, if `build.tokenizer` is "mini".

    Raises:
      UserError: the tokenizer folder lacks something, or `build.vocab_size` is too small.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if build.tokenizer == "mini":
        save_tokenizer(out_dir, train_tokenizer(corpus, build.vocab_size))
        write_json(out_dir / "preprocessor_config.json", _preprocessor(build))
        vocab_size = build.vocab_size
    else:
        vocab_size = _copy_folder(Path(build.tokenizer).expanduser(), out_dir)
    tokenizer = load_tokenizer(out_dir)
    ids = {}
    for name, token in CONFIG_TOKENS.items():
        index = tokenizer.token_to_id(token)
        if index is None:
            raise UserError(f"the tokenizer of {build.tokenizer} lacks {token}; a Qwen tokenizer is needed")
        ids[name] = index
    eos, end_of_text = ids.pop("eos_token_id"), ids.pop("bos_token_id")
    preprocessor = read_json(out_dir / "preprocessor_config.json")
    write_json(out_dir / "config.json", _config(build, preprocessor, vocab_size, ids, eos, end_of_text))
    if not (out_dir / "generation_config.json").is_file():
        generation = {
            "bos_token_id": end_of_text,
            "pad_token_id": end_of_text,
            "eos_token_id": [eos, end_of_text],
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
        }
        write_json(out_dir / "generation_config.json", generation)


def _copy_folder(source: Path, out_dir: Path) -> int:
    """Copies tokenizer and preprocessor files; returns the vocabulary size that they belong to."""
    if not source.is_dir():
        raise UserError(f"model.build.tokenizer={source} is no folder; give one with a tokenizer, or 'mini'")
    if not (source / "preprocessor_config.json").is_file():
        raise UserError(f"{source} has no preprocessor_config.json, which model.build.tokenizer needs too")
    for name in COPIED_FILES:
        if (source / name).is_file() and source.resolve() != out_dir.resolve():
            shutil.copyfile(source / name, out_dir / name)
    if (source / "config.json").is_file():
        config = read_json(source / "config.json")
        size = config.get("text_config", config).get("vocab_size")
        if size is not None:
            return int(size)
    return 1 + max(load_tokenizer(source).get_vocab(with_added_tokens=True).values())


def _preprocessor(build: BuildConfig) -> dict[str, Any]:
    return {
        "size": {"shortest_edge": build.min_pixels, "longest_edge": build.max_pixels},
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "image_mean": list(build.image_mean),
        "image_std": list(build.image_std),
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }


def _config(
    build: BuildConfig, preprocessor: dict[str, Any], vocab_size: int, ids: dict[str, int], eos: int, end_of_text: int
) -> dict[str, Any]:
    """config.json in the hub's spelling, which transformers 4.57 and 5 read."""
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "dtype": "float32",
        "eos_token_id": eos,
        "head_dim": build.head_dim,
        "hidden_act": "silu",
        "hidden_size": build.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": build.ffn_size,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": build.num_heads,
        "num_hidden_layers": build.num_layers,
        "num_key_value_heads": build.num_kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": mrope_section(build.head_dim),
            "rope_type": "default",
        },
        "rope_theta": build.rope_theta,
        "tie_word_embeddings": build.tie_embeddings,
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    vision = {
        "deepstack_visual_indexes": list(build.deepstack_layers),
        "depth": build.vision_depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": build.vision_hidden_size,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": build.vision_ffn_size,
        "model_type": "qwen3_vl",
        "num_heads": build.vision_heads,
        "num_position_embeddings": build.vision_positions,
        "out_hidden_size": build.hidden_size,
        "patch_size": preprocessor["patch_size"],
        "spatial_merge_size": preprocessor["merge_size"],
        "temporal_patch_size": preprocessor["temporal_patch_size"],
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **ids,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": build.tie_embeddings,
        "transformers_version": "4.57.0",
    }
