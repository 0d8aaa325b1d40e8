"""Learning rate and AdamW against the reference's vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.golden import cases, load
from vero_jax.learning.schedule import adamw, clip_by_global_norm, descend, learning_rate


@pytest.mark.golden_rl
@pytest.mark.parametrize(("hp", "file"), cases("adamw_schedule"))
def test_schedule_and_adamw_match_reference(hp, file):
    z = load(file)
    optimizer = adamw(tuple(hp["betas"]), hp["eps"], hp["wd"])
    params = jnp.asarray(z["in_params0"])
    state = optimizer.init(params)

    @jax.jit
    def update(params, gradients, state, rate):
        gradients, norm = clip_by_global_norm(gradients, hp["grad_clip"])
        return (*descend(params, gradients, state, optimizer, rate), norm)

    for step in range(hp["steps"]):
        rate = learning_rate(
            step + 1,
            peak=hp["lr"],
            warmup_steps=hp["warmup"],
            schedule=hp["style"],
            total_steps=hp.get("total", 0),
            min_ratio=hp.get("min_lr_ratio", 0.0),
            strict_reference=True,
        )
        np.testing.assert_allclose(rate, z["out_lr_by_step"][step], rtol=1e-9, atol=1e-18)
        for number in range(hp["updates_per_step"]):
            params, state, norm = update(params, jnp.asarray(z["in_grads"][step, number]), state, rate)
            np.testing.assert_allclose(norm, z["out_grad_norm"][step, number], rtol=1e-5)
            np.testing.assert_allclose(params, z["out_params"][step, number], rtol=2e-6, atol=1e-7)


def test_cosine_stays_at_its_floor():
    rates = [learning_rate(t, peak=1.0, warmup_steps=2, schedule="cosine", total_steps=10, min_ratio=0.1) for t in range(1, 20)]  # fmt: skip # noqa: E501
    assert rates[0] == 0
    assert rates[2] == 1
    np.testing.assert_allclose(rates[10:], 0.1)
    with pytest.raises(ValueError, match="unknown schedule"):
        learning_rate(1, peak=1.0, warmup_steps=0, schedule="linear")
    with pytest.raises(ValueError, match="counted from 1"):
        learning_rate(0, peak=1.0, warmup_steps=0)
