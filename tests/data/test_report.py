"""The report: counts survive a way through JSON, merge over configs, and the table stays readable for many sources."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from vero_jax.data.prepared import INDEX_SCHEMA
from vero_jax.data.report import Report, duplicate_ids, image_sizes
from vero_jax.data.schema import REWARD_TYPES
from vero_jax.types import DOMAINS, Example


def example(source: str = "made", domain: str = "stem", reward_type: str = "numeric") -> Example:
    return Example("a", domain, source, (), (), reward_type, "1", {})


def row(reward_type: str, **columns) -> dict:
    return {"data_source": "made", "ability": "stem", "extra_info": {"reward_type": reward_type}, **columns}


def test_a_report_comes_back_from_json_as_it_was():
    report = Report(duplicates={"train": (2, "a")})
    report.keep("train", example())
    report.drop("val", row("grounding"), "ground truth without boxes", "b")
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_merged_reports_add_up_and_keep_the_first_example_of_each_reason():
    first, second = Report(), Report()
    for report, name in ((first, "one"), (second, "two")):
        report.keep("train", example())
        report.drop("train", row("numeric"), "no image", name)
    first.merge(second)
    assert list(first.kept.values()) == [2]
    assert first.by_reason() == {"no image": 2}
    assert list(first.examples.values()) == ["one"]


def test_unparsable_ground_truths_and_unknown_names_are_told_with_their_counts():
    report = Report(duplicates={"train": (3, "twice")})
    report.keep("train", example(reward_type="magic"))
    report.keep("train", example(domain="stemm"))
    report.drop("train", row("grounding"), "ground truth without boxes", "b")
    report.drop("train", row("numeric"), "empty ground truth", "c")
    report.drop("train", row("numeric"), "no image", "d")
    text = report.table()
    assert "unparsable ground truths, dropped: 2 rows (grounding 1, numeric 1)" in text
    assert "unknown reward type 'magic': 1 rows" in text
    assert "unknown domain 'stemm': 1 rows, drawn only if it has a weight (is it 'stem'?)" in text
    assert "duplicate ids in train: 3 rows, kept; the first one is 'twice'" in text


def test_the_table_of_all_sources_has_a_line_each_and_fits_a_wide_terminal():
    report = Report()
    for number in range(59):
        for reward_type in REWARD_TYPES[number % 3 :: 5]:
            report.keep("train", example(f"CoSyn_400k_{number}", DOMAINS[number % 6], reward_type))
    lines = report.table().splitlines()
    assert sum("CoSyn_400k_" in line for line in lines) == 59
    assert max(map(len, lines)) <= 160


def test_kept_and_dropped_rows_of_a_domain_stand_side_by_side():
    report = Report()
    report.keep("train", example())
    report.drop("train", row("numeric"), "no image", "d")
    assert ["stem", "1", "1"] in [line.split() for line in report.table().splitlines()]
    assert "train: 1 rows kept, 1 dropped" in report.table()


def test_image_sizes_are_told_by_source(tmp_path):
    rows = [
        {"source": "a", "widths": [100, 300], "heights": [10, 20]},
        {"source": "a", "widths": [200], "heights": [1000]},
        {"source": "b", "widths": [], "heights": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), tmp_path / "index.parquet")
    (sizes,) = image_sizes([tmp_path / "index.parquet"])
    assert (sizes.source, sizes.count, sizes.median, sizes.largest) == ("a", 3, (200, 20), (200, 1000))
    assert sizes.megapixels == 0.069


def test_rows_with_the_id_of_an_earlier_row_are_counted_and_the_first_is_named():
    assert duplicate_ids(pa.chunked_array([["a", "b"], ["c", "b"], ["a", "b"]])) == (3, "b")
    assert duplicate_ids(pa.chunked_array([["a", "b"], ["c"]])) is None
