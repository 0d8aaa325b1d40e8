"""Data sets by hub id, against a server on the loopback interface: what is downloaded, checked, kept and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import close_session
from made_rows import hub_row, write_hub

from vero_jax.config import DataConfig
from vero_jax.data import disk, prepare
from vero_jax.data.hub import is_hub_id
from vero_jax.errors import UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A data set of two configs, whose README has them in another order than their names."""
    folder = write_hub(tmp_path / "hub", [hub_row(number) for number in range(3)], source="a-stem")
    write_hub(folder, [hub_row(9)], split="val", source="a-stem")
    write_hub(folder, [hub_row(5)], source="b-stem")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: b-stem\n- config_name: a-stem\n---\n")
    with HubServer(folder) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
        close_session()
        yield server
    close_session()


def command(tmp_path: Path, *arguments: str) -> int:
    return prepare.main(["--source", "owner/set", "--out", str(tmp_path / "out"), *arguments])


def kept(tmp_path: Path) -> list[str]:
    """Data files in the client's cache, and half files."""
    blobs = tmp_path / "client" / "datasets--owner--set"
    names = [path.relative_to(blobs / "snapshots" / COMMIT).as_posix() for path in blobs.rglob("*.parquet")]
    return sorted(names + [path.name for path in blobs.rglob("*.incomplete")])


def test_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("zlab-princeton/Vero-600k")
    assert not is_hub_id("vero_mini") and not is_hub_id("/a/b") and not is_hub_id("a/b/c") and not is_hub_id("./a")
    (tmp_path / "owner" / "set").mkdir(parents=True)
    assert not is_hub_id("owner/set")


def test_configs_come_in_the_order_of_the_readme_one_download_after_the_other(hub, tmp_path, capsys):
    assert command(tmp_path) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("preparing", "downloading"))]
    assert [line.split(":")[0] for line in said] == [
        "preparing b-stem", "downloading b-stem", "preparing a-stem", "downloading a-stem",
    ]  # fmt: skip
    data = prepare.prepare(str(tmp_path / "out"), DataConfig())
    assert data.index("train", ["id"])["id"] == ["row5", "row0", "row1", "row2"]
    local = prepare.prepare(str(tmp_path / "hub"), DataConfig(cache_dir=str(tmp_path / "cache")))
    assert local.fingerprint == data.fingerprint, "the same rows, from the hub or from a folder"


def test_what_is_prepared_is_not_downloaded_again_and_a_changed_file_is(hub, tmp_path, capsys):
    assert command(tmp_path, "--discard-downloads") == 0
    assert kept(tmp_path) == []
    hub.requests.clear()
    assert command(tmp_path) == 0
    assert hub.downloads() == []
    write_hub(hub.folder, [hub_row(6)], source="b-stem")
    assert command(tmp_path) == 2
    assert "b-stem was prepared from other files" in capsys.readouterr().err
    assert command(tmp_path, "--overwrite") == 0
    assert hub.downloads() == ["b-stem/train-00000-of-00001.parquet"]


def test_downloads_are_kept_unless_they_are_to_be_discarded(hub, tmp_path):
    assert command(tmp_path, "--configs", "b-stem") == 0
    assert kept(tmp_path) == ["b-stem/train-00000-of-00001.parquet"]
    assert command(tmp_path, "--discard-downloads") == 0
    assert kept(tmp_path) == ["b-stem/train-00000-of-00001.parquet"], "what was there before stays"
    assert not list((tmp_path / "client").rglob("blobs/*.incomplete"))


def test_a_connection_that_breaks_goes_on_where_it_ended(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # it goes on at a multiple of this
    name = "a-stem/train-00000-of-00001.parquet"
    hub.cut[name] = 2000
    assert command(tmp_path, "--verify") == 0
    size = (hub.folder / name).stat().st_size
    parts = [line for line in hub.requests if line.startswith("GET") and name in line]
    assert len(parts) == 2 and parts[1].endswith(" bytes=2000-") and size > 2000


@pytest.mark.parametrize("kind", ["longer", "other"])
def test_a_file_that_is_not_what_the_hub_lists_is_removed_and_named(hub, tmp_path, capsys, kind):
    name = "b-stem/train-00000-of-00001.parquet"
    data = (hub.folder / name).read_bytes()
    hub.changed[name] = data + b"more" if kind == "longer" else data[:-9] + b"x" + data[-8:]
    assert command(tmp_path) == 2
    error = capsys.readouterr().err
    assert name in error and "damaged" in error and "start again" in error and error.count("\n") == 1
    assert kept(tmp_path) == []
    hub.changed.clear()
    assert command(tmp_path) == 0


def test_too_small_a_disk_for_the_download_is_said_before_it(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=1000))
    assert command(tmp_path) == 2
    assert "b-stem needs about" in capsys.readouterr().err
    assert hub.downloads() == ["README.md"]


def test_without_the_hub_what_is_known_from_before_serves(hub, tmp_path, monkeypatch, capsys):
    assert command(tmp_path) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert command(tmp_path) == 0
    assert "going on with what is known from an earlier time" in capsys.readouterr().out
    assert hub.requests == []


def test_without_the_hub_a_snapshot_that_was_downloaded_before_serves(hub, tmp_path, monkeypatch):
    snapshot_download("owner/set", repo_type="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    data = prepare.prepare("owner/set", DataConfig(cache_dir=str(tmp_path / "elsewhere")))
    assert data.index("train", ["id"])["id"] == ["row5", "row0", "row1", "row2"]


def test_a_training_run_prepares_a_hub_id_in_its_cache(hub, tmp_path):
    settings = DataConfig(source="owner/set", cache_dir=str(tmp_path / "cache"))
    first = prepare.prepare(settings.source, settings)
    hub.requests.clear()
    assert prepare.prepare(settings.source, settings).fingerprint == first.fingerprint
    assert hub.downloads() == []


@pytest.mark.parametrize("kind", ["unknown", "gated", "offline", "unreachable", "no data", "no id"])
def test_a_hub_that_does_not_give_it_is_one_sentence(hub, tmp_path, monkeypatch, kind):
    source = {"unknown": "owner/other", "no id": "owner/.bad..name"}.get(kind, "owner/set")
    if kind == "gated":
        hub.gated = True
    if kind == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if kind == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    wanted = {
        "unknown": "no data set of that name",
        "gated": "asked for it there",
        "offline": "HF_HUB_OFFLINE is set",
        "unreachable": "cannot be reached",
        "no data": r"holds no some-\*.parquet",
        "no id": "no valid id",
    }[kind]
    split = "some" if kind == "no data" else "train"
    with pytest.raises(UserError, match=wanted) as caught:
        prepare.prepare(source, DataConfig(cache_dir=str(tmp_path / "cache"), train_split=split, val_split=split))
    assert source in str(caught.value) and "\n" not in str(caught.value)
    assert kind == "no data" or "there is no folder of that name either" in str(caught.value)


@pytest.mark.real_data
def test_the_command_finds_the_hub_through_the_environment(tmp_path, shared):
    with HubServer(shared / "data" / "real_mini" / "hub", "zlab-princeton/Vero-600k") as server:
        environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        arguments = ["--source", "zlab-princeton/Vero-600k", "--out", str(tmp_path / "out"), "--discard-downloads"]
        subprocess.run(
            [sys.executable, "-m", "vero_jax.data.prepare", *arguments],
            env=environment,
            check=True,
            capture_output=True,
        )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(count for *_, count in report["rows"]["kept"]) == 228
    assert not list((tmp_path / "hub").rglob("*.parquet"))
    assert len(report["configs"]) == 19
