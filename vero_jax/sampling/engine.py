"""The group engine: prompts in, groups of sampled responses out.

A prompt is encoded and prefilled once, whatever the number of its samples. Prompts are placed in calls of a fixed
number of groups and padded to buckets; a call decodes many tokens in one device program, ends as soon as its last
response has, and gets space for responses in doubling buckets, so that short answers do not pay for long ones. The
result depends on (weights, seed, step, prompt, sample) only, not on the call a prompt fell into.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from vero_jax.config import RolloutConfig, SamplingConfig
from vero_jax.errors import UserError
from vero_jax.models.inputs import TokenInputs, VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import row_shards
from vero_jax.parallel.sharding import partition_spec
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.sampling.inputs import Call, plan_calls, sample_keys
from vero_jax.sampling.programs import Programs
from vero_jax.sampling.state import Choice, Decoding, Layout
from vero_jax.types import Group, Prompt, Response

FIRST_ROOM = 64
"""Response tokens for which a call first has space; it doubles when they are used up."""


@dataclasses.dataclass
class GenerationStats:
    """What the last `Engine.generate` did so far."""

    prompts: int = 0
    responses: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    calls: int = 0
    decode_steps: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Response tokens per second of prefill and decoding."""
        return self.response_tokens / max(self.prefill_s + self.decode_s, 1e-9)


class Engine:
    """Samples groups. Compiled programs are kept, so make one engine and use it for the whole run.

    Args:
      model_def: the model.
      rollout: buckets and block sizes.
      mesh: where to compute; groups are split over its data axes.
      stop_ids: ids that end a response.
      banned_ids: ids that are never drawn (vision, padding and unused ids).
      decode: turns response ids into text; None leaves `Response.text` empty.
      pad_id: what stands behind the end of a response on the device.
      gather_weights: hold the weights of sampling whole over the fsdp axis. A decode step reads all weights, and
        would otherwise gather them from the other devices for every token.
      guard: counts the traces of the engine's programs.
    """

    def __init__(
        self,
        model_def: ModelDef,
        rollout: RolloutConfig,
        mesh: Mesh,
        *,
        stop_ids: Sequence[int],
        banned_ids: Sequence[int] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        pad_id: int = 0,
        gather_weights: bool = True,
        guard: TraceGuard | None = None,
    ) -> None:
        self.model_def = model_def
        self.rollout = rollout
        self.mesh = mesh
        self.stats = GenerationStats()
        self.guard = guard or TraceGuard()
        self._stop_ids = np.asarray(sorted(set(stop_ids)), np.int32)
        self._decode_text = decode
        self._layout = Layout(mesh, model_def.config.text.num_kv_heads)
        vocab = model_def.config.text.vocab_size
        programs = Programs(
            model_def=model_def,
            stop_ids=tuple(int(i) for i in self._stop_ids),
            banned_ids=tuple(sorted({int(i) for i in banned_ids if i < vocab} - set(self._stop_ids.tolist()))),
            pad_id=pad_id,
            attention_block=rollout.attention_block,
            vocab_block=rollout.vocab_block,
        )
        watch, layout = self.guard.watch, self._layout
        self._prefill = jax.jit(
            watch("prefill", programs.prefill),
            static_argnames=("room", "truncated"),
            out_shardings=(layout.prefilled(), layout.decoding()),
        )
        self._decode = jax.jit(
            watch("decode", programs.decode),
            static_argnames="truncated",
            donate_argnums=2,
            out_shardings=layout.decoding(),
        )
        self._grow = jax.jit(watch("grow", programs.grow), static_argnames="room", out_shardings=layout.decoding())
        self._for_sampling = None
        if model_def.dtype != model_def.param_dtype or (gather_weights and mesh.shape["fsdp"] > 1):
            shardings = self._sampling_shardings() if gather_weights else None
            self._for_sampling = jax.jit(watch("for_sampling", programs.for_sampling), out_shardings=shardings)

    def generate(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        *,
        n: int,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        max_new_tokens: int,
        groups_per_call: int | None = None,
    ) -> Iterator[tuple[int, Group]]:
        """Samples n responses to every prompt, and gives each group as soon as its call has ended.

        Args:
          params: the policy's parameters, a plain tree of arrays.
          prompts: any number; every prompt must fit the configured buckets.
          seed, step: with the prompt's id and the sample's number, what the random numbers depend on.
          max_new_tokens: limit of a response, the stop id included.
          groups_per_call: prompts decoded together; None takes `rollout.groups_per_call`. Rounded up to a multiple of
            the devices over which groups are split.

        Yields:
          (index into `prompts`, its group), call by call, so not in the order of `prompts`.

        Raises:
          UserError: a prompt does not fit, or its image tokens do not match its images. Nothing has run then.
        """
        if n < 1 or max_new_tokens < 1:
            raise UserError(f"n={n} samples of max_new_tokens={max_new_tokens} tokens: both must be at least 1")
        self.stats = GenerationStats()
        shards = row_shards(self.mesh)
        groups = -(-(groups_per_call or self.rollout.groups_per_call) // shards) * shards
        calls = plan_calls(
            prompts,
            sample_keys(prompts, n, seed, step),
            groups=groups,
            prompt_buckets=self.rollout.prompt_buckets,
            patch_buckets=self.rollout.patch_buckets,
            patch_layout=self.model_def.config.patch_layout,
        )
        return self._generate(params, prompts, calls, sampling, max_new_tokens)

    def _generate(
        self, params: Any, prompts: Sequence[Prompt], calls: Iterator[Call], sampling: SamplingConfig, limit: int
    ) -> Iterator[tuple[int, Group]]:
        if self._for_sampling is not None:
            params = self._for_sampling(params)
        for call in calls:
            tokens, logprobs = self._run(params, call, sampling, limit)
            for row, index in enumerate(call.indices):
                responses = tuple(self._response(*pair) for pair in zip(tokens[row], logprobs[row], strict=True))
                self.stats.prompts += 1
                self.stats.responses += len(responses)
                self.stats.prompt_tokens += int(call.lengths[row])
                self.stats.response_tokens += sum(len(response.token_ids) for response in responses)
                yield index, Group(prompt=prompts[index], responses=responses)

    def _run(self, params: Any, call: Call, sampling: SamplingConfig, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Prefill and decoding of one call; returns tokens and log-probabilities, both [G, N, tokens drawn]."""
        start = time.perf_counter()
        truncated = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
        choice = self._place(
            Choice(
                call.keys,  # type: ignore[arg-type]
                np.float32(sampling.temperature),  # type: ignore[arg-type]
                np.int32(sampling.top_k),  # type: ignore[arg-type]
                np.float32(sampling.top_p),  # type: ignore[arg-type]
                np.float32(sampling.min_p),  # type: ignore[arg-type]
            ),
            self._layout.choice(),
        )
        room = min(FIRST_ROOM, limit)
        prompt, state = self._prefill(params, *self._place_inputs(call), choice, room=room, truncated=truncated)
        count, done = self._progress(state)
        decoding = time.perf_counter()
        while not done and count < limit:
            if count == room:
                room = min(2 * room, limit)
                state = self._grow(state, room=room)
            state = self._decode(params, prompt, state, jnp.int32(room), choice, truncated=truncated)
            count, done = self._progress(state)
        tokens, logprobs = self._fetch(state)
        self.stats.calls += 1
        self.stats.decode_steps += count - 1
        self.stats.prefill_s += decoding - start
        self.stats.decode_s += time.perf_counter() - decoding
        return tokens[..., :count], logprobs[..., :count]

    @staticmethod
    def _progress(state: Decoding) -> tuple[int, bool]:
        """Tokens drawn, and whether all responses have ended; waits for the device."""
        count, done = jax.device_get((state.count, state.done.all()))
        return int(count), bool(done)

    def _place_inputs(self, call: Call) -> tuple[Any, ...]:
        valid = (np.arange(call.token_ids.shape[1]) < call.lengths[:, None]).astype(np.int32)
        tokens = TokenInputs(
            call.token_ids,  # type: ignore[arg-type]
            call.positions,  # type: ignore[arg-type]
            call.image_index,  # type: ignore[arg-type]
            valid,  # type: ignore[arg-type]
            np.zeros_like(valid),  # type: ignore[arg-type]
        )
        vision = None
        if call.patches is not None:
            vision = VisionInputs(call.patches, call.coords, call.sizes, call.segments, call.windows)  # type: ignore[arg-type]
        real = (np.arange(len(call.lengths)) < len(call.indices)).astype(np.int32)
        return self._place((vision, tokens, call.lengths, call.next_positions, real), self._layout.rows)

    def _place(self, tree: Any, shardings: Any) -> Any:
        """Host arrays, the same in every process, to the mesh."""
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)

        def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        if isinstance(shardings, NamedSharding):
            return jax.tree.map(functools.partial(place, sharding=shardings), tree)
        return jax.tree.map(place, tree, shardings)

    def _fetch(self, state: Decoding) -> tuple[np.ndarray, np.ndarray]:
        if jax.process_count() == 1:
            return jax.device_get((state.tokens, state.logprobs))
        return multihost_utils.process_allgather((state.tokens, state.logprobs), tiled=True)

    def _response(self, tokens: np.ndarray, logprobs: np.ndarray) -> Response:
        stops = np.flatnonzero(np.isin(tokens, self._stop_ids))
        length = int(stops[0]) + 1 if len(stops) else len(tokens)
        ids = tokens[:length].copy()
        text = ids[:-1] if len(stops) else ids
        return Response(
            token_ids=ids,
            logprobs=logprobs[:length].copy(),
            stop_reason="stop" if len(stops) else "length",
            text="" if self._decode_text is None else self._decode_text(text.tolist()),
        )

    def _sampling_shardings(self) -> Any:
        """The parameters' usual shardings without the fsdp axis."""

        def keep(leaf: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
            spec = partition_spec(axes, leaf.shape, self.mesh)
            return NamedSharding(self.mesh, jax.sharding.PartitionSpec(*(a if a != "fsdp" else None for a in spec)))

        return jax.tree.map(keep, self.model_def.abstract_params(), self.model_def.logical_axes())
