"""counting_grounding_search: counting, boxes, clicks and the odd one out."""

from __future__ import annotations

import random

from vero_jax.data.mini.draw import (
    CELL,
    COLORS,
    SHAPES,
    Box,
    Canvas,
    cell,
    inside,
    pick_cells,
    pick_colors,
    pick_size,
    scatter,
)
from vero_jax.data.mini.task import Task, clicking, counted, grounding, plain, scene, whereabouts


def counting(rng: random.Random) -> Task:
    """How many shapes there are, or how many of one color or kind among others."""
    canvas = Canvas(rng, *pick_size(rng, ((96, 96), (96, 64))))
    total = rng.randint(1, 5)
    boxes = scatter(canvas, total)
    if rng.random() < 0.5:
        color, kind = pick_colors(rng, 1)[0], rng.choice(SHAPES)
        for box in boxes:
            canvas.shape(kind, color, box)
        noun = kind + ("es" if kind == "cross" else "s")
        question = rng.choice([f"How many {noun} are there?", f"Count the {noun}.", "How many shapes do you see?"])
        think = f"{counted(canvas, boxes)}. That is {total}."
        return plain(canvas, question, "counting", str(total), think)
    colors = pick_colors(rng, 2)
    wanted = rng.randint(1, total)
    for place, box in enumerate(boxes):
        canvas.shape(rng.choice(SHAPES), colors[0] if place < wanted else colors[1], box)
    question = rng.choice([f"How many shapes are {colors[0]}?", f"Count the {colors[0]} shapes."])
    think = f"{counted(canvas, boxes[:wanted])}. That is {wanted}."
    return plain(canvas, question, "counting", str(wanted), think)


def _places(canvas: Canvas, count: int) -> list[Box]:
    """`count` different cells of the grid, with two pixels of air around each."""
    return [(left + 2, top + 2, right - 2, bottom - 2) for left, top, right, bottom in pick_cells(canvas, count)]


def _targets(rng: random.Random, canvas: Canvas, count: int) -> tuple[list[str], list[Box]]:
    """Draws `count` shapes of different colors in cells of the grid; returns their names and boxes."""
    boxes = _places(canvas, count)
    names = []
    for color, box in zip(pick_colors(rng, count), boxes, strict=True):
        kind = rng.choice(SHAPES)
        canvas.shape(kind, color, box)
        names.append(f"{color} {kind}")
    return names, boxes


def boxes(rng: random.Random) -> Task:
    """The box of one shape among up to two."""
    canvas = Canvas(rng, *pick_size(rng, ((96, 96), (64, 96), (96, 64)), exact=True))
    names, places = _targets(rng, canvas, rng.randint(1, 2))
    ask = rng.choice(["Find the {}. Give its box as JSON.", "Where is the {}? Give its box as JSON."])
    return grounding(canvas, ask.format(names[0]), places[:1], names[:1], f"{scene(canvas, places, names)}.")


def click(rng: random.Random) -> Task:
    """A point on the named shape, or on the button that carries a number."""
    canvas = Canvas(rng, *pick_size(rng, ((96, 96), (64, 96), (96, 64)), exact=True))
    if rng.random() < 0.7:
        names, places = _targets(rng, canvas, rng.randint(1, 2))
        wording = rng.choice(["Click the {}. Give the point as JSON.", "Point at the {}, as JSON."])
        think = f"{scene(canvas, places, names)}."
        return clicking(canvas, wording.format(names[0]), places[0], names[0], think)
    count = rng.randint(2, 3)
    digits = rng.sample("123456", count)
    places = _places(canvas, count)
    for digit, color, box in zip(digits, pick_colors(rng, count), places, strict=True):
        canvas.rectangle(box, canvas.shake(COLORS[color]))
        canvas.rectangle((box[0] + 4, box[1] + 3, box[2] - 4, box[3] - 3), (255, 255, 255))
        canvas.text_centered(digit, box, 2)
    wording = rng.choice(
        ["Click button {}. Give the point as JSON.", "Press the button with number {}. Give the point as JSON."]
    )
    think = f"{scene(canvas, places, digits)}."
    return clicking(canvas, wording.format(digits[0]), places[0], f"button {digits[0]}", think)


def odd_one(rng: random.Random) -> Task:
    """The color of the shape that differs, or the digit hidden in a corner."""
    if rng.random() < 0.65:
        columns, rows = rng.randint(2, 3), rng.randint(2, 3)
        canvas = Canvas(rng, CELL * columns, CELL * rows)
        common, odd = pick_colors(rng, 2)
        kind = rng.choice(SHAPES)
        place = rng.randrange(columns * rows)
        for number in range(columns * rows):
            canvas.shape(kind, odd if number == place else common, inside(canvas, cell(canvas, number), 26, 28))
        noun = kind + ("es" if kind == "cross" else "s")
        question = rng.choice([f"One of the {noun} has another color. Which color?", "What color is the odd one out?"])
        where = whereabouts(canvas, cell(canvas, place))
        think = f"Most are {common}, {where} is {odd}."
        return plain(canvas, question, "search", odd, think)
    canvas = Canvas(rng, 96, 96)
    digit = rng.choice("123456")
    vertical, horizontal = rng.choice(("top", "bottom")), rng.choice(("left", "right"))
    canvas.spell(digit, 6 * (vertical == "bottom") + 2 * (horizontal == "right"))
    color, kind = rng.choice([name for name in COLORS if name != "black"]), rng.choice(SHAPES)
    canvas.shape(kind, color, inside(canvas, cell(canvas, 4)))
    question = rng.choice(["Which digit is hidden in a corner?", "Find the number in the corner."])
    return plain(canvas, question, "search", digit, f"{vertical} {horizontal} {digit}.")
