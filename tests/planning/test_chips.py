"""Slices by their names, and what is said of those that do not exist."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from vero_jax.errors import UserError
from vero_jax.planning.chips import CHIPS, prepare, slice_names, topology_name
from vero_jax.planning.gpus import GPUS, gpu_topology


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("v5e-16", ("v5e", "v5e:4x4")),
        ("v5litepod-16", ("v5e", "v5e:4x4")),
        ("v5p-16", ("v5p", "v5p:2x2x2")),  # its number counts cores, of which a chip has two
        ("v5p:2x2x4", ("v5p", "v5p:2x2x4")),
        ("V6E-8", ("v6e", "v6e:2x4")),
    ],
)
def test_a_slice_is_named_by_size_or_by_shape(text, wanted):
    assert topology_name(text) == wanted


def test_every_named_slice_has_as_many_chips_as_its_name_says():
    for name in slice_names():
        kind, shape = topology_name(name)
        chips = 1
        for side in shape.split(":")[1].split("x"):
            chips *= int(side)
        assert int(name.split("-")[1]) == chips * (2 if kind == "v5p" else 1) and kind in CHIPS


@pytest.mark.parametrize("text", ["v5e-17", "v7-8", "v5p:2x2", "h100", "v5p-2"])
def test_what_is_no_slice_is_said_with_those_that_are(text):
    with pytest.raises(UserError, match=f"there is no slice '{text}'.*v5p-16"):
        topology_name(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("h100-8", ("h100", 8)), ("A100:1", ("a100", 1)), ("h200-16", ("h200", 16)), ("v5e-8", None), ("cpu:8", None)],
)
def test_gpus_are_named_by_kind_and_number(text, wanted):
    assert gpu_topology(text) == wanted
    assert wanted is None or wanted[0] in CHIPS


@pytest.mark.parametrize("text", ["h100-12", "a100:9"])
def test_hosts_have_eight_gpus(text):
    with pytest.raises(UserError, match=f"'{text}' must have up to 8 GPUs, or 8 on each host"):
        gpu_topology(text)


def test_the_figures_of_a_gpu_are_those_of_its_roofline():
    for kind, gpu in GPUS.items():
        assert CHIPS[kind].memory < gpu.memory and CHIPS[kind].memory_bandwidth == gpu.memory_bandwidth
        assert CHIPS[kind].name in gpu.name  # by which a device at hand is known


def test_fake_devices_are_asked_for_before_jax_starts():
    environ = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=2"}
    prepare("cpu:8", environ)
    assert environ["XLA_FLAGS"].split() == ["--a=1", "--xla_force_host_platform_device_count=8"]
    assert environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("text", ["cpu:many", "cpu:0", "cpu:", "cpu-8", "cpus", "cpu:²"])
def test_fake_devices_have_one_spelling(text):
    with pytest.raises(UserError, match=f"'{text}' must be cpu or cpu:<number of devices>"):
        prepare(text, {})


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_every_named_slice_can_be_compiled_for_and_libtpu_asks_for_nothing():
    code = f"""
from vero_jax.planning.chips import machine, prepare
for name in {slice_names()}:
    prepare(name)
    print(name, len(machine(name).devices))
"""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TPU_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    for line in done.stdout.splitlines():
        name, chips = line.split()
        assert int(name.split("-")[1]) == int(chips) * (2 if "v5p" in name else 1)
    assert len(done.stdout.splitlines()) == len(slice_names())
