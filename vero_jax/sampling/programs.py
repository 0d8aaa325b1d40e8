"""The device programs of sampling: prompts are read once, and lanes draw many tokens per call.

All are pure functions over plain trees; `sampling.engine` jits them. Axes as in `sampling.state`; G rows of a prefill
(A x the prompts that each shard reads at a time), S prompt tokens (a bucket), t tokens of a chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from vero_jax.models.attention import on_mesh, shared_prefix_attention
from vero_jax.models.choice import SEEN_IN_PROMPT, Choice, Warping, choose_tokens
from vero_jax.models.decode_attention import (
    PageTable,
    Part,
    chunk_attention,
    merge,
    page_attention,
    recent_attention,
)
from vero_jax.models.inputs import TokenInputs, VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.models.vision import ImageFeatures
from vero_jax.sampling.state import Assignment, Lanes, Pages, Prompts, Sizes, Window


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptRows:
    """Where the prompts of a prefill go. Rows of padding have unit U and pages X, which nothing is written to."""

    lengths: Int32[Array, "G"]
    next_positions: Int32[Array, "G"]
    units: Int32[Array, "A g"]
    pages: Int32[Array, "A Y"]
    """Page of each S / s tokens of the rows, in order."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
    """Long prompts that are read chunk by chunk."""

    k: Float[Array, "L G K S C"]
    v: Float[Array, "L G K S C"]
    final: Float[Array, "G D"]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The settings that the programs are compiled with.

    Attributes:
      stop_ids: ids that end a response.
      banned_ids: ids that are never drawn.
      prefill_chunk: t, tokens of a chunk of a long prompt.
      attention_block: tokens per block of attention.
      vocab_block: vocabulary entries per block of the head.
    """

    model_def: ModelDef
    mesh: Mesh
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    prefill_chunk: int
    attention_block: int
    vocab_block: int

    # --- prompts

    def prefill(
        self, params: Any, vision: VisionInputs | None, tokens: TokenInputs, rows: PromptRows, prompts: Prompts
    ) -> Prompts:
        """Reads whole prompts, one per row, padded on the right, and puts their keys into pages."""
        with on_mesh(self.mesh):
            reading = self._read(params, vision, tokens, rows.lengths)
        return self.store(prompts, reading, tokens.token_ids, rows)

    def _read(
        self, params: Any, vision: VisionInputs | None, tokens: TokenInputs, lengths: Int32[Array, "G"]
    ) -> Reading:
        model = self.model_def.bind(params)
        features = None if vision is None else model.encode_images(vision)
        image_index = None if vision is None else tokens.image_index
        x = model.embed(tokens.token_ids, features, image_index)

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, tuple[Array, Array]]:
            out = shared_prefix_attention(q, k, v, tokens.groups, tokens.branches, self.attention_block)
            return out, (k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))

        real = tokens.groups > 0
        hidden, (k, v) = model.decode(x, tokens.positions, attend, None, features, image_index, real)
        final = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return Reading(k, v, final)

    def encode(self, params: Any, vision: VisionInputs) -> ImageFeatures:
        """Images of long prompts, once for all of their chunks."""
        with on_mesh(self.mesh):
            return self.model_def.bind(params).encode_images(vision)

    def read_chunk(
        self,
        params: Any,
        features: ImageFeatures | None,
        tokens: TokenInputs,
        lengths: Int32[Array, "G"],
        reading: Reading,
        offset: Int32[Array, ""],
    ) -> Reading:
        """Reads tokens [offset, offset + t) of each prompt, which see all that were read before."""
        with on_mesh(self.mesh):
            return self._read_chunk(params, features, tokens, lengths, reading, offset)

    def _read_chunk(
        self,
        params: Any,
        features: ImageFeatures | None,
        tokens: TokenInputs,
        lengths: Int32[Array, "G"],
        reading: Reading,
        offset: Int32[Array, ""],
    ) -> Reading:
        model = self.model_def.bind(params)
        t = self.prefill_chunk
        tokens = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, offset, t, 1), tokens)
        image_index = None if features is None else tokens.image_index
        x = model.embed(tokens.token_ids, features, image_index)

        def attend(q: Array, k: Array, v: Array, cache: Any) -> tuple[Array, tuple[Array, Array]]:
            k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
            so_far = [
                jax.lax.dynamic_update_slice_in_dim(x, new, offset, 2) for x, new in zip(cache, (k, v), strict=True)
            ]
            return chunk_attention(q, so_far[0], so_far[1], offset, min(self.attention_block, t)), (k, v)

        cache, real = (reading.k, reading.v), tokens.groups > 0
        hidden, (k, v) = model.decode(x, tokens.positions, attend, cache, features, image_index, real)
        place = lengths - 1 - offset
        here = jnp.take_along_axis(hidden, jnp.clip(place, 0, t - 1)[:, None, None], axis=1)[:, 0]
        return Reading(
            jax.lax.dynamic_update_slice_in_dim(reading.k, k, offset, 3),
            jax.lax.dynamic_update_slice_in_dim(reading.v, v, offset, 3),
            jnp.where(((place >= 0) & (place < t))[:, None], here, reading.final),
        )

    def store(self, prompts: Prompts, reading: Reading, token_ids: Int32[Array, "G S"], rows: PromptRows) -> Prompts:
        """Puts prompts that have been read where lanes find them."""
        A, g = rows.units.shape
        shard = jnp.arange(A)[:, None]

        def paged(pool: Array, new: Array) -> Array:
            L, _, K, S, C = new.shape
            s, per_prompt = pool.shape[4], rows.pages.shape[1] // g
            new = jnp.pad(new[:, :, :, : per_prompt * s], ((0, 0),) * 3 + ((0, max(per_prompt * s - S, 0)), (0, 0)))
            new = new.reshape(L, A, g, K, per_prompt, s, C)
            new = new.transpose(0, 1, 2, 4, 3, 5, 6).reshape(L, A, -1, K, s, C)
            return pool.at[:, shard, rows.pages].set(new, mode="drop")

        def put(old: Array, new: Array) -> Array:
            return old.at[shard, rows.units].set(new.reshape(A, g, *new.shape[1:]), mode="drop")

        seen = prompts.seen
        if seen is not None:
            G, S = token_ids.shape
            real = jnp.arange(S) < rows.lengths[:, None]
            held = jnp.zeros((G, seen.shape[-1]), bool)
            seen = put(seen, held.at[jnp.arange(G)[:, None], token_ids].max(real))
        return Prompts(
            Pages(paged(prompts.pages.k, reading.k), paged(prompts.pages.v, reading.v)),
            put(prompts.final, reading.final),
            put(prompts.next_position, rows.next_positions),
            seen,
        )

    # --- responses

    def decode(
        self,
        params: Any,
        prompts: Prompts,
        own: Pages,
        lanes: Lanes,
        plan: Assignment,
        column: Int32[Array, ""],
        stop_column: Int32[Array, ""],
        wake: Int32[Array, ""],
        *,
        sizes: Sizes,
    ) -> tuple[Lanes, Window, Int32[Array, ""]]:
        """Draws a token of every response at a time.

        Ends when `stop_column` is reached, when all responses have ended, or when `wake` of those that were going on
        at the start have.

        Args:
          own: pages of the responses' earlier tokens.
          column: where the newest tokens go next.

        Returns:
          the lanes, what was drawn in columns [column, end), and end.
        """
        model = self.model_def.bind(params)
        head = model.head_weight()
        attend = self._decode_attend(plan, sizes)
        banned = jnp.zeros(head.shape[0], bool)
        if self.banned_ids:
            banned = banned.at[jnp.asarray(self.banned_ids)].set(True)
        shard = jnp.arange(plan.unit.shape[0])[:, None]
        final = prompts.final[shard, plan.unit]
        start_position = prompts.next_position[shard, plan.unit]
        lanes = _begin(lanes, plan, column, prompts, shard)
        running = (~lanes.done).sum()
        A, B = plan.unit.shape

        def unfinished(carry: tuple[Lanes, Window, Array]) -> Array:
            lanes, _, column = carry
            live = (~lanes.done).sum()
            return (column < stop_column) & (live > 0) & (running - live < wake)

        def step(carry: tuple[Lanes, Window, Array]) -> tuple[Lanes, Window, Array]:
            lanes, window, column = carry
            positions = jnp.broadcast_to((start_position + lanes.count - 1)[..., None], (A, B, 3))
            cache = (prompts.pages, own, lanes.recent)

            def attend_layer(q: Array, k: Array, v: Array, layer: Any) -> tuple[Array, tuple[Array, Array]]:
                return attend(q, k, v, layer, lanes.first, column), (k, v)

            # Shards are the batch and lanes the sequence: no lane sees another, `attend` makes sure of that.
            with on_mesh(self.mesh):
                x, real = model.embed(lanes.last), ~lanes.done & (lanes.count > 0)
                hidden, (k, v) = model.decode(x, positions, attend_layer, cache, real=real)
            hidden = jnp.where((lanes.count == 0)[..., None], final, hidden)
            drawn = self._choose(head, hidden, plan, lanes, banned, sizes)
            live = ~lanes.done
            ids = jnp.where(live, drawn.ids.reshape(A, B), lanes.last)
            count = lanes.count + live
            counts = lanes.counts
            if counts is not None:
                counts = counts.at[shard, jnp.arange(B), ids].add(live.astype(jnp.int32))

            def column_of(x: Array, new: Array, axis: int) -> Array:
                return jax.lax.dynamic_update_slice_in_dim(x, jnp.expand_dims(new, axis), column, axis)

            recent = Pages(column_of(lanes.recent.k, k, 4), column_of(lanes.recent.v, v, 4))
            done = lanes.done | self._stops(ids) | (count >= plan.limit)
            window = jax.tree.map(lambda x, new: column_of(x, new, 2), window, _as_window(drawn, ids, (A, B), sizes))
            return Lanes(count, ids, done, lanes.first, recent, counts), window, column + 1

        return jax.lax.while_loop(unfinished, step, (lanes, _empty_window(A, B, sizes), column))

    def _decode_attend(self, plan: Assignment, sizes: Sizes) -> Any:
        """Attention of one layer: over the prompt's pages, the response's pages, and its newest tokens."""
        A, U, M = plan.readers.shape
        shard = jnp.arange(A)[:, None]
        nothing = jnp.zeros_like(plan.prompt_high)
        prompt_table = PageTable(plan.prompt_unit, nothing, plan.prompt_high, plan.prompt_used)
        own_table = PageTable(plan.own_lane, plan.own_low, plan.own_high, plan.own_used)
        prompt_chunk = sizes.page_chunk(sizes.prompt_pages, sizes.prompt_page)
        own_chunk = sizes.page_chunk(sizes.response_pages, sizes.response_page)

        def attend(q: Array, k: Array, v: Array, layer: Any, first: Array, column: Array) -> Array:
            prompt_pages, own_pages, recent = layer
            B, H, C = q.shape[1:]
            K = k.shape[2]
            J = H // K
            q = (q * C**-0.5).reshape(A, B, K, J, C)
            padded = jnp.pad(q, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
            rows = padded[shard[..., None], plan.readers].transpose(0, 1, 3, 2, 4, 5).reshape(A, U, K, M * J, C)
            by_unit = page_attention(rows, prompt_pages.k, prompt_pages.v, prompt_table, prompt_chunk)

            def of_lane(x: Array) -> Array:
                x = x.reshape(A, U, K, M, J, *x.shape[4:])
                return x[shard, plan.unit, :, plan.member]

            prompt = Part(*(of_lane(x) for x in by_unit))
            earlier = page_attention(q, own_pages.k, own_pages.v, own_table, own_chunk)
            newest = recent_attention(q, k, v, recent.k, recent.v, first, column)
            return merge(prompt, earlier, newest).reshape(A, B, H, C).astype(v.dtype)

        return attend

    def _choose(
        self,
        head: Array,
        hidden: Float[Array, "A B D"],
        plan: Assignment,
        lanes: Lanes,
        banned: Bool[Array, "V"],
        sizes: Sizes,
    ) -> Choice:
        def flat(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:])

        return choose_tokens(
            flat(hidden),
            head,
            flat(plan.keys),
            flat(lanes.count),
            banned,
            Warping(**{name: flat(x) for name, x in vars(plan.warping).items()}),
            block=self.vocab_block,
            truncated=sizes.truncated,
            counts=None if lanes.counts is None else flat(lanes.counts),
            alternatives=sizes.alternatives,
            warped_logprobs=sizes.warped_logprobs,
        )

    def _stops(self, ids: Int32[Array, "A B"]) -> Bool[Array, "A B"]:
        return (ids[..., None] == jnp.asarray(self.stop_ids, jnp.int32)).any(-1)

    def flush(self, own: Pages, recent: Pages, pages: Int32[Array, "A B"]) -> Pages:
        """Puts the columns of newest tokens into pages, one per lane; X for lanes that have none to keep."""
        shard = jnp.arange(pages.shape[0])[:, None]
        return jax.tree.map(lambda pool, new: pool.at[:, shard, pages].set(new, mode="drop"), own, recent)

    def move(self, lanes: Lanes, order: Int32[Array, "A N"]) -> Lanes:
        """N lanes out of others: `order` names the old lane of each; any number at and above B makes an empty one."""
        shard = jnp.arange(order.shape[0])[:, None]
        old = lanes.done.shape[1]

        def take(x: Array) -> Array:
            return x[shard, jnp.minimum(order, old - 1)]

        recent = jax.tree.map(lambda x: x[:, shard, jnp.minimum(order, old - 1)], lanes.recent)
        counts = None if lanes.counts is None else take(lanes.counts)
        return Lanes(
            take(lanes.count), take(lanes.last), take(lanes.done) | (order >= old), take(lanes.first), recent, counts
        )

    def for_sampling(self, params: Any) -> Any:
        """The parameters as sampling reads them: rounded once to the activations' type.

        The language model rounds every weight to that type where it uses it, so doing it before changes no number.
        The vision tower uses some of its weights in float32 and is left alone.
        """
        dtype = self.model_def.dtype
        return {
            name: part if name == "vision" else jax.tree.map(lambda weight: weight.astype(dtype), part)
            for name, part in params.items()
        }


def _begin(lanes: Lanes, plan: Assignment, column: Array, prompts: Prompts, shard: Array) -> Lanes:
    """The lanes at the start of a round: new responses have no token yet, and lanes without one are done."""
    counts = lanes.counts
    if counts is not None and prompts.seen is not None:
        held = prompts.seen[shard, plan.unit].astype(jnp.int32) * SEEN_IN_PROMPT
        counts = jnp.where(plan.new[..., None], held, counts)
    # The step that draws a first token has no token to compute keys of, so a new response owns the columns behind it.
    first = jnp.where(plan.new, column + 1, jnp.where(column == 0, 0, lanes.first))
    return dataclasses.replace(
        lanes,
        count=jnp.where(plan.new, 0, lanes.count),
        last=jnp.where(plan.new, 0, lanes.last),
        done=jnp.where(plan.new, False, lanes.done) | ~plan.active,
        first=first,
        counts=counts,
    )


def _empty_window(A: int, B: int, sizes: Sizes) -> Window:
    shape = (A, B, sizes.response_page)
    listed = (*shape, sizes.alternatives)
    return Window(
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.float32) if sizes.warped_logprobs else None,
        jnp.zeros(listed, jnp.int32) if sizes.alternatives else None,
        jnp.zeros(listed, jnp.float32) if sizes.alternatives else None,
    )


def _as_window(drawn: Choice, ids: Int32[Array, "A B"], shape: tuple[int, int], sizes: Sizes) -> Window:
    return Window(
        ids,
        drawn.logprobs.reshape(shape),
        drawn.warped_logprobs.reshape(shape) if sizes.warped_logprobs else None,
        drawn.top_ids.reshape(*shape, -1) if sizes.alternatives else None,
        drawn.top_logprobs.reshape(*shape, -1) if sizes.alternatives else None,
    )
