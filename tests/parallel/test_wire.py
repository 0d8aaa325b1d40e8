"""Values between processes: what goes in comes out, and nothing that is read runs code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vero_jax.data.pipeline import _Drawn
from vero_jax.parallel.peers import Peer
from vero_jax.parallel.wire import from_bytes, to_bytes
from vero_jax.types import Example, Prompt, Score


def example() -> Example:
    extra = {"index": 3, "tolerance": 0.1, "nested": [1, None, {"a": True}], "number": np.float32(0.25)}
    return Example(
        "id", "stem", "src", ({"role": "user", "content": "<image> ü"},), (b"\x00\xff",), "numeric", "1", extra
    )


def test_plain_values_come_back_as_they_were():
    value = {1: ("a", [None, True, 2, 0.1, 1e300]), ("k", 2): Path("/x/y"), "text": "ü\n", 2**70: b""}
    back = from_bytes(to_bytes(value))
    assert back == value and list(back) == list(value)
    assert math.isnan(from_bytes(to_bytes(math.nan))) and from_bytes(to_bytes(-math.inf)) == -math.inf


def test_arrays_keep_type_shape_and_bits_and_may_be_written_to():
    for array in (
        np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::2],
        np.array([np.nan, -0.0], np.float32),
        np.zeros((0, 3)),
    ):
        back = from_bytes(to_bytes([array]))[0]
        assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()
        back[...] = 0
    scalar = from_bytes(to_bytes(np.float32(0.1)))
    assert scalar == np.float32(0.1) and scalar.dtype == np.float32


def test_a_prompt_with_its_pixels_and_a_score_come_back():
    prompt = Prompt(
        example(), np.arange(3, dtype=np.int32), np.zeros((3, 3), np.int32), np.array([-1, 0, -1], np.int32),
        np.arange(8, dtype=np.uint8).reshape(4, 2), np.array([[1, 2, 2]], np.int32), ((5, 6),), ((4, 4),),
    )  # fmt: skip
    drawn, score, peer = from_bytes(
        to_bytes((_Drawn(prompt, (("row", "why"),)), Score(math.nan, 1.0, 0.5, missing="late"), Peer(1, "host", 2)))
    )
    assert drawn.problems == (("row", "why"),) and drawn.value.example == prompt.example
    assert drawn.value.image_sizes == ((5, 6),) and np.array_equal(drawn.value.patches, prompt.patches)
    assert score.missing == "late" and score.format == 0.5 and math.isnan(score.total) and peer == Peer(1, "host", 2)


@pytest.mark.parametrize("value", [lambda: 0, object(), {1, 2}, np.array([None])])
def test_what_is_no_data_is_refused(value):
    with pytest.raises(TypeError, match="cannot be passed to another process"):
        to_bytes(value)


@pytest.mark.parametrize("name", ["os:system", "vero_jax.errors:UserError", "vero_jax.parallel.wire:from_bytes"])
def test_what_is_read_cannot_name_code(name):
    head = json.dumps({"t": name, "v": {"x": 1}}).encode()
    with pytest.raises(TypeError, match="no dataclass of this package"):
        from_bytes(len(head).to_bytes(8, "little") + head)
