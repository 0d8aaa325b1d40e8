"""What a config needs of a machine that is not at hand: its programs compiled for it, and put beside its memory.

    python -m vero_jax.compile configs/qwen3_vl_8b.yaml --topology v5p-16
    python -m vero_jax.compile configs/qwen3_vl_8b.yaml --topology h100-8
    python -m vero_jax.compile configs/mini.yaml --topology cpu:8 --json
    python -m vero_jax.compile configs/mini.yaml                          # for the devices of this machine

TPU slices are named by their size (v5e-16, v5p-16, v6e-8) or shape (v5p:2x2x4), GPUs by kind and number (a100, h100,
h200). Nothing is computed and no weights are needed: shapes, sharding, memory and lowering are proven by it, speed and
numbers are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from vero_jax.config import Config
from vero_jax.config_loader import load_config
from vero_jax.errors import friendly
from vero_jax.planning.chips import GIB, Machine, machine, prepare


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 when everything fits, 1 when it does not."""
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="*", help="a config file, and settings a.b.c=value")
    parser.add_argument("--topology", help="v5e-16, v5p:2x2x4, h100-8, cpu:8, ...; without it, the devices here")
    parser.add_argument("--only", default="", help="only programs whose name begins so: update, decode, prefill, ...")
    parser.add_argument(
        "--search", action="store_true", help="find the largest rows and most answers that fit, up to 8 times"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; what goes on is said on standard error")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config)
    prepare(args.topology)
    # Here, because jax reads what `prepare` has set when it starts.
    from vero_jax.planning.plan import plan

    target = machine(args.topology)
    found = plan(config, target, _say, args.only)
    largest = _search(config, target) if args.search else None
    if args.json:
        print(json.dumps(found.to_json() | {"largest": largest}, indent=1))
    else:
        print("\n".join(report(found, largest)))
    return 0 if found.fits else 1


def report(found: Any, largest: dict[str, Any] | None = None) -> list[str]:
    """The lines of a `Plan`."""

    def gib(size: float) -> str:
        return f"{size / GIB:.2f}"

    sizes = " x ".join(f"{name} {size}" for name, size in found.mesh.items() if size > 1) or "one device"
    lines = [
        f"{found.policy}, {found.parameters / 1e9:.2f} B parameters, on {found.machine}: {sizes}",
        "",
        "held on each device, GiB: " + ", ".join(f"{name} {gib(size)}" for name, size in found.held.items() if size),
        "",
        f"{'program, per device':64} {'args':>7} {'temp':>7} {'peak':>7} {'TFLOP':>8} {'model':>8} {'recv GiB':>8} "
        f"{'roof s':>8} {'compile s':>9}",
    ]
    for program in found.programs:
        roof = "-" if program.roofline is None else f"{program.roofline:.3g}"
        received = gib(program.received) + ("+" if program.open_loops else "")
        lines.append(
            f"{program.name:64} {gib(program.arguments):>7} {gib(program.temporary):>7} {gib(program.peak):>7} "
            f"{program.flops / 1e12:>8.3g} {program.model_flops / 1e12:>8.3g} {received:>8} {roof:>8} "
            f"{program.compile_s:>9.1f}"
        )
        if program.error:
            lines.append(f"  {program.error}")
    lines.append("")
    verdict = "fits" if found.fits else "does not fit"
    lines.append(f"{verdict}: peak {gib(found.peak)} of {gib(found.memory)} GiB (compiled, not run)")
    about = {name: size for name, size in found.estimate.items() if size is not None}
    if about and largest is None:
        sizes = ", ".join(f"{_KEYS[name]}={size}" for name, size in about.items())
        lines.append(f"about the most that fits, by proportion: {sizes} (--search compiles them)")
    if largest is not None:
        asked = {"row_length": found.row_length, "concurrent_responses": found.concurrent_responses}
        # The search ends there, whatever else would fit.
        more = {name: " or more" if largest[name] >= _MOST // 8 * size else "" for name, size in asked.items()}
        sizes = ", ".join(f"{_KEYS[name]}={largest[name]}{more[name]}" for name in asked)
        lines.append(f"the most that fits: {sizes}")
    return lines


_KEYS = {"row_length": "actor.row_length", "concurrent_responses": "rollout.concurrent_responses"}


def _search(config: Config, target: Machine) -> dict[str, Any]:
    """The largest row length and number of answers side by side, each to an eighth of itself, found by compiling."""
    from vero_jax.planning.plan import plan

    def fits(changed: Config, only: str) -> bool:
        return plan(changed, target, _say, only).fits

    def with_rows(eighths: int) -> Config:
        length = max(config.actor.row_length * eighths // 8 // 512 * 512, 512)
        return dataclasses.replace(config, actor=dataclasses.replace(config.actor, row_length=length))

    def with_answers(eighths: int) -> Config:
        count = max(config.rollout.concurrent_responses * eighths // 8, 1)
        return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, concurrent_responses=count))

    rows = _largest(lambda eighths: fits(with_rows(eighths), "update"))
    answers = _largest(lambda eighths: fits(with_answers(eighths), "decode"))
    return {
        "row_length": with_rows(rows).actor.row_length if rows else 0,
        "concurrent_responses": with_answers(answers).rollout.concurrent_responses if answers else 0,
    }


_MOST = 64
"""Eighths of what the config has, up to which is searched."""


def _largest(fits: Any, most: int = _MOST) -> int:
    """The largest number up to `most` that fits, of those that grow by at most an eighth; 0 if not even 1 does."""
    low, high = (8, 16) if fits(8) else (0, 8)
    while low >= 8 and high <= most and fits(high):
        low, high = high, 2 * high
    if low >= most:
        return low
    while high - low > max(low // 8, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
