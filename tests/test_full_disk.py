"""What a run writes beside checkpoints and records: a disk that refuses it is one sentence, too."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vero_jax import setup
from vero_jax.config import Config
from vero_jax.errors import UserError
from vero_jax.runtime.run_dir import RunDir


@dataclasses.dataclass(frozen=True)
class Definition:
    lora: Any = None


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_building_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "build_policy", full)
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'policy'}: the disk is full"):
        setup.policy_folder(Config(), RunDir(tmp_path), lambda _: None)


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_exporting_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: str):
    monkeypatch.setattr(setup, "export_hf", full)
    monkeypatch.setattr(setup, "save_adapter", full)
    config = Config()
    lora = dataclasses.replace(config.model.lora, export=export)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=lora))
    system: Any = SimpleNamespace(
        model_def=Definition(None if export == "merged" else 1),
        config=config,
        folder=tmp_path,
        processor=SimpleNamespace(system_prompt=""),
    )
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'hf'}: the disk is full"):
        setup.System.export(system, {}, tmp_path / "hf")
