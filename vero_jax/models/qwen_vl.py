"""Qwen-VL: the vision tower and the language model as the one function that sampling and learning call."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vero_jax.models.config import ModelConfig
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.language import Attend, LanguageModel, TokenTable, visual_rows
from vero_jax.models.layers import LoRA, ParamFactory, Remat
from vero_jax.models.vision import ImageFeatures, VisionTower

__all__ = ["Attend", "ImageFeatures", "QwenVL"]


class QwenVL(nnx.Module):
    """Names, shapes and maths of the policy; made by `ModelDef.bind` from a plain tree of parameters."""

    def __init__(
        self, config: ModelConfig, *, dtype: Any, param_dtype: Any, remat: Remat, lora: LoRA | None, rngs: nnx.Rngs
    ) -> None:
        make = ParamFactory(rngs, param_dtype)
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.vision = None if config.vision is None else VisionTower(make, config.vision)
        self.language = LanguageModel(dataclasses.replace(make, lora=lora), config.text)
        self.head = None if config.tie_word_embeddings else TokenTable(make, config.text)

    def encode_images(self, vision: VisionInputs) -> ImageFeatures:
        """Merged visual tokens and DeepStack features of the packed images of each row, in the order of the patches."""
        if self.vision is None:
            raise ValueError(f"a {self.config.model_type} has no vision tower")
        return self.vision(vision, self.dtype, remat=self.remat)

    def embed(
        self,
        token_ids: Int[Array, "B T"],
        features: ImageFeatures | None = None,
        image_index: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Token embeddings, with merged visual token image_index[b, t] of row b in place where that is >= 0.

        A batch without images still has a gradient of zero, not none, for the vision tower.
        """
        x = jnp.take(self.language.embed.embedding[...], token_ids, axis=0, mode="clip").astype(self.dtype)
        if features is None or image_index is None:
            return x
        return visual_rows(features.embeds.astype(self.dtype), image_index, x)

    def decode(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T 3"],
        attend: Attend,
        cache: Any = None,
        features: ImageFeatures | None = None,
        image_index: Int[Array, "B T"] | None = None,
        real: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The language model on embedded tokens.

        Args:
            positions: rotary positions on the axes (time, height, width).
            attend: the only place that knows about masks and caches; see `language.Attend`.
            cache: pytree with a leading layer axis on every leaf, or None.
            features, image_index: as in `embed`; needed wherever x holds visual tokens.
            real: tokens whose hidden states somebody reads, others being padding; None: all.

        Returns:
            hidden states after the final norm, and `attend`'s second outputs stacked over the layers.
        """
        deepstack = None if features is None else features.deepstack
        return self.language(x, positions, attend, cache, deepstack, image_index, real=real, remat=self.remat)

    def head_weight(self) -> Float[Array, "V D"]:
        """The output head, in the parameters' own type: the token embeddings themselves when the two are tied."""
        table = self.language.embed if self.head is None else self.head
        return table.embedding[...]
