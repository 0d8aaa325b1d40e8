"""chart_ocr: bar charts, line charts and printed text."""

from __future__ import annotations

import random

from vero_jax.data.mini.draw import CELL, COLORS, Canvas, pick_colors
from vero_jax.data.mini.task import Task, choice, plain

UNIT = 16
"""Pixels per unit of the value axis: one patch."""
WORDS = ("UP", "GO", "NO", "HI")


def bar_chart(rng: random.Random) -> Task:
    """Three or four colored bars on a ruled ground: the value of one, or the highest or lowest."""
    count = rng.randint(3, 4)
    width, height = CELL * count, 96
    top_value = 5
    canvas = Canvas(rng, width, height, (255, 255, 255))
    for value in range(1, top_value + 1):
        canvas.draw.line((0, height - value * UNIT, width, height - value * UNIT), fill=(206, 206, 206))
    colors = pick_colors(rng, count)
    values = rng.sample(range(1, top_value + 1), count)
    for place, (color, value) in enumerate(zip(colors, values, strict=True)):
        left = CELL * place + rng.randint(4, 8)
        canvas.rectangle((left, height - value * UNIT, left + 20, height), canvas.shake(COLORS[color]))
    seen = ", ".join(f"{color} {value}" for color, value in zip(colors, values, strict=True))
    kind = rng.random()
    if kind < 0.5:
        color, value = rng.choice(list(zip(colors, values, strict=True)))
        question = rng.choice(
            [
                f"What is the value of the {color} bar? Each line is 1.",
                f"How high is the {color} bar, counted in lines?",
                f"Read the value of the {color} bar.",
            ]
        )
        return plain(canvas, question, "numeric", str(value), f"{seen}. The {color} bar has {value}.")
    highest = rng.random() < 0.5
    value = max(values) if highest else min(values)
    color = colors[values.index(value)]
    word = "highest" if highest else "lowest"
    wording = rng.choice(["Which bar is the {}?", "What color is the {} bar?", "Name the color of the {} bar."])
    return plain(canvas, wording.format(word), "string_match", color, f"{seen}. The {word} is {value}, {color}.")


def line_chart(rng: random.Random) -> Task:
    """A line over three marked points: its trend, the place of its peak, or a value."""
    count = 3
    width, height = CELL * count, 96
    canvas = Canvas(rng, width, height, (255, 255, 255))
    top_value = 5
    base = height - UNIT // 2  # points in the middle of a patch
    for value in range(1, top_value + 1):
        canvas.draw.line((0, base - value * UNIT, width, base - value * UNIT), fill=(206, 206, 206))
    color = pick_colors(rng, 1)[0]
    kind = rng.choice(("trend", "peak", "value"))
    if kind == "trend":
        values = sorted(rng.sample(range(1, top_value + 1), count))
        rising = rng.random() < 0.5
        values = values if rising else values[::-1]
    else:
        values = [rng.randint(1, top_value - 1) for _ in range(count)]
        peak = rng.randrange(count)
        values[peak] = max(v for place, v in enumerate(values) if place != peak) + 1
    points = [(CELL * place + CELL // 2, base - value * UNIT) for place, value in enumerate(values)]
    ink = canvas.shake(COLORS[color])
    canvas.draw.line(points, fill=ink, width=4)
    for x, y in points:
        canvas.draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=ink)
    seen = ", ".join(str(value) for value in values)
    if kind == "trend":
        answer = "rising" if rising else "falling"
        question = rng.choice(["Is the line rising or falling?", "What is the trend of the line, rising or falling?"])
        think = f"{seen}. From {values[0]} to {values[-1]} it is {answer}."
        return plain(canvas, question, "string_match", answer, think)
    if kind == "peak":
        question = rng.choice(
            [f"Which of the {count} points is the highest?", f"At which point of {count} is the peak?"]
        )
        think = f"{seen}. The highest is {values[peak]}, point {peak + 1}."
        if rng.random() < 0.3:
            others = [str(n + 1) for n in range(3) if n != peak]
            return choice(rng, canvas, question, str(peak + 1), others, think)
        return plain(canvas, question, "numeric", str(peak + 1), think)
    place = rng.randrange(count)
    question = rng.choice([f"What is the value at point {place + 1}?", f"How many lines high is point {place + 1}?"])
    think = f"{seen}. Point {place + 1} has {values[place]}."
    return plain(canvas, question, "numeric", str(values[place]), think)


def printed(rng: random.Random) -> Task:
    """One or two large digits, or a short word, on a plain ground."""
    number = rng.random() < 0.6
    text = "".join(rng.choices("123456", k=rng.randint(1, 2))) if number else rng.choice(WORDS)
    columns, rows = rng.randint(len(text), 3), rng.randint(1, 2)
    color = pick_colors(rng, 1)[0]
    canvas = Canvas(rng, CELL * columns, CELL * rows, (255, 255, 255) if color == "yellow" else None)
    first = columns * rng.randrange(rows) + rng.randint(0, columns - len(text))
    canvas.spell(text, first, canvas.shake(COLORS[color]))
    if number:
        question = rng.choice(["What number is printed?", "Read the number.", "Which number do you see?"])
        spelled = " ".join(text)
        think = f"The {color} digits are {spelled}." if len(text) > 1 else f"The {color} digit is {text}."
        return plain(canvas, question, rng.choice(("numeric", "string_match")), text, think)
    question = rng.choice(["What word is printed?", "Read the word.", "Which word do you see?"])
    spelled = " ".join(text)
    return plain(canvas, question, "string_match", text.lower(), f"The {color} letters are {spelled}.")
