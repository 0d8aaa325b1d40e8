"""Answers that are meant to hang, crash or outwit a verifier, and a row of every reward type to try each of them on."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vero_jax.rewards.instructions.checker import CHECKS
from vero_jax.rewards.router import VERIFIERS, score_response
from vero_jax.rewards.settings import RewardSettings

LONGEST = 100_000
"""Characters; no verifier may need more than a second of processor time for an answer of this length."""


def _filled(piece: str) -> str:
    return piece * (LONGEST // len(piece))


HOSTILE_ANSWERS: dict[str, str] = {
    "power tower": "9**9**9",
    "power tower of four": "9**9**9**9",
    "caret tower": "9^9^9",
    "LaTeX tower": "$9^{9^{9}}$",
    "factorial": "99999999!",
    "LaTeX factorial": "$99999999!$",
    "factorial of a factorial": "$((99!)!)!$",
    "large binomial": "$\\binom{999}{500}^{999}$",
    "expanded power": "$(x+1)^{9999}$",
    "large power of a sum": "$(x+y+z)^{399}=(z+y+x)^{399}$",
    "infinite sum": "$\\sum_{n=1}^{99999999} n^{n}$",
    "integral": "$\\int_0^1 e^{x^{2}\\sin(x)} dx$",
    "limit": "$\\lim_{x\\to 0} \\frac{\\sin(\\tan(x))}{\\sin(x)^{99}}$",
    "huge exponent": "1e999999999",
    "power of ten": "10^{99999999}",
    "continued fraction": "$" + "1+\\frac{1}{" * 200 + "1" + "}" * 200 + "$",
    "nested LaTeX": "$" + "\\sqrt{" * 10_000 + "2" + "}" * 10_000 + "$",
    "nested LaTeX fractions": "\\frac{1}{" * 8_000 + "2" + "}" * 8_000,
    "nested powers": "2^{" * 20_000 + "2" + "}" * 20_000,
    "nested parentheses": "(" * 50_000 + ")" * 50_000,
    "nested number": "(" * 40_000 + "1" + ")" * 40_000,
    "opening braces": "{" * LONGEST,
    "closing braces": "}" * LONGEST,
    "opening brackets": "[" * LONGEST,
    "brackets": "[" * 50_000 + "]" * 50_000,
    "empty bracket pairs": _filled("[]"),
    "nested objects": '{"a":' * 16_000 + "1" + "}" * 16_000,
    "nested lists of objects": '[{"bbox_2d":' * 7_000,
    "opened boxes": _filled("\\boxed{"),
    "opened bracket boxes": _filled("\\boxed["),
    "boxes without braces": _filled("\\boxed "),
    "many boxes": _filled("\\boxed{1}"),
    "opened answers": _filled("<answer>"),
    "closed answers": _filled("</answer>"),
    "answer tags": _filled("<answer></answer>"),
    "think tags": _filled("<think></think>"),
    "digits": "9" * LONGEST,
    "digits and a point": "9" * 50_000 + "." + "9" * 49_000,
    "digits with commas": _filled("123,"),
    "spaced digits": _filled("5 "),
    "signed digits": _filled("-5"),
    "long sum": _filled("1+") + "1",
    "long product": _filled("2*") + "2",
    "long quotient": _filled("1/") + "3",
    "long LaTeX sum": "$" + _filled("x+")[4:] + "1$",
    "signs": _filled("-") + "1",
    "spaces": " " * LONGEST + "5",
    "newlines": "a" + "\n" * (LONGEST - 2) + "b",
    "mixed white space": _filled(" \n\t") + "x",
    "dollars": "$" * LONGEST,
    "spaced dollars": _filled("$ "),
    "backslashes": "\\" * LONGEST,
    "LaTeX openings": _filled("\\["),
    "LaTeX fractions": _filled("\\frac{1}{2}"),
    "LaTeX texts": _filled("\\text{"),
    "equals signs": _filled("x=5 "),
    "answers stated": _filled("the final answer is 5. "),
    "answer is": _filled("answer is "),
    "answer is, and hope": _filled("final answer is: $5$. I hope "),
    "letters": _filled("A B. "),
    "capitals": _filled("A, "),
    "words": _filled("word "),
    "one word": "w" * LONGEST,
    "sentences": _filled("No. 5 is Mr. Smith's. "),
    "full stops": "." * LONGEST,
    "spaced full stops": _filled(". "),
    "question marks": _filled("?!"),
    "quotes": _filled("\"'"),
    "apostrophes": _filled("'"),
    "backticks": _filled("`"),
    "fences": _filled("```["),
    "fences with ends": _filled("```json\n[{}]\n"),
    "stars": "*" * LONGEST,
    "spaced stars": _filled("* "),
    "star spans": _filled("*a"),
    "dividers": _filled("*** "),
    "titles": _filled("<<"),
    "titles closed": _filled("<<>"),
    "hyphens": "-" * LONGEST,
    "dashed words": _filled("a-"),
    "postscripts": _filled("p. "),
    "postscript spaces": _filled("P.S. "),
    "percentages": _filled("3%"),
    "points tags": _filled("<points "),
    "points coordinates": _filled('<points coords="1 '),
    "tracks": '<points coords="' + _filled("1 1 100 100;")[130:] + '">',
    "boxes": json.dumps([{"bbox_2d": [i, i, i + 5, i + 5]} for i in range(2_100)]),
    "equal boxes": json.dumps([{"bbox_2d": [10, 20, 30, 40]}] * 2_700),
    "molmo boxes": json.dumps({"results": [{"x_min": i, "y_min": 0, "x_max": 9, "y_max": 9} for i in range(1_700)]}),
    "array of arrays": "[" + "[]," * 30_000 + "[]]",
    "huge number in JSON": '[{"bbox_2d": [0, 0, 1, ' + "9" * 90_000 + "]}]",
    "escapes in JSON": '["' + "\\u0000" * 16_000 + '"]',
    "commas": "," * LONGEST,
    "tuple of numbers": _filled("1, "),
    "combining marks": "a" + "\u0301" * (LONGEST - 1),
    "compatibility characters": "\ufdfa" * LONGEST,
    "zero-width spaces": "\u200b" * LONGEST,
    "surrogates": "\ud800" * LONGEST,
    "null characters": "\x00" * LONGEST,
    "Arabic digits": "\u0661" * LONGEST,
    "emoji": "\U0001f600" * LONGEST,
    "Chinese": "\u4f60\u597d" * 50_000,
    "Greek small letters": "\u03c2\u03b1 " * 33_000,
}

# What fuzz.py has found besides.
HOSTILE_ANSWERS |= {
    "many LaTeX numbers": _filled("$5\\binom{9}{5}Mr.e"),
    "unclosed environments": (
        " " * 58 + "i" + "\\{;\\cup" * 2_000 + "\\begin{cases}" * 2_000 + "\\dfrac12***$${" * 2_000
    )[:LONGEST],
}

ESCAPES: tuple[str, ...] = (
    "__import__('pathlib').Path({target!r}).touch()",
    "$__import__('pathlib').Path({target!r}).touch()$",
    "5 + 0*len(open({target!r}, 'w').name)",
    "Rational(open({target!r},'w').write('5'),1)",
    "(lambda: open({target!r}, 'w'))()",
    "[x for x in (1,) if open({target!r}, 'w')]",
    "().__class__.__base__.__subclasses__()",
    "exec(\"open({target!r}, 'w')\")",
    "{{'ACTION': open({target!r}, 'w')}}",
    "sqrt(open({target!r}, 'w'))",
    "\\text{{__import__('pathlib').Path({target!r}).touch()}}",
    "$\\operatorname{{eval}}(\\text{{open({target!r}, 'w')}})$",
    "\\frac{{__import__('os').system('touch {target}')}}{{1}}",
    '["$type", "__reduce__", {{"py/object": "os.system", "py/reduce": ["touch {target}"]}}]',
    "cos\nsystem\n(S'touch {target}'\ntR.",
)
"""Texts that create the file {target} if anything evaluates them."""

FRAME_WALKS: tuple[str, ...] = (
    "__import__('sys')._getframe({depth}).f_locals['ground_truth']",
    "__import__('sys')._getframe({depth}).f_locals['truth']",
    "__import__('inspect').stack()[{depth}].frame.f_locals['truth']",
    "float(__import__('sys')._getframe({depth}).f_locals['truth'])",
)
"""Texts whose value would be the gold answer, if anything evaluated them."""


@dataclasses.dataclass(frozen=True)
class HostileRow:
    """One hostile answer under one reward type; `label` says which variant of the type."""

    name: str
    label: str
    response: str
    reward_type: str
    ground_truth: Any
    extra_info: dict[str, Any]


_SIZE = {"image_sizes": [[640, 480]]}
_BOX_TRUTH = json.dumps([{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [0, 0, 5, 5]}])
ARGUMENTS: dict[str, Any] = {
    "N": 3,
    "bigram": 1,
    "capital_frequency": 3,
    "capital_relation": "at least",
    "end_phrase": "Is there anything else?",
    "first_word": "word",
    "forbidden_words": ["never", "word"],
    "frequency": 3,
    "high": 9,
    "key_sentences": ["No."],
    "keyword": "word",
    "keyword1": "word",
    "keyword2": "a",
    "keywords": ["word", "a"],
    "language": "en",
    "last_word": "word",
    "let_frequency": 3,
    "let_relation": "at least",
    "letter": "w",
    "low": 1,
    "lower_bound": 1,
    "lower_bound_times": 1,
    "m": 1,
    "n": 1,
    "n_end": 9,
    "n_sent": 1,
    "n_start": 1,
    "n_words": 1,
    "nth_paragraph": 1,
    "num_bullets": 1,
    "num_highlights": 1,
    "num_paragraphs": 1,
    "num_placeholders": 1,
    "num_sections": 2,
    "num_sentences": 1,
    "num_words": 3,
    "original_message": "a *b* c",
    "original_paragraph": "word a word",
    "phrase": "word word word",
    "postscript_marker": "P.S.",
    "precision": 2,
    "prompt_to_repeat": "word",
    "ranges": [[1, 2], [1, 2]],
    "relation": "at least",
    "section_spliter": "Section",
    "small_n": 2,
    "starter": "word",
    "substring": "word",
    "substrings": ["word", "b"],
    "upper_bound": 9,
    "upper_bound_times": 9,
}


def hostile_rows() -> Iterator[HostileRow]:
    """Every hostile answer under every reward type, and under each class of instruction."""
    for name, text in HOSTILE_ANSWERS.items():
        yield from rows_of(name, text)


def rows_of(name: str, text: str) -> Iterator[HostileRow]:
    """One answer under every reward type and class of instruction: bare, in its tags, and in a box where one belongs.

    Where truths are parsed like answers, the hostile text is the truth, too, so that the comparison is reached.
    """
    boxed, wrapped = f"<think>x</think><answer>\\boxed{{{text}}}</answer>", f"<think>x</think><answer>{text}</answer>"
    latex = f"<think>x</think><answer>\\boxed{{${text}$}}</answer>"
    truths = {"web_action": '{"ACTION": "CLICK", "MARK": 3, "VALUE": "None"}', "number_list": "1, 2", "numeric": "5"}
    for kind in VERIFIERS:
        if kind.startswith("instruction") or kind in ("grounding", "clicking"):
            continue
        truth = truths.get(kind, "word")
        yield HostileRow(name, f"{kind}, bare", text, kind, truth, {})
        yield HostileRow(name, kind, boxed, kind, truth, {})
        yield HostileRow(name, f"{kind}, without a box", wrapped, kind, truth, {})
    for truth in ("5", text):
        which = "" if truth == "5" else ", as the truth"
        yield HostileRow(name, f"numeric, tolerance{which}", boxed, "numeric", truth, {"tolerance": 0.05})
        yield HostileRow(name, f"numeric, LaTeX{which}", latex, "numeric", truth, {})
        yield HostileRow(name, f"numeric, LaTeX, tolerance{which}", latex, "numeric", truth, {"tolerance": 0.05})
        yield HostileRow(name, f"default{which}", wrapped, "", truth, {})
        yield HostileRow(name, f"default, box{which}", boxed, "", truth, {})
    yield HostileRow(name, "numeric, as the truth", boxed, "numeric", text, {})
    yield HostileRow(name, "list_string_match, as the truth", boxed, "list_string_match", text, {})
    yield HostileRow(name, "multiple_choice, as the truth", boxed, "multiple_choice", text, {})
    for kind in ("grounding", "clicking"):
        for extra in ({}, {"normalize_bbox_to_1000": True}, {"model_family": "molmo2"}):
            label = f"{kind}{', molmo2' if 'model_family' in extra else ''}"
            yield HostileRow(name, label, wrapped, kind, _BOX_TRUTH, _SIZE | extra)
        yield HostileRow(name, f"{kind}, box", boxed, kind, _BOX_TRUTH, dict(_SIZE))
        yield HostileRow(name, f"{kind}, as the truth", wrapped, kind, text, dict(_SIZE))
    yield HostileRow(name, "instruction_following, as the truth", wrapped, "instruction_following", text, {})
    for kind in CHECKS:
        truth = json.dumps({"instructions": [{"class": kind, "args": ARGUMENTS}]})
        yield HostileRow(name, kind, wrapped, "instruction_following", truth, {})


USUAL = {
    *(kind for kind in VERIFIERS if not kind.startswith("instruction") and kind not in ("counting", "search")),
    "numeric, tolerance",
    "default",
    "grounding, molmo2",
    "clicking, molmo2",
}
"""Labels of the rows that are tried every time: one of each way through the verifiers."""


def usual_rows() -> Iterator[HostileRow]:
    """Every hostile answer under each way through the verifiers, and under a few classes of instructions."""
    classes = sorted(CHECKS)
    for number, (name, text) in enumerate(HOSTILE_ANSWERS.items()):
        some = {classes[index % len(classes)] for index in range(3 * number, 3 * number + 3)}
        yield from (row for row in rows_of(name, text) if row.label in USUAL | some)


def slow_rows(rows: Callable[[], Iterable[HostileRow]], strict: bool, limit_s: float) -> list[tuple[str, str, float]]:
    """(name, label, seconds) of the rows that take too long, in processor time: a busy machine makes none slow."""
    settings, slow = RewardSettings(strict_reference=strict), []
    for row in rows():
        start = time.process_time()
        score = score_response(row.response, row.ground_truth, row.reward_type, row.extra_info, settings=settings)
        seconds = time.process_time() - start
        assert 0.0 <= score.score <= 1.0, row.label
        if seconds > limit_s:
            slow.append((row.name, row.label, seconds))
    return slow
