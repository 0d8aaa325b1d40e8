"""knowledge_recognition: naming colors, shapes and letters."""

from __future__ import annotations

import random

from vero_jax.data.mini.draw import COLORS, SHAPES, SIZES, SYNONYMS, Canvas, cells, pick_size, scatter
from vero_jax.data.mini.task import Task, choice, crowd, plain

_LETTERS = "EHLOTX"


def colors(rng: random.Random) -> Task:
    """The color of the only shape, of one of two or three, or of the ground."""
    kind = rng.random()
    if kind < 0.2:
        color = rng.choice([name for name in COLORS if name != "black"])
        width, height = pick_size(rng)
        canvas = Canvas(rng, width, height, canvas_color(rng, color))
        shape, other = rng.choice(SHAPES), "black"
        canvas.shape(shape, other, scatter(canvas, 1)[0])
        question = rng.choice(["What color is the background?", "Name the color behind the shape."])
        think = f"A {other} {shape} is on a {color} background."
        return accepted(canvas, question, color, think)
    count = 1 if kind < 0.4 else rng.randint(2, 3)
    width, height = pick_size(rng, SIZES if count < 3 else ((96, 96), (96, 64)))
    canvas = Canvas(rng, width, height)
    names, shapes, seen = crowd(canvas, count)
    color, shape = names[0], shapes[0]
    if count == 1:
        question = rng.choice(["What color is the shape?", "Name the color of the shape.", "Which color do you see?"])
    else:
        question = rng.choice([f"What color is the {shape}?", f"Name the color of the {shape}."])
    return accepted(canvas, question, color, f"{seen}. The {shape} is {color}.")


def canvas_color(rng: random.Random, color: str) -> tuple[int, int, int]:
    """A full ground in a palette color, a little lighter or darker each time."""
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in COLORS[color])
    return red, green, blue


def accepted(canvas: Canvas, question: str, color: str, think: str) -> Task:
    """A color to name; colors with two names accept both."""
    if color in SYNONYMS:
        return Task(canvas, question, "list_string_match", str(SYNONYMS[color]), think, color, color)
    return plain(canvas, question, "string_match", color, think)


def shapes(rng: random.Random) -> Task:
    """The kind of the shape, as a word or as one of the options; one of two by its color when it is hard."""
    count = 1 if rng.random() < 0.4 else 2
    width, height = pick_size(rng)
    canvas = Canvas(rng, width, height)
    names, kinds, seen = crowd(canvas, count)
    color, kind = names[0], kinds[0]
    subject = "shape" if count == 1 else f"{color} shape"
    think = f"{seen}. The {color} shape is a {kind}."
    if rng.random() < 0.5:
        question = rng.choice([f"Which is the {subject}?", f"What is the {subject}?", f"Pick the {subject}:"])
        others = rng.sample([name for name in SHAPES if name != kind], rng.choice((1, 2, 3)))
        return choice(rng, canvas, question, kind, others, think)
    question = rng.choice([f"Name the {subject}.", f"What is the {subject}?", f"Which kind is the {subject}?"])
    return plain(canvas, question, "string_match", kind, think)


def letters(rng: random.Random) -> Task:
    """One letter somewhere."""
    canvas = Canvas(rng, *pick_size(rng, ((32, 64), (64, 32), (64, 64)), exact=True))
    letter = rng.choice(_LETTERS)
    color = rng.choice(("red", "green", "blue", "black"))
    canvas.spell(letter, rng.randrange(cells(canvas)), canvas.shake(COLORS[color]))
    think = f"The {color} letter is {letter}."
    if rng.random() < 0.4:
        question = rng.choice(["Which letter is shown?", "What letter do you see?"])
        others = rng.sample([other for other in _LETTERS if other != letter and other not in "ABCD"], 2)
        return choice(rng, canvas, question, letter.lower(), [other.lower() for other in others], think)
    question = rng.choice(["Which letter is printed?", "Read the letter.", "What letter do you see?"])
    return plain(canvas, question, "string_match", letter, think)
