"""What surrounds a judge model's call: the conversation it sees, its prompt, and what is made of its score.

The call itself is in judge_server.py, and what keeps many of them going is in judge_pool.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.rewards.extraction import answer_text
from vero_jax.rewards.settings import RuleScore

LOWEST, HIGHEST = 1.0, 10.0
"""Ends of the scale that the judge is asked to use."""

_SCORE_FIELD = re.compile(r'"?SCORE"?\s*:\s*"?(\d+(?:\.\d+)?)', re.IGNORECASE | re.ASCII)
_WHOLE_SCORE = re.compile(r"\b(10|[1-9])\b")
_PLACEHOLDER = re.compile(r"\{(input|output|label|fence)\}")
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_USER_LINE = re.compile(
    r"^[^\S\n]*user[^\S\n]*:?[^\S\n]*$|<\|im_start\|>user\b|<\|start_header_id\|>user<\|end_header_id\|>",
    re.MULTILINE | re.IGNORECASE,
)
_ASSISTANT_TAIL = re.compile(
    r"(?:^|\n)[^\S\n]*(?:<\|im_start\|>assistant|"
    r"<\|start_header_id\|>assistant<\|end_header_id\|>|assistant)[^\S\n]*:?$",
    re.IGNORECASE,
)


def parse_reply(reply: str, *, strict_reference: bool = False) -> float | None:
    """The score in a judge's reply, or None: from its JSON, else from "SCORE: x", else the first whole number 1..10.

    NaN and infinity count as unreadable; the reference takes them for the best score (strict_reference).
    """
    start, end = reply.find("{"), reply.rfind("}")
    if 0 <= start < end:
        value = _json_score(reply[start : end + 1])
        if value is not None:
            return value if strict_reference or math.isfinite(value) else None
    match = _SCORE_FIELD.search(reply)
    if match:
        return float(match.group(1))
    match = _WHOLE_SCORE.search(reply)
    return float(match.group(1)) if match else None


def strip_thinking(reply: str) -> str:
    """A reply without the thoughts of a judge that thinks aloud: only what follows its last `</think>`.

    Thoughts that were cut off by the token limit leave nothing, so that no number in them is taken for the score.
    """
    _, closed, rest = reply.rpartition("</think>")
    return (rest if closed else _THINKING.sub("", reply)).strip()


def scale(raw: float | None, name: str = "0_to_1") -> float:
    """A raw score, clipped to 1..10, on the reward's scale; 0 where there is none.

    "0_to_1" (and unknown names): (s - 1) / 9. "minus1_to_1": (s - 5.5) / 4.5. "raw": s.
    """
    if raw is None:
        return 0.0
    # min and max in this order give the best score to NaN, as in the reference.
    name = name.strip().lower()
    clipped = min(HIGHEST, max(LOWEST, raw)) if not math.isnan(raw) else HIGHEST
    if name in ("minus1_to_1", "-1-1"):
        return (clipped - 5.5) / 4.5
    if name in ("raw", "none"):
        return clipped
    return (clipped - LOWEST) / (HIGHEST - LOWEST)


def blend(
    rule: RuleScore,
    reward_type: str,
    judged: float,
    *,
    format_weight: float,
    instruction_weight: float = 0.5,
    gate_format: bool = False,
) -> RuleScore:
    """A rule's score with the judge's part in it; types without a judge come back unchanged.

    llm_judge: accuracy = judge. instruction_following_llm_judge: accuracy = w rule + (1 - w) judge.

    Args:
      rule: what the rules gave.
      reward_type: canonical type name.
      judged: the judge's score on the reward's scale.
      format_weight: share of the format score.
      instruction_weight: w.
      gate_format: a format score of 0 takes the judge's part too. The reference does not do that.
    """
    if reward_type == "llm_judge":
        accuracy = judged
    elif reward_type == "instruction_following_llm_judge":
        accuracy = instruction_weight * rule.accuracy + (1.0 - instruction_weight) * judged
    else:
        return rule
    if gate_format and rule.format == 0.0:
        accuracy = 0.0
    return RuleScore((1.0 - format_weight) * accuracy + format_weight * rule.format, accuracy, rule.format)


def judge_prompt(template: str, conversation: str, response: str, ground_truth: Any) -> str:
    """`template` with its placeholders filled in one pass: filled-in text is never expanded again.

    {input} is the conversation, {output} the answer's text, {label} the truth, and {fence} a word that occurs in none
    of them, by which the template can mark where they begin and end. It is a digest of the three and therefore the
    same whenever they are.
    """
    values = {"input": conversation, "output": answer_text(response), "label": str(ground_truth)}
    values = {name: _encodable(value) for name, value in values.items()}
    # A text that holds its own digest cannot be found by trying: 64 bits change with each attempt.
    values["fence"] = hashlib.sha256(json.dumps(list(values.values())).encode()).hexdigest()[:16]
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def conversation_text(messages: Sequence[Any] | None, prompt_text: str | None = None) -> str:
    """ "Role: content" lines without the first system message and a trailing assistant message.

    Without usable messages: the decoded prompt from its first user line on, without a trailing assistant line.
    """
    turns = [message for message in messages or () if isinstance(message, Mapping)]
    if not turns:
        return _decoded_conversation(prompt_text or "")
    system = next((index for index, turn in enumerate(turns) if _role(turn) == "System"), None)
    if system is not None:
        del turns[system]
    if turns and _role(turns[-1]) == "Assistant":
        turns.pop()
    return "\n".join(f"{_role(turn)}: {_content(turn)}" for turn in turns)


def _decoded_conversation(text: str) -> str:
    user = _USER_LINE.search(text)
    if user:
        text = text[user.start() :]
    text = text.strip()
    return _ASSISTANT_TAIL.sub("", text).strip()


def _encodable(text: str) -> str:
    """Text without halves of surrogate pairs, which no server takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("role") or "unknown").capitalize()


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    return "" if content is None else str(content)


def _json_score(text: str) -> float | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    score = value.get("SCORE")
    if score is None:
        score = value.get("score")
    try:
        return None if score is None else float(score)
    except (TypeError, ValueError, OverflowError):
        return None
