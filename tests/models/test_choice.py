"""Token choice: frequencies, greedy and truncated draws, penalties, and what is reported of them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vero_jax.models.choice import SEEN_IN_PROMPT, Warping, choose_tokens
from vero_jax.models.noise import gumbel, threefry_2x32


def warping(n, **values) -> Warping:
    """The same for all lanes, or one value for each."""
    plain = {
        "temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0, "presence": 0.0, "frequency": 0.0,
        "repetition": 1.0,
    } | values  # fmt: skip
    kinds = {"top_k": jnp.int32}
    return Warping(**{k: jnp.broadcast_to(jnp.asarray(v, kinds.get(k, jnp.float32)), n) for k, v in plain.items()})


def keys_of(n: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, (n, 2), dtype=np.uint32))


def choose(logits, n, *, banned=(), block=4, position=0, seed=0, counts=None, alternatives=0, **values):
    """n draws from one distribution given by its logits."""
    vocab = len(logits)
    hidden = jnp.ones((n, 1))
    mask = np.zeros(vocab, bool)
    mask[list(banned)] = True
    truncated = bool({"top_k", "top_p", "min_p"} & set(values))
    return choose_tokens(
        hidden, jnp.asarray(logits, jnp.float32)[:, None], keys_of(n, seed), position, jnp.asarray(mask),
        warping(n, **values), block=block, truncated=truncated, counts=counts, alternatives=alternatives,
        warped_logprobs=True,
    )  # fmt: skip


def test_threefry_known_answers():
    # From the Random123 distribution: key and counter all zeros, all ones, and digits of pi.
    ones = 0xFFFFFFFF
    for key, counter, want in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((ones, ones), (ones, ones), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]:
        got = threefry_2x32(tuple(map(jnp.uint32, key)), tuple(map(jnp.uint32, counter)))
        assert tuple(int(x) for x in got) == want


def test_gumbel_moments():
    noise = np.asarray(gumbel(keys_of(64), 3, jnp.arange(4096)), np.float64)
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.std() - np.pi / 6**0.5) < 0.01
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.06
    assert not np.array_equal(noise, gumbel(keys_of(64), 4, jnp.arange(4096)))


def test_frequencies_follow_the_policy():
    logits, n = np.array([2.0, 1.0, 0.0, -1.0, 0.5, -3.0]), 40000
    for temperature in (1.0, 0.5):
        ids, logprobs, warped, *_ = choose(logits, n, temperature=temperature)
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        counts = np.bincount(ids, minlength=6)
        np.testing.assert_allclose(counts / n, p, atol=4 * (0.25 / n) ** 0.5)
        np.testing.assert_allclose(logprobs, np.log(p)[np.asarray(ids)], atol=1e-5)
        np.testing.assert_allclose(warped, logprobs, atol=1e-6)


def test_choice_ignores_block_size_and_other_rows():
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((9, 8), (50, 8)))
    keys, banned = keys_of(9), jnp.zeros(50, bool)
    pick = lambda rows, block: choose_tokens(  # noqa: E731
        hidden[rows], head, keys[rows], jnp.full(len(rows), 2), banned, warping(len(rows)), block=block
    )
    whole = pick(np.arange(9), 50)
    for block in (7, 16, 25):
        np.testing.assert_array_equal(whole[0], pick(np.arange(9), block)[0])
        np.testing.assert_allclose(whole[1], pick(np.arange(9), block)[1], atol=1e-6)
    np.testing.assert_array_equal(whole[0][np.array([4, 1])], pick(np.array([4, 1]), 16)[0])


def test_greedy_takes_the_largest_and_reports_temperature_one():
    logits = np.array([0.0, 3.0, 1.0, 2.9, -1.0])
    ids, logprobs, warped, *_ = choose(logits, 5, temperature=0.0, block=2)
    assert set(np.asarray(ids)) == {1}
    np.testing.assert_allclose(logprobs, 3.0 - np.log(np.exp(logits).sum()), atol=1e-6)
    np.testing.assert_array_equal(warped, 0.0)
    assert set(np.asarray(choose(logits, 5, temperature=0.0, block=2, banned=[1])[0])) == {3}


def test_banned_ids_are_never_chosen_but_keep_their_share():
    logits = np.array([5.0, 0.0, 0.0, 0.0])
    ids, logprobs, warped, *_ = choose(logits, 300, banned=[0])
    assert set(np.asarray(ids)) == {1, 2, 3}
    np.testing.assert_allclose(warped, -np.log(3), atol=1e-6)
    np.testing.assert_allclose(logprobs, -np.log(np.exp(logits).sum()), atol=1e-5)


P = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])


@pytest.mark.parametrize(
    "truncation,support",
    [
        ((-1, 1.0, 0.0), {0, 1, 2, 3, 4, 5}),
        ((1, 1.0, 0.0), {0}),
        ((3, 1.0, 0.0), {0, 1, 2}),
        ((100, 1.0, 0.0), {0, 1, 2, 3, 4, 5}),
        ((-1, 0.01, 0.0), {0}),
        ((-1, 0.64, 0.0), {0, 1}),
        ((-1, 0.66, 0.0), {0, 1, 2}),
        ((-1, 0.95, 0.0), {0, 1, 2, 3, 4}),
        ((-1, 1.0, 0.3), {0, 1, 2}),
        ((-1, 1.0, 0.2), {0, 1, 2, 3}),
        # 0.4 + 0.25 is 0.8125 of the three that top-k leaves: two are enough for 0.8, three would be for 0.82.
        ((3, 0.8, 0.0), {0, 1}),
        ((3, 0.82, 0.0), {0, 1, 2}),
        ((4, 0.95, 0.3), {0, 1, 2}),
    ],
)
def test_truncation_support_and_shares(truncation, support):
    order = np.array([3, 0, 5, 1, 4, 2])
    n = 4000
    top_k, top_p, min_p = truncation
    ids, logprobs, warped, *_ = choose(np.log(P[order]) + 7, n, top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = order[np.asarray(ids)]
    assert set(drawn) == support
    p = np.where([i in support for i in range(6)], P, 0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / n, p / p.sum(), atol=4 * (0.25 / n) ** 0.5)
    np.testing.assert_allclose(logprobs, np.log(P[drawn]), atol=1e-5)
    np.testing.assert_allclose(warped, np.log((p / p.sum())[drawn]), atol=1e-5)


def test_truncation_ranks_only_allowed_ids():
    assert set(np.asarray(choose(np.log(P), 500, top_k=2, top_p=1.0, min_p=0.0, banned=[0])[0])) == {1, 2}


def test_every_lane_has_its_own_temperature_and_truncation():
    logits, n = np.log(P) + 3, 1200
    kinds = np.arange(n) % 4
    ids, logprobs, *_ = choose(
        logits, n, temperature=np.where(kinds == 0, 0.0, 1.0), top_k=np.where(kinds == 1, 2, -1),
        top_p=np.where(kinds == 2, 0.66, 1.0), min_p=0.0,
    )  # fmt: skip
    support = [set(np.asarray(ids)[kinds == kind]) for kind in range(4)]
    assert support == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3, 4, 5}]
    np.testing.assert_allclose(logprobs, np.log(P)[np.asarray(ids)], atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_penalties_change_the_draw_as_their_formulas_say(temperature):
    logits, n = np.array([2.0, 1.0, -0.5, 0.5, -1.0, 1.5]), 20000
    drawn, in_prompt = np.array([3, 0, 1, 0, 0, 1]), np.array([0, 1, 1, 0, 1, 0])
    counts = jnp.broadcast_to(jnp.asarray(drawn + SEEN_IN_PROMPT * in_prompt, jnp.int32), (n, 6))
    values = {"presence": 0.7, "frequency": 0.3, "repetition": 1.3, "temperature": temperature}
    ids, logprobs, warped, *_ = choose(logits, n, counts=counts, **values)
    held = (drawn > 0) | (in_prompt > 0)
    changed = np.where(held, np.where(logits > 0, logits / 1.3, logits * 1.3), logits)
    changed = (changed - 0.3 * drawn - 0.7 * (drawn > 0)) / temperature
    p = scipy.special.softmax(changed)
    np.testing.assert_allclose(np.bincount(ids, minlength=6) / n, p, atol=4 * (0.25 / n) ** 0.5)
    np.testing.assert_allclose(warped, np.log(p)[np.asarray(ids)], atol=1e-5)
    plain = scipy.special.log_softmax(logits / temperature)
    np.testing.assert_allclose(logprobs, plain[np.asarray(ids)], atol=1e-5)


def test_alternatives_are_the_most_likely_tokens_of_the_untruncated_policy():
    logits = np.log(P)[[3, 0, 5, 1, 4, 2]]
    found = choose(logits, 3, alternatives=4, top_k=1, top_p=1.0, min_p=0.0, banned=[1])
    np.testing.assert_array_equal(found.top_ids, [[1, 3, 5, 0]] * 3)
    np.testing.assert_allclose(found.top_logprobs, [np.log(P[:4])] * 3, atol=1e-5)
    assert set(np.asarray(found.ids)) == {3}
