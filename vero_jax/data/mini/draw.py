"""Drawing for the built-in set: a palette, a few shapes, block letters and layouts, all on one Pillow canvas.

Letters are drawn from 5 x 7 bitmaps of our own, so a picture does not depend on the fonts of the machine.
"""

from __future__ import annotations

import dataclasses
import io
import random

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""

COLORS: dict[str, RGB] = {
    "red": (222, 38, 38),
    "green": (36, 160, 62),
    "blue": (38, 84, 224),
    "yellow": (246, 214, 36),
    "black": (24, 24, 24),
}
SYNONYMS = {"red": ["red", "scarlet"], "blue": ["blue", "azure"]}
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUNDS: tuple[RGB, ...] = ((255, 255, 255), (246, 244, 236), (232, 240, 246), (238, 246, 234))
SIZES = ((64, 64), (96, 64), (64, 96), (96, 96))
CELL = 32
"""Pixels along a side of the grid that things stand on: what one visual token sees, within a small policy's reach."""
INK: RGB = (20, 20, 20)

# One string of seven 5-bit rows per character, base 32 digits "0-9a-v", top row first.
_GLYPHS = {
    "0": "ehjlphe", "1": "4c4444e", "2": "eh1248v", "3": "u11e11u", "4": "26aiv22", "5": "vgu11he", "6": "68guhhe",
    "7": "v124888", "8": "ehhehhe", "9": "ehhf12c", "A": "ehhvhhh", "B": "uhhuhhu", "C": "ehggghe", "D": "sihhhis",
    "E": "vgguggv", "F": "vgguggg", "G": "ehgnhhf", "H": "hhhvhhh", "I": "e44444e", "J": "72222ic", "K": "hikokih",
    "L": "ggggggv", "M": "hrllhhh", "N": "hhpljhh", "O": "ehhhhhe", "P": "uhhuggg", "Q": "ehhhlid", "R": "uhhukih",
    "S": "fgge11u", "T": "v444444", "U": "hhhhhhe", "V": "hhhhha4", "W": "hhhllla", "X": "hha4ahh", "Y": "hhha444",
    "Z": "v1248gv", "+": "044v440",
}  # fmt: skip


def pick_size(rng: random.Random, sizes: tuple[tuple[int, int], ...] = SIZES, exact: bool = False) -> tuple[int, int]:
    """A (width, height) from `sizes`; unless `exact`, one picture in four is some pixels off the multiple of 32."""
    width, height = rng.choice(sizes)
    if not exact and rng.random() < 0.25:
        width, height = width - rng.randint(1, 4), height - rng.randint(1, 4)
    return width, height


def pick_colors(rng: random.Random, count: int) -> list[str]:
    """`count` different color names."""
    return rng.sample(list(COLORS), count)


@dataclasses.dataclass
class Canvas:
    """A picture under construction. Colors are shaken a little, so that no two pictures are alike."""

    rng: random.Random
    width: int
    height: int
    background: RGB | None = None

    def __post_init__(self) -> None:
        shade = self.background or self.rng.choice(BACKGROUNDS)
        self.image = Image.new("RGB", (self.width, self.height), self.shake(shade, 3))
        self.draw = ImageDraw.Draw(self.image)

    def shake(self, color: RGB, amount: int = 10) -> RGB:
        red, green, blue = (min(255, max(0, value + self.rng.randint(-amount, amount))) for value in color)
        return red, green, blue

    def rectangle(self, box: Box, fill: RGB | None, outline: RGB | None = None, width: int = 1) -> None:
        self.draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=fill, outline=outline, width=width)

    def shape(self, kind: str, color: str, box: Box) -> None:
        """Draws one of `SHAPES` that fills `box`."""
        fill = self.shake(COLORS[color])
        left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
        across, down = right - left, bottom - top
        middle = left + across / 2
        if kind == "circle":
            self.draw.ellipse((left, top, right, bottom), fill=fill)
        elif kind == "square":
            self.draw.rectangle((left, top, right, bottom), fill=fill)
        elif kind == "triangle":
            self.draw.polygon([(middle, top), (right, bottom), (left, bottom)], fill=fill)
        elif kind == "cross":
            third_x, third_y = across / 3, down / 3
            self.draw.rectangle((left + third_x, top, right - third_x, bottom), fill=fill)
            self.draw.rectangle((left, top + third_y, right, bottom - third_y), fill=fill)
        else:
            raise ValueError(f"unknown shape {kind!r}")

    def text(self, text: str, left: int, top: int, scale: int, color: RGB = INK) -> None:
        """Block capitals and digits, each 5 x 7 cells of `scale` pixels with one cell between them."""
        for character in text:
            for row, bits in enumerate(int(digit, 32) for digit in _GLYPHS.get(character, "0000000")):
                for column in range(5):
                    if bits >> (4 - column) & 1:
                        x, y = left + column * scale, top + row * scale
                        self.draw.rectangle((x, y, x + scale - 1, y + scale - 1), fill=color)
            left += 6 * scale

    def text_centered(self, text: str, box: Box, scale: int, color: RGB = INK) -> None:
        width, height = text_size(text, scale)
        self.text(text, (box[0] + box[2] - width) // 2, (box[1] + box[3] - height) // 2, scale, color)

    def spell(self, text: str, first: int, color: RGB = INK) -> None:
        """Block characters of scale 4 in neighbouring cells, the first one's number given."""
        across, down = self.rng.randint(2, 8), self.rng.randint(0, 3)
        for number, character in enumerate(text, first):
            left, top, _, _ = cell(self, number)
            self.text(character, left + across, top + down, 4, color)

    def dots(self, amount: int, color: str, box: Box) -> None:
        """Up to four dots, two by two around the middle of a cell."""
        middle, center = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
        for dot in range(amount):
            x, y = middle - 7 + 14 * (dot % 2), center - 7 + 14 * (dot // 2)
            self.shape("circle", color, (x - 5, y - 5, x + 6, y + 6))

    def png(self) -> bytes:
        stream = io.BytesIO()
        self.image.save(stream, "PNG", compress_level=1)
        return stream.getvalue()


def text_size(text: str, scale: int) -> tuple[int, int]:
    """(width, height) in pixels of `Canvas.text`."""
    return (6 * len(text) - 1) * scale, 7 * scale


def cell(canvas: Canvas, number: int) -> Box:
    """Cell `number` of a picture's grid, counted in reading order."""
    columns = round(canvas.width / CELL)
    left, top = CELL * (number % columns), CELL * (number // columns)
    return left, top, left + CELL, top + CELL


def cells(canvas: Canvas) -> int:
    """How many cells a picture's grid has; one that ends a few pixels before its last cells has them too."""
    return round(canvas.width / CELL) * round(canvas.height / CELL)


def pick_cells(canvas: Canvas, count: int) -> list[Box]:
    """`count` different cells in random order."""
    return [cell(canvas, number) for number in canvas.rng.sample(range(cells(canvas)), count)]


def scatter(canvas: Canvas, count: int, low: int = 22, high: int = 30) -> list[Box]:
    """`count` square boxes of `low` to `high` pixels, each somewhere inside a cell of its own, in random order."""
    return [inside(canvas, box, low, high) for box in pick_cells(canvas, count)]


def inside(canvas: Canvas, box: Box, low: int = 22, high: int = 30) -> Box:
    """A square of `low` to `high` pixels somewhere in a cell, and in the picture if that ends before its last cell."""
    side = canvas.rng.randint(low, high)
    left, top = (
        start + canvas.rng.randint(0, max(0, min(end, limit) - start - side))
        for start, end, limit in ((box[0], box[2], canvas.width), (box[1], box[3], canvas.height))
    )
    return left, top, min(left + side, canvas.width), min(top + side, canvas.height)
