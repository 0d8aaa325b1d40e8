"""counting_grounding_search: counting, boxes, clicks and the odd one out."""

from __future__ import annotations

import random

from vero_jax.data.mini.draw import COLORS, SHAPES, Canvas, aligned, pick_colors, pick_size, scatter
from vero_jax.data.mini.task import Task, clicking, grounding, plain, whereabouts

_ROOMY = ((96, 96), (128, 96))


def counting(rng: random.Random) -> Task:
    """How many shapes there are, or how many of one color or kind among others."""
    width, height = pick_size(rng, _ROOMY)
    canvas = Canvas(rng, width, height)
    total = rng.randint(1, 5)
    boxes = scatter(rng, width, height, total, 20, 26)
    if rng.random() < 0.5:
        color, kind = pick_colors(rng, 1)[0], rng.choice(SHAPES)
        for box in boxes:
            canvas.shape(kind, color, box)
        noun = kind + ("es" if kind == "cross" else "s")
        question = rng.choice([f"How many {noun} are there?", f"Count the {noun}.", "How many shapes do you see?"])
        think = f"I count {total} {color} {noun if total > 1 else kind}."
        return plain(canvas, question, "counting", str(total), think)
    colors = pick_colors(rng, 2)
    wanted = rng.randint(1, total)
    for place, box in enumerate(boxes):
        canvas.shape(rng.choice(SHAPES), colors[0] if place < wanted else colors[1], box)
    question = rng.choice([f"How many shapes are {colors[0]}?", f"Count the {colors[0]} shapes."])
    think = f"Of {total} shapes, {wanted} {'is' if wanted == 1 else 'are'} {colors[0]}."
    return plain(canvas, question, "counting", str(wanted), think)


def _crowd(
    rng: random.Random, canvas: Canvas, count: int, sides: tuple[int, ...] = (32, 40, 48)
) -> tuple[list[str], list[tuple[int, int, int, int]]]:
    """Draws `count` shapes of different colors; returns their names and boxes."""
    boxes = aligned(rng, canvas.width, canvas.height, count, 8, sides)
    names = []
    for color, box in zip(pick_colors(rng, count), boxes, strict=True):
        kind = rng.choice(SHAPES)
        canvas.shape(kind, color, box)
        names.append(f"{color} {kind}")
    return names, boxes


def boxes(rng: random.Random) -> Task:
    """The box of one shape, or of two."""
    canvas = Canvas(rng, *pick_size(rng, ((96, 96), (128, 96)), exact=True))
    wanted = 1 if rng.random() < 0.75 else 2
    names, places = _crowd(rng, canvas, wanted + rng.randint(0, 1))
    if wanted == 1:
        ask = rng.choice(["Find the {}. Give its box as JSON.", "Where is the {}? Give its box as JSON."])
        think = f"The {names[0]} is at the {whereabouts(canvas, places[0])}."
        return grounding(canvas, ask.format(names[0]), places[:1], names[:1], think)
    question = f"Find the {names[0]} and the {names[1]}. Give both boxes as JSON."
    first, second = (whereabouts(canvas, box) for box in places[:2])
    think = f"The {names[0]} is at the {first}, the {names[1]} at the {second}."
    return grounding(canvas, question, places[:2], names[:2], think)


def click(rng: random.Random) -> Task:
    """A point on the named shape, or on the button that carries a number."""
    canvas = Canvas(rng, *pick_size(rng, ((96, 96), (128, 96)), exact=True))
    if rng.random() < 0.7:
        names, places = _crowd(rng, canvas, rng.randint(1, 2), (32, 40))
        wording = rng.choice(["Click the {}. Give the point as JSON.", "Point at the {}, as JSON."])
        think = f"The {names[0]} is at the {whereabouts(canvas, places[0])}."
        return clicking(canvas, wording.format(names[0]), places[0], names[0], think)
    count = rng.randint(2, 3)
    digits = rng.sample("123456789", count)
    places = aligned(rng, canvas.width, canvas.height, count, 8, (32,))
    for digit, color, box in zip(digits, pick_colors(rng, count), places, strict=True):
        canvas.rectangle(box, canvas.shake(COLORS[color]))
        canvas.rectangle((box[0] + 4, box[1] + 3, box[2] - 4, box[3] - 3), (255, 255, 255))
        canvas.text_centered(digit, box, 3)
    wording = rng.choice(
        ["Click button {}. Give the point as JSON.", "Press the button with number {}. Give the point as JSON."]
    )
    think = f"Button {digits[0]} is at the {whereabouts(canvas, places[0])}."
    return clicking(canvas, wording.format(digits[0]), places[0], f"button {digits[0]}", think)


def odd_one(rng: random.Random) -> Task:
    """The color of the shape that differs, or the digit hidden in a corner."""
    if rng.random() < 0.65:
        columns, rows = rng.randint(2, 3), rng.randint(2, 3)
        width, height = 32 * columns, 32 * rows
        canvas = Canvas(rng, width, height)
        common, odd = pick_colors(rng, 2)
        kind = rng.choice(SHAPES)
        place = rng.randrange(columns * rows)
        for cell in range(columns * rows):
            left, top = 32 * (cell % columns), 32 * (cell // columns)
            canvas.shape(kind, odd if cell == place else common, (left + 4, top + 4, left + 28, top + 28))
        noun = kind + ("es" if kind == "cross" else "s")
        question = rng.choice([f"One of the {noun} has another color. Which color?", "What color is the odd one out?"])
        think = f"Most {noun} are {common}, but one is {odd}."
        return plain(canvas, question, "search", odd, think)
    width, height = pick_size(rng, ((96, 96), (128, 96)))
    canvas = Canvas(rng, width, height)
    digit = rng.choice("123456789")
    vertical, horizontal = rng.choice(("top", "bottom")), rng.choice(("left", "right"))
    left = 3 if horizontal == "left" else width - 23
    top = 3 if vertical == "top" else height - 31
    canvas.text(digit, left, top, 4)
    color, kind = rng.choice([name for name in COLORS if name != "black"]), rng.choice(SHAPES)
    half = rng.randint(12, 16)
    canvas.shape(kind, color, (width // 2 - half, height // 2 - half, width // 2 + half, height // 2 + half))
    question = rng.choice(["Which digit is hidden in a corner?", "Find the number in the corner."])
    return plain(canvas, question, "search", digit, f"The digit {digit} is in the {vertical} {horizontal} corner.")
