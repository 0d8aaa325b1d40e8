"""What a task of the built-in set gives: a picture, a question, what is checked, and a reference response."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence

from vero_jax.data.mini.draw import SHAPES, Box, Canvas, pick_colors, scatter

LETTERS = "ABCD"
DOUBT = "Check again:"
"""Between the first and the second time that a reference response thinks the same."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One drawn question. `answer` is readable, `ground_truth` what the reward compares."""

    canvas: Canvas
    question: str
    reward_type: str
    ground_truth: str
    think: str
    final: str
    """The answer as the reference response gives it, without box and tags."""
    answer: str = ""
    tolerance: float | None = None
    doubts: bool = False
    """The reference response goes through its thoughts a second time before it answers."""

    @property
    def solution(self) -> str:
        """The reference response in Vero's format."""
        boxed = self.reward_type not in UNBOXED
        answer = f"\\boxed{{{self.final}}}" if boxed else self.final
        think = f"{self.think} {DOUBT} {self.think}" if self.doubts else self.think
        return f"<think>{think}</think><answer>{answer}</answer>"


UNBOXED = ("grounding", "clicking", "instruction_following", "instruction_following_llm_judge", "llm_judge")


def plain(
    canvas: Canvas, question: str, reward_type: str, answer: str, think: str, tolerance: float | None = None
) -> Task:
    """A task whose ground truth is the answer itself."""
    return Task(canvas, question, reward_type, answer, think, answer, answer, tolerance)


def choice(rng: random.Random, canvas: Canvas, question: str, answer: str, others: Sequence[str], think: str) -> Task:
    """A multiple choice task: the options in random order after the question, the letter as ground truth."""
    options = [answer, *others]
    rng.shuffle(options)
    letter = LETTERS[options.index(answer)]
    text = " ".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=False))
    return Task(canvas, f"{question} {text}", "multiple_choice", letter, f"{think} That is {letter}.", letter, letter)


def thousandths(canvas: Canvas, values: Sequence[float]) -> list[int]:
    """Pixels (x, y, x, y, ...) as 0-1000 coordinates of the picture, Qwen3-VL's convention."""
    sizes = (canvas.width, canvas.height)
    return [min(1000, max(0, round(value / sizes[place % 2] * 1000))) for place, value in enumerate(values)]


def whereabouts(canvas: Canvas, box: Box) -> str:
    """In words, which ninth of the picture the middle of a box is in."""
    across = int(3 * (box[0] + box[2]) / (2 * canvas.width))
    down = int(3 * (box[1] + box[3]) / (2 * canvas.height))
    words = (("top", "", "bottom")[min(2, down)], ("left", "", "right")[min(2, across)])
    return " ".join(word for word in words if word) or "center"


def crowd(canvas: Canvas, count: int, boxes: Sequence[Box] = ()) -> tuple[list[str], list[str], str]:
    """Draws `count` shapes of different colors and kinds, anywhere or in the boxes given.

    Returns:
      their colors, their kinds, and what a careful look writes down.
    """
    colors, kinds = pick_colors(canvas.rng, count), canvas.rng.sample(SHAPES, count)
    boxes = boxes or scatter(canvas, count)
    for color, kind, box in zip(colors, kinds, boxes, strict=True):
        canvas.shape(kind, color, box)
    return colors, kinds, scene(canvas, boxes, names_of(colors, kinds))


def names_of(colors: Sequence[str], kinds: Sequence[str]) -> list[str]:
    return [f"{color} {kind}" for color, kind in zip(colors, kinds, strict=True)]


def scene(canvas: Canvas, boxes: Sequence[Box], names: Sequence[str]) -> str:
    """What a careful look writes down: each thing behind its place, in reading order."""
    order = reading_order(canvas, boxes)
    return ", ".join(f"{whereabouts(canvas, boxes[number])} {names[number]}" for number in order)


def counted(canvas: Canvas, boxes: Sequence[Box]) -> str:
    """The places of some things, numbered in reading order."""
    order = reading_order(canvas, boxes)
    return ", ".join(f"{count} {whereabouts(canvas, boxes[number])}" for count, number in enumerate(order, 1))


def reading_order(canvas: Canvas, boxes: Sequence[Box]) -> list[int]:
    """The boxes' indices by the third of the picture that their middle is in, from the top, then from left to right."""

    def key(number: int) -> tuple[int, int]:
        left, top, right, bottom = boxes[number]
        return 3 * (top + bottom) // (2 * canvas.height), left + right

    return sorted(range(len(boxes)), key=key)


def boxes_json(boxes: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    return json.dumps([{"bbox_2d": list(box), "label": label} for box, label in zip(boxes, labels, strict=True)])


def grounding(canvas: Canvas, question: str, boxes: Sequence[Box], labels: Sequence[str], think: str) -> Task:
    """Boxes to be found: absolute pixels in the ground truth, 0-1000 in the reference response."""
    final = boxes_json([thousandths(canvas, box) for box in boxes], labels)
    return Task(canvas, question, "grounding", boxes_json(boxes, labels), think, final, boxes_json(boxes, labels))


def clicking(canvas: Canvas, question: str, box: Box, label: str, think: str) -> Task:
    """A place to click: any point inside the box counts, the reference response gives its middle."""
    middle = thousandths(canvas, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    final = json.dumps([{"point_2d": middle}])
    return Task(canvas, question, "clicking", boxes_json([box], [label]), think, final, boxes_json([box], [label]))
