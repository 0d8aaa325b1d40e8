"""The blocked head against plain float32/float64 formulas and the reference's golden cases; token choice."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import golden_dir

from vero_jax.models.head import choose_tokens, token_logprobs
from vero_jax.models.noise import gumbel, threefry_2x32


def plain(hidden, head, targets, temperature, valid):
    logp = jax.nn.log_softmax((hidden @ head[:valid].T).astype(jnp.float32) / temperature, -1)
    return jnp.take_along_axis(logp, targets[:, None], 1)[:, 0], -(jnp.exp(logp) * logp).sum(-1)


def problem(n=7, width=16, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((n, width), (vocab, width)))
    return hidden, head, jnp.asarray(rng.integers(0, vocab - 3, n), jnp.int32)


@pytest.mark.parametrize("block", [50, 16, 7, 1000])
@pytest.mark.parametrize("temperature,valid", [(1.0, None), (0.6, 47)])
def test_values_and_gradients_equal_plain(block, temperature, valid):
    hidden, head, targets = problem()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7)), jnp.float32)

    def ours(hidden, head):
        return token_logprobs(hidden, head, targets, temperature=temperature, block=block, valid_vocab=valid)

    def theirs(hidden, head):
        return plain(hidden, head, targets, temperature, valid)

    for got, want in zip(ours(hidden, head), theirs(hidden, head), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    total = lambda f: lambda *x: sum((w * y).sum() for w, y in zip(weights, f(*x), strict=True))  # noqa: E731
    for got, want in zip(*(jax.grad(total(f), (0, 1))(hidden, head) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_temperature_zero_counts_as_one():
    hidden, head, targets = problem()
    zero, one = (token_logprobs(hidden, head, targets, temperature=t, block=16) for t in (0.0, 1.0))
    np.testing.assert_array_equal(zero[0], one[0])


def test_bfloat16_inputs_accumulate_in_float32():
    hidden, head, targets = problem(width=512)
    hidden, head = (hidden / 16).astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    got = token_logprobs(hidden, head, targets, temperature=1.0, block=16)
    want = plain(hidden.astype(jnp.float32), head.astype(jnp.float32), targets, 1.0, None)
    assert got[0].dtype == jnp.float32
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    grads = jax.grad(lambda h, w: token_logprobs(h, w, targets, temperature=1.0, block=16)[0].sum(), (0, 1))
    assert all(g.dtype == jnp.bfloat16 for g in grads(hidden, head))


def test_no_array_is_tokens_by_vocabulary():
    n, vocab = 64, 4096
    hidden, head, targets = problem(n, 8, vocab)

    def loss(hidden, head):
        logp, entropy = token_logprobs(hidden, head, targets, temperature=1.0, block=256)
        return (logp + entropy).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, head))
    assert f"[{n},{vocab}]" not in text and f"[{vocab},{n}]" not in text and f"[{n},256]" in text


@pytest.mark.golden_rl
def test_golden_entropy_and_logprob():
    folder = golden_dir("rl")
    cases = [c for c in json.loads((folder / "index.json").read_text())["cases"] if c["family"] == "entropy_logprob"]
    cases = [case for case in cases if (folder / case["file"]).is_file()]
    assert cases
    for case in cases:
        data = np.load(folder / case["file"], allow_pickle=False)
        logits, labels = jnp.asarray(data["in_logits"]), jnp.asarray(data["in_labels"])
        identity = jnp.eye(logits.shape[1], dtype=jnp.float32)
        for block in (logits.shape[1], 4):
            both = functools.partial(token_logprobs, head=identity, targets=labels, temperature=1.0, block=block)
            logp, entropy = both(logits)
            np.testing.assert_allclose(logp, data["out_logprob"], atol=1e-5, rtol=1e-5)
            # The reference's float32 entropy is lse - sum p z, which cancels; its float64 one is the judge.
            np.testing.assert_allclose(entropy, data["out64_entropy"], atol=2e-6, rtol=1e-5)
            np.testing.assert_allclose(entropy, data["out_entropy"], atol=2e-5, rtol=1e-5)
            if "out_grad_logprob" in data:
                grad = jax.grad(lambda z, both=both: both(z)[0].sum())(logits)
                exact = scipy.special.softmax(data["in_logits"].astype(np.float64), -1)
                exact = np.eye(exact.shape[1])[data["in_labels"]] - exact
                np.testing.assert_allclose(grad, exact, atol=1e-6)
                np.testing.assert_allclose(grad, data["out_grad_logprob"], atol=1e-5)
                grad = jax.grad(lambda z, both=both: both(z)[1].sum())(logits)
                np.testing.assert_allclose(grad, data["out_grad_entropy"], atol=2e-5)


# Token choice.


def keys_of(n: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, (n, 2), dtype=np.uint32))


def choose(logits, n, *, temperature=1.0, truncation=None, banned=(), block=4, position=0, seed=0):
    """n draws from one distribution given by its logits."""
    vocab = len(logits)
    hidden = jnp.ones((n, 1))
    mask = np.zeros(vocab, bool)
    mask[list(banned)] = True
    return choose_tokens(
        hidden, jnp.asarray(logits, jnp.float32)[:, None], keys_of(n, seed), position, jnp.asarray(mask),
        temperature=temperature, truncation=truncation, block=block,
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
        ids, logprobs = choose(logits, n, temperature=temperature)
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        counts = np.bincount(ids, minlength=6)
        np.testing.assert_allclose(counts / n, p, atol=4 * (0.25 / n) ** 0.5)
        np.testing.assert_allclose(logprobs, np.log(p)[np.asarray(ids)], atol=1e-5)


def test_choice_ignores_block_size_and_other_rows():
    hidden, head, _ = problem(9, 8, 50)
    keys, banned = keys_of(9), jnp.zeros(50, bool)
    pick = lambda rows, block: choose_tokens(  # noqa: E731
        hidden[rows], head, keys[rows], 2, banned, temperature=1.0, block=block
    )
    whole = pick(np.arange(9), 50)
    for block in (7, 16, 25):
        np.testing.assert_array_equal(whole[0], pick(np.arange(9), block)[0])
        np.testing.assert_allclose(whole[1], pick(np.arange(9), block)[1], atol=1e-6)
    np.testing.assert_array_equal(whole[0][np.array([4, 1])], pick(np.array([4, 1]), 16)[0])


def test_greedy_takes_the_largest_and_reports_temperature_one():
    logits = np.array([0.0, 3.0, 1.0, 2.9, -1.0])
    ids, logprobs = choose(logits, 5, temperature=0.0, block=2)
    assert set(np.asarray(ids)) == {1}
    np.testing.assert_allclose(logprobs, 3.0 - np.log(np.exp(logits).sum()), atol=1e-6)
    assert set(np.asarray(choose(logits, 5, temperature=0.0, block=2, banned=[1])[0])) == {3}


def test_banned_ids_are_never_chosen_but_keep_their_share():
    logits = np.array([5.0, 0.0, 0.0, 0.0])
    ids, logprobs = choose(logits, 300, banned=[0])
    assert set(np.asarray(ids)) == {1, 2, 3}
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
    ids, logprobs = choose(np.log(P[order]) + 7, n, truncation=truncation)
    drawn = order[np.asarray(ids)]
    assert set(drawn) == support
    p = np.where([i in support for i in range(6)], P, 0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / n, p / p.sum(), atol=4 * (0.25 / n) ** 0.5)
    np.testing.assert_allclose(logprobs, np.log(P[drawn]), atol=1e-5)


def test_truncation_ranks_only_allowed_ids():
    assert set(np.asarray(choose(np.log(P), 500, truncation=(2, 1.0, 0.0), banned=[0])[0])) == {1, 2}
