"""How a policy reasons: lengths of its answers by domain and, with a judge, how often 34 behaviours are present.

Inputs are folders of `vero_jax.evaluate`, runs of `vero_jax.train` (their last validation), or single files of a run's
validation/. With several inputs, what each was trained on is compared. docs/analysis.md explains the figures.

    python -m vero_jax.analyze runs/mini
    python -m vero_jax.analyze stem=results/stem mixture=results/all --judge-url http://localhost:8000/v1
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError, friendly
from vero_jax.evaluation.behaviours.behaviour import Behaviour
from vero_jax.evaluation.behaviours.catalogue import BEHAVIOURS
from vero_jax.evaluation.behaviours.heatmap import by_prevalence, draw_behaviours, draw_overview, draw_training
from vero_jax.evaluation.behaviours.judge import UNREADABLE, BehaviourJudge, parse_record, probe, reasoning
from vero_jax.evaluation.behaviours.lengths import ALL, Lengths, lengths
from vero_jax.evaluation.behaviours.protocol import JUDGE, MAX_TOKENS, MAX_TRACE, SEED, TEMPERATURE, deviations
from vero_jax.evaluation.behaviours.rates import Rate, Taken, chosen, rate_of, taken
from vero_jax.evaluation.behaviours.traces import Input, Trace, domains_of, read_input
from vero_jax.evaluation.behaviours.writing import (
    length_csv,
    length_lines,
    rate_csv,
    rate_entry,
    rate_lines,
    taken_lines,
)
from vero_jax.evaluation.judge_options import PREFIX
from vero_jax.rewards.asking import add_server_arguments, collect, server_config
from vero_jax.rewards.judge_server import JudgeServer, Wording
from vero_jax.rewards.replies import ReplyFile
from vero_jax.runtime.files import atomic_write

DEFAULTS = JudgeConfig(
    base_url="",
    temperature=TEMPERATURE,
    top_p=1.0,
    top_k=-1,
    max_tokens=MAX_TOKENS,
    timeout_s=300.0,
    concurrency=32,
)
"""Greedy, as in the paper."""
WORDING = Wording(setting="--judge-{}", settings="the --judge-... options", without=", or leave it out")
FORMAT = 1
REPLIES = "replies.jsonl"
RATES, OVERVIEW = "behaviours.csv", "behaviours.png"
OF_SEVERAL = ("behaviours_overall.png", "behaviours_by_training.png")
"""Pictures that compare inputs."""
LEAST_CHARACTERS = 1_000


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the judge said about all inputs."""

    model: str
    rates: list[Rate]
    unreadable: int
    no_reply: int
    taken: list[Taken]
    deviations: list[str]
    """From the paper's protocol."""


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command. Status 1 where some questions to the judge have no reply."""
    arguments = _parser().parse_args(argv)
    if arguments.per_domain is not None and arguments.per_domain < 1:
        raise UserError(f"--per-domain must be 1 or more, not {arguments.per_domain}")
    if arguments.trace_characters < LEAST_CHARACTERS:
        raise UserError(f"--trace-characters must be {LEAST_CHARACTERS:,} or more, not {arguments.trace_characters}")
    config = server_config(arguments, PREFIX, WORDING) if arguments.judge_base_url else None
    _make(arguments.output)
    inputs = named_inputs(arguments.inputs, arguments.trained_on)
    domains = domains_of(inputs)
    for one in inputs:
        print(_about(one))
    found = [row for one in inputs for row in lengths(one, domains)]
    print("\n".join(length_lines(found)))
    judged = None
    if config is not None:
        judged = judge_inputs(
            inputs, domains, config, arguments.per_domain, arguments.trace_characters, arguments.output / REPLIES
        )
        _show(judged, inputs, domains, arguments.output)
    _write(arguments.output, inputs, found, judged, config, arguments.per_domain, arguments.trace_characters)
    print(f"\nwritten: {arguments.output}")
    if judged is not None and judged.no_reply:
        print(f"{judged.no_reply:,} questions have no reply; the same command asks them again")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    about, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.analyze",
        description=about,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="[NAME=]PATH", help="results, run, or file of a validation")
    parser.add_argument(
        "--trained-on",
        action="append",
        default=[],
        metavar="NAME",
        help="what the policy of an input was trained on; once for each input, in their order; default: "
        "the domains in a run's config, the name of a results folder",
    )
    parser.add_argument("--output", type=Path, default=Path("analysis"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--per-domain",
        type=int,
        metavar="N",
        help="judge at most N answers of each domain and input, evenly over its benchmarks; default: as many of each "
        "benchmark as the smallest one of its domain has",
    )
    parser.add_argument(
        "--trace-characters",
        type=int,
        default=MAX_TRACE,
        metavar="N",
        help="show the judge both ends of a longer trace, N characters; for servers with a short context; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--judge-url",
        dest="judge_base_url",
        metavar="URL",
        help=f"asks this judge for behaviours, in the paper {JUDGE}; the same as --judge-base-url",
    )
    add_server_arguments(parser, DEFAULTS, PREFIX)
    parser.set_defaults(judge_extra_body=DEFAULTS.extra_body)  # no thinking
    return parser


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {output} ({error.strerror}): give another folder as --output") from error


def named_inputs(words: Sequence[str], trained_on: Sequence[str]) -> list[Input]:
    """Reads the inputs; each has a name of its own afterwards.

    Raises:
      UserError: an input cannot be read, or two were given the same name.
    """
    if trained_on and len(trained_on) != len(words):
        raise UserError(
            f"--trained-on is given {len(trained_on)} times for {len(words)} inputs: give it once for each, or write "
            "name=path"
        )
    given: list[tuple[str, str]] = []
    for place, word in enumerate(words):
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = "", word
        given.append((trained_on[place] if trained_on else name, path))
    repeated = [name for name, count in Counter(name for name, _ in given if name).items() if count > 1]
    if repeated:
        raise UserError(f"two inputs are called {repeated[0]!r}: give each a name of its own")
    inputs = [read_input(Path(path).expanduser(), name) for name, path in given]
    for place_of in (lambda one: one.path.absolute().name, lambda one: one.path):
        counts = Counter(one.trained_on for one in inputs)
        inputs = [
            dataclasses.replace(one, trained_on=f"{one.trained_on} ({place_of(one)})")
            if counts[one.trained_on] > 1 and not name
            else one
            for one, (name, _) in zip(inputs, given, strict=True)
        ]
    repeated = [name for name, count in Counter(one.trained_on for one in inputs).items() if count > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is given twice: give each input once, or name them by name=path")
    return inputs


def judge_inputs(
    inputs: Sequence[Input],
    domains: Sequence[str],
    config: JudgeConfig,
    per_domain: int | None,
    trace_characters: int,
    place: Path,
) -> Judged:
    """Asks what was not asked yet, and counts.

    Args:
      per_domain: at most this many answers of each domain and input, as `chosen` has it.
      trace_characters: that the judge sees of an answer.
      place: of the file of replies.

    Raises:
      UserError: the server cannot be used, or none of its replies can be read.
    """
    picked = {one.trained_on: chosen(one, per_domain) for one in inputs}
    traces = [trace for one in picked.values() for trace in one]
    with ReplyFile(place, parse_record) as replies:
        server = JudgeServer(config, print, WORDING)
        judge = BehaviourJudge(server, replies, trace_characters)
        counts = [row for one in inputs for row in taken(one, picked[one.trained_on])]
        print("\n".join(taken_lines(counts)))
        print(f"\n{len(traces):,} answers x {len(BEHAVIOURS)} behaviours; {len(replies):,} replies in {place}")
        # Whether all is known already can be told without the server only where the model's name is given.
        if not config.model or next(judge.missing(traces), None) is not None:
            outcome = collect(
                server, probe(), lambda: judge.missing(traces), replies, concurrency=config.concurrency, say=print
            )
            print(f"{outcome.asked:,} questions answered")
            for reason, count in outcome.failures.most_common(3):
                print(f"{count:,} questions without a reply: {reason}")
        rates, unreadable, no_reply = _count(judge, picked, domains)
        fewer = any(len(picked[one.trained_on]) < len(chosen(one, None)) for one in inputs)
        shortened = sum(len(reasoning(trace)) > trace_characters for trace in traces)
        differences = deviations(inputs, config, server.model, fewer, shortened, trace_characters)
        return Judged(server.model, rates, unreadable, no_reply, counts, differences)


def _count(
    judge: BehaviourJudge, picked: dict[str, list[Trace]], domains: Sequence[str]
) -> tuple[list[Rate], int, int]:
    """The rates, and how many replies could not be read or are not there."""
    rates: list[Rate] = []
    seen: Counter[int | None] = Counter()
    for trained_on, traces in picked.items():
        said = {behaviour.name: [judge.said(trace, behaviour) for trace in traces] for behaviour in BEHAVIOURS}
        seen.update(value for values in said.values() for value in values)
        for domain in [*domains, ALL]:
            places = [place for place, trace in enumerate(traces) if domain in (trace.domain, ALL)]
            if places:
                rates += [
                    _rate(trained_on, domain, one, [said[one.name][place] for place in places]) for one in BEHAVIOURS
                ]
    if not seen[0] + seen[1]:
        raise UserError(
            f"none of the judge's {seen[UNREADABLE]:,} replies could be read, and {seen[None]:,} questions have none: "
            'it must reply with {"explanation": "...", "present": 0 or 1}; look into the file of replies'
        )
    return rates, seen[UNREADABLE], seen[None]


def _rate(trained_on: str, domain: str, behaviour: Behaviour, said: Sequence[int | None]) -> Rate:
    return rate_of(trained_on, domain, behaviour, (bool(one) if one in (0, 1) else None for one in said))


def _about(one: Input) -> str:
    left_out = ", ".join(f"{count:,} x {reason}" for reason, count in one.left_out.items())
    return f"{one.trained_on}: {len(one.traces):,} answers in {one.source}" + (
        f" (left out: {left_out})" * bool(left_out)
    )


def _show(judged: Judged, inputs: Sequence[Input], domains: Sequence[str], output: Path) -> None:
    cells = {(one.trained_on, one.evaluated_on, one.behaviour.name): one for one in judged.rates}
    policies, names = [one.trained_on for one in inputs], [behaviour.name for behaviour in BEHAVIOURS]
    columns = [*domains, ALL]
    print("\n".join(rate_lines(cells, policies, columns, names)))
    if judged.unreadable:
        print(f"\n{judged.unreadable:,} replies could not be read: unjudged, in no rate")
    if judged.deviations:
        print(f"\nnot as in the Vero paper: {'; '.join(judged.deviations)}")
    names = by_prevalence(cells, policies, names)
    draw_overview(cells, policies, columns, names, output / OVERVIEW)
    if len(inputs) > 1:
        draw_training(cells, policies, names, output / OF_SEVERAL[0])
        draw_behaviours(cells, policies, columns, names, output / OF_SEVERAL[1])


def _write(
    output: Path,
    inputs: Sequence[Input],
    found: Sequence[Lengths],
    judged: Judged | None,
    config: JudgeConfig | None,
    per_domain: int | None,
    trace_characters: int,
) -> None:
    entry: dict[str, Any] = {
        "format": FORMAT,
        "inputs": [
            {
                "trained_on": one.trained_on,
                "kind": one.kind,
                "path": str(one.path),
                "answers_of": str(one.source),
                "answers": len(one.traces),
                "left_out": dict(one.left_out),
            }
            for one in inputs
        ],
        "lengths": [dataclasses.asdict(one) for one in found],
        "judge": None,
        "behaviours": None,
    }
    if judged is not None and config is not None:
        entry["judge"] = {
            "model": judged.model,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "seed": SEED,
            "per_domain": per_domain,
            "characters_of_a_trace": trace_characters,
            "not_as_in_the_paper": judged.deviations,
            "answers": [dataclasses.asdict(one) for one in judged.taken],
            "unreadable": judged.unreadable,
            "no_reply": judged.no_reply,
        }
        entry["behaviours"] = [rate_entry(one) for one in judged.rates]
        atomic_write(output / RATES, rate_csv(judged.rates))
    for name in (RATES, OVERVIEW, *OF_SEVERAL) if judged is None else OF_SEVERAL if len(inputs) == 1 else ():
        (output / name).unlink(missing_ok=True)  # of an earlier analysis of something else
    atomic_write(output / "lengths.csv", length_csv(found))
    atomic_write(output / "analysis.json", json.dumps(entry, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
