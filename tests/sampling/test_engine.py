"""The engine against plain recomputation, its independence of how prompts are batched, and its limits."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
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
    plain_logprobs,
    same,
)  # fmt: skip

from vero_jax.config import SamplingConfig
from vero_jax.errors import UserError
from vero_jax.sampling.engine import Engine
from vero_jax.sampling.inputs import sample_keys
from vero_jax.sampling.session import Request

PROMPTS = [make_prompt(seed, grids=[] if seed in (2, 5) else None) for seed in range(7)]


def generate(prompts=PROMPTS, *, n=3, sampling=SamplingConfig(), seed=0, step=0, limit=12, by=None):  # noqa: B008
    by = by or engine()
    return dict(by.generate(params(), prompts, n=n, sampling=sampling, seed=seed, step=step, max_new_tokens=limit))


@pytest.fixture(scope="module")
def groups():
    return generate()


def test_every_prompt_comes_back_once_with_its_samples(groups):
    assert sorted(groups) == list(range(7))
    for index, group in groups.items():
        assert group.prompt is PROMPTS[index] and len(group.responses) == 3
        for response in group.responses:
            assert response.token_ids.dtype == np.int32 and response.logprobs.dtype == np.float32
            assert len(response.token_ids) == len(response.logprobs) <= 12
    assert len({tuple(r.token_ids) for g in groups.values() for r in g.responses}) > 15


def test_logprobs_equal_a_plain_forward_pass(groups):
    assert any(len(prompt.patches) for prompt in PROMPTS) and any(not len(prompt.patches) for prompt in PROMPTS)
    for group in groups.values():
        for response in group.responses:
            want = plain_logprobs(group.prompt, response.token_ids)
            np.testing.assert_allclose(response.logprobs, want, atol=2e-5)


def test_logprobs_are_those_at_the_sampling_temperature():
    for group in generate(PROMPTS[:2], sampling=SamplingConfig(temperature=0.7)).values():
        want = plain_logprobs(group.prompt, group.responses[0].token_ids, temperature=0.7)
        np.testing.assert_allclose(group.responses[0].logprobs, want, atol=3e-5)


def test_greedy_takes_the_largest_allowed_logit_and_all_samples_agree():
    for group in generate(sampling=SamplingConfig(temperature=0.0)).values():
        first, second, _ = group.responses
        np.testing.assert_array_equal(first.token_ids, second.token_ids)
        logits = plain_logits(MODEL, params(), group.prompt, first.token_ids)
        logits[:, [1, 2, 3, 4]] = -np.inf
        np.testing.assert_array_equal(logits.argmax(-1), first.token_ids)


def test_samples_do_not_depend_on_batch_mates_or_order(groups):
    for index, group in generate(PROMPTS[::-1]).items():
        same(group, groups[6 - index], exact=False)
    same(generate(PROMPTS[3:4])[0], groups[3], exact=False)


@pytest.mark.parametrize("concurrent_responses,response_page", [(1, 64), (4, 3), (64, 5)])
def test_samples_do_not_depend_on_their_number_or_on_lanes_and_pages(groups, concurrent_responses, response_page):
    by = engine_with(concurrent_responses=concurrent_responses, response_page=response_page)
    for index, group in generate(n=2, by=by).items():
        same(group, dataclasses.replace(groups[index], responses=groups[index].responses[:2]), exact=False)
    assert by.stats.prompts == 7 and by.stats.responses == 14


def test_same_call_twice_is_the_same_to_the_bit(groups):
    for index, group in generate().items():
        same(group, groups[index])


def test_seed_step_and_repetition_change_the_samples(groups):
    tokens = lambda got, index: [r.token_ids.tolist() for r in got[index].responses]  # noqa: E731
    assert tokens(generate(seed=1), 0) != tokens(groups, 0)
    assert tokens(generate(step=1), 0) != tokens(groups, 0)
    twice = generate([PROMPTS[0], PROMPTS[0]])
    assert tokens(twice, 0) == tokens(groups, 0) != tokens(twice, 1)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_sample_the_same(groups, sizes):
    by = engine(8, **sizes)
    placed = jax.device_put(params(), MODEL.shardings(by.mesh))
    got = dict(by.generate(placed, PROMPTS, n=3, sampling=SamplingConfig(), seed=0, step=0, max_new_tokens=12))
    for index, group in got.items():
        same(group, groups[index], exact=False)


def test_a_response_ends_at_its_first_stop_id_or_at_the_limit():
    # Greedy responses, then the same with one of their own tokens as a stop id.
    free = generate(sampling=SamplingConfig(temperature=0.0), n=1, limit=10)
    stop = int(free[0].responses[0].token_ids[4])
    by = Engine(
        MODEL, ROLLOUT, mesh(), stop_ids=[STOP, stop], banned_ids=[1, 2, 3, 4, stop], decode=lambda ids: str(len(ids))
    )
    for index, group in generate(sampling=SamplingConfig(temperature=0.0), n=1, limit=10, by=by).items():
        want = free[index].responses[0].token_ids.tolist()
        places = [at for at, token in enumerate(want) if token in (STOP, stop)]
        response = group.responses[0]
        if places:
            assert response.token_ids.tolist() == want[: places[0] + 1]
            assert response.stop_reason == "stop" and response.text == str(places[0])
        else:
            assert response.token_ids.tolist() == want
            assert response.stop_reason == "length" and response.text == "10"


def test_decoding_ends_with_the_last_response():
    by = Engine(MODEL, ROLLOUT, mesh(), stop_ids=range(5, 61), banned_ids=[0, 1, 2, 3, 4])
    got = generate(by=by, limit=50)
    assert all(len(r.token_ids) == 1 and r.stop_reason == "stop" for g in got.values() for r in g.responses)
    assert by.stats.response_tokens == by.stats.responses == 21 and by.stats.prompts == 7
    assert by.stats.decode_steps == 2 and by.stats.lane_steps == 24  # 12 lanes take 12 and then 9 samples


def test_lanes_take_waiting_samples_of_any_prompt_as_they_are_free(groups):
    by = engine_with(concurrent_responses=8, response_page=4)
    limits = np.random.default_rng(0).integers(1, 13, (7, 3)).astype(np.int32)
    for index, group in generate(by=by, limit=limits).items():
        for response, want, limit in zip(group.responses, groups[index].responses, limits[index], strict=True):
            np.testing.assert_array_equal(response.token_ids, want.token_ids[:limit])
            np.testing.assert_allclose(response.logprobs, want.logprobs[:limit], atol=2e-5)
    assert by.stats.useful_share > 0.7


def test_groups_come_out_while_others_are_drawn():
    limits = np.full((7, 3), 2, np.int32)
    limits[0] = 40
    by = engine_with(concurrent_responses=12, response_page=4)
    stream = by.generate(params(), PROMPTS, n=3, sampling=SamplingConfig(), seed=0, step=0, max_new_tokens=limits)
    order = []
    for index, _ in stream:
        order.append(index)
        if len(order) == 6:
            assert by.stats.decode_steps < 20
    assert sorted(order) == list(range(7))


def test_pages_that_run_out_change_nothing(groups):
    # One response of 12 tokens needs four pages of 3; with five or eight pages, six lanes cannot all go on.
    by = engine_with(concurrent_responses=6, response_page=3, response_kv_tokens=15)
    for index, group in generate(by=by).items():
        same(group, groups[index], exact=False)
    by = engine_with(concurrent_responses=6, response_page=3, response_kv_tokens=24)
    for index, group in generate(by=by).items():
        same(group, groups[index], exact=False)
    assert by.stats.preempted > 0


def test_prompts_that_wait_for_pages_change_nothing(groups):
    by = engine_with(prompt_kv_tokens=64)
    for index, group in generate(by=by).items():
        same(group, groups[index], exact=False)


@pytest.mark.parametrize("chunk,tokens", [(16, 16), (8, 200)])
def test_long_prompts_are_read_in_chunks(groups, chunk, tokens):
    by = engine_with(prefill_chunk=chunk, prefill_tokens=tokens, attention_block=8)
    for index, group in generate(by=by).items():
        same(group, groups[index], exact=False)
    assert by.guard.counts["read_chunk"] > 0 and by.guard.counts["prefill"] == 0


def test_memory_for_responses_follows_the_tokens_that_exist():
    by = engine_with(concurrent_responses=32, response_page=4)
    session = by.session(params(), n=1, max_new_tokens=400)
    assert session.sizes.response_pages * 4 <= 32 * 400 // 2
    session.submit(Request(PROMPTS[0], sample_keys(PROMPTS[:1], 1, 0, 0)[0], SamplingConfig(), 9))
    used = set()
    while not session.idle:
        session.advance()
        used |= set(session.scheduler.shards[0].page_owner)
    assert len(used) == 2 and not session.scheduler.shards[0].page_owner


def test_limit_of_one_token():
    for group in generate(limit=1).values():
        assert all(len(response.token_ids) == 1 for response in group.responses)


def test_text_only_calls_leave_the_tower_out():
    prompts = [make_prompt(seed, grids=[]) for seed in range(20, 23)]
    for group in generate(prompts, n=1).values():
        want = plain_logprobs(group.prompt, group.responses[0].token_ids)
        np.testing.assert_allclose(group.responses[0].logprobs, want, atol=2e-5)


def test_top_k_one_is_greedy_and_its_logprobs_are_untruncated():
    got = generate(sampling=SamplingConfig(top_k=1), n=1)
    greedy = generate(sampling=SamplingConfig(temperature=0.0), n=1)
    for index, group in got.items():
        np.testing.assert_array_equal(group.responses[0].token_ids, greedy[index].responses[0].token_ids)
        np.testing.assert_allclose(group.responses[0].logprobs, greedy[index].responses[0].logprobs, atol=2e-5)


def test_another_temperature_traces_nothing_new():
    by = Engine(MODEL, ROLLOUT, mesh(), stop_ids=[STOP])
    generate(PROMPTS[:1], by=by)
    by.guard.freeze()
    generate(PROMPTS[:1], by=by, sampling=SamplingConfig(temperature=0.3), seed=5)
    generate(PROMPTS[:1], by=by, sampling=SamplingConfig(temperature=0.0))


def test_first_sampled_token_follows_the_policy():
    prompt = make_prompt(30)
    by = Engine(MODEL, ROLLOUT, mesh(), stop_ids=[STOP])
    n = 4000
    got = generate([prompt], n=n, limit=1, by=by)[0]
    drawn = np.array([response.token_ids[0] for response in got.responses])
    logits = plain_logits(MODEL, params(), prompt, np.array([6], np.int32))[0].astype(np.float64)
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=len(p)) / n, p, atol=5 * (0.25 / n) ** 0.5)


def test_prompts_that_do_not_fit_are_refused_by_name():
    with pytest.raises(UserError, match=r"'p40'.*70 tokens.*rollout.prompt_buckets"):
        generate([make_prompt(40, grids=[], text=70)])
    with pytest.raises(UserError, match=r"'p41'.*80 patches.*rollout.patch_buckets"):
        generate([make_prompt(41, grids=[(1, 8, 10)], text=5)])


def test_lost_image_tokens_are_refused():
    prompt = make_prompt(42, grids=[(1, 4, 4)])
    cut = dataclasses.replace(prompt, token_ids=prompt.token_ids[:-4], image_index=prompt.image_index[:-4] * 0 - 1)
    with pytest.raises(UserError, match=r"0 image tokens.*need 4"):
        generate([cut])
    with pytest.raises(UserError, match=r"12 patches.*make 16"):
        generate([dataclasses.replace(prompt, patches=prompt.patches[:12])])


def test_rounding_the_weights_beforehand_changes_no_number():
    prompts = PROMPTS[:2]
    model_def = dataclasses.replace(MODEL, dtype="bfloat16")
    by = Engine(model_def, ROLLOUT, mesh(), stop_ids=[STOP], banned_ids=[1, 2, 3, 4])
    rounded = generate(prompts, by=by, limit=4)
    assert by.guard.counts["for_sampling"] == 1
    by._for_sampling = None
    for index, group in generate(prompts, by=by, limit=4).items():
        same(group, rounded[index])
