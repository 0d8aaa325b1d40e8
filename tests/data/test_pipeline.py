"""The stream of questions: exact batches, exact resume for any number of hosts and workers, nothing lost in silence."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import time
from collections.abc import Callable

import numpy as np
import pytest

from vero_jax.config import DataConfig, MiniConfig, MixtureConfig
from vero_jax.data import pipeline, prepare, schema, selection
from vero_jax.errors import UserError
from vero_jax.types import DOMAINS, Example


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> DataConfig:
    return DataConfig(cache_dir=str(tmp_path_factory.mktemp("cache")), mini=MiniConfig(240, 60, 7))


@pytest.fixture(scope="module")
def data(settings) -> prepare.PreparedData:
    return prepare.prepare("vero_mini", settings)


def ids(batch: list[Example]) -> list[str]:
    return [example.id for example in batch]


def only_even(example: Example) -> str:
    """A transform (at module level, for worker processes) that rejects every other row."""
    if example.extra_info["index"] % 2:
        raise schema.RowError("odd")
    return example.id


def nothing(example: Example) -> str:
    raise schema.RowError("never", example.id)


def test_batches_have_exact_counts(data, settings):
    with pipeline.QuestionStream(data, settings, batch_size=20) as stream:
        assert list(stream.counts.values()) == [4, 4, 3, 3, 3, 3]
        for step in range(4):
            found = collections.Counter(example.domain for example in stream.batch(step))
            assert found == stream.counts


def test_a_domain_repeats_nothing_before_it_is_used_up(data, settings):
    with pipeline.QuestionStream(data, settings, batch_size=24) as stream:
        drawn = [example for step in range(20) for example in stream.batch(step)]
    for domain, size in stream.available.items():
        found = [example.id for example in drawn if example.domain == domain]
        # A batch shuffles its own four of the domain, so passes are compared where they end with a batch.
        assert len(found) == 80
        first, second = found[: size // 4 * 4], found[40:80]
        assert len(set(first)) == len(first)
        assert len(set(found)) == size
        if size == 40:
            assert set(first) == set(second)
            assert first != second


def test_any_step_can_be_entered(data, settings):
    stream = pipeline.QuestionStream(data, settings, batch_size=18)
    batches = [ids(stream.batch(step)) for step in range(6)]
    assert len({tuple(batch) for batch in batches}) == 6
    assert ids(stream.batch(2)) == batches[2]
    stream.close()
    for start in (5, 3):
        with pipeline.QuestionStream(data, settings, batch_size=18, start_step=start) as other:
            assert ids(other.batch(start)) == batches[start]
    with pipeline.QuestionStream(data, settings, batch_size=18) as other:
        assert [ids(batch) for batch, _ in zip(other.iterate(4), range(2), strict=False)] == batches[4:6]


def test_the_order_depends_on_the_seed(data, settings):
    first = pipeline.QuestionStream(data, settings, batch_size=18).batch(0)
    second = pipeline.QuestionStream(data, dataclasses.replace(settings, seed=1), batch_size=18).batch(0)
    assert ids(first) != ids(second)


def test_hosts_share_the_same_batches(data, settings):
    whole = ids(pipeline.QuestionStream(data, settings, batch_size=12).batch(3))
    for hosts in (2, 3):
        parts = [
            pipeline.QuestionStream(data, settings, batch_size=12, host=host, hosts=hosts).batch(3)
            for host in range(hosts)
        ]
        assert [example.id for group in zip(*parts, strict=True) for example in group] == whole
    with pytest.raises(UserError, match="5 processes"):
        pipeline.QuestionStream(data, settings, batch_size=12, hosts=5)


def test_worker_processes_give_the_same_batches_and_counts(data, settings):
    plain = pipeline.QuestionStream(data, settings, batch_size=12, transform=only_even)
    wanted = [plain.batch(step) for step in (2, 3)]
    workers = dataclasses.replace(settings, workers=2)
    with pipeline.QuestionStream(data, workers, batch_size=12, start_step=2, transform=only_even) as stream:
        assert [stream.batch(step) for step in (2, 3)] == wanted
        assert stream.problems == plain.problems
    plain.close()


def large(example: Example) -> np.ndarray:
    return np.zeros(200_000, np.uint8)


def test_workers_end_at_once_with_large_questions_unread(data, settings):
    workers = dataclasses.replace(settings, workers=2)
    stream = pipeline.QuestionStream(data, workers, batch_size=12, transform=large)
    stream.batch(0)
    children = set(multiprocessing.active_children())
    assert len(children) == 2
    time.sleep(1)  # for the pipes to fill: then a worker could not end before somebody reads
    start = time.monotonic()
    stream.close()
    assert not any(child.is_alive() for child in children)
    assert all(child.exitcode == 0 for child in children)  # nobody had to be killed
    assert time.monotonic() - start < 20  # Grain waits 25 s for a worker before it kills it


def test_a_stream_that_nobody_read_closes(data, settings):
    workers = dataclasses.replace(settings, workers=2)
    pipeline.QuestionStream(data, workers, batch_size=12).close()
    assert list(pipeline.validation_batches(data, workers, batch_size=60, transform=large))
    assert not multiprocessing.active_children()


def test_bad_rows_are_replaced_from_their_domain_and_counted(data, settings):
    with pipeline.QuestionStream(data, settings, batch_size=24, transform=only_even) as stream:
        index = data.index("train", ["id", "domain"])
        domain_of = dict(zip(index["id"], index["domain"], strict=True))
        for step in range(5):
            batch = stream.batch(step)
            assert collections.Counter(domain_of[name] for name in batch) == stream.counts
            assert all(int(name[-1]) % 2 == 0 for name in batch)
        assert stream.problems["odd"] > 20
    with (
        pipeline.QuestionStream(data, settings, batch_size=24, transform=nothing) as stream,
        pytest.raises(UserError, match="never"),
    ):
        stream.batch(0)


def test_questions_for_a_judge_are_left_out_and_counted(data):
    chosen = selection.select_rows(data, "train")
    types = data.index("train", ["reward_type"])["reward_type"]
    judged = sum(kind in schema.JUDGE_TYPES for kind in types)
    assert judged > 0
    assert len(chosen.rows) == 240 - judged
    assert sum(chosen.dropped.values()) == judged
    assert "judge" in str(chosen)
    assert chosen.judged == 0
    judging = selection.select_rows(data, "train", judge="openai")
    assert len(judging.rows) == 240 and judging.judged == judged
    own = selection.select_rows(data, "train", own_types=schema.JUDGE_TYPES)
    assert len(own.rows) == 240 and own.judged == 0
    with pytest.raises(UserError, match="no question"):
        selection.select_rows(data, "nowhere")


def test_a_selection_limits_what_is_drawn(data, settings):
    everything = selection.select_rows(data, "train")
    kept = dataclasses.replace(everything, rows=everything.rows[::3], domains=everything.domains[::3])
    allowed = {data.examples("train")[int(row)].id for row in kept.rows}
    with pipeline.QuestionStream(data, settings, batch_size=12, selection=kept) as stream:
        assert all(set(ids(stream.batch(step))) <= allowed for step in range(12))


def test_validation_is_every_row_once_in_order(data, settings):
    wanted = ids([data.examples("val")[int(row)] for row in selection.select_rows(data, "val").rows])
    batches = list(pipeline.validation_batches(data, settings, batch_size=25))
    assert [name for batch in batches for name in ids(batch)] == wanted
    assert [len(batch) for batch in batches][:2] == [25, 25]
    problems: collections.Counter[str] = collections.Counter()
    some = list(pipeline.validation_batches(data, settings, batch_size=25, transform=only_even, problems=problems))
    assert sum(map(len, some)) + problems["odd"] == len(wanted)
    few = dataclasses.replace(settings, max_val_examples=12)
    picked = [example for batch in pipeline.validation_batches(data, few, batch_size=5) for example in batch]
    assert len(picked) == 12
    assert {example.domain for example in picked} == set(DOMAINS)


def test_a_domain_without_rows_is_dropped_from_the_mixture(data, settings):
    everything = selection.select_rows(data, "train")
    keep = everything.domains != everything.names.index("stem")
    kept = dataclasses.replace(everything, rows=everything.rows[keep], domains=everything.domains[keep])
    with pytest.warns(UserWarning, match="stem"):
        stream = pipeline.QuestionStream(data, settings, batch_size=10, selection=kept)
    assert "stem" not in stream.counts
    assert sum(stream.counts.values()) == 10


def test_waiting_and_replacements_are_measured(data, settings):
    with pipeline.QuestionStream(data, settings, batch_size=24, transform=only_even) as stream:
        assert stream.metrics() == {"timing_s/data_wait": 0.0, "data/replaced": 0.0}
        stream.batch(0)
        assert stream.metrics()["timing_s/data_wait"] > 0
        assert stream.metrics()["data/replaced"] == stream.problems["odd"] > 0


def test_what_was_replaced_is_counted_by_batch_so_that_a_resumed_run_says_the_same(data, settings):
    def counts(first: int) -> list[float]:
        with pipeline.QuestionStream(data, settings, batch_size=24, start_step=first, transform=only_even) as stream:
            found = []
            for step in range(first, 4):
                stream.batch(step)
                found.append(stream.metrics()["data/replaced"])
            return found

    whole = counts(0)
    assert min(whole) > 0 and counts(2) == whole[2:]


@pytest.mark.parametrize("order", ["own", "rotating", "reference"])
@pytest.mark.parametrize(("hosts", "workers"), [(1, 0), (2, 0), (4, 0), (2, 2)])
def test_the_order_is_the_same_for_any_number_of_hosts_and_workers(data, settings, order, hosts, workers):
    mixture = MixtureConfig(rotate=order == "rotating", order="reference" if order == "reference" else "own")
    config = dataclasses.replace(settings, mixture=mixture)
    whole = pipeline.QuestionStream(data, config, batch_size=20)
    steps = (11, 12)  # in the middle of an epoch, behind the first one of each domain
    wanted = {step: ids(whole.batch(step)) for step in steps}
    parts = []
    for host in range(hosts):
        with pipeline.QuestionStream(
            data, dataclasses.replace(config, workers=workers), batch_size=20, start_step=11, host=host, hosts=hosts
        ) as stream:
            parts.append({step: ids(stream.batch(step)) for step in steps})
    for step in steps:
        assert [name for group in zip(*(part[step] for part in parts), strict=True) for name in group] == wanted[step]


def test_questions_held_ready_fit_the_memory_that_is_given():
    def ahead(megabytes: int, workers: int, largest: int) -> int:
        return pipeline.read_ahead(DataConfig(read_ahead_mb=megabytes, workers=workers), largest, batch=256)

    large = 100 * 2**20  # an image of 16 megapixels
    assert ahead(1024, 0, large) == 10
    assert ahead(1024, 2, large) == 1  # 2 workers, three places for each question
    assert ahead(64, 2, large) == 1
    assert ahead(1024, 0, 2**20) == 256 + pipeline.READ_AHEAD  # a whole batch
    assert ahead(1024, 0, 0) == 256 + pipeline.READ_AHEAD


PROMPT_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Large:
    """A transform (for worker processes) with a result of `PROMPT_BYTES`; the size of a file counts its calls."""

    file: str

    def __call__(self, example: Example) -> np.ndarray:
        with open(self.file, "ab", buffering=0) as file:
            file.write(b".")
        return np.ones(PROMPT_BYTES, np.uint8)


def standing_still(value: Callable[[], int], seconds: float = 3.0) -> int:
    """The value, once it has been the same for that long."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.1)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last


def test_questions_held_ready_stay_within_the_memory_that_is_given(data, settings, tmp_path):
    config = dataclasses.replace(settings, workers=2, read_ahead_mb=256)
    chosen = dataclasses.replace(selection.select_rows(data, "train"), largest_prompt=PROMPT_BYTES)
    calls = tmp_path / "calls"
    with pipeline.QuestionStream(data, config, batch_size=4, transform=Large(str(calls)), selection=chosen) as stream:
        for step in range(3):
            stream.batch(step)
        held = standing_still(lambda: calls.stat().st_size) - 3 * 4
    # What is given, and two for each worker: one in hand, one that waits for its place. Without a bound it would be a
    # batch and 32 more.
    assert 0 < held <= config.read_ahead_mb * 2**20 // PROMPT_BYTES + 2 * 2
