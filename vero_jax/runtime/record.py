"""All that a run writes for people: metrics, pages of samples, curves, the summary. Other hosts of a pod write none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.config import Config
from vero_jax.runtime.curves import plot_run
from vero_jax.runtime.metrics import MetricsLog
from vero_jax.runtime.pages import write_index, write_sample_page
from vero_jax.runtime.run_dir import RunDir
from vero_jax.runtime.summary import Summary, closing_lines, write_summary
from vero_jax.types import Group


class Record:
    """Writes into the run's folder; a context manager.

    Args:
      position: where a resumed run's metrics go on, see `MetricsLog`.
      writes: False makes every method do nothing.
    """

    def __init__(self, run: RunDir, config: Config, position: int | None = None, *, writes: bool = True) -> None:
        self._run, self._config = run, config
        self._log = MetricsLog(run, config, position) if writes else None

    @property
    def position(self) -> int:
        """Of the metrics, for the checkpoint, whose meta the writing process saves."""
        return 0 if self._log is None else self._log.position

    def metrics(self, step: int, values: Mapping[str, Any], *, phase: str = "reinforcement") -> None:
        """A line of metrics; see `MetricsLog.log`."""
        if self._log is not None:
            self._log.log(step, values, phase=phase)

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """The page of a step's questions and answers."""
        if self._log is not None:
            write_sample_page(self._run.sample_page(step), groups, step=step, run_name=self._config.name)
            write_index(self._run.samples, self._config.name)

    def forget_after(self, step: int) -> None:
        """Removes what belongs to later steps, which a resumed run does again."""
        if self._log is not None:
            self._run.cut_after(step)

    def finish(self, summary: Summary) -> list[str]:
        """Curves and summary. Returns the closing lines."""
        if self._log is None:
            return [""]
        self._log.close()
        plot_run(self._run.path, self._run.curves)
        write_summary(self._run, summary)
        return list(closing_lines(self._run, summary))

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
