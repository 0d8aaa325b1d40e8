"""Qwen-style tokenizers: read from a checkpoint folder, or built offline for small policies.

Byte-level BPE with Qwen's pre-tokenisation: NFC, words with one leading space or sign, and every digit a token of its
own. Control tokens come after the merges, as in Qwen's vocabulary. Only the `tokenizers` library is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vero_jax.data.chat import QWEN_TEMPLATE
from vero_jax.errors import UserError

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or sign before it
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # white space
)

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special in Qwen's sense: left out of decoded text."""

TEXT_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Single tokens that stay in decoded text."""

ADDED_TOKENS = CONTROL_TOKENS + TEXT_TOKENS
BYTES = 256
ANSWER_FORMAT = "<answer>\\boxed{}</answer>\n<answer> \\boxed{ </answer>"
"""What the rewards ask of every response, so worth merges whatever the corpus."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises `UserError` naming the file when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a Hugging Face checkpoint folder needs it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__} where a JSON object is expected")
    return value


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: from tokenizer.json, or from vocab.json and merges.txt.

    Raises:
      UserError: neither is there, or a file is broken.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(whole))
        except Exception as error:  # the library raises bare Exception for whatever it cannot parse
            raise UserError(f"{whole} cannot be read as a tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _byte_level(_read_bpe(folder / "vocab.json", folder / "merges.txt"))
    else:
        raise UserError(f"{folder} has no tokenizer: it needs tokenizer.json, or vocab.json with merges.txt")
    _add_listed_tokens(tokenizer, folder)
    return tokenizer


def _read_bpe(vocab_path: Path, merges_path: Path) -> models.BPE:
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{merges_path} cannot be read: {error}") from error
    # Some copies start with a version line, some do not; no merge starts like it.
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    broken = next((merge for merge in merges if len(merge) != 2), None)
    if broken:
        raise UserError(f"{merges_path} is broken: {' '.join(broken)!r} is no pair of tokens")
    try:
        return models.BPE(vocab=read_json(vocab_path), merges=merges)  # type: ignore[arg-type]
    except Exception as error:  # as above; it means a merge whose parts or result the vocabulary lacks
        raise UserError(f"{vocab_path} and {merges_path.name} do not fit together: {error}") from error


def _add_listed_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Adds the tokens of tokenizer_config.json (or added_tokens.json) that the tokenizer does not know yet."""
    config = folder / "tokenizer_config.json"
    listed = read_json(config).get("added_tokens_decoder", {}) if config.is_file() else {}
    extra = folder / "added_tokens.json"
    if not listed and extra.is_file():
        listed = {str(index): {"content": content, "special": content.startswith("<|")}
                  for content, index in read_json(extra).items()}  # fmt: skip
    for index, token in sorted(listed.items(), key=lambda item: int(item[0])):
        flags = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        added = AddedToken(token["content"], **flags)
        if tokenizer.token_to_id(token["content"]) is None:
            (tokenizer.add_special_tokens if flags["special"] else tokenizer.add_tokens)([added])
        if tokenizer.token_to_id(token["content"]) != int(index):
            raise UserError(
                f"{folder}: {token['content']!r} has id {tokenizer.token_to_id(token['content'])} in the tokenizer "
                f"but {index} in the list of added tokens; the files belong to different tokenizers"
            )


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(corpus: Iterable[str], vocab_size: int = 1024) -> Tokenizer:
    """Learns a byte-level BPE. The same corpus gives the same tokenizer on every machine.

    Args:
      corpus: texts of the kind that the policy will read and write.
      vocab_size: tokens in all: 256 bytes, the merges, and the added tokens last. A corpus with too few frequent pairs
        gives fewer.

    Raises:
      UserError: `vocab_size` leaves no room for a merge.
    """
    merges = vocab_size - BYTES - len(ADDED_TOKENS)
    if merges < 1:
        raise UserError(
            f"model.build.vocab_size={vocab_size} is too small: {BYTES} bytes and {len(ADDED_TOKENS)} added tokens "
            f"leave no room for merges; take at least {BYTES + len(ADDED_TOKENS) + 1}"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + merges,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    added = re.compile("|".join(re.escape(token) for token in ADDED_TOKENS))
    texts = [piece for text in corpus for piece in added.split(text) if piece]
    texts += [ANSWER_FORMAT] * max(1000, len(texts))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TEXT_TOKENS])
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the files from which `transformers` (and `load_tokenizer`) read a tokenizer, and its chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    special = {
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
