"""One step of reinforcement: mini-batches by prompt, accumulated gradients over micro-batches of rows, AdamW.

    learner = Learner(TrainablePolicy.of_model(model_def, mesh), config.actor, config.optim, mesh, ...)
    state = learner.init_state(params)
    state, metrics = learner.step(state, groups, step)        # groups carry advantages

The result does not depend on the mesh, on the row length or on the number of micro-batches: mini-batches are chosen by
prompt before anything is packed, and every denominator is counted over the whole mini-batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from vero_jax.config import ActorConfig, OptimConfig
from vero_jax.errors import UserError
from vero_jax.learning.aggregation import Totals, aggregate
from vero_jax.learning.batching import equal_slices
from vero_jax.learning.kl import kl_estimate, kl_loss
from vero_jax.learning.losses import LossInputs, policy_loss
from vero_jax.learning.metrics import add_mismatch, mismatch_metrics
from vero_jax.learning.packing import RowShape, empty_plan, pack_rows
from vero_jax.learning.programs import (
    Batch,
    Params,
    Programs,
    Sums,
    TrainablePolicy,
    TrainState,
    policy_sums,
    to_host,
)
from vero_jax.learning.rows import RowPlan
from vero_jax.learning.schedule import adamw, learning_rate
from vero_jax.parallel.mesh import row_shards
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.types import Group


class Learner:
    """Turns groups with advantages into a new state.

    Args:
      policy: what is trained; `TrainablePolicy.of_model` for a Qwen3-VL.
      max_response_length: the divisor of `seq-mean-token-sum-norm`.
      total_steps: where the cosine schedule ends.
      guard: counts traces of the compiled functions.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        actor: ActorConfig,
        optim: OptimConfig,
        mesh: Mesh,
        *,
        max_response_length: int,
        total_steps: int = 0,
        guard: TraceGuard | None = None,
    ) -> None:
        self.actor, self.optim, self.mesh = actor, optim, mesh
        self._width = max_response_length
        self._total_steps = total_steps
        self._policy = policy
        self.row_shapes = policy.row_shapes(actor.row_length, actor.row_patches, actor.row_rungs)
        self._rows = actor.rows_per_micro_batch * row_shards(mesh)
        self.programs = Programs(
            policy,
            lambda logprobs, entropy, batch: actor_objective(logprobs, entropy, batch, actor),
            adamw(optim.betas, optim.eps, optim.weight_decay),
            mesh=mesh,
            grad_clip=optim.grad_clip,
            entropy_mode=actor.loss_agg_mode,
            guard=guard,
            offload=optim.offload,
        )
        self.finite: tuple[bool, ...] = ()
        """Of the last step's updates, in order: whether the gradient was, and the update happened."""
        self._response_kl = jax.jit(_response_kl, static_argnums=3, out_shardings=self.programs.rows_sharding)

    def init_state(self, params: Params) -> TrainState:
        """A state at step 0 with fresh optimizer moments; `params` stays valid."""
        return self.programs.init_state(params)

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return self.programs.abstract_state()

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a KL term, so that `step` must be given the reference policy."""
        return self.actor.kl_loss_coef != 0

    def rate(self, step: int) -> float:
        """Learning rate of global step `step`, from 1."""
        optim = self.optim
        return learning_rate(
            step,
            peak=optim.lr,
            warmup_steps=optim.warmup_steps,
            schedule=optim.schedule,
            total_steps=self._total_steps,
            min_ratio=optim.min_lr_ratio,
        )

    def pack(self, groups: Sequence[Group], *, keep_all: bool = False) -> RowPlan:
        """The rows of a mini-batch; `keep_all` keeps responses whose advantage is zero."""
        actor = self.actor
        return pack_rows(
            groups,
            shapes=self.row_shapes,
            rows_per_micro_batch=self._rows,
            skip_zero_advantage=not keep_all and actor.entropy_coef == 0 and actor.kl_loss_coef == 0,
            mask_truncated=actor.mask_truncated,
            oversize=actor.oversize,
            patch_layout=self._policy.patch_layout,
            patch_cost=self._policy.patch_cost,
        )

    def warm_up(self, state: TrainState) -> TrainState:
        """Compiles all programs of `step` for every shape of rows; nothing compiles later. Returns the state as it was;
        the buffers of the old one are used up."""
        return self.programs.warm_up(state, self.row_shapes, self._rows, self._warm_up_batch)

    def _warm_up_batch(self, plan: RowPlan) -> Batch:
        batch = self._batch(plan, 0)
        if not self.needs_reference:
            return batch
        return self._batch(plan, 0, reference=[batch.signals.sampler])

    def abstract_batch(self, shape: RowShape) -> Batch:
        """Shapes, types and shardings of a micro-batch of rows of a shape, to compile programs without arrays."""
        plan = empty_plan(shape, 1, (self._policy.patch_elements, "uint8"), self._policy.patch_layout)
        rows, signals = plan.micro_batch(0)
        signals = dataclasses.replace(
            signals, old=signals.sampler, reference=signals.sampler if self.needs_reference else None
        )
        sharding = self.programs.rows_sharding
        rows, signals = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self._rows, *x.shape[1:]), x.dtype, sharding=sharding), (rows, signals)
        )
        totals = Totals.of(1, 1, self._width)
        seed = jax.ShapeDtypeStruct((4,), jnp.uint32)
        return Batch(rows, signals, totals, totals, seed, jax.ShapeDtypeStruct((), jnp.bool_))  # type: ignore[arg-type]

    def step(
        self,
        state: TrainState,
        groups: Sequence[Group],
        step: int,
        *,
        reference: Params | None = None,
        seed: int = 0,
    ) -> tuple[TrainState, dict[str, float]]:
        """All updates of global step `step` (from 1). The old state's buffers are used up.

        Args:
          groups: the step's groups, with advantages; mini-batches are consecutive slices of prompts.
          reference: parameters of the reference policy, where `needs_reference`.
          seed: with the step, the key of Clip-Cov's random choice.

        Returns:
          the new state and the metrics, global and exact. `actor/entropy` and `training/rollout_*` are those of the
          policy at the start of the step, over the responses that were computed (zero advantages may be skipped).

        Raises:
          UserError: advantages are missing, a response does not fit a row, or a KL term lacks its reference.
        """
        for group in groups:
            if group.advantages is None:
                raise UserError(f"group of question {group.prompt.example.id!r} has no advantages; add them first")
        if self.needs_reference and reference is None:
            raise UserError("actor.kl_loss_coef is not 0, but there is no reference policy; set it to 0 or load one")
        actor = self.actor
        plans = [self.pack(part) for part in self.mini_batches(groups)]
        report = _Report(self.rate(step))
        old: list[list[Array] | None] = []
        for number, plan in enumerate(plans):
            # The first update starts from the parameters of the whole step: its own pass gives what later epochs need.
            own_pass = number == 0 and actor.old_logprobs == "first_pass"
            recompute = actor.old_logprobs != "sampler" and not own_pass
            old.append(self._pass_over(state.params, plan, report) if recompute else None)
        references = [self._pass_over(reference, plan) if self.needs_reference else None for plan in plans]
        updates = 0
        for _ in range(actor.ppo_epochs):
            for number, plan in enumerate(plans):
                gradients, first, own = self.programs.zeros(), updates == 0, []
                on_policy = first and actor.old_logprobs == "first_pass"
                for index in range(plan.micro_batches):
                    seeds = seed, step, updates
                    batch = self._batch(plan, index, old[number], references[number], seeds, on_policy=on_policy)
                    gradients, sums, values = self.programs.accumulate(state.params, gradients, batch)
                    own.append(values)
                    # Parameters are those of the start of the step in the first update only.
                    report.add(plan, sums, first=first, policy=first and old[number] is None)
                if on_policy:
                    old[number] = own
                # A mini-batch without any gradient still is an update: moments fade and weights decay.
                state, norm = self.programs.apply(state, gradients, np.float32(report.rate), np.int32(step))
                report.add_update(plan, norm)
                updates += 1
        metrics = report.metrics(actor)
        self.finite = report.finite
        return state, metrics

    def mini_batches(self, groups: Sequence[Group]) -> list[Sequence[Group]]:
        """The groups of each update of an epoch."""
        return [groups[part] for part in equal_slices(len(groups), self.actor.mini_batch_prompts)]

    def gradients(
        self,
        params: Params,
        groups: Sequence[Group],
        *,
        reference: Params | None = None,
        seeds: tuple[int, int, int] = (0, 0, 0),
        first: bool = True,
    ) -> tuple[Params, float]:
        """The gradients and the loss of one mini-batch, without an update: to look at one that went wrong.

        Args:
          seeds: (run's seed, step, update), as in `step`.
          first: whether it is a step's first update. Of later ones the log-probabilities at the start of the step are
            not known any more: the sampler's stand for them.
        """
        plan = self.pack(groups)
        on_policy = first and self.actor.old_logprobs == "first_pass"
        references = self._pass_over(reference, plan) if self.needs_reference and reference is not None else None
        gradients, losses = self.programs.zeros(), []
        for index in range(plan.micro_batches):
            batch = self._batch(plan, index, None, references, seeds, on_policy=on_policy)
            gradients, sums, _ = self.programs.accumulate(params, gradients, batch)
            losses.append(sums["pg_loss"])
        return gradients, float(sum(np.asarray(loss) for loss in losses))

    def logprobs(self, params: Params, groups: Sequence[Group]) -> list[list[Float32[np.ndarray, "R"]]]:
        """float32 log-probabilities of every response token, per group and response. Zeros where a response is left out
        (no score, or truncated with `mask_truncated`)."""
        plan = self.pack(groups, keep_all=True)
        values = [to_host(part) for part in self._pass_over(params, plan)]
        found = [[np.zeros(len(r.token_ids), np.float32) for r in group.responses] for group in groups]
        for place in plan.places():
            index, row = divmod(place.row, plan.rows_per_micro_batch)
            found[place.group][place.response] = values[index][row, place.start : place.start + place.length]
        return found

    def response_kl(
        self, params: Params, reference: Params, groups: Sequence[Group], kind: str
    ) -> tuple[list[Float32[np.ndarray, "N"]], float]:
        """For KL in the reward: KL of each response, summed over its tokens, and the mean per token and response.

        The first times the coefficient is what `add_advantages` takes as `penalties`; the second feeds `KLController`.
        """
        plan = self.pack(groups, keep_all=True)
        sums = [np.zeros(len(group.responses), np.float32) for group in groups]
        means = []
        new, old = self._pass_over(params, plan), self._pass_over(reference, plan)
        found = []
        for index in range(plan.micro_batches):
            rows = self._batch(plan, index).rows
            found.append(to_host(self._response_kl(new[index], old[index], rows.responses, kind)))
        for place in plan.places():
            index, row = divmod(place.row, plan.rows_per_micro_batch)
            total = found[index][row, place.number]
            sums[place.group][place.response] = total
            means.append(total / place.length)
        return sums, float(np.mean(means)) if means else 0.0

    def _batch(
        self,
        plan: RowPlan,
        index: int,
        old: list[Array] | None = None,
        reference: list[Array] | None = None,
        seeds: tuple[int, int, int] = (0, 0, 0),
        *,
        on_policy: bool = False,
    ) -> Batch:
        rows, signals = self.programs.put_rows(plan.micro_batch(index))
        signals = dataclasses.replace(
            signals,
            old=signals.sampler if old is None else old[index],
            reference=None if reference is None else reference[index],
        )
        seed: Any = np.array([*seeds, index], np.uint32)
        totals = Totals.of(plan.sequences, plan.tokens, self._width)
        seen = Totals.of(plan.seen_sequences, plan.seen_tokens, self._width)
        return Batch(rows, signals, totals, seen, seed, np.bool_(on_policy))  # type: ignore[arg-type]

    def _pass_over(self, params: Params, plan: RowPlan, report: _Report | None = None) -> list[Array]:
        """Log-probabilities of each micro-batch under fixed parameters, left on the device."""
        found = []
        for index in range(plan.micro_batches):
            values, sums = self.programs.logprobs(params, self._batch(plan, index))
            found.append(values)
            if report is not None:
                report.add_pass(plan, sums)
        return found


def actor_objective(
    logprobs: Float32[Array, "B U"], entropy: Float32[Array, "B U"], batch: Batch, config: ActorConfig
) -> tuple[Float[Array, ""], Sums]:
    """Policy loss - entropy_coef x entropy + kl_loss_coef x KL to the reference, and the sums behind the metrics."""
    tokens, signals, totals = batch.rows.responses, batch.signals, batch.totals
    old = jax.lax.stop_gradient(logprobs)
    if signals.old is not None:
        old = jnp.where(batch.on_policy, old, signals.old)
    key = (
        functools.reduce(jax.random.fold_in, batch.seed, jax.random.key(0)) if config.loss_mode == "clip_cov" else None
    )
    terms = policy_loss(LossInputs(logprobs, old, signals.advantages, tokens, totals, signals.sampler, key), config)
    sums: Sums = {"pg_loss": terms.loss, "clipped": terms.clipped, "clipped_lower": terms.clipped_lower, "kl": terms.kl}
    loss = terms.loss
    if config.entropy_coef != 0:
        loss -= config.entropy_coef * aggregate(entropy, tokens, config.loss_agg_mode, totals)
    if config.kl_loss_coef != 0 and signals.reference is not None:
        penalty = kl_loss(logprobs, signals.reference, tokens, config.kl_loss_type, config.loss_agg_mode, totals)
        sums["kl_loss"] = penalty
        loss += config.kl_loss_coef * penalty
    return loss, sums | policy_sums(logprobs, jax.lax.stop_gradient(entropy), batch, config.loss_agg_mode)


def _response_kl(new: Array, old: Array, tokens: Any, kind: str) -> Float32[Array, "B S"]:
    return tokens.sums(kl_estimate(tokens.keep(new), tokens.keep(old), kind))


class _Report:
    """Collects device scalars without waiting for them, and makes metrics of them at the end of the step."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._sums: list[tuple[RowPlan, Sums, bool]] = []
        self._policy: list[tuple[RowPlan, Sums]] = []
        """Of the policy at the start of the step."""
        self._norms: list[tuple[RowPlan, Array]] = []
        self.finite: tuple[bool, ...] = ()
        """Whether the gradient of each update was, once `metrics` has been called."""

    def add(self, plan: RowPlan, sums: Sums, *, first: bool, policy: bool) -> None:
        """Sums of an update's micro-batch, of the step's first update or not; `policy` if nothing else measures the
        policy at the start of the step on these responses."""
        self._sums.append((plan, sums, first))
        if policy:
            self.add_pass(plan, sums)

    def add_pass(self, plan: RowPlan, sums: Sums) -> None:
        """Sums of a micro-batch under the parameters of the start of the step."""
        self._policy.append((plan, {name: sums[name] for name in ("entropy", "mismatch")}))

    def add_update(self, plan: RowPlan, norm: Array) -> None:
        self._norms.append((plan, norm))

    def metrics(self, config: ActorConfig) -> dict[str, float]:
        """Loss terms are means over the step's updates, weighted by sequences; shares and ppo_kl over tokens."""
        sums, measured, norms = jax.device_get(
            ([s for _, s, _ in self._sums], [s for _, s in self._policy], [n for _, n in self._norms])
        )
        plans = [plan for plan, _ in self._norms]
        distinct = {id(plan): plan for plan in plans}.values()
        sequences = sum(plan.sequences for plan in plans)
        tokens, seen = sum(plan.tokens for plan in plans), sum(plan.seen_tokens for plan in plans)
        seen_sequences = sum(plan.seen_sequences for plan in distinct)
        measured_plans = {id(plan): plan for plan, _ in self._policy}.values()
        self.finite = tuple(bool(np.isfinite(norm)) for norm in norms)
        finite = [float(norm) for norm in norms if np.isfinite(norm)]

        def total(name: str, weight: str | None = None) -> float:
            weights = [1 if weight is None else getattr(plan, weight) for plan, _, _ in self._sums]
            return sum(float(s[name]) * w for w, s in zip(weights, sums, strict=True) if name in s)

        first = [float(s["clipped"]) for s, (_, _, first) in zip(sums, self._sums, strict=True) if first]
        entropy = sum(float(s["entropy"]) * p.seen_sequences for s, (p, _) in zip(measured, self._policy, strict=True))

        metrics = {
            "actor/pg_loss": total("pg_loss", "sequences") / max(sequences, 1),
            "actor/pg_clipfrac": total("clipped") / max(tokens, 1),
            # Not 0 in the first update only when the old log-probabilities are not the learner's own.
            "actor/pg_clipfrac_first": sum(first) / max(plans[0].tokens if plans else 0, 1),
            "actor/pg_clipfrac_lower": total("clipped_lower") / max(tokens, 1),
            "actor/ppo_kl": total("kl") / max(seen, 1),
            "actor/grad_norm": float(np.mean(finite)) if finite else float("nan"),
            "actor/lr": self.rate,
            "actor/entropy": entropy / max(sum(plan.seen_sequences for plan in measured_plans), 1),
            "actor/updates": float(len(finite)),
            "actor/updates_skipped": float(len(norms) - len(finite)),
        }
        if config.kl_loss_coef != 0:
            metrics["actor/kl_loss"] = total("kl_loss", "sequences") / max(sequences, 1)
            metrics["actor/kl_coef"] = config.kl_loss_coef
        metrics |= mismatch_metrics(add_mismatch([s["mismatch"] for s in measured]))
        shapes = [(plan.micro_batches * plan.rows_per_micro_batch, plan) for plan in distinct]
        filled = sum(plan.filled_tokens() for plan in distinct)
        metrics |= {
            "rows/count": float(sum(count for count, _ in shapes)),
            "rows/length": float(max((plan.row_length for plan in distinct), default=0)),
            "rows/tokens": float(filled),
            "rows/padding": 1 - filled / max(sum(count * plan.row_length for count, plan in shapes), 1),
            "rows/micro_batches": float(sum(plan.micro_batches for plan in distinct)),
            "rows/dropped_responses": float(sum(sum(plan.dropped.values()) for plan in distinct)),
            "rows/skipped_responses": 1 - seen_sequences / max(sum(plan.sequences for plan in distinct), 1),
        }
        dropped = sum((Counter(plan.dropped) for plan in distinct), Counter[str]())
        return metrics | {f"rows/dropped_responses_{why}": float(count) for why, count in dropped.items()}


__all__ = ["Learner", "TrainState", "actor_objective"]
