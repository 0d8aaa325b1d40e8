"""The published table in the package: the golden one's figures, and a sensible choice of columns."""

from __future__ import annotations

import csv

import pytest

from tests.conftest import golden_dir
from vero_jax.evaluation.published import PAIRS, likely_pair, published, published_means
from vero_jax.evaluation.registry import table_rows

COLUMNS = {
    "qwen25": ("Q25VL-7B-Ins", "Vero-Q25-7B"),
    "qwen3": ("Q3VL-8B-Ins", "Vero-Q3I-8B"),
    "qwen3_thinking": ("Q3VL-8B-Thk", "Vero-Q3T-8B"),
    "mimo": ("MiMoVL-7B-SFT(derived)", "Vero-Mi-7B"),
}


def test_every_row_of_the_table_has_all_pairs():
    assert set(published()) == set(table_rows())
    assert all(set(row) == {pair.key for pair in PAIRS} for row in published().values())


@pytest.mark.golden_eval
def test_figures_and_means_are_the_papers():
    with (golden_dir("eval") / "paper_table.csv").open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["version"].startswith("v2")]
    assert len(lines) == 37
    for line in lines:
        for key, (base, vero) in COLUMNS.items():
            wanted = float(line[base]), float(line[vero])
            if line["benchmark"] in published():
                found = published()[line["benchmark"]][key]
                assert (found.base, found.vero) == wanted
                assert found.measured == (base in line["dagger_self_evaluated"].split(";"))
            else:
                rows = [row for row, of in table_rows().items() if line["category"] in (of, "Overall")]
                means = published_means(rows, key)
                # Printed means are rounded; those of MiMo's base are a rounded mean minus a rounded gain.
                assert means[0] == pytest.approx(wanted[0], abs=0.11 if key == "mimo" else 0.0501), line["benchmark"]
                assert means[1] == pytest.approx(wanted[1], abs=0.0501), line["benchmark"]


def test_means_are_over_the_rows_asked_for():
    assert published_means(["ChartQA", "ERQA"], "qwen25") == pytest.approx(((87.3 + 41.8) / 2, (90.6 + 42.5) / 2))
    assert published_means(["no such row"], "qwen25") is None


@pytest.mark.parametrize(
    ("checkpoint", "variant", "key"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "reasoning", "qwen25"),
        ("runs/vero_qwen25", "reasoning_samplingq3", "qwen25"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_zs", "qwen3"),
        ("Qwen/Qwen3-VL-8B-Thinking", "reasoning_samplingq3", "qwen3_thinking"),
        ("zlab-princeton/Vero-Qwen3T-8B", "reasoning_samplingq3", "qwen3_thinking"),
        ("XiaomiMiMo/MiMo-VL-7B-SFT", "reasoning", "mimo"),
        ("runs/7/export", "reasoning", "qwen25"),
        ("runs/7/export", "reasoning_samplingq3", "qwen3"),
        ("runs/7/export", "qwen3_thinking_zs", "qwen3_thinking"),
        ("runs/7/export", "qwen3_zs", "qwen3"),
        ("runs/7/export", "mimo_zs", "mimo"),
        ("runs/7/export", "qwen25_zs", "qwen25"),
    ],
)
def test_columns_go_by_the_checkpoints_name_then_by_the_variant(checkpoint, variant, key):
    assert likely_pair(checkpoint, variant).key == key
