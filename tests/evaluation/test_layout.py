"""The layouts in which the benchmarks' data sets lie on the hub, and which files of them are a split's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.data_sets import ROWS, picture, write
from vero_jax.evaluation.benchmark import Source
from vero_jax.evaluation.benchmarks.blink import TASKS
from vero_jax.evaluation.layout import MissingData, picture_places, row_files
from vero_jax.evaluation.loaders import Question, questions
from vero_jax.evaluation.registry import all_benchmarks, benchmark
from vero_jax.evaluation.rows import open_rows
from vero_jax.evaluation.variants import VARIANTS

LAYOUTS = {
    # The files as the hub lists them (some left out), and those that hold the rows.
    "mathvision_test": (
        [
            "data/test-00000-of-00001-3532b8d3f1b4047a.parquet",
            "data/testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet",
            "images.zip",
        ],
        ["data/test-00000-of-00001-3532b8d3f1b4047a.parquet"],
    ),
    "mathvista_testmini": (
        [
            "data/test-00000-of-00002.parquet",
            "data/test-00001-of-00002.parquet",
            "data/testmini-00000-of-00001.parquet",
        ],
        ["data/testmini-00000-of-00001.parquet"],
    ),
    "charxiv": (["croissant.json", "images.zip", "test.parquet", "val.parquet"], ["val.parquet"]),
    "fvqa": (
        ["fvqa_test.parquet", "fvqa_test_image_search_results_cache.pkl", "fvqa_train.parquet"],
        ["fvqa_test.parquet"],
    ),
    "visual_probe_hard": (["data/0.jpg", "data/1.jpg", "val.json"], ["val.json"]),
    "aerialvg_bbox": (
        [f"annotation/vg_{split}_odvg.jsonl" for split in ("test", "train", "val")] + ["images/1.jpg"],
        ["annotation/vg_test_odvg.jsonl"],
    ),
    "screenspotpro": (
        ["annotations/b_windows.json", "annotations/a_macos.json", "images/a_macos/1.png", "images/notes.json"],
        ["annotations/a_macos.json", "annotations/b_windows.json"],
    ),
    "mmmu_pro_vision": (
        [
            "standard (10 options)/test-00000-of-00001.parquet",
            "standard (4 options)/test-00000-of-00001.parquet",
            "vision/test-00000-of-00002.parquet",
            "vision/test-00001-of-00002.parquet",
        ],
        ["vision/test-00000-of-00002.parquet", "vision/test-00001-of-00002.parquet"],
    ),
    "mmmu_pro_standard": (
        ["standard (4 options)/test-00000-of-00001.parquet", "standard (10 options)/test-00000-of-00001.parquet"],
        ["standard (10 options)/test-00000-of-00001.parquet"],
    ),
    "infovqa_val": (
        [
            "DocVQA/validation-00000-of-00001.parquet",
            "InfographicVQA/test-00000-of-00001.parquet",
            "InfographicVQA/validation-00000-of-00001.parquet",
        ],
        ["InfographicVQA/validation-00000-of-00001.parquet"],
    ),
    "blink": (
        [f"{task}/{split}-00000-of-00001.parquet" for task in TASKS for split in ("test", "val")],
        [f"{task}/val-00000-of-00001.parquet" for task in TASKS],
    ),
    "mm_mt_bench": (
        ["data/eval-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["data/eval-00000-of-00001.parquet"],
    ),
    "evochart": (["data/train-00000-of-00001.parquet"], ["data/train-00000-of-00001.parquet"]),
    "game_qa_lite": (["questions.parquet", "state.json"], ["questions.parquet"]),
}
SOURCE = Source("owner/set", "test")


def files(source: Source, names: list[str], readme: str = "") -> list[str]:
    return row_files(source, names, readme, "owner/set")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rows_of_a_benchmark_are_found_among_its_files(name: str) -> None:
    names, wanted = LAYOUTS[name]
    assert files(benchmark(name).source, [*names, "README.md", ".gitattributes"]) == wanted


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"screenspotpro"}))
def test_every_benchmark_takes_the_usual_layout(name: str) -> None:
    source = benchmark(name).source
    usual = [
        f"{config}/{source.split}-{number:05d}-of-00002.parquet"
        for config in source.configs or ("data",)
        for number in (0, 1)
    ]
    others = [f"{path.partition('/')[0]}/other-00000-of-00001.parquet" for path in usual]
    assert files(source, [*reversed(usual), *others]) == usual


@pytest.mark.parametrize("path", ["data/val*", "'**/val*'", "[data/val-00000-of-00001.parquet, more/*.jsonl]"])
def test_the_readme_says_which_files_are_a_split(path: str) -> None:
    readme = (
        "---\nconfigs:\n- config_name: other\n  data_files:\n  - {split: test, path: none/*}\n- config_name: default\n"
        f"  data_files:\n  - split: test\n    path: {path}\n---\n# Title\n"
    )
    names = ["data/test-00000-of-00001.parquet", "data/val-00000-of-00001.parquet", "more/x.jsonl", "data/val.png"]
    assert files(SOURCE, names, readme) == ["data/val-00000-of-00001.parquet"]
    assert files(Source("owner/set", "test", ("other",)), [*names, "none/a.parquet"], readme) == ["none/a.parquet"]


@pytest.mark.parametrize("readme", ["", "# T", "---\n{\n---\n", "---\nconfigs: 7\n---\n", "---\nconfigs: [a]\n---\n"])
@pytest.mark.parametrize("entry", [None, "- data_files: test.parquet", "- data_files:\n  - {split: test, path: [7]}"])
def test_a_readme_that_says_nothing_of_use_is_passed_over(readme: str, entry: str | None) -> None:
    text = f"---\nconfigs:\n{entry}\n---\n" if entry else readme
    assert files(SOURCE, ["data/test-00000-of-00001.parquet"], text) == ["data/test-00000-of-00001.parquet"]


def test_a_readme_that_is_meant_to_hang_is_passed_over() -> None:
    aliases = "".join(f"- &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 30))
    laughs = f"---\nx:\n- &a0 [x]\n{aliases}configs:\n- config_name: *a29\n  data_files: *a29\n---\n"
    stars = f"---\nconfigs:\n- data_files:\n  - {{split: test, path: '{'**/*a*/' * 30}x'}}\n---\n"
    names = ["a/" * 60 + "b.parquet", "data/test.parquet"]
    for readme in (laughs, stars, "---\n" + "[" * 100_000 + "\n---\n"):
        start = time.process_time()
        assert files(SOURCE, names, readme) == ["data/test.parquet"]
        assert time.process_time() - start < 5.0


def test_parquet_comes_before_json_and_only_one_layout_is_read() -> None:
    names = ["test.jsonl", "test.json", "test.parquet", "test-00000-of-00001.parquet", "b/test-00000-of-00001.parquet"]
    assert files(SOURCE, [*names, "data/test.parquet"]) == ["data/test.parquet"]
    assert files(SOURCE, names) == ["test-00000-of-00001.parquet", "test.parquet"]
    assert files(SOURCE, names[:2] + names[4:]) == ["b/test-00000-of-00001.parquet"]
    assert files(SOURCE, names[:2]) == ["test.jsonl"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "no test-*.parquet and no test.jsonl"),
        (["data/train-00000-of-00001.parquet", "testmini.parquet"], "no test-*.parquet"),
        (["data/test-00000-of-00003.parquet", "data/test-00002-of-00003.parquet"], "2 of 3 files of data/test"),
        (["data/test-00000-of-00001.parquet", "data/test-00000-of-00002.parquet"], "of several versions"),
        (["data/test-00000-of-00001-ab.parquet", "data/test-00000-of-00001-cd.parquet"], "of several versions"),
    ],
)
def test_what_is_not_there_or_not_whole_is_said(names: list[str], sentence: str) -> None:
    with pytest.raises(MissingData) as error:
        files(SOURCE, names)
    assert sentence in str(error.value) and str(error.value).startswith("owner/set has ")


def test_one_missing_config_of_several_is_named() -> None:
    names = [f"{task}/val-00000-of-00001.parquet" for task in TASKS if task not in ("Jigsaw", "IQ_Test")]
    with pytest.raises(MissingData, match="no val files of IQ_Test, Jigsaw"):
        files(benchmark("blink").source, names)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.text(alphabet="./\\ab\0", max_size=12))
def test_no_name_of_a_picture_leads_out_of_the_folder(name: str) -> None:
    for place in picture_places(name):
        assert Path(os.path.normpath(Path("/set", place))).is_relative_to("/set")


def test_pictures_are_found_as_visual_probe_and_aerial_vg_name_them(tmp_path: Path) -> None:
    probe = tmp_path / "Mini-o3" / "VisualProbe_Easy"
    (probe / "data").mkdir(parents=True)
    (probe / "data" / "0.png").write_bytes(picture())
    row = {**ROWS["visual_probe_easy"][0], "images": ["VisualProbe_Easy/data/0.png"]}
    (probe / "val.json").write_text(json.dumps([row]))
    aerial = tmp_path / "IPEC-COMMUNITY" / "AerialVG"
    (aerial / "annotation").mkdir(parents=True)
    (aerial / "images").mkdir()
    (aerial / "images" / "a.png").write_bytes(picture())
    row = {name: value for name, value in ROWS["aerialvg_bbox"][0].items() if name != "image"}
    (aerial / "annotation" / "vg_test_odvg.jsonl").write_text(json.dumps(row))
    for name in ("visual_probe_easy", "aerialvg_bbox"):
        (question,) = questions(benchmark(name), tmp_path, VARIANTS["reasoning"])
        assert isinstance(question, Question) and question.images == (picture(),)


def test_a_folder_that_leads_into_itself_is_read_once(tmp_path: Path) -> None:
    folder = write(benchmark("chartqa"), tmp_path)
    (folder / "again").symlink_to(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "test-00000-of-00001.parquet").write_bytes(b"half")
    assert len(open_rows(benchmark("chartqa").source, tmp_path)) == 1


def test_every_task_of_the_table_has_a_source_that_can_be_laid_out(tmp_path: Path) -> None:
    for task in all_benchmarks().values():
        write(task, tmp_path)
        assert len(open_rows(task.source, tmp_path)) > 0
