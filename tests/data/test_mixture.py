"""Exact counts, no repeats before a domain is used up, and the reference's own stream."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import golden_dir
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
    with pytest.warns(UserWarning, match="without rows are left out of the mixture: b") as caught:
        weights = mixture.present_weights({"a": 0.25, "b": 0.5, "c": 0.25}, {"a": 5, "c": 5})
    assert weights == {"a": 0.5, "c": 0.5}
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="never drawn: z"):
        mixture.present_weights({"a": 1.0}, {"a": 1, "z": 4})
    with pytest.raises(UserError, match="domain_weights"):
        mixture.present_weights({"b": 1.0}, {"a": 5})


def test_each_batch_has_its_counts_and_each_domain_is_walked_in_order():
    mix = mixture.Mixture([3, 2, 1], seed=4)
    places: dict[int, list[int]] = {0: [], 1: [], 2: []}
    orders = set()
    for batch in range(50):
        drawn = [mix[batch * 6 + place] for place in range(6)]
        assert np.bincount([domain for domain, _ in drawn]).tolist() == [3, 2, 1]
        orders.add(tuple(domain for domain, _ in drawn))
        for domain, place in drawn:
            places[domain].append(place)
    assert len(orders) > 20
    for domain, count in enumerate((3, 2, 1)):
        assert sorted(places[domain]) == list(range(50 * count))
    assert mixture.Mixture([3, 2, 1], seed=4)[100] == mix[100]
    assert [mixture.Mixture([3, 2, 1], seed=5)[place] for place in range(12)] != [mix[place] for place in range(12)]


@pytest.mark.golden_rl
def test_the_references_stream_is_reproduced():
    cases = sorted(golden_dir("rl").glob("domain_sampler_*.npz"))
    assert cases
    for path in cases:
        case = np.load(path)
        setting = json.loads(str(case["hp_json"]))
        weights = case["in_domain_weights"].tolist()
        assert mixture.batch_counts(weights, setting["batch_size"]) == case["out_counts_per_batch"].tolist(), path.name
        epochs = mixture.reference_epochs(case["in_owner_domain"], weights, setting["batch_size"], setting["seed"])
        for name in ("out_epoch0", "out_epoch1"):
            epoch = next(epochs)
            np.testing.assert_array_equal(epoch, case[name], err_msg=f"{path.name} {name}")
            assert epoch.size == int(case["out_len"])
