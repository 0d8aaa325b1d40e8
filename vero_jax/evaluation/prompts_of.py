"""From the question of a benchmark to the prompt of a policy, and to what people read of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vero_jax.evaluation.benchmark import Message, Row
from vero_jax.evaluation.loaders import Question
from vero_jax.types import Example, Prompt

if TYPE_CHECKING:
    from vero_jax.data.processor import Processor


def prompt_of(processor: Processor, question: Question) -> Prompt:
    """The prompt of a question; its random numbers depend on the question's id, not on its neighbours.

    Raises:
      PromptError: the policy cannot be asked, for a reason to count by.
    """
    return processor.prompt(
        Example(
            id=question.id,
            domain="",
            source="",
            messages=question.messages,
            images=question.images,
            reward_type="",
            ground_truth="",
            extra_info={},
        )
    )


def question_text(messages: Sequence[Message]) -> str:
    """A conversation as people read it: a single turn's text alone, several turns each behind its role."""
    turns = [(str(message.get("role", "")), _content(message.get("content", ""))) for message in messages]
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in turns)


def plain_row(row: Row) -> dict[str, Any]:
    """The fields of a row as JSON has them; what JSON does not know becomes text."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(row), default=str))
    return plain


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, Mapping)]
    return "\n".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
