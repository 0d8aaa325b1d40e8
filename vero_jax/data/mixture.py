"""Domain mixture: how often each domain is drawn, and how many of its questions every batch holds.

The weights are the user's, or follow from a measure of the domains as in the paper's other mixtures. `order.py` says
which questions these are.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from vero_jax.config import DataConfig
from vero_jax.errors import UserError
from vero_jax.types import DOMAINS


def parse_weights(value: str | Mapping[str, float] | Sequence[Any]) -> dict[str, float]:
    """Mixture weights from "name:1/6,name:0.2", JSON text, a mapping or a list of pairs; summing to 1.

    Weights of zero or below leave their domain out.

    Raises:
      UserError: a weight is not a finite number, or none is positive.
    """
    pairs: list[Any]
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("{", "[")):
            try:
                return parse_weights(json.loads(text))
            except ValueError as error:
                raise UserError(f"domain weights {value!r} are no JSON ({error})") from error
        pairs = [item.rpartition(":")[::2] for item in text.split(",") if item.strip()]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        pairs = list(value)
    weights = {}
    for pair in pairs:
        if isinstance(pair, Mapping) and len(pair) == 1:
            pair = next(iter(pair.items()))
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(f"domain weight {pair!r} is no pair of a name and a number; write name: number")
        weights[str(pair[0]).strip()] = _number(pair[1], str(pair[0]))
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    if not weights:
        raise UserError(f"domain weights {value!r} hold no positive weight; give at least one domain a weight above 0")
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, str) and "/" in value:
            above, below = value.split("/")
            number = float(above) / float(below)
        else:
            number = float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"weight {value!r} of domain {name!r} is not a number") from error
    if not math.isfinite(number):
        raise UserError(f"weight {value!r} of domain {name!r} is not a finite number")
    return number


def present_weights(weights: Mapping[str, float], available: Mapping[str, int]) -> dict[str, float]:
    """The weights of the domains that have rows, renormalised. Says once which are missing and which are never drawn.

    Raises:
      UserError: no domain with a weight has rows.
    """
    absent = [name for name in weights if not available.get(name)]
    unused = [name for name, count in available.items() if count and name not in weights]
    kept = {name: weight for name, weight in weights.items() if name not in absent}
    if not kept:
        raise UserError(
            f"none of the domains {list(weights)} has rows; the data has {sorted(name for name in available)}: "
            "change data.domain_weights"
        )
    for name in absent:
        if name not in DOMAINS:
            near = difflib.get_close_matches(name, [*available], 1)
            raise UserError(
                f"the weights name the domain {name!r}, which the data has not; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {sorted(available)}")
            )
    if absent:
        warnings.warn(f"domains without rows are left out of the mixture: {', '.join(absent)}", stacklevel=2)
    if unused:
        warnings.warn(f"domains without a weight are never drawn: {', '.join(unused)}", stacklevel=2)
    whole = sum(kept.values())
    return {name: weight / whole for name, weight in kept.items()}


def batch_counts(weights: Sequence[float], batch_size: int) -> list[int]:
    """Questions of each domain in a batch: floors of the shares, the rest one each to the largest remainders.

    Of equal remainders the earlier domain wins.
    """
    whole = sum(weights)
    shares = [weight / whole * batch_size for weight in weights]
    # Shares such as 0.1 * 30 fall just below a whole number; the tie-break must not depend on such noise either.
    counts = [math.floor(share + 1e-9) for share in shares]
    order = sorted(range(len(weights)), key=lambda place: (-round(shares[place] - counts[place], 9), place))
    for place in order[: batch_size - sum(counts)]:
        counts[place] += 1
    return counts


def rotating_counts(weights: Sequence[float], batch_size: int, batches: int) -> Int64[np.ndarray, "batches D"]:
    """Questions of each domain in the first `batches` batches, where the places that do not divide go round.

    Every batch has each domain's share rounded down or up, and after any number of batches no domain is more than two
    questions away from its share (systematic sampling of the places left, from a start that moves by the golden ratio).
    """
    shares = np.asarray(weights, np.float64) / sum(weights) * batch_size
    whole = np.floor(shares + 1e-9)
    ends = np.round(np.cumsum(np.clip(shares - whole, 0, None)), 9)
    start = np.arange(batches)[:, None] * ((math.sqrt(5) - 1) / 2) % 1
    reached = np.floor(np.concatenate([np.zeros((batches, 1)), np.broadcast_to(ends, (batches, len(ends)))], 1) + start)
    return (whole + np.diff(reached, axis=1)).astype(np.int64)


def measure_exponent(measures: Sequence[float], max_ratio: float) -> float:
    """The a for which the largest of measure ** a is `max_ratio` times the smallest; 0 where all are equal."""
    spread = math.log(max(measures) / min(measures))
    return math.log(max_ratio) / spread if spread else 0.0


def domain_weights(
    data_cfg: DataConfig, available: Mapping[str, int], mean_areas: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """The weights of the domains that are drawn, summing to 1, in the order in which they take part.

    Args:
      data_cfg: `domain_weights` and `mixture`.
      available: rows of each domain that has some.
      mean_areas: gives the mean image area of each domain; called where the weights are made of it.

    Raises:
      UserError: no domain with a weight has rows, or a domain lacks its measure.
    """
    mixture = data_cfg.mixture
    known = [name for name in DOMAINS if name in available]
    names = known + [name for name in available if name not in DOMAINS and (not known or name in mixture.domains)]
    if mixture.weighting == "given":
        usual = data_cfg.domain_weights == dict.fromkeys(DOMAINS, 1.0)
        named = mixture.domains or (usual and not known)  # wanted by name, or data of somebody's own domains
        weights = dict.fromkeys(names, 1.0) if named and usual else data_cfg.domain_weights
        wanted = {name: weight for name, weight in parse_weights(weights).items() if _takes_part(name, data_cfg)}
        return present_weights(wanted or parse_weights(weights), available)
    if mixture.weighting == "rows":
        return present_weights({name: float(available[name]) for name in names}, available)
    measures = dict(mean_areas()) if mixture.weighting == "area" else dict(mixture.measures)
    if mixture.weighting == "difficulty":
        measures = {name: 1 - accuracy for name, accuracy in measures.items()}
    for name in names:
        if not measures.get(name, 0.0) > 0:
            raise UserError(
                f"data.mixture.weighting={mixture.weighting} has no measure above 0 for the domain {name!r}: give "
                f"data.mixture.measures.{name}, or leave the domain out with data.mixture.leave_out"
            )
    exponent = measure_exponent([measures[name] for name in names], mixture.max_ratio)
    return present_weights({name: measures[name] ** exponent for name in names}, available)


def _takes_part(name: str, data_cfg: DataConfig) -> bool:
    mixture = data_cfg.mixture
    return name not in mixture.leave_out and (not mixture.domains or name in mixture.domains)
