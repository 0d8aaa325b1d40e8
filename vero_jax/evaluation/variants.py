"""The decoding variants of VeroEval. A variant is more than sampling: it also sets coordinates and prompts."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from vero_jax.config import SamplingConfig
from vero_jax.errors import UserError
from vero_jax.evaluation.scorers.geometry import Coordinates


class AnswerKind(enum.Enum):
    """The form of a benchmark's answers, which decides what a variant adds to its questions."""

    LETTER = "letter"
    NUMBER = "number"
    SHORT = "short"
    """A word, a number or a phrase."""
    FORMULA = "formula"
    LONG = "long"
    PLACE = "place"
    """A point or a box, whose format the question states itself."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """How answers are drawn, what is added to questions, and what coordinates mean."""

    name: str
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    presence_penalty: float = 0.0
    short_max_new_tokens: int = 0
    """Instead of `max_new_tokens` for answers that are a letter, a number, a word or a place; 0: the same."""
    coordinates: Coordinates = Coordinates.PIXELS
    instructions: Mapping[AnswerKind, str] = dataclasses.field(default_factory=dict)
    """What is added after a question, by the form of its answer."""
    tool_points: bool = False
    """Points are asked for, and read, as calls of a tool that uses the computer."""
    external_knowledge: bool = False
    """Questions of fact allow for what the picture does not show."""
    min_image_side: int = 28
    """Smaller pictures are enlarged until their short side has this many pixels; 0: never."""

    def tokens(self, kind: AnswerKind) -> int:
        """New tokens for an answer of this form."""
        long = kind in (AnswerKind.LONG, AnswerKind.FORMULA)
        return self.max_new_tokens if long or not self.short_max_new_tokens else self.short_max_new_tokens


def sampling_of(variant: Variant) -> SamplingConfig:
    """How the engine draws the answers of a variant."""
    return SamplingConfig(
        temperature=variant.temperature,
        top_p=variant.top_p,
        top_k=variant.top_k or -1,
        presence_penalty=variant.presence_penalty,
    )


SAMPLES = 1
SEED = 1
CONTEXT = 32_768
"""Of every variant: one answer per question, this seed, tokens of question and answer together."""

_BRIEF = {
    AnswerKind.LETTER: "\nAnswer with the option's letter only.",
    AnswerKind.NUMBER: "\nAnswer with a number only.",
    AnswerKind.SHORT: "\nAnswer with a single word or phrase.",
}
_BOXED = dict.fromkeys(
    (AnswerKind.LETTER, AnswerKind.NUMBER, AnswerKind.SHORT, AnswerKind.FORMULA),
    "\nPut your final answer in \\boxed{}.",
)

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("reasoning", 16_384, temperature=0.6, top_p=0.95),
        Variant(
            "reasoning_samplingq3",
            16_384,
            temperature=1.0,
            top_p=0.95,
            top_k=20,
            presence_penalty=1.5,
            coordinates=Coordinates.THOUSANDTHS,
            external_knowledge=True,
        ),
        Variant(
            "qwen3_thinking_zs",
            16_384,
            temperature=1.0,
            top_p=0.95,
            top_k=20,
            presence_penalty=1.5,
            coordinates=Coordinates.THOUSANDTHS,
            instructions=_BRIEF,
            tool_points=True,
        ),
        Variant(
            "qwen3_zs",
            16_384,
            short_max_new_tokens=1_024,
            temperature=1.0,
            top_k=40,
            presence_penalty=2.0,
            coordinates=Coordinates.THOUSANDTHS,
            instructions=_BRIEF,
            tool_points=True,
        ),
        Variant("qwen25_zs", 16_384, short_max_new_tokens=1_024, temperature=0.0, instructions=_BRIEF),
        Variant("mimo_zs", 32_768, temperature=0.0, instructions=_BOXED, min_image_side=0),
    )
}
"""By name. For Vero on MiMo and Qwen2.5 bases "reasoning", on Qwen3 bases "reasoning_samplingq3"; others: baselines."""


def usual_variant(model_type: str) -> str:
    """The variant that is meant for a model of ours, by the `model_type` of its config.json."""
    return "reasoning_samplingq3" if model_type.startswith("qwen3_vl") else "reasoning"


def variant(name: str) -> Variant:
    """The variant of this name.

    Raises:
      UserError: there is none.
    """
    try:
        return VARIANTS[name]
    except KeyError:
        raise UserError(f"no evaluation variant is called {name!r}; there are {', '.join(VARIANTS)}") from None
