"""Has a policy answer the questions of benchmarks; every answer is on disk before the next one is waited for.

Questions of all benchmarks stand in one line for the engine's lanes, so that no benchmark waits for the longest answer
of another. Pictures are read, and prompts made, by Grain's threads while the device works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from vero_jax.data.chat import PromptError
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.loaders import Broken, Question
from vero_jax.evaluation.prompts_of import plain_row, prompt_of, question_text
from vero_jax.evaluation.variants import Variant, sampling_of
from vero_jax.rewards.replies import ReplyFile
from vero_jax.runtime.progress import Progress
from vero_jax.sampling.engine import Engine
from vero_jax.sampling.inputs import fitting, sample_keys
from vero_jax.sampling.schedule import Request
from vero_jax.sampling.stream import groups
from vero_jax.types import Group, Prompt

READ_THREADS, READ_AHEAD = 4, 16
"""Threads that read pictures and make prompts, and the prompts of a benchmark that they hold ready."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The questions of a benchmark that are to be asked, and the file for their answers."""

    benchmark: Benchmark
    questions: grain.MapDataset
    file: ReplyFile[bool]


@dataclasses.dataclass(frozen=True)
class _Asked:
    work: Work
    question: Question


def answer_all(
    engine: Engine,
    params: Any,
    processor: Processor,
    work: Sequence[Work],
    folder: ResultsFolder,
    variant: Variant,
    *,
    samples: int,
    seed: int,
    context: int,
    most_tokens: int,
    progress: Progress,
    answered: Callable[[Benchmark, str, Mapping[str, Any]], None],
) -> None:
    """Asks all questions; what can't be asked is recorded with its reason.

    Args:
      samples: answers to each question.
      seed: with the question's id and the sample's number, what the random numbers depend on.
      context: most tokens of a question and its answer together.
      most_tokens: most tokens of an answer, where the variant allows more.
      answered: told of each record that was written: the benchmark, the question's id, the record.
    """
    names = [each.benchmark.name for each in work]
    samplings = {name: sampling_of(variant, name) for name in names}
    limits = {name: min(most_tokens, variant.tokens(name)) for name in names}
    session = engine.session(
        params,
        n=samples,
        max_new_tokens=max(limits.values()),
        truncated=any(sampling.truncates for sampling in samplings.values()),
        penalties=any(sampling.has_penalties for sampling in samplings.values()),
        resend=True,
    )

    def finished(each: Work, name: str, record: Mapping[str, Any]) -> None:
        record = {"key": name, **record}
        each.file.add(record)
        answered(each.benchmark, name, record)

    def requests() -> Iterator[tuple[_Asked, Request]]:
        for each in work:
            for item in prompts(each.questions, processor, engine):
                if isinstance(item, Broken):
                    finished(each, item.id, {"missing": item.reason, "detail": item.detail})
                    progress.step()
                    continue
                question, prompt = item
                name = each.benchmark.name
                limit = min(limits[name], context - len(prompt.token_ids))
                keys = sample_keys([prompt], samples, seed, 0)[0]
                yield _Asked(each, question), Request(prompt, keys, samplings[name], np.full(samples, limit, np.int32))

    # As many as the lanes take, and as many again that wait.
    ahead = max(2, 2 * engine.rollout.concurrent_responses // samples)
    stream = groups(
        session, requests(), decode=engine.decode_text, ahead=ahead, between_rounds=lambda: engine.between_rounds()
    )
    begun, drawn = time.monotonic(), 0
    with contextlib.closing(stream):
        for asked, group in stream:
            question = asked.question
            finished(
                asked.work,
                question.id,
                {
                    "images": [folder.keep_image(data) for data in question.images],
                    "prompt": question_text(question.messages),
                    "row": plain_row(question.row),
                    "responses": _responses(group),
                },
            )
            drawn += sum(len(response.token_ids) for response in group.responses)
            progress.step({"tokens/s": drawn / (time.monotonic() - begun)})


def prompts(
    questions: grain.MapDataset, processor: Processor, engine: Engine
) -> Iterator[tuple[Question, Prompt] | Broken]:
    """The questions of a benchmark with their prompts, read ahead; what the engine can't be asked is broken, too."""

    def prepared(item: Question | Broken) -> tuple[Question, Prompt] | Broken:
        if isinstance(item, Broken):
            return item
        try:
            prompt = prompt_of(processor, item)
        except PromptError as error:
            return Broken(item.id, error.reason, error.detail)
        unfit = fitting([prompt], engine.buckets, engine.patch_layout.merge_size)[1]
        if unfit:
            return Broken(item.id, "prompt too long", f"more {next(iter(unfit))} than the engine has room for")
        return item, prompt

    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    found: Iterator[Any] = iter(questions.map(prepared).to_iter_dataset(options))
    return found


def _responses(group: Group) -> list[dict[str, Any]]:
    return [
        {"text": response.text, "tokens": len(response.token_ids), "stop_reason": response.stop_reason}
        for response in group.responses
    ]


def check_sizes(samples: int, most_tokens: int, context: int, limit: int | None, lanes: int | None) -> None:
    """Refuses sizes that make no sense.

    Raises:
      UserError: the sentence names the option.
    """
    if context < 2:
        raise UserError(f"--context {context} leaves no room for a question and an answer")
    sizes = (("--samples", samples), ("--max-new-tokens", most_tokens), ("--limit", limit), ("--lanes", lanes))
    for name, value in sizes:
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be at least 1")
