"""Validation: every question once, sampled, greedy, and with its images blanked; accuracy by source and domain.

With `trainer.val_tasks` the benchmarks of VeroEval are asked, too; see `val_tasks.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vero_jax.config import Config, SamplingConfig
from vero_jax.learning.metrics import validation_metrics
from vero_jax.parallel.distributed import Hosts
from vero_jax.rewards.judge_pool import JudgePool
from vero_jax.rewards.pool import RewardPool
from vero_jax.rollout import check_missing, rollout
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.run_dir import RunDir
from vero_jax.runtime.summary import Accuracy
from vero_jax.sampling.engine import Engine
from vero_jax.types import DOMAINS, Group, Prompt
from vero_jax.val_tasks import TaskFigures, ValTasks

GREEDY = SamplingConfig(temperature=0.0)
BLANK = 128  # mid grey: the value nearest to "nothing" for a normalised image


@dataclasses.dataclass(frozen=True)
class Validation:
    """What one validation measured."""

    sampled: Accuracy
    greedy: Accuracy | None
    blind_changed: float | None
    """Share of greedy answers that change when the images are blanked; near 0 means that the pictures are not used."""
    metrics: dict[str, float]
    tasks: TaskFigures | None = None
    """Of VeroEval's benchmarks, where the run asks any."""

    def to_json(self) -> dict[str, Any]:
        """Accuracy by domain and scores of benchmarks, for the checkpoint and the summary."""
        return {
            "sampled": dict(self.sampled.domains),
            "greedy": None if self.greedy is None else dict(self.greedy.domains),
            "blind_changed": self.blind_changed,
        } | ({} if self.tasks is None else {"veroeval": self.tasks.scores})

    def __str__(self) -> str:
        text = f"accuracy {self.sampled.overall:.3f} sampled"
        if self.greedy is not None:
            text += f", {self.greedy.overall:.3f} greedy"
        if self.blind_changed is not None:
            text += f"; without its image {self.blind_changed:.0%} of the answers change"
        return text if self.tasks is None else f"{text}; {self.tasks.text}"


def validate(
    config: Config,
    engine: Engine,
    rewards: RewardPool,
    params: Any,
    batches: Iterable[Sequence[Prompt]],
    run: RunDir,
    *,
    name: str,
    step: int,
    coordinates: str = "normalized_1000",
    judge: JudgePool | None = None,
    hosts: Hosts | None = None,
    tasks: ValTasks | None = None,
) -> Validation:
    """Answers all validation questions and writes them to `validation/<name>.jsonl`.

    Args:
      batches: the questions, in lists of any size; one list is held at a time.
      name: "before", "after_cold_start", "step_000050", "final".
      step: for the metrics only; the sampled answers draw the same random numbers in every validation, so that two
        validations differ by the policy alone.
      coordinates: what the policy's boxes and points mean.
      judge: scores the reward types that need one.
      hosts: the processes of the run; the primary one writes the answers.
      tasks: VeroEval's benchmarks, which are asked after the run's own questions.
    """
    trainer = config.trainer
    modes: list[tuple[str, SamplingConfig, bool]] = [("sampled", trainer.val_sampling, False)]
    if trainer.val_greedy or trainer.val_blind:
        modes.append(("greedy", GREEDY, False))
    if trainer.val_blind:
        modes.append(("blind", GREEDY, True))
    groups: dict[str, list[Group]] = {mode: [] for mode, _, _ in modes}
    for prompts in batches:
        for mode, sampling, blind in modes:
            rolled = rollout(
                engine,
                rewards,
                params,
                [_blank(prompt) for prompt in prompts] if blind else prompts,
                n=1,
                sampling=sampling,
                seed=config.seed,
                step=0,
                max_new_tokens=config.rollout.max_response_length,
                coordinates=coordinates,
                judge=judge,
                hosts=hosts,
            )
            check_missing(rolled, config.reward.max_missing_share, step, judge)
            # The pixels have done their work; a large validation set must not pile them up.
            groups[mode] += [
                dataclasses.replace(group, prompt=_without_pixels(group.prompt)) for group in rolled.groups
            ]
    if hosts is None or hosts.primary:
        records = (record for mode in groups for record in _records(groups[mode], mode, step))
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        atomic_write(run.validation_file(name), "\n".join(lines) + "\n")
    measured = _summarise(groups)
    judged = {} if judge is None else {f"val/{name}": value for name, value in judge.metrics().items()}
    figures = None if tasks is None else tasks.measure(engine, params, name=name, step=step)
    metrics = measured.metrics | judged | ({} if figures is None else figures.metrics)
    return dataclasses.replace(measured, metrics=metrics, tasks=figures)


def _summarise(groups: dict[str, list[Group]]) -> Validation:
    sampled = accuracy_of(groups["sampled"])
    metrics = _source_metrics(groups["sampled"])
    metrics["val/accuracy"] = sampled.overall
    metrics |= {f"val/{domain}/accuracy": value for domain, value in sampled.domains.items()}
    greedy, changed = None, None
    if "greedy" in groups:
        greedy = accuracy_of(groups["greedy"])
        metrics["val/accuracy_greedy"] = greedy.overall
        metrics |= {f"val/{domain}/accuracy_greedy": value for domain, value in greedy.domains.items()}
    if "blind" in groups:
        pairs = zip(groups["greedy"], groups["blind"], strict=True)
        with_images = [
            (seen.responses[0].text, blind.responses[0].text) for seen, blind in pairs if len(seen.prompt.grids)
        ]
        changed = float(np.mean([a != b for a, b in with_images])) if with_images else None
        metrics["val/accuracy_blind"] = accuracy_of(groups["blind"]).overall
        if changed is not None:
            metrics["val/blind_changed"] = changed
    return Validation(sampled, greedy, changed, metrics)


def _source_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """`val-core/<source>/reward/mean@1` and `val-aux/<source>/{score,accuracy,format}/mean@1`, as verl names them."""
    pairs = [(group.prompt.example, score) for group in groups for score in group.scores]
    sources, ids = [example.source for example, _ in pairs], [example.id for example, _ in pairs]
    scores = [score for _, score in pairs]
    core = {"reward": [score.total for score in scores]}
    aux = {
        "score": [score.total - score.overlong for score in scores],
        "accuracy": [score.accuracy for score in scores],
        "format": [score.format for score in scores],
    }
    metrics = {f"val-core/{name}": value for name, value in validation_metrics(sources, ids, core).items()}
    return metrics | {f"val-aux/{name}": value for name, value in validation_metrics(sources, ids, aux).items()}


def accuracy_of(groups: Sequence[Group]) -> Accuracy:
    """Mean accuracy of each domain over the responses that have a score."""
    found: dict[str, list[float]] = {}
    for group in groups:
        values = [score.accuracy for score in group.scores if score.missing is None]
        found.setdefault(group.prompt.example.domain, []).extend(values)
    order = [*DOMAINS, *(name for name in found if name not in DOMAINS)]
    return Accuracy({name: float(np.mean(found[name])) for name in order if found.get(name)})


def _blank(prompt: Prompt) -> Prompt:
    return dataclasses.replace(prompt, patches=np.full_like(prompt.patches, BLANK))


def _without_pixels(prompt: Prompt) -> Prompt:
    return dataclasses.replace(prompt, patches=prompt.patches[:0])


def _records(groups: Sequence[Group], mode: str, step: int) -> Iterator[dict[str, Any]]:
    for group in groups:
        example = group.prompt.example
        for response, score in zip(group.responses, group.scores, strict=True):
            yield {
                "mode": mode,
                "step": step,
                "id": example.id,
                "domain": example.domain,
                "source": example.source,
                "reward_type": example.reward_type,
                "input": example.messages[-1]["content"],
                "output": response.text,
                "gold": example.ground_truth,
                "score": None if score.missing else score.total,
                "accuracy": None if score.missing else score.accuracy,
                "format": None if score.missing else score.format,
                "missing": score.missing,
                "stop_reason": response.stop_reason,
                "response_length": len(response.token_ids),
            }
