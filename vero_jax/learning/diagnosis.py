"""Where a gradient stops being finite: in what went into it, in a response's log-probabilities, or on the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from vero_jax.learning.programs import Params
from vero_jax.types import Group

Gradients = Callable[[Sequence[Group]], tuple[Params, float]]
"""Of a batch of groups: gradients and loss."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not finite.

    Attributes:
      where: "parameters", "advantages", "sampler", "log-probabilities" or "gradient".
      name: of the parameter, or of the question and its response (from 0).
      count: how many numbers of it are not finite; of: out of how many.
    """

    where: str
    name: str
    count: int
    of: int

    @property
    def follows(self) -> bool:
        """Whether it may be only what something before it led to."""
        return self.where == "gradient"

    def __str__(self) -> str:
        return f"{self.where:18} {self.name:60} {self.count} of {self.of} not finite"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Of one mini-batch.

    Attributes:
      norm: of its gradient; loss: its policy loss or cross-entropy.
      findings: in the order in which things are computed; the first is the cause, the others may follow from it.
      culprits: responses that by themselves have a gradient that is not finite, where nothing before it explains it;
        None where they were not looked for.
    """

    norm: float
    loss: float
    findings: tuple[Finding, ...]
    culprits: tuple[str, ...] | None = None

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.norm))


def diagnose(
    params: Params,
    groups: Sequence[Group],
    gradients: Gradients,
    logprobs: Callable[[Params, Sequence[Group]], list[list[np.ndarray]]] | None = None,
) -> Diagnosis:
    """Computes a mini-batch again and looks at everything on the way.

    Args:
      params: the policy's.
      gradients: of any part of the batch, by the learner that trained it.
      logprobs: per group and response; None leaves them out.
    """
    found = [*_bad_leaves("parameters", params), *_bad_inputs(groups)]
    if logprobs is not None:
        for group, values in zip(groups, logprobs(params, groups), strict=True):
            found += _bad("log-probabilities", {_name(group, r): array for r, array in enumerate(values)})
    of_batch, loss = gradients(groups)
    norm = float(optax.global_norm(of_batch))
    cause_known = bool(found)
    found += _bad_leaves("gradient", of_batch)
    culprits = None
    if not np.isfinite(norm) and not cause_known:
        culprits = tuple(_culprits(groups, gradients))
    return Diagnosis(norm, loss, tuple(found), culprits)


def _culprits(groups: Sequence[Group], gradients: Gradients) -> Iterator[str]:
    for group in groups:
        if np.isfinite(float(optax.global_norm(gradients([group])[0]))):
            continue
        for number in range(len(group.responses)):
            alone = _only(group, number)
            if not np.isfinite(float(optax.global_norm(gradients([alone])[0]))):
                yield _name(group, number)


def _only(group: Group, number: int) -> Group:
    part = slice(number, number + 1)
    return dataclasses.replace(
        group,
        responses=group.responses[part],
        scores=group.scores[part],
        advantages=None if group.advantages is None else group.advantages[part],
    )


def _bad_inputs(groups: Sequence[Group]) -> Iterator[Finding]:
    for group in groups:
        if group.advantages is not None:
            yield from _bad("advantages", {_name(group, r): np.asarray(a) for r, a in enumerate(group.advantages)})
        yield from _bad("sampler", {_name(group, r): x.logprobs for r, x in enumerate(group.responses)})


def _bad_leaves(where: str, tree: Any) -> list[Finding]:
    flat = flatten_dict(tree)
    counts = jax.device_get({path: jnp.sum(~jnp.isfinite(leaf)) for path, leaf in flat.items()})
    return [Finding(where, ".".join(path), int(count), int(flat[path].size)) for path, count in counts.items() if count]


def _bad(where: str, arrays: dict[str, np.ndarray]) -> Iterator[Finding]:
    for name, array in arrays.items():
        count = int(np.sum(~np.isfinite(array)))
        if count:
            yield Finding(where, name, count, int(np.size(array)))


def _name(group: Group, number: int) -> str:
    return f"question {group.prompt.example.id}, response {number}"
