"""`python -m vero_jax.train`, saying on standard error where it is: "@begin sampling", "@end sampling", ..."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from vero_jax import setup, train
from vero_jax.learning.update import Learner
from vero_jax.runtime.checkpoint import Checkpoints
from vero_jax.runtime.record import Record
from vero_jax.val_tasks import ValTasks


def said(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        os.write(2, f"\n@begin {name}\n".encode())
        result = function(*args, **kwargs)
        os.write(2, f"\n@end {name}\n".encode())
        return result

    return call


if __name__ == "__main__":
    train.rollout = said("sampling", train.rollout)
    train.validate = said("validation", train.validate)
    ValTasks.measure = said("benchmarks", ValTasks.measure)
    Learner.step = said("update", Learner.step)
    Checkpoints.save = said("save", Checkpoints.save)
    Checkpoints.restore_latest = said("restore", Checkpoints.restore_latest)
    Record.metrics = said("metrics", Record.metrics)
    setup.System.export = said("export", setup.System.export)
    sys.exit(train.main())
