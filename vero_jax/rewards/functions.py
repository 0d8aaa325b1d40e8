"""The user's own rewards of every response (`reward.functions`): verl's and TRL's signatures, weights, extra numbers.

A function of verl's kind takes `data_source, solution_str, ground_truth, extra_info` by name and returns a number, a
dict with "score", or None. One of TRL's kind takes `completions` and columns, lists of one entry here, and returns a
list. Either may be async. "builtin" stands for Vero's own verifiers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from vero_jax.errors import UserError
from vero_jax.rewards.custom import load_function, split_target
from vero_jax.rewards.extraction import format_score
from vero_jax.rewards.router import canonical_type, score_response
from vero_jax.rewards.settings import BUILTIN, RewardItem, RewardSettings, RuleScore

SETTING = "reward.functions"
_ACCURACY = ("accuracy", "acc")
_TEXT_NAMES = ("solution_str", "response_text")
"""One of them must be a parameter of a function that is not of TRL's kind."""


class NoScore(ValueError):
    """No function has given this response a score: it is missing."""


class UnusableResult(TypeError):
    """A function has returned something that is no score."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What one function says of one response."""

    score: float
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The other numbers that it returned, by name."""


Scorer = Callable[[RewardItem], RuleScore]
"""Scores one response. Raises NoScore, UnusableResult, or whatever the user's function raises."""


def make_scorer(settings: RewardSettings) -> Scorer:
    """The reward of a run: the rules alone, or the weighted sum of `settings.functions`.

    Raises UserError where a function can't be loaded or has a signature that is neither verl's nor TRL's.
    """
    if not settings.functions:
        return functools.partial(_builtin, settings=settings)
    named = [(target, weight, bind(target, settings)) for target, weight in settings.functions.items()]
    return functools.partial(_weighted, named=named, settings=settings)


def bind(target: str, settings: RewardSettings) -> Callable[[RewardItem], Scored | None]:
    """The function that `target` names, as one of a single response; None says that it has no score.

    Raises UserError where it can't be loaded or called.
    """
    if target == BUILTIN:
        return functools.partial(_rules, settings=settings)
    split_target(target, SETTING)
    function = load_function(target, SETTING)
    parameters = _parameters(function, target)
    if "completions" in parameters:
        return _TRLFunction(target, function, parameters, settings)
    return functools.partial(_call_verl, target=target, function=function, parameters=parameters, settings=settings)


def read_result(result: Any, target: str) -> Scored | None:
    """The score in what a function has returned: a number, a dict with "score", or None.

    Raises UnusableResult for anything else, NaN and infinity included.
    """
    if result is None:
        return None
    if isinstance(result, Mapping):
        if "score" not in result:
            raise UnusableResult(f'{target} returned a dict without "score" (its keys: {_listed(map(str, result))})')
        if result["score"] is None:
            return None
        score = _number(result["score"], target)
        return Scored(score, {str(name): float(value) for name, value in result.items() if _is_part(name, value)})
    return Scored(_number(result, target))


def _builtin(item: RewardItem, *, settings: RewardSettings) -> RuleScore:
    return score_response(item.response, item.ground_truth, item.reward_type, item.extra_info, settings=settings)


def _rules(item: RewardItem, *, settings: RewardSettings) -> Scored:
    rule = _builtin(item, settings=settings)
    return Scored(rule.score, {"accuracy": rule.accuracy, "format": rule.format})


def _weighted(
    item: RewardItem,
    *,
    named: list[tuple[str, float, Callable[[RewardItem], Scored | None]]],
    settings: RewardSettings,
) -> RuleScore:
    """Sum of weight * score over the functions that have a score."""
    total, silent = 0.0, []
    parts: dict[str, float] = {}
    extras: dict[str, float] = {}
    for target, weight, function in named:
        scored = function(item)
        if scored is None:
            silent.append(target)
            continue
        total += weight * scored.score
        label = _label(target)
        if len(named) > 1:
            extras[f"{label}/score"] = scored.score
        for name, value in scored.parts.items():
            if name in _ACCURACY or name == "format":
                parts.setdefault("format" if name == "format" else "accuracy", value)
            elif len(named) > 1:
                extras[f"{label}/{name}"] = value
            else:
                extras[name] = value
    if len(silent) == len(named):
        raise NoScore(f"{_listed(silent)} returned None")
    if not math.isfinite(total):
        raise UnusableResult(f"the weighted sum of {SETTING} is {total}")
    form = parts.get("format")
    if form is None:
        form = format_score(item.response, canonical_type(item.reward_type, settings))
    return RuleScore(total, parts.get("accuracy", total), form, extras)


class _TRLFunction:
    """A function `(completions, **columns)`, called with lists of one entry."""

    def __init__(
        self,
        target: str,
        function: Callable[..., Any],
        parameters: Mapping[str, inspect.Parameter],
        settings: RewardSettings,
    ):
        self._target, self._function, self._parameters, self._settings = target, function, parameters, settings
        self._messages: bool | None = None
        """Does it read completions as chat messages? None until a call has shown it."""

    def __call__(self, item: RewardItem) -> Scored | None:
        columns = self._columns(item)
        text = item.response
        if self._messages:
            result = self._call(_as_messages(text), columns)
        else:
            try:
                result = self._call(text, columns)
            except (TypeError, IndexError, AttributeError):
                # TRL passes texts or messages, as the data set is; only the function knows which of them it reads.
                if self._messages is False:
                    raise
                result = self._call_with_messages(text, columns)
            else:
                self._messages = False
        if isinstance(result, list | tuple):
            if len(result) != 1:
                raise UnusableResult(f"{self._target} returned {len(result)} scores for 1 completion")
            result = result[0]
        return read_result(result, self._target)

    def _call_with_messages(self, text: str, columns: Mapping[str, Any]) -> Any:
        result = self._call(_as_messages(text), columns)
        self._messages = True
        return result

    def _call(self, completion: Any, columns: Mapping[str, Any]) -> Any:
        return _awaited(self._function(completions=[completion], **columns), self._target)

    def _columns(self, item: RewardItem) -> dict[str, list[Any]]:
        info = _extra_info(item, self._settings)
        columns: dict[str, Any] = {name: value for name, value in info.items() if name.isidentifier()}
        columns = {"solution": item.ground_truth, "prompts": info.get("question", ""), "trainer_state": None} | columns
        columns |= {
            "ground_truth": item.ground_truth,
            "data_source": item.data_source,
            "reward_type": item.reward_type,
            "extra_info": info,
        }
        columns.pop("completions", None)
        wanted = _wanted(columns, self._parameters)
        required = [p.name for p in self._parameters.values() if _required(p) and p.name != "completions"]
        absent = [name for name in required if name not in wanted]
        if absent:
            raise KeyError(f"{self._target} needs the column {absent[0]!r}, which the row does not have")
        return {name: value if name == "trainer_state" else [value] for name, value in wanted.items()}


def _call_verl(
    item: RewardItem,
    *,
    target: str,
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    settings: RewardSettings,
) -> Scored | None:
    return read_result(_awaited(function(**_wanted(_verl_values(item, settings), parameters)), target), target)


def _verl_values(item: RewardItem, settings: RewardSettings) -> dict[str, Any]:
    return {
        "data_source": item.data_source,
        "solution_str": item.response,
        "ground_truth": item.ground_truth,
        "extra_info": _extra_info(item, settings),
        "response_text": item.response,
        "response_length": item.response_length,
        "reward_type": item.reward_type,
    }


_VERL_ALWAYS = ("data_source", "solution_str", "ground_truth", "extra_info")
_VERL_NAMES = (*_VERL_ALWAYS, "response_text", "response_length", "reward_type")


def _extra_info(item: RewardItem, settings: RewardSettings) -> dict[str, Any]:
    """A copy of the row's extra_info with what Vero's own scorer looks for in it."""
    info = dict(item.extra_info) if isinstance(item.extra_info, Mapping) else {}
    info.setdefault("reward_type", item.reward_type)
    info.setdefault("normalize_bbox_to_1000", settings.coordinates == "normalized_1000")
    return info


def _wanted(values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The values that a function takes by name; with **kwargs all of them (of verl's kind: those that verl passes)."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        if "completions" in parameters:
            return dict(values)
        return {name: value for name, value in values.items() if name in parameters or name in _VERL_ALWAYS}
    return {name: value for name, value in values.items() if name in parameters}


def _parameters(function: Callable[..., Any], target: str) -> Mapping[str, inspect.Parameter]:
    """A function's parameters. Raises UserError where it can't be called as verl or TRL do."""
    if inspect.isclass(function):
        raise UserError(f"{SETTING}: {target} is a class: name a function, or an object that can be called")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise UserError(f"{SETTING}: {target} yields its scores: return them instead (a plain or an async function)")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{SETTING}: the signature of {target} can't be read: {error}") from None
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY and _required(p)]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    trl = "completions" in parameters
    text = any_name or any(name in parameters for name in _TEXT_NAMES)
    unknown = [p.name for p in parameters.values() if _required(p) and p.name not in _VERL_NAMES]
    if positional or (not trl and (not text or unknown)):
        shown = f"{_label(target)}({', '.join(map(str, parameters.values()))})"
        raise UserError(
            f"{SETTING}: {target} is {shown}: it must take data_source, solution_str, ground_truth and extra_info "
            "by name (verl), or completions and columns (TRL)"
        )
    return parameters


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


@functools.cache
def _runner() -> asyncio.Runner:
    """One event loop for all calls, so that a function may keep its client open."""
    return asyncio.Runner()


def _awaited(result: Any, target: str) -> Any:
    """The value of what an async function has returned; anything else as it is."""
    if inspect.isawaitable(result):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            result = _runner().run(_value_of(result))
        else:
            if inspect.iscoroutine(result):
                result.close()
            raise UnusableResult(f"{target} is async and can't be awaited inside a running event loop: use the pool")
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise UnusableResult(f"{target} returned a coroutine that nobody awaits: write `return await ...` in it")
    return result


async def _value_of(result: Any) -> Any:
    return await result


def _as_messages(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _number(value: Any, target: str) -> float:
    """A finite number. numpy's scalars and arrays of one entry are numbers; text is not."""
    if hasattr(value, "item") and not isinstance(value, numbers.Number):
        with contextlib.suppress(TypeError, ValueError):
            value = value.item()
    if isinstance(value, str | bytes) or not isinstance(value, numbers.Real):
        raise UnusableResult(f"{target} returned {_short(value)}, which is no number")
    number = float(value)
    if not math.isfinite(number):
        raise UnusableResult(f"{target} returned {number}, which is not finite")
    return number


def _is_part(name: Any, value: Any) -> bool:
    return name != "score" and isinstance(value, numbers.Real) and math.isfinite(float(value))


def _label(target: str) -> str:
    """A function's short name."""
    return target.rpartition(":")[2]


def _listed(names: Any) -> str:
    return ", ".join(list(names)[:6]) or "none"


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
