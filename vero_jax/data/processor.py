"""From a question with encoded images to a `Prompt`: the chat and image processor of a checkpoint folder.

Reads what Hugging Face folders hold (tokenizer, chat template, preprocessor_config.json, config.json,
generation_config.json) and gives the token ids, pixels and positions that `transformers` gives, without torch. A
processor can be pickled, for data workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8
from tokenizers import Tokenizer

from vero_jax.data import geometry, images
from vero_jax.data.chat import IMAGE_MARKER, ChatTemplate, PromptError, conversation
from vero_jax.data.tokenizer import load_tokenizer, read_json
from vero_jax.errors import UserError
from vero_jax.types import Example, Prompt


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What preprocessor_config.json says: sizes in pixels, mean and std of pixels scaled to 0..1."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def factor(self) -> int:
        """Pixels along one side of a merged visual token."""
        return self.patch_size * self.merge_size

    @property
    def patch_elements(self) -> int:
        return len(self.mean) * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class Processor:
    """Turns examples into prompts and ids into text. Make one with `Processor.from_folder`."""

    tokenizer: Tokenizer
    template: ChatTemplate
    image_settings: ImageSettings
    vocab_size: int
    """Rows of the model's embedding; more than the tokenizer has, in Qwen's checkpoints."""
    eos_ids: tuple[int, ...]
    """Ids that end a response. The first ends an assistant's turn."""
    pad_id: int
    banned_ids: tuple[int, ...]
    """Ids that a sampler must not choose: vision and other control tokens, and rows without a token."""
    image_token_id: int
    video_token_id: int | None
    system_prompt: str = ""
    background: images.Background = "white"
    max_prompt_length: int | None = None

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        system_prompt: str = "",
        background: images.Background = "white",
        max_prompt_length: int | None = None,
    ) -> Processor:
        """Reads a Hugging Face checkpoint folder (weights are not touched).

        Args:
          folder: the checkpoint.
          min_pixels, max_pixels: image area limits in pixels; None takes the folder's.
          system_prompt: text put before every conversation.
          background: where transparent pixels lie, see `images.to_rgb`.
          max_prompt_length: longest prompt in tokens, images included; None is no limit.

        Raises:
          UserError: a file is missing or broken, or the files do not belong together.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"there is no checkpoint folder {folder}; give the path of a Hugging Face checkpoint")
        config = read_json(folder / "config.json")
        text_config = config.get("text_config", config)
        tokenizer_config = _read_if_there(folder / "tokenizer_config.json")
        generation = _read_if_there(folder / "generation_config.json")
        tokenizer = load_tokenizer(folder)
        vocab_size = int(_find(text_config, "vocab_size", folder / "config.json"))
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has id {largest} but config.json says vocab_size {vocab_size}; "
                "the tokenizer belongs to another checkpoint"
            )
        special = {
            key: value if isinstance(value, str) else value["content"]
            for key, value in tokenizer_config.items()
            if key in ("bos_token", "eos_token", "pad_token", "unk_token") and value
        }
        eos_ids = _eos_ids(tokenizer, special.get("eos_token"), generation, text_config, folder)
        pad_id = generation.get("pad_token_id")
        if pad_id is None and "pad_token" in special:
            pad_id = tokenizer.token_to_id(special["pad_token"])
        vision_ids = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
        template = _read_template(folder, tokenizer_config, special)
        _ = template.compiled  # a broken template is an error of the folder, not of the first row
        return cls(
            tokenizer=tokenizer,
            template=template,
            image_settings=_read_image_settings(folder, config, min_pixels, max_pixels),
            vocab_size=vocab_size,
            eos_ids=eos_ids,
            pad_id=eos_ids[-1] if pad_id is None else int(pad_id),
            banned_ids=_banned_ids(tokenizer, vocab_size, eos_ids, vision_ids),
            image_token_id=int(_find(config, "image_token_id", folder / "config.json")),
            video_token_id=config.get("video_token_id"),
            system_prompt=system_prompt,
            background=background,
            max_prompt_length=max_prompt_length,
        )

    @property
    def image_mean(self) -> tuple[float, ...]:
        return self.image_settings.mean

    @property
    def image_std(self) -> tuple[float, ...]:
        return self.image_settings.std

    def prompt(self, example: Example) -> Prompt:
        """The prompt of one example: tokens, positions and uint8 patches.

        Raises:
          PromptError: the example cannot be used; its `reason` says why in a few words, the message in full.
        """
        turns = conversation(example.messages, len(example.images), self.system_prompt)
        text = self.template.render(turns)
        token_ids = np.asarray(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        try:
            opened = [images.open_image(data) for data in example.images]
        except images.ImageError as error:
            raise PromptError(error.reason, error.detail) from error
        stored = tuple(image.size for image in opened)
        sizes = [self.resized(width, height) for width, height in stored]
        patch = self.image_settings.patch_size
        grids = np.asarray([(1, height // patch, width // patch) for height, width in sizes], np.int32).reshape(-1, 3)
        token_ids = self._expand(token_ids, grids)
        if self.max_prompt_length is not None and len(token_ids) > self.max_prompt_length:
            raise PromptError(
                "prompt too long", f"prompt of {len(token_ids)} tokens, the limit is {self.max_prompt_length}"
            )
        try:
            positions, image_index = geometry.mrope_positions(
                token_ids,
                grids,
                image_token_id=self.image_token_id,
                video_token_id=self.video_token_id,
                merge_size=self.image_settings.merge_size,
            )
        except ValueError as error:
            raise PromptError("image tokens do not match the images", str(error)) from error
        return Prompt(
            example=example,
            token_ids=token_ids,
            positions=positions,
            image_index=image_index,
            patches=self._patches(opened, sizes),
            grids=grids,
            image_sizes=stored,
            resized_sizes=tuple((width, height) for height, width in sizes),
        )

    def chat(self, messages: Sequence[Mapping[str, str]], image_data: Sequence[bytes] = ()) -> Prompt:
        """The prompt of a conversation that is no training example.

        Args:
          messages: {"role", "content"} turns; `<image>` marks where an image stands. Without any marker the images
            stand before the text of the first user turn.
          image_data: encoded images.

        Raises:
          PromptError: as in `prompt`.
        """
        turns = [dict(message) for message in messages]
        if image_data and not any(IMAGE_MARKER in turn["content"] for turn in turns):
            user = next((turn for turn in turns if turn["role"] == "user"), None)
            if user is not None:
                user["content"] = IMAGE_MARKER * len(image_data) + user["content"]
        return self.prompt(
            Example(
                id="chat",
                domain="",
                source="",
                messages=tuple(turns),
                images=tuple(image_data),
                reward_type="",
                ground_truth="",
                extra_info={},
            )
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) at which the model sees an image of that size. Raises `PromptError` for impossible shapes."""
        settings = self.image_settings
        try:
            return geometry.smart_resize(height, width, settings.factor, settings.min_pixels, settings.max_pixels)
        except ValueError as error:
            raise PromptError("image shape not usable", str(error)) from error

    def encode_response(self, text: str) -> Int32[np.ndarray, "R"]:
        """Ids of a reference response, with the id that ends the turn."""
        return np.asarray([*self.tokenizer.encode(text, add_special_tokens=False).ids, self.eos_ids[0]], np.int32)

    def decode(self, token_ids: Sequence[int] | Int[np.ndarray, "R"]) -> str:
        """The text of a response: control tokens are left out, `<think>` stays."""
        return self.tokenizer.decode([int(token) for token in token_ids], skip_special_tokens=True)

    def _expand(self, token_ids: Int32[np.ndarray, "S"], grids: Int32[np.ndarray, "I 3"]) -> Int32[np.ndarray, "T"]:
        """Repeats the one placeholder of each image to as many as it has merged tokens."""
        places = token_ids == self.image_token_id
        if places.sum() != len(grids):
            raise PromptError(
                "image tokens do not match the images",
                f"the rendered conversation has {places.sum()} image placeholders for {len(grids)} images; "
                "placeholders must not be part of the text, and images belong into user turns",
            )
        repeats = np.ones(len(token_ids), np.int32)
        repeats[places] = geometry.merged_counts(grids, self.image_settings.merge_size)
        return np.repeat(token_ids, repeats)

    def _patches(self, opened: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> UInt8[np.ndarray, "P E"]:
        settings = self.image_settings
        rows = []
        for image, (height, width) in zip(opened, sizes, strict=True):
            try:
                pixels = images.resize(images.to_rgb(image, self.background), height, width)
            except images.ImageError as error:
                raise PromptError(error.reason, error.detail) from error
            rows.append(images.patchify(pixels, settings.patch_size, settings.merge_size, settings.temporal_patch_size))
        if not rows:
            return np.zeros((0, settings.patch_elements), np.uint8)
        return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _find(values: Mapping[str, Any], key: str, path: Path) -> Any:
    if values.get(key) is None:
        raise UserError(f"{path} has no {key}; it is not the configuration of a Qwen vision-language model")
    return values[key]


def _eos_ids(
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


def _banned_ids(
    tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...], vision_ids: set[int]
) -> tuple[int, ...]:
    known = set(tokenizer.get_vocab(with_added_tokens=True).values())
    control = {
        index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or token.content.startswith("<|")
    }
    unused = set(range(vocab_size)) - known
    return tuple(sorted((control | vision_ids | unused) - set(eos_ids)))


def _read_template(folder: Path, tokenizer_config: Mapping[str, Any], special: Mapping[str, str]) -> ChatTemplate:
    """chat_template.jinja, chat_template.json or the entry of tokenizer_config.json, whichever comes first."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), str(path), special)
    path = folder / "chat_template.json"
    if path.is_file():
        return ChatTemplate(_find(read_json(path), "chat_template", path), str(path), special)
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if not source:
        raise UserError(f"{folder} has no chat template: it needs chat_template.jinja (or .json)")
    return ChatTemplate(source, str(folder / "tokenizer_config.json"), special)


def _read_image_settings(
    folder: Path, config: Mapping[str, Any], min_pixels: int | None, max_pixels: int | None
) -> ImageSettings:
    path = folder / "preprocessor_config.json"
    values = read_json(path)
    size = values.get("size") or {}

    def limit(given: int | None, name: str, edge: str) -> int:
        # Both spellings are areas in pixels, whatever "edge" suggests; the older one wins where both are written.
        for value in (given, values.get(name), size.get(name), size.get(edge)):
            if value is not None:
                return int(value)
        raise UserError(f"{path} has neither {name} nor size.{edge}; set data.{name}")

    settings = ImageSettings(
        patch_size=int(_find(values, "patch_size", path)),
        temporal_patch_size=int(_find(values, "temporal_patch_size", path)),
        merge_size=int(_find(values, "merge_size", path)),
        min_pixels=limit(min_pixels, "min_pixels", "shortest_edge"),
        max_pixels=limit(max_pixels, "max_pixels", "longest_edge"),
        mean=tuple(float(value) for value in _find(values, "image_mean", path)),
        std=tuple(float(value) for value in _find(values, "image_std", path)),
    )
    patch_size = config.get("vision_config", {}).get("patch_size", settings.patch_size)
    if patch_size != settings.patch_size:
        raise UserError(f"{path} cuts patches of {settings.patch_size} pixels, the model's config.json of {patch_size}")
    geometry.check_pixel_limits(settings.min_pixels, settings.max_pixels, settings.factor, str(path))
    return settings
