"""The review sheet: 50 random rows of each source as one page, on which people tick what is right.

A row is right when its answer is correct, when no other answer would be, and when a verifier can tell. The paper
(arXiv 2604.04917) keeps a source with less than 5 % of errors. The ticks stay in the browser (localStorage) and leave
it as JSON by a button. Open index.html in the folder that is written; it needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from vero_jax.curation.rows import SPLITS, Row, Rows, listed
from vero_jax.data.ground_truth import stated_boxes
from vero_jax.data.images import ImageError, open_image, to_rgb
from vero_jax.errors import UserError
from vero_jax.runtime import pages
from vero_jax.runtime.output_folder import check_free, new_folder

NAME = "review"
HELP = "make a sheet of random rows for people to judge, as an HTML page"

ERROR_LIMIT = 0.05
"""Largest share of rows with an error in a source that is kept."""
_SHELL = Path(pages.__file__).parent / "assets"
_ASSETS = Path(__file__).parent / "assets"
_SHOWN_BY_BROWSERS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif"}


def sample(rows: Iterable[Row], per_source: int, seed: int) -> dict[str, list[int]]:
    """Places in the order of `rows` of the rows drawn from each source, without replacement.

    Every source draws from a generator of its own, so that its rows do not depend on which others are there.
    """
    drawn: dict[str, list[int]] = {}
    met: dict[str, int] = {}
    generators: dict[str, random.Random] = {}
    for place, row in enumerate(rows):
        name = row.source
        generator = generators.setdefault(name, random.Random(f"{seed} {name}"))
        chosen, count = drawn.setdefault(name, []), met.get(name, 0)
        met[name] = count + 1
        # Reservoir sampling (algorithm R, Vitter 1985): one pass, no row but the drawn ones is remembered.
        if count < per_source:
            chosen.append(place)
        elif (slot := generator.randrange(count + 1)) < per_source:
            chosen[slot] = place
    return {name: sorted(places) for name, places in drawn.items()}


def write_sheet(folder: Path, rows: Sequence[Row], *, title: str, limit: float = ERROR_LIMIT) -> None:
    """Writes `index.html`, and `images/` beside it, which the page loads as they come into view.

    Args:
      folder: exists.
      rows: in any order; the page groups them by source.
      title: names the data.
      limit: share of errors above which a source is marked.

    Raises:
      OSError: the disk refuses.
    """
    (folder / "images").mkdir(exist_ok=True)
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    cards, number = [], 0
    for source in sorted(by_source):
        for row in by_source[source]:
            cards.append(_card(folder, row, number))
            number += 1
    keys = [_key(row) for source in sorted(by_source) for row in by_source[source]]
    body = Template(_read(_ASSETS / "review.html")).substitute(
        title=_text(title),
        sheet=hashlib.sha256("\n".join(keys).encode("utf-8", "replace")).hexdigest()[:16],
        limit=limit,
        percent=f"{100 * limit:g} %",
        count=len(rows),
        options="".join(f'<option value="{_text(name)}">{_text(name)}</option>' for name in sorted(by_source)),
        cards="\n".join(cards) or '<p class="empty">There are no rows to review.</p>',
    )
    style = _read(_SHELL / "pages.css") + _read(_ASSETS / "review.css")
    page = Template(_read(_SHELL / "shell.html")).substitute(title=_text(f"Review: {title}"), style=style, body=body)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _card(folder: Path, row: Row, number: int) -> str:
    example = row.example
    tags = {"domain": example.domain, "source": row.source, "reward": example.reward_type, "id": example.id}
    answer = str(example.extra_info.get("answer") or "").strip()
    also = (
        ""
        if answer in ("", example.ground_truth.strip())
        else f'<dt>stored answer</dt><dd class="text">{_text(answer)}</dd>'
    )
    tolerance = example.extra_info.get("tolerance")
    also += f"<dt>tolerance</dt><dd>{_text(tolerance)}</dd>" if tolerance is not None else ""
    return Template(_read(_ASSETS / "review_row.html")).substitute(
        key=_key(row),
        number=number + 1,
        source=_text(row.source),
        id=_text(example.id),
        split=_text(row.split),
        tags="".join(f'<span class="tag {kind}" title="{kind}">{_text(value)}</span>' for kind, value in tags.items()),
        images="".join(_figure(folder, row, number, place) for place in range(len(example.images)))
        or '<p class="muted">no image</p>',
        question=_text(row.question),
        gold=_text(example.ground_truth) or '<span class="muted">empty</span>',
        also=also,
    )


def _figure(folder: Path, row: Row, number: int, place: int) -> str:
    data = row.example.images[place]
    try:
        opened = open_image(data)
        width, height = opened.size
        suffix = _SHOWN_BY_BROWSERS.get(opened.format or "")
        rgb = to_rgb(opened)  # decodes, so that a broken picture is said and not shown as a gap
        if suffix is None:
            buffer = io.BytesIO()
            rgb.save(buffer, "PNG")
            data, suffix = buffer.getvalue(), ".png"
    except ImageError as error:
        return f'<figure><div class="broken">image cannot be shown ({_text(error)})</div></figure>'
    name = f"images/{number:05d}_{place}{suffix}"
    (folder / name).write_bytes(data)
    boxes = "".join(
        f'<rect x="{x1:g}" y="{y1:g}" width="{max(x2 - x1, 1):g}" height="{max(y2 - y1, 1):g}"/>'
        for x1, y1, x2, y2 in stated_boxes(row.example.ground_truth)
    )
    overlay = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{boxes}</svg>' if boxes else ""
    return (
        f'<figure><a href="{name}" target="_blank" rel="noopener"><span class="picture">'
        f'<img src="{name}" alt="image {place + 1}" width="{width}" height="{height}" loading="lazy">'
        f"{overlay}</span></a>"
        f"<figcaption>image {place + 1}, {width} × {height}</figcaption></figure>"
    )


def _key(row: Row) -> str:
    """What a row's ticks are kept under: its place and content, so that a changed row is not taken as reviewed."""
    parts = [row.split, row.config, str(row.index), row.example.id, row.question, row.example.ground_truth]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _text(value: Any) -> str:
    """Escaped; control characters, which HTML forbids, and lone surrogates as visible marks."""
    shown = "".join(char if char >= " " or char in "\n\t" else "\ufffd" for char in str(value).replace("\r\n", "\n"))
    return html.escape(shown.encode("utf-8", "replace").decode("utf-8"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder in the hub's layout, Parquet, or .jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the sheet")
    parser.add_argument("--per-source", type=int, default=50, metavar="N", help="rows of each; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other rows; default: %(default)s")
    parser.add_argument(
        "--limit", type=float, default=ERROR_LIMIT, metavar="SHARE", help="of errors in a source; default: %(default)s"
    )
    parser.add_argument("--splits", default=",".join(SPLITS), help="default: %(default)s")
    parser.add_argument("--sources", default="", metavar="A,B", help="only these sources")


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    if arguments.per_source < 1:
        raise UserError(f"--per-source is {arguments.per_source}: a sheet needs at least 1 row of each source")
    if not 0 <= arguments.limit < 1:
        raise UserError(f"--limit is {arguments.limit}: it is a share and must lie between 0 and 1")
    check_free(arguments.out)
    rows = Rows(arguments.source, listed(arguments.splits), listed(arguments.sources))
    drawn = sample(rows, arguments.per_source, arguments.seed)
    places = {place for chosen in drawn.values() for place in chosen}
    if not places:
        raise UserError(f"no row of {arguments.source} can be used; `python -m vero_jax.data.check` says why")
    chosen_rows = [row for place, row in enumerate(rows) if place in places]
    with new_folder(arguments.out) as draft:
        write_sheet(draft, chosen_rows, title=Path(arguments.source).name, limit=arguments.limit)
    for line in rows.unusable_lines():
        print(line)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{len(chosen_rows)} rows of {len(drawn)} sources, {size / 1e6:.1f} MB: open {arguments.out / 'index.html'}")
    return 0
