"""Sampling and scoring together: rewards and the judge do their work while the device decodes the others."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from vero_jax.config import SamplingConfig
from vero_jax.data.boxes import ground_truth_at_size
from vero_jax.errors import UserError
from vero_jax.parallel.distributed import Hosts
from vero_jax.rewards.items import reward_items
from vero_jax.rewards.judge_pool import Judgement, JudgePool
from vero_jax.rewards.pool import RewardPool
from vero_jax.rewards.settings import RewardItem
from vero_jax.sampling.engine import Engine
from vero_jax.sampling.inputs import fitting
from vero_jax.types import Group, Prompt, Score


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Scored groups in the order of their prompts, and where the time went (seconds)."""

    groups: list[Group]
    gen_s: float
    """Sampling, rewards that ran meanwhile included."""
    reward_s: float
    """Waiting for rewards after the last token was drawn."""
    response_tokens: int
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Prompts that fit no bucket, by reason."""
    sampler: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the engine counted, see `GenerationStats.metrics`."""

    @property
    def missing_share(self) -> float:
        """Share of responses whose reward failed."""
        scores = [score for group in self.groups for score in group.scores]
        return sum(score.missing is not None for score in scores) / max(len(scores), 1)


def rollout(
    engine: Engine,
    rewards: RewardPool,
    params: Any,
    prompts: Sequence[Prompt],
    *,
    n: int,
    sampling: SamplingConfig,
    seed: int,
    step: int,
    max_new_tokens: int,
    coordinates: str = "normalized_1000",
    judge: JudgePool | None = None,
    hosts: Hosts | None = None,
) -> Rollout:
    """Samples n responses to each prompt and scores them; DESIGN: `Prompt -> Group -> Group with Scores`.

    Args:
      seed, step: what the samples depend on, beside the prompt and the sample's number.
      coordinates: `data.coordinates`, what the policy's boxes and points mean.
      judge: scores the reward types that need one; None leaves them to the rules. With several processes the primary
        one has it, so that its server is asked once.
      hosts: the processes of the run. Each scores its share of the groups; all get all scores.

    Raises:
      UserError: a prompt fits no bucket, or its image tokens do not match its images, and `rollout.oversize` is
        "error"; with "drop" such prompts have no group and are counted.
    """
    start = time.perf_counter()
    hosts = hosts or Hosts()
    left_out: Mapping[str, int] = {}
    if engine.rollout.oversize == "drop":
        prompts, left_out = fitting(prompts, engine.buckets, engine.patch_layout.merge_size)
    groups: dict[int, Group] = {}
    asked: dict[int, list[Future[Judgement]]] = {}
    generated = start

    def items() -> Iterator[tuple[int, list[RewardItem]]]:
        nonlocal generated
        sampled = engine.generate(
            params,
            prompts,
            n=n,
            sampling=sampling,
            seed=seed,
            step=step,
            max_new_tokens=max_new_tokens,
        )
        for index, group in sampled:
            groups[index] = group
            if judge is not None:
                asked[index] = judge.submit(group)
            if index % hosts.count != hosts.index:
                continue
            prompt, truth = _as_judged(group.prompt, coordinates)
            yield index, reward_items(prompt, group.responses, truth)
        generated = time.perf_counter()

    own = {index: tuple(scores) for index, scores in rewards.score_groups(items())}
    for scored in hosts.exchange(own):
        for index, scores in scored.items():
            groups[index] = dataclasses.replace(groups[index], scores=scores)

    def judged() -> dict[int, tuple[Score, ...]]:
        # Only here, because waiting inside the loop would hold up the device.
        if judge is None:
            return {}
        found = {index: judge.blended(groups[index], futures) for index, futures in asked.items() if futures}
        judge.rest()
        return found

    for index, scores in hosts.agree(judged).items():
        groups[index] = dataclasses.replace(groups[index], scores=scores)
    return Rollout(
        groups=[groups[index] for index in range(len(prompts))],
        gen_s=generated - start,
        reward_s=time.perf_counter() - generated,
        response_tokens=engine.stats.response_tokens,
        left_out=left_out,
        sampler=engine.stats.metrics(),
    )


def _as_judged(prompt: Prompt, coordinates: str) -> tuple[Prompt, str | None]:
    """The prompt with the image size that the answer's coordinates refer to, and the ground truth at that size.

    A policy that answers in pixels means those of the resized image, while the data keeps the stored image's.
    """
    if coordinates != "pixels" or not prompt.image_sizes:
        return prompt, None
    truth = ground_truth_at_size(prompt.example, prompt.image_sizes[0], prompt.resized_sizes[0])
    return dataclasses.replace(prompt, image_sizes=prompt.resized_sizes), truth


def check_missing(rolled: Rollout, limit: float, step: int, judge: JudgePool | None = None) -> None:
    """Stops a run whose rewards fail too often.

    Raises:
      UserError: more than `limit` of the step's rewards are missing, or the judge has failed too often lately (whose
        responses may be few among the step's); the message gives the most frequent reason.
    """
    if judge is not None:
        judge.check()
    if rolled.missing_share <= limit:
        return
    reasons = [score.missing for group in rolled.groups for score in group.scores if score.missing]
    common = max(set(reasons), key=reasons.count)
    raise UserError(
        f"{rolled.missing_share:.0%} of the rewards of step {step} are missing, more than reward.max_missing_share="
        f"{limit}; the most frequent reason: {common}"
    )
