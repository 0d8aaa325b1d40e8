"""Shows what a checkpoint sees of a question: its tokens with their rotary positions, and its pictures pixel for pixel.

    python -m vero_jax.inspect FOLDER --prompt "How many bars are there?" --image chart.png --out seen/

The folder needs no weights. With --out the pictures are written as the model sees them, rebuilt from the patches it is
given, with a page (index.html) that shows them under the grid of their tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vero_jax.checkpoints.hub import resolve_checkpoint
from vero_jax.data import images, videos
from vero_jax.data.chat import PromptError
from vero_jax.data.processor import Processor
from vero_jax.data.prompts import system_prompt
from vero_jax.errors import UserError, friendly
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.prompt_page import Picture, SeenPrompt, TokenRow, write_prompt_page
from vero_jax.types import Prompt, Video


def look(processor: Processor, prompt: Prompt) -> SeenPrompt:
    """Takes a prompt apart into what can be read and looked at."""
    pictures = tuple(_pictures(processor, prompt))
    rows = tuple(_rows(processor, prompt))
    visual = int((prompt.image_index >= 0).sum())
    facts = [
        ("tokens", f"{len(prompt.token_ids):,} ({len(prompt.token_ids) - visual:,} text, {visual:,} visual)"),
        ("patches", f"{len(prompt.patches):,}"),
        ("next position", f"{prompt.next_position:,}"),
        ("chat template", processor.template.place),
    ]
    settings, video = processor.image_settings, processor.video_settings
    if settings is None:
        facts.append(("image limits", "none; a text-only checkpoint"))
    else:
        facts.append(("image limits", _limits(settings.min_pixels, settings.max_pixels, settings.factor)))
    if video is not None and prompt.example.videos:
        unit = "all frames together" if video.limits == "video" else "each frame"
        facts.append(("video limits", f"{_limits(video.min_pixels, video.max_pixels, video.factor)}, {unit}"))
    for picture in pictures:
        facts.append((picture.name, _describe(picture)))
    notes = []
    if any(stack.fps is None for stack in prompt.example.videos):
        notes.append(f"the videos do not say how many frames a second has; {videos.UNKNOWN_FPS:g} is taken (see --fps)")
    return SeenPrompt(prompt, rows, pictures, tuple(facts), tuple(notes))


def _limits(low: int, high: int, factor: int) -> str:
    return f"{low:,} to {high:,} pixels ({max(1, low // factor**2):,} to {high // factor**2:,} tokens)"


def _describe(picture: Picture) -> str:
    (width, height), (seen_width, seen_height) = picture.stored_size, picture.size
    size = f"{width}x{height} pixels"
    if picture.stored_size != picture.size:
        size += f", seen as {seen_width}x{seen_height}"
    rows, columns = picture.cells
    frames, tall, wide = picture.grid
    shape = f"{rows} rows of {columns}" if frames == 1 else f"{frames} times {rows} rows of {columns}"
    return f"{size}, grid {frames}x{tall}x{wide} patches, {len(picture.tokens):,} tokens ({shape})"


def _pictures(processor: Processor, prompt: Prompt) -> Iterator[Picture]:
    settings = processor.image_settings
    if settings is None:
        return
    places = np.flatnonzero(prompt.image_index >= 0).astype(np.int32)
    stored = iter(prompt.image_sizes)
    stacks = iter(prompt.example.videos)
    numbers = {"image": 0, "video": 0}
    patch = token = 0
    for row in prompt.grids:
        grid = (int(row[0]), int(row[1]), int(row[2]))
        count = int(np.prod(grid))
        tokens = places[token : token + count // settings.merge_size**2]
        kind = "video" if prompt.token_ids[tokens[0]] == processor.video_token_id else "image"
        numbers[kind] += 1
        frames = images.unpatchify(
            prompt.patches[patch : patch + count],
            grid,
            settings.patch_size,
            settings.merge_size,
            settings.temporal_patch_size,
        )
        yield Picture(
            name=f"{kind} {numbers[kind]}",
            stored_size=next(stored) if kind == "image" else images.open_image(next(stacks).frames[0]).size,
            grid=grid,
            merge_size=settings.merge_size,
            frames=frames[:1] if kind == "image" else frames,
            tokens=tokens,
        )
        patch += count
        token += len(tokens)


def _rows(processor: Processor, prompt: Prompt) -> Iterator[TokenRow]:
    merged = prompt.grids.prod(axis=1) // max(1, _merge(processor) ** 2)
    owner = np.full(len(prompt.token_ids), -1)
    owner[prompt.image_index >= 0] = np.repeat(np.arange(len(merged)), merged)
    added = processor.tokenizer.get_added_tokens_decoder()
    first = 0
    while first < len(owner):
        last = first
        while owner[first] >= 0 and last + 1 < len(owner) and owner[last + 1] == owner[first]:
            last += 1
        span = prompt.positions[first : last + 1]
        yield TokenRow(
            first=first,
            last=last,
            token_id=int(prompt.token_ids[first]),
            text=token_text(processor, int(prompt.token_ids[first])),
            low=tuple(int(value) for value in span.min(axis=0)),  # type: ignore[arg-type]  # three of them
            high=tuple(int(value) for value in span.max(axis=0)),  # type: ignore[arg-type]
            picture=int(owner[first]) if owner[first] >= 0 else None,
            control=int(prompt.token_ids[first]) in added,
        )
        first = last + 1


def _merge(processor: Processor) -> int:
    return 1 if processor.image_settings is None else processor.image_settings.merge_size


def token_text(processor: Processor, token_id: int) -> str:
    """The text of one token; of one that holds part of a character only, its spelling in the vocabulary."""
    text = processor.tokenizer.decode([token_id], skip_special_tokens=False)
    return text if "\ufffd" not in text else processor.tokenizer.id_to_token(token_id) or text


def report(seen: SeenPrompt) -> Iterator[str]:
    """Lines for a terminal: the facts, then a table with one line a token, a run of visual tokens folded into one."""
    width = max(len(name) for name, _ in seen.facts)
    yield from (f"{name:<{width}}  {value}" for name, value in seen.facts)
    yield from (f"note: {note}" for note in seen.notes)
    yield ""
    cells = [("index", "id", "T", "H", "W", "text")]
    for row in seen.rows:
        index = str(row.first) if row.count == 1 else f"{row.first}-{row.last}"
        text = json.dumps(row.text, ensure_ascii=False)
        if row.picture is not None:
            text = f"{row.text} x {row.count}   {seen.pictures[row.picture].name}"
        ranges = [str(low) if low == high else f"{low}-{high}" for low, high in zip(row.low, row.high, strict=True)]
        cells.append((index, str(row.token_id), ranges[0], ranges[1], ranges[2], text))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    for line in cells:
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(line[:5], widths, strict=True))
        yield f"{numbers}  {line[5]}"


def save_pictures(seen: SeenPrompt, folder: Path) -> list[Path]:
    """Writes every frame that the model sees as a PNG. Raises `UserError` where the folder cannot be written."""
    written = []
    for picture in seen.pictures:
        for number, frame in enumerate(picture.frames, start=1):
            name = picture.name.replace(" ", "_") + (f"_frame_{number:03d}" if len(picture.frames) > 1 else "")
            atomic_write(folder / f"{name}.png", images.encode_png(frame))
            written.append(folder / f"{name}.png")
    return written


def read_tools(path: str | Path | None) -> list[Any] | None:
    """The tools of a JSON file: a list of function schemas. Raises `UserError` naming the file when it is no JSON."""
    if path is None:
        return None
    path = Path(path).expanduser()
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the tools {path} ({error.strerror}); give the path of a JSON file") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it must hold a list of function schemas") from error
    return tools if isinstance(tools, list) else [tools]


def _videos(folders: Sequence[str], fps: float | None, sample_fps: float | None, processor: Processor) -> list[Video]:
    stacks = [videos.read_frames(folder, fps) for folder in folders]
    settings = processor.video_settings
    if sample_fps is None or settings is None:
        return stacks
    return [videos.sample(stack, dataclasses.replace(settings, fps=sample_fps)) for stack in stacks]


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vero_jax.inspect", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", help="checkpoint folder, with weights or without, or id of the model hub")
    parser.add_argument("--prompt", required=True, help="question; <image> and <video> mark places in it")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="may be given several times")
    parser.add_argument("--video", action="append", default=[], metavar="FOLDER", help="of frames, one image file each")
    parser.add_argument("--fps", type=float, help="frames per second of the frames in the folders")
    parser.add_argument("--sample-fps", type=float, help="take so many frames per second only; default: all")
    parser.add_argument("--system", default="", help="text, .txt file or built-in name of a system prompt")
    parser.add_argument("--tools", metavar="FILE", help="JSON list of function schemas")
    parser.add_argument("--min-pixels", type=int, help="area limit of images; default: the folder's")
    parser.add_argument("--max-pixels", type=int, help="likewise")
    parser.add_argument("--video-prompt", choices=("v5", "v4"), default="v5", help="of Qwen3-VL: transformers 5 or 4")
    parser.add_argument("--out", metavar="FOLDER", help="write the pictures as seen, and a page index.html")
    args = parser.parse_args(argv)
    folder = resolve_checkpoint(args.folder, weights=False)
    processor = Processor.from_folder(
        folder,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        system_prompt=system_prompt(args.system),
        video_prompt=args.video_prompt,
    )
    if args.sample_fps is not None and not args.sample_fps > 0:
        raise UserError(f"--sample-fps {args.sample_fps} must be above 0")
    tools = read_tools(args.tools)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `look` notes what is unknown
            stacks = _videos(args.video, args.fps, args.sample_fps, processor)
            prompt = processor.chat([{"role": "user", "content": args.prompt}], args.image, stacks, tools=tools)
    except (PromptError, videos.VideoError) as error:
        raise UserError(f"this question cannot be asked: {error}") from error
    seen = look(processor, prompt)
    if args.out is not None:  # before anything is printed, in case the reader leaves
        out = Path(args.out).expanduser()
        written = save_pictures(seen, out)
        write_prompt_page(out / "index.html", seen, title=Path(args.folder).name)
        print(f"written: {out / 'index.html'}, pictures: {len(written)}", file=sys.stderr)
    for line in report(seen):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
