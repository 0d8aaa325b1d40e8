"""The built-in set: complete, reproducible row by row, and answerable in full by its own solutions."""

from __future__ import annotations

import collections
import io
import itertools
import json
import random
import re

import pytest
from PIL import Image

from vero_jax.data import mini, schema
from vero_jax.data.mini import draw, task
from vero_jax.types import DOMAINS


@pytest.fixture(scope="module")
def rows() -> dict[str, list[tuple[str, dict]]]:
    return {split: list(mini.generate_rows(split, size, 18)) for split, size in (("train", 1200), ("val", 180))}


def test_sizes_are_equal_over_domains():
    assert sum(mini.sizes(6000).values()) == 6000
    for size in (6000, 360, 361):
        totals = collections.Counter()
        for (domain, _), count in mini.sizes(size).items():
            totals[domain] += count
        assert set(totals) == set(DOMAINS)
        assert max(totals.values()) - min(totals.values()) <= 1
    judged = mini.sizes(360)["visual_alignment", "mini_captions"]
    assert 360 - judged >= 300


def test_all_domains_and_reward_types_occur(rows):
    both = rows["train"] + rows["val"]
    assert {row["ability"] for _, row in both} == set(DOMAINS)
    assert {row["extra_info"]["reward_type"] for _, row in both} == set(schema.REWARD_TYPES)
    assert any(row["extra_info"]["tolerance"] for _, row in both)
    assert {name.split("-")[0] for name, _ in both} == set(mini.PREFIXES.values())


def test_any_row_can_be_made_alone(rows):
    for config, row in rows["val"][::17]:
        extra = row["extra_info"]
        again = mini.make_row("val", 18, row["ability"], row["data_source"], extra["index"])
        assert again == row
        assert config == mini.config_name(row["ability"], row["data_source"])


def test_seeds_and_splits_draw_different_pictures(rows):
    pictures = {split: {row["image"]["bytes"] for _, row in rows[split]} for split in rows}
    assert not pictures["train"] & pictures["val"]
    other = {row["image"]["bytes"] for _, row in mini.generate_rows("train", 60, 19)}
    assert not other & pictures["train"]


def test_ids_are_unique(rows):
    ids = [row["id"] for split in rows.values() for _, row in split]
    assert len(set(ids)) == len(ids)


def test_questions_and_solutions_are_short_and_pictures_small(rows):
    sizes = set()
    for _, row in rows["train"]:
        extra = row["extra_info"]
        assert len(extra["question"].split()) < 25, extra["question"]
        assert len(extra["solution"].split()) < 75, extra["solution"]
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.mode == "RGB"
        assert min(image.size) >= 32
        assert max(image.size) <= 128
        sizes.add(image.size)
    assert len(sizes) > 20
    assert any(width % 32 for width, _ in sizes)


def test_boxes_of_the_solution_are_thousandths_of_the_ground_truth(rows):
    seen = 0
    for _, row in rows["train"]:
        extra = row["extra_info"]
        if extra["reward_type"] not in ("grounding", "clicking"):
            continue
        width, height = Image.open(io.BytesIO(row["image"]["bytes"])).size
        answer = json.loads(re.search(r"<answer>(.*)</answer>", extra["solution"]).group(1))
        truth = json.loads(row["reward_model"]["ground_truth"])
        for given, stored in zip(answer, truth, strict=True):
            left, top, right, bottom = stored["bbox_2d"]
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            if extra["reward_type"] == "grounding":
                wanted = [1000 * left / width, 1000 * top / height, 1000 * right / width, 1000 * bottom / height]
                assert given["bbox_2d"] == pytest.approx(wanted, abs=0.51)
            else:
                x, y = given["point_2d"]
                assert left < x * width / 1000 < right and top < y * height / 1000 < bottom
        seen += 1
    assert seen > 20


def test_the_reference_solution_scores_full_marks(rows):
    from vero_jax.rewards.router import score_response
    from vero_jax.rewards.settings import RewardSettings

    checked = collections.Counter()
    for _, row in itertools.chain(*rows.values()):
        extra = dict(row["extra_info"])
        if extra["reward_type"] in schema.JUDGE_TYPES:
            continue
        extra["image_sizes"] = [Image.open(io.BytesIO(row["image"]["bytes"])).size]
        extra["normalize_bbox_to_1000"] = True
        truth = row["reward_model"]["ground_truth"]
        score = score_response(extra["solution"], truth, extra["reward_type"], extra, settings=RewardSettings())
        assert (score.accuracy, score.format) == (1.0, 1.0), (row["id"], extra["question"], extra["solution"], truth)
        checked[extra["reward_type"]] += 1
    assert len(checked) == len(schema.REWARD_TYPES) - len(schema.JUDGE_TYPES)


def test_some_reference_solutions_think_everything_twice(rows):
    thoughts = [re.match("<think>(.*)</think>", row["extra_info"]["solution"]).group(1) for _, row in rows["train"]]
    halves = [thought.split(" Check again: ") for thought in thoughts]
    assert all(len(parts) == 1 or parts[0] == parts[1] for parts in halves)
    assert 0.65 < sum(len(parts) == 2 for parts in halves) / len(halves) < 0.85


def test_things_stand_in_different_cells_in_reading_order():
    rng = random.Random(0)
    for _ in range(50):
        canvas = draw.Canvas(rng, *draw.pick_size(rng))
        boxes = draw.scatter(canvas, rng.randint(1, 4))
        corners = [(left // draw.CELL, top // draw.CELL) for left, top, _, _ in boxes]
        assert len(set(corners)) == len(boxes)
        for (left, top, right, bottom), (column, row) in zip(boxes, corners, strict=True):
            assert right <= min((column + 1) * draw.CELL, canvas.width)
            assert bottom <= min((row + 1) * draw.CELL, canvas.height)
            assert right - left >= 22 and bottom - top >= 22
        listed = task.scene(canvas, boxes, [f"thing{number}" for number in range(len(boxes))])
        order = sorted(range(len(boxes)), key=lambda number: (corners[number][1], corners[number][0]))
        assert [part.split()[-1] for part in listed.split(", ")] == [f"thing{number}" for number in order]


def test_tokenizer_corpus_is_deterministic_and_covers_every_source():
    corpus = mini.text_corpus(3, rows_per_source=4)
    assert corpus == mini.text_corpus(3, rows_per_source=4)
    assert len(corpus) == 2 * 4 * sum(len(sources) for sources in mini.SOURCES.values())
    assert sum(text.startswith("<think>") for text in corpus) == len(corpus) // 2
