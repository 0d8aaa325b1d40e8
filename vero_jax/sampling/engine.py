"""The group engine: prompts in, groups of sampled responses out.

A prompt is encoded and read once, whatever the number of its samples, and its keys are held once. Lanes draw responses
side by side; a lane that is free takes the next waiting sample of any prompt, so that long responses hold nobody up.
Keys of responses lie in pages, so that memory follows the tokens that exist. The result depends on (weights, seed,
step, prompt, sample) only, not on lanes, batch-mates or devices.
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
from jaxtyping import Int32

from vero_jax.config import RolloutConfig, SamplingConfig
from vero_jax.errors import UserError
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import row_shards
from vero_jax.parallel.sharding import partition_spec, received_bytes
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.sampling.inputs import Buckets, check_prompt, pad_prompts, sample_keys, token_inputs, vision_inputs
from vero_jax.sampling.programs import Programs, PromptRows, Reading
from vero_jax.sampling.session import Request, Session
from vero_jax.sampling.state import Lanes, Layout, Pages, Prompts, Sizes
from vero_jax.sampling.stream import groups
from vero_jax.types import Group, Prompt


@dataclasses.dataclass
class GenerationStats:
    """What the last `Engine.generate`, or all sessions since `Engine.stats` was made anew, did so far."""

    prompts: int = 0
    responses: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    prefill_calls: int = 0
    rounds: int = 0
    decode_steps: int = 0
    """Tokens that were drawn one after another."""
    lane_steps: int = 0
    """Sum over the decode steps of the lanes that took part, empty ones included."""
    preempted: int = 0
    """Responses that were drawn again because pages had run out."""
    seconds: float = 0.0
    """From the call to the last group, whatever the caller did in between included."""
    reshard_bytes: float = 0.0
    """That came to each device when the weights moved from training's layout to sampling's."""

    @property
    def tokens_per_s(self) -> float:
        """Response tokens per second."""
        return self.response_tokens / max(self.seconds, 1e-9)

    def metrics(self) -> dict[str, float]:
        """What a step reports."""
        return {
            "perf/rollout_tokens_per_s": self.tokens_per_s,
            "rollout/useful_share": self.useful_share,
            "rollout/rounds": float(self.rounds),
            "rollout/prefill_calls": float(self.prefill_calls),
            "rollout/preempted": float(self.preempted),
            "perf/reshard_bytes": self.reshard_bytes,
        }

    @property
    def useful_share(self) -> float:
        """Response tokens per lane step: 1 when no lane ever drew for nothing."""
        return self.response_tokens / max(self.lane_steps, 1)


class SessionPrograms:
    """The compiled programs for sessions of one size; the engine keeps them."""

    def __init__(self, programs: Programs, layout: Layout, sizes: Sizes, guard: TraceGuard) -> None:
        self.sizes = sizes
        config = programs.model_def.config.text
        watch, A = guard.watch, sizes.shards
        dtype = programs.model_def.dtype
        lanes, prompts, pages = layout.lanes(sizes), layout.prompts(sizes), layout.pages()

        def pool(count: int, page: int) -> Pages:
            shape = (config.num_layers, A, count, config.num_kv_heads, page, config.head_dim)
            return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        def empty() -> tuple[Prompts, Pages]:
            seen = jnp.zeros((A, sizes.prompts, config.vocab_size), bool) if sizes.penalties else None
            return Prompts(
                pool(sizes.prompt_pages, sizes.prompt_page),
                jnp.zeros((A, sizes.prompts, config.hidden_size), dtype),
                jnp.zeros((A, sizes.prompts), jnp.int32),
                seen,
            ), pool(sizes.response_pages, sizes.response_page)

        def new_lanes(count: int) -> Lanes:
            zeros = jnp.zeros((A, count), jnp.int32)
            counts = jnp.zeros((A, count, config.vocab_size), jnp.int32) if sizes.penalties else None
            recent = pool(count, sizes.response_page)
            return Lanes(zeros, zeros, jnp.ones((A, count), bool), zeros, recent, counts)

        jit = jax.jit
        self.empty = jit(empty, out_shardings=(prompts, pages))
        self.new_lanes = jit(new_lanes, static_argnums=0, out_shardings=lanes)
        self.prefill = jit(watch("prefill", programs.prefill), out_shardings=prompts, donate_argnums=4)
        self.store = jit(watch("store", programs.store), out_shardings=prompts, donate_argnums=0)
        self.flush = jit(watch("flush", programs.flush), out_shardings=pages, donate_argnums=0)
        self.move = jit(watch("move", programs.move), out_shardings=lanes)
        self.decode = jit(
            watch("decode", functools.partial(programs.decode, sizes=sizes)),
            out_shardings=(lanes, layout.window(sizes), layout.whole),
            donate_argnums=3,
        )


class Engine:
    """Samples groups. Compiled programs are kept, so make one engine and use it for the whole run.

    Args:
      model_def: the model.
      rollout: buckets, lanes, pages and block sizes.
      mesh: where to compute; lanes and prompts are split over its data axes.
      stop_ids: ids that end a response.
      banned_ids: ids that are never drawn (vision, padding and unused ids).
      decode: turns response ids into text; None leaves `Response.text` empty.
      gather_weights: hold the weights of sampling whole over the axes fsdp and expert, but for the experts, which
        stay where they are. A decode step reads all weights, and would otherwise gather them for every token.
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
        gather_weights: bool = True,
        guard: TraceGuard | None = None,
    ) -> None:
        self.model_def = model_def
        self.rollout = rollout
        self.mesh = mesh
        self.stats = GenerationStats()
        self.between_rounds: Callable[[], None] = lambda: None
        """Called by `generate` between rounds, in all processes alike; what it raises ends the sampling."""
        self.guard = guard or TraceGuard()
        self.stop_ids = frozenset(int(i) for i in stop_ids)
        self.buckets = Buckets(tuple(sorted(rollout.prompt_buckets)), tuple(sorted(rollout.patch_buckets)))
        self.patch_layout = model_def.config.patch_layout
        self.layout = Layout(mesh, model_def.config.text.num_kv_heads)
        self.decode_text = decode
        """Turns response ids into text, or None."""
        self._kept: dict[Sizes, SessionPrograms] = {}
        vocab = model_def.config.text.vocab_size
        self._programs = Programs(
            model_def=model_def,
            mesh=mesh,
            stop_ids=tuple(sorted(self.stop_ids)),
            banned_ids=tuple(sorted({int(i) for i in banned_ids if i < vocab} - self.stop_ids)),
            prefill_chunk=rollout.prefill_chunk,
            attention_block=rollout.attention_block,
            vocab_block=rollout.vocab_block,
        )
        watch, cache = self.guard.watch, self.layout.cache()
        reading = Reading(cache, cache, self.layout.rows)  # type: ignore[arg-type]
        self._encode = jax.jit(watch("encode", self._programs.encode))
        self._read_chunk = jax.jit(
            watch("read_chunk", self._programs.read_chunk), out_shardings=reading, donate_argnums=4
        )
        self._new_reading = jax.jit(self._empty_reading, static_argnums=(0, 1), out_shardings=reading)
        self.gathers_weights = gather_weights
        self._for_sampling = None
        split = mesh.shape["fsdp"] * mesh.shape["expert"] > 1
        if model_def.dtype != model_def.param_dtype or (gather_weights and split):
            shardings = self._sampling_shardings() if gather_weights else None
            self._reshard_bytes = self.reshard_bytes() if gather_weights else 0.0
            self._for_sampling = jax.jit(watch("for_sampling", self._programs.for_sampling), out_shardings=shardings)

    # --- for users

    def generate(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        *,
        n: int,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        max_new_tokens: int | Int32[np.ndarray, "Q N"],
        warped_logprobs: bool = False,
    ) -> Iterator[tuple[int, Group]]:
        """Samples n responses to every prompt, and gives each group as soon as its last response has ended.

        Args:
          params: the policy's parameters, a plain tree of arrays.
          prompts: any number; every prompt must fit the configured buckets.
          seed, step: with the prompt's id and the sample's number, what the random numbers depend on.
          max_new_tokens: limit of a response, the stop id included; or one for every sample.
          warped_logprobs: fill `Response.warped_logprobs`.

        Yields:
          (index into `prompts`, its group), as they end, so not in the order of `prompts`.

        Raises:
          UserError: a prompt does not fit, or its image tokens do not match its images. Nothing has run then.
        """
        limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), (len(prompts), n)) if n > 0 else np.zeros((1, 1))
        if n < 1 or (limits.size and limits.min() < 1):
            raise UserError(f"n={n} samples of max_new_tokens={limits.min()} tokens: both must be at least 1")
        # The shapes depend on the settings, not on what is asked of them.
        longest = int(max_new_tokens) if np.ndim(max_new_tokens) == 0 else int(limits.max(initial=1))
        for index, prompt in enumerate(prompts):
            check_prompt(index, prompt, self.patch_layout.merge_size)
            self.buckets.of(index, prompt)
        self.stats = GenerationStats()
        return self._generate(params, prompts, n, sampling, seed, step, limits, longest, warped_logprobs)

    def _generate(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        limits: Int32[np.ndarray, "Q N"],
        longest: int,
        warped_logprobs: bool,
    ) -> Iterator[tuple[int, Group]]:
        start, stats = time.perf_counter(), self.stats
        session = self.session(
            params,
            n=n,
            max_new_tokens=longest,
            truncated=sampling.truncates,
            penalties=sampling.has_penalties,
            warped_logprobs=warped_logprobs,
            resend=True,
        )
        keys = sample_keys(prompts, n, seed, step)
        # Prompts of one bucket are read together.
        order = sorted(range(len(prompts)), key=lambda index: (*self.buckets.of(index, prompts[index]), index))
        requests = [(index, Request(prompts[index], keys[index], sampling, limits[index])) for index in order]
        for index, group in groups(
            session, requests, decode=self.decode_text, between_rounds=lambda: self.between_rounds()
        ):
            stats.prompts, stats.responses = stats.prompts + 1, stats.responses + n
            stats.seconds = time.perf_counter() - start
            yield index, group

    def session(
        self,
        params: Any,
        *,
        n: int,
        max_new_tokens: int,
        truncated: bool = False,
        penalties: bool = False,
        warped_logprobs: bool = False,
        alternatives: int = 0,
        resend: bool = False,
    ) -> Session:
        """A session that takes requests at any time.

        Args:
          n: most samples of a request that are drawn side by side; requests may have more.
          max_new_tokens: most tokens of a response.
          truncated, penalties: whether requests may use top-k, top-p, min-p; penalties.
          warped_logprobs, alternatives: what is reported beside the log-probabilities.
          resend: give the tokens of a response that is drawn again (because pages had run out) from its start, not
            only those that were not given before.
        """
        if self._for_sampling is not None:
            params = self._for_sampling(params)
            self.stats.reshard_bytes += self._reshard_bytes
        sizes = dataclasses.replace(
            self.sizes(n, max_new_tokens),
            truncated=truncated,
            penalties=penalties,
            warped_logprobs=warped_logprobs,
            alternatives=alternatives,
        )
        if sizes not in self._kept:
            self._kept[sizes] = SessionPrograms(self._programs, self.layout, sizes, self.guard)
        return Session(self, self._kept[sizes], params, resend=resend)

    def warm_up(self, params: Any, *, n: int, max_new_tokens: int, sampling: SamplingConfig) -> None:
        """Compiles all that `generate` with these arguments may need, whatever the prompts: nothing compiles later.

        It runs every program once on nothing, for each bucket of tokens and patches and each number of lanes.
        """
        self.session(
            params,
            n=n,
            max_new_tokens=max_new_tokens,
            truncated=sampling.truncates,
            penalties=sampling.has_penalties,
            resend=True,
        ).warm_up()

    def sizes(self, n: int, max_new_tokens: int) -> Sizes:
        """Shapes of a session; see `session`.

        A group is in flight until its longest response ends, two to three times the mean of eight: three times the
        prompts that would fill the lanes keep them full. The stores hold what the settings say, or prompts of the
        mean bucket in every place and responses of half the limit in every lane: the largest size in all places at
        once is rare, and lanes wait when a store is full.
        """
        rollout, shards = self.rollout, row_shards(self.mesh)
        per_shard = max(-(-rollout.concurrent_responses // shards), 1)
        readers = min(n, per_shard)
        prompts = min(3 * -(-per_shard // readers) + 1, per_shard + 1)
        largest = -(-self.buckets.prompts[-1] // rollout.prompt_page)
        usual = sum(self.buckets.prompts) * prompts // len(self.buckets.prompts)
        longest = -(-max_new_tokens // rollout.response_page)

        def pages(tokens: int | None, otherwise: int, page: int, one: int) -> int:
            """At least those of one prompt or response."""
            return max(one, otherwise if tokens is None else tokens // shards // page)

        return Sizes(
            shards=shards,
            lanes=per_shard,
            prompts=prompts,
            readers=readers,
            whole_pools=self.mesh.devices.flat[0].platform == "gpu",
            prompt_page=rollout.prompt_page,
            response_page=rollout.response_page,
            prompt_pages=pages(
                rollout.prompt_kv_tokens, -(-usual // rollout.prompt_page), rollout.prompt_page, largest
            ),
            response_pages=pages(
                rollout.response_kv_tokens,
                max(-(-longest * per_shard // 2), per_shard + 1),
                rollout.response_page,
                longest,
            ),
        )

    # --- for sessions

    def prefill_rungs(self, tokens: int, most: int) -> list[int]:
        """Numbers of prompts of a bucket, up to `most`, that a shard reads at a time: 1, 4, 16, ..."""
        rungs = [1]
        while rungs[-1] * 4 <= most and rungs[-1] * 4 * tokens <= self.rollout.prefill_tokens:
            rungs.append(rungs[-1] * 4)
        return rungs

    def read_prompts(
        self,
        programs: SessionPrograms,
        params: Any,
        store: Prompts,
        prompts: Sequence[Prompt | None],
        tokens: int,
        patches: int,
        units: Int32[np.ndarray, "A g"],
        pages: Int32[np.ndarray, "A Y"],
    ) -> Prompts:
        """Reads prompts, padded to a bucket of tokens and of patches, into a session's store."""
        chunk = self.rollout.prefill_chunk
        length = tokens if tokens <= chunk else -(-tokens // chunk) * chunk
        vision = self.model_def.config.vision
        padded = pad_prompts(prompts, length, patches, self.patch_layout, vision.patch_elements if vision else 0)
        rows = PromptRows(padded.lengths, padded.next_positions, units, pages)  # type: ignore[arg-type]
        images, text, rows = self.place((vision_inputs(padded), token_inputs(padded), rows), self.layout.rows)
        if length <= chunk:
            return programs.prefill(params, images, text, rows, store)
        features = None if images is None else self._encode(params, images)
        reading = self._new_reading(len(prompts), length)
        for offset in range(0, int(padded.lengths.max()), chunk):
            reading = self._read_chunk(params, features, text, rows.lengths, reading, np.int32(offset))
        return programs.store(store, reading, text.token_ids, rows)

    def place(self, tree: Any, shardings: Any) -> Any:
        """Host arrays, the same in every process, to the mesh."""
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)

        def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        if isinstance(shardings, NamedSharding):
            return jax.tree.map(functools.partial(place, sharding=shardings), tree)
        return jax.tree.map(place, tree, shardings)

    def fetch(self, tree: Any) -> Any:
        """Arrays of the mesh as numpy, the same in every process; waits for the device."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    def _empty_reading(self, rows: int, length: int) -> Reading:
        text, dtype = self.model_def.config.text, self.model_def.dtype
        shape = (text.num_layers, rows, text.num_kv_heads, length, text.head_dim)
        return Reading(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows, text.hidden_size), dtype))

    def reshard_bytes(self) -> float:
        """What a device receives when the weights go to sampling's layout, which is sent in sampling's type."""
        params = self.model_def.abstract_params()
        sent = jax.eval_shape(self._programs.for_sampling, params)
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            sent,
            self.model_def.shardings(self.mesh),
        )
        return received_bytes(placed, self._sampling_shardings())

    def _sampling_shardings(self) -> Any:
        """The parameters' usual shardings without the axes that split rows, but for the experts' own."""

        def keep(leaf: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
            spec = partition_spec(axes, leaf.shape, self.mesh)
            kept = (a if a == "tensor" or name == "experts" else None for a, name in zip(spec, axes, strict=True))
            return NamedSharding(self.mesh, jax.sharding.PartitionSpec(*kept))

        return jax.tree.map(keep, self.model_def.abstract_params(), self.model_def.logical_axes())
