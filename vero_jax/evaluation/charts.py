"""Bars of a category's benchmarks as SVG: a checkpoint between the base model and Vero of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vero_jax.runtime.pages import escape

_WIDTH, _LEFT, _RIGHT = 420, 128, 46
_BAR, _GAP = 9, 9
"""In pixels: a bar's height, and what is free between two benchmarks."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """One benchmark, or the mean of several. Figures are on the published scale."""

    name: str
    own: float | None
    error: float | None
    """Standard error of `own`."""
    base: float | None
    vero: float | None


def chart(title: str, names: tuple[str, str, str], groups: Sequence[Bars], key: str) -> str:
    """A figure that says in words, too, what it shows.

    Args:
      names: of the three bars: the checkpoint, the base model, Vero.
      key: part of the ids of its elements, unique in the page.
    """
    height = len(groups) * (3 * _BAR + _GAP) + 22
    parts = [_grid(height)]
    words = []
    for index, group in enumerate(groups):
        top = index * (3 * _BAR + _GAP) + 4
        parts.append(
            f'<text class="name{" mean" if index == 0 else ""}" x="{_LEFT - 8}" y="{top + 1.5 * _BAR}">'
            f"{escape(group.name)}</text>"
        )
        own = _words(group.own, group.error)
        words.append(
            f"{group.name}: {names[0]} {own}, {names[1]} {_words(group.base)}, {names[2]} {_words(group.vero)}"
        )
        figures = (("own", group.own, names[0]), ("base", group.base, names[1]), ("vero", group.vero, names[2]))
        for place, (kind, value, name) in enumerate(figures):
            error = group.error if kind == "own" else None
            parts.append(_bar(kind, value, error, top + place * _BAR, f"{group.name}, {name}: {_words(value, error)}"))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape("; ".join(words))}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _x(value: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(value, 0.0), 100.0) / 100


def _grid(height: int) -> str:
    lines = []
    for value in (0, 25, 50, 75, 100):
        lines.append(f'<line class="grid" x1="{_x(value):.1f}" x2="{_x(value):.1f}" y1="0" y2="{height - 18}"/>')
        lines.append(f'<text class="tick" x="{_x(value):.1f}" y="{height - 5}">{value}</text>')
    return "".join(lines)


def _bar(kind: str, value: float | None, error: float | None, top: float, title: str) -> str:
    middle = top + _BAR / 2
    if value is None:
        return f'<text class="none" x="{_LEFT + 4}" y="{middle}">not run</text>' if kind == "own" else ""
    end = _x(value)
    bar = (
        f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{max(end - _LEFT, 0.5):.1f}" height="{_BAR - 1}">'
        f"<title>{escape(title)}</title></rect>"
    )
    if kind != "own":
        return bar
    if error is not None:
        low, high = _x(value - error), _x(value + error)
        bar += (
            f'<path class="whisker" d="M{low:.1f} {middle - 3}v5M{low:.1f} {middle - 0.5}H{high:.1f}'
            f'M{high:.1f} {middle - 3}v5"/>'
        )
        end = max(end, high)
    return f'{bar}<text class="value" x="{end + 5:.1f}" y="{middle}">{value:.1f}</text>'


def _words(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "not run"
    return f"{value:.1f}" + (f" ± {error:.1f}" if error is not None else "")
