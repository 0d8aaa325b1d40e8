"""The recipe, top to bottom: `python -m vero_jax.train [config.yaml] a.b.c=value ...`

Data and policy are prepared, the policy is measured, taught the answer format (cold start, optional), and then learns
by reinforcement: every step samples a group of answers to each question, scores them, and follows the gradient of the
policy loss. Ctrl-C or SIGTERM saves the last step; the same command goes on from there.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from vero_jax.bad_updates import BadUpdates
from vero_jax.config import Config
from vero_jax.config_loader import help_text, load_config, to_dict
from vero_jax.data.selection import check_same_data
from vero_jax.errors import friendly
from vero_jax.learning.advantages import add_advantages
from vero_jax.learning.kl import KLController
from vero_jax.learning.metrics import group_metrics
from vero_jax.learning.supervised import as_groups
from vero_jax.learning.update import TrainState
from vero_jax.models.policy import Params
from vero_jax.position import Position
from vero_jax.rewards.judge_pool import JudgePool
from vero_jax.rewards.pool import RewardPool
from vero_jax.rollout import check_missing, rollout
from vero_jax.runtime.checkpoint import Checkpoints
from vero_jax.runtime.compilation import devices_line
from vero_jax.runtime.processes import join, open_shared_run
from vero_jax.runtime.progress import Progress
from vero_jax.runtime.record import Record
from vero_jax.runtime.run_dir import RunDir, changes_sentence, differences, fingerprint
from vero_jax.runtime.signals import Interrupted, StopRequest, resume_hint
from vero_jax.runtime.summary import Accuracy, Summary
from vero_jax.setup import System, build_system
from vero_jax.types import Group, Prompt
from vero_jax.validation import accuracy_of, validate


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 when the run is complete, 128 + signal when it was interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    started = time.perf_counter()
    config = load_config(argv)
    with ExitStack() as stack:
        hosts = stack.enter_context(join(config))
        progress = stack.enter_context(Progress(quiet=not hosts.primary))
        run = stack.enter_context(open_shared_run(config, hosts))
        stop = stack.enter_context(StopRequest(progress.say))
        system = build_system(config, run, progress.say, hosts)
        judge = system.judge_pool(progress.say)
        if judge is not None:
            stack.enter_context(judge)
        rewards = stack.enter_context(system.reward_pool())
        kept = config.trainer.keep_checkpoints, config.trainer.keep_best
        checkpoints = stack.enter_context(Checkpoints(run.checkpoints, *kept))
        recipe = stack.enter_context(Recipe(config, run, system, rewards, judge, checkpoints, progress, stop))
        recipe.spent("setup", time.perf_counter() - started)
        lines = recipe.train()
    if hosts.primary:
        command = ["python", "-m", "vero_jax.train", *argv]
        print("\n".join(lines) if lines else resume_hint(command, recipe.at.step))
    return 0 if lines else stop.exit_code


class Recipe:
    """One run of the recipe: its state, and the phases in their order."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        system: System,
        rewards: RewardPool,
        judge: JudgePool | None,
        checkpoints: Checkpoints,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.config, self.run, self.system, self.rewards, self.judge = config, run, system, rewards, judge
        self.checkpoints, self.progress, self.stop = checkpoints, progress, stop
        self.learner, self.teacher = system.learner(), system.teacher()
        self.at = Position(phase="cold_start" if config.cold_start.steps else "reinforcement")
        self.kl = KLController.from_config(config.algorithm)
        self.needs_reference = self.learner.needs_reference or config.algorithm.kl_in_reward
        self.state, self.reference, metrics_position = self._begin()
        self.record = Record(run, config, metrics_position, writes=system.hosts.primary)
        self.bad = BadUpdates(run, config, self.at, writes=system.hosts.primary)
        if metrics_position is not None:
            self.record.forget_after(self.at.phase_step if self.at.phase == "reinforcement" else 0)

    def train(self) -> list[str]:
        """The whole run. Returns the closing lines, or none when it was told to stop."""
        self.system.engine.between_rounds = self.stop.check
        try:
            return self.phases()
        except Interrupted:  # while it sampled: the step or validation is done again when the run goes on
            self._save_and_stop()
            return []

    def phases(self) -> list[str]:
        """Everything in its order. Returns the closing lines, or none when the run was told to stop between steps."""
        if self.config.trainer.warm_up:
            self.progress.say("compiling what sampling needs")
            self.system.warm_up_sampler(self.state.params)
        self.measure("before", enabled=self.config.trainer.val_before)
        if self.at.phase == "cold_start":
            if not self.cold_start():
                return []
            self.measure("after_cold_start")
            self.enter_reinforcement()
        if not self.reinforce():
            return []
        self.measure("final")
        return self.finish()

    def cold_start(self) -> bool:
        """Supervised steps on the reference solutions. False when told to stop."""
        config = self.config.cold_start
        if self.config.trainer.warm_up:
            self.progress.say("compiling what the cold start needs")
            self.state = self.teacher.warm_up(self.state)
        self.progress.phase("cold_start", config.steps, self.at.phase_step)
        with self.system.questions(config.batch_size, self.at.phase_step) as questions:
            for step in range(self.at.phase_step + 1, config.steps + 1):
                if self.stop.agreed():
                    return self._save_and_stop()
                with self._timed("cold_start"):
                    pairs = self.system.solved(questions.batch(step - 1))
                    self.state, metrics = self.teacher.step(self.state, pairs, step)
                    metrics |= self.bad.after_step(step, self.teacher.finite, [as_groups(pairs)])
                self.at.advance(step)
                if step % config.log_every == 0 or step == config.steps:
                    self.record.metrics(step, metrics, phase="cold_start")
                self.progress.step({"loss": metrics["cold_start/loss"], "lr": metrics["cold_start/lr"]})
                if self.bad.kept or self._due(self.config.trainer.save_every, self.at.step):
                    self.save()
                self.bad.check()
        return True

    def enter_reinforcement(self) -> None:
        """A new phase begins with fresh optimizer moments; the policy as it is now is the reference of any KL term."""
        self.state = self.learner.init_state(self.state.params)
        if self.needs_reference:
            self.reference = self.learner.programs.snapshot(self.state.params)
        self.at.phase, self.at.phase_step = "reinforcement", 0

    def reinforce(self) -> bool:
        """The steps of reinforcement. False when told to stop."""
        trainer = self.config.trainer
        if trainer.warm_up:
            self.progress.say("compiling what learning needs")
            self.state = self.learner.warm_up(self.state)
        self.progress.phase("reinforcement", trainer.steps, self.at.phase_step)
        batch = trainer.prompts_per_step
        with self.system.questions(batch, self.at.drawn(self.config) // batch) as questions:
            self.measure_step()  # where a run goes on that was told to stop while it validated
            for step in range(self.at.phase_step + 1, trainer.steps + 1):
                if self.stop.agreed():
                    return self._save_and_stop()
                with self._timed("reinforcement"):
                    prompts = questions.batch(self.at.drawn(self.config) // batch)
                    groups, metrics = self.reinforcement_step(step, prompts)
                    metrics |= questions.metrics()
                self.at.advance(step)
                self._report(step, groups, metrics)
                self.measure_step()
                if self.bad.kept or self._due(trainer.save_every, step):
                    self.save()
                self.bad.check()
        return True

    def reinforcement_step(self, step: int, prompts: Sequence[Prompt]) -> tuple[list[Group], dict[str, float]]:
        """One step: sample a group per question, score, compare inside the groups, update."""
        config, start = self.config, time.perf_counter()
        rolled = rollout(
            self.system.engine,
            self.rewards,
            self.state.params,
            prompts,
            n=config.rollout.n,
            sampling=config.rollout.sampling,
            seed=config.seed,
            step=step,
            max_new_tokens=config.rollout.max_response_length,
            coordinates=self.system.coordinates,
            judge=self.judge,
            hosts=self.system.hosts,
        )
        check_missing(rolled, config.reward.max_missing_share, step, self.judge)
        sampled = time.perf_counter()
        penalties, kl_metrics = self._kl_penalties(rolled.groups)
        groups = add_advantages(rolled.groups, config.algorithm, penalties=penalties)
        compared = time.perf_counter()
        self.state, metrics = self.learner.step(self.state, groups, step, reference=self.reference, seed=config.seed)
        done = time.perf_counter()
        metrics |= self.bad.after_step(step, self.learner.finite, self.learner.mini_batches(groups))
        metrics |= {} if self.judge is None else self.judge.metrics()
        metrics |= {**rolled.sampler} | {f"rollout/left_out_{why}": float(n) for why, n in rolled.left_out.items()}
        metrics |= kl_metrics | group_metrics(
            groups,
            max_response_length=config.rollout.max_response_length,
            max_prompt_length=config.data.max_prompt_length,
        )
        tokens = rolled.response_tokens + sum(len(group.prompt.token_ids) for group in groups)
        metrics |= {
            "training/global_step": step,
            "timing_s/gen": rolled.gen_s,
            "timing_s/reward": rolled.reward_s,
            "timing_s/adv": compared - sampled,
            "timing_s/update_actor": done - compared,
            "timing_s/step": done - start,
            "timing_per_token_ms/gen": 1e3 * rolled.gen_s / max(rolled.response_tokens, 1),
            "timing_per_token_ms/update_actor": 1e3 * (done - compared) / max(tokens, 1),
            "perf/total_num_tokens": tokens,
            "perf/time_per_step": done - start,
            "perf/traces": self.system.guard.counts.total(),
            "perf/throughput": tokens / (done - start) / self.system.mesh.size,
        }
        return groups, metrics

    def measure_step(self) -> None:
        """Validates behind the latest step, where it is due; the last one has its own validation."""
        step, steps = self.at.phase_step, self.config.trainer.steps
        if 0 < step < steps and self._due(self.config.trainer.val_every, step):
            self.measure(f"step_{step:06d}")
            self.progress.phase("reinforcement", steps, step)

    def measure(self, name: str, *, enabled: bool = True) -> None:
        """Validates once per stage; a resumed run does not measure again what its checkpoint knows."""
        if not enabled or name in self.at.results:
            return
        stage = name if name in ("before", "after_cold_start", "final") else "during"
        problems: Counter[str] = Counter()
        self.progress.say(f"validation ({name})")
        with self._timed("validation"):
            start = time.perf_counter()
            measured = validate(
                self.config,
                self.system.engine,
                self.rewards,
                self.state.params,
                self.system.validation(problems),
                self.run,
                name=name,
                step=self.at.phase_step,
                coordinates=self.system.coordinates,
                judge=self.judge,
                hosts=self.system.hosts,
                tasks=self.system.val_tasks,
            )
            seconds = time.perf_counter() - start
        self.at.results[name] = measured.to_json()
        best_by = self.config.trainer.keep_best_by
        if self.at.step and best_by in measured.metrics:
            self.checkpoints.note_score(self.at.step, measured.metrics[best_by])
        step = self.at.phase_step if self.at.phase == "reinforcement" else 0
        self.record.metrics(step, {"stage": stage, **measured.metrics, "timing_s/testing": seconds}, phase="validation")
        self.progress.say(f"  {measured}" + "".join(f"; {count} left out: {why}" for why, count in problems.items()))

    def save(self) -> None:
        """Hands parameters, optimizer, position and results to Orbax, which writes them meanwhile."""
        meta = self.at.meta(
            self.config,
            data=self.system.data_identity,
            metrics_position=self.record.position,
            kl_controller={"coef": self.kl.coef},
        )
        self.checkpoints.save(self.at.step, self._saved(self.state, self.reference), meta)

    def finish(self) -> list[str]:
        """Last checkpoint, export, curves and summary."""
        with self._timed("export"):
            self.save()
            self.checkpoints.wait()
            if self.config.trainer.export:
                # Of an earlier, shorter run of the same folder.
                self.system.hosts.agree(lambda: shutil.rmtree(self.run.export, ignore_errors=True))
                self.system.export(self.state.params, self.run.export)
        summary = Summary(
            config=self.config,
            sampled=_accuracies(self.at.results, "sampled"),
            greedy=_accuracies(self.at.results, "greedy"),
            steps=self.at.phase_step,
            seconds=self.at.seconds,
            device=devices_line(),
            extra={
                "blind_changed": {name: result.get("blind_changed") for name, result in self.at.results.items()},
                "veroeval": {
                    name: result["veroeval"] for name, result in self.at.results.items() if "veroeval" in result
                },
                "questions": {
                    "train": str(self.system.train_rows),
                    "validation": str(self.system.val_rows),
                },
            },
        )
        return self.record.finish(summary)

    def _begin(self) -> tuple[TrainState, Params | None, int | None]:
        """The state to start from: the newest checkpoint's, or the policy folder's weights."""
        abstract, programs = self.learner.abstract_state(), self.learner.programs
        found = None
        if self.run.resuming:
            reference = abstract.params if self.needs_reference else None
            found = self.checkpoints.restore_latest(
                self._saved(abstract, reference), fingerprint(self.config), to_dict(self.config)
            )
        if found is None:
            state = self.learner.init_state(self.system.params())
            return state, programs.snapshot(state.params) if self.needs_reference else None, None
        saved, meta = found
        check_same_data(meta.data, self.system.data_identity)
        if changed := differences(meta.config, to_dict(self.config), free=True):
            self.progress.say(f"settings that have changed since: {changes_sentence(changed)}")
        if Position.best_by(meta) != self.config.trainer.keep_best_by:
            self.checkpoints.forget_scores()
        self.at = Position.of(meta, self.config)
        self.kl = dataclasses.replace(self.kl, coef=meta.kl_controller["coef"])
        self.progress.say(f"resuming from the checkpoint at {meta.phase.replace('_', ' ')} step {meta.phase_step}")
        state = saved["state"]
        reference = programs.completed(saved["reference"], state.params) if self.needs_reference else None
        return state, reference, meta.metrics_position

    def _saved(self, state: Any, reference: Any) -> dict[str, Any]:
        """What a checkpoint holds. Of the reference only what differs from the state: nothing is there twice."""
        part = None if reference is None else self.learner.programs.trained_part(reference)
        return {"state": state} if part is None else {"state": state, "reference": part}

    def _save_and_stop(self) -> bool:
        self.save()
        self.checkpoints.wait()
        return False

    def _due(self, every: int, step: int) -> bool:
        return every > 0 and step % every == 0

    def _kl_penalties(self, groups: Sequence[Group]) -> tuple[list[Any] | None, dict[str, float]]:
        """What the KL to the reference takes off each response's score (KL in the reward only)."""
        algorithm = self.config.algorithm
        if not algorithm.kl_in_reward or self.reference is None:
            return None, {}
        sums, mean = self.learner.response_kl(self.state.params, self.reference, groups, algorithm.kl_penalty)
        coef, responses = self.kl.coef, sum(len(group.responses) for group in groups)
        self.kl = self.kl.updated(mean, responses)
        metrics = {"actor/reward_kl_penalty": mean, "actor/reward_kl_penalty_coeff": coef}
        return [coef * part for part in sums], metrics

    def _report(self, step: int, groups: Sequence[Group], metrics: Mapping[str, float]) -> None:
        trainer = self.config.trainer
        if step % trainer.log_every == 0 or step == trainer.steps:
            self.record.metrics(step, metrics)
        accuracy = accuracy_of(groups).overall
        formats = [score.format for group in groups for score in group.scores if score.missing is None]
        self.progress.step(
            {
                "reward": metrics["critic/score/mean"],
                "accuracy": accuracy,
                "format": sum(formats) / max(len(formats), 1),
                "length": metrics["response_length/mean"],
                "tokens/s": metrics["perf/throughput"],
            }
        )
        if self._due(trainer.samples_every, step) or step == 1 or step == trainer.steps:
            self.record.samples(step, groups)

    def spent(self, name: str, seconds: float) -> None:
        """Adds to the time of a phase, over all processes that the run has had."""
        self.at.seconds[name] = self.at.seconds.get(name, 0.0) + seconds

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent(name, time.perf_counter() - start)

    def __enter__(self) -> Recipe:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.record.close()


def _accuracies(results: Mapping[str, Mapping[str, Any]], mode: str) -> dict[str, Accuracy]:
    return {name: Accuracy(result[mode]) for name, result in results.items() if result.get(mode)}


if __name__ == "__main__":
    sys.exit(main())
