"""spatial_action: relations of two shapes, panels put in order, and actions on marked buttons."""

from __future__ import annotations

import json
import random

from vero_jax.data.mini.draw import CELL, COLORS, INK, Canvas, cell, inside, pick_colors
from vero_jax.data.mini.task import Task, choice, crowd, names_of, plain

_STEPS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


def relation(rng: random.Random) -> Task:
    """Where one shape is from another: left, right, above or below."""
    answer = rng.choice(tuple(_STEPS))
    step = _STEPS[answer]
    canvas = Canvas(rng, *rng.choice(((64, 64), (96, 64), (64, 96), (96, 96))))
    columns, rows = canvas.width // CELL, canvas.height // CELL
    first, second = rng.sample(range(columns if step[0] else rows), 2)
    if (first < second) != (sum(step) < 0):
        first, second = second, first
    line = rng.randrange(rows if step[0] else columns)  # the row or column that both stand in
    places = [columns * line + place if step[0] else columns * place + line for place in (first, second)]
    boxes = [inside(canvas, cell(canvas, place)) for place in places]
    colors, kinds, seen = crowd(canvas, 2, boxes)
    names = names_of(colors, kinds)
    position = answer if not step[0] else f"to the {answer}"
    think = f"{seen}. The {names[0]} is {position + ' of' if step[0] else position} the {names[1]}."
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
    canvas = Canvas(rng, CELL * count, CELL, (255, 255, 255))
    color = pick_colors(rng, 1)[0]
    by_size = rng.random() < 0.6
    amounts = rng.sample((8, 18, 28) if by_size else (1, 2, 4), count)
    for place, amount in enumerate(amounts):
        box = cell(canvas, place)
        canvas.rectangle(box, None, (170, 170, 170))
        if by_size:
            air = (CELL - amount) // 2
            canvas.shape("square", color, (box[0] + air, box[1] + air, box[2] - air, box[3] - air))
        else:
            canvas.dots(amount, color, box)
    rising = rng.random() < 0.7
    order = sorted(range(count), key=lambda place: amounts[place] if rising else -amounts[place])
    answer = ", ".join(str(place + 1) for place in order)
    if by_size:
        way = "smallest to largest" if rising else "largest to smallest"
        names = {8: "tiny", 18: "middle", 28: "huge"}
        question = rng.choice([f"Order the panels from {way} square.", f"List the panels by square size, {way}."])
    else:
        way = "fewest to most" if rising else "most to fewest"
        names = {amount: str(amount) for amount in amounts}
        question = rng.choice([f"Order the panels from {way} dots.", f"List the panels by number of dots, {way}."])
    seen = ", ".join(names[amount] for amount in amounts)
    think = f"{seen}. In order: " + ", ".join(f"{names[amounts[place]]} {place + 1}" for place in order) + "."
    return plain(canvas, question, "number_list", answer, think)


def buttons(rng: random.Random) -> Task:
    """A page with marked buttons and sometimes a text field: which action, on which mark, with which value."""
    count = rng.randint(2, 3)
    canvas = Canvas(rng, 96, CELL * count, (240, 240, 240))
    colors = pick_colors(rng, count)
    field = rng.randrange(count) if rng.random() < 0.35 else None
    marks = rng.sample(range(1, 5), count)
    for place, (color, mark) in enumerate(zip(colors, marks, strict=True)):
        box = (CELL, CELL * place + 4, canvas.width - 6, CELL * (place + 1) - 4)
        if place == field:
            canvas.rectangle(box, (255, 255, 255), INK, 2)
        else:
            canvas.rectangle(box, canvas.shake(COLORS[color]))
        canvas.text_centered(str(mark), (2, box[1], 30, box[3]), 3)
    rows = zip(marks, colors, strict=True)
    seen = ", ".join(f"{mark} {'field' if place == field else color}" for place, (mark, color) in enumerate(rows))
    ask = "Give ACTION, MARK and VALUE as JSON."
    if field is not None and rng.random() < 0.6:
        word = rng.choice(("cat", "dog", "sun", "tea"))
        truth: dict[str, str | int] = {"ACTION": "TYPE", "MARK": marks[field], "VALUE": word}
        question = rng.choice([f'Type "{word}" in the text field. {ask}', f'Enter "{word}" in the empty field. {ask}'])
        think = f"{seen}. The field has mark {marks[field]}."
    else:
        place = rng.choice([place for place in range(count) if place != field])
        truth = {"ACTION": "CLICK", "MARK": marks[place], "VALUE": "None"}
        question = rng.choice([f"Press the {colors[place]} button. {ask}", f"Click the {colors[place]} button. {ask}"])
        think = f"{seen}. The {colors[place]} button has mark {marks[place]}."
    return plain(canvas, question, "web_action", json.dumps(truth), think)
