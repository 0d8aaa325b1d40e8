"""Computes the batch of a skipped update again and says where it stops being finite.

    python -m vero_jax.replay runs/mine/bad_updates/reinforcement_000120.batch
    python -m vero_jax.replay FILE --step 80               # with the weights of another checkpoint of the run
    python -m vero_jax.replay FILE --params FOLDER         # with those of a Hugging Face or vero_jax folder
    python -m vero_jax.replay FILE --run FOLDER            # where the run's folder has been moved
    python -m vero_jax.replay FILE model.dtype=float32     # with other settings

The exit status is 0 when everything is finite, 1 when something is not, and 2 for a mistake.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vero_jax.config import Config
from vero_jax.config_loader import load_config
from vero_jax.errors import UserError, friendly
from vero_jax.learners import make_learner, make_teacher, model_def_of
from vero_jax.learning.diagnosis import Diagnosis, diagnose
from vero_jax.models.lora import load_adapted
from vero_jax.models.policy import Params
from vero_jax.parallel.mesh import make_mesh
from vero_jax.runtime.checkpoint import Checkpoints
from vero_jax.runtime.kept_batch import KeptBatch, read_batch
from vero_jax.runtime.places import checkpoint_place, saved_steps
from vero_jax.runtime.run_dir import RunDir
from vero_jax.setup import policy_folder
from vero_jax.types import Group


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a batch that a run kept")
    parser.add_argument("settings", nargs="*", help="a.b.c=value, instead of the run's own")
    parser.add_argument("--run", type=Path, help="the run's folder; default: where it was")
    parser.add_argument("--step", type=int, help="a checkpoint of the run; default: the nearest one up to the batch")
    parser.add_argument("--params", type=Path, help="weights of a folder instead of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON; what goes on is said on standard error")
    args = parser.parse_intermixed_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of every option of a reader that writes nothing
    batch = read_batch(args.file)
    run = RunDir((args.run or batch.run).absolute())
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "config.yaml")
        own.write_text(batch.config, encoding="utf-8")
        config = load_config([str(own), *args.settings])
    found, weights = replay(batch, config, run, step=args.step, params_folder=args.params)
    if args.json:
        print(json.dumps({"file": str(args.file), "weights": weights, "updates": to_json(batch, found)}, indent=1))
    else:
        print("\n".join(report(batch, found, weights)))
    return 0 if all(one.finite for one in found) else 1


def replay(
    batch: KeptBatch, config: Config, run: RunDir, *, step: int | None = None, params_folder: Path | None = None
) -> tuple[list[Diagnosis], str]:
    """A diagnosis of each of the mini-batches that were skipped, and which weights it was made with.

    Args:
      step: of the checkpoint; None takes the one behind the batch's own step if it is there (a skipped update has left
        its weights as they were), else the newest one before it.
      params_folder: weights of a folder instead.

    Raises:
      UserError: there are no weights to be had.
    """
    needed = config.model.path == "build" or (params_folder is None and not config.trainer.checkpoint_dir)
    if needed and not run.config.is_file():
        raise UserError(f"there is no run in {run.path}; say with --run where the folder of the batch's run is")
    mesh = make_mesh(config.mesh)
    folder = policy_folder(config, run, _say)
    model_def = model_def_of(config, folder)
    teaches = batch.phase == "cold_start"
    learner, teacher = make_learner(config, model_def, mesh), make_teacher(config, model_def, mesh)
    reference = None
    if params_folder is not None:
        params = load_adapted(
            params_folder, model_def, model_def.shardings(mesh), adapter=config.model.lora.path, seed=config.seed
        )
        weights = str(params_folder)
    else:
        params, reference, weights = _from_checkpoint(batch, config, run, learner, step)
    if learner.needs_reference and reference is None and not teaches:
        reference = params
        weights += "; they stand for the reference policy, too"
    diagnoses = []
    for number, groups in zip(_mini_batches(batch, config), batch.batches, strict=True):

        def gradients(part: Sequence[Group], number: int = number) -> tuple[Params, float]:
            if teaches:
                return teacher.gradients(params, part)
            seeds = (config.seed, batch.step, number)
            return learner.gradients(params, part, reference=reference, seeds=seeds, first=number == 0)

        logprobs = None if teaches else learner.logprobs
        diagnoses.append(diagnose(params, groups, gradients, logprobs))
    return diagnoses, weights


def report(batch: KeptBatch, found: Sequence[Diagnosis], weights: str) -> list[str]:
    """The lines of a replay."""
    lines = [f"{batch.phase.replace('_', ' ')} step {batch.step}, weights of {weights}"]
    for number, one in enumerate(found):
        size = sum(len(group.responses) for group in batch.batches[number])
        questions = len(batch.batches[number])
        lines += ["", f"mini-batch {number}: {questions} questions, {size} responses, loss {one.loss:.6g}"]
        # Once one gradient is bad most are: the first few say enough.
        causes = [finding for finding in one.findings if not finding.follows]
        shown = [*causes[:20], *[finding for finding in one.findings if finding.follows][:4]]
        lines += [f"  {finding}" for finding in shown]
        if len(one.findings) > len(shown):
            lines.append(f"  and {len(one.findings) - len(shown)} more")
        if one.culprits:
            lines.append(f"  by themselves not finite: {'; '.join(one.culprits[:10])}")
        elif one.culprits is not None:
            lines.append("  no response by itself: their sum overflows")
        verdict = f"finite, norm {one.norm:.6g}" if one.finite else "not finite"
        lines.append(f"  the gradient is {verdict}")
    if all(one.finite for one in found):
        lines += ["", "With these weights everything is finite; the run's own may have been others."]
    return lines


def to_json(batch: KeptBatch, found: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Of each mini-batch; numbers that are not finite as text."""
    return [
        {
            "questions": [group.prompt.example.id for group in groups],
            "finite": one.finite,
            "norm": one.norm if one.finite else str(one.norm),
            "loss": one.loss if abs(one.loss) < float("inf") else str(one.loss),
            "findings": [dataclasses.asdict(finding) for finding in one.findings],
            "culprits": one.culprits,
        }
        for groups, one in zip(batch.batches, found, strict=True)
    ]


def _mini_batches(batch: KeptBatch, config: Config) -> list[int]:
    """The number of each kept mini-batch in its step."""
    per_epoch = -(-config.trainer.prompts_per_step // config.actor.mini_batch_prompts)
    return sorted({number % per_epoch for number in batch.updates})


def _from_checkpoint(
    batch: KeptBatch, config: Config, run: RunDir, learner: Any, step: int | None
) -> tuple[Params, Params | None, str]:
    place = checkpoint_place(config, run.path)
    steps = saved_steps(place)
    if step is None:
        before = [known for known in steps if known <= batch.global_step]
        if not before:
            raise UserError(
                f"no checkpoint in {place} is from before the batch's step {batch.global_step}; name weights with "
                "--params, or the run's folder with --run"
            )
        step = before[-1]
    abstract = learner.abstract_state()
    tree = {"state": abstract}
    if learner.needs_reference or config.algorithm.kl_in_reward:
        tree["reference"] = learner.programs.trained_part(abstract.params)
    with Checkpoints(place, read_only=True) as checkpoints:
        saved, _ = checkpoints.restore(step, tree)
    params = saved["state"].params
    reference = learner.programs.completed(saved["reference"], params) if "reference" in saved else None
    exact = f"the batch's own step is {batch.global_step}"
    if step == batch.global_step:
        exact = "moved on by a later update of the step" if batch.moved else "just these"
    return params, reference, f"{place / str(step)} ({exact})"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
