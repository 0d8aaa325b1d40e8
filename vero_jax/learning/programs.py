"""The compiled parts of an update: log-probabilities, accumulated gradients, one optimizer step; on plain trees.

Nothing here knows the model or the algorithm: the policy is a function from (parameters, rows) to log-probabilities,
the objective a function from those to a loss and sums for the metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from vero_jax.data.patches import PatchLayout
from vero_jax.errors import UserError
from vero_jax.learning.aggregation import AggregationMode, Totals, aggregate
from vero_jax.learning.metrics import mismatch_sums
from vero_jax.learning.packing import RowShape, empty_plan, patch_cost, row_shapes
from vero_jax.learning.rows import RowPlan, Rows, Signals
from vero_jax.learning.schedule import clip_by_global_norm, descend
from vero_jax.models.attention import on_mesh, shared_prefix_attention
from vero_jax.models.head import token_block_of, token_logprobs
from vero_jax.models.lora import is_lora
from vero_jax.models.policy import ModelDef, ParamPath, join_params, split_params
from vero_jax.parallel.sharding import replicated, row_sharding
from vero_jax.parallel.trace_guard import TraceGuard

Params = Any
"""A nested dict of arrays."""
PolicyForward = Callable[[Params, Rows], tuple[Float32[Array, "B U"], Float32[Array, "B U"]]]
"""(parameters, rows) -> log-probability of every response token, entropy of the distribution it was drawn from."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes."""

    params: Params
    opt_state: Any
    """Adam's moments, of the parameters that are trained only."""
    step: Int32[Array, ""]
    """Steps done."""
    updates: Int32[Array, ""]
    """Optimizer updates done, several per step."""
    skipped: Int32[Array, ""]
    """Updates left out because their gradient was not finite."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What an objective gets besides the policy's outputs."""

    rows: Rows
    signals: Signals
    totals: Totals
    """Denominators of the mini-batch."""
    seen: Totals
    """The same of the responses that are in its rows."""
    seed: UInt32[Array, "4"]
    """(run's seed, step, update, micro-batch): where a loss draws at random."""
    on_policy: Bool[Array, ""] = dataclasses.field(default_factory=lambda: np.False_)  # type: ignore[assignment]
    """Whether the old log-probabilities are the current ones, whatever `signals.old` says."""


Sums = dict[str, Any]
Objective = Callable[[Float32[Array, "B U"], Float32[Array, "B U"], Batch], tuple[Float[Array, ""], Sums]]
"""(log-probabilities, entropy, batch) -> (this micro-batch's share of the loss, sums for the metrics)."""


@dataclasses.dataclass(frozen=True)
class TrainablePolicy:
    """All that an update needs to know of a policy, whatever its model is."""

    forward: PolicyForward
    params_like: Params
    """The parameters, or their `ShapeDtypeStruct`s; a dict."""
    shardings: Any
    """A tree of `NamedSharding` of the same structure."""
    trains: Callable[[ParamPath], bool] = lambda path: True
    """Whether the parameter at a path is trained. The others get no gradient, no decay and no optimizer state."""
    patch_layout: PatchLayout = dataclasses.field(default_factory=PatchLayout)
    """In which order the vision tower reads patches."""
    patch_cost: float = 0.25
    """Work of a vision patch, in language tokens."""
    patch_elements: int = 0
    """Numbers in a patch; 0 for a policy without a vision tower."""

    @classmethod
    def of_model(
        cls,
        model_def: ModelDef,
        mesh: Mesh,
        *,
        temperature: float = 1.0,
        attention_block: int = 512,
        vocab_block: int = 16384,
        freeze_vision: bool = False,
    ) -> TrainablePolicy:
        """A model, its parameters laid out on the mesh. Where it has adapters, they alone are trained.

        Args:
          temperature: of the sampling whose log-probabilities are meant.
          attention_block, vocab_block: tokens and vocabulary entries that are computed at a time.
        """
        params_like, text = model_def.abstract_params(), model_def.config.text
        expert_share = text.experts_per_token / text.num_experts if text.sparse_layers else 1.0

        def trains(path: ParamPath) -> bool:
            return is_lora(path) if model_def.lora is not None else not (freeze_vision and path[0] == "vision")

        return cls(
            model_forward(
                model_def,
                temperature=temperature,
                attention_block=attention_block,
                vocab_block=vocab_block,
                mesh=mesh,
            ),
            params_like,
            model_def.shardings(mesh),
            trains=trains,
            patch_layout=model_def.config.patch_layout,
            patch_cost=patch_cost(params_like, expert_share),
            patch_elements=0 if model_def.config.vision is None else model_def.config.vision.patch_elements,
        )

    def row_shapes(self, row_length: int, row_patches: int, rungs: int) -> tuple[RowShape, ...]:
        """The table of `packing.row_shapes`, without patches for a policy that reads none."""
        return row_shapes(
            row_length, row_patches if self.patch_elements else 0, rungs, self.patch_layout.patches_per_token
        )

    @property
    def num_trained(self) -> int:
        """How many numbers are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(split_params(self.params_like, self.trains)[0]))


def model_forward(
    model_def: ModelDef,
    *,
    temperature: float = 1.0,
    attention_block: int = 512,
    vocab_block: int = 16384,
    mesh: Mesh | None = None,
) -> PolicyForward:
    """The policy of a `ModelDef`: images and prompts once per group, exact float32 log-probabilities.

    Args:
      mesh: where rows and parameters lie, so that each device computes its own part of the vocabulary.
    """

    def compute(params: Params, rows: Rows) -> tuple[Float32[Array, "B U"], Float32[Array, "B U"]]:
        model = model_def.bind(params)
        tokens = rows.tokens
        features = None if rows.vision is None else model.encode_images(rows.vision)
        image_index = None if rows.vision is None else tokens.image_index

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, None]:
            return shared_prefix_attention(q, k, v, tokens.groups, tokens.branches, attention_block), None

        x = model.embed(tokens.token_ids, features, image_index)
        hidden, _ = model.decode(x, tokens.positions, attend, None, features, image_index, tokens.groups > 0)
        predicting = jax.vmap(lambda h, index: h[index])(hidden, rows.sources)
        logprobs, entropy = token_logprobs(
            predicting.reshape(-1, predicting.shape[-1]),
            model.head_weight(),
            rows.targets.reshape(-1),
            counted=rows.responses.mask.reshape(-1) > 0,
            temperature=temperature,
            block=vocab_block,
            token_block=token_block_of(rows.targets.shape[1]),
            mesh=mesh,
        )
        return logprobs.reshape(rows.targets.shape), entropy.reshape(rows.targets.shape)

    def forward(params: Params, rows: Rows) -> tuple[Float32[Array, "B U"], Float32[Array, "B U"]]:
        with on_mesh(mesh):
            return compute(params, rows)

    return forward


class Programs:
    """The jitted functions, with shardings and donated buffers; compiled once per shape of rows.

    What is not trained never passes through a program that returns parameters: those arrays are put back beside the
    trained ones as they are, so that a frozen base lies in memory once, whatever is made of the rest.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        mesh: Mesh,
        grad_clip: float,
        entropy_mode: AggregationMode = "token-mean",
        guard: TraceGuard | None = None,
        name: str = "learner",
        offload: bool = False,
    ) -> None:
        guard = guard if guard is not None else TraceGuard()
        self.mesh = mesh
        self.rows_sharding, whole = row_sharding(mesh), replicated(mesh)
        forward, self._trains = policy.forward, policy.trains
        abstract, self._abstract_frozen = self._split(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), policy.params_like)
        )
        self._abstract_trained = abstract
        gradient_shardings, self._frozen_shardings = self._split(policy.shardings)
        opt_state_shardings = optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            jax.eval_shape(optimizer.init, abstract),
            gradient_shardings,
            transform_non_params=lambda _: whole,
        )
        counters: Any = (whole, whole, whole)
        kept_shardings = in_host_memory(opt_state_shardings) if offload else opt_state_shardings
        self._state_shardings = TrainState(gradient_shardings, kept_shardings, *counters)
        self._patch_kind, self._patch_layout = (policy.patch_elements, "uint8"), policy.patch_layout

        def new_state(trained: Params) -> TrainState:
            return TrainState(trained, optimizer.init(trained), *(jnp.zeros((), jnp.int32) for _ in range(3)))

        def zeros() -> Params:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), abstract)

        def logprobs(params: Params, batch: Batch) -> tuple[Float32[Array, "B U"], Sums]:
            values, entropy = forward(params, batch.rows)
            return values, policy_sums(values, entropy, batch, entropy_mode)

        def accumulate(params: Params, gradients: Params, batch: Batch) -> tuple[Params, Sums, Float32[Array, "B U"]]:
            trained, frozen = self._split(params)

            def loss(trained: Params) -> tuple[Float[Array, ""], tuple[Sums, Array]]:
                values, entropy = forward(join_params(trained, frozen), batch.rows)
                total, sums = objective(values, entropy, batch)
                return total, (sums, values)

            part, (sums, values) = jax.grad(loss, has_aux=True)(trained)
            return jax.tree.map(lambda total, new: total + new.astype(jnp.float32), gradients, part), sums, values

        def apply(state: TrainState, gradients: Params, rate: Array, step: Array) -> tuple[TrainState, Array]:
            clipped, norm = clip_by_global_norm(gradients, grad_clip)
            meant = jnp.isfinite(rate)
            finite = jnp.isfinite(norm) & meant
            moments = jax.device_put(state.opt_state, opt_state_shardings) if offload else state.opt_state
            updated = descend(state.params, clipped, moments, optimizer, rate)
            # A gradient that overflowed must not reach the moments, where it would stay for hundreds of updates.
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), updated, (state.params, moments)
            )
            if offload:
                opt_state = jax.device_put(opt_state, kept_shardings)
            return TrainState(
                params=params,
                opt_state=opt_state,
                step=jnp.where(meant, step, state.step),
                updates=state.updates + finite,
                skipped=state.skipped + (meant & ~finite),
            ), norm

        self._new_state = jax.jit(new_state, out_shardings=self._state_shardings)
        self.zeros = jax.jit(zeros, out_shardings=gradient_shardings)
        self.logprobs = jax.jit(guard.watch(f"{name}.logprobs", logprobs), out_shardings=(self.rows_sharding, whole))
        self.accumulate = jax.jit(
            guard.watch(f"{name}.accumulate", accumulate),
            out_shardings=(gradient_shardings, whole, self.rows_sharding),
            donate_argnums=1,
        )
        self._apply = jax.jit(
            guard.watch(f"{name}.apply", apply), out_shardings=(self._state_shardings, whole), donate_argnums=0
        )

    def init_state(self, params: Params) -> TrainState:
        """A state at step 0. The parameters' own buffers are not donated and stay valid; frozen ones are shared."""
        trained, frozen = self._split(params)
        state = self._new_state(trained)
        # Does nothing to arrays that lie where they should.
        return _with_params(state, join_params(state.params, jax.device_put(frozen, self._frozen_shardings)))

    def abstract_state(self) -> TrainState:
        """The state's shapes, types and shardings, for restoring a checkpoint."""
        state = _placed(jax.eval_shape(self._new_state, self._abstract_trained), self._state_shardings)
        return _with_params(state, join_params(state.params, _placed(self._abstract_frozen, self._frozen_shardings)))

    def abstract_gradients(self) -> Params:
        """The accumulated gradients' shapes, types and shardings."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), self._abstract_trained)
        return _placed(shapes, self._state_shardings.params)

    def lower_apply(self, state: TrainState) -> jax.stages.Lowered:
        """`apply` for a state of such shapes, to be compiled without arrays."""
        of_trained = _with_params(state, self._split(state.params)[0])
        number = jax.ShapeDtypeStruct((), jnp.float32)
        return self._apply.lower(of_trained, self.abstract_gradients(), number, jax.ShapeDtypeStruct((), jnp.int32))

    def warm_up(
        self, state: TrainState, shapes: Sequence[RowShape], rows: int, batch: Callable[[RowPlan], Batch]
    ) -> TrainState:
        """Compiles every program for every shape of rows, by running it on nothing. Returns the state, as it was.

        Args:
          rows: of a micro-batch.
          batch: makes the batch of a plan's only micro-batch.
        """
        gradients = self.zeros()
        for shape in shapes:
            nothing = batch(empty_plan(shape, rows, self._patch_kind, self._patch_layout))
            gradients, *_ = self.accumulate(state.params, gradients, nothing)
            self.logprobs(state.params, nothing)
        return self.apply(state, gradients, np.float32(np.nan), np.int32(0))[0]

    def apply(self, state: TrainState, gradients: Params, rate: Any, step: Any) -> tuple[TrainState, Array]:
        """One optimizer update, and the gradients' norm. The buffers of the old state that are trained are used up.

        A learning rate that is no number leaves the state as it is.
        """
        trained, frozen = self._split(state.params)
        state, norm = self._apply(_with_params(state, trained), gradients, rate, step)
        return _with_params(state, join_params(state.params, frozen)), norm

    def trained_part(self, params: Params) -> Params:
        """The tree of the parameters that are trained: what a checkpoint must hold of a reference policy."""
        return self._split(params)[0]

    def completed(self, trained: Params, params: Params) -> Params:
        """`trained_part`'s tree with the frozen parameters of another one beside it, which are shared."""
        return join_params(params, trained)

    def snapshot(self, params: Params) -> Params:
        """The parameters as they are now: copies of those that training changes, and the frozen ones themselves."""
        trained, frozen = self._split(params)
        return join_params(jax.tree.map(jnp.copy, trained), frozen)

    def _split(self, tree: Params) -> tuple[Params, Params]:
        return split_params(tree, self._trains)

    def put_rows(self, tree: Any) -> Any:
        """Host arrays with a leading row axis, split over the mesh. Every process passes the same arrays."""
        return jax.tree.map(
            lambda array: (
                jax.make_array_from_callback(array.shape, self.rows_sharding, lambda index: array[index])
                if jax.process_count() > 1
                else jax.device_put(array, self.rows_sharding)
            ),
            tree,
        )


def in_host_memory(shardings: Any) -> Any:
    """The same shardings in the pinned memory of the hosts.

    Raises:
      UserError: the devices have none.
    """

    def moved(sharding: NamedSharding) -> NamedSharding:
        device: Any = next(iter(sharding.device_set))
        if not any(memory.kind == "pinned_host" for memory in device.addressable_memories()):
            raise UserError(
                f"optim.offload needs host memory that the device can read, and {device.platform} has none; turn it off"
            )
        return sharding.with_memory_kind("pinned_host")

    return jax.tree.map(moved, shardings)


def _with_params(state: TrainState, params: Params) -> TrainState:
    return dataclasses.replace(state, params=params)


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def policy_sums(
    logprobs: Float32[Array, "B U"], entropy: Float32[Array, "B U"], batch: Batch, mode: AggregationMode
) -> Sums:
    """What is reported of a policy on sampled tokens: its entropy and its distance from the sampler."""
    tokens = batch.rows.responses
    mismatch = mismatch_sums(jax.lax.stop_gradient(logprobs), batch.signals.sampler, tokens)
    return {"entropy": aggregate(entropy, tokens, mode, batch.seen), "mismatch": mismatch}


def to_host(array: Array) -> np.ndarray:
    """A device array as numpy on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
