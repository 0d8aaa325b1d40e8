"""Cold start: next-token cross-entropy on reference solutions, on the same rows and programs as reinforcement.

A question with its solution is a group of one branch; several share a row. The loss is the mean over solution tokens of
-log p(token), prompts excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from vero_jax.config import ColdStartConfig, OptimConfig
from vero_jax.errors import UserError
from vero_jax.learning.aggregation import Totals, aggregate
from vero_jax.learning.packing import pack_rows
from vero_jax.learning.programs import Batch, Params, Programs, Sums, TrainablePolicy, TrainState, to_host
from vero_jax.learning.rows import RowPlan
from vero_jax.learning.schedule import adamw, learning_rate
from vero_jax.parallel.mesh import row_shards
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.types import Group, Prompt, Response


class SupervisedLearner:
    """Turns prompts with reference solutions into a new state; its own schedule and optimizer moments.

    Args:
      policy, guard: as for `update.Learner`.
      config: learning rate, warm-up, decay and schedule of this stage, which ends at `config.steps`.
      optim: betas, eps and the gradient clip.
      row_length, row_patches, rows_per_micro_batch: as in `ActorConfig`.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: ColdStartConfig,
        optim: OptimConfig,
        mesh: Mesh,
        *,
        row_length: int,
        row_patches: int,
        rows_per_micro_batch: int = 1,
        row_rungs: int = 3,
        guard: TraceGuard | None = None,
    ) -> None:
        self.config, self.mesh = config, mesh
        self.finite: tuple[bool, ...] = ()
        """Whether the last step's gradient was, and the update happened."""
        self._policy, self._rows = policy, rows_per_micro_batch * row_shards(mesh)
        self.row_shapes = policy.row_shapes(row_length, row_patches, row_rungs)
        self.programs = Programs(
            policy,
            cross_entropy,
            adamw(optim.betas, optim.eps, config.weight_decay),
            mesh=mesh,
            grad_clip=optim.grad_clip,
            guard=guard,
            name="supervised",
            offload=optim.offload,
        )

    def init_state(self, params: Params) -> TrainState:
        """A state at step 0 with fresh optimizer moments; `params` stays valid."""
        return self.programs.init_state(params)

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return self.programs.abstract_state()

    def rate(self, step: int) -> float:
        """Learning rate of step `step` of this stage, from 1."""
        config = self.config
        return learning_rate(
            step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            total_steps=config.steps,
        )

    def pack(self, pairs: Sequence[tuple[Prompt, Int32[np.ndarray, "R"]]]) -> RowPlan:
        """The rows of a batch of (prompt, solution ids)."""
        for prompt, solution in pairs:
            if len(solution) == 0:
                raise UserError(f"question {prompt.example.id!r} has an empty solution; leave it out of the cold start")
        return pack_rows(
            as_groups(pairs),
            shapes=self.row_shapes,
            rows_per_micro_batch=self._rows,
            skip_zero_advantage=False,
            patch_layout=self._policy.patch_layout,
            patch_cost=self._policy.patch_cost,
        )

    def warm_up(self, state: TrainState) -> TrainState:
        """Compiles all programs for every shape of rows. Returns the state as it was; its old buffers are used up."""
        return self.programs.warm_up(state, self.row_shapes, self._rows, lambda plan: self._batch(plan, 0))

    def step(
        self, state: TrainState, pairs: Sequence[tuple[Prompt, Int32[np.ndarray, "R"]]], step: int
    ) -> tuple[TrainState, dict[str, float]]:
        """One update on a batch of (prompt, solution ids with the stop id). The old state's buffers are used up.

        Returns:
          the new state and `cold_start/` loss (nats per token), grad_norm, lr, tokens, updates_skipped.

        Raises:
          UserError: a solution is empty or does not fit a row.
        """
        plan = self.pack(pairs)
        gradients, parts = self._accumulated(state.params, plan)
        rate = self.rate(step)
        state, norm = self.programs.apply(state, gradients, np.float32(rate), np.int32(step))
        loss = sum(float(sums["loss"]) for sums in jax.device_get(parts))
        self.finite = (bool(np.isfinite(norm)),)
        return state, {
            "cold_start/loss": loss,
            "cold_start/grad_norm": float(norm),
            "cold_start/lr": rate,
            "cold_start/tokens": float(plan.tokens),
            "cold_start/updates_skipped": float(not all(self.finite)),
        }

    def gradients(self, params: Params, groups: Sequence[Group]) -> tuple[Params, float]:
        """The gradients and the loss of a batch (`as_groups`), without an update."""
        pairs = [(group.prompt, np.asarray(group.responses[0].token_ids)) for group in groups]
        gradients, parts = self._accumulated(params, self.pack(pairs))
        return gradients, sum(float(sums["loss"]) for sums in jax.device_get(parts))

    def _accumulated(self, params: Params, plan: RowPlan) -> tuple[Params, list[Sums]]:
        """Gradients, and the sums of each micro-batch, left on the device."""
        gradients, parts = self.programs.zeros(), []
        for index in range(plan.micro_batches):
            gradients, sums, _ = self.programs.accumulate(params, gradients, self._batch(plan, index))
            parts.append(sums)
        return gradients, parts

    def loss(self, params: Params, pairs: Sequence[tuple[Prompt, Int32[np.ndarray, "R"]]]) -> float:
        """Mean -log p of the solutions' tokens, in nats, without an update."""
        plan = self.pack(pairs)
        total = 0.0
        for index in range(plan.micro_batches):
            values, _ = self.programs.logprobs(params, self._batch(plan, index))
            mask = np.asarray(plan.micro_batch(index)[0].responses.mask)
            total -= float(np.where(mask > 0, to_host(values), 0).sum(dtype=np.float64))
        return total / max(plan.tokens, 1)

    def _batch(self, plan: RowPlan, index: int) -> Batch:
        rows, signals = self.programs.put_rows(plan.micro_batch(index))
        totals = Totals.of(plan.sequences, plan.tokens, 1)
        seed: Any = np.zeros(4, np.uint32)
        return Batch(rows, signals, totals, totals, seed)


def cross_entropy(
    logprobs: Float32[Array, "B U"], entropy: Float32[Array, "B U"], batch: Batch
) -> tuple[Float[Array, ""], Sums]:
    """This micro-batch's share of the mean of -log p over the batch's response tokens."""
    loss = aggregate(-logprobs, batch.rows.responses, "token-mean", batch.totals)
    return loss, {"loss": loss}


def as_groups(pairs: Sequence[tuple[Prompt, Int32[np.ndarray, "R"]]]) -> list[Group]:
    """Each solution as the only response to its prompt."""
    return [
        Group(prompt, (Response(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), "stop"),))
        for prompt, ids in pairs
    ]
