"""The prompts to judge models: templates in `prompts/`, in our own words, filled in one pass."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import re

MAX_ANSWER = 32_000
"""Characters of an answer that reach the judge, from its end: about 8,000 tokens."""
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def fill(name: str, **values: str) -> str:
    """The template `prompts/judge_<name>.txt` with its places filled; text that is filled in is never expanded again.

    {fence} is a word by which the template marks where each text begins and ends. It is a digest of all of them, so
    that none can hold it, and is the same whenever they are.
    """
    filled = {key: _encodable(value) for key, value in values.items()}
    if "answer" in filled:
        filled["answer"] = filled["answer"][-MAX_ANSWER:]
    filled["fence"] = hashlib.sha256(json.dumps(sorted(filled.items())).encode()).hexdigest()[:16]
    return _PLACEHOLDER.sub(lambda match: filled.get(match.group(1), match.group()), _template(name))


@functools.cache
def _template(name: str) -> str:
    return importlib.resources.files("vero_jax.evaluation").joinpath(f"prompts/judge_{name}.txt").read_text("utf-8")


def _encodable(text: str) -> str:
    """Text without halves of surrogate pairs, which no server takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
