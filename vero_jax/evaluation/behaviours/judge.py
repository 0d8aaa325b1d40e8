"""Asks the judge about traces, one request for each trace and behaviour; whatever was answered is not asked again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vero_jax.evaluation.behaviours.behaviour import Behaviour
from vero_jax.evaluation.behaviours.catalogue import BEHAVIOURS
from vero_jax.evaluation.behaviours.protocol import MAX_TRACE, SEED
from vero_jax.evaluation.behaviours.questions import prompt, read_reply
from vero_jax.evaluation.behaviours.traces import Trace, thinking
from vero_jax.rewards.asking import Ask
from vero_jax.rewards.judge_server import JudgeServer, Question
from vero_jax.rewards.replies import ReplyFile, reply_key

UNREADABLE = -1


@dataclasses.dataclass(frozen=True)
class _Ask(Ask):
    @property
    def seed(self) -> int:
        return SEED


class BehaviourJudge:
    """What is asked about traces, and what the kept replies say.

    Args:
      server: gives the requests that replies are kept under.
      replies: made with `parse_record`.
      trace_characters: that the judge sees of a trace; of a longer one both ends.
    """

    def __init__(self, server: JudgeServer, replies: ReplyFile[int], trace_characters: int = MAX_TRACE) -> None:
        self._server, self._replies, self._most = server, replies, trace_characters

    def missing(self, traces: Sequence[Trace]) -> Iterator[Ask]:
        """The questions that have no reply yet, each once, all of one trace in a row."""
        asked: set[str] = set()
        for trace in traces:
            for behaviour in BEHAVIOURS:
                text = prompt(behaviour, reasoning(trace), self._most)
                key = self._key(text)
                if self._replies.get(key) is None and key not in asked:
                    asked.add(key)
                    yield _Ask(f"{trace.id}: {behaviour.name}", key, functools.partial(_same, text))

    def said(self, trace: Trace, behaviour: Behaviour) -> int | None:
        """1 or 0, `UNREADABLE` for a reply that says neither, None without a reply."""
        return self._replies.get(self._key(prompt(behaviour, reasoning(trace), self._most)))

    def _key(self, text: str) -> str:
        return reply_key("", self._server.request(text) | {"seed": SEED}, 0)  # equal traces share a reply


def reasoning(trace: Trace) -> str:
    """What the judge sees of an answer: its thinking part, or all of it where there is none."""
    part = thinking(trace.text)
    return trace.text if part is None or not part.strip() else part


def parse_record(record: Mapping[str, Any]) -> int:
    """1, 0 or `UNREADABLE`, of a line in the file of replies."""
    said = read_reply(str(record["reply"]))
    return UNREADABLE if said is None else int(said)


def probe() -> Question:
    """A first question in the form of all others."""
    return prompt(BEHAVIOURS[0], "Both cups are blue, and the left one is a cup. So the left one is blue.")


def _same(text: str) -> Question:
    return text
