"""Canonical answers as a text model proposes them, and the rules that a proposal must pass.

The model may only rewrite: what it proposes must stand in the stored answer, and what the rules can read for
themselves must come out the same.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping

from vero_jax.curation import answers, variants
from vero_jax.curation.answers import AnswerSettings, Canonical, applies_to, canonical, dropped
from vero_jax.curation.options import accepted, options
from vero_jax.curation.quantities import NotOneNumber, quantity
from vero_jax.curation.rows import Row, Rows
from vero_jax.rewards.asking import Ask
from vero_jax.rewards.judge import strip_thinking
from vero_jax.rewards.judge_server import JudgeServer
from vero_jax.rewards.literals import NotData, read_json_or_literal
from vero_jax.rewards.replies import ReplyFile, reply_key
from vero_jax.rewards.string_match import normalise

NO_FORM = "the model finds no form"
DISAGREE = "model and rules disagree"
BY_MODEL = "model"
TYPES = ("multiple_choice", "numeric", "string", "list", "none")
_LEFT_TO_MODEL = (
    answers.TOO_LONG,
    answers.NOT_AN_OPTION,
    variants.INCONSISTENT,
    variants.NO_HEAD,
    variants.TOO_MANY,
)
"""Reasons for which the rules alone drop an answer, and a model may know better."""
_FIELD = re.compile(r"\{(question|answer|percent|fence)\}")
_NUMBERS = re.compile(r"[-−]?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?%?|[A-Za-z]+")


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What a reply proposes: one of TYPES and the answer; or why it proposes nothing (`problem`)."""

    type: str = ""
    answer: str = ""
    problem: str = ""


def prompt(question: str, answer: str, settings: AnswerSettings) -> str:
    """The text that the model is asked with."""
    frame = importlib.resources.files("vero_jax.curation").joinpath("prompts/answer.txt").read_text("utf-8")
    percent = "Of a percentage write the number before the sign: 45 for 45%."
    if settings.percent == "fraction":
        percent = "Write a percentage as a fraction of one: 0.45 for 45%."
    values = {"question": question, "answer": answer, "percent": percent}
    values = {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in values.items()}
    values["fence"] = hashlib.sha256(json.dumps(list(values.values())).encode()).hexdigest()[:16]
    return _FIELD.sub(lambda match: values[match[1]], frame)


def parse_proposal(reply: str) -> Proposal:
    """The proposal in a reply: its last JSON object with a "type", fenced or amid text."""
    text = strip_thinking(reply)
    if not text:
        return Proposal(problem="empty reply")
    end = text.rfind("}") + 1
    start = text.find("{")
    for _ in range(50):
        if not 0 <= start < end:
            break
        try:
            value = read_json_or_literal(text[start:end])
        except NotData:
            start = text.find("{", start + 1)
            continue
        found = _proposal(value)
        return found or Proposal(problem="no type in the reply")
    return Proposal(problem="no object in the reply")


def _proposal(value: object) -> Proposal | None:
    if not isinstance(value, dict):
        return None
    kind = str(value.get("type", "")).strip().lower()
    if kind not in TYPES:
        return None
    answer = value.get("answer")
    if isinstance(answer, list):
        return Proposal(kind, str([str(item) for item in answer]))
    return Proposal(kind, "" if answer is None else str(answer))


def checked(proposal: Proposal, answer: str, question: str, *, reward_type: str, settings: AnswerSettings) -> Canonical:
    """What the rules leave of a proposal for a stored answer.

    They drop what they know to be of no use, whatever the model says; they hold the model to what they read
    themselves; and where they only see a text, the proposal must stand in it.
    """
    by_rules = canonical(answer, question, reward_type=reward_type, settings=settings)
    if by_rules.kind == "clicking" or (by_rules.kind == "none" and by_rules.reason not in _LEFT_TO_MODEL):
        return by_rules
    if proposal.type == "none":
        return dropped(NO_FORM)
    kind = "multiple_choice" if proposal.type == "multiple_choice" else ""
    proposed = canonical(proposal.answer, question, reward_type=kind, settings=settings)
    if proposed.kind == "none":
        return proposed
    if (proposed.kind, proposed.value) == (by_rules.kind, by_rules.value):
        return by_rules
    if by_rules.kind in ("numeric", "multiple_choice") or not _stands_in(proposed, answer, question, settings):
        return dropped(DISAGREE)
    return dataclasses.replace(proposed, reason=BY_MODEL)


def _stands_in(proposed: Canonical, answer: str, question: str, settings: AnswerSettings) -> bool:
    if proposed.kind == "numeric":
        return proposed.value in _numbers(answer, settings)
    if proposed.kind == "multiple_choice":
        said = _words(answer)
        named = [letter for letter, text in options(question).items() if normalise(text) and _words(text) in said]
        return named == [proposed.value]
    known = {normalise(text) for text in accepted(answer)}
    if proposed.kind == "list":
        return all(normalise(text) in known for text in accepted(proposed.value))
    return normalise(proposed.value) in known or _words(proposed.value) in _words(answer)


def _words(text: str) -> str:
    return f" {normalise(text)} "


def _numbers(answer: str, settings: AnswerSettings) -> set[str]:
    """Every number that an answer mentions, as the rules write it."""
    found = set()
    for text in _NUMBERS.findall(answer):
        try:
            number = quantity(text, loose=True)
        except NotOneNumber:
            continue
        if number is not None:
            found.add(canonical(text, settings=settings).value or number.text)
            found.add(number.text if not number.percent or settings.percent == "number" else "")
    return found - {""}


def _readable(reply: str) -> bool:
    return not parse_proposal(reply).problem


class AnswerModel:
    """Asks the model about answers, and gives what came of them."""

    def __init__(self, server: JudgeServer, replies: ReplyFile[Proposal], settings: AnswerSettings) -> None:
        self._server, self._replies, self._settings = server, replies, settings

    def asks(self, rows: Rows) -> Iterator[Ask]:
        """The questions that have no reply yet."""
        asked: set[str] = set()
        for row in rows:
            if not applies_to(row.example.domain, row.example.reward_type):
                continue
            text = prompt(row.question, row.example.ground_truth, self._settings)
            key = self._key(row, text)
            if self._replies.get(key) is None and key not in asked:
                asked.add(key)
                yield Ask(row.example.id, key, functools.partial(str, text), _readable)

    def proposal(self, row: Row) -> Proposal | None:
        """What the model proposes for a row, None where it was not asked."""
        return self._replies.get(self._key(row, prompt(row.question, row.example.ground_truth, self._settings)))

    def _key(self, row: Row, text: str) -> str:
        return reply_key(row.example.id, self._server.request(text), 0)


def parse_record(record: Mapping[str, object]) -> Proposal:
    """The proposal in a line of the file of replies."""
    return parse_proposal(str(record["reply"]))
