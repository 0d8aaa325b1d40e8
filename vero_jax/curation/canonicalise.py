"""The answer canonicaliser: every answer in one form that a verifier can compare, or the row is dropped.

By rules alone, or with a text model first (--with-model) whose proposals the rules check. Answers become a letter, a
number, a short text or a list of texts, and the row gets the reward type that goes with it. Answers with several
values, symbols or positive powers of ten, and such as "cannot be determined", drop the row. Rows about places and
actions, and rows with answers that are no text (boxes, instructions, captions), go through unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vero_jax.config import JudgeConfig
from vero_jax.curation import answers
from vero_jax.curation.answers import AnswerSettings, Canonical, applies_to, canonical, dropped
from vero_jax.curation.model_answers import AnswerModel, checked, parse_record, prompt
from vero_jax.curation.question_filter import add_reply_arguments, open_server, refuse_missing, summary
from vero_jax.curation.rows import SPLITS, Row, Rows, RowWriter, listed
from vero_jax.data import schema
from vero_jax.errors import UserError
from vero_jax.rewards.asking import add_server_arguments, collect, server_config
from vero_jax.rewards.replies import ReplyFile
from vero_jax.runtime.output_folder import check_free, new_folder
from vero_jax.types import Example

NAME = "canonicalise"
HELP = "give every answer one comparable form, by rules or with a text model"

DEFAULTS = JudgeConfig(temperature=0.6, top_p=0.8, top_k=20, max_tokens=8096, timeout_s=300.0, concurrency=32)
UNCHANGED = "unchanged"


def with_answer(example: Example, found: Canonical) -> Example:
    """The row with its new ground truth and reward type."""
    kind = answers.REWARD_TYPES[found.kind]
    stale = (schema.GUESSED_KEY, schema.DOUBT_KEY)  # they spoke of the answer as it was
    extra = {key: value for key, value in example.extra_info.items() if key not in stale} | {"reward_type": kind}
    return dataclasses.replace(example, ground_truth=found.value, reward_type=kind, extra_info=extra)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = AnswerSettings()
    parser.add_argument("source", help="folder in the hub's layout, Parquet, or .jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for rows and report")
    parser.add_argument(
        "--percent",
        choices=("number", "fraction"),
        default=defaults.percent,
        help='"45%%" becomes 45 or 0.45; default: %(default)s',
    )
    parser.add_argument("--max-words", type=int, default=defaults.max_words, help="of a text; default: %(default)s")
    parser.add_argument("--splits", default=",".join(SPLITS), help="default: %(default)s")
    parser.add_argument("--sources", default="", metavar="A,B", help="only these sources")
    parser.add_argument("--with-model", action="store_true", help="ask a text model first; the rules check it")
    parser.add_argument(
        "--undecided",
        choices=("rules", "drop"),
        default="rules",
        help="rows whose reply is missing or cannot be read; default: %(default)s alone",
    )
    add_reply_arguments(parser)
    add_server_arguments(parser, DEFAULTS)


def run(arguments: argparse.Namespace) -> int:
    """The command. Status 1 where questions have no reply and nothing was written."""
    if arguments.max_words < 1:
        raise UserError(f"--max-words is {arguments.max_words}: no text has fewer than 1 word")
    settings = AnswerSettings(percent=arguments.percent, max_words=arguments.max_words)
    check_free(arguments.out)
    rows = Rows(arguments.source, listed(arguments.splits), listed(arguments.sources))
    if not arguments.with_model:
        return _write(arguments.out, rows, _by_rules(rows, settings))
    config = server_config(arguments)
    place = arguments.replies or arguments.out.with_name(f"{arguments.out.name}.replies.jsonl")
    with ReplyFile(place, parse_record) as replies:
        server = open_server(config, arguments.offline)
        model = AnswerModel(server, replies, settings)
        print(f"{len(replies):,} replies in {place}")
        if not arguments.offline:
            probe = prompt("How many boxes are there?", "There are 3 boxes.", settings)
            outcome = collect(
                server, probe, lambda: model.asks(rows), replies, concurrency=config.concurrency, say=print
            )
            print(f"{outcome.asked:,} questions answered")
            if outcome.failures and not arguments.accept_missing:
                return refuse_missing(outcome.failures, place)
        return _write(arguments.out, rows, _by_model(rows, model, settings, arguments.undecided))


def _by_rules(rows: Rows, settings: AnswerSettings) -> Iterator[tuple[Row, Canonical | None]]:
    for row in rows:
        yield row, _ruled(row, settings) if applies_to(row.example.domain, row.example.reward_type) else None


def _ruled(row: Row, settings: AnswerSettings) -> Canonical:
    example = row.example
    return canonical(example.ground_truth, row.question, reward_type=example.reward_type, settings=settings)


def _by_model(
    rows: Rows, model: AnswerModel, settings: AnswerSettings, undecided: str
) -> Iterator[tuple[Row, Canonical | None]]:
    for row in rows:
        if not applies_to(row.example.domain, row.example.reward_type):
            yield row, None
            continue
        proposal = model.proposal(row)
        problem = "no reply" if proposal is None else proposal.problem
        if proposal is None or problem:
            yield row, _ruled(row, settings) if undecided == "rules" else dropped(f"undecided: {problem}")
            continue
        example = row.example
        yield (
            row,
            checked(proposal, example.ground_truth, row.question, reward_type=example.reward_type, settings=settings),
        )


def _write(out: Path, rows: Rows, found: Iterator[tuple[Row, Canonical | None]]) -> int:
    """Writes kept rows and the report; prints what became of the rows."""
    counts: Counter[tuple[str, str]] = Counter()
    with (
        new_folder(out) as draft,
        RowWriter(draft) as writer,
        (draft / "report.json").open("w", encoding="utf-8") as report,
    ):
        separator = "[\n"
        for row, result in found:
            old = row.example
            keep = result is None or result.kind != "none"
            new = old if result is None or not keep else with_answer(old, result)
            same = (new.ground_truth, new.reward_type) == (old.ground_truth, old.reward_type)
            reason = "not canonicalised" if result is None else result.reason or (UNCHANGED if same else "type")
            counts[row.source, "kept" if keep else "dropped"] += 1
            counts["", ("kept, " if keep else "dropped, ") + reason] += 1
            entry = {
                "id": old.id,
                "split": row.split,
                "source": row.source,
                "before": old.ground_truth,
                "after": new.ground_truth if keep else None,
                "type_before": old.reward_type,
                "type": new.reward_type if keep else None,
                "reason": reason,
            }
            report.write(separator + json.dumps(entry, ensure_ascii=False))
            separator = ",\n"
            if keep:
                writer.add(dataclasses.replace(row, example=new))
        report.write("\n]\n" if separator.startswith(",") else "[]\n")
    print("\n".join(summary(counts, rows)))
    print(f"\nkept rows and report.json: {out}")
    return 0
