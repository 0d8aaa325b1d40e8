"""The guard counts traces, not calls, and names function and shapes when it refuses one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from vero_jax.parallel.trace_guard import TraceGuard, UnexpectedTraceError


def test_counts_traces_and_refuses_new_shapes_after_freezing():
    guard = TraceGuard()
    double = jax.jit(guard.watch("double", lambda x: 2 * x))
    double(jnp.zeros(3))
    double(jnp.ones(3))
    assert guard.counts == {"double": 1}
    guard.freeze()
    double(jnp.ones(3))
    with pytest.raises(UnexpectedTraceError, match=r"'double'.*float32\[4\]"):
        double(jnp.zeros(4))
    guard.allow(1)
    double(jnp.zeros(4))
    with pytest.raises(UnexpectedTraceError):
        double(jnp.zeros(5))
    guard.thaw()
    double(jnp.zeros(5))
    assert guard.counts["double"] == 3
