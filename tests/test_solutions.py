"""Reference responses made from a row's ground truth."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vero_jax.config import ColdStartConfig, Config, RolloutConfig
from vero_jax.data.solutions import reference_solution
from vero_jax.rewards.router import score_response
from vero_jax.rewards.settings import RewardSettings
from vero_jax.setup import System
from vero_jax.types import Example, Prompt


def prompt_of(reward_type: str, truth: str, solution: str = "", **extra) -> Prompt:
    example = Example(
        "q", "stem", "s", ({"role": "user", "content": "<image>?"},), (b"",), reward_type, truth, extra, solution
    )
    return Prompt(
        example,
        token_ids=np.zeros(1, np.int32),
        positions=np.zeros((1, 3), np.int32),
        image_index=np.full(1, -1, np.int32),
        patches=np.zeros((0, 1536), np.uint8),
        grids=np.zeros((0, 3), np.int32),
        image_sizes=((200, 100),),
        resized_sizes=((160, 64),),
    )


BOX = json.dumps([{"bbox_2d": [20, 10, 60, 50], "label": "cup"}])


@pytest.mark.parametrize(
    ("reward_type", "truth"),
    [
        ("string_match", "blue"),
        ("multiple_choice", "B"),
        ("number_list", "2, 1, 3"),
        ("web_action", '{"ACTION": "CLICK", "MARK": 3, "VALUE": "None"}'),
        ("numeric", "12.5"),
        ("list_string_match", "['violet', 'purple']"),
        ("counting", "4"),
        ("search", "exit"),
        ("grounding", BOX),
        ("clicking", BOX),
    ],
)
def test_a_solution_made_from_the_ground_truth_earns_the_full_reward(reward_type, truth):
    text = reference_solution(prompt_of(reward_type, truth), "normalized_1000")
    extra = {"image_sizes": [[200, 100]]}
    score = score_response(text, truth, reward_type, extra, settings=RewardSettings(coordinates="normalized_1000"))
    assert (score.accuracy, score.format) == (1.0, 1.0), text


def test_a_policy_that_answers_in_pixels_learns_pixels_of_the_image_it_sees():
    stored = "<think>x</think><answer>[{}]</answer>"
    text = reference_solution(prompt_of("clicking", BOX, solution=stored), "pixels")
    assert json.loads(text.split("<answer>")[1].removesuffix("</answer>")) == [{"point_2d": [32, 19]}]
    assert reference_solution(prompt_of("clicking", BOX, solution=stored), "normalized_1000") == stored


@pytest.mark.parametrize(
    ("reward_type", "truth"),
    [
        ("instruction_following", '{"instructions": []}'),
        ("grounding", "no boxes"),
        ("string_match", " "),
        ("grounding", "[1]"),
    ],
)
def test_rows_without_an_answer_give_no_solution(reward_type, truth):
    text = reference_solution(prompt_of(reward_type, truth), "normalized_1000")
    assert text == "" or "\\boxed{ }" in text


@pytest.mark.parametrize(("limit", "kept"), [(None, ["a"]), (5, ["a", "b"]), (2, [])])
def test_the_cold_start_leaves_out_solutions_that_are_too_long(limit, kept):
    config = Config(rollout=RolloutConfig(max_response_length=3), cold_start=ColdStartConfig(max_solution_length=limit))
    processor = SimpleNamespace(encode_response=lambda text: np.zeros(len(text), np.int32))
    system = SimpleNamespace(config=config, processor=processor, coordinates="normalized_1000")
    prompts = [prompt_of("string_match", name, solution=length * "x") for name, length in (("a", 3), ("b", 5))]
    pairs = System.solved(system, prompts)
    assert [prompt.example.ground_truth for prompt, _ in pairs] == kept
