"""Slices by their names, and what is said of those that do not exist."""

from __future__ import annotations

import pytest

from vero_jax.errors import UserError
from vero_jax.planning.chips import CHIPS, prepare, slice_names, topology_name


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


def test_fake_devices_are_asked_for_before_jax_starts():
    environ = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=2"}
    prepare("cpu:8", environ)
    assert environ["XLA_FLAGS"].split() == ["--a=1", "--xla_force_host_platform_device_count=8"]
    assert environ["JAX_PLATFORMS"] == "cpu"
    with pytest.raises(UserError, match="cpu:<number of devices>"):
        prepare("cpu:many", environ)
