"""The place of every question: exact counts, no repeats before a domain is used up, and the reference's own stream."""

from __future__ import annotations

import collections
import json
import pickle

import numpy as np
import pytest

from tests.conftest import golden_dir
from vero_jax.data import mixture
from vero_jax.data.order import Mixture, OwnOrder, ReferenceOrder, reference_epoch
from vero_jax.data.selection import Selection
from vero_jax.errors import UserError


@pytest.mark.parametrize("rotate", [False, True])
def test_each_batch_has_its_counts_and_each_domain_is_walked_in_order(rotate):
    mix = Mixture([3, 2, 1], 6, seed=4, rotate=rotate)
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
    assert Mixture([3, 2, 1], 6, seed=4, rotate=rotate)[100] == mix[100]
    assert [Mixture([3, 2, 1], 6, seed=5)[place] for place in range(12)] != [mix[place] for place in range(12)]


def test_rotation_gives_every_domain_its_turn_and_misses_no_place():
    mix = Mixture([1, 1, 1], 4, seed=0, rotate=True)
    drawn = [mix[sample] for sample in range(4 * 600)]
    for domain in range(3):
        places = sorted(place for number, place in drawn if number == domain)
        assert places == list(range(len(places))) and abs(len(places) - 800) < 3
    assert {mix.counts(batch) for batch in range(10)} == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}
    assert Mixture([1, 1, 1], 4, seed=0, rotate=True)[4_000_001] == mix[4_000_001]  # entered anywhere


def selection(sizes: dict[str, int], *, step: int = 3) -> Selection:
    """Rows 0, step, 2 step, ... of domains that take turns as in files with mixed rows."""
    domains = np.concatenate([np.full(count, place) for place, count in enumerate(sizes.values())])
    domains = np.random.default_rng(0).permutation(domains).astype(np.int32)
    return Selection("train", step * np.arange(len(domains), dtype=np.int64), domains, tuple(sizes), {})


def rows_of(chosen: Selection, name: str) -> set[int]:
    return set(chosen.rows[chosen.domains == chosen.names.index(name)].tolist())


@pytest.mark.parametrize("kind", ["own", "rotating", "reference"])
def test_every_row_of_a_domain_is_drawn_once_before_any_again(kind):
    chosen = selection({"a": 30, "b": 18, "unused": 20})
    weights = {"a": 0.5, "b": 0.5}
    order = (
        ReferenceOrder(chosen, weights, 4, 18)
        if kind == "reference"
        else OwnOrder(chosen, weights, 4, 18, kind == "rotating")
    )
    drawn = collections.defaultdict(list)
    for sample in range(68):
        domain, row = order.draw(sample)
        drawn[order.names[domain]].append(row)
    assert set(drawn) == {"a", "b"}
    for name, size in (("a", 30), ("b", 18)):
        assert set(drawn[name]) == rows_of(chosen, name)
        passes = [drawn[name][start : start + size] for start in range(0, len(drawn[name]) - size + 1, size)]
        for one in passes:
            assert len(set(one)) == size
        assert len(passes) < 2 or passes[0] != passes[1]
    others = list(order.others(5))
    domain, row = order.draw(5)
    assert set(others) == rows_of(chosen, order.names[domain]) and len(others) == len(set(others))
    again = pickle.loads(pickle.dumps(order))
    assert [again.draw(sample) for sample in range(68)] == [order.draw(sample) for sample in range(68)]


def test_the_references_order_goes_on_with_the_next_epoch():
    chosen = selection({"a": 20, "b": 15})
    order = ReferenceOrder(chosen, {"a": 0.5, "b": 0.5}, 6, 18)
    owner = chosen.domains
    wanted = np.concatenate([reference_epoch(owner, [0.5, 0.5], 6, 18, epoch) for epoch in range(3)]).ravel()
    assert [order.draw(sample)[1] for sample in range(len(wanted))] == chosen.rows[wanted].tolist()
    with pytest.raises(UserError, match="at least one batch"):
        ReferenceOrder(chosen, {"a": 1.0}, 36, 18)


@pytest.mark.golden_rl
def test_the_references_stream_is_reproduced():
    cases = sorted(golden_dir("rl").glob("domain_sampler_*.npz"))
    assert cases
    for path in cases:
        case = np.load(path)
        setting = json.loads(str(case["hp_json"]))
        weights = case["in_domain_weights"].tolist()
        assert mixture.batch_counts(weights, setting["batch_size"]) == case["out_counts_per_batch"].tolist(), path.name
        for number, name in enumerate(("out_epoch0", "out_epoch1")):
            epoch = reference_epoch(case["in_owner_domain"], weights, setting["batch_size"], setting["seed"], number)
            np.testing.assert_array_equal(epoch, case[name], err_msg=f"{path.name} {name}")
            assert epoch.size == int(case["out_len"])
