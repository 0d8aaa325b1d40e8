"""What a checkpoint's folder says about prompts: its chat template, image and video settings, and special ids.

Files of both generations are read. Transformers 4 writes preprocessor_config.json, video_preprocessor_config.json and
chat_template.json; transformers 5 nests the first two in processor_config.json and writes chat_template.jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from vero_jax.data import geometry
from vero_jax.data.chat import ChatTemplate, template_with_system_prompt
from vero_jax.data.coordinates import Coordinates
from vero_jax.data.images import ImageSettings
from vero_jax.data.prompts import carries_format
from vero_jax.data.tokenizer import read_json
from vero_jax.data.videos import VideoSettings
from vero_jax.errors import UserError

TEXT_ONLY = ("qwen2", "qwen3")
"""Values of model_type without a vision tower."""

VIDEO_LIMITS: Mapping[str, Literal["video", "frame"]] = {
    "qwen3_vl": "video",
    "qwen3_vl_moe": "video",
    "qwen2_5_vl": "frame",
}
"""What the pixel limits of a family's videos count; families that are not listed take no videos here."""


COORDINATES: Mapping[str, Coordinates] = {
    "qwen3_vl": "normalized_1000",
    "qwen3_vl_moe": "normalized_1000",
    "qwen2_5_vl": "pixels",
}
"""What the boxes and points of a family mean that its authors trained: thousandths, or pixels of the resized image."""


def read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def find(values: Mapping[str, Any], key: str, path: Path) -> Any:
    """The value of a key. Raises `UserError` naming key and file where it is absent."""
    if values.get(key) is None:
        raise UserError(f"{path} has no {key}; it is not the configuration of a Qwen model of this kind")
    return values[key]


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else value["content"]
        for key, value in tokenizer_config.items()
        if key in ("bos_token", "eos_token", "pad_token", "unk_token") and value
    }


def eos_ids(
    tokenizer: Tokenizer,
    eos_token: str | None,
    generation: Mapping[str, Any],
    text_config: Mapping[str, Any],
    folder: Path,
) -> tuple[int, ...]:
    """The generation config's end ids (else the model config's), the tokenizer's own end of turn first."""
    listed = generation.get("eos_token_id", text_config.get("eos_token_id"))
    listed = [] if listed is None else listed if isinstance(listed, list) else [listed]
    own = tokenizer.token_to_id(eos_token) if eos_token else None
    ids = tuple(dict.fromkeys(([own] if own is not None else []) + listed))
    if not ids:
        raise UserError(f"{folder} names no end of turn: generation_config.json needs eos_token_id")
    return ids


def banned_ids(
    tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...], vision_ids: set[int]
) -> tuple[int, ...]:
    """Control tokens, the ids of visual tokens, and rows of the embedding without a token; but no end of turn."""
    known = set(tokenizer.get_vocab(with_added_tokens=True).values())
    control = {
        index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or token.content.startswith("<|")
    }
    unused = set(range(vocab_size)) - known
    return tuple(sorted((control | vision_ids | unused) - set(eos_ids)))


def read_template(folder: Path, tokenizer_config: Mapping[str, Any], special: Mapping[str, str]) -> ChatTemplate:
    """chat_template.jinja, chat_template.json or the entry of tokenizer_config.json, whichever comes first."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), str(path), special)
    path = folder / "chat_template.json"
    if path.is_file():
        return ChatTemplate(find(read_json(path), "chat_template", path), str(path), special)
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if not source:
        raise UserError(f"{folder} has no chat template: it needs chat_template.jinja (or .json)")
    return ChatTemplate(source, str(folder / "tokenizer_config.json"), special)


def write_system_prompt(folder: Path, text: str) -> None:
    """Makes `text` the system prompt of a folder's chat template, for conversations that bring none of their own.

    A policy is served as it was trained, by whatever program reads the folder. A folder without a chat template, or
    with one that asks for thoughts and answer itself where `text` does, is left alone.
    """
    values = read_if_there(folder / "tokenizer_config.json")
    try:
        template = read_template(folder, values, special_tokens(values))
    except UserError:
        return
    if carries_format(text) and carries_format(template.own_words()):
        return
    source = template_with_system_prompt(template.source, text)
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    older = folder / "chat_template.json"
    if older.is_file():
        older.write_text(json.dumps({"chat_template": source}, indent=2, ensure_ascii=False), encoding="utf-8")


def read_image_settings(
    folder: Path, config: Mapping[str, Any], min_pixels: int | None, max_pixels: int | None
) -> ImageSettings:
    """The image processor's settings; `min_pixels` and `max_pixels` override the folder's limits where given."""
    values, path = _processor_values(folder, "image_processor", ("preprocessor_config.json",))
    settings = ImageSettings(
        patch_size=int(find(values, "patch_size", path)),
        temporal_patch_size=int(find(values, "temporal_patch_size", path)),
        merge_size=int(find(values, "merge_size", path)),
        min_pixels=_limit(values, "min_pixels", "shortest_edge", path) if min_pixels is None else min_pixels,
        max_pixels=_limit(values, "max_pixels", "longest_edge", path) if max_pixels is None else max_pixels,
        mean=tuple(float(value) for value in find(values, "image_mean", path)),
        std=tuple(float(value) for value in find(values, "image_std", path)),
    )
    vision = config.get("vision_config", {})
    for ours, theirs, value in (
        ("patch_size", "patch_size", settings.patch_size),
        ("temporal_patch_size", "temporal_patch_size", settings.temporal_patch_size),
        ("merge_size", "spatial_merge_size", settings.merge_size),
    ):
        if vision.get(theirs, value) != value:
            raise UserError(
                f"{path} says {ours} {value}, the model's config.json says vision_config.{theirs} {vision[theirs]}; "
                "the files belong to different checkpoints"
            )
    geometry.check_pixel_limits(settings.min_pixels, settings.max_pixels, settings.factor, str(path))
    return settings


def read_video_settings(folder: Path, config: Mapping[str, Any], images: ImageSettings) -> VideoSettings | None:
    """The video processor's settings, else the image processor's; None for a family whose videos are not supported.

    Raises:
      UserError: what the file says does not fit the images' settings, with which the vision tower is fed.
    """
    family = str(config.get("model_type"))
    if family not in VIDEO_LIMITS or config.get("video_token_id") is None:
        return None
    values, path = _processor_values(
        folder, "video_processor", ("video_preprocessor_config.json", "preprocessor_config.json")
    )
    for key, value in (
        ("patch_size", images.patch_size),
        ("temporal_patch_size", images.temporal_patch_size),
        ("merge_size", images.merge_size),
        ("image_mean", images.mean),
        ("image_std", images.std),
    ):
        found = values.get(key, value)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise UserError(f"{path}: {key} of videos is {found}, that of images {value}; they must be equal")
    low = _limit(values, "min_pixels", "shortest_edge", path)
    high = _limit(values, "max_pixels", "longest_edge", path)
    if not 0 < low <= high:
        raise UserError(f"{path}: video sizes from {low} to {high} pixels leave no room for a video")
    limits = VIDEO_LIMITS[family]
    tokens_per_second = 0.0
    if limits == "frame":
        vision = config.get("vision_config", {})
        tokens_per_second = float(find(vision, "tokens_per_second", folder / "config.json"))
    cap = None
    if values.get("cap_pixels_per_frame"):
        cap = int(values.get("max_video_tokens") or (768 if limits == "video" else 128000))
    return VideoSettings(
        patch_size=images.patch_size,
        temporal_patch_size=images.temporal_patch_size,
        merge_size=images.merge_size,
        min_pixels=low,
        max_pixels=high,
        limits=limits,
        tokens_per_second=tokens_per_second,
        max_video_tokens=cap,
        fps=float(values.get("fps") or VideoSettings.fps),
        min_frames=int(values.get("min_frames") or VideoSettings.min_frames),
        max_frames=int(values.get("max_frames") or VideoSettings.max_frames),
    )


def _processor_values(folder: Path, section: str, names: tuple[str, ...]) -> tuple[dict[str, Any], Path]:
    """The settings of a processor and their file: nested in processor_config.json, or one of its own."""
    path = folder / "processor_config.json"
    nested = read_if_there(path).get(section)
    if isinstance(nested, dict):
        return nested, path
    paths = [folder / name for name in names]
    path = next((path for path in paths if path.is_file()), paths[-1])
    return read_json(path), path


def _limit(values: Mapping[str, Any], name: str, edge: str, path: Path) -> int:
    # Both spellings are areas in pixels, whatever "edge" suggests; the older one wins where both are written.
    size = values.get("size") or {}
    for value in (values.get(name), size.get(name), size.get(edge)):
        if value is not None:
            return int(value)
    raise UserError(f"{path} has neither {name} nor size.{edge}; set data.{name}")
