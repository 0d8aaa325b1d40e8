"""What a benchmark is: a source of rows, a prompt, the extraction of answers, a scorer or a judge, an aggregator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from vero_jax.evaluation.aggregation import Aggregator, mean
from vero_jax.evaluation.extraction import Mode, answer_place, final_answer
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.variants import AnswerKind, Variant
from vero_jax.rewards import math_text

Row: TypeAlias = Mapping[str, Any]
"""One question's fields by the names of its data set, without pictures."""
Message: TypeAlias = Mapping[str, Any]

CATEGORIES = (
    "Chart & OCR",
    "STEM",
    "Spatial & Action",
    "Knowledge & Recognition",
    "Grounding, Counting & Search",
    "Captioning & IF",
)
SECONDS = 2.0
"""Processor time for the score of one answer; an answer that takes longer is wrong."""
_SHOWN = "The picture that this is about comes before this text; there may be several."
_NOT_SHOWN = "You do not see the picture that this is about."


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the rows of a benchmark come from."""

    repo: str
    """Id on the hub; the local folder has the same layout."""
    split: str
    configs: tuple[str, ...] = ()
    """Folders of the data set that hold the rows, all of them together; none: the whole data set is one."""
    images: Callable[[Row], Sequence[Any]] | None = None
    """The pictures of a row as stored; by default its `image`, or `images`, or image_1, image_2, ..."""
    base64: bool = False
    """Pictures are base64 text."""
    annotations: str = ""
    """Rows are in the JSON files of this folder instead, and name their pictures."""
    expand: Callable[[Row], Sequence[Row]] | None = None
    """Makes the questions of a row, in the fields that prompt and scorer read; by default the row is one."""
    compose: Callable[[Sequence[bytes]], Sequence[bytes]] | None = None
    """Makes the pictures that the model sees of the stored ones."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion with what was extracted from it."""

    completion: str
    whole: str
    """The place of the answer, with its boxes."""
    text: str
    """The answer as the benchmark's mode extracts it."""
    variant: Variant
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Extracted answers to questions that go with this one, by name; only MMIFEval has them."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """How a judge model is asked about an answer, and how its replies are read."""

    prompts: Callable[[Answer, Row], Sequence[str]]
    """The requests about one answer, each a whole user message; possibly none."""
    read: Callable[[Sequence[str | None], Answer, Row], Score]
    """The score in the replies, in the order of the requests; None stands for a request that failed."""
    max_new_tokens: int = 2_048
    pictures: bool = False
    """A judge that can see is shown the question's pictures, as in the reference."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One task. `benchmarks/` has a file for each; `registry.py` finds them there."""

    name: str
    row: str
    """The row of the published table that it belongs to; three tasks share one."""
    category: str
    source: Source
    prompt: Callable[[Row, Variant], str | Sequence[Message]]
    """The text after the pictures, or a whole conversation with bare image parts."""
    kind: AnswerKind
    extraction: Mode = Mode.LAST_BOX
    scorer: Callable[[Answer, Row], Score] | None = None
    judge: Judge | None = None
    aggregate: Aggregator = mean
    scale: float = 100.0
    """From the aggregator's figure to the published one."""
    zero: float = 0.0
    """The aggregator's figure that is published as 0."""
    states_format: bool = False
    """The question states the answer's format itself; a variant adds nothing."""
    belongs_to: Callable[[Row], tuple[str, str] | None] | None = None
    """(id of another row, name) for a row whose answer is no question of its own, but goes to that row's `others`."""

    def published(self, figure: float) -> float:
        """An aggregator's figure, or a single score, on the scale of the published table (0 to 100)."""
        return (figure - self.zero) * self.scale

    @property
    def half_marks(self) -> float:
        """Half of the full marks, on the scale of the scores."""
        return self.zero + 50.0 / self.scale

    def messages(self, row: Row, variant: Variant, image_count: int = 1) -> list[dict[str, Any]]:
        """The conversation for a row: pictures first, then the text, with what the variant adds."""
        prompt = self.prompt(row, variant)
        if not isinstance(prompt, str):
            return [dict(message) for message in prompt]
        text = prompt if self.states_format else prompt + variant.instruction(self.name, self.kind)
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(image_count)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def answer(self, completion: Any, variant: Variant, others: Mapping[str, str] | None = None) -> Answer:
        """Extracts the answer from a completion."""
        text = "" if completion is None else str(completion)
        return Answer(text, answer_place(text), final_answer(text, self.extraction), variant, others or {})

    def requests(self, answer: Answer, row: Row, *, shown: bool = False) -> list[str]:
        """What a judge is asked about an answer; nothing where there is no judge, or the row lacks what that needs.

        Args:
          shown: the judge gets the question's pictures before each request, if it is one who should.
        """
        if self.judge is None:
            return []
        try:
            prompts = list(self.judge.prompts(answer, row))
        except (LookupError, TypeError, ValueError, AttributeError):
            return []  # `score` says why
        if not self.judge.pictures:
            return prompts
        return [f"{_SHOWN if shown else _NOT_SHOWN} {prompt}" for prompt in prompts]

    def score(self, answer: Answer, row: Row, replies: Sequence[str | None] | None = None) -> Score:
        """The score of an answer.

        Args:
          replies: the judge's, in the order of `judge.prompts`; None where no judge was asked.

        Returns:
          a score; without a figure, and with the reason, where it was not judged or the row lacks what scoring needs.
        """
        try:
            with math_text.time_limit(SECONDS):
                if self.judge is not None:
                    wanted = self.judge.prompts(answer, row)
                    if replies is None and wanted:
                        return UNJUDGED
                    return self.judge.read(list(replies or ()), answer, row)
                assert self.scorer is not None, self.name
                return self.scorer(answer, row)
        except math_text.OutOfTime:
            return Score(0.0, 0.0, missing="", prediction="(out of time)")
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            return Score(None, None, missing=f"row not usable ({type(error).__name__}: {error})")
