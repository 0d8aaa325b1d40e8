"""The judge's prompt: the template (a data file, or the user's own) and the conversation as the judge reads it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError
from vero_jax.rewards.judge import conversation_text

IMAGE = "[image]"
"""What stands for a picture or a video in a text."""


def load_template(file: str = "") -> str:
    """The prompt's template, from the user's file or, by default, vero_jax's own `prompts/judge.txt`.

    Raises:
      UserError: the file can't be read, or has no place for the answer.
    """
    if not file:
        return importlib.resources.files("vero_jax.rewards").joinpath("prompts/judge.txt").read_text("utf-8")
    try:
        template = Path(file).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"reward.judge_server.prompt={file!r} cannot be read as text: {error}") from error
    if "{output}" not in template:
        raise UserError(
            f"reward.judge_server.prompt={file!r} has no {{output}}, the place of the answer that is to be judged; "
            "add it (and {input} and {label} for the conversation and the truth)"
        )
    return template


def conversation_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The turns of a question as "Role: text" lines; pictures, which the judge does not see, become "[image]"."""
    return conversation_text([{**turn, "content": _text(turn.get("content"))} for turn in messages])


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content.replace("<image>", IMAGE).replace("<video>", IMAGE)
    if isinstance(content, Sequence):
        return "".join(map(_part_text, content))
    return str(content)


def _part_text(part: Any) -> str:
    if isinstance(part, Mapping):
        return _text(part["text"]) if "text" in part else IMAGE
    return _text(part)
