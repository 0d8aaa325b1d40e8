"""Types instruction_following and instruction_following_llm_judge (its rule part): share of instructions followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vero_jax.rewards.instructions import copying, counting, keywords, structure, wording
from vero_jax.rewards.instructions.arguments import Arguments, Check
from vero_jax.rewards.literals import NotData, read_json_or_literal

CHECKS: Mapping[str, Check] = {
    **counting.CHECKS,
    **keywords.CHECKS,
    **structure.CHECKS,
    **copying.CHECKS,
    **wording.CHECKS,
}
"""Check by class name, as the data spells it."""

_REFERENCE_CHECKS: Mapping[str, Check] = {"ResponseLanguageChecker": wording.reference_language}


def instruction_following(text: str, truth: Any, *, strict_reference: bool = False) -> float:
    """Satisfied share of the truth's instructions, {"instructions": [{"class", "args"}, ...]}; 0 if it is not that."""
    instructions = read_instructions(truth)
    if not instructions:
        return 0.0
    return sum(follows(text, item, strict_reference=strict_reference) for item in instructions) / len(instructions)


def read_instructions(truth: Any) -> list[Any]:
    """The instructions in a truth: a dict, or text holding one as JSON or Python literal, once nested at most."""
    for _ in range(2):
        if isinstance(truth, str):
            try:
                truth = read_json_or_literal(truth.strip())
            except NotData:
                return []
    if not isinstance(truth, Mapping):
        return []
    items = truth.get("instructions")
    return list(items) if isinstance(items, list | tuple) else []


def follows(text: str, item: Any, *, strict_reference: bool = False) -> bool:
    """Does `text` follow one instruction? False as well for blank text and for instructions that can't be checked."""
    if not isinstance(item, Mapping) or not isinstance(item.get("class"), str) or not text.strip():
        return False
    check = CHECKS.get(item["class"])
    if strict_reference:
        check = _REFERENCE_CHECKS.get(item["class"], check)
    if check is None:
        return False
    values = item.get("args")
    values = values if isinstance(values, Mapping) else {}
    arguments = Arguments({name: value for name, value in values.items() if value is not None})
    try:
        return bool(check(text, arguments))
    except Exception:
        # The data defines an instruction whose check fails as not followed, whatever the reason: a broken regular
        # expression, an argument of another kind, an index out of range.
        return False
