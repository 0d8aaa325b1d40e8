"""The system prompt: by name, by file or as text, and never twice."""

from __future__ import annotations

import pytest

from vero_jax.data.prompts import carries_format, names, system_prompt
from vero_jax.errors import UserError


def test_the_built_in_prompt_asks_for_what_the_rewards_look_for():
    assert names() == ["think_answer"]
    text = system_prompt("think_answer")
    assert carries_format(text)
    for part in ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{}"):
        assert part in text


def test_a_file_and_plain_text_are_taken_as_they_are(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff Think hard.\n", "utf-8")
    assert system_prompt(str(path)) == "Think hard."
    assert system_prompt("Think: first, then answer") == "Think: first, then answer"
    assert system_prompt("") == ""


def test_a_mistake_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"think_answers.*think_answer"):
        system_prompt("think_answers")
    with pytest.raises(UserError, match="cannot be read"):
        system_prompt(str(tmp_path / "absent.txt"))
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="UTF-8"):
        system_prompt(str(broken))
    (tmp_path / "large.txt").write_bytes(b"a" * 200_000)
    with pytest.raises(UserError, match="no system prompt"):
        system_prompt(str(tmp_path / "large.txt"))
