"""The blocked head against plain float32/float64 formulas and the reference's golden cases."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import golden_dir

from vero_jax.models.head import token_logprobs


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
