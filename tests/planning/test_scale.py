"""The page of slices: its figures are those of the configs as they are now, and the page is what its script writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vero_jax.planning.plan import RESERVED

REPO = Path(__file__).resolve().parents[2]
FIGURES = json.loads((REPO / "benchmarks" / "scale.json").read_text())


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", REPO / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_was_compiled_and_fits_with_all_of_its_programs():
    rows = [f"{config} {topology}" for config, topology, _ in script().ROWS]
    assert sorted(FIGURES) == sorted(rows)
    for row, found in FIGURES.items():
        assert found["fits"] is True, row
        assert max(program["peak"] for program in found["programs"]) == found["peak"]
        assert found["peak"] <= found["memory"] * (1 - RESERVED), row
        kinds = {program["name"].split(",")[0] for program in found["programs"]}
        assert kinds == {"reshard", "prefill", "encode", "read chunk", "store", "decode", "update",
                         "log-probabilities", "optimizer"}  # fmt: skip
        assert not any(program["error"] for program in found["programs"])


def test_the_page_is_written_from_the_figures():
    assert (REPO / "docs" / "scale.md").read_text() == script().page(FIGURES)


HELD = """
import json, sys
import jax
from vero_jax.config_loader import load_config
from vero_jax.planning.chips import Machine
from vero_jax.planning.plan import held_bytes
found = {}
for row, (config, settings, count) in json.loads(sys.argv[1]).items():
    machine = Machine("a stand-in", jax.devices()[:count], 0.0, None)
    found[row] = held_bytes(load_config([f"configs/{config}.yaml", *settings]), machine)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_is_held_and_what_is_compiled_are_still_the_same():
    """Weights, moments, gradients and keys per chip, and the sizes of all programs; nothing is compiled for that."""
    rows = {}
    for row, found in FIGURES.items():
        count = 1
        for size in found["mesh"].values():
            count *= size
        rows[row] = (row.split()[0], found["settings"], count)
    flags = f"--xla_force_host_platform_device_count={max(count for _, _, count in rows.values())}"
    done = subprocess.run(
        [sys.executable, "-c", HELD, json.dumps(rows)], cwd=REPO, capture_output=True, text=True, timeout=900,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for row, (held, names) in json.loads(done.stdout).items():
        assert held == pytest.approx(FIGURES[row]["held"], rel=1e-6), row
        assert names == [program["name"] for program in FIGURES[row]["programs"]], row
