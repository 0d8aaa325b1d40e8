"""stem: angles, polygons and sums."""

from __future__ import annotations

import math
import random

from vero_jax.data.mini.draw import CELL, COLORS, Canvas, cell, pick_colors
from vero_jax.data.mini.task import Task, choice, plain

_POLYGONS = {3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon"}


def angles(rng: random.Random) -> Task:
    """Two thick rays: the angle between them in degrees (5 % off is right), or its kind."""
    width, height = 64, 64
    canvas = Canvas(rng, width, height)
    angle = rng.choice((30, 60, 90, 120, 150))
    color = pick_colors(rng, 1)[0]
    reach = width // 2 - 5
    x, y = width // 2 + rng.randint(-2, 2), height - 16
    ink = canvas.shake(COLORS[color])
    tips = []
    mirrored = rng.random() < 0.3
    for degrees in (0, angle):
        turned = math.radians(180 - degrees if mirrored else degrees)
        tips.append((x + reach * math.cos(turned), y - reach * math.sin(turned)))
    for tip in tips:
        canvas.draw.line((x, y, *tip), fill=ink, width=5)
    canvas.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ink)
    kind = "acute" if angle < 90 else "right" if angle == 90 else "obtuse"
    draw = rng.random()
    if draw < 0.4:
        question = rng.choice(["Which kind of angle is this?", "What angle is drawn?"])
        others = [name for name in ("acute", "right", "obtuse") if name != kind]
        return choice(rng, canvas, question, kind, others, f"The {color} rays make an angle that is {kind}.")
    if draw < 0.55:
        question = rng.choice(
            ["Is the angle acute, right or obtuse?", "Name the kind of angle: acute, right or obtuse."]
        )
        return plain(canvas, question, "string_match", kind, f"The {color} rays make an angle that is {kind}.")
    question = rng.choice(
        ["How many degrees is the angle?", "Estimate the angle in degrees.", "What is the angle in degrees?"]
    )
    return plain(canvas, question, "numeric", str(angle), f"The {color} angle is {kind}, about {angle} degrees.", 0.05)


def polygons(rng: random.Random) -> Task:
    """A regular polygon: its number of sides, or its name."""
    width, height = 64, 64
    canvas = Canvas(rng, width, height)
    sides = rng.choice(tuple(_POLYGONS))
    color = pick_colors(rng, 1)[0]
    radius = rng.randint(24, 28)
    x, y = (side // 2 + rng.randint(-2, 2) for side in (width, height))
    turn = math.pi / 4 if sides == 4 else 0.0
    corners = [
        (
            x + radius * math.sin(turn + 2 * math.pi * corner / sides),
            y - radius * math.cos(turn + 2 * math.pi * corner / sides),
        )
        for corner in range(sides)
    ]
    canvas.draw.polygon(corners, fill=canvas.shake(COLORS[color]))
    name = _POLYGONS[sides]
    think = f"The {color} figure is a {name} with {sides} sides."
    draw = rng.random()
    if draw < 0.5:
        question = rng.choice(
            ["How many sides does the figure have?", "Count the corners of the figure.", "How many sides are there?"]
        )
        return plain(canvas, question, "numeric", str(sides), think)
    question = rng.choice(["Which polygon is it?", "What is the figure called?"])
    if draw < 0.8:
        others = rng.sample([other for other in _POLYGONS.values() if other != name], 2)
        return choice(rng, canvas, question, name, others, think)
    return plain(canvas, question, "string_match", name, think)


def sums(rng: random.Random) -> Task:
    """Two digits with a plus sign, or two groups of dots, to be added."""
    if rng.random() < 0.5:
        first, second = rng.randint(1, 4), rng.randint(1, 4)
        rows = rng.randint(1, 2)
        canvas = Canvas(rng, 3 * CELL, rows * CELL)
        ink = COLORS[rng.choice(("red", "green", "blue", "black"))]
        canvas.spell(f"{first}+{second}", 3 * rng.randrange(rows), canvas.shake(ink))
        question = rng.choice(["What is the sum?", "Compute the sum shown.", "Solve it."])
        think = f"I read {first} and {second}, {first} + {second} = {first + second}."
        return plain(canvas, question, "numeric", str(first + second), think)
    first, second = rng.randint(1, 4), rng.randint(1, 4)
    canvas = Canvas(rng, 2 * CELL, CELL)
    colors = pick_colors(rng, 2)
    for group, (amount, color) in enumerate(zip((first, second), colors, strict=True)):
        canvas.dots(amount, color, cell(canvas, group))
    question = rng.choice(
        ["How many dots are there on both sides together?", "Add the dots on the left and the right."]
    )
    think = f"Left has {first} {colors[0]}, right has {second} {colors[1]}, {first} + {second} = {first + second}."
    return plain(canvas, question, "numeric", str(first + second), think)
