"""Streams of text: whole characters, stop texts across tokens, nothing lost and nothing twice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vero_jax.serve.text import TextStream


def decode(ids):
    """One byte a token."""
    return bytes(ids).decode("utf-8", errors="replace")


def run(data: bytes, cuts, stop=()):
    stream, pieces = TextStream(decode, stop), []
    bounds = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    for number, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
        pieces.append(stream.add(list(data[start:end]), last=number == len(bounds) - 1))
    return stream, pieces


@given(st.text(max_size=40), st.lists(st.integers(0, 120), max_size=20))
@settings(max_examples=200, deadline=None)
def test_the_pieces_are_the_text(text, cuts):
    _, pieces = run(text.encode(), cuts)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.text("ab é", max_size=30), st.text("ab é", min_size=1, max_size=3), st.lists(st.integers(0, 60), max_size=9))
@settings(max_examples=300, deadline=None)
def test_nothing_behind_a_stop_text_comes_out(text, stop, cuts):
    stream, pieces = run(text.encode(), cuts, [stop])
    assert "".join(pieces) == text.split(stop)[0]
    assert stream.stopped == (stop in text)


def test_a_character_in_four_tokens_comes_out_whole():
    stream = TextStream(decode)
    parts = [stream.add([byte]) for byte in "a😀b".encode()]
    assert parts == ["a", "", "", "", "😀", "b"]


def test_what_might_be_a_stop_text_is_held_back_until_it_is_known():
    stream = TextStream(decode, ["END"])
    assert stream.add(list(b"x E")) == "x "
    assert stream.add(list(b"N")) == ""
    assert stream.add(list(b"xt E")) == "ENxt "
    assert stream.add(list(b"ND more")) == "" and stream.stopped
    assert stream.add(list(b"more")) == ""


@pytest.mark.parametrize("stop", [["b", "ab"], ["ab", "b"]])
def test_the_first_of_several_stop_texts_ends_the_answer(stop):
    stream = TextStream(decode, stop)
    assert stream.add(list(b"xxab"), last=True) == "xx"


def test_bytes_that_are_no_character_come_out_at_the_end():
    stream = TextStream(decode)
    assert stream.add([0xF0, 0x9F]) == ""
    assert stream.add([], last=True) == "\ufffd"
