"""Folders and hub ids: what is in the local cache is found without a network, and what is not is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from vero_jax.checkpoints.hub import resolve_checkpoint
from vero_jax.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, out of reach of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(str(tmp_path)) == tmp_path


def test_a_repository_in_the_cache_is_found(cache: Path) -> None:
    repository = cache / "models--Some--Policy-4B"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    assert resolve_checkpoint("Some/Policy-4B") == snapshot


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Some/Absent", "Some/Absent is neither a folder nor to be had: it is not in the local cache"),
        ("no/such/folder", "no/such/folder does not exist"),
        ("/nowhere", "/nowhere does not exist"),
        ("Some/-bad..name-", "no valid id"),
    ],
)
def test_what_is_not_there_is_one_sentence(cache: Path, name: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        resolve_checkpoint(name)
    assert text in str(error.value) and "\n" not in str(error.value)
