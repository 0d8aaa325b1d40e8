"""Everything a run needs, made once from its config: data, policy folder, mesh, weights, sampler and learner."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from vero_jax.checkpoints.hub import resolve_checkpoint
from vero_jax.config import Config, SamplingConfig
from vero_jax.convert import export_hf
from vero_jax.data.coordinates import Coordinates
from vero_jax.data.mini import text_corpus
from vero_jax.data.pipeline import QuestionStream, validation_batches
from vero_jax.data.prepare import PreparedData, prepare
from vero_jax.data.processor import Processor
from vero_jax.data.prompts import system_prompt
from vero_jax.data.selection import Selection, data_identity, hold_out, select_rows
from vero_jax.data.solutions import reference_solution
from vero_jax.errors import UserError
from vero_jax.learners import make_learner, make_teacher, model_def_of, trainable_policy
from vero_jax.learning.supervised import SupervisedLearner
from vero_jax.learning.update import Learner
from vero_jax.models.build import build_policy
from vero_jax.models.lora import adapter_base, is_adapter, load_adapted, merge_lora, save_adapter
from vero_jax.models.policy import ModelDef, Params
from vero_jax.parallel.distributed import Hosts
from vero_jax.parallel.mesh import make_mesh
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.rewards.judge_pool import JudgePool
from vero_jax.rewards.pool import RewardPool
from vero_jax.rewards.router import JUDGED_TYPES
from vero_jax.rewards.settings import BUILTIN, RewardSettings
from vero_jax.runtime.compilation import versions_header
from vero_jax.runtime.files import friendly_writes
from vero_jax.runtime.processes import check_batches
from vero_jax.runtime.run_dir import RunDir
from vero_jax.sampling.engine import Engine
from vero_jax.types import Prompt
from vero_jax.val_tasks import ValTasks, check_data, open_tasks


@dataclasses.dataclass(frozen=True)
class System:
    """The parts of a run that never change while it goes on."""

    config: Config
    mesh: Mesh
    folder: Path
    """The folder that the policy started from."""
    processor: Processor
    model_def: ModelDef
    prepared: PreparedData
    train_rows: Selection
    val_rows: Selection
    engine: Engine
    guard: TraceGuard
    """Counts the traces of every compiled program of the run."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    """The processes of the run."""
    val_tasks: ValTasks | None = None
    """VeroEval's benchmarks that validations ask."""

    @property
    def coordinates(self) -> Coordinates:
        """What the boxes and points of the policy's answers mean."""
        return self.processor.coordinates or "normalized_1000"

    @property
    def data_identity(self) -> dict[str, str]:
        """What a position in the training questions depends on; see `selection.data_identity`."""
        return data_identity(self.prepared, self.train_rows)

    def params(self) -> Params:
        """The policy's weights as in its folder, with new or loaded adapters, laid out over the mesh."""
        return load_adapted(
            self.folder,
            self.model_def,
            self.model_def.shardings(self.mesh),
            adapter=self.config.model.lora.path,
            seed=self.config.seed,
        )

    def export(self, params: Params, out_folder: Path) -> Path:
        """Writes the policy for others: as a Hugging Face folder, or its adapters alone as a PEFT folder."""
        lora, plain = self.model_def.lora, dataclasses.replace(self.model_def, lora=None)
        if lora is None or self.config.model.lora.export == "merged":
            merged = params if lora is None else merge_lora(params, lora)
            with friendly_writes(out_folder):
                return export_hf(merged, plain, self.folder, out_folder, system_prompt=self.processor.system_prompt)
        local = self.config.model.path == "build" or Path(self.config.model.path).expanduser().is_dir()
        base = str(self.folder.absolute()) if local else self.config.model.path
        with friendly_writes(out_folder):
            save_adapter(out_folder, params, self.model_def, base)
        return out_folder

    def learner(self) -> Learner:
        """The policy's updates in reinforcement."""
        return make_learner(self.config, self.model_def, self.mesh, self.guard)

    def teacher(self) -> SupervisedLearner:
        """The policy's updates in the cold start."""
        return make_teacher(self.config, self.model_def, self.mesh, self.guard)

    def warm_up_sampler(self, params: Params) -> None:
        """Compiles what training and validation may ask of the engine."""
        rollout, trainer = self.config.rollout, self.config.trainer
        most = rollout.max_response_length
        asked = [(rollout.n, most, rollout.sampling), (1, most, trainer.val_sampling), (1, most, SamplingConfig())]
        if (tasks := self.val_tasks) is not None:
            asked += [(1, tasks.new_tokens(task), tasks.sampling(task)) for task in tasks.benchmarks]
        # What differs in numbers only has the same programs.
        kinds = {(n, limit, kind.truncates, kind.has_penalties): (n, limit, kind) for n, limit, kind in asked}
        for n, limit, sampling in kinds.values():
            self.engine.warm_up(params, n=n, max_new_tokens=limit, sampling=sampling)

    def reward_pool(self) -> RewardPool:
        """Worker processes for the rewards; a context manager."""
        return RewardPool(
            self.config.reward,
            max_response_length=self.config.rollout.max_response_length,
            coordinates=self.coordinates,
        )

    def judge_pool(self, say: Callable[[str], None]) -> JudgePool | None:
        """The judge, a context manager, or None where there is none, no question needs it, or another process asks it.

        Raises:
          UserError: its server cannot be used.
        """
        judged = self.train_rows.judged + self.val_rows.judged
        if self.config.reward.judge == "none" or not judged or not self.hosts.primary:
            return None
        return JudgePool(self.config.reward, cache_dir=self.config.data.cache_dir, say=say)

    def questions(self, batch_size: int, start_step: int) -> QuestionStream[Prompt]:
        """Training prompts by step (from 0), with exact domain counts in every batch."""
        return QuestionStream(
            self.prepared,
            self.config.data,
            batch_size=batch_size,
            start_step=start_step,
            transform=self.processor.prompt,
            selection=self.train_rows,
            **self._share,
        )

    def solved(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Int32[np.ndarray, "R"]]]:
        """(prompt, solution ids with the stop id) of the prompts that have a solution which fits the limits."""
        limit = self.config.cold_start.max_solution_length or self.config.rollout.max_response_length
        pairs = []
        for prompt in prompts:
            text = reference_solution(prompt, self.coordinates)
            if text:
                ids = self.processor.encode_response(text)
                if len(ids) <= limit:
                    pairs.append((prompt, ids))
        return pairs

    def validation(self, problems: Counter[str] | None = None) -> Iterator[list[Prompt]]:
        """All validation prompts, in lists of `trainer.val_batch`."""
        return validation_batches(
            self.prepared,
            self.config.data,
            batch_size=self.config.trainer.val_batch,
            transform=self.processor.prompt,
            selection=self.val_rows,
            problems=problems,
            **self._share,
        )

    @property
    def _share(self) -> dict[str, Any]:
        """Each process reads its share of the questions, and they go round."""
        hosts = self.hosts
        return {"host": hosts.index, "hosts": hosts.count, "gather": hosts.shares if hosts.count > 1 else None}


def build_system(config: Config, run: RunDir, say: Callable[[str], None], hosts: Hosts | None = None) -> System:
    """Prepares the data, writes the policy folder if it is to be built, and compiles nothing yet.

    Raises:
      UserError: data, policy folder, mesh or limits do not fit; one sentence says which.
    """
    hosts = hosts or Hosts()
    check_batches(config, hosts.count)
    say(versions_header())
    mesh = make_mesh(config.mesh)
    hosts.agree(lambda: check_data(config))  # before anything that takes long
    prepared = prepare(config.data.source, config.data, say=say)

    def found() -> Path:
        return policy_folder(config, run, say)

    # What is built lies in the run's folder, and one process writes it; a download lies on every host's own disk.
    folder = hosts.agree(found) if config.model.path == "build" else found()
    wanted_prompt = system_prompt(config.data.system_prompt)
    processor = Processor.from_folder(
        folder,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        system_prompt=wanted_prompt,
        background=config.data.background,
        max_prompt_length=config.data.max_prompt_length,
        coordinates=config.data.coordinates,
    )
    _check_image_limit(config, processor)
    if wanted_prompt and not processor.system_prompt:
        say("the policy's chat template asks for thoughts and answer itself; data.system_prompt is not added")
    model_def = model_def_of(config, folder)
    train_rows, val_rows = _chosen_rows(config, prepared, processor, say)
    say(f"{train_rows}\n{val_rows}")
    guard = TraceGuard()
    engine = Engine(
        model_def,
        config.rollout,
        mesh,
        stop_ids=processor.eos_ids,
        banned_ids=processor.banned_ids,
        decode=processor.decode,
        guard=guard,
    )
    tasks = open_tasks(config, processor, model_def.config.model_type, run, say, hosts)
    system = System(
        config, mesh, folder, processor, model_def, prepared, train_rows, val_rows, engine, guard, hosts, tasks
    )
    total, trained = (
        f"{count / 1e6:,.2f} M"
        for count in (model_def.num_params(), trainable_policy(config, model_def, mesh).num_trained)
    )
    processes = f" of {hosts.count} processes" if hosts.count > 1 else ""
    devices = f"{mesh.size} {jax.devices()[0].platform} device(s){processes}"
    say(f"policy: {total} parameters, {trained} trained, from {folder}, on {devices}")
    return system


def _check_image_limit(config: Config, processor: Processor) -> None:
    """Whether the largest image that a prompt can have fits a bucket; a run finds out about several in one prompt."""
    settings, rollout = processor.image_settings, config.rollout
    if settings is None or rollout.oversize == "drop":
        return
    area, per_token = settings.patch_size**2, settings.merge_size**2
    most = min(settings.max_pixels // area, config.data.max_prompt_length * per_token)
    if most > rollout.patch_buckets[-1]:
        raise UserError(
            f"an image may have {most} patches ({settings.patch_size} pixels wide), but the last of "
            f"rollout.patch_buckets is {rollout.patch_buckets[-1]}; set data.max_pixels to at most "
            f"{rollout.patch_buckets[-1] * area}, add a bucket, or leave such prompts out with rollout.oversize=drop"
        )


def _chosen_rows(
    config: Config, prepared: PreparedData, processor: Processor, say: Callable[[str], None]
) -> tuple[Selection, Selection]:
    """The rows of training and those of validation, which are held out of training where the data has none for it."""

    def chosen(split: str) -> Selection:
        return select_rows(
            prepared,
            split,
            judge=config.reward.judge,
            own_types=_own_types(config),
            processor=processor,
            mixture=config.data.mixture,
            cache_dir=config.data.cache_dir,
            say=say,
        )

    data = config.data
    if prepared.count(data.val_split) or not data.val_holdout:
        return chosen(data.train_split), chosen(data.val_split)
    say(f"the data has no rows of {data.val_split!r}: {data.val_holdout:.0%} of the training rows are held out for it")
    return hold_out(chosen(data.train_split), data.val_holdout)


def policy_folder(config: Config, run: RunDir, say: Callable[[str], None]) -> Path:
    """The folder of `model.path`; for "build", `<run>/policy`, written now unless a resumed run has it already.

    Raises:
      UserError: `model.path` is neither a checkpoint folder nor the id of one that can be had.
    """
    if config.model.path != "build":
        try:
            folder = resolve_checkpoint(config.model.path)
        except UserError as error:
            raise UserError(
                f"model.path: {error} (it can be a Hugging Face folder, a hub id, a folder in vero_jax's own format, "
                "or build)"
            ) from None
        if is_adapter(folder):
            raise UserError(
                f"model.path={config.model.path!r} is an adapter alone; set model.lora.path to it, and model.path to "
                f"its base model, {adapter_base(folder)}"
            )
        return folder
    folder = run.path / "policy"
    recipe = folder / "built_from.json"
    wanted = json.dumps({"build": dataclasses.asdict(config.model.build), "seed": config.seed}, sort_keys=True)
    if recipe.is_file() and recipe.read_text() == wanted:
        return folder
    say(f"building a new policy in {folder}")
    corpus = text_corpus(config.data.mini.seed) if config.model.build.tokenizer == "mini" else ()
    with friendly_writes(folder):
        build_policy(folder, config.model.build, seed=config.seed, corpus=corpus)
        recipe.write_text(wanted)
    return folder


def _own_types(config: Config) -> Collection[str]:
    """Reward types that the user's own functions score instead of a verifier or a judge."""
    settings = RewardSettings.from_config(config.reward)
    replaced = bool(settings.functions) and BUILTIN not in settings.functions
    return JUDGED_TYPES if replaced else settings.custom_types
