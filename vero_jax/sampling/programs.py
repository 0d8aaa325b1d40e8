"""The device programs of sampling: prefill once per group, decode many tokens per call, and make room for more.

All are pure functions over plain trees; `sampling.engine` jits them. Axes as in `sampling.state`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from vero_jax.models.attention import decode_attention, shared_prefix_attention
from vero_jax.models.head import choose_tokens
from vero_jax.models.inputs import TokenInputs, VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.sampling.state import Choice, Decoding, Prefilled


@dataclasses.dataclass(frozen=True)
class Programs:
    """The settings that the programs are compiled with.

    Attributes:
      stop_ids: ids that end a response.
      banned_ids: ids that are never drawn.
      pad_id: what finished responses draw.
      attention_block: tokens per block of attention.
      vocab_block: vocabulary entries per block of the head.
    """

    model_def: ModelDef
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    pad_id: int
    attention_block: int
    vocab_block: int

    def prefill(
        self,
        params: Any,
        vision: VisionInputs | None,
        tokens: TokenInputs,
        lengths: Int32[Array, "G"],
        next_positions: Int32[Array, "G"],
        real: Int32[Array, "G"],
        choice: Choice,
        *,
        room: int,
        truncated: bool,
    ) -> tuple[Prefilled, Decoding]:
        """Images and prompts, once per group, and the first token of every sample.

        Args:
          tokens: one prompt per row, padded on the right.
          real: 1 for groups, 0 for padding, whose samples count as finished.
          room: R, the response tokens for which there is space.
          truncated: whether top-k, top-p or min-p is on.
        """
        model = self.model_def.bind(params)
        features = None if vision is None else model.encode_images(vision)
        image_index = None if vision is None else tokens.image_index
        x = model.embed(tokens.token_ids, features, image_index)

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, tuple[Array, Array]]:
            out = shared_prefix_attention(q, k, v, tokens.groups, tokens.branches, self.attention_block)
            return out, (k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))

        hidden, (k, v) = model.decode(x, tokens.positions, attend, None, features, image_index)
        final = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        G, N = choice.keys.shape[:2]
        hidden = jnp.broadcast_to(final, (G, N, final.shape[-1]))
        first, logprobs = self._choose(model.head_weight(), hidden, choice, jnp.int32(0), truncated)
        L, _, K, _, C = k.shape
        done = self._stops(first) | (real == 0)[:, None]
        state = Decoding(
            k=jnp.zeros((L, G, N, K, room, C), k.dtype),
            v=jnp.zeros((L, G, N, K, room, C), v.dtype),
            tokens=jnp.full((G, N, room), self.pad_id, jnp.int32).at[..., 0].set(first),
            logprobs=jnp.zeros((G, N, room), jnp.float32).at[..., 0].set(logprobs),
            last=first,
            done=done,
            count=jnp.int32(1),
        )
        return Prefilled(k, v, lengths, next_positions), state

    def decode(
        self,
        params: Any,
        prompt: Prefilled,
        state: Decoding,
        limit: Int32[Array, ""],
        choice: Choice,
        *,
        truncated: bool,
    ) -> Decoding:
        """Draws tokens until there are `limit` of each response, or all responses have ended."""
        model = self.model_def.bind(params)
        head = model.head_weight()

        def unfinished(state: Decoding) -> Array:
            return (state.count < limit) & ~state.done.all()

        def step(state: Decoding) -> Decoding:
            past = state.count - 1  # tokens whose keys are stored; `last` is the one after them
            positions = jnp.broadcast_to((prompt.next_positions + past)[:, None, None], (*state.last.shape, 3))

            def attend(q: Array, k: Array, v: Array, cache: Any) -> tuple[Array, tuple[Array, Array]]:
                prompt_k, prompt_v, past_k, past_v = cache
                return decode_attention(q, k, v, prompt_k, prompt_v, prompt.lengths, past_k, past_v, past), (k, v)

            # Groups are the batch and samples the sequence: no sample sees another, `attend` makes sure of that.
            cache = (prompt.k, prompt.v, state.k, state.v)
            hidden, (k, v) = model.decode(model.embed(state.last), positions, attend, cache)
            drawn, logprobs = self._choose(head, hidden, choice, state.count, truncated)
            drawn = jnp.where(state.done, self.pad_id, drawn)
            logprobs = jnp.where(state.done, 0.0, logprobs)
            return Decoding(
                k=jax.lax.dynamic_update_slice_in_dim(state.k, k[..., None, :], past, axis=4),
                v=jax.lax.dynamic_update_slice_in_dim(state.v, v[..., None, :], past, axis=4),
                tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, drawn[..., None], state.count, axis=2),
                logprobs=jax.lax.dynamic_update_slice_in_dim(state.logprobs, logprobs[..., None], state.count, axis=2),
                last=drawn,
                done=state.done | self._stops(drawn),
                count=state.count + 1,
            )

        return jax.lax.while_loop(unfinished, step, state)

    def grow(self, state: Decoding, *, room: int) -> Decoding:
        """The same state with space for `room` response tokens."""
        more = room - state.tokens.shape[-1]
        kv = ((0, 0),) * 4 + ((0, more), (0, 0))
        rows = ((0, 0), (0, 0), (0, more))
        return dataclasses.replace(
            state,
            k=jnp.pad(state.k, kv),
            v=jnp.pad(state.v, kv),
            tokens=jnp.pad(state.tokens, rows, constant_values=self.pad_id),
            logprobs=jnp.pad(state.logprobs, rows),
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

    def _choose(
        self, head: Array, hidden: Float[Array, "G N D"], choice: Choice, position: Int32[Array, ""], truncated: bool
    ) -> tuple[Int32[Array, "G N"], Float32[Array, "G N"]]:
        G, N, D = hidden.shape
        banned = jnp.zeros(head.shape[0], bool)
        if self.banned_ids:
            banned = banned.at[jnp.asarray(self.banned_ids)].set(True)
        ids, logprobs = choose_tokens(
            hidden.reshape(G * N, D),
            head,
            choice.keys.reshape(G * N, 2),
            position,
            banned,
            temperature=choice.temperature,
            block=self.vocab_block,
            truncation=(choice.top_k, choice.top_p, choice.min_p) if truncated else None,
        )
        return ids.reshape(G, N), logprobs.reshape(G, N)

    def _stops(self, ids: Int32[Array, "G N"]) -> Array:
        return (ids[..., None] == jnp.asarray(self.stop_ids, jnp.int32)).any(-1)
