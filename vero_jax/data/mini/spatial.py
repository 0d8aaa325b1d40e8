"""spatial_action: relations of two shapes, panels put in order, and actions on marked buttons."""

from __future__ import annotations

import json
import random

from vero_jax.data.mini.draw import COLORS, INK, SHAPES, Canvas, pick_colors
from vero_jax.data.mini.task import Task, choice, plain

_STEPS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


def relation(rng: random.Random) -> Task:
    """Where one shape is from another: left, right, above or below."""
    width, height = rng.choice(((96, 96), (128, 96), (96, 128)))
    answer = rng.choice(tuple(_STEPS))
    step = _STEPS[answer]
    side = rng.randint(26, 34)
    room_x, room_y = width - side - 1, height - side - 1
    if step[0]:
        low, high = rng.randint(0, room_x - side - 4), 0
        high = rng.randint(low + side + 4, room_x)
        shared = rng.randint(0, room_y)
        places = [(low, shared), (high, max(0, min(room_y, shared + rng.randint(-8, 8))))]
    else:
        low = rng.randint(0, room_y - side - 4)
        high = rng.randint(low + side + 4, room_y)
        shared = rng.randint(0, room_x)
        places = [(shared, low), (max(0, min(room_x, shared + rng.randint(-8, 8))), high)]
    if sum(step) > 0:
        places.reverse()
    canvas = Canvas(rng, width, height)
    colors, kinds = pick_colors(rng, 2), rng.sample(SHAPES, 2)
    for color, kind, (left, top) in zip(colors, kinds, places, strict=True):
        canvas.shape(kind, color, (left, top, left + side, top + side))
    names = [f"{color} {kind}" for color, kind in zip(colors, kinds, strict=True)]
    position = answer if not step[0] else f"to the {answer}"
    think = f"The {names[0]} is {position + ' of' if step[0] else position} the {names[1]}."
    if rng.random() < 0.35:
        question = f"Where is the {names[0]}, seen from the {names[1]}?"
        return choice(rng, canvas, question, answer, rng.sample([name for name in _STEPS if name != answer], 2), think)
    question = rng.choice(
        [
            f"Is the {names[0]} left, right, above or below the {names[1]}?",
            f"Where is the {names[0]} from the {names[1]}: left, right, above or below?",
        ]
    )
    return plain(canvas, question, "string_match", answer, think)


def panels(rng: random.Random) -> Task:
    """Numbered panels side by side, to be ordered by the size of their square or by the number of their dots."""
    count = rng.choice((2, 3, 3))
    width, height = 40 * count, 64
    canvas = Canvas(rng, width, height, (255, 255, 255))
    color = pick_colors(rng, 1)[0]
    slot = width // count
    by_size = rng.random() < 0.6
    amounts = rng.sample((8, 20, 32) if by_size else (1, 2, 4), count)
    for place, amount in enumerate(amounts):
        left = place * slot
        canvas.rectangle((left, 0, left + slot, height), None, (170, 170, 170))
        middle, center = left + slot // 2, height // 2
        if by_size:
            half = amount // 2
            canvas.shape("square", color, (middle - half, center - half, middle + half, center + half))
            continue
        for dot in range(amount):
            x, y = middle - 9 + 18 * (dot % 2), center - 9 + 18 * (dot // 2)
            canvas.shape("circle", color, (x - 7, y - 7, x + 7, y + 7))
    rising = rng.random() < 0.7
    order = sorted(range(count), key=lambda place: amounts[place] if rising else -amounts[place])
    answer = ", ".join(str(place + 1) for place in order)
    if by_size:
        way = "smallest to largest" if rising else "largest to smallest"
        names = {8: "tiny", 20: "middle", 32: "huge"}
        seen = ", ".join(names[amount] for amount in amounts)
        question = rng.choice([f"Order the panels from {way} square.", f"List the panels by square size, {way}."])
        think = f"From left to right the squares are {seen}."
    else:
        way = "fewest to most" if rising else "most to fewest"
        seen = ", ".join(str(amount) for amount in amounts)
        question = rng.choice([f"Order the panels from {way} dots.", f"List the panels by number of dots, {way}."])
        think = f"From left to right the panels have {seen} dots."
    return plain(canvas, question, "number_list", answer, think)


def buttons(rng: random.Random) -> Task:
    """A page with marked buttons and sometimes a text field: which action, on which mark, with which value."""
    count = rng.randint(2, 3)
    width, height = rng.choice((96, 128)), 32 * count
    canvas = Canvas(rng, width, height, (240, 240, 240))
    colors = pick_colors(rng, count)
    field = rng.randrange(count) if rng.random() < 0.35 else None
    marks = rng.sample(range(1, 5), count)
    row = height // count
    for place, (color, mark) in enumerate(zip(colors, marks, strict=True)):
        box = (32, place * row + 4, width - 6, place * row + row - 4)
        if place == field:
            canvas.rectangle(box, (255, 255, 255), INK, 2)
        else:
            canvas.rectangle(box, canvas.shake(COLORS[color]))
        canvas.text_centered(str(mark), (2, box[1], 30, box[3]), 3)
    ask = "Give ACTION, MARK and VALUE as JSON."
    if field is not None and rng.random() < 0.6:
        word = rng.choice(("cat", "dog", "sun", "tea"))
        truth: dict[str, str | int] = {"ACTION": "TYPE", "MARK": marks[field], "VALUE": word}
        question = rng.choice([f'Type "{word}" in the text field. {ask}', f'Enter "{word}" in the empty field. {ask}'])
        think = f"The white text field has mark {marks[field]}."
    else:
        place = rng.choice([place for place in range(count) if place != field])
        truth = {"ACTION": "CLICK", "MARK": marks[place], "VALUE": "None"}
        question = rng.choice([f"Press the {colors[place]} button. {ask}", f"Click the {colors[place]} button. {ask}"])
        think = f"The {colors[place]} button has mark {marks[place]}."
    return plain(canvas, question, "web_action", json.dumps(truth), think)
