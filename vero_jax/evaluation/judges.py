"""The judges of an evaluation: one that reads, and one that sees for the benchmarks that are about what one sees.

The paper's protocol has both: a text model for most, a vision-language model for MM-MT-Bench, MIA-Bench and MMIFEval.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Answer, Benchmark
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.judge_desk import WORDING, JudgeDesk, Request
from vero_jax.rewards.judge_server import Wording

TEXT, VISION = "judge", "vision_judge"
"""The judges' names in settings and in files, and as options with a hyphen."""
VISION_WORDING = dataclasses.replace(WORDING, setting="--vision-judge-{}", settings="the --vision-judge-... options")


@dataclasses.dataclass(frozen=True)
class Judges:
    """The desks of an evaluation by their names; an earlier run's judge is there to find its replies again."""

    desks: Mapping[str, JudgeDesk]
    given: frozenset[str]
    """Those that may be asked."""

    @classmethod
    def open(
        cls,
        given: Mapping[str, JudgeConfig | None],
        known: Mapping[str, Mapping[str, Any]],
        folder: ResultsFolder,
        say: Callable[[str], None],
        stack: contextlib.ExitStack,
    ) -> Judges:
        """The desks of a results folder; `stack` closes them.

        Args:
          given: the judges that may be asked.
          known: those that the folder's answers were judged by, as `described`.

        Raises:
          UserError: a file of replies or a key cannot be used.
        """
        desks = {}
        for name, wording in ((TEXT, WORDING), (VISION, VISION_WORDING)):
            before = known.get(name) or {}
            if given.get(name) or before:
                desks[name] = stack.enter_context(_desk(name, given.get(name), before, folder, say, wording))
        return cls(desks, frozenset(name for name in desks if given.get(name)))

    def of(self, benchmark: Benchmark) -> JudgeDesk | None:
        """The judge of a benchmark's answers."""
        return self.desks.get(self._name(benchmark))

    def asked_about(self, benchmark: Benchmark) -> JudgeDesk | None:
        """The judge of a benchmark's answers, where it may be asked."""
        return self.of(benchmark) if self._name(benchmark) in self.given else None

    def start(self, benchmarks: Iterable[Benchmark]) -> None:
        """Finds out whether the judges that those benchmarks need can be used.

        Raises:
          UserError: one cannot.
        """
        for name in sorted({self._name(benchmark) for benchmark in benchmarks} & self.given):
            self.desks[name].start()

    def ask(self, answers: Iterator[tuple[Benchmark, Answer, Mapping[str, Any], str]], wait: Callable[[], None]) -> str:
        """Has everything asked that was not asked before, and waits for the replies.

        Args:
          answers: (benchmark, answer, its record, the question's id), to which a judge that may be asked belongs.
          wait: called now and then meanwhile; what it raises ends the waiting.

        Returns:
          why a judge did not answer, or stopped to; "" where all did.
        """
        problems: dict[str, UserError] = {}
        for benchmark, answer, record, about in answers:
            name = self._name(benchmark)
            if name not in problems:
                try:
                    submit(self.desks[name], benchmark, answer, record, about)
                except UserError as error:
                    problems[name] = error
        for name in sorted(self.given - problems.keys()):
            try:
                self.desks[name].finish(wait)
            except UserError as error:
                problems[name] = error
        return "; ".join(map(str, problems.values()))

    def described(self) -> dict[str, Any]:
        """By name what is said beside the results of the judges that were given and found."""
        return {name: self.desks[name].described() for name in self.given if self.desks[name].model}

    def _name(self, benchmark: Benchmark) -> str:
        if benchmark.judge is None:
            return ""
        return VISION if benchmark.judge.pictures and VISION in self.desks else TEXT


def _desk(
    name: str,
    config: JudgeConfig | None,
    before: Mapping[str, Any],
    folder: ResultsFolder,
    say: Callable[[str], None],
    wording: Wording,
) -> JudgeDesk:
    judge = config or former(before)
    # Under the name that it had at the same place, replies are found again without asking the server for it.
    model = str(before.get("model", "")) if before.get("base_url") == judge.base_url else ""
    pictures = folder.path if name == VISION else None
    return JudgeDesk(judge, folder.judgements_file(name), model=model, say=say, wording=wording, pictures=pictures)


def requests(desk: JudgeDesk | None, benchmark: Benchmark, answer: Answer, record: Mapping[str, Any]) -> list[Request]:
    """What the judge is asked about an answer; without a judge, what one that does not see would be.

    Args:
      record: the answer's, with "row" and "images".
    """
    if benchmark.judge is None:
        return []
    shown = desk is not None and desk.sees and benchmark.judge.pictures
    pictures = tuple(record["images"]) if shown else ()
    prompts = benchmark.requests(answer, record["row"], shown=bool(pictures))
    return [Request(prompt, benchmark.judge.max_new_tokens, pictures) for prompt in prompts]


def submit(desk: JudgeDesk, benchmark: Benchmark, answer: Answer, record: Mapping[str, Any], about: str) -> None:
    """Has the judge asked about an answer.

    Raises:
      UserError: as `JudgeDesk.submit`.
    """
    asked = requests(desk, benchmark, answer, record)

    def readable(reply: str) -> bool:
        # Which part of several replies belongs to which request is the benchmark's own knowledge.
        return len(asked) > 1 or benchmark.score(answer, record["row"], [reply]).strict is not None

    for request in asked:
        desk.submit(request, readable=readable, about=about)


def replies(desk: JudgeDesk | None, asked: Sequence[Request]) -> list[str | None] | None:
    """The judge's replies to those requests; None without a judge."""
    return None if desk is None or not desk.model else [desk.reply(request) for request in asked]


def former(described: Mapping[str, Any]) -> JudgeConfig:
    """The judge of earlier results, to find its replies again; it cannot be asked without a key that it may need."""
    known = {name: described[name] for name in ("model", *JudgeDesk.KEPT) if name in described}
    return JudgeConfig(**known, json_mode="off", sleep="never")
