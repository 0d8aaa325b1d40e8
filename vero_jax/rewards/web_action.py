"""One step of a web agent, {"ACTION", "MARK", "VALUE"}: reward type web_action."""

from __future__ import annotations

from typing import Any

from vero_jax.rewards.literals import NotData, as_float, read_json_or_literal


def web_action(prediction: str, truth: str) -> float:
    """Share of the truth's stated fields that the predicted action repeats."""
    expected, found = _fields(truth), _fields(prediction)
    if expected is None or found is None:
        return 0.0
    wanted = [name for name in ("ACTION", "MARK", "VALUE") if name in expected and _stated(name, expected[name])]
    if not wanted:
        return 0.0
    return sum(name in found and _same(expected[name], found[name]) for name in wanted) / len(wanted)


def _fields(text: str) -> dict[str, Any] | None:
    try:
        value = read_json_or_literal(text)
    except NotData:
        return None
    return {str(key).upper(): item for key, item in value.items()} if isinstance(value, dict) else None


def _stated(name: str, value: Any) -> bool:
    """MARK -1 and VALUE None mean that the action has none."""
    if name == "MARK":
        return not (value.strip() == "-1" if isinstance(value, str) else value == -1)
    if name == "VALUE":
        return value is not None and not (isinstance(value, str) and value.strip().lower() == "none")
    return True


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, str) != isinstance(found, str):
        text, other = (expected, found) if isinstance(expected, str) else (found, expected)
        number = as_float(text)
        if number is not None and isinstance(other, int | float):
            return number == float(other)
    return str(expected).strip() == str(found).strip()
