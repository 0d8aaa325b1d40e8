"""How far a run has come: all of it that is not an array goes into every checkpoint as a `CheckpointMeta`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vero_jax.config import Config, TrainerConfig
from vero_jax.config_loader import to_dict
from vero_jax.runtime.checkpoint import CheckpointMeta
from vero_jax.runtime.run_dir import fingerprint


@dataclasses.dataclass
class Position:
    """Where the recipe stands."""

    phase: str = "cold_start"
    phase_step: int = 0
    """Steps of the phase that are done."""
    step: int = 0
    """Steps of all phases that are done."""
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What validations measured, by stage."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Wall-clock time of each part of the run, over all processes that it has had."""

    bad_updates: int = 0
    """Updates in a row, up to now, that were skipped because their gradient was not finite."""
    bad_steps: int = 0
    """Steps with such an update, in the whole run."""

    def advance(self, phase_step: int) -> None:
        """One more step is done."""
        self.phase_step, self.step = phase_step, self.step + 1

    def drawn(self, config: Config) -> int:
        """Questions drawn from the stream so far: the position in the data, whatever reads it."""
        cold_start, batch = config.cold_start, config.trainer.prompts_per_step
        if self.phase == "cold_start":
            return self.phase_step * cold_start.batch_size
        # The stream goes on behind the cold start's questions, whose answers the policy has been shown.
        return (-(-cold_start.steps * cold_start.batch_size // batch) + self.phase_step) * batch

    def meta(self, config: Config, **more: Any) -> CheckpointMeta:
        """For the checkpoint; `more` are the fields that belong to others."""
        return CheckpointMeta(
            step=self.step,
            phase=self.phase,
            phase_step=self.phase_step,
            seed=config.seed,
            data_position=self.drawn(config),
            fingerprint=fingerprint(config),
            config=to_dict(config),
            seconds=dict(self.seconds),
            results=dict(self.results),
            bad_updates=self.bad_updates,
            bad_steps=self.bad_steps,
            **more,
        )

    @staticmethod
    def best_by(meta: CheckpointMeta) -> str:
        """The metric that the scores of the run's checkpoints were until then; older runs know one only."""
        return str(meta.config.get("trainer", {}).get("keep_best_by", TrainerConfig.keep_best_by))

    @classmethod
    def of(cls, meta: CheckpointMeta, config: Config) -> Position:
        """That of a checkpoint. A run that goes on behind its old end is measured again at its new one."""
        at = cls(
            meta.phase,
            meta.phase_step,
            meta.step,
            dict(meta.results),
            dict(meta.seconds),
            meta.bad_updates,
            meta.bad_steps,
        )
        if at.phase_step < config.trainer.steps:
            at.results.pop("final", None)
        return at
