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
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vero_jax.config import MeshConfig
from vero_jax.models.head import token_logprobs
from vero_jax.parallel.mesh import ROW_AXES, make_mesh


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


def gradients_of(hidden, head, targets, **options):
    """Values, and gradients of a weighted sum of both outputs."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, len(targets))), jnp.float32)

    def loss(hidden, head):
        both = token_logprobs(hidden, head, targets, temperature=0.7, **options)
        return sum((w * y).sum() for w, y in zip(weights, both, strict=True)), both

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)


@pytest.mark.parametrize("token_block", [1, 3, 8, 100])
def test_blocks_of_tokens_change_nothing(token_block):
    problem_ = problem(n=13)
    (_, want), want_grads = gradients_of(*problem_, block=16)
    (_, got), got_grads = gradients_of(*problem_, block=16, token_block=token_block)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "sizes,vocab,valid",
    [({"tensor": 4}, 48, None), ({"tensor": 2}, 50, 47), ({"fsdp": 2, "tensor": 2}, 52, 27), ({"data": 8}, 50, None)],
)
def test_a_head_that_is_split_over_the_vocabulary_gives_the_same(sizes, vocab, valid):
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:8])
    hidden, head, targets = problem(n=16, vocab=vocab)
    targets = targets % (valid or vocab)
    options = {"block": 7, "token_block": 3, "valid_vocab": valid, "counted": jnp.arange(16) % 7 > 1}
    (_, want), want_grads = gradients_of(hidden, head, targets, **options)
    rows, split = (NamedSharding(mesh, P(axes)) for axes in (ROW_AXES, "tensor"))
    placed = jax.device_put(hidden, rows), jax.device_put(head, split), jax.device_put(targets, rows)
    (_, got), got_grads = jax.jit(lambda *x: gradients_of(*x, **options, mesh=mesh))(*placed)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert got_grads[1].sharding.is_equivalent_to(split, 2)


def test_blocks_without_a_counted_token_are_not_looked_at():
    """Of blocks of four tokens the second and the last hold nothing; infinities there would spoil every sum."""
    hidden, head, targets = problem(n=14)
    counted = jnp.asarray([1, 0, 1, 1] + [0] * 4 + [0, 0, 0, 1] + [0] * 2, bool)
    (_, want), want_grads = gradients_of(jnp.where(counted[:, None], hidden, 0.0), head, targets, block=16)
    spoilt = hidden.at[4:8].set(jnp.nan).at[12:].set(jnp.inf)
    (_, got), got_grads = gradients_of(spoilt, head, targets, block=16, token_block=4, counted=counted)
    weights = jnp.where(counted, 1.0, 0.0)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b * weights, atol=1e-5)
    np.testing.assert_allclose(got_grads[0], want_grads[0] * weights[:, None], atol=1e-5)

    def loss(head):
        both = plain(hidden, head, targets, 0.7, None)
        parts = np.random.default_rng(1).normal(size=(2, 14))
        return sum((jnp.asarray(w, jnp.float32) * weights * y).sum() for w, y in zip(parts, both, strict=True))

    np.testing.assert_allclose(got_grads[1], jax.grad(loss)(head), atol=1e-5)


def test_devices_compute_their_own_tokens():
    mesh = make_mesh(MeshConfig(data=8), jax.devices()[:8])
    n, vocab, width = 88, 52, 17
    rows, whole = NamedSharding(mesh, P(ROW_AXES)), NamedSharding(mesh, P())
    shapes = (
        jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((n,), jnp.int32, sharding=rows),
    )
    text = jax.jit(lambda *x: gradients_of(*x, block=5, token_block=6, mesh=mesh)).lower(*shapes).compile().as_text()
    assert f"[{n},{width}]" not in text and "all-gather" not in text
    assert "[6,5]" in text


def test_a_split_head_is_not_gathered():
    """The compiled program holds no whole head and no [tokens, vocabulary] array, forward or backward."""
    mesh = make_mesh(MeshConfig(data=2, tensor=4), jax.devices()[:8])
    n, vocab, width = 46, 92, 17
    rows, split = (NamedSharding(mesh, P(axes)) for axes in (ROW_AXES, "tensor"))
    shapes = (
        jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((n,), jnp.int32, sharding=rows),
    )
    both = jax.jit(lambda *x: gradients_of(*x, block=5, token_block=6, mesh=mesh))
    text = both.lower(*shapes).compile().as_text()
    assert f"[{vocab // 4},{width}]" in text and f"[{vocab},{width}]" not in text
    for tokens in (n, n // 2):
        for entries in (vocab, vocab // 4):
            assert f"[{tokens},{entries}]" not in text and f"[{entries},{tokens}]" not in text
    assert "all-gather" not in text


def test_a_head_that_the_devices_do_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(tensor=4), jax.devices()[:8])
    hidden, head, targets = problem(n=16, vocab=50)
    (_, want), _ = gradients_of(hidden, head, targets, block=16)
    (_, got), _ = jax.jit(lambda *x: gradients_of(*x, block=16, mesh=mesh))(hidden, head, targets)
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
