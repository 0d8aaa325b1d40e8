"""Evaluates a checkpoint on VeroEval's benchmarks.

    python -m vero_jax.evaluate FOLDER --tasks chartqa,mathvista_testmini --data DATA --limit 50

The data sets lie under DATA in the hub's layout (`--download` fetches what is missing). All that is answered and judged
is on disk at once: the same command goes on where it was stopped, and asks nothing twice. docs/evaluation.md has more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax

from vero_jax.answering import Work, answer_all, check_sizes
from vero_jax.config import DataConfig, JudgeConfig
from vero_jax.data.processor import Processor
from vero_jax.data.prompts import system_prompt
from vero_jax.data.tokenizer import read_json
from vero_jax.errors import RunFailed, UserError, friendly
from vero_jax.evaluation import judges, outcome
from vero_jax.evaluation.agreement import agreed, checkpoint_fingerprint, data_fingerprint
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.download import download
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.judge_options import add_judge_arguments, judge_configs
from vero_jax.evaluation.judges import Judges
from vero_jax.evaluation.loaders import QuestionSource
from vero_jax.evaluation.registry import benchmark as benchmark_of
from vero_jax.evaluation.registry import select
from vero_jax.evaluation.report import write_report
from vero_jax.evaluation.rows import MissingData, open_rows
from vero_jax.evaluation.variants import CONTEXT, SAMPLES, SEED, VARIANTS, Variant, usual_variant, variant
from vero_jax.generate import open_engine, policy_folder, policy_model, policy_parts
from vero_jax.runtime.compilation import enable_compilation_cache, spare_host_threads
from vero_jax.runtime.progress import Progress
from vero_jax.runtime.signals import Interrupted, StopRequest
from vero_jax.sampling.room import device_memory, find_room

LEAST_ANSWER = 256
"""Tokens that must be left for an answer: longer questions are left out, and counted."""
DATA = f"{DataConfig().cache_dir}/veroeval"
PICTURES = ("all", "failures", "none")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to evaluate, and how. What is not about the figures may change when an evaluation goes on."""

    checkpoint: str
    """A folder in either format, an id on the hub, a PEFT folder, or a run directory with its exported policy."""
    tasks: tuple[str, ...] = ("veroeval",)
    data: str = DATA
    output: str = ""
    variant: str = ""
    """Empty: the one that is meant for the checkpoint's family."""
    limit: int | None = None
    samples: int = SAMPLES
    seed: int = SEED
    max_new_tokens: int | None = None
    """Where the variant allows more."""
    context: int = CONTEXT
    system: str = ""
    max_pixels: int | None = None
    dtype: str | None = None
    tensor: int | None = None
    lanes: int | None = None
    pictures: str = "all"
    """Which questions' pictures are kept beside the results."""
    download: bool = False
    judge: JudgeConfig | None = None
    vision_judge: JudgeConfig | None = None
    """Instead of `judge` for the benchmarks that are about what one sees; it is shown their pictures."""


def evaluate(plan: Plan, *, say: Callable[[str], None] = print, stop: StopRequest | None = None) -> dict[str, Any]:
    """Answers, judges and scores what is missing, and writes the results; see `evaluation.folder` for the files.

    Returns:
      what results.json holds.

    Raises:
      UserError: the checkpoint, the settings, the folder or the judge cannot be used.
      Interrupted: `stop` asked for it; all answers so far are kept.
    """
    begun = time.monotonic()
    stop = stop or StopRequest()
    checkpoint, adapter = policy_parts(policy_folder(plan.checkpoint))
    model_type = str(read_json(checkpoint / "config.json").get("model_type", ""))
    setting = variant(plan.variant or usual_variant(model_type))
    allowed = setting.max_new_tokens if plan.max_new_tokens is None else plan.max_new_tokens
    most_tokens = min(allowed, plan.context - 1)
    if plan.vision_judge and plan.pictures != "all":
        raise UserError(f"a vision judge needs --pictures all, not {plan.pictures}: it may be asked again")
    check_sizes(plan.samples, most_tokens, plan.context, plan.limit, plan.lanes)
    wanted = select(plan.tasks)
    if not wanted:
        raise UserError("--tasks names no benchmark: name some, or leave it out for all of them")
    folder = ResultsFolder(plan.output or f"evaluations/{Path(plan.checkpoint).absolute().name}-{setting.name}")
    say(f"{plan.checkpoint}, variant {setting.name}: {', '.join(plan.tasks)}, results in {folder.path}")
    reasons = download(wanted, Path(plan.data).expanduser(), say) if plan.download else {}
    if not (plan.download or folder.settings_file.exists() or Path(plan.data).expanduser().is_dir()):
        raise UserError(f"there is no folder {plan.data} of data sets: correct --data, or fetch them with --download")

    with contextlib.ExitStack() as stack:
        asked, todo = _open_tasks(wanted, plan, setting, folder, reasons, stack)
        if not asked and not folder.settings_file.exists():
            others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            name, reason = next(iter(reasons.items()))
            advice = "" if plan.download else "; correct --data, or use --download"
            raise UserError(f"nothing to evaluate: {name}: {reason}{others}{advice}")
        fingerprint = checkpoint_fingerprint(checkpoint, adapter, without=folder.path)
        settings = agreed(folder, _settings(plan, setting, fingerprint), asked)
        given = {judges.TEXT: plan.judge, judges.VISION: plan.vision_judge}
        # What judges that are not given have said before still counts.
        desks = Judges.open(given, settings, folder, say, stack)
        judged = [name for name in settings["asked"] if benchmark_of(name).judge is not None]
        alone = [name for name in judged if desks.of(benchmark_of(name)) is None]
        if alone:
            say(f"no judge: {', '.join(alone)} will not be scored; --judge-base-url names a judge's server")
        folder.write_settings(settings)
        if todo:
            # A judge that cannot be used is found out before hours of answers.
            desks.start(work.benchmark for work in todo)
            _answer(plan, setting, checkpoint, adapter, todo, folder, desks, most_tokens, stop)
        answers = (
            (benchmark_of(name), item.answer, item.record, item.id)
            for name in judged
            if desks.asked_about(benchmark_of(name)) is not None
            for item in outcome.items(benchmark_of(name), _records(folder, name, settings), setting)
        )
        problem = desks.ask(answers, stop.check)
        settings |= desks.described()
        folder.write_settings(settings)
        outcomes = [_scored(name, settings, setting, folder, desks, stop) for name in settings["asked"]]
    missing = {name: reason for name, reason in reasons.items() if name not in settings["asked"]}
    outcomes += [outcome.not_run_outcome(benchmark_of(name), reason) for name, reason in missing.items()]
    results = outcome.results_json(outcomes, settings, time.monotonic() - begun)
    folder.write_results(results)
    if plan.pictures != "all":
        folder.drop_images(_failed_pictures(folder) if plan.pictures == "failures" else set())
    write_report(folder.path)
    if problem:
        say(outcome.printed(results))
        raise RunFailed(f"{problem}; what is there so far is scored in {folder.path}")
    return results


# --- before the answers


def _open_tasks(
    wanted: Sequence[Benchmark],
    plan: Plan,
    setting: Variant,
    folder: ResultsFolder,
    reasons: dict[str, str],
    stack: contextlib.ExitStack,
) -> tuple[dict[str, dict[str, Any]], list[Work]]:
    """What is asked of the benchmarks whose data is there, and what of it has no answer yet.

    Benchmarks without data go to `reasons`.
    """
    asked, todo = {}, []
    root = Path(plan.data).expanduser()
    for task in wanted:
        try:
            rows = open_rows(task.source, root)
        except MissingData as error:
            reasons.setdefault(task.name, f"no data: {error}")
            continue
        file = stack.enter_context(folder.open_answers(task.name, plan.samples))
        source = QuestionSource(task, rows, setting, limit=plan.limit, done=file)
        asked[task.name] = {"limit": plan.limit, "questions": source.ids, "data": data_fingerprint(rows)}
        if len(source):
            todo.append(Work(task, grain.MapDataset.source(source), file))
    for name in asked:
        reasons.pop(name, None)  # a download that failed matters only where there is no data from before
    return asked, todo


def _settings(plan: Plan, setting: Variant, fingerprint: str) -> dict[str, Any]:
    """What is written beside the results."""
    return {
        "checkpoint": plan.checkpoint,
        "fingerprint": fingerprint,
        "variant": setting.name,
        "limit": plan.limit,
        "samples": plan.samples,
        "seed": plan.seed,
        "data": plan.data,
        "context": plan.context,
        "max_new_tokens": plan.max_new_tokens,
        "max_pixels": plan.max_pixels,
        "system": plan.system,
        "dtype": plan.dtype,
        judges.TEXT: None,
        judges.VISION: None,
    }


# --- answers, judgements, scores


def _answer(
    plan: Plan,
    setting: Variant,
    checkpoint: Path,
    adapter: Path | None,
    todo: Sequence[Work],
    folder: ResultsFolder,
    desks: Judges,
    most_tokens: int,
    stop: StopRequest,
) -> None:
    """Loads the checkpoint and has it answer; the judge is asked meanwhile."""
    longest = plan.context - min(LEAST_ANSWER, most_tokens)
    processor = Processor.from_folder(
        checkpoint, system_prompt=plan.system, max_prompt_length=longest, max_pixels=plan.max_pixels
    )
    questions = sum(len(work.questions) for work in todo)
    room = find_room(
        policy_model(checkpoint, adapter, dtype=plan.dtype),
        devices=len(jax.devices()),
        memory=device_memory(jax.devices()),
        samples=plan.samples,
        max_new_tokens=max(min(most_tokens, setting.tokens(work.benchmark.name)) for work in todo),
        max_prompt_tokens=longest,
        tensor=plan.tensor,
        lanes=plan.lanes,
        answers=questions * plan.samples,
    )
    engine, params = open_engine(checkpoint, adapter, processor, room.rollout, dtype=plan.dtype, mesh=room.mesh)
    engine.between_rounds = stop.check

    def answered(task: Benchmark, name: str, record: Mapping[str, Any]) -> None:
        desk = desks.asked_about(task)
        # Answers that are compared with others wait until all are there.
        if desk is not None and task.belongs_to is None:
            for item in outcome.items(task, {name: record}, setting):
                judges.submit(desk, task, item.answer, item.record, item.id)

    with Progress() as progress:
        progress.phase("answers", questions, unit="questions")
        answer_all(
            engine,
            params,
            processor,
            todo,
            folder,
            setting,
            samples=plan.samples,
            seed=plan.seed,
            context=plan.context,
            most_tokens=most_tokens,
            progress=progress,
            answered=answered,
        )


def _scored(
    name: str,
    settings: Mapping[str, Any],
    setting: Variant,
    folder: ResultsFolder,
    desks: Judges,
    stop: StopRequest,
) -> outcome.TaskOutcome:
    """Scores a task and writes its lines; a task whose questions are not all answered has no figure."""
    stop.check()
    task, wanted = benchmark_of(name), settings["asked"][name]["questions"]
    records = _records(folder, name, settings)
    if len(records) < len(wanted):
        folder.drop_rows(name)
        reason = f"only {len(records)} of {len(wanted)} questions are answered so far"
        return outcome.not_run_outcome(task, reason, len(records))
    lines = list(outcome.scored_rows(task, records, setting, desks.of(task)))
    folder.write_rows(name, (line for line, _ in lines))
    return outcome.task_outcome(task, lines, settings["samples"])


def _records(folder: ResultsFolder, name: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The answers to the questions that were asked last; there are others where the limit was larger before."""
    return folder.answers(name, settings["asked"][name]["questions"], settings["samples"])


def _failed_pictures(folder: ResultsFolder) -> set[str]:
    """The pictures of questions that were not answered in full."""
    return {
        picture
        for name in folder.tasks()
        for row in folder.rows(name)
        for picture in row["images"]
        if row.get("strict") is None or row["strict"] < 1
    }


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vero_jax.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "checkpoint", help="checkpoint folder, PEFT adapter folder, run directory, or id of the model hub"
    )
    parser.add_argument(
        "--tasks", default="veroeval", help="veroeval, domains and benchmarks, with commas; default: %(default)s"
    )
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="of all data sets; default: %(default)s")
    parser.add_argument("--download", action="store_true", help="fetch data sets that are missing from the hub")
    parser.add_argument("--output", default="", metavar="FOLDER", help="default: evaluations/<checkpoint>-<variant>")
    parser.add_argument("--limit", type=int, metavar="N", help="only N questions of each benchmark, spread over it")
    parser.add_argument(
        "--variant", choices=VARIANTS, default="", help="default: the one that is meant for the checkpoint's family"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="K", help="answers to each question, for Avg@K")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="where the variant allows more")
    parser.add_argument(
        "--context", type=int, default=CONTEXT, help="tokens of question and answer together; default: %(default)s"
    )
    parser.add_argument("--system", default="", help="text, .txt file or built-in name of a system prompt")
    parser.add_argument("--max-pixels", type=int, help="larger images are made smaller")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--tensor", type=int, metavar="N", help="devices that share a copy of the model")
    parser.add_argument("--lanes", type=int, metavar="N", help="answers that are drawn side by side, on all devices")
    parser.add_argument("--pictures", choices=PICTURES, default="all", help="which are kept beside the results")
    add_judge_arguments(parser)
    args = parser.parse_args(argv)
    judge, vision_judge = judge_configs(args)
    own = {field.name for field in dataclasses.fields(Plan)} - {"judge", "vision_judge", "tasks", "system"}
    plan = Plan(
        **{name: value for name, value in vars(args).items() if name in own},
        tasks=(args.tasks,),
        system=system_prompt(args.system),
        judge=judge,
        vision_judge=vision_judge,
    )
    spare_host_threads()
    enable_compilation_cache(DataConfig().cache_dir)
    with StopRequest() as stop:
        try:
            results = evaluate(plan, stop=stop)
        except Interrupted:
            print("stopped: all answers so far are kept, and the same command goes on from there", file=sys.stderr)
            return stop.exit_code
    print(outcome.printed(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
