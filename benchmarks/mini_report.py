"""Figures of finished runs of the default config: a table (mini_results.md) and their curves (mini_curves.png).

python benchmarks/mini_report.py runs/mini-seed0 runs/mini-seed1 runs/mini-seed2 --out docs
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError, friendly
from vero_jax.runtime.curves import plot_runs

STAGES = (("before", "before"), ("after_cold_start", "after cold start"), ("final", "final"))


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """Markdown: one line per run and figure, with what reinforcement alone added; then the domains."""
    lines = [
        "| run | figure | " + " | ".join(title for _, title in STAGES) + " | gained by reinforcement | minutes |",
        "|---|---|" + "---|" * (len(STAGES) + 2),
    ]
    for label, summary in summaries.items():
        for name, title in (("accuracy", "sampled, T 0.7"), ("accuracy_greedy", "greedy")):
            overall = {stage: summary[name][stage]["overall"] for stage, _ in STAGES}
            gain = overall["final"] - overall["after_cold_start"]
            cells = " | ".join(f"{overall[stage]:.3f}" for stage, _ in STAGES)
            lines.append(f"| {label} | {title} | {cells} | {gain:+.3f} | {summary['wall_minutes']:.1f} |")
    lines += ["", "Sampled accuracy by domain, after the cold start → at the end:", ""]
    domains = list(next(iter(summaries.values()))["accuracy"]["final"]["domains"])
    lines += ["| domain | " + " | ".join(summaries) + " |", "|---|" + "---|" * len(summaries)]
    for domain in domains:
        cells = [
            " → ".join(f"{s['accuracy'][stage]['domains'][domain]:.2f}" for stage in ("after_cold_start", "final"))
            for s in summaries.values()
        ]
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answers(run: Path, stage: str, mode: str) -> dict[str, float]:
    """Of a validation: tokens an answer, share that ran out of room, accuracy of the rest (mean over the domains)."""
    lines = [json.loads(line) for line in (run / "validation" / f"{stage}.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["mode"] == mode and line["missing"] is None]
    finished: dict[str, list[float]] = {}
    for line in lines:
        if line["stop_reason"] != "length":
            finished.setdefault(line["domain"], []).append(line["accuracy"])
    return {
        "length": statistics.mean(line["response_length"] for line in lines),
        "cut": statistics.mean(line["stop_reason"] == "length" for line in lines),
        "finished": statistics.mean(statistics.mean(values) for values in finished.values()),
    }


def answer_table(runs: dict[str, Path]) -> str:
    """Markdown: what reinforcement changed in the answers, after the cold start → at the end."""
    lines = ["| run | figure | tokens | ran out of room | accuracy of the others |", "|---|---|---|---|---|"]
    for label, run in runs.items():
        for mode, title in (("sampled", "sampled, T 0.7"), ("greedy", "greedy")):
            stages = [answers(run, stage, mode) for stage in ("after_cold_start", "final")]
            cells = [
                " → ".join(form.format(stage[name]) for stage in stages)
                for name, form in (("length", "{:.1f}"), ("cut", "{:.0%}"), ("finished", "{:.2f}"))
            ]
            lines.append(f"| {label} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Reads each run's summary.json and writes the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    summaries, folders = {}, {}
    for run in arguments.runs:
        if not (run / "summary.json").is_file():
            raise UserError(f"{run} holds no summary.json; give the folder of a finished run")
        summary = json.loads((run / "summary.json").read_text())
        label = f"seed {summary['seed']}"
        summary["wall_minutes"] = summary["seconds"]["total"] / 60
        summaries[label], folders[label] = summary, run
    first = next(iter(summaries.values()))
    text = (
        "# The default run, measured\n\n"
        f"`python -m vero_jax.train seed=...` on {first['device']}, two cores, jax {first['versions']['jax']}, Python "
        f"{first['versions']['python']}. Accuracy is the mean over the six domains on the validation questions; both\n"
        "figures come from each run's `summary.json`, this page and the curves from `benchmarks/mini_report.py`.\n\n"
        f"{table(summaries)}\n\n"
        "What changed in the answers, after the cold start → at the end (those that run out of room are the harder "
        'questions, so "the others" are easier before than after):\n\n'
        f"{answer_table(folders)}\n\n![curves](mini_curves.png)\n"
    )
    (arguments.out / "mini_results.md").write_text(text)
    plot_runs(folders, arguments.out / "mini_curves.png", "the default run")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
