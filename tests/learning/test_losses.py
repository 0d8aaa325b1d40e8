"""Policy losses, aggregation, KL terms, entropy and value loss against the reference's vectors and their own rules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.golden import GRADIENT, LOSS, METRIC, cases, load
from vero_jax.config import ActorConfig
from vero_jax.errors import UserError
from vero_jax.learning.aggregation import ResponseTokens, Totals, aggregate, token_mean
from vero_jax.learning.kl import KLController, kl_estimate, kl_loss, penalised_rewards
from vero_jax.learning.losses import LossInputs, policy_loss, sampler_weight, value_loss

golden = pytest.mark.golden_rl


def one_row(mask):
    """The same responses laid end to end in a single row, as the learner packs them."""
    b, width = mask.shape
    ids = np.repeat(np.arange(b), width)[None].astype(np.int32)
    return ResponseTokens(jnp.asarray(mask, jnp.float32).reshape(1, -1), jnp.asarray(ids), b)


def settings(hp):
    known = {"ppo_kl_coef": "kl_cov_coef"}
    fields = {known.get(name, name): value for name, value in hp.items() if name != "clip_ratio"}
    # The reference weights tokens in two of its losses, and passes the setting over in the others.
    cap = fields.pop("tis_imp_ratio_cap", -1)
    if cap > 0 and fields["loss_mode"] in ("vanilla", "cispo"):
        fields |= {"rollout_is": "token", "rollout_is_cap": cap}
    return ActorConfig(**fields)


@golden
@pytest.mark.parametrize("layout", ["matrix", "packed"])
@pytest.mark.parametrize(
    ("hp", "file"),
    cases(
        "gspo_recipe", "gspo_extreme", "gspo_other", "ppo_vanilla", "ppo_tis", "cispo", "gpg_loss", "geo_mean",
        "clip_cov", "kl_cov",
    ),
)  # fmt: skip
def test_policy_loss_matches_reference(hp, file, layout):
    z = load(file)
    config = settings(hp)
    mask = z["in_response_mask"]
    tokens = ResponseTokens.of_matrix(mask) if layout == "matrix" else one_row(mask)
    shape = tokens.mask.shape
    alternative = "alt_loss_drop_empty_rows" in z
    mode = "seq-mean-token-mean" if config.loss_mode in ("gspo", "geo_mean") else config.loss_agg_mode
    totals = Totals.count(mask, mode, strict_reference=not alternative)
    sampler = z.get("in_rollout_log_probs")

    def loss(logprobs):
        terms = policy_loss(
            LossInputs(
                logprobs,
                jnp.asarray(z["in_old_log_prob"]).reshape(shape),
                jnp.asarray(z["in_advantages"]).reshape(shape),
                tokens,
                totals,
                None if sampler is None else jnp.asarray(sampler).reshape(shape),
            ),
            config,
        )
        return terms.loss, terms

    gradient, terms = jax.grad(loss, has_aux=True)(jnp.asarray(z["in_log_prob"]).reshape(shape))
    gradient = np.asarray(gradient).reshape(mask.shape)
    if alternative:  # the reference is NaN where a response is empty
        np.testing.assert_allclose(terms.loss, z["alt_loss_drop_empty_rows"], **LOSS)
        np.testing.assert_allclose(gradient, z["alt_grad_drop_empty_rows"], **GRADIENT)
    else:
        np.testing.assert_allclose(terms.loss, z["out_loss"], **LOSS)
        np.testing.assert_allclose(terms.loss, z["out64_loss"], **LOSS)
        np.testing.assert_allclose(gradient, z["out64_grad_log_prob"], **GRADIENT)
    count = max(mask.sum(), 1)
    np.testing.assert_allclose(terms.clipped / count, z["out_pg_clipfrac"], **METRIC)
    np.testing.assert_allclose(terms.clipped_lower / count, z["out_pg_clipfrac_lower"], **METRIC)
    # The sum behind ppo_kl is of float32 differences whose size is that of the log-probabilities.
    np.testing.assert_allclose(terms.kl / count, z["out_ppo_kl"], rtol=2e-6, atol=1e-6)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("agg_loss"))
def test_aggregation_matches_reference(hp, file):
    z = load(file)
    mode, mask = hp["loss_agg_mode"], z["in_loss_mask"]
    totals = Totals.count(mask, mode, strict_reference=True)
    for tokens in (ResponseTokens.of_matrix(mask), one_row(mask)):
        values = jnp.asarray(z["in_loss_mat"]).reshape(tokens.mask.shape)
        loss, gradient = jax.value_and_grad(aggregate)(values, tokens, mode, totals)
        np.testing.assert_allclose(loss, z["out_loss"], **LOSS)
        np.testing.assert_allclose(np.asarray(gradient).reshape(mask.shape), z["out64_grad_loss_mat"], **GRADIENT)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("kl_estimator"))
def test_kl_estimator_matches_reference(hp, file):
    z = load(file)
    if "result" in hp:
        for name in hp["result"]:
            with pytest.raises(UserError, match="unknown KL estimator"):
                kl_estimate(jnp.zeros(2), jnp.zeros(2), name)
        return
    kind, reference = hp["kl_penalty"], jnp.asarray(z["in_ref_logprob"])
    logprobs = jnp.asarray(z["in_logprob"])
    np.testing.assert_allclose(kl_estimate(logprobs, reference, kind), z["out_kl"], rtol=2e-5, atol=1e-6)
    gradient = jax.grad(lambda lp: kl_estimate(lp, reference, kind).sum())(logprobs)
    np.testing.assert_allclose(gradient, z["out_grad_logprob"], rtol=1e-4, atol=1e-6)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("kl_loss"))
def test_kl_loss_matches_reference(hp, file):
    z = load(file)
    tokens, mode = ResponseTokens.of_matrix(z["in_response_mask"]), hp["loss_agg_mode"]
    totals = Totals.count(z["in_response_mask"], mode, strict_reference=True)

    def loss(logprobs):
        reference = jnp.asarray(z["in_ref_log_prob"])
        return hp["kl_loss_coef"] * kl_loss(logprobs, reference, tokens, hp["kl_loss_type"], mode, totals)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(z["in_log_prob"]))
    np.testing.assert_allclose(value, z["out_loss"], **LOSS)
    np.testing.assert_allclose(gradient, z["out_grad_log_prob"], **GRADIENT)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("kl_in_reward"))
def test_kl_in_reward_and_its_controller_match_reference(hp, file):
    z = load(file)
    controller = KLController(hp["init_kl_coef"], hp["type"], hp["target_kl"], hp["horizon"])
    assert controller.coef == z["out_coef_used"]
    rewards, kl = penalised_rewards(
        jnp.asarray(z["in_token_level_scores"]),
        jnp.asarray(z["in_old_log_probs"]),
        jnp.asarray(z["in_ref_log_prob"]),
        ResponseTokens.of_matrix(z["in_response_mask"]),
        controller.coef,
        hp["kl_penalty"],
    )
    np.testing.assert_allclose(rewards, z["out_token_level_rewards"], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(kl.mean(), z["out_kl"], **METRIC)
    np.testing.assert_allclose(controller.updated(float(kl.mean()), len(kl)).coef, z["out_coef_after"], rtol=1e-9)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("entropy_loss"))
def test_entropy_loss_matches_reference(hp, file):
    z = load(file)
    mode = hp["loss_agg_mode"]
    totals = Totals.count(z["in_response_mask"], mode, strict_reference=True)

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        entropy = -(jnp.exp(logp) * logp).sum(-1)
        return aggregate(entropy, ResponseTokens.of_matrix(z["in_response_mask"]), mode, totals)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(z["in_logits"]))
    np.testing.assert_allclose(value, z["out_loss"], **LOSS)
    np.testing.assert_allclose(gradient, z["out_grad_logits"], rtol=1e-4, atol=1e-7)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("value_loss"))
def test_value_loss_matches_reference(hp, file):
    z = load(file)
    mode = hp["loss_agg_mode"]
    tokens = ResponseTokens.of_matrix(z["in_response_mask"])
    totals = Totals.count(z["in_response_mask"], mode, strict_reference=True)

    def loss(values):
        old, returns = jnp.asarray(z["in_values"]), jnp.asarray(z["in_returns"])
        return value_loss(values, old, returns, tokens, hp["cliprange_value"], mode, totals)

    (value, clipped), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(z["in_vpreds"]))
    np.testing.assert_allclose(value, z["out_loss"], **LOSS)
    np.testing.assert_allclose(gradient, z["out_grad_vpreds"], **GRADIENT)
    np.testing.assert_allclose(clipped / z["in_response_mask"].sum(), z["out_clipfrac"], **METRIC)


def random_inputs(rng, b=6, width=11, empty=()):
    lengths = rng.integers(1, width + 1, b)
    lengths[list(empty)] = 0
    mask = (np.arange(width) < lengths[:, None]).astype(np.float32)
    old = rng.normal(-1, 0.5, (b, width)).astype(np.float32)
    logprobs = old + rng.normal(0, 0.1, (b, width)).astype(np.float32)
    advantages = np.repeat(rng.normal(size=(b, 1)), width, 1).astype(np.float32)
    return logprobs, old, advantages, mask


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("name", ["gspo", "vanilla", "cispo", "geo_mean", "gpg"])
def test_micro_batches_add_up_whatever_the_partition(name, mode):
    logprobs, old, advantages, mask = random_inputs(np.random.default_rng(0), empty=(2,))
    config = ActorConfig(loss_mode=name, loss_agg_mode=mode, clip_ratio_low=0.02, clip_ratio_high=0.03)
    totals = Totals.count(mask)

    def share(rows):
        def loss(lp):
            tokens = ResponseTokens.of_matrix(mask[rows])
            return policy_loss(LossInputs(lp, jnp.asarray(old[rows]), jnp.asarray(advantages[rows]), tokens, totals), config).loss  # fmt: skip # noqa: E501

        return jax.value_and_grad(loss)(jnp.asarray(logprobs[rows]))

    whole, gradient = share(np.arange(6))
    for partition in ([[0], [1, 2], [3, 4, 5]], [[5, 0], [4, 3, 2, 1]]):
        parts = [share(np.array(rows)) for rows in partition]
        np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-6, atol=1e-7)
        for rows, (_, part) in zip(partition, parts, strict=True):
            np.testing.assert_allclose(part, np.asarray(gradient)[rows], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["gspo", "vanilla", "cispo", "geo_mean", "gpg", "clip_cov", "kl_cov"])
def test_masked_values_and_empty_responses_never_matter(name):
    logprobs, old, advantages, mask = random_inputs(np.random.default_rng(1), empty=(0, 3))
    config = ActorConfig(loss_mode=name, loss_agg_mode="seq-mean-token-mean", clip_cov_lb=-1.0)
    tokens, totals = ResponseTokens.of_matrix(mask), Totals.count(mask)

    def run(fill):
        arrays = [jnp.where(mask > 0, a, fill) for a in (logprobs, old, advantages)]

        def loss(lp):
            return policy_loss(LossInputs(lp, arrays[1], arrays[2], tokens, totals, key=jax.random.key(0)), config).loss

        return jax.value_and_grad(loss)(arrays[0])

    clean, gradient = run(0.0)
    assert np.isfinite(clean)
    assert np.isfinite(gradient).all()
    for fill in (np.nan, np.inf, -1e30):
        dirty, dirty_gradient = run(fill)
        np.testing.assert_array_equal(dirty, clean)
        np.testing.assert_array_equal(dirty_gradient, gradient)


def test_no_tokens_at_all_is_a_loss_of_zero():
    mask = np.zeros((2, 3))
    tokens, totals = ResponseTokens.of_matrix(mask), Totals.count(mask)
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        assert aggregate(jnp.ones((2, 3)), tokens, mode, totals) == 0
    assert token_mean(jnp.ones((2, 3)), tokens) == 0


def test_adaptive_controller_moves_towards_its_target_and_is_bounded():
    controller = KLController(1.0, "adaptive", target=0.1, horizon=100)
    assert controller.updated(10.0, 50).coef == pytest.approx(1.1)
    assert controller.updated(0.0, 50).coef == pytest.approx(0.9)
    assert KLController(1.0).updated(10.0, 50).coef == 1.0


@pytest.mark.parametrize("loss_mode", ["gspo", "vanilla", "cispo", "geo_mean", "gpg", "clip_cov", "kl_cov"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_samplers_importance_weights_scale_the_gradient_of_every_loss(loss_mode, level):
    """With one response of one token, both levels are one weight: the loss's gradient times min(old / sampler, cap)."""
    old, sampler = jnp.log(jnp.asarray([[0.3], [0.3], [0.3]])), jnp.log(jnp.asarray([[0.3], [0.2], [0.01]]))
    tokens = ResponseTokens.of_matrix(np.ones((3, 1)))
    advantages = jnp.asarray([[1.0], [-2.0], [0.5]])

    def gradient(**options):
        config = ActorConfig(loss_mode=loss_mode, kl_cov_coef=0.0, clip_cov_lb=99.0, clip_cov_ub=100.0, **options)
        inputs = LossInputs(old, old, advantages, tokens, Totals.count(tokens.mask), sampler)
        return jax.grad(lambda lp: policy_loss(inputs._replace(logprobs=lp), config).loss)(old)

    plain, weighted = gradient(), gradient(rollout_is=level, rollout_is_cap=4.0)
    assert (np.abs(plain) > 0).all()
    np.testing.assert_allclose(weighted, plain * np.array([[1.0], [1.5], [4.0]]), rtol=1e-5)


def test_the_weight_of_a_response_is_the_product_of_its_tokens():
    ratios = np.array([[1.1, 1.2, 0.5, 9.0], [2.0, 3.0, 1.0, 9.0]])
    tokens = ResponseTokens.of_matrix(np.array([[1, 1, 1, 0], [1, 1, 0, 0]]))
    zeros = jnp.zeros((2, 4))
    x = LossInputs(zeros, tokens.keep(jnp.log(jnp.asarray(ratios))), zeros, tokens, Totals.count(tokens.mask), zeros)
    weight = sampler_weight(x, ActorConfig(rollout_is="sequence", rollout_is_cap=5.0))
    np.testing.assert_allclose(weight[:, :2], [[0.66, 0.66], [5.0, 5.0]], rtol=1e-5)
    weight = sampler_weight(x, ActorConfig(rollout_is="token", rollout_is_cap=2.5))
    np.testing.assert_allclose(weight[:, :2], [[1.1, 1.2], [2.0, 2.5]], rtol=1e-5)
