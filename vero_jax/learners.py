"""A config's model and learners, without its data: for training, for planning and for replaying a batch."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from vero_jax.config import Config
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.supervised import SupervisedLearner
from vero_jax.learning.update import Learner
from vero_jax.models.config import ModelConfig
from vero_jax.models.lora import lora_from
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.trace_guard import TraceGuard


def model_def_of(config: Config, model: ModelConfig | Path) -> ModelDef:
    """The policy's shapes and types: of a folder, or of sizes that are known already."""
    sizes = model if isinstance(model, ModelConfig) else ModelConfig.from_folder(model)
    return ModelDef(
        sizes,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        remat=config.model.remat,
        lora=lora_from(config.model.lora, sizes),
    )


def trainable_policy(config: Config, model_def: ModelDef, mesh: Mesh, temperature: float = 1.0) -> TrainablePolicy:
    """What the learners train, with log-probabilities at this temperature."""
    return TrainablePolicy.of_model(
        model_def,
        mesh,
        temperature=temperature,
        attention_block=config.rollout.attention_block,
        vocab_block=config.rollout.vocab_block,
        freeze_vision=config.model.freeze_vision,
    )


def make_learner(config: Config, model_def: ModelDef, mesh: Mesh, guard: TraceGuard | None = None) -> Learner:
    """The policy's updates in reinforcement."""
    return Learner(
        trainable_policy(config, model_def, mesh, config.rollout.sampling.temperature),
        config.actor,
        config.optim,
        mesh,
        max_response_length=config.rollout.max_response_length,
        total_steps=config.trainer.steps,
        guard=guard,
    )


def make_teacher(config: Config, model_def: ModelDef, mesh: Mesh, guard: TraceGuard | None = None) -> SupervisedLearner:
    """The policy's updates in the cold start."""
    return SupervisedLearner(
        trainable_policy(config, model_def, mesh),
        config.cold_start,
        config.optim,
        mesh,
        row_length=config.actor.row_length,
        row_patches=config.actor.row_patches,
        rows_per_micro_batch=config.actor.rows_per_micro_batch,
        row_rungs=config.actor.row_rungs,
        guard=guard,
    )
