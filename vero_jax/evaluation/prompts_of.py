"""From the question of a benchmark to the prompt of a policy, and to what people read of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vero_jax.evaluation.benchmark import Message, Row
from vero_jax.evaluation.loaders import Question
from vero_jax.types import Prompt

if TYPE_CHECKING:
    from vero_jax.data.processor import Processor


def prompt_of(processor: Processor, question: Question) -> Prompt:
    """The prompt of a question; its random numbers depend on the question's id, not on its neighbours.

    Raises:
      PromptError: the policy cannot be asked, for a reason to count by.
    """
    prompt = processor.chat(encodable(question.messages), question.images)
    return dataclasses.replace(prompt, example=dataclasses.replace(prompt.example, id=question.id))


def encodable(value: Any) -> Any:
    """A value without halves of surrogate pairs, which JSON files can hold and no tokenizer takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {key: encodable(item) for key, item in value.items()}
    return [encodable(item) for item in value] if isinstance(value, list | tuple) else value


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
