"""The recipe, top to bottom: `python -m vero_jax.train [config.yaml] a.b.c=value ...`

Data and policy are prepared, the policy is measured, taught the answer format (cold start, optional), and then learns
by reinforcement: every step samples a group of answers to each question, scores them, and follows the gradient of the
policy loss. Ctrl-C or SIGTERM saves; the same command goes on from there.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from vero_jax.config import Config
from vero_jax.config_loader import help_text, load_config
from vero_jax.convert import export_hf
from vero_jax.errors import friendly
from vero_jax.learning.advantages import add_advantages
from vero_jax.learning.metrics import group_metrics
from vero_jax.rewards.pool import RewardPool
from vero_jax.rollout import Rollout, check_missing, rollout
from vero_jax.runtime.checkpoint import CheckpointMeta, Checkpoints, abstract_like
from vero_jax.runtime.compilation import devices_line
from vero_jax.runtime.curves import plot_run
from vero_jax.runtime.metrics import MetricsLog
from vero_jax.runtime.pages import write_index, write_step_page
from vero_jax.runtime.progress import Progress
from vero_jax.runtime.run_dir import RunDir, fingerprint, open_run
from vero_jax.runtime.signals import StopRequest, resume_hint
from vero_jax.runtime.summary import Accuracy, Summary, closing_lines, write_summary
from vero_jax.setup import System, build_system
from vero_jax.validation import Validation, validate


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 when the run is complete, 128 + signal when it was interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    config = load_config(argv)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        run = stack.enter_context(open_run(config))
        stop = stack.enter_context(StopRequest(progress.say))
        system = build_system(config, run, progress.say)
        rewards = stack.enter_context(
            RewardPool(
                config.reward,
                max_response_length=config.rollout.max_response_length,
                coordinates=config.data.coordinates,
            )
        )
        checkpoints = stack.enter_context(Checkpoints(run.checkpoints, keep=config.trainer.keep_checkpoints))
        recipe = Recipe(config, run, system, rewards, checkpoints, progress, stop)
        with recipe:
            complete = recipe.run_all()
    if not complete:
        print(resume_hint(" ".join(["python -m vero_jax.train", *argv]), recipe.position.step))
        return stop.exit_code
    return 0
