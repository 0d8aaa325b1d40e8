"""Sample pages: what was asked, seen, answered and rewarded at a step, as one HTML file that needs nothing else.

In: scored groups. Out: `step_000020.html` with images inside (data URIs), and `index.html` that lists the steps.
Everything that comes from the data or the model is escaped; the pages work from file:// without a network.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from vero_jax.runtime.files import atomic_write
from vero_jax.types import Example, Group, Response, Score

_ASSETS = Path(__file__).parent / "assets"
_HEADLINE = re.compile(r'<script type="application/json" id="headline">(.*?)</script>', re.DOTALL)

THUMBNAIL = 320
"""Longest side of a thumbnail in CSS pixels; the picture inside has twice that at most."""


def write_sample_page(
    path: Path,
    groups: Sequence[Group],
    *,
    step: int,
    run_name: str = "run",
    headline: Mapping[str, float | None] | None = None,
) -> None:
    """One page for the groups of a step.

    headline: a few numbers for the top of the page and the index; None: the means over these groups.
    """
    numbers = dict(_headline(groups) if headline is None else headline)
    cards = "\n".join(_group_card(group, number) for number, group in enumerate(groups))
    domains = sorted({group.prompt.example.domain for group in groups})
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in domains)
    body = template("page.html").substitute(
        run=escape(run_name),
        step=step,
        numbers=tiles(numbers),
        # "<" could end the script element that holds the numbers
        headline=json.dumps({"step": step, "numbers": _finite(numbers)}).replace("<", "\\u003c"),
        options=options,
        count=len(groups),
        cards=cards or '<p class="empty">No groups were kept for this step.</p>',
    )
    write_page(path, f"{run_name}, step {step}", body)


def write_index(folder: Path, run_name: str = "run") -> None:
    """`index.html` over the step pages in the folder, newest first, with the numbers each page carries."""
    rows = []
    names: list[str] = []
    for page in sorted(folder.glob("step_*.html"), reverse=True):
        found = _HEADLINE.search(page.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            continue
        entry = json.loads(found[1])
        rows.append((page.name, int(entry["step"]), entry["numbers"]))
        names += [name for name in entry["numbers"] if name not in names]
    head = "<th>step</th>" + "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = "\n".join(
        f'<tr><td><a href="{escape(name)}">{step}</a></td>'
        + "".join(f"<td>{short_number(numbers.get(key))}</td>" for key in names)
        + "</tr>"
        for name, step, numbers in rows
    )
    body = template("index.html").substitute(run=escape(run_name), head=head, rows=lines)
    write_page(folder / "index.html", f"{run_name}: sample answers", body)


def write_page(path: Path, title: str, body: str, style: str = "") -> None:
    """One page in the house's look.

    Args:
      body: markup, with everything that comes from data escaped.
      style: CSS after that of all pages.

    Raises:
      UserError: it cannot be written.
    """
    page = template("shell.html").substitute(
        title=escape(title), style=asset("pages.css") + style, body=body.rstrip("\n")
    )
    atomic_write(path, page)


def thumbnail(data: bytes, longest: int = THUMBNAIL) -> str | None:
    """The picture as a small data URI, transparent parts on white; None when it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # Pillow has one of these for each way a file can be broken
    picture.thumbnail((2 * longest, 2 * longest))
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    options: list[tuple[str, dict[str, Any]]] = [("PNG", {"optimize": True}), ("JPEG", {"quality": 85})]
    encoded = []
    for kind, settings in options:
        buffer = io.BytesIO()
        flat.save(buffer, kind, **settings)
        encoded.append((buffer.tell(), kind.lower(), buffer.getvalue()))
    _, kind, content = min(encoded)  # drawings are smaller as PNG, photos as JPEG
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _group_card(group: Group, number: int) -> str:
    example = group.prompt.example
    totals = [score.total for score in group.scores if score.missing is None]
    mean = float(np.mean(totals)) if totals else math.nan
    spread = float(np.std(totals)) if totals else math.nan
    tags = {"domain": example.domain, "source": example.source, "reward": example.reward_type, "id": example.id}
    responses = "\n".join(_response(group, index) for index in range(len(group.responses)))
    return template("group.html").substitute(
        domain=escape(example.domain),
        order=number,
        mean=_sort_key(mean),
        tags="".join(f'<span class="tag {kind}" title="{kind}">{escape(value)}</span>' for kind, value in tags.items()),
        reward=short_number(mean),
        spread=short_number(spread),
        images=_images(example, group),
        prompt=_prompt(example),
        tokens=f"{len(group.prompt.token_ids):,}",
        gold=escape(example.ground_truth) or '<span class="muted">empty</span>',
        responses=responses,
        count=len(group.responses),
    )


def _images(example: Example, group: Group) -> str:
    parts = []
    for index, data in enumerate(example.images):
        source = thumbnail(data)
        caption = [f"image {index + 1}"]
        if index < len(group.prompt.image_sizes):
            width, height = group.prompt.image_sizes[index]
            caption.append(f"{width} × {height}")
        if group.prompt.resized_sizes[index : index + 1] != group.prompt.image_sizes[index : index + 1]:
            caption += [
                f"seen as {width} × {height}" for width, height in group.prompt.resized_sizes[index : index + 1]
            ]
        picture = (
            f'<img src="{source}" alt="image {index + 1}">'
            if source
            else f'<div class="broken">image cannot be shown ({len(data):,} bytes)</div>'
        )
        parts.append(f"<figure>{picture}<figcaption>{escape(', '.join(caption))}</figcaption></figure>")
    return "".join(parts) or '<p class="muted">no image</p>'


def _prompt(example: Example) -> str:
    parts = []
    images = iter(range(1, len(example.images) + 1))
    for message in example.messages:
        # Placeholders are numbered over the whole conversation, like the images.
        pieces = [escape(piece) for piece in str(message.get("content", "")).split("<image>")]
        text = pieces[0] + "".join(
            f'<span class="mark">image {next(images, "?")}</span>{piece}' for piece in pieces[1:]
        )
        parts.append(f'<div class="message"><span class="role">{escape(message.get("role", ""))}</span>')
        parts.append(f'<div class="text">{text}</div></div>')
    return "".join(parts)


def _response(group: Group, index: int) -> str:
    response = group.responses[index]
    score = group.scores[index] if index < len(group.scores) else None
    advantage = float(group.advantages[index]) if group.advantages is not None else math.nan
    cells = {
        "reward": _reward_cell(score),
        "accuracy": _part(score, "accuracy"),
        "format": _part(score, "format"),
        "overlong": _part(score, "overlong"),
        "advantage": f'<span class="{_sign(advantage)}">{short_number(advantage, plus=True)}</span>',
        "tokens": f"{len(response.token_ids):,}",
        "mean logprob": short_number(_mean_logprob(response)),
        "stop": f'<span class="stop-{escape(response.stop_reason)}">{escape(response.stop_reason)}</span>',
    }
    facts = "".join(f"<span><b>{name}</b>{value}</span>" for name, value in cells.items())
    total = score.total if score is not None and score.missing is None else math.nan
    missing = (
        f'<p class="missing">no score: {escape(score.missing)}</p>'
        if score is not None and score.missing is not None
        else ""
    )
    text = escape(response.text) or '<span class="muted">empty</span>'
    return (
        f'<article class="response {_grade(total)}" data-reward="{_sort_key(total)}" data-order="{index}">'
        f'<div class="facts"><span class="number">{index + 1}</span>{facts}</div>{missing}'
        f'<div class="text answer">{text}</div></article>'
    )


def _mean_logprob(response: Response) -> float:
    return float(np.mean(response.logprobs)) if len(response.logprobs) else math.nan


def _reward_cell(score: Score | None) -> str:
    if score is None or score.missing is not None:
        return "-"
    return f'<span class="reward">{short_number(score.total)}</span>'


def _part(score: Score | None, name: str) -> str:
    return "-" if score is None or score.missing is not None else short_number(getattr(score, name))


def _headline(groups: Sequence[Group]) -> dict[str, float]:
    scores = [score for group in groups for score in group.scores if score.missing is None]
    lengths = [len(response.token_ids) for group in groups for response in group.responses]
    return {
        "reward": _mean(score.total for score in scores),
        "accuracy": _mean(score.accuracy for score in scores),
        "format": _mean(score.format for score in scores),
        "response length": _mean(lengths),
    }


def _mean(values: Iterable[float]) -> float:
    kept = [float(value) for value in values]
    return sum(kept) / len(kept) if kept else math.nan


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: None if value is None or not math.isfinite(value) else round(float(value), 6)
        for name, value in numbers.items()
    }


def tiles(numbers: Mapping[str, float | None]) -> str:
    """Figures side by side for the top of a page."""
    return "".join(
        f"<div><b>{short_number(value)}</b><span>{escape(name)}</span></div>" for name, value in numbers.items()
    )


def short_number(value: float | None, *, plus: bool = False) -> str:
    """A figure with three digits or so; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}".rstrip("0").rstrip(".")
    text = "0" if text in ("-0", "") else text
    return f"+{text}" if plus and value > 0 and text != "0" else text.replace("-", "−")


def _sort_key(value: float) -> str:
    """A number the script can compare; a missing one sorts below all."""
    return f"{value:.9g}" if math.isfinite(value) else "-1e9"


def _sign(value: float) -> str:
    return "plus" if value > 0 else "minus" if value < 0 else "zero"


def _grade(total: float) -> str:
    if not math.isfinite(total):
        return "unscored"
    return "good" if total >= 0.75 else "fair" if total >= 0.15 else "poor"


def printable(value: Any) -> str:
    """As text that a page can hold: control characters, which HTML forbids, are visible marks."""
    shown = "".join(char if char >= " " or char in "\n\t" else "\ufffd" for char in str(value).replace("\r\n", "\n"))
    # A lone surrogate can come out of a byte-level tokenizer's decode and cannot be written as UTF-8.
    return shown.encode("utf-8", "replace").decode("utf-8")


def escape(value: Any) -> str:
    """As markup that shows the value's text."""
    return html.escape(printable(value))


@functools.cache
def asset(name: str, folder: Path = _ASSETS) -> str:
    """The text of a file that pages are made of."""
    return (folder / name).read_text(encoding="utf-8")


def template(name: str, folder: Path = _ASSETS) -> Template:
    """A piece of markup with $places."""
    return Template(asset(name, folder))
