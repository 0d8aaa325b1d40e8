"""One page that shows a prompt as the model sees it: pictures under the grid of their tokens, text token by token.

In: a `SeenPrompt` (made by `vero_jax.inspect`). Out: one HTML file that needs nothing else and works from file://.
"""

from __future__ import annotations

import base64
import dataclasses
import html
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import Int32, UInt8

from vero_jax.data.images import encode_png
from vero_jax.runtime.files import atomic_write
from vero_jax.types import Prompt

_ASSETS = Path(__file__).parent / "assets"

LABELS = 16
"""At most so many rows or columns of a grid have their position written beside them."""


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """One token of text, or all merged tokens of one picture (of one frame, where frames are pictures of their own)."""

    first: int
    last: int
    """Indices of the first and the last token in the prompt."""
    token_id: int
    text: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    """The smallest and largest (time, height, width) position."""
    picture: int | None = None
    """Index into `SeenPrompt.pictures`."""
    control: bool = False
    """Whether it is no text but one of the tokenizer's added tokens."""

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image or a video as the model sees it."""

    name: str
    """"image 1", "video 2"."""
    stored_size: tuple[int, int]
    """(width, height) before resizing."""
    grid: tuple[int, int, int]
    """(frames, height, width) in patches."""
    merge_size: int
    frames: UInt8[np.ndarray, "F H W 3"]
    """The pixels, rebuilt from the patches. An image has one frame."""
    tokens: Int32[np.ndarray, "M"]
    """Index in the prompt of each merged token."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as the model sees it."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of merged tokens in a frame."""
        return self.grid[1] // self.merge_size, self.grid[2] // self.merge_size


@dataclasses.dataclass(frozen=True)
class SeenPrompt:
    """A prompt, taken apart."""

    prompt: Prompt
    rows: tuple[TokenRow, ...]
    pictures: tuple[Picture, ...]
    facts: tuple[tuple[str, str], ...]
    """(name, value) of what is worth knowing at a glance."""
    notes: tuple[str, ...]


def write_prompt_page(path: Path, seen: SeenPrompt, *, title: str) -> None:
    """Writes the page. Raises `UserError` where it cannot be written.

    title: names the checkpoint.
    """
    body = Template(_asset("prompt.html")).substitute(
        title=_text(title),
        tiles=_tiles(seen),
        facts="".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in seen.facts),
        notes="".join(f'<p class="note">{_text(note)}</p>' for note in seen.notes),
        pictures="".join(_picture(seen.prompt, picture, index) for index, picture in enumerate(seen.pictures)),
        chips="".join(_chip(seen, row) for row in seen.rows),
        rows="".join(_row(seen, row) for row in seen.rows),
    )
    style = _asset("pages.css") + _asset("prompt.css")
    shell = Template(_asset("shell.html"))
    atomic_write(path, shell.substitute(title=_text(f"{title}: what the model sees"), style=style, body=body))


def _tiles(seen: SeenPrompt) -> str:
    prompt = seen.prompt
    numbers = {
        "tokens": len(prompt.token_ids),
        "of them visual": int((prompt.image_index >= 0).sum()),
        "patches": len(prompt.patches),
        "next position": prompt.next_position,
    }
    return "".join(f"<div><b>{value:,}</b><span>{name}</span></div>" for name, value in numbers.items())


def _picture(prompt: Prompt, picture: Picture, index: int) -> str:
    """A figure for each time step; the frames that share a patch stand side by side."""
    rows, columns = picture.cells
    times = picture.grid[0]
    span = len(picture.frames) // times
    figures = []
    for time in range(times):
        tokens = picture.tokens[time * rows * columns : (time + 1) * rows * columns]
        frames = picture.frames[time * span : (time + 1) * span]
        figures.append(_figure(prompt, picture, frames, tokens, f"time {time + 1} of {times}" if times > 1 else ""))
    (width, height), (seen_width, seen_height) = picture.stored_size, picture.size
    scale = "" if picture.stored_size == picture.size else f", seen as {seen_width} × {seen_height}"
    return (
        f'<section class="seen" id="picture{index}"><h2>{picture.name} <span class="muted">{width} × {height} pixels'
        f"{scale}; {len(picture.tokens):,} tokens in {rows} rows of {columns}"
        f"{f', {times} times' if times > 1 else ''}</span></h2>"
        f'<div class="frames">{"".join(figures)}</div></section>'
    )


def _figure(
    prompt: Prompt, picture: Picture, frames: UInt8[np.ndarray, "F H W 3"], tokens: Int32[np.ndarray, "M"], name: str
) -> str:
    rows, columns = picture.cells
    time, top, left = (int(value) for value in prompt.positions[tokens[0]])
    ticks = "".join(
        f'<text x="{column + 0.5}" y="-0.25" class="tick">{left + column}</text>' for column in _labelled(columns)
    )
    ticks += "".join(f'<text x="-0.25" y="{row + 0.5}" class="tick side">{top + row}</text>' for row in _labelled(rows))
    lines = "".join(f"M{column} 0V{rows}" for column in range(columns + 1))
    lines += "".join(f"M0 {row}H{columns}" for row in range(rows + 1))
    side = picture.size[0] // columns
    # The picture at its own size, a small one enlarged.
    shown = (columns + 1.4) * max(side, min(64, (240 if picture.grid[0] > 1 else 420) / columns))
    caption = f"{name + ': ' if name else ''}tokens {tokens[0]}–{tokens[-1]}, time position {time}"
    panels = "".join(
        # The margin of one cell is for the positions along the edges.
        f'<svg viewBox="-1.2 -0.9 {columns + 1.4} {rows + 1.1}" style="width:{shown:.0f}px">'
        f'<image href="{_data_uri(frame)}" width="{columns}" height="{rows}" preserveAspectRatio="none"/>'
        f'<path d="{lines}" class="grid"/><rect class="cell" width="1" height="1"/>{ticks}</svg>'
        for frame in frames
    )
    return (
        f'<figure class="tokens" data-first="{tokens[0]}" data-rows="{rows}" data-columns="{columns}" '
        f'data-time="{time}" data-top="{top}" data-left="{left}" data-side="{side}">'
        f'<div class="panels">{panels}</div>'
        f'<figcaption data-text="{_text(caption)}">{_text(caption)}</figcaption></figure>'
    )


def _labelled(count: int) -> range:
    return range(0, count, -(-count // LABELS))


def _chip(seen: SeenPrompt, row: TokenRow) -> str:
    positions = ", ".join(f"{axis} {value}" for axis, value in zip("THW", _ranges(row), strict=True))
    hint = f"token {_indices(row)}, id {row.token_id}, {positions}"
    if row.picture is not None:
        name = seen.pictures[row.picture].name
        return f'<a class="chip picture" href="#picture{row.picture}" title="{_text(hint)}">{name} × {row.count:,}</a>'
    control = " control" if row.control else ""
    # A token that ends a line ends it on the page, too.
    breaks = "<br>" * row.text.count("\n")
    shown = _text(row.text.replace("\n", "↵").replace("\t", "⇥"))
    return f'<span class="chip{control}" title="{_text(hint)}">{shown}</span>{breaks}'


def _row(seen: SeenPrompt, row: TokenRow) -> str:
    text = _text(row.text.replace("\n", "↵").replace("\t", "⇥"))
    if row.picture is not None:
        text += f' <a href="#picture{row.picture}">× {row.count:,}, {seen.pictures[row.picture].name}</a>'
    cells = "".join(f"<td>{value}</td>" for value in (_indices(row), row.token_id, *_ranges(row)))
    kind = ' class="visual"' if row.picture is not None else ' class="control"' if row.control else ""
    return f'<tr{kind}>{cells}<td class="what">{text}</td></tr>'


def _indices(row: TokenRow) -> str:
    return str(row.first) if row.count == 1 else f"{row.first}–{row.last}"


def _ranges(row: TokenRow) -> list[str]:
    return [str(low) if low == high else f"{low}–{high}" for low, high in zip(row.low, row.high, strict=True)]


def _data_uri(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()


def _text(value: str) -> str:
    """Escaped; a lone surrogate, which cannot be written as UTF-8, as a question mark."""
    return html.escape(value.encode("utf-8", "replace").decode("utf-8"))


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
