"""Which rows are used is decided from the index alone, exactly as opening the images would decide it, and once."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vero_jax.config import BuildConfig, DataConfig, MixtureConfig
from vero_jax.data import prepare, selection
from vero_jax.data.chat import PromptError
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.models.build import build_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "policy"
    build_policy(folder, BuildConfig(vocab_size=600), seed=0, corpus=["how many red dots are there in the picture"])
    return folder


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def row(number: int, text: str, size=(64, 64), kind: str = "string_match", **changes):
    truth = '[{"bbox_2d": [0, 0, 5, 5]}]' if kind in ("grounding", "clicking") else "A"
    value = {
        "id": f"row{number}",
        "data_source": "made",
        "prompt": [{"role": "user", "content": text}],
        "image": {"bytes": png(*size), "path": None},
        "ability": "stem",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"question": text, "answer": truth, "reward_type": kind},
    }
    return {**value, **changes}


ROWS = [
    row(0, "<image>\nHow many?"),
    row(1, "<image>\n" + "many dots " * 60),
    row(2, "<image>\n" + "你好，这是什么？" * 12),
    row(3, "<image>\nHow many?", size=(900, 30)),
    row(4, "<image>\nHow many?", size=(2400, 9)),
    row(5, "<image>\nFind it as point_2d.", kind="clicking"),
    row(6, "<image>\n" + "Use pixel coordinates. " * 4 + "point_2d", kind="clicking"),
    row(7, "<image>\nWhat does <|image_pad|> mean?"),
    row(8, '<image>\nWhat is "role" here?', ability="chart_ocr", data_source="other"),
    row(9, "<image>\nHow?", prompt=[{"role": "human", "content": "<image>\nHow?"}]),
    row(
        10,
        "",
        prompt=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "<image>\nHow?"},
            {"role": "assistant", "content": "So."},
            {"role": "user", "content": "Why?"},
        ],
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("hub") / "stem-made"
    place.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), place / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), place / "val-00000-of-00001.parquet")
    return prepare.prepare(str(place.parent), DataConfig(cache_dir=str(tmp_path_factory.mktemp("cache"))))


@pytest.mark.parametrize("limit", [None, 20, 60, 90, 150, 400])
@pytest.mark.parametrize("system", ["", "Think first."])
def test_the_index_says_what_the_images_would_say(data, folder, limit, system):
    processor = Processor.from_folder(
        folder, system_prompt=system, max_prompt_length=limit, coordinates="normalized_1000"
    )
    source = data.examples("train")
    wanted = {}
    for number in range(len(source)):
        try:
            processor.prompt(source[number])
        except PromptError as error:
            wanted[number] = error.reason
    assert "prompt too long" in wanted.values() or limit in (None, 400)
    problems, reasons = selection.prompt_problems(data, "train", processor)
    found = {number: reasons[code - 1] for number, code in enumerate(problems.tolist()) if code}
    assert found == wanted
    if len(wanted) < len(source):
        chosen = selection.select_rows(data, "train", processor=processor)
        assert set(range(len(source))) - set(chosen.rows.tolist()) == set(wanted)
        assert sum(chosen.dropped.values()) == len(wanted)
        sizes = [processor.prompt(source[int(number)]).patches.nbytes for number in chosen.rows]
        assert chosen.largest_prompt == max(sizes)


def test_most_rows_are_known_to_fit_without_being_tokenized(data, folder):
    processor = Processor.from_folder(folder, max_prompt_length=18432)
    counted: list[int] = []

    class Counting:
        def encode_batch_fast(self, texts, **options):
            counted.append(len(texts))
            return processor.tokenizer.encode_batch_fast(texts, **options)

        def __getattr__(self, name):
            return getattr(processor.tokenizer, name)

    selection.prompt_problems(data, "train", dataclasses.replace(processor, tokenizer=Counting()))
    assert sum(counted) <= 2  # the conversation of several turns, and what looks like a control token


def test_what_was_found_is_kept_under_a_fingerprint(data, folder, tmp_path, monkeypatch):
    looks: list[int] = []
    look = selection._look_at_prompts

    def looking(table, *rest):
        looks.append(len(table))
        return look(table, *rest)

    monkeypatch.setattr(selection, "_look_at_prompts", looking)
    processor = Processor.from_folder(folder, max_prompt_length=60)

    def ask(processor):
        return selection.prompt_problems(data, "train", processor, tmp_path)

    first = ask(processor)
    assert np.array_equal(ask(processor)[0], first[0]) and ask(processor)[1] == first[1]
    assert len(looks) == 1
    for change in (
        {"max_prompt_length": 61},
        {"system_prompt": "Think."},
        {"coordinates": "pixels"},
        {"image_settings": dataclasses.replace(processor.image_settings, max_pixels=4096)},
    ):
        ask(dataclasses.replace(processor, **change))
    assert len(looks) == 5
    assert len(list((tmp_path / "prompts").glob("*.npz"))) == 5
    for file in (tmp_path / "prompts").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert np.array_equal(ask(processor)[0], first[0])
    assert len(looks) == 6


def test_a_cache_that_cannot_be_written_costs_only_time(data, folder, tmp_path):
    (tmp_path / "prompts").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept"):
        problems, _ = selection.prompt_problems(data, "train", Processor.from_folder(folder), tmp_path)
    assert len(problems) == len(ROWS)


def test_domains_and_sources_by_name(data):
    def rows(**changes):
        return selection.select_rows(data, "train", mixture=MixtureConfig(**changes)).rows.tolist()

    assert rows(domains=("chart_ocr",)) == rows(sources=("other",)) == [8]
    assert rows(leave_out=("chart_ocr",)) == rows(leave_out_sources=("other",)) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    chosen = selection.select_rows(data, "train", mixture=MixtureConfig(domains=("chart_ocr",)))
    assert chosen.available == {"chart_ocr": 1} and chosen.dropped == {"domain not wanted": 10}
    with pytest.raises(UserError, match=r"the source 'mode'.*did you mean 'made'"):
        rows(sources=("mode",))
    with pytest.raises(UserError, match=r"the domain 'captioning'.*it has"):
        rows(domains=("captioning",))


def test_validation_may_lack_what_training_wants(data):
    chosen = selection.select_rows(data, "val", mixture=MixtureConfig(leave_out=("chart_ocr",)))
    assert len(chosen.rows) == 1


def test_mean_areas_are_those_of_the_selected_rows(data):
    areas = selection.mean_areas(data, selection.select_rows(data, "train"))
    sizes = [(64, 64)] * 8 + [(900, 30), (2400, 9)]
    assert areas["chart_ocr"] == 64 * 64
    assert areas["stem"] == pytest.approx(np.mean([width * height for width, height in sizes]))


def test_rows_held_out_are_of_every_domain_and_always_the_same():
    domains = np.asarray([0] * 200 + [1] * 3 + [2], np.int32)
    everything = selection.Selection("train", np.arange(204), domains, ("a", "b", "c"), {"x": 1})
    rest, held = selection.hold_out(everything, 0.02)
    assert held.available == {"a": 4, "b": 1} and rest.available == {"a": 196, "b": 2, "c": 1}
    assert sorted([*rest.rows, *held.rows]) == list(range(204))
    assert rest.dropped == {"x": 1, "held out for validation": 5} and held.split == "train"
    assert np.array_equal(selection.hold_out(everything, 0.02)[1].rows, held.rows)
    with pytest.raises(UserError, match="too few"):
        selection.hold_out(dataclasses.replace(everything, rows=np.arange(1), domains=domains[-1:]), 0.5)


def test_changed_data_is_refused_by_name():
    saved = {"stem-a": "1", "stem-b": "2", selection.ROWS_IN_USE: "x"}
    selection.check_same_data(saved, dict(saved))
    with pytest.raises(UserError, match=r"in stem-b, stem-c: "):
        selection.check_same_data(saved, {"stem-a": "1", "stem-b": "3", "stem-c": "4", selection.ROWS_IN_USE: "y"})
    with pytest.raises(UserError, match="rows in use changed"):
        selection.check_same_data(saved, {**saved, selection.ROWS_IN_USE: "y"})
    many = {f"part{number}": "1" for number in range(9)}
    with pytest.raises(UserError, match="part4 and 4 more"):
        selection.check_same_data(many, {})


def test_json_of_messages_is_as_the_index_writes_it(data):
    text = data.index_table("train", ["messages"])["messages"][0].as_py()
    assert text.startswith('[{"role": "user", "content": "') and json.loads(text)  # what the quick look relies on
