"""A mixture of experts in place of an MLP: every token goes to its best k experts, none is dropped.

One device computes all experts here; where `attention.on_mesh` says that there are several, `expert_parallel` does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.models.config import TextConfig
from vero_jax.models.expert_parallel import INWARDS, OUTWARDS, experts_on_mesh
from vero_jax.models.layers import Linear, ParamFactory, keep, rounded_once


def route(logits: Float32[Array, "n E"], experts_per_token: int) -> tuple[Float32[Array, "n k"], Int32[Array, "n k"]]:
    """Weights and numbers of each token's experts, the best first.

    A softmax over all experts, of which the k largest are kept and divided by their sum (Qwen3-MoE; Yang et al. 2025,
    arXiv:2505.09388).
    """
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts_per_token)
    return weights / weights.sum(axis=-1, keepdims=True), chosen


class SparseMLP(nnx.Module):
    """SwiGLU experts behind a linear router, without shared expert, capacity limit or auxiliary loss."""

    def __init__(self, make: ParamFactory, config: TextConfig, gain: float) -> None:
        count, width, ffn = config.num_experts, config.hidden_size, config.expert_ffn_size
        self.router = Linear(make, (width, count), ("embed", "experts"), bias=False)
        self.gate = make.normal((count, width, ffn), INWARDS, width**-0.5)
        self.up = make.normal((count, width, ffn), INWARDS, width**-0.5)
        self.down = make.normal((count, ffn, width), OUTWARDS, gain * ffn**-0.5)
        self.experts_per_token = config.experts_per_token

    def __call__(self, x: Float[Array, "B T D"], real: Bool[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """What the experts make of x. On several devices, tokens that are not `real` are left out and get zeros."""
        tokens = x.reshape(-1, x.shape[-1])
        # Accumulated and kept in float32: a rounded logit flips experts whose probabilities are close.
        kernel = self.router.kernel[...].astype(x.dtype)
        weights, chosen = route(jnp.matmul(tokens, kernel, preferred_element_type=jnp.float32), self.experts_per_token)
        # The weights are rounded to the activations' type, as the model was trained, and their sum is not.
        weights = weights.astype(x.dtype).astype(jnp.float32)
        mesh = jax.sharding.get_abstract_mesh()
        if not (mesh.empty or mesh.size == 1 or mesh.manual_axes):
            by_row = (*x.shape[:2], self.experts_per_token)
            experts = self.gate[...], self.up[...], self.down[...]
            weights, chosen = weights.reshape(by_row), chosen.reshape(by_row)
            if real is not None:
                # All tokens of padding are alike and would go to the same experts, whose devices would be late.
                chosen = jnp.where(real[..., None], chosen, len(experts[0]))
            return experts_on_mesh(x, weights, chosen, experts, mesh)
        # Tokens sorted by expert make one matrix product per expert, of as many rows as it has tokens.
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=self.gate[...].shape[0]).astype(jnp.int32)
        rows = jnp.take(tokens, order // self.experts_per_token, axis=0)
        gate, up = (keep(jax.lax.ragged_dot(rows, part[...].astype(x.dtype), sizes)) for part in (self.gate, self.up))
        hidden = rounded_once(jax.nn.silu, gate) * up
        out = keep(jax.lax.ragged_dot(hidden, self.down[...].astype(x.dtype), sizes))
        out = jnp.take(out, jnp.argsort(order), axis=0).reshape(*chosen.shape, -1)
        weighted = out.astype(jnp.float32) * weights[..., None]
        return weighted.sum(axis=1).astype(x.dtype).reshape(x.shape)
