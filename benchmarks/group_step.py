"""One GRPO step, and its parts, against the peers that run on a CPU: TRL's GRPOTrainer and Hugging Face's `generate`.

    python benchmarks/group_step.py                      # a table
    python benchmarks/group_step.py --json               # {"rows": [{"work", "ours_s", "peer_s", "ratio", ...}]}
    python benchmarks/group_step.py --only step_64 sampling_64 --ours-only
    python benchmarks/group_step.py --plot docs/group_step.png

ratio is ours / peer. The peers are measured where they are installed (`pip install -e '.[bench]'`). Every measurement
is a process of its own on one core with one thread; ours and the peer's follow each other. Both sides do the same work:
policy sizes, pictures, prompt and answer lengths, reward and number of updates are in `group_step_parts/works.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from group_step_parts.works import WORKS

HERE = Path(__file__).resolve().parent
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TOKENIZERS_PARALLELISM": "false",
    "JAX_PLATFORMS": "cpu",
}


def child(side: str, work: str, *, toy: bool, python: str = sys.executable) -> dict[str, Any]:
    """Runs one measurement, and gives what it printed.

    Raises:
      RuntimeError: it failed; with the end of what it wrote.
    """
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", f"group_step_parts.{side}", work, *(["--toy"] if toy else [])]
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    done = subprocess.run(
        command,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, *, toy: bool, with_peer: bool, peer_python: str) -> dict[str, Any]:
    """One line of the table."""
    work = WORKS[name]
    ours = child("ours", name, toy=toy)
    row = {"work": name, "ours_s": ours["ours_s"], "peer": work.peer, "peer_s": None, "ratio": None}
    row |= {"phases": {"ours": ours["phases"]}, "versions": ours["versions"]}
    if work.peer and with_peer:
        peer = child("peers", name, toy=toy, python=peer_python)
        row["peer_s"], row["phases"]["peer"] = peer["peer_s"], peer["phases"]
        row["ratio"] = row["ours_s"] / row["peer_s"]
        row["versions"] |= peer["versions"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'work':22} {'ours s':>8} {'peer s':>8} {'ratio':>6}  phases"]
    for row in rows:
        cells = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("ours_s", "peer_s", "ratio")]
        parts = [
            f"{side} {name} {value:.5g}" for side, phases in row["phases"].items() for name, value in phases.items()
        ]
        lines.append(f"{row['work']:22} {cells[0]:>8} {cells[1]:>8} {cells[2]:>6}  {'; '.join(parts)}")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Bars: seconds of both sides, and the ratio beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    compared = [row for row in rows if row["ratio"] is not None]
    figure, axes = plt.subplots(1, max(len(compared), 1), figsize=(3 * max(len(compared), 1), 3.2), squeeze=False)
    for axis, row in zip(axes[0], compared, strict=False):
        axis.bar(
            ["vero_jax", row["peer"].replace("Hugging Face", "HF")],
            [row["ours_s"], row["peer_s"]],
            color=["#2a6f97", "#b0b7bd"],
        )
        axis.set_title(f"{row['work']}\n1 / {1 / row['ratio']:.1f} of the time", fontsize=9)
        axis.set_ylabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def keep(rows: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """Writes the rows to a file that may hold others already, and gives all of them in the order of the works."""
    file = Path(path)
    held = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    found = {row["work"]: row for row in [*held, *rows]}
    ordered = [found[name] for name in WORKS if name in found]
    file.write_text(json.dumps({"rows": ordered}, indent=1), encoding="utf-8")
    return ordered


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON; the table goes to standard error")
    parser.add_argument("--only", nargs="+", choices=list(WORKS), default=list(WORKS), metavar="WORK")
    parser.add_argument("--ours-only", action="store_true", help="leave the peers out")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that the script works")
    parser.add_argument(
        "--report", metavar="JSON", help="keep what is measured in this file, and what it held of others"
    )
    parser.add_argument("--plot", metavar="PNG", help="draw the ratios")
    args = parser.parse_args(argv)
    installed = args.peer_python != sys.executable or importlib.util.find_spec("trl") is not None
    with_peer = installed and not args.ours_only
    if not installed and not args.ours_only:
        print("the peers are not installed (pip install -e '.[bench]'): ours only", file=sys.stderr)
    rows = []
    for name in args.only:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows.append(measure(name, toy=args.toy, with_peer=with_peer, peer_python=args.peer_python))
        if args.report:
            rows = keep(rows, args.report)
    if args.plot:
        plot(rows, args.plot)
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    print(json.dumps({"rows": rows, **machine}) if args.json else table(rows))
    if args.json:
        print(table(rows), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
