"""Data sets from a hub on the loopback interface: what is downloaded, what is not again, what is said when it fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.conftest import golden_dir
from tests.data.hub_server import HubServer
from tests.evaluation.data_sets import ROWS, picture, write
from vero_jax.data import disk
from vero_jax.evaluate import Plan, evaluate
from vero_jax.evaluation import download as download_module
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.download import download
from vero_jax.evaluation.loaders import Question, questions
from vero_jax.evaluation.registry import all_benchmarks, benchmark
from vero_jax.evaluation.rows import MissingData
from vero_jax.evaluation.variants import VARIANTS


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub without data sets; `add` puts those of a benchmark there."""
    (tmp_path / "hub" / "none").mkdir(parents=True)
    with HubServer(tmp_path / "hub" / "none") as server:
        use(server.url, tmp_path, monkeypatch)
        yield server
    close_session()


def use(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE set when the client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
    close_session()


def add(hub: HubServer, tmp_path: Path, *names: str, **changes: Any) -> list[Benchmark]:
    tasks = [benchmark(name) for name in names]
    for task in tasks:
        hub.folders[task.source.repo] = write(task, tmp_path / "hub", **changes)
    return tasks


def asked(task: Benchmark, root: Path) -> list[Question]:
    found = list(questions(task, root, VARIANTS["reasoning"]))
    assert found and all(isinstance(item, Question) for item in found)
    return found


def there(root: Path) -> list[str]:
    """Files under a folder, without the hidden ones."""
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_questions_of_what_is_downloaded_are_those_of_the_source(name: str, hub: HubServer, tmp_path: Path) -> None:
    (task,) = add(hub, tmp_path, name)
    said: list[str] = []
    assert download([task], tmp_path / "root", said.append) == {}
    assert asked(task, tmp_path / "root") == asked(task, tmp_path / "hub")
    assert said[0].startswith(f"to download to {tmp_path / 'root'}: ") and " MB" in said[0]
    assert said[1].startswith(f"downloading {name} ({task.source.repo}): ")


def test_only_what_is_needed_is_downloaded(hub: HubServer, tmp_path: Path) -> None:
    tasks = add(hub, tmp_path, "mmmu_pro_vision", "screenspotpro")
    vision, places = hub.folders[tasks[0].source.repo], hub.folders[tasks[1].source.repo]
    for folder, name in ((vision, "standard (4 options)/test-00000-of-00001.parquet"), (vision, "vision/dev.parquet")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    (vision / "README.md").write_text("# MMMU-Pro")
    (places / "images" / "a" / "c.png").write_bytes(picture())
    (places / "annotate.html").write_text("<p>")
    assert download(tasks, tmp_path / "root", lambda line: None) == {}
    assert there(tmp_path / "root") == [
        "MMMU/MMMU_Pro/README.md",
        "MMMU/MMMU_Pro/vision/test-00000-of-00001.parquet",
        "likaixin/ScreenSpot-Pro/annotations/app.json",
        "likaixin/ScreenSpot-Pro/images/a/b.png",
    ]


def test_tasks_of_one_data_set_share_its_folder(hub: HubServer, tmp_path: Path) -> None:
    tasks = add(hub, tmp_path, "mmmu_pro_vision", "mmmu_pro_standard")
    assert download(tasks, tmp_path / "root", lambda line: None) == {}
    hub.requests.clear()
    assert download(tasks[::-1], tmp_path / "root", lambda line: None) == {}
    assert hub.downloads() == []
    for task in tasks:
        assert asked(task, tmp_path / "root") == asked(task, tmp_path / "hub")


def test_a_second_start_downloads_nothing_and_needs_no_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = add(hub, tmp_path, "chartqa", "screenspotpro")
    assert download(tasks, tmp_path / "root", lambda line: None) == {}
    hub.requests.clear()
    said: list[str] = []
    assert download(tasks, tmp_path / "root", said.append) == {}
    assert hub.downloads() == [] and said == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert download(tasks, tmp_path / "root", said.append) == {}
    assert hub.requests == [] and "HF_HUB_OFFLINE is set" in said[0] and "going on with what is in" in said[0]
    (tmp_path / "root" / "likaixin" / "ScreenSpot-Pro" / "images" / "a" / "b.png").unlink()
    ((name, reason),) = download(tasks, tmp_path / "root", said.append).items()
    assert name == "screenspotpro" and "1 are missing or of another size" in reason


def test_a_connection_that_breaks_goes_on_where_it_ended(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": {"bytes": os.urandom(4_000), "path": None}, "question": "How many?", "number": 14}]
    (task,) = add(hub, tmp_path, "countbenchqa", rows=rows)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # it goes on at a multiple of this
    name = "data/test-00000-of-00001.parquet"
    hub.cut[name] = 2_000
    assert download([task], tmp_path / "root", lambda line: None) == {}
    parts = [line for line in hub.requests if line.startswith("GET") and name in line]
    assert len(parts) == 2 and parts[1].endswith(" bytes=2000-")
    source, copy = hub.folders[task.source.repo] / name, tmp_path / "root" / task.source.repo / name
    assert copy.read_bytes() == source.read_bytes()


def test_a_start_after_an_interruption_downloads_the_rest(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = add(hub, tmp_path, "blink")
    whole, calls = download_module.fetch, []

    def until_the_third(*arguments: Any, **options: Any) -> Path:
        calls.append(arguments)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(download_module, "THREADS", 1)
    monkeypatch.setattr(download_module, "fetch", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        download(tasks, tmp_path / "root", lambda line: None)
    monkeypatch.setattr(download_module, "fetch", whole)
    done = there(tmp_path / "root")
    assert len(done) == 3
    with pytest.raises(MissingData, match="has not ended; start it again"):
        asked(tasks[0], tmp_path / "root")
    hub.requests.clear()
    assert download(tasks, tmp_path / "root", lambda line: None) == {}
    assert len(hub.downloads()) == 11 and not {f"BLINK-Benchmark/BLINK/{name}" for name in hub.downloads()} & set(done)
    assert asked(tasks[0], tmp_path / "root") == asked(tasks[0], tmp_path / "hub")


def test_rows_whose_pictures_are_not_all_here_are_not_run(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = add(hub, tmp_path, "screenspotpro")
    whole = download_module.fetch

    def no_pictures(repository: str, path: str, *arguments: Any, **options: Any) -> Path:
        if path.endswith(".png"):
            raise OSError("the connection is gone")
        return whole(repository, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(download_module, "fetch", no_pictures)
        assert list(download([task], tmp_path / "root", lambda line: None)) == ["screenspotpro"]
    assert there(tmp_path / "root") == ["likaixin/ScreenSpot-Pro/annotations/app.json"]
    with pytest.raises(MissingData, match="has not ended"):
        asked(task, tmp_path / "root")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in download([task], tmp_path / "root", lambda line: None)["screenspotpro"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert download([task], tmp_path / "root", lambda line: None) == {}
    assert asked(task, tmp_path / "root") == asked(task, tmp_path / "hub")


def test_a_task_does_not_wait_for_another_one_of_its_data_set(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = add(hub, tmp_path, "mmmu_pro_vision", "mmmu_pro_standard")
    whole = download_module.fetch

    def only_vision(repository: str, path: str, *arguments: Any, **options: Any) -> Path:
        if path.startswith("standard"):
            raise OSError("the connection is gone")
        return whole(repository, path, *arguments, **options)

    monkeypatch.setattr(download_module, "fetch", only_vision)
    assert list(download(tasks, tmp_path / "root", lambda line: None)) == ["mmmu_pro_standard"]
    assert asked(tasks[0], tmp_path / "root") == asked(tasks[0], tmp_path / "hub")
    with pytest.raises(MissingData, match="has not ended"):
        asked(tasks[1], tmp_path / "root")


def test_what_changed_on_the_hub_and_what_was_damaged_here_is_downloaded_again(hub: HubServer, tmp_path: Path) -> None:
    (task,) = add(hub, tmp_path, "screenspotpro")
    assert download([task], tmp_path / "root", lambda line: None) == {}
    other = picture(color=(30, 30, 200))
    assert len(other) == len(picture()), "told by its checksum alone"
    (hub.folders[task.source.repo] / "images" / "a" / "b.png").write_bytes(other)
    here = tmp_path / "root" / task.source.repo
    (here / "annotations" / "app.json").write_text("[")
    hub.requests.clear()
    assert download([task], tmp_path / "root", lambda line: None) == {}
    assert sorted(hub.downloads()) == ["annotations/app.json", "images/a/b.png"]
    assert (here / "images" / "a" / "b.png").read_bytes() == other
    assert len(asked(task, tmp_path / "root")) == 1


@pytest.mark.parametrize(
    "refused",
    [None, (401, ""), (403, ""), (401, "RepoNotFound"), (401, "GatedRepo"), (403, "GatedRepo"), (404, "RepoNotFound")],
)
def test_a_data_set_that_is_not_to_be_had_does_not_stop_the_others(
    refused: tuple[int, str] | None, hub: HubServer, tmp_path: Path
) -> None:
    tasks = add(hub, tmp_path, "aerialvg_bbox", "chartqa")
    if refused is None:
        del hub.folders["IPEC-COMMUNITY/AerialVG"]
    else:
        hub.refused["IPEC-COMMUNITY/AerialVG"] = refused
    said: list[str] = []
    reasons = download(tasks, tmp_path / "root", said.append)
    assert list(reasons) == ["aerialvg_bbox"] and f"aerialvg_bbox: {reasons['aerialvg_bbox']}" in said
    reason = reasons["aerialvg_bbox"]
    assert "IPEC-COMMUNITY/AerialVG" in reason and "hf auth login" in reason and "\n" not in reason
    assert ("asked for it there" in reason) == (refused is not None and refused[1] == "GatedRepo")
    assert len(asked(tasks[1], tmp_path / "root")) == 1


def test_a_token_of_the_environment_is_sent(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = add(hub, tmp_path, "chartqa")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    assert download(tasks, tmp_path / "root", lambda line: None) == {}
    assert hub.tokens == {"Bearer hf_of_the_test"}


def test_without_a_hub_every_benchmark_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:9", tmp_path, monkeypatch)
    reasons = download([benchmark("chartqa"), benchmark("blink")], tmp_path / "root", lambda line: None)
    assert set(reasons) == {"chartqa", "blink"}
    assert all("the hub cannot be reached" in reason and "\n" not in reason for reason in reasons.values())


def test_a_data_set_without_the_split_or_a_config_says_so(hub: HubServer, tmp_path: Path) -> None:
    tasks = add(hub, tmp_path, "chartqa", "blink")
    (hub.folders["lmms-lab/ChartQA"] / "data" / "test-00000-of-00001.parquet").rename(
        hub.folders["lmms-lab/ChartQA"] / "data" / "train-00000-of-00001.parquet"
    )
    shutil.rmtree(hub.folders["BLINK-Benchmark/BLINK"] / "IQ_Test")
    reasons = download(tasks, tmp_path / "root", lambda line: None)
    assert reasons["chartqa"].startswith("the data set lmms-lab/ChartQA has no test-*.parquet")
    assert reasons["blink"] == "the data set BLINK-Benchmark/BLINK has no val files of IQ_Test"
    assert hub.downloads() == [], "what could not be used is not downloaded"


def test_pictures_that_are_no_files_of_the_data_set_are_asked_for(hub: HubServer, tmp_path: Path) -> None:
    (task,) = add(hub, tmp_path, "screenspotpro")
    shutil.rmtree(hub.folders[task.source.repo] / "images")
    (hub.folders[task.source.repo] / "images.zip").write_bytes(b"PK")
    reasons = download([task], tmp_path / "root", lambda line: None)
    assert "put them into" in reasons["screenspotpro"]
    write(task, tmp_path / "mine")
    shutil.copytree(tmp_path / "mine" / task.source.repo / "images", tmp_path / "root" / task.source.repo / "images")
    assert download([task], tmp_path / "root", lambda line: None) == {}
    assert len(asked(task, tmp_path / "root")) == 1


def test_a_full_disk_is_a_sentence(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = add(hub, tmp_path, "chartqa", "countqa")
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=10))
        reasons = download(tasks, tmp_path / "root", lambda line: None)
    assert all("needs about" in reason and "free some space" in reason for reason in reasons.values())
    assert set(reasons) == {"chartqa", "countqa"} and hub.downloads() == []

    def full(*arguments: Any, **options: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    reasons = download(tasks[:1], tmp_path / "root", lambda line: None)
    assert "the disk is full" in reasons["chartqa"] and "\n" not in reasons["chartqa"]


@pytest.mark.parametrize(
    "error", [RuntimeError("Data processing error:\nReqwest"), OSError("no length"), ValueError("x")]
)
def test_whatever_the_client_raises_is_a_reason_of_one_benchmark(
    error: Exception, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = add(hub, tmp_path, "chartqa", "countqa")
    whole = download_module.fetch

    def refuses_one(repository: str, *arguments: Any, **options: Any) -> Path:
        if repository == "lmms-lab/ChartQA":
            raise error
        return whole(repository, *arguments, **options)

    monkeypatch.setattr(download_module, "fetch", refuses_one)
    reasons = download(tasks, tmp_path / "root", lambda line: None)
    assert list(reasons) == ["chartqa"] and "\n" not in reasons["chartqa"]
    assert reasons["chartqa"].startswith(f"cannot get the data set lmms-lab/ChartQA: {type(error).__name__} (")
    assert len(asked(tasks[1], tmp_path / "root")) == 2


def test_a_page_instead_of_a_listing_is_a_reason(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = add(hub, tmp_path, "chartqa")
    monkeypatch.setattr(HubServer, "listing", lambda self, repository: "<html>Please log in</html>")
    (reason,) = download(tasks, tmp_path / "root", lambda line: None).values()
    assert reason.startswith("cannot get the data set lmms-lab/ChartQA: ") and "\n" not in reason


def test_data_that_a_user_keeps_elsewhere_under_the_root_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    (task,) = add(hub, tmp_path, "chartqa")
    (tmp_path / "root").mkdir()
    shutil.copytree(hub.folders[task.source.repo], tmp_path / "root" / "ChartQA")
    said: list[str] = []
    assert download([task], tmp_path / "root", said.append) == {}
    assert hub.requests == [] and "left as it is" in said[0]


def test_progress_of_many_files_is_said(hub: HubServer, tmp_path: Path) -> None:
    rows = [{**ROWS["screenspotpro"][0], "img_filename": f"a/{number}.png"} for number in range(60)]
    (task,) = add(hub, tmp_path, "screenspotpro", rows=rows)
    for row in rows:
        (hub.folders[task.source.repo] / "images" / row["img_filename"]).write_bytes(picture())
    said: list[str] = []
    assert download([task], tmp_path / "root", said.append) == {}
    assert "pictures of screenspotpro: 30 of 60 files" in said
    assert len(asked(task, tmp_path / "root")) == 60


def test_the_environment_says_where_the_hub_is(tmp_path: Path) -> None:
    task = benchmark("chartqa")
    source = write(task, tmp_path / "hub")
    code = (
        "import json, pathlib, sys; from vero_jax.evaluation.registry import benchmark; "
        "from vero_jax.evaluation.download import download; "
        "print(json.dumps(download([benchmark('chartqa')], pathlib.Path(sys.argv[1]), lambda line: None)))"
    )
    with HubServer(source, task.source.repo) as server:
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        arguments = [sys.executable, "-c", code, str(tmp_path / "root")]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {} and done.stderr == ""
    assert len(asked(task, tmp_path / "root")) == 1


def test_all_benchmarks_are_downloaded_together(hub: HubServer, tmp_path: Path) -> None:
    tasks = add(hub, tmp_path, *all_benchmarks())
    assert download(tasks, tmp_path / "root", lambda line: None) == {}
    assert all(asked(task, tmp_path / "root") for task in tasks)


@pytest.mark.golden_model
def test_an_evaluation_runs_on_what_it_downloads_and_says_what_it_could_not(hub: HubServer, tmp_path: Path) -> None:
    add(hub, tmp_path, "chartqa", "screenspotpro", "aerialvg_bbox")
    hub.refused["IPEC-COMMUNITY/AerialVG"] = (403, "GatedRepo")
    shutil.rmtree(hub.folders["likaixin/ScreenSpot-Pro"] / "annotations")
    said: list[str] = []
    plan = Plan(
        str(golden_dir("model") / "q3vl_tied_gqa2"),
        tasks=("chartqa,screenspotpro,aerialvg_bbox",),
        data=str(tmp_path / "root"),
        output=str(tmp_path / "out"),
        max_new_tokens=4,
        context=512,
        lanes=2,
        download=True,
    )
    results = evaluate(plan, say=said.append)
    assert any(line.startswith("downloading chartqa (lmms-lab/ChartQA): 1 files") for line in said)
    tasks = results["tasks"]
    assert tasks["chartqa"]["answers"] == 1 and tasks["chartqa"]["score"] is not None
    assert tasks["aerialvg_bbox"]["score"] is None and "asked for it there" in tasks["aerialvg_bbox"]["reason"]
    assert tasks["screenspotpro"]["score"] is None and "has no .json files" in tasks["screenspotpro"]["reason"]
    assert results["overall"]["covered"] == 1
