"""visual_alignment: answers that follow rules and name what is in the picture, and captions for a judge."""

from __future__ import annotations

import json
import random
from typing import Any

from vero_jax.data.mini.draw import Canvas, pick_size
from vero_jax.data.mini.task import Task, crowd, names_of

_ENDINGS = ("that is all", "the end", "thank you")
_STARTS = ("I see", "Here is", "Look:")


def _scene(rng: random.Random) -> tuple[Canvas, list[str], list[str], str]:
    """One or two shapes; returns the canvas, their colors, their kinds, and what a careful look writes down."""
    count = 1 if rng.random() < 0.65 else 2
    width, height = pick_size(rng)
    canvas = Canvas(rng, width, height)
    colors, kinds, seen = crowd(canvas, count)
    return canvas, colors, kinds, f"{seen}."


def _rule(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class": name, "args": arguments}


def _truth(rules: list[dict[str, Any]]) -> str:
    return json.dumps({"instructions": rules})


def rules(rng: random.Random) -> Task:
    """Say what is seen and obey one or two rules of form: the words must fit the picture, the form the rules."""
    canvas, colors, kinds, think = _scene(rng)
    seen = " and a ".join(names_of(colors, kinds))
    keywords = [_rule("KeywordChecker", keywords=[*colors, *kinds])]
    ask = rng.choice(["Say what you see, with color and shape.", "Name the color and shape of each thing."])
    start, body, end = "It is a", seen, ""
    wanted: list[str] = []
    checks: list[dict[str, Any]] = []
    for kind in rng.sample(("start", "end", "comma", "words", "quote", "title", "lower"), rng.choice((1, 1, 2))):
        if kind == "start":
            start = rng.choice(_STARTS)
            wanted.append(f'Begin with "{start}".')
            checks.append(_rule("CheckWhetherWholeResponseBeginWithCertainSubstring", substring=start))
            start += " a"
        elif kind == "end":
            end = " " + rng.choice(_ENDINGS)
            wanted.append(f'End with "{end.strip()}".')
            checks.append(_rule("EndChecker", end_phrase=end.strip()))
        elif kind == "comma":
            wanted.append("Use no comma.")
            checks.append(_rule("CommaChecker"))
        elif kind == "words":
            wanted.append("Use at most 12 words.")
            checks.append(_rule("CheckWhetherResponseWordCountInRange", lower_bound=1, upper_bound=12))
        elif kind == "quote":
            wanted.append("Put it in double quotes.")
            checks.append(_rule("QuotationChecker"))
        elif kind == "title":
            wanted.append("Add a title in << >>.")
            checks.append(_rule("TitleChecker"))
        else:
            wanted.append("Use at most 12 lowercase words.")
            checks.append(_rule("LowercaseCountingChecker", N=12))
    text = f"{start} {body}{end}"
    names = [check["class"] for check in checks]
    if "TitleChecker" in names:
        title = f"<<{kinds[0]}>>"
        text = f"{text} {title}" if any("Begin" in name for name in names) else f"{title} {text}"
    if "QuotationChecker" in names:
        if any("Begin" in name for name in names):  # a quotation mark would come before the wanted beginning
            checks = [check for check in checks if check["class"] != "QuotationChecker"]
            wanted = [want for want in wanted if "quotes" not in want]
        else:
            text = f'"{text}"'
    return Task(canvas, " ".join([ask, *wanted]), "instruction_following", _truth(keywords + checks), think, text, text)


def captions(rng: random.Random) -> Task:
    """Free captions: these need a judge, half of them together with a rule."""
    canvas, colors, kinds, think = _scene(rng)
    seen = " and a ".join(names_of(colors, kinds))
    caption = f"A {seen} on a plain light background."
    if rng.random() < 0.5:
        question = rng.choice(["Describe the picture.", "Write a short caption for the picture."])
        return Task(canvas, question, "llm_judge", caption, think, caption, caption)
    question = rng.choice(["Describe the picture. Use no comma.", "Write a short caption without any comma."])
    truth = _truth([_rule("CommaChecker")])
    return Task(canvas, question, "instruction_following_llm_judge", truth, think, caption, caption)
