"""From the recipe's nouns to what a reward worker needs."""

from __future__ import annotations

from typing import Any

from vero_jax.rewards.settings import RewardItem
from vero_jax.types import Prompt, Response


def reward_item(prompt: Prompt, response: Response, ground_truth: str | None = None) -> RewardItem:
    """One response to be scored.

    Args:
      prompt: its question; the stored image sizes go along where the row does not state them.
      response: the answer, with its decoded text.
      ground_truth: instead of the question's own, for example boxes rescaled to the image that the model sees
        (`data.boxes.ground_truth_at_size`, needed where the policy answers in pixels).
    """
    example = prompt.example
    extra: dict[str, Any] = {name: value for name, value in example.extra_info.items() if name != "solution"}
    if prompt.image_sizes and not (extra.get("image_sizes") or extra.get("image_size")):
        extra["image_sizes"] = [list(size) for size in prompt.image_sizes]
    return RewardItem(
        response=response.text,
        response_length=len(response.token_ids),
        ground_truth=example.ground_truth if ground_truth is None else ground_truth,
        reward_type=example.reward_type,
        extra_info=extra,
        data_source=example.source,
    )


def reward_items(prompt: Prompt, responses: tuple[Response, ...], ground_truth: str | None = None) -> list[RewardItem]:
    """All responses of a group."""
    return [reward_item(prompt, response, ground_truth) for response in responses]
