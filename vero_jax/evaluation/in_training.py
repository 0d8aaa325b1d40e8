"""What `trainer.val_tasks` and `trainer.keep_best_by` may say, and which variant is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from vero_jax.config import Config, TrainerConfig
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.registry import category_key, select
from vero_jax.evaluation.variants import Variant, variant

OVERALL = "overall"
_OWN_METRIC = re.compile(r"val/(?:[^/]+/)?accuracy(?:_greedy)?|val-(?:core|aux)/.+")
"""Metrics of the run's own validation questions, whose domains and sources only the data knows."""


def check(config: Config) -> None:
    """Whether the settings make sense; the data sets are looked for when the run begins.

    Raises:
      UserError: a name that stands for nothing, a setting that is missing, or a metric that there will never be.
    """
    trainer = config.trainer
    tasks = select(trainer.val_tasks)
    if tasks and not trainer.val_tasks_dir:
        raise UserError(
            "trainer.val_tasks needs trainer.val_tasks_dir, the folder in which the data sets of its benchmarks lie."
        )
    if trainer.val_tasks_variant:
        variant(trainer.val_tasks_variant)
    _check_keep_best_by(config, tasks)


def variant_for(trainer: TrainerConfig, model_type: str) -> Variant:
    """The variant that is asked for, or else the one meant for Vero on the policy's family.

    Args:
      model_type: of the policy's config.json.
    """
    usual = "reasoning_samplingq3" if model_type.startswith("qwen3_vl") else "reasoning"
    return variant(trainer.val_tasks_variant or usual)


def data_folder(trainer: TrainerConfig) -> Path:
    """Of the data sets."""
    return Path(trainer.val_tasks_dir).expanduser()


def score_metric(task: Benchmark) -> str:
    return f"val/{task.name}/score"


def strict_metric(task: Benchmark) -> str:
    return f"val/{task.name}/strict"


def mean_metric(category: str) -> str:
    """Of a category, or of all benchmarks where it is `OVERALL`."""
    return f"val/veroeval/{category_key(category)}"


def _check_keep_best_by(config: Config, tasks: Sequence[Benchmark]) -> None:
    wanted = config.trainer.keep_best_by
    if _OWN_METRIC.fullmatch(wanted):
        if wanted.endswith("_greedy") and not (config.trainer.val_greedy or config.trainer.val_blind):
            raise UserError(f"trainer.keep_best_by={wanted} needs trainer.val_greedy=true.")
        return
    known: dict[str, list[Benchmark]] = {}
    for task in tasks:
        for name in (score_metric(task), strict_metric(task), mean_metric(task.category), mean_metric(OVERALL)):
            known.setdefault(name, []).append(task)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, ["val/accuracy", *known], 3, 0.5)
        raise UserError(
            f"trainer.keep_best_by={wanted!r} is no metric of this run's validation"
            + (f"; near it are {', '.join(near)}" if near else ", such as val/accuracy")
            + ("." if tasks else " (the metrics of benchmarks are there for those in trainer.val_tasks).")
        )
    if config.reward.judge == "none" and all(task.judge is not None for task in known[wanted]):
        raise UserError(
            f"trainer.keep_best_by={wanted} needs a judge, which this run lacks: set reward.judge=openai and "
            "reward.judge_server, or choose another metric."
        )
