"""A sample that is lost changes nothing for the others: the loss of a batch with it is that of the batch without it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.learning.policies import make_group, random_groups, tiny_model
from tests.learning.test_update import one_device, small, table_learner
from tests.rewards.judge_endpoint import refuses, running
from vero_jax.config import AlgorithmConfig, DataConfig, JudgeConfig, MiniConfig, OptimConfig, RewardConfig
from vero_jax.data import pipeline, prepare
from vero_jax.data.images import ImageError, open_image, to_rgb
from vero_jax.learning.advantages import add_advantages
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.rewards.judge_pool import JudgePool
from vero_jax.rewards.pool import RewardPool
from vero_jax.rewards.settings import RewardItem
from vero_jax.rewards.total import missing_score
from vero_jax.types import Group, Score

LOST = missing_score("timeout")


def scored(count: int = 5, n: int = 4, images: bool = False) -> list[Group]:
    rng = np.random.default_rng(3)
    return [
        dataclasses.replace(
            group, advantages=None, scores=tuple(Score(float(s), float(s), 1.0) for s in rng.random(n).round(1))
        )
        for group in random_groups(count, n, images=images)
    ]


def with_lost(groups: Sequence[Group]) -> list[Group]:
    """The same groups with responses that have no score in three places, and a group that has none at all."""
    extra = make_group([[7, 8, 9], [3] * 15], scores=[LOST, LOST]).responses
    found = [
        dataclasses.replace(group, responses=(*group.responses, extra[0]), scores=(*group.scores, LOST))
        for group in groups
    ]
    found[1] = dataclasses.replace(
        groups[1], responses=(extra[1], *groups[1].responses, extra[0]), scores=(LOST, *groups[1].scores, LOST)
    )
    return [*found, make_group([[1, 2], [4] * 9], scores=[LOST, LOST], seed=9)]


def updated(
    learner: Learner, params: Any, groups: Sequence[Group], algorithm: AlgorithmConfig, reference: Any
) -> tuple:
    groups = add_advantages(groups, algorithm)
    state, metrics = learner.step(learner.init_state(params), groups, 1, reference=reference)
    return state.params, metrics


@pytest.fixture(scope="module")
def table() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = {"E": (100, 6), "W": (6, 100), "b": (100,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def assert_equal(left: tuple, right: tuple, tolerance: float = 1e-6) -> None:
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac"):
        assert left[1][name] == pytest.approx(right[1][name], rel=tolerance, abs=tolerance), name
    if "actor/kl_loss" in right[1]:
        assert left[1]["actor/kl_loss"] == pytest.approx(right[1]["actor/kl_loss"], rel=tolerance)
    assert left[1]["actor/grad_norm"] > 0
    for a, b in zip(jax.tree.leaves(left[0]), jax.tree.leaves(right[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("loss_mode", ["gspo", "vanilla"])
@pytest.mark.parametrize(
    "aggregation", ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)
def test_the_loss_is_that_of_the_batch_without_them(table, aggregation, loss_mode, kl):
    actor = small(loss_mode=loss_mode, loss_agg_mode=aggregation, kl_loss_coef=kl, entropy_coef=0.01)
    learner = table_learner(table, actor)
    reference = {name: value + 0.1 for name, value in table.items()} if kl else None
    groups = scored()
    whole, without = (
        updated(learner, table, batch, AlgorithmConfig(), reference) for batch in (with_lost(groups), groups)
    )
    assert_equal(whole, without)


@pytest.mark.parametrize(
    "estimator",
    ["grpo", "dr_grpo", "grpo_vectorized", "grpo_passk", "rloo", "opo", "gpg", "reinforce_plus_plus",
     "reinforce_plus_plus_baseline"],
)  # fmt: skip
def test_whatever_the_advantages_are(table, estimator):
    groups = scored()
    algorithm = AlgorithmConfig(adv_estimator=estimator)
    learner = table_learner(table, small())
    assert_equal(*(updated(learner, table, batch, algorithm, None) for batch in (with_lost(groups), groups)))


def test_with_pictures_and_a_real_policy():
    mesh, model = one_device(), tiny_model()
    policy = TrainablePolicy.of_model(model, mesh, attention_block=64, vocab_block=128)
    actor = small(row_patches=128)
    learner = Learner(policy, actor, OptimConfig(lr=1e-3, warmup_steps=0), mesh, max_response_length=32)
    params, groups = model.init_params(0), scored(images=True)
    whole, without = (updated(learner, params, batch, AlgorithmConfig(), None) for batch in (with_lost(groups), groups))
    for name in ("actor/pg_loss", "actor/grad_norm"):
        assert whole[1][name] == pytest.approx(without[1][name], rel=1e-5, abs=1e-7)


# How samples are lost.

CUSTOM = """
import os, time

def act(response_text, ground_truth, extra_info):
    if response_text == "hangs":
        time.sleep(600)
    if response_text == "dies":
        os._exit(3)
    if response_text == "raises":
        raise ValueError("my own mistake")
    return {"huge": 1e39, "nothing": float("nan")}.get(response_text) or float(response_text)
"""


@pytest.mark.parametrize("way", ["hangs", "dies", "raises", "huge", "nothing"])
def test_a_reward_that_fails_costs_its_own_response_only(tmp_path: Path, way: str, table):
    file = tmp_path / "acts.py"
    file.write_text(CUSTOM)
    config = RewardConfig(workers=2, timeout_s=2.0, custom=f"{file}:act")
    texts = [["0.5", "1"], ["0", way, "0.5", "0.25"], ["1", "0"], [way, way]]
    items = [[RewardItem(text, 5, "", "custom", {}) for text in group] for group in texts]
    with RewardPool(config, max_response_length=100_000) as pool:
        found = dict(pool.score_groups(enumerate(items)))
    groups, others = [], []
    for number, words in enumerate(texts):
        scores = found[number]
        assert [score.missing is not None for score in scores] == [word == way for word in words]
        group = make_group([[number + 1, place + 3] for place in range(len(words))], scores=scores, seed=number)
        kept = [place for place, word in enumerate(words) if word != way]
        groups.append(group)
        if kept:
            part = [tuple(values[place] for place in kept) for values in (group.responses, group.scores)]
            others.append(dataclasses.replace(group, responses=part[0], scores=part[1]))
    learner = table_learner(table, small())
    assert_equal(*(updated(learner, table, batch, AlgorithmConfig(), None) for batch in (groups, others)))


def test_a_judge_that_dies_costs_the_responses_that_it_was_to_judge(table):
    def judged(group: Group, kind: str) -> Group:
        prompt = group.prompt
        example = dataclasses.replace(
            prompt.example, reward_type=kind, messages=({"role": "user", "content": "Describe it."},)
        )
        responses = tuple(dataclasses.replace(one, text=f"answer {place}") for place, one in enumerate(group.responses))
        return dataclasses.replace(group, prompt=dataclasses.replace(prompt, example=example), responses=responses)

    groups = [judged(group, "llm_judge" if number == 2 else "numeric") for number, group in enumerate(scored())]
    with running() as endpoint:
        server = JudgeConfig(base_url=endpoint.url, max_retries=0, timeout_s=2, cache=False, sleep="never")
        config = RewardConfig(judge="openai", judge_server=server)
        with JudgePool(config, cache_dir="unused", say=lambda _: None) as judge:
            endpoint.otherwise = refuses(503, "gone")
            futures = [judge.submit(group) for group in groups]
            blended = [
                dataclasses.replace(group, scores=judge.blended(group, asked))
                for group, asked in zip(groups, futures, strict=True)
            ]
    assert [all(score.missing for score in group.scores) for group in blended] == [False, False, True, False, False]
    learner = table_learner(table, small())
    others = [group for number, group in enumerate(groups) if number != 2]
    assert_equal(*(updated(learner, table, batch, AlgorithmConfig(), None) for batch in (blended, others)))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "DDS", "PPM", "ICO", "JPEG2000"])
def test_whatever_is_wrong_with_a_picture_it_is_one_kind_of_error(kind):
    """Cut off, with bytes that were changed, and with a head alone: it is read, or refused as a picture."""
    try:
        data = encoded(kind)
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow writes no {kind} ({error})")
    rng, refused = np.random.default_rng(2), 0
    to_rgb(open_image(data))
    for attempt in range(150):
        broken = bytearray(data[: rng.integers(4, len(data))] if attempt % 3 == 0 else data)
        for place in rng.integers(0, min(len(broken), 200 if attempt % 3 == 1 else len(broken)), attempt % 7):
            broken[place] = rng.integers(256)
        try:
            to_rgb(open_image(bytes(broken)))
        except ImageError:
            refused += 1
    assert refused > 10


def test_a_damaged_record_is_replaced_and_counted_and_the_others_stay(tmp_path):
    settings = DataConfig(cache_dir=str(tmp_path), mini=MiniConfig(240, 60, 7))
    data = prepare.prepare("vero_mini", settings)

    def drawn() -> tuple[list[str], dict[str, int]]:
        with pipeline.QuestionStream(data, settings, batch_size=12) as stream:
            return [example.id for step in range(20) for example in stream.batch(step)], stream.problems

    before, problems = drawn()
    assert not problems
    file = next(path for path in tmp_path.rglob("*train*array_record*") if path.is_file())
    content = bytearray(file.read_bytes())
    middle = len(bytes(content[: 1 << 16]).rstrip(bytes(1))) // 2  # the records; an index stands at the end of the file
    for place in range(middle, middle + 40):
        content[place] ^= 0xFF
    file.write_bytes(content)
    after, problems = drawn()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert 0 < len(changed) < len(before) / 3
    assert len({old for old, _ in changed}) < 40  # rows of one damaged piece of the file
    assert set(problems) == {"record not readable"} and problems["record not readable"] >= len(changed)
