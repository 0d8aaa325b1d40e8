"""The one table from reward type to verifier, and the score of one response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vero_jax.rewards.clicking import clicking
from vero_jax.rewards.custom import custom_score
from vero_jax.rewards.default_route import default_route
from vero_jax.rewards.extraction import answer_text, boxed_answer, format_score, pointing_source
from vero_jax.rewards.grounding import grounding
from vero_jax.rewards.instructions.checker import instruction_following
from vero_jax.rewards.multiple_choice import multiple_choice
from vero_jax.rewards.number_list import number_list
from vero_jax.rewards.numeric import numeric
from vero_jax.rewards.settings import RewardSettings, RuleScore
from vero_jax.rewards.string_match import list_string_match, string_match
from vero_jax.rewards.web_action import web_action

ALIASES: Mapping[str, str] = {
    "exact_match": "string_match",
    "ordering": "number_list",
    "list_match": "list_string_match",
}
"""Names that Vero's data card uses for the types."""

Verifier = Callable[[str, Any, Mapping[str, Any], RewardSettings], float]
"""(answer text, ground truth, extra_info, settings) -> accuracy in [0, 1]"""


def _boxed(verify: Callable[[str, str], float]) -> Verifier:
    """A verifier of two texts, given the boxed answer and the stripped truth."""

    def score(answer: str, truth: Any, extra_info: Mapping[str, Any], settings: RewardSettings) -> float:
        prediction = boxed_answer(answer)
        return verify(prediction, str(truth).strip()) if prediction else 0.0

    return score


def _pointing(verify: Callable[..., float]) -> Verifier:
    """A verifier of boxes or points, given their JSON and what the coordinates mean."""

    def score(answer: str, truth: Any, extra_info: Mapping[str, Any], settings: RewardSettings) -> float:
        return verify(
            pointing_source(answer),
            str(truth) if settings.strict_reference else truth,
            extra_info,
            default_normalized=settings.coordinates == "normalized_1000",
            strict_reference=settings.strict_reference,
        )

    return score


def _numeric(answer: str, truth: Any, extra_info: Mapping[str, Any], settings: RewardSettings) -> float:
    prediction = boxed_answer(answer)
    if not prediction:
        return 0.0
    return numeric(
        prediction,
        str(truth).strip(),
        extra_info.get("tolerance"),
        strict_reference=settings.strict_reference,
        seconds=settings.math_seconds,
    )


def _instructions(answer: str, truth: Any, extra_info: Mapping[str, Any], settings: RewardSettings) -> float:
    truth = str(truth) if settings.strict_reference else truth
    return instruction_following(answer, truth, strict_reference=settings.strict_reference)


def _judged(answer: str, truth: Any, extra_info: Mapping[str, Any], settings: RewardSettings) -> float:
    """The rules say nothing; the judge's score takes this place."""
    return 0.0


def _default(answer: str, truth: Any, extra_info: Mapping[str, Any], settings: RewardSettings) -> float:
    return default_route(answer, str(truth).strip(), seconds=settings.math_seconds)


VERIFIERS: Mapping[str, Verifier] = {
    "string_match": _boxed(string_match),
    "counting": _boxed(string_match),
    "search": _boxed(string_match),
    "multiple_choice": _boxed(multiple_choice),
    "list_string_match": _boxed(list_string_match),
    "number_list": _boxed(number_list),
    "web_action": _boxed(web_action),
    "numeric": _numeric,
    "grounding": _pointing(grounding),
    "clicking": _pointing(clicking),
    "instruction_following": _instructions,
    "instruction_following_llm_judge": _instructions,
    "llm_judge": _judged,
}
"""The 13 reward types of Vero-600K."""

JUDGED_TYPES = frozenset({"llm_judge", "instruction_following_llm_judge"})


def canonical_type(reward_type: Any, settings: RewardSettings) -> str:
    """The reward type's name in the table: stripped, in lower case, aliases resolved (not with strict_reference)."""
    name = reward_type.strip().lower() if isinstance(reward_type, str) else ""
    return name if settings.strict_reference else ALIASES.get(name, name)


def is_known(reward_type: Any, settings: RewardSettings) -> bool:
    """Has this type a verifier, ours or the user's? Others take the default route; data loading should report them."""
    name = canonical_type(reward_type, settings)
    return name in VERIFIERS or name in settings.custom_types or (name == "custom" and bool(settings.custom))


def score_response(
    text: str, ground_truth: Any, reward_type: Any, extra_info: Any, *, settings: RewardSettings
) -> RuleScore:
    """Accuracy, format and score = (1 - w) accuracy + w format of one response; accuracy is 0 where format is 0.

    Malformed answers, truths and extra_info earn 0. What is raised is a defect of a verifier (or of the user's own
    function): the pool reports such a score as missing.

    Args:
      text: the decoded response without special tokens.
      ground_truth: text as a rule; lists are taken as they are for boxes and instructions.
      reward_type: name of the verifier.
      extra_info: the row's own dict (tolerance, image sizes, ...); anything else counts as empty.
    """
    text = str(text)
    extra = extra_info if isinstance(extra_info, Mapping) else {}
    name = canonical_type(reward_type, settings)
    form = format_score(text, name)
    if name in settings.custom_types or (name == "custom" and settings.custom):
        accuracy, form = custom_score(settings.custom_types.get(name, settings.custom), text, ground_truth, extra, form)
    elif form == 0.0:
        accuracy = 0.0
    else:
        accuracy = VERIFIERS.get(name, _default)(answer_text(text), ground_truth, extra, settings)
    weight = settings.format_weight
    return RuleScore((1.0 - weight) * accuracy + weight * form, accuracy, form)
