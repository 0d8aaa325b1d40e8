"""Which slice holds which config: compiles every program of each for its slice, without one, and writes docs/scale.md.

    python benchmarks/scale.py                     # all rows of the table, an hour or two on two cores
    python benchmarks/scale.py qwen3_vl_2b v5e-16  # rows whose config or slice is named, the others stay as they are
    python benchmarks/scale.py h100-8              # needs jax's plugin for CUDA
    python benchmarks/scale.py --table             # only writes the page again

Figures are kept in benchmarks/scale.json: what they were compiled with, and for every program what
`python -m vero_jax.compile --json` says.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
FIGURES = REPO / "benchmarks" / "scale.json"
PAGE = REPO / "docs" / "scale.md"
GIB = 2**30

ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("qwen3_vl_2b", "v5e-16", ()),
    ("qwen3_vl_4b", "v6e-8", ()),
    ("qwen3_vl_8b", "v5p-16", ()),
    ("qwen3_vl_8b", "v6e-32", ()),
    ("qwen3_vl_8b", "h100-8", ()),
    ("qwen3_vl_30b_a3b", "v5p-32", ()),
    ("qwen3_vl_32b", "v5p-64", ()),
    ("qwen2_5_vl_7b", "v6e-16", ()),
    ("qwen2_5_vl_7b", "h100-8", ()),
    ("mimo_vl_7b", "v6e-16", ()),
    ("mimo_vl_7b", "h100-8", ()),
)
"""Config, slice, and settings that differ from the config's for this slice."""
COMPILERS = {"h100": "jax-cuda12-plugin"}
"""By kind of device; that of the others is libtpu."""

INTRO = """# Which slice holds which model

Compiled, not run: every program of a run was compiled for the real slice by its own compiler, on a machine without
one. That proves shapes, sharding, lowering and memory; it proves neither speed nor numbers. The lengths are the
recipe's own: for Qwen3-VL prompts and answers of 18,432 tokens each and pictures of 16.8 million pixels, so a learner's
row has 36,864 tokens and 65,536 patches; for Qwen2.5-VL 14,336 + 10,240 tokens, for MiMo-VL 14,336 + 14,336, and 9.4
million pixels for both. Weights, moments and gradients are float32, activations bfloat16, and a layer keeps its input
alone (`model.remat=layers`).

Written by `python benchmarks/scale.py`; compiled with {versions}.

| config | slice | mesh | peak, GiB of a chip | of | largest program | held in learning | held in sampling | \
update: recv GiB | roofline s | |
|---|---|---|---|---|---|---|---|---|---|---|
"""

NOTES = """
*Peak* is the largest of all programs with everything that lies beside it; 3 % of a chip are kept free. *Held* is what
lives through a phase: weights, moments and gradients, or weights, moments, sampling's own weights and the keys of
prompts and answers (`rollout.prompt_kv_tokens`, `rollout.response_kv_tokens`). *Update* is one micro-batch, one row to
each part of the mesh that has rows of its own; a `+` says that some collectives stand in loops of unknown length and
count once. The roofline is the largest of computing, memory and links at the vendors' peak figures: a bound, no
measurement.

**GPUs.** h100-8 are eight H100 of 80 GB, of which a process gets 92 %. XLA's compiler for them needs no GPU, only jax's
plugin for CUDA; what it would try out on a device (the fastest of several forms of a product) keeps its default.

{programs}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="configs or slices; all rows without any")
    parser.add_argument("--table", action="store_true", help="compile nothing, write the page from the figures kept")
    args = parser.parse_args(argv)
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for config, topology, settings in ROWS:
        if args.table or (args.rows and not {config, topology} & set(args.rows)):
            continue
        figures[f"{config} {topology}"] = compiled(config, topology, settings)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(page(figures))
    return 0


def compiled(config: str, topology: str, settings: Sequence[str]) -> dict[str, Any]:
    """What the command says, and with what it was compiled. A config that does not fit is a finding, too."""
    words = [f"configs/{config}.yaml", *settings, "--topology", topology, "--json"]
    print(f"compiling {' '.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "vero_jax.compile", *words],
        cwd=REPO, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))},
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise SystemExit(f"python -m vero_jax.compile {' '.join(words)} ended with {done.returncode}")
    found = json.loads(done.stdout)
    found.pop("largest", None)
    used = ("jax", COMPILERS.get(topology.split("-")[0], "libtpu"))
    versions = {name: importlib.metadata.version(name) for name in used}
    return {"settings": list(settings), "versions": versions, **found}


def page(figures: dict[str, Any]) -> str:
    """The page; rows that were never compiled say so."""
    versions = sorted({tuple(found["versions"].items()) for found in figures.values()})
    named = "; ".join(", ".join(f"{name} {version}" for name, version in pairs) for pairs in versions)
    lines = [INTRO.format(versions=named)]
    for config, topology, settings in ROWS:
        found = figures.get(f"{config} {topology}")
        if found is None:
            lines.append(f"| `{config}` | {topology} | | not compiled | | | | | | | |\n")
            continue
        lines.append(row(config, topology, settings, found))
    return "".join(lines) + NOTES.format(programs=programs(figures))


def row(config: str, topology: str, settings: Sequence[str], found: dict[str, Any]) -> str:
    worst = max(found["programs"], key=lambda program: program["peak"])
    update = next(program for program in found["programs"] if program["name"].startswith("update"))
    held = found["held"]
    learning = sum(held[name] for name in ("weights", "optimizer", "gradients") if name in held)
    sampling = sum(size for name, size in held.items() if name != "gradients")
    mesh = " x ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1)
    extra = "".join(f", `{setting}`" for setting in settings)
    plus = "+" if update["open_loops"] else ""
    verdict = "fits" if found["fits"] else "does not fit"
    return (
        f"| `{config}`{extra} | {topology} | {mesh} | {found['peak'] / GIB:.1f} | {found['memory'] / GIB:.1f} | "
        f"{worst['name'].split(',')[0]} | {learning / GIB:.1f} | {sampling / GIB:.1f} | "
        f"{update['received'] / GIB:.1f}{plus} | {update['roofline']:.1f} | {verdict} |\n"
    )


def programs(figures: dict[str, Any]) -> str:
    """Every program of every row."""
    lines = ["## Every program", ""]
    for config, topology, _ in ROWS:
        found = figures.get(f"{config} {topology}")
        if found is None:
            continue
        head = "| program | args GiB | temp GiB | peak GiB | TFLOP | model TFLOP | recv GiB | roofline s | compile s |"
        lines += [f"### {config}, {topology}", "", head, "|---|---|---|---|---|---|---|---|---|"]
        for program in found["programs"]:
            received = f"{program['received'] / GIB:.2f}{'+' if program['open_loops'] else ''}"
            lines.append(
                f"| {program['name']} | {program['arguments'] / GIB:.2f} | {program['temporary'] / GIB:.2f} | "
                f"{program['peak'] / GIB:.2f} | {program['flops'] / 1e12:.3g} | {program['model_flops'] / 1e12:.3g} | "
                f"{received} | {program['roofline']:.3g} | {program['compile_s']:.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
