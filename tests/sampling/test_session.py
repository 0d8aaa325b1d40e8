"""Sessions: requests that come and go at any time, what they report, and programs that are compiled beforehand."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
from sampling_cases import (
    MODEL,
    ROLLOUT,
    STOP,
    engine,
    engine_with,
    make_prompt,
    mesh,
    params,
    plain_logits,
)  # fmt: skip

from vero_jax.config import SamplingConfig
from vero_jax.errors import UserError
from vero_jax.sampling.engine import Engine
from vero_jax.sampling.inputs import sample_keys
from vero_jax.sampling.session import Request

PROMPTS = [make_prompt(seed, grids=[] if seed in (2, 5) else None) for seed in range(7)]
BANNED = [1, 2, 3, 4]


def request(index=0, n=2, limit=9, **sampling) -> Request:
    keys = sample_keys(PROMPTS, n, seed=0, step=0)[index]
    return Request(PROMPTS[index], keys, SamplingConfig(**sampling), limit)


class Client:
    """Puts the pieces of a session's responses together: {(prompt, sample): tokens, log-probabilities, reason}."""

    def __init__(self, session) -> None:
        self.session = session
        self.numbers: dict[int, int] = {}
        self.pieces = collections.defaultdict(list)

    def ask(self, index: int, **kwargs) -> int:
        number = self.session.submit(request(index, **kwargs))
        self.numbers[number] = index
        return number

    def go_on(self, max_steps: int | None = None) -> None:
        for drawn in self.session.advance(max_steps):
            key = self.numbers[drawn.request], drawn.sample
            assert drawn.start == sum(len(piece.token_ids) for piece in self.pieces[key])
            assert not self.pieces[key] or self.pieces[key][-1].stop_reason is None
            self.pieces[key].append(drawn)

    def finish(self, max_steps: int | None = None) -> dict:
        for _ in range(1000):
            if self.session.idle:
                break
            self.go_on(max_steps)
        return {
            key: (*(np.concatenate([getattr(p, name) for p in pieces]) for name in ("token_ids", "logprobs")),
                  pieces[-1].stop_reason)
            for key, pieces in self.pieces.items()
        }  # fmt: skip


def client(by=None, n=2, limit=9, **kwargs) -> Client:
    return Client((by or engine()).session(params(), n=n, max_new_tokens=limit, **kwargs))


def same(got, want) -> None:
    assert got.keys() == want.keys()
    for key, (tokens, logprobs, reason) in got.items():
        np.testing.assert_array_equal(tokens, want[key][0])
        np.testing.assert_allclose(logprobs, want[key][1], atol=2e-5)
        assert reason == want[key][2] == ("stop" if tokens[-1] == STOP else "length")


@pytest.fixture(scope="module")
def alone():
    """What each request draws when nobody else is there."""
    found = {}
    for index in range(7):
        one = client()
        one.ask(index)
        found |= one.finish()
    return found


@pytest.mark.parametrize("max_steps", [1, 3, None])
def test_requests_may_come_while_others_are_drawn(alone, max_steps):
    many = client()
    for index in range(7):
        many.ask(index)
        many.go_on(max_steps)
    same(many.finish(max_steps), alone)


def test_tokens_come_out_while_a_response_goes_on():
    one = client()
    one.ask(0)
    one.finish(max_steps=2)
    assert max(len(pieces) for pieces in one.pieces.values()) >= 3


def test_a_session_without_work_does_nothing(alone):
    one = client()
    assert one.session.idle and one.session.advance() == []
    one.ask(3)
    one.finish()
    assert one.session.idle and one.session.advance() == []
    one.ask(4)
    assert {key: value for key, value in one.finish().items() if key[0] == 4}.keys() == {(4, 0), (4, 1)}


def test_what_is_cancelled_is_forgotten_and_leaves_no_trace(alone):
    many = client()
    numbers = [many.ask(index) for index in range(7)]
    many.go_on(max_steps=2)
    many.session.cancel(numbers[1])  # in lanes
    many.session.cancel(numbers[6])  # waits
    many.session.cancel(numbers[6])
    many.session.cancel(999)
    found = many.finish(max_steps=2)
    same({k: v for k, v in found.items() if k[0] not in (1, 6)}, {k: v for k, v in alone.items() if k[0] not in (1, 6)})
    assert all(found[key][2] is None for key in found if key[0] == 1) and not any(key[0] == 6 for key in found)
    shard = many.session.scheduler.shards[0]
    assert shard.live() == 0 and not shard.page_owner and all(unit is None for unit in shard.units)
    sizes = many.session.sizes
    assert sorted(shard.free_prompt_pages) == list(range(sizes.prompt_pages))
    assert sorted(shard.free_pages) == list(range(sizes.response_pages))
    assert sorted(shard.free_units) == list(range(sizes.prompts))


def test_responses_that_are_drawn_again_are_given_once(alone):
    many = client(engine_with(concurrent_responses=6, response_page=3, response_kv_tokens=18))
    for index in range(7):
        many.ask(index)
    same(many.finish(max_steps=1), alone)
    assert many.session.engine.stats.preempted > 0


def test_eight_devices_draw_the_same_with_few_lanes_and_pages(alone):
    by = Engine(
        MODEL, dataclasses.replace(ROLLOUT, concurrent_responses=16, response_page=3, response_kv_tokens=96),
        mesh(8, data=4, tensor=2), stop_ids=[STOP], banned_ids=BANNED,
    )  # fmt: skip
    placed = jax.device_put(params(), MODEL.shardings(by.mesh))
    many = Client(by.session(placed, n=2, max_new_tokens=9))
    for index in range(7):
        many.ask(index)
    same(many.finish(), alone)


def test_the_last_responses_move_into_fewer_lanes(alone):
    by = engine_with(concurrent_responses=16, response_page=2)
    many = client(by)
    for index in range(7):
        many.ask(index)
    same(many.finish(), alone)
    long = client(by, limit=40)
    for index in range(7):
        long.ask(index, limit=np.array([40 if index == 3 else 4, 4], np.int32))
    by.stats.lane_steps = 0
    found = long.finish()
    assert len(found[3, 0][0]) == 40 or found[3, 0][2] == "stop"
    assert by.guard.counts["move"] > 0 and by.stats.lane_steps < 16 * 45 * 0.7


def test_warped_logprobs_are_those_of_the_distribution_drawn_from():
    one = client(truncated=True, penalties=True, warped_logprobs=True)
    sampling = {"top_k": 5, "temperature": 0.8, "repetition_penalty": 1.4, "presence_penalty": 0.5,
                "frequency_penalty": 0.25}  # fmt: skip
    one.ask(1, **sampling)
    for (index, sample), (tokens, logprobs, _) in one.finish(max_steps=2).items():
        warped = np.concatenate([piece.warped_logprobs for piece in one.pieces[index, sample]])
        logits = plain_logits(MODEL, params(), PROMPTS[index], tokens).astype(np.float64)
        np.testing.assert_allclose(
            logprobs, scipy.special.log_softmax(logits / 0.8, -1)[np.arange(len(tokens)), tokens], atol=3e-5
        )
        for place, token in enumerate(tokens):
            drawn = np.bincount(tokens[:place], minlength=logits.shape[1])
            held = (drawn > 0) | np.isin(np.arange(logits.shape[1]), PROMPTS[index].token_ids)
            z = np.where(held, np.where(logits[place] > 0, logits[place] / 1.4, logits[place] * 1.4), logits[place])
            z = (z - 0.5 * (drawn > 0) - 0.25 * drawn) / 0.8
            z[BANNED] = -np.inf
            z[z < np.sort(z)[-5]] = -np.inf
            np.testing.assert_allclose(warped[place], scipy.special.log_softmax(z)[token], atol=5e-5)


def test_alternatives_are_the_most_likely_tokens(alone):
    one = client(alternatives=3)
    one.ask(2)
    same(one.finish(), {key: value for key, value in alone.items() if key[0] == 2})
    for (index, sample), pieces in one.pieces.items():
        tokens = alone[index, sample][0]
        logp = scipy.special.log_softmax(plain_logits(MODEL, params(), PROMPTS[index], tokens).astype(np.float64), -1)
        top = np.argsort(-logp, -1)[:, :3]
        np.testing.assert_array_equal(np.concatenate([piece.top_ids for piece in pieces]), top)
        want = np.take_along_axis(logp, top, 1)
        np.testing.assert_allclose(np.concatenate([piece.top_logprobs for piece in pieces]), want, atol=3e-5)


@pytest.mark.parametrize(
    "make,ask,message",
    [
        ({}, {"top_k": 3}, "made for truncated sampling"),
        ({}, {"presence_penalty": 0.1}, "penalties need a session"),
        ({}, {"limit": 0}, "both must be at least 1"),
        ({}, {"limit": 10_000}, "does not fit the store of responses"),
    ],
)
def test_what_a_session_cannot_do_is_refused(make, ask, message):
    one = client(**make)
    with pytest.raises(UserError, match=message):
        one.ask(0, **ask)
    assert one.session.idle


@pytest.mark.parametrize("devices,sizes", [(1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})])
def test_nothing_compiles_after_the_warm_up(devices, sizes, compilations):
    """Mixed image sizes, prompt lengths, numbers of prompts and lengths of responses."""
    by = Engine(
        MODEL,
        dataclasses.replace(
            ROLLOUT, concurrent_responses=16, prompt_buckets=(16, 48), patch_buckets=(16, 64), response_page=4,
            prefill_tokens=200, response_kv_tokens=200,
        ),
        mesh(devices, **sizes), stop_ids=[STOP], banned_ids=BANNED,
    )  # fmt: skip
    weights = jax.device_put(params(), MODEL.shardings(by.mesh))
    by.warm_up(weights, n=3, max_new_tokens=20, sampling=SamplingConfig())
    by.guard.freeze()
    before = compilations()
    rng = np.random.default_rng(0)
    for step in range(12 if devices == 1 else 4):
        prompts = [
            make_prompt(int(seed), text=int(rng.integers(1, 12))) for seed in rng.integers(0, 99, rng.integers(1, 12))
        ]
        sampling = SamplingConfig(temperature=float(rng.uniform(0, 1.5)))
        got = dict(by.generate(weights, prompts, n=3, sampling=sampling, seed=0, step=step, max_new_tokens=20))
        assert len(got) == len(prompts)
    assert compilations() == before
