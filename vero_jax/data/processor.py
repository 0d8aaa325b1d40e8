"""From a question with encoded images and videos to a `Prompt`: the chat and image processor of a checkpoint folder.

Reads what Hugging Face folders hold (tokenizer, chat template, processor settings, config.json, generation_config.json)
and gives the token ids, pixels and positions that `transformers` gives, without torch. A processor can be pickled, for
data workers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int32, UInt8
from tokenizers import Tokenizer

from vero_jax.data import folder_settings, geometry, images, prompts, videos
from vero_jax.data.chat import ChatTemplate, PromptError, conversation
from vero_jax.data.coordinates import Coordinates, reworded
from vero_jax.data.images import ImageSettings, StillImage
from vero_jax.data.media import ImageLike, take_media
from vero_jax.data.tokenizer import load_tokenizer, read_json
from vero_jax.data.videos import FrameStack, VideoSettings
from vero_jax.errors import UserError
from vero_jax.types import Example, Prompt, Video

VideoPrompt = Literal["v5", "v4"]
Visual = StillImage | FrameStack
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"


@dataclasses.dataclass(frozen=True)
class Processor:
    """Turns examples into prompts and ids into text. Make one with `Processor.from_folder`."""

    tokenizer: Tokenizer
    template: ChatTemplate
    image_settings: ImageSettings | None
    """None for a text-only checkpoint."""
    vocab_size: int
    """Rows of the model's embedding; more than the tokenizer has, in Qwen's checkpoints."""
    eos_ids: tuple[int, ...]
    """Ids that end a response. The first ends an assistant's turn."""
    pad_id: int
    banned_ids: tuple[int, ...]
    """Ids that a sampler must not choose: vision and other control tokens, and rows without a token."""
    image_token_id: int | None
    video_token_id: int | None
    system_prompt: str = ""
    background: images.Background = "white"
    max_prompt_length: int | None = None
    coordinates: Coordinates | None = None
    """What boxes and points mean to the policy, as questions for them will say; None leaves the questions alone."""
    video_settings: VideoSettings | None = None
    """None where the checkpoint takes no videos."""
    video_prompt: VideoPrompt = "v5"
    """How Qwen3-VL's videos stand in the text: "v5" keeps a pair of <|vision_start|> and <|vision_end|> around all
    frames, as transformers 5.10 and later; "v4" has only the pairs around each frame, as 4.57."""

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
        coordinates: Coordinates | Literal["auto"] | None = None,
        video_prompt: VideoPrompt = "v5",
    ) -> Processor:
        """Reads a Hugging Face checkpoint folder (weights are not touched).

        Args:
          folder: the checkpoint.
          min_pixels, max_pixels: image area limits in pixels; None takes the folder's. Videos keep the folder's.
          system_prompt: text put before every conversation; left out where it asks for thoughts and answer in tags and
            the folder's chat template does so already.
          background: where transparent pixels lie, see `images.to_rgb`.
          max_prompt_length: longest prompt in tokens, images included; None is no limit.
          coordinates: see the field; "auto" goes by the family.
          video_prompt: see the field.

        Raises:
          UserError: a file is missing or broken, or the files do not belong together.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"there is no checkpoint folder {folder}; give the path of a Hugging Face checkpoint")
        config_path = folder / "config.json"
        config = read_json(config_path)
        text_config = config.get("text_config", config)
        tokenizer_config = folder_settings.read_if_there(folder / "tokenizer_config.json")
        generation = folder_settings.read_if_there(folder / "generation_config.json")
        tokenizer = load_tokenizer(folder)
        vocab_size = int(folder_settings.find(text_config, "vocab_size", config_path))
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has id {largest} but config.json says vocab_size {vocab_size}; "
                "the tokenizer belongs to another checkpoint"
            )
        special = folder_settings.special_tokens(tokenizer_config)
        eos_ids = folder_settings.eos_ids(tokenizer, special.get("eos_token"), generation, text_config, folder)
        pad_id = generation.get("pad_token_id")
        if pad_id is None and "pad_token" in special:
            pad_id = tokenizer.token_to_id(special["pad_token"])
        vision_ids = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
        template = folder_settings.read_template(folder, tokenizer_config, special)
        _ = template.compiled  # a broken template is an error of the folder, not of the first row
        image_settings = video_settings = image_token_id = None
        if config.get("model_type") not in folder_settings.TEXT_ONLY:
            image_settings = folder_settings.read_image_settings(folder, config, min_pixels, max_pixels)
            video_settings = folder_settings.read_video_settings(folder, config, image_settings)
            image_token_id = int(folder_settings.find(config, "image_token_id", config_path))
        if prompts.carries_format(system_prompt) and prompts.carries_format(template.own_words()):
            system_prompt = ""
        if coordinates == "auto":
            coordinates = folder_settings.COORDINATES.get(str(config.get("model_type")), "normalized_1000")
        return cls(
            tokenizer=tokenizer,
            template=template,
            image_settings=image_settings,
            vocab_size=vocab_size,
            eos_ids=eos_ids,
            pad_id=eos_ids[-1] if pad_id is None else int(pad_id),
            banned_ids=folder_settings.banned_ids(tokenizer, vocab_size, eos_ids, vision_ids),
            image_token_id=image_token_id,
            video_token_id=None if image_settings is None else config.get("video_token_id"),
            system_prompt=system_prompt,
            background=background,
            max_prompt_length=max_prompt_length,
            coordinates=coordinates,
            video_settings=video_settings,
            video_prompt=video_prompt,
        )

    @property
    def image_mean(self) -> tuple[float, ...]:
        return () if self.image_settings is None else self.image_settings.mean

    @property
    def image_std(self) -> tuple[float, ...]:
        return () if self.image_settings is None else self.image_settings.std

    def prompt(self, example: Example, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Prompt:
        """The prompt of one example: tokens, positions and uint8 patches.

        Args:
          tools: JSON schemas of functions, which the chat template describes to the model.

        Raises:
          PromptError: the example cannot be used; its `reason` says why in a few words, the message in full.
        """
        self._check_can_see(example)
        text = self.text(
            example.messages, example.reward_type, len(example.images), video_count=len(example.videos), tools=tools
        )
        try:
            opened = [images.open_image(data) for data in example.images]
            stacks = [videos.open_frames(video, self.video_settings) for video in example.videos if self.video_settings]
        except (images.ImageError, videos.VideoError) as error:
            raise PromptError(error.reason, error.detail) from error
        stored = tuple(image.size for image in opened)
        sizes = [self.resized(width, height) for width, height in stored]
        stills = [
            StillImage(image, height, width, self.image_settings)
            for image, (height, width) in zip(opened, sizes, strict=True)
            if self.image_settings is not None
        ]
        visuals, token_ids = self._place(text, stills, stacks)
        if self.max_prompt_length is not None and len(token_ids) > self.max_prompt_length:
            raise PromptError(
                "prompt too long", f"prompt of {len(token_ids)} tokens, the limit is {self.max_prompt_length}"
            )
        grids = np.asarray([visual.grid for visual in visuals], np.int32).reshape(-1, 3)
        try:
            positions, image_index = geometry.mrope_positions(
                token_ids,
                grids,
                image_token_id=self.image_token_id,
                video_token_id=self.video_token_id,
                merge_size=self._merge_size,
                time_scales=self._time_scales(visuals),
            )
        except ValueError as error:
            raise PromptError("image tokens do not match the images", str(error)) from error
        return Prompt(
            example=example,
            token_ids=token_ids,
            positions=positions,
            image_index=image_index,
            patches=self._patches(visuals),
            grids=grids,
            image_sizes=stored,
            resized_sizes=tuple((width, height) for height, width in sizes),
        )

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        reward_type: str,
        image_count: int,
        *,
        video_count: int = 0,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text with one placeholder for each image, up to the header of the assistant's turn.

        Raises:
          PromptError: the messages, the images and the chat template do not go together.
        """
        if self.coordinates is not None:
            messages = reworded(messages, reward_type, self.coordinates)
        turns = conversation(messages, image_count, self.system_prompt, video_count=video_count)
        return self.template.render(turns, tools=tools)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of everything that a prompt's length depends on, but for `max_prompt_length`."""
        parts = [self.tokenizer.to_str(), self.template.source, repr(self.image_settings), self.system_prompt]
        return hashlib.sha256("\0".join([*parts, str(self.coordinates)]).encode()).hexdigest()[:16]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[ImageLike] = (),
        videos: Sequence[Video] = (),
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt of a conversation that is no training example.

        Args:
          messages: {"role", "content"} turns, as `chat.conversation` takes them; `<image>` and `<video>` mark where a
            picture stands, and a part may hold its picture, see `media.take_media`. Without any place for them the
            pictures stand before the text of the first user turn.
          images: encoded, or paths, or Pillow images.
          videos: stacks of frames.
          tools: JSON schemas of functions that the assistant may call.

        Raises:
          PromptError: as in `prompt`.
        """
        turns, pictures, stacks = take_media(messages, images, videos)
        example = Example(
            id="chat",
            domain="",
            source="",
            messages=turns,
            images=pictures,
            reward_type="",
            ground_truth="",
            extra_info={},
            videos=stacks,
        )
        return self.prompt(example, tools=tools)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) at which the model sees an image of that size. Raises `PromptError` for impossible shapes."""
        settings = self.image_settings
        if settings is None:
            raise PromptError("checkpoint without vision", "a text-only checkpoint cannot see an image")
        try:
            return geometry.smart_resize(height, width, settings.factor, settings.min_pixels, settings.max_pixels)
        except ValueError as error:
            raise PromptError("image shape not usable", str(error)) from error

    def image_tokens(self, width: int, height: int) -> int:
        """Merged visual tokens of an image of that size. Raises `PromptError` as `resized`."""
        rows, columns = self.resized(width, height)
        return rows * columns // self.image_settings.factor**2 if self.image_settings is not None else 0

    def encode_response(self, text: str) -> Int32[np.ndarray, "R"]:
        """Ids of a reference response, with the id that ends the turn."""
        return np.asarray([*self.tokenizer.encode(text, add_special_tokens=False).ids, self.eos_ids[0]], np.int32)

    def decode(self, token_ids: Sequence[int] | Int[np.ndarray, "R"]) -> str:
        """The text of a response: control tokens are left out, `<think>` stays."""
        return self.tokenizer.decode([int(token) for token in token_ids], skip_special_tokens=True)

    def _check_can_see(self, example: Example) -> None:
        if example.images and self.image_settings is None:
            raise PromptError("checkpoint without vision", "a text-only checkpoint cannot see the images of a question")
        if example.videos and self.video_settings is None:
            kind = "text-only checkpoint" if self.image_settings is None else "checkpoint of this kind"
            raise PromptError("checkpoint without vision", f"a {kind} cannot see the videos of a question")

    def _token(self, index: int | None) -> str | None:
        return None if index is None else self.tokenizer.id_to_token(index)

    @property
    def _merge_size(self) -> int:
        return 1 if self.image_settings is None else self.image_settings.merge_size

    def _place(
        self, text: str, stills: Sequence[StillImage], stacks: Sequence[FrameStack]
    ) -> tuple[list[Visual], Int32[np.ndarray, "T"]]:
        """The images and videos in the order of their placeholders, and the tokens of the conversation with each
        placeholder as often as its picture has merged tokens."""
        ids = [index for index in (self.image_token_id, self.video_token_id) if index is not None]
        image, video = (
            "" if index is None else self.tokenizer.id_to_token(index) or ""
            for index in (self.image_token_id, self.video_token_id)
        )
        placeholders = "|".join(re.escape(name) for name in (image, video) if name)
        # Text and placeholders take turns; the placeholders are at the odd places.
        pieces = re.split(f"({placeholders})", text) if placeholders else [text]
        found = pieces[1::2]
        if (found.count(image), found.count(video)) != (len(stills), len(stacks)):
            raise PromptError(
                "image tokens do not match the images",
                f"the rendered conversation has {found.count(image)} image and {found.count(video)} video placeholders "
                f"for {len(stills)} images and {len(stacks)} videos; placeholders must not be part of the text, and "
                "pictures belong into turns where the chat template shows them",
            )
        next_still, next_stack = iter(stills), iter(stacks)
        visuals: list[Visual] = [next(next_still) if name == image else next(next_stack) for name in found]
        repeats: list[int] = []
        for number, visual in enumerate(visuals):
            times, rows, columns = visual.grid
            frame = rows * columns // self._merge_size**2
            if isinstance(visual, FrameStack) and visual.settings.writes_times:
                self._write_times(pieces, 2 * number + 1, visual)
                repeats += [frame] * times
            else:
                repeats.append(frame * times)
        token_ids = np.asarray(self.tokenizer.encode("".join(pieces), add_special_tokens=False).ids, np.int32)
        counts = np.ones(len(token_ids), np.int32)
        if repeats:
            counts[np.isin(token_ids, ids)] = repeats
        return visuals, np.repeat(token_ids, counts)

    def _write_times(self, pieces: list[str], place: int, stack: FrameStack) -> None:
        """Puts a placeholder for each frame of patches, with its time before it, where that of the video stood."""
        times = videos.frame_times(stack.video, stack.settings.temporal_patch_size)
        pieces[place] = "".join(f"<{time:.1f} seconds>{VISION_START}{pieces[place]}{VISION_END}" for time in times)
        before, after = pieces[place - 1], pieces[place + 1]
        if self.video_prompt == "v4" and before.endswith(VISION_START) and after.startswith(VISION_END):
            pieces[place - 1], pieces[place + 1] = before.removesuffix(VISION_START), after.removeprefix(VISION_END)

    def _time_scales(self, visuals: Sequence[Visual]) -> list[float] | None:
        """See `geometry.mrope_positions`; every product is rounded to float32, as in the reference."""
        if self.video_settings is None or self.video_settings.writes_times:
            return None
        rate = np.float32(self.video_settings.tokens_per_second)
        return [
            float(rate * np.float32(videos.seconds_per_grid(visual.video, visual.settings.temporal_patch_size)))
            if isinstance(visual, FrameStack)
            else 0.0
            for visual in visuals
        ]

    def _patches(self, visuals: Sequence[Visual]) -> UInt8[np.ndarray, "P E"]:
        try:
            rows = [visual.patches(self.background) for visual in visuals]
        except images.ImageError as error:
            raise PromptError(error.reason, error.detail) from error
        if not rows:
            elements = 0 if self.image_settings is None else self.image_settings.patch_elements
            return np.zeros((0, elements), np.uint8)
        return rows[0] if len(rows) == 1 else np.concatenate(rows)
