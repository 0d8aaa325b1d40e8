"""The question filter: a vision model looks at every question with its image, and the flawed ones are dropped.

Five flags for each question (irrelevant, ambiguous, language, unverifiable, and precision or, where things are counted
or searched for, unreadable); one raised flag drops the row (arXiv 2604.04917, section on data). With several rollouts
the majority of a row's verdicts decides, and a tie drops it. Rows of domains without a prompt, such as captions, are
kept without asking. Replies go to a file as they come: after an interruption the same command goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.config import JudgeConfig
from vero_jax.curation.rows import SPLITS, Row, Rows, RowWriter, check_names, listed, table
from vero_jax.curation.verdicts import FLAGS, Decision, Verdict, decide, flags_of, parse_verdict
from vero_jax.data.images import encode_png
from vero_jax.errors import UserError
from vero_jax.rewards.asking import WORDING, Ask, add_server_arguments, collect, server_config, with_pictures
from vero_jax.rewards.judge_server import JudgeServer, Question
from vero_jax.rewards.replies import ReplyFile, reply_key
from vero_jax.runtime.output_folder import check_free, new_folder

NAME = "filter"
HELP = "drop flawed questions by the verdicts of a vision model"

DEFAULTS = JudgeConfig(temperature=0.6, top_p=0.8, top_k=20, max_tokens=8096, timeout_s=300.0, concurrency=32)
"""The sampling that the paper's authors use."""
MAX_PIXELS = 4_194_304
PROMPTED = ("chart_ocr", "stem", "spatial_action", "knowledge_recognition", "counting_grounding_search")
NO_REPLY = "no reply"
_FIELD = re.compile(r"\{(question|notes|keys|fence)\}")


class Prompts:
    """The prompt of each domain.

    Args:
      own: by domain, files of the user that say what each flag means there; they replace the built-in text.

    Raises:
      UserError: a file cannot be read.
    """

    def __init__(self, own: Mapping[str, str]) -> None:
        self._frame = _built_in("filter.txt")
        self._notes = {domain: _built_in(f"filter_{domain}.txt") for domain in PROMPTED}
        for domain, file in own.items():
            try:
                self._notes[domain] = Path(file).expanduser().read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--prompt {domain}={file} cannot be read as text: {error}") from error

    def text(self, domain: str, question: str) -> str | None:
        """The prompt for a question, None where its domain has none."""
        if domain not in self._notes:
            return None
        question = question.encode("utf-8", "replace").decode("utf-8")  # no server takes half a surrogate pair
        values = {
            "question": question,
            "notes": self._notes[domain].strip(),
            "keys": ", ".join(f'"{name}": true or false' for name in flags_of(domain)),
            # A text that holds its own digest cannot be found by trying.
            "fence": hashlib.sha256(question.encode()).hexdigest()[:16],
        }
        return _FIELD.sub(lambda match: values[match[1]], self._frame)


class QuestionFilter:
    """Asks about rows and decides on them.

    Args:
      prompts: by domain.
      server: gives the requests that replies are kept under.
      replies: what is known so far.
      rollouts: verdicts of each row.
      max_pixels: larger images are sent smaller.
      exempt: flags that do not count, by source.
    """

    def __init__(
        self,
        prompts: Prompts,
        server: JudgeServer,
        replies: ReplyFile[Verdict],
        *,
        rollouts: int,
        max_pixels: int,
        exempt: Mapping[str, frozenset[str]],
    ) -> None:
        self._prompts, self._server, self._replies = prompts, server, replies
        self._rollouts, self._max_pixels, self._exempt = rollouts, max_pixels, exempt

    def asks(self, rows: Rows) -> Iterator[Ask]:
        """The questions that have no reply yet."""
        asked: set[str] = set()
        for row in rows:
            text = self._prompts.text(row.example.domain, row.question)
            for key in self._keys(row, text) if text is not None else ():
                if self._replies.get(key) is None and key not in asked:
                    asked.add(key)
                    names = flags_of(row.example.domain)
                    yield Ask(
                        row.example.id,
                        key,
                        functools.partial(with_pictures, text or "", row.example.images, self._max_pixels),
                        functools.partial(_complete, names),
                    )

    def decision(self, row: Row) -> Decision | None:
        """What becomes of a row; None where its domain is not asked about."""
        text = self._prompts.text(row.example.domain, row.question)
        if text is None:
            return None
        found = [self._replies.get(key) for key in self._keys(row, text)]
        verdicts = [verdict for verdict in found if verdict is not None]
        if not verdicts:
            return Decision(None, (NO_REPLY,))
        return decide(verdicts, flags_of(row.example.domain), self._exempt.get(row.source, frozenset()))

    def _keys(self, row: Row, text: str) -> list[str]:
        # Digests stand for the images: what is known already need not be decoded to be found.
        shown = [hashlib.sha256(data).hexdigest() for data in row.example.images]
        request = self._server.request(text) | {"images": shown, "max_pixels": self._max_pixels}
        return [reply_key(row.example.id, request, rollout) for rollout in range(self._rollouts)]


def parse_record(record: Mapping[str, Any]) -> Verdict:
    """The verdict in a line of the file of replies."""
    error = record.get("error")
    return Verdict({}, str(error)) if error else parse_verdict(str(record["reply"]))


def _complete(names: Sequence[str], reply: str) -> bool:
    return set(names) <= set(parse_verdict(reply).flags)


def _built_in(name: str) -> str:
    return importlib.resources.files("vero_jax.curation").joinpath("prompts", name).read_text("utf-8")


def probe() -> Question:
    """A first question with a picture, in the form of all others."""
    import numpy as np

    picture = encode_png(np.full((64, 64, 3), 200, np.uint8))
    return with_pictures(str(Prompts({}).text("stem", "What is shown?")), [picture], MAX_PIXELS)


def add_reply_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that asks a model about rows and goes on where it was interrupted."""
    parser.add_argument("--replies", type=Path, metavar="FILE", help="file of replies; default: <out>.replies.jsonl")
    parser.add_argument(
        "--accept-missing", action="store_true", help="write the result although some questions have no reply"
    )
    parser.add_argument("--offline", action="store_true", help="ask nothing: apply the replies that are there")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder in the hub's layout, Parquet, or .jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for rows and report")
    parser.add_argument("--rollouts", type=int, default=1, metavar="N", help="verdicts a row; default: %(default)s")
    parser.add_argument(
        "--exempt",
        action="append",
        default=[],
        metavar="SOURCE=FLAG,FLAG",
        help="flags that do not count for a source: " + "; ".join(f"{name}: {about}" for name, about in FLAGS.items()),
    )
    parser.add_argument(
        "--undecided",
        choices=("drop", "keep"),
        default="drop",
        help="rows whose verdicts cannot be read; default: drop",
    )
    add_reply_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="DOMAIN=FILE", help="your own words for a domain's flags"
    )
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="of an image as sent; default: %(default)s")
    parser.add_argument("--splits", default=",".join(SPLITS), help="default: %(default)s")
    parser.add_argument("--sources", default="", metavar="A,B", help="only these sources")
    add_server_arguments(parser, DEFAULTS)


def run(arguments: argparse.Namespace) -> int:
    """The command. Status 1 where questions have no reply and nothing was written."""
    if arguments.rollouts < 1:
        raise UserError(f"--rollouts is {arguments.rollouts}: a row needs at least 1 verdict")
    if arguments.max_pixels < 1024:
        raise UserError(f"--max-pixels is {arguments.max_pixels}: a model sees nothing in fewer than 1024")
    config = server_config(arguments)
    exempt = exemptions(arguments.exempt)
    prompts = Prompts(_pairs("--prompt", arguments.prompt))
    check_free(arguments.out)
    rows = Rows(arguments.source, listed(arguments.splits), listed(arguments.sources))
    place = arguments.replies or arguments.out.with_name(f"{arguments.out.name}.replies.jsonl")
    with ReplyFile(place, parse_record) as replies:
        server = open_server(config, arguments.offline)
        chosen = QuestionFilter(
            prompts,
            server,
            replies,
            rollouts=arguments.rollouts,
            max_pixels=arguments.max_pixels,
            exempt=exempt,
        )
        print(f"{len(replies):,} replies in {place}" + (f", {replies.ignored} damaged lines" * bool(replies.ignored)))
        if not arguments.offline:
            outcome = collect(
                server, probe(), lambda: chosen.asks(rows), replies, concurrency=config.concurrency, say=print
            )
            print(f"{outcome.asked:,} questions answered")
            if outcome.failures and not arguments.accept_missing:
                return refuse_missing(outcome.failures, place)
        return _apply(arguments, rows, chosen, exempt)


def open_server(config: JudgeConfig, offline: bool) -> JudgeServer:
    """The server's client. Raises UserError where nothing is to be asked and nobody says which model was."""
    if offline and not config.model:
        raise UserError("--offline needs --model: the name under which the replies were kept")
    return JudgeServer(config, print, WORDING)


def refuse_missing(failures: Counter[str], place: Path) -> int:
    """Says which questions have no reply; the exit status."""
    reasons = ", ".join(f"{count} x {reason}" for reason, count in failures.most_common(3))
    print(
        f"{failures.total():,} questions have no reply ({reasons}); the same command asks them again (the others are "
        f"in {place}), and --accept-missing goes on without them"
    )
    return 1


def exemptions(given: Sequence[str]) -> dict[str, frozenset[str]]:
    """{source: flags} of "source=flag,flag" entries. Raises UserError for a flag that there is not."""
    found = {}
    for source, flags in _pairs("--exempt", given).items():
        names = listed(flags)
        for name in names:
            if name not in FLAGS:
                raise UserError(f"--exempt {source}={flags} names {name!r}; the flags are {', '.join(FLAGS)}")
        found[source] = frozenset(names)
    return found


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    found = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise UserError(f"{option} {entry!r} is not understood: write it as name=value")
        found[name.strip()] = value.strip()
    return found


def _apply(
    arguments: argparse.Namespace, rows: Rows, chosen: QuestionFilter, exempt: Mapping[str, frozenset[str]]
) -> int:
    counts: Counter[tuple[str, str]] = Counter()
    with new_folder(arguments.out) as draft:
        with RowWriter(draft) as writer, (draft / "report.json").open("w", encoding="utf-8") as report:
            report.write("[\n")
            first = True
            for row in rows:
                decision = chosen.decision(row)
                keep = decision is None or (
                    arguments.undecided == "keep" if decision.keep is None else bool(decision.keep)
                )
                reasons = ("not asked",) if decision is None else decision.reasons
                label = ("undecided: " if decision and decision.keep is None else "") + (reasons[0] if reasons else "")
                counts[row.source, "kept" if keep else "dropped"] += 1
                if label:
                    counts["", ("kept, " if keep else "dropped, ") + label] += 1
                entry: dict[str, Any] = {
                    "id": row.example.id,
                    "split": row.split,
                    "source": row.source,
                    "domain": row.example.domain,
                }
                entry |= {"kept": keep, "undecided": bool(decision and decision.keep is None), "reasons": list(reasons)}
                report.write(("" if first else ",\n") + json.dumps(entry, ensure_ascii=False))
                first = False
                if keep:
                    writer.add(row)
            report.write("\n]\n")
        check_names("--exempt", exempt, {source for source, _ in counts if source})
    print("\n".join(summary(counts, rows)))
    print(f"\nkept rows and report.json: {arguments.out}")
    return 0


def summary(counts: Counter[tuple[str, str]], rows: Rows) -> list[str]:
    """Tables for a terminal: rows kept and dropped by source, then by reason; then rows that could not be read."""
    sources = sorted({source for source, _ in counts if source})
    lines = table(
        [(name, f"{counts[name, 'kept']:,}", f"{counts[name, 'dropped']:,}") for name in sources],
        ("source ", "kept", "dropped"),
    )
    reasons = [(what, count) for (source, what), count in counts.most_common() if not source]
    lines += ["", *table([(what, f"{count:,}") for what, count in reasons], ("what became of rows ", "rows"))]
    return lines + rows.unusable_lines()
