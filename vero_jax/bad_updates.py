"""Updates whose gradient was not finite: skipped by the learner, and here counted, kept for a replay, and no more than
some in a row.

All processes of a run count alike, since all know every update; the first one writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from vero_jax.config import Config
from vero_jax.config_loader import to_yaml
from vero_jax.errors import RunFailed, UserError
from vero_jax.position import Position
from vero_jax.runtime.kept_batch import KeptBatch, write_batch
from vero_jax.runtime.run_dir import RunDir
from vero_jax.types import Group


class BadUpdates:
    """Watches the updates of a run.

    Args:
      at: where the run is; `at.bad_updates` counts those in a row and goes into checkpoints.
      writes: whether this process keeps the batches.
    """

    def __init__(self, run: RunDir, config: Config, at: Position, *, writes: bool = True) -> None:
        self._run, self._config, self._at, self._writes = run, config, at, writes
        self.kept = False
        """Whether the last step's batch was, so that the weights are worth a checkpoint: with both it can be computed
        again. The same in all processes."""

    def after_step(self, step: int, finite: Sequence[bool], batches: Sequence[Sequence[Group]]) -> dict[str, float]:
        """To be called after each step, and `check` when its metrics are written.

        Args:
          step: of the phase, from 1.
          finite: of each of the step's updates, whether it happened.
          batches: the groups of the updates of one epoch.

        Returns:
          metrics.
        """
        for happened in finite:
            self._at.bad_updates = 0 if happened else self._at.bad_updates + 1
        bad = tuple(number for number, happened in enumerate(finite) if not happened)
        self._at.bad_steps += bool(bad)
        self.kept = bool(bad) and self._at.bad_steps <= self._config.trainer.save_bad_batches
        if self.kept and self._writes:
            self._keep(step, bad, any(finite[bad[0] :]), batches)
        return {"training/bad_updates_in_a_row": float(self._at.bad_updates)}

    def check(self) -> None:
        """Whether the run may go on.

        Raises:
          RunFailed: as many updates in a row were skipped as `trainer.max_bad_updates` says.
        """
        most, count = self._config.trainer.max_bad_updates, self._at.bad_updates
        if not most or count < most:
            return
        kept = sorted(self._run.bad_updates.glob("*.batch"))
        look = f"; look into one with python -m vero_jax.replay {kept[-1]}" if kept else ""
        raise RunFailed(
            f"the gradients of the last {count} updates were not finite, up to {self._at.phase.replace('_', ' ')} step "
            f"{self._at.phase_step}, so nothing is learned any more (trainer.max_bad_updates={most}){look}"
        )

    def _keep(self, step: int, bad: tuple[int, ...], moved: bool, batches: Sequence[Sequence[Group]]) -> None:
        path = self._run.bad_updates / f"{self._at.phase}_{step:06d}.batch"
        # An epoch's updates are those of the one before, in the same order.
        numbers = sorted({number % len(batches) for number in bad})
        try:
            write_batch(
                path,
                KeptBatch(
                    phase=self._at.phase,
                    step=step,
                    global_step=self._at.step + 1,
                    updates=bad,
                    moved=moved,
                    batches=tuple(tuple(batches[number]) for number in numbers),
                    config=to_yaml(self._config),
                    run=self._run.path,
                ),
            )
        except UserError as error:  # the run goes on without the file
            warnings.warn(f"the batch of a skipped update is not kept: {error}", stacklevel=2)
