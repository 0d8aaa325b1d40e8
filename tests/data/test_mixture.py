"""Weights in every spelling and from every measure, and exact counts in every batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vero_jax.config import DataConfig, MixtureConfig
from vero_jax.data import mixture
from vero_jax.errors import UserError
from vero_jax.types import DOMAINS


def test_the_recipes_counts():
    assert mixture.batch_counts([1 / 6] * 6, 256) == [43, 43, 43, 43, 42, 42]
    assert mixture.batch_counts([0.9, 0.05, 0.05], 8) == [7, 1, 0]
    assert mixture.batch_counts([0.1, 0.2, 0.7], 30) == [3, 6, 21]


@pytest.mark.parametrize("size", [1, 5, 6, 7, 64, 255])
def test_counts_add_up_and_are_within_one_of_the_share(size):
    weights = [3.0, 1.0, 0.5, 2.2]
    counts = mixture.batch_counts(weights, size)
    assert sum(counts) == size
    assert all(abs(count - size * weight / sum(weights)) < 1 for count, weight in zip(counts, weights, strict=True))


def test_weights_in_every_spelling():
    sixth = dict.fromkeys(DOMAINS, pytest.approx(1 / 6))
    assert mixture.parse_weights(",".join(f"{name}:1/6" for name in DOMAINS)) == sixth
    assert mixture.parse_weights(dict.fromkeys(DOMAINS, 2.0)) == sixth
    assert mixture.parse_weights('{"a": 1, "b": 3}') == {"a": 0.25, "b": 0.75}
    assert mixture.parse_weights([["a", 1], {"b": 3}, ("c", 0), ("d", -1)]) == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize("value", ["a:x", {"a": float("inf")}, {"a": 0.0}, "a:1/0", [["a"]], "{bad"])
def test_bad_weights_are_named(value):
    with pytest.raises(UserError):
        mixture.parse_weights(value)


def test_absent_domains_are_left_out_with_one_warning():
    third = {"stem": 0.25, "chart_ocr": 0.5, "own": 0.25}
    with pytest.warns(UserWarning, match="without rows are left out of the mixture: chart_ocr") as caught:
        weights = mixture.present_weights(third, {"stem": 5, "own": 5})
    assert weights == {"stem": 0.5, "own": 0.5}
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="never drawn: z"):
        mixture.present_weights({"a": 1.0}, {"a": 1, "z": 4})
    with pytest.raises(UserError, match="domain_weights"):
        mixture.present_weights({"b": 1.0}, {"a": 5})
    with pytest.raises(UserError, match=r"'owm'.*did you mean 'own'"):
        mixture.present_weights({"a": 1.0, "owm": 1.0}, {"a": 5, "own": 1})


def data_config(**changes) -> DataConfig:
    weights = changes.pop("domain_weights", None)
    config = DataConfig(mixture=MixtureConfig(**changes))
    return config if weights is None else dataclasses.replace(config, domain_weights=weights)


def no_areas() -> dict[str, float]:
    raise AssertionError("areas are not needed here")


ROWS = {name: 100 * (place + 1) for place, name in enumerate(DOMAINS)}


def test_the_six_domains_count_alike_by_default():
    weights = mixture.domain_weights(data_config(), ROWS, no_areas)
    assert weights == dict.fromkeys(DOMAINS, pytest.approx(1 / 6)) and tuple(weights) == DOMAINS


def test_data_with_domains_of_its_own_needs_no_weights():
    weights = mixture.domain_weights(data_config(), {"mine": 10, "yours": 30}, no_areas)
    assert weights == {"mine": 0.5, "yours": 0.5}
    with pytest.warns(UserWarning, match="never drawn: mine"):  # a stray domain beside the recipe's is not drawn
        assert set(mixture.domain_weights(data_config(), ROWS | {"mine": 10}, no_areas)) == set(DOMAINS)
    with pytest.warns(UserWarning, match="never drawn"):  # unless it is asked for
        assert mixture.domain_weights(data_config(domains=("mine",)), ROWS | {"mine": 10}, no_areas) == {"mine": 1.0}


def test_weights_that_name_no_domain_of_the_data_are_refused():
    with pytest.raises(UserError, match=r"none of the domains \['stme'\].*domain_weights"):
        mixture.domain_weights(data_config(domain_weights={"stme": 1.0}), ROWS, no_areas)


def test_one_domain_alone_and_one_left_out():
    rest = {name: count for name, count in ROWS.items() if name != "stem"}  # as the selection leaves it
    weights = mixture.domain_weights(data_config(leave_out=("stem",)), rest, no_areas)
    assert weights == dict.fromkeys(rest, pytest.approx(0.2))
    assert mixture.domain_weights(data_config(domains=("stem",)), {"stem": 600}, no_areas) == {"stem": 1.0}


def test_weights_by_rows():
    weights = mixture.domain_weights(data_config(weighting="rows"), ROWS, no_areas)
    assert weights == {name: pytest.approx(count / 2100) for name, count in ROWS.items()}


def test_the_papers_exponents_follow_from_its_measures():
    """arXiv 2604.04917: exponents 0.443 for areas and 0.144 for lengths make the largest weight 1.6 of the smallest."""
    area = {"grounding": 1_495_429, "chart": 1_182_367, "knowledge": 913_072, "stem": 811_990, "spatial": 516_976}
    assert mixture.measure_exponent(list(area.values()), 1.6) == pytest.approx(0.443, abs=6e-4)
    words = [1983.3, 1592.7, 1576.1, 124.9, 75.8]
    assert mixture.measure_exponent(words, 1.6) == pytest.approx(0.144, abs=5e-4)
    assert mixture.measure_exponent([2.0, 2.0], 1.6) == 0


@pytest.mark.parametrize("weighting", ["difficulty", "length", "area"])
def test_weights_by_a_measure_have_the_ratio_and_its_order(weighting):
    measures = {name: 0.1 + 0.1 * place for place, name in enumerate(DOMAINS)}
    config = data_config(weighting=weighting, measures={} if weighting == "area" else measures)
    weights = list(mixture.domain_weights(config, ROWS, lambda: measures).values())
    assert max(weights) / min(weights) == pytest.approx(1.6)
    assert weights == sorted(weights, reverse=weighting == "difficulty")


def test_a_domain_without_a_measure_is_named():
    with pytest.raises(UserError, match=r"no measure above 0 for the domain 'stem'.*measures\.stem"):
        measures = {name: 0.5 for name in DOMAINS if name != "stem"}
        mixture.domain_weights(data_config(weighting="length", measures=measures), ROWS, no_areas)


def test_rotating_counts_are_exact_in_every_batch_and_fair_over_time():
    weights = [1 / 6] * 6
    counts = mixture.rotating_counts(weights, 256, 3000)
    assert (counts.sum(axis=1) == 256).all()
    assert set(np.unique(counts)) == {42, 43}
    shares = np.arange(1, 3001)[:, None] * 256 / 6
    assert np.abs(np.cumsum(counts, axis=0) - shares).max() < 3
    fixed = np.asarray(mixture.batch_counts(weights, 256))
    assert np.abs(3000 * fixed - shares[-1]).max() == 2000  # what it is for
    uneven = mixture.rotating_counts([3.0, 1.0, 0.5, 2.2], 10, 500)
    assert (uneven.sum(axis=1) == 10).all()
    assert np.abs(uneven.sum(axis=0) / 5000 - np.asarray([3.0, 1.0, 0.5, 2.2]) / 6.7).max() < 1e-3
    whole = mixture.rotating_counts([1.0, 1.0], 8, 4)
    assert whole.tolist() == [[4, 4]] * 4
