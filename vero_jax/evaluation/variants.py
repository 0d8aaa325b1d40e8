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
    task_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Instead of `max_new_tokens`, by task."""
    task_penalties: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Instead of `presence_penalty`, by task."""
    coordinates: Coordinates = Coordinates.PIXELS
    point_coordinates: Coordinates | None = None
    """Of points, where they differ from those of boxes."""
    states_coordinates: bool = False
    """Questions for places say what their coordinates are."""
    instructions: Mapping[AnswerKind, str] = dataclasses.field(default_factory=dict)
    """What is added after a question, by the form of its answer."""
    task_instructions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The same by task; goes before."""
    tool_points: bool = False
    """Points are asked for, and read, as calls of a tool that uses the computer."""
    external_knowledge: bool = False
    """Questions of fact allow for what the picture does not show."""
    min_image_side: int = 28
    """Smaller pictures are enlarged until their short side has this many pixels; 0: never."""

    def tokens(self, task: str) -> int:
        """New tokens for an answer to a task."""
        return self.task_tokens.get(task, self.max_new_tokens)

    def instruction(self, task: str, kind: AnswerKind) -> str:
        """What is added after a question of a task, whose answers have this form."""
        return self.task_instructions.get(task, self.instructions.get(kind, ""))

    @property
    def points(self) -> Coordinates:
        """The coordinates of points; `coordinates` are those of boxes."""
        return self.coordinates if self.point_coordinates is None else self.point_coordinates

    def about_coordinates(self, coordinates: Coordinates) -> str:
        """What a question for a place says of them, from a blank on; nothing where the variant does not."""
        return f" {_SCALES[coordinates]} {_NOTHING_ELSE}" if self.states_coordinates else ""


def sampling_of(variant: Variant, task: str) -> SamplingConfig:
    """How the engine draws the answers of a variant to a task."""
    return SamplingConfig(
        temperature=variant.temperature,
        top_p=variant.top_p,
        top_k=variant.top_k or -1,
        presence_penalty=variant.task_penalties.get(task, variant.presence_penalty),
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
_BOX = "\nPut your final answer in \\boxed{}."
_FREE = dict.fromkeys(("charxiv", "fvqa", "simplevqa_en"), "")
"""Judges read these answers in whatever form."""
_BRIEF_TASKS = _FREE | {
    "game_qa_lite": "\nAnswer with the option's letter or number only.",
    "realworldqa": _BRIEF[AnswerKind.LETTER],
}
_QWEN3_TASKS = _BRIEF_TASKS | {"mathvision_test": "\nThink step by step." + _BOX}
_MIMO_TASKS = _BRIEF_TASKS | dict.fromkeys(
    (
        "countbenchqa",
        "infovqa_val",
        "mathvision_test",
        "mathvista_testmini",
        "mmmu_pro_standard",
        "mmmu_pro_vision",
        "vstar_bench",
    ),
    _BOX,
)
_SCALES = {
    Coordinates.PIXELS: "Coordinates are in pixels of the image.",
    Coordinates.THOUSANDTHS: "Coordinates go from 0 to 1000 across the width and down the height of the image.",
    Coordinates.FRACTIONS: "Coordinates go from 0 to 1 across the width and down the height of the image.",
}
_NOTHING_ELSE = "Output the JSON and nothing else."
_CHARTS = ("chartmuseum", "chartqa", "chartqa_pro", "evochart")
_COUNTS = ("countbenchqa", "countqa")
_CHOICES = ("blink", "cv_bench", "embspatial", "erqa")
_SEARCHES = ("visual_probe_easy", "visual_probe_medium", "visual_probe_hard")
_PLACES = ("aerialvg_bbox", "screenspot", "screenspotpro")

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
            states_coordinates=True,
            instructions=_BRIEF,
            task_instructions=_QWEN3_TASKS,
            tool_points=True,
        ),
        Variant(
            "qwen3_zs",
            16_384,
            temperature=1.0,
            top_k=40,
            presence_penalty=2.0,
            task_tokens=dict.fromkeys(
                (*_CHARTS, *_COUNTS, *_CHOICES, "fvqa", "infovqa_val", "mmifeval", "mmvetv2"), 1_024
            ),
            task_penalties=dict.fromkeys(("mia_bench", "mm_mt_bench", "mmifeval"), 1.5),
            coordinates=Coordinates.THOUSANDTHS,
            states_coordinates=True,
            instructions=_BRIEF,
            task_instructions=_QWEN3_TASKS,
            tool_points=True,
        ),
        Variant(
            "qwen25_zs",
            16_384,
            temperature=0.0,
            task_tokens={
                **dict.fromkeys((*_CHARTS, *_COUNTS), 16),
                "infovqa_val": 32,
                **dict.fromkeys((*_CHOICES, *_SEARCHES, *_PLACES), 1_024),
                **dict.fromkeys(("game_qa_lite", "mme_realworld_lite", "realworldqa", "vstar_bench"), 1_024),
                **dict.fromkeys(("mia_bench", "mmifeval"), 1_024),
                "mm_mt_bench": 4_096,
                "charxiv": 8_096,
            },
            states_coordinates=True,
            instructions=_BRIEF,
            task_instructions=_BRIEF_TASKS,
        ),
        Variant(
            "mimo_zs",
            32_768,
            temperature=0.0,
            point_coordinates=Coordinates.THOUSANDTHS,
            states_coordinates=True,
            instructions=_BRIEF,
            task_instructions=_MIMO_TASKS,
            min_image_side=0,
        ),
    )
}
"""By name. For Vero on MiMo and Qwen2.5 bases "reasoning", on Qwen3 bases "reasoning_samplingq3"; others: baselines.

Numbers are those of the reference's task files; what is asked is asked in our words. Where the reference has no file
for a task, the variant's own numbers hold.
"""


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
