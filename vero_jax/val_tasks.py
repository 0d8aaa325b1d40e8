"""VeroEval's benchmarks in the validation of a run: its own engine answers their questions, as the policy is now.

The primary process reads the data, scores and writes. All processes get the same prompts from it and ask the engine
for the same answers in the same order. The answers draw their random numbers from the seed and the question alone, so
that training's do not move, and two validations differ by the policy only.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain

from vero_jax.answering import prompts
from vero_jax.config import Config, SamplingConfig
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Benchmark, Row
from vero_jax.evaluation.in_training import (
    OVERALL,
    data_folder,
    mean_metric,
    score_metric,
    strict_metric,
    variant_for,
)
from vero_jax.evaluation.loaders import Broken, questions
from vero_jax.evaluation.prompts_of import question_text
from vero_jax.evaluation.registry import select
from vero_jax.evaluation.results import Result, Table, result, score_answers, table
from vero_jax.evaluation.rows import MissingData, open_rows
from vero_jax.evaluation.run_judge import RunJudge
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.variants import Variant, sampling_of
from vero_jax.parallel.distributed import Hosts
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.run_dir import RunDir
from vero_jax.sampling.engine import Engine
from vero_jax.types import Prompt, Response


@dataclasses.dataclass(frozen=True)
class TaskFigures:
    """What the benchmarks of one validation gave. None stands for "not run", never for 0."""

    scores: dict[str, float | None]
    """The reference's figure of each task, on the scale of the published table."""
    metrics: dict[str, float]
    text: str
    """For people, on one line."""


@dataclasses.dataclass
class _Asking:
    """A task while it is asked; the primary process alone has any."""

    benchmark: Benchmark
    questions: grain.MapDataset
    asked: dict[str, tuple[str, Row]] = dataclasses.field(default_factory=dict)
    """(text of the question, row) by id, in the order of the questions."""
    left_out: list[Broken] = dataclasses.field(default_factory=list)


def check_data(config: Config) -> None:
    """Whether the data of every benchmark in `trainer.val_tasks` is there; opens files, and reads no pictures.

    Raises:
      UserError: some is not; one sentence says which, and where it was looked for.
    """
    problems = {}
    for task in select(config.trainer.val_tasks):
        try:
            if not len(open_rows(task.source, data_folder(config.trainer))):
                problems[task.name] = "its data set is empty"
        except MissingData as error:
            problems[task.name] = str(error)
    if problems:
        name, problem = next(iter(problems.items()))
        others = f"; and so for {', '.join(list(problems)[1:])}" if len(problems) > 1 else ""
        raise UserError(
            f"trainer.val_tasks names {name}, whose data cannot be used ({problem}){others}: put the data sets into "
            "trainer.val_tasks_dir, or take these names out"
        )


def open_tasks(
    config: Config, processor: Processor, model_type: str, run: RunDir, say: Callable[[str], None], hosts: Hosts
) -> ValTasks | None:
    """What `trainer.val_tasks` asks for, or None where it asks for nothing; says what will be asked, and by what rules.

    Args:
      processor: as in training, with its system prompt and its limits.
      model_type: of the policy's config.json.

    Raises:
      UserError: the policy cannot see, or the run's judge can't be asked.
    """
    benchmarks = select(config.trainer.val_tasks)
    if not benchmarks:
        return None
    if processor.image_settings is None:
        raise UserError("trainer.val_tasks asks about pictures, which a text-only policy cannot see: leave it empty")
    tasks = ValTasks(config, benchmarks, processor, variant_for(config.trainer, model_type), run, say, hosts)
    hosts.agree(tasks.begin)
    return tasks


class ValTasks:
    """The benchmarks of a run's validations; made by `open_tasks`."""

    def __init__(
        self,
        config: Config,
        benchmarks: Sequence[Benchmark],
        processor: Processor,
        variant: Variant,
        run: RunDir,
        say: Callable[[str], None],
        hosts: Hosts,
    ) -> None:
        self.benchmarks, self.variant = tuple(benchmarks), variant
        self._config, self._processor, self._run, self._say, self._hosts = config, processor, run, say, hosts
        self._judge: RunJudge | None = None
        if config.reward.judge != "none" and any(task.judge is not None for task in benchmarks):
            self._judge = RunJudge(config.reward.judge_server, run.validation / "veroeval_judgements.jsonl", say)

    def new_tokens(self, benchmark: Benchmark) -> int:
        """The limit of an answer."""
        return min(self.variant.tokens(benchmark.name), self._config.rollout.max_response_length)

    def sampling(self, benchmark: Benchmark) -> SamplingConfig:
        """How its answers are drawn."""
        return sampling_of(self.variant, benchmark.name)

    def begin(self) -> None:
        """Says what will be asked, and tries the judge; the primary process calls it when the run begins.

        Raises:
          UserError: the judge can't be asked.
        """
        count = sum(len(task.questions) for task in self._opened())
        names = ", ".join(task.name for task in self.benchmarks)
        self._say(f"validation asks {count:,} questions of {names} (VeroEval, variant {self.variant.name})")
        judged = ", ".join(task.name for task in self.benchmarks if task.judge is not None)
        if self._judge is not None:
            self._judge.check()
            self._say(f"the answers to {judged} are judged by the run's judge")
        elif judged:
            self._say(f"the answers to {judged} need a judge, which this run lacks: they are counted as unjudged")

    def measure(self, engine: Engine, params: Any, *, name: str, step: int) -> TaskFigures:
        """Asks all questions, and writes the answers of each task to `validation/<name>_<task>.jsonl`.

        All processes call it at the same place.

        Args:
          name: of the validation: "before", "step_000050", ...
          step: for the files only.
        """
        hosts = self._hosts
        tasks = self._opened() if hosts.primary else []
        batches = self._batches(tasks, engine)
        answers: dict[str, Response] = {}
        while True:
            batch = hosts.agree(lambda: next(batches, None))
            if batch is None:
                break
            limit, sampling, asked = batch
            sampled = engine.generate(
                params,
                asked,
                n=1,
                sampling=sampling,
                seed=self._config.seed,
                step=0,
                max_new_tokens=limit,
            )
            answers |= {asked[index].example.id: group.responses[0] for index, group in sampled}
        return hosts.agree(lambda: self._scored(tasks, answers, name, step))

    def _opened(self) -> list[_Asking]:
        """The data sets; questions are read when they are asked for. One that has gone since the start is said."""
        root, limit = data_folder(self._config.trainer), self._config.trainer.val_tasks_limit or None
        opened = []
        for task in self.benchmarks:
            try:
                opened.append(_Asking(task, questions(task, root, self.variant, limit=limit)))
            except MissingData as error:  # no reason to end a run that has gone on for days
                self._say(f"{task.name} is not asked, its data is gone: {error}")
        return opened

    def _batches(self, tasks: Sequence[_Asking], engine: Engine) -> Iterator[tuple[int, SamplingConfig, list[Prompt]]]:
        """(limit of an answer, how it is drawn, prompts) of up to `trainer.val_batch` questions, whatever their tasks.

        What can't be asked is put into `left_out` of its task.
        """

        def of(task: _Asking) -> Iterator[Prompt]:
            for found in prompts(task.questions, self._processor, engine):
                if isinstance(found, Broken):
                    task.left_out.append(found)
                else:
                    question, prompt = found
                    task.asked[question.id] = (question_text(question.messages), question.row)
                    yield prompt

        def drawn(task: _Asking) -> tuple[int, SamplingConfig]:
            return self.new_tokens(task.benchmark), self.sampling(task.benchmark)

        # Stable, so in order otherwise.
        ordered = sorted(tasks, key=lambda task: (-drawn(task)[0], drawn(task)[1].presence_penalty))
        for (limit, sampling), same in itertools.groupby(ordered, key=drawn):
            waiting = itertools.chain.from_iterable(map(of, same))
            while batch := list(itertools.islice(waiting, self._config.trainer.val_batch)):
                yield limit, sampling, batch

    def _scored(self, tasks: Sequence[_Asking], answers: Mapping[str, Response], name: str, step: int) -> TaskFigures:
        """The figures of all tasks; writes their files."""
        results = []
        for task in tasks:
            scores = self._scores(task, answers)
            left_out = Counter(item.reason for item in task.left_out)
            results.append(result(task.benchmark, list(scores.values()), left_out))
            records = (
                {"task": task.benchmark.name, "step": step, **record} for record in self._records(task, answers, scores)
            )
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            # Rows may hold halves of surrogate pairs, which no file takes.
            lines = lines.encode("utf-8", "replace").decode("utf-8")
            atomic_write(self._run.validation_file(f"{name}_{task.benchmark.name}"), lines)
        return TaskFigures(
            {found.benchmark.name: found.score for found in results},
            _metrics(results, table(results)),
            ", ".join(map(_in_words, results)),
        )

    def _scores(self, task: _Asking, answers: Mapping[str, Response]) -> dict[str, Score]:
        """Scores by id, of those questions that have one of their own."""
        benchmark, belongs_to = task.benchmark, task.benchmark.belongs_to
        rows = [row for _, row in task.asked.values()]
        completions = [answers[id].text for id in task.asked]
        ask = None
        if benchmark.judge is not None and self._judge is not None:
            wanted: list[str] = []
            # One pass to see what is asked, so that the judge can be asked many things at a time.
            score_answers(benchmark, rows, completions, self.variant, wanted.append)
            ask = self._judge.replies(wanted, benchmark.judge.max_new_tokens).get
        scores = score_answers(benchmark, rows, completions, self.variant, ask)
        own = [id for id, (_, row) in task.asked.items() if belongs_to is None or belongs_to(row) is None]
        return dict(zip(own, scores, strict=True))

    def _records(
        self, task: _Asking, answers: Mapping[str, Response], scores: Mapping[str, Score]
    ) -> Iterator[dict[str, Any]]:
        elsewhere = Score(None, None, missing="belongs to another question")
        for id, (text, _) in task.asked.items():
            response, score = answers[id], scores.get(id, elsewhere)
            yield {
                "id": id,
                "input": text,
                "output": response.text,
                "extracted": task.benchmark.answer(response.text, self.variant).text,
                "prediction": score.prediction,
                "score": score.value,
                "strict": score.strict,
                "group": score.group,
                "missing": score.missing or None,
                "stop_reason": response.stop_reason,
                "response_length": len(response.token_ids),
            }
        for item in task.left_out:
            yield {"id": item.id, "missing": item.reason, "detail": item.detail}


def _metrics(results: Sequence[Result], means: Table) -> dict[str, float]:
    """`val/<task>/...` of each task, `val/veroeval/...` of the categories and of all; what was not run has none."""
    found: dict[str, float | None] = {}
    for one in results:
        found[score_metric(one.benchmark)] = one.score
        found[strict_metric(one.benchmark)] = one.strict
        found[f"val/{one.benchmark.name}/unjudged"] = float(one.unjudged)
        found[f"val/{one.benchmark.name}/left_out"] = float(sum(one.left_out.values()))
    found |= {mean_metric(category): pair[0] for category, pair in means.categories.items()}
    found[mean_metric(OVERALL)] = means.overall[0]
    return {name: value for name, value in found.items() if value is not None}


def _in_words(found: Result) -> str:
    """Such as "chartqa 61.3 (2 left out: image not readable)"."""
    figure = found.reason if found.score is None else f"{found.score:.1f}"
    notes = [f"{found.unjudged} unjudged"] if found.unjudged else []
    notes += [f"{count} left out: {reason}" for reason, count in found.left_out.items()]
    return f"{found.benchmark.name} {figure}" + (f" ({', '.join(notes)})" if notes else "")
