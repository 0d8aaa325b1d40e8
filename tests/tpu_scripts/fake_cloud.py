"""A plugin of pytest with the fixture `cloud`: the scripts with a fake gcloud first on the PATH, and a folder that
stands for Google's cloud."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gcloud import end_job

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
SCRIPTS = REPO / "tpu_scripts"

# What the setup of a worker asks of its system. A mounted bucket is a link into the folder of buckets.
MACHINE = {
    "sudo": 'while [[ $1 == env || $1 == *=* ]]; do shift; done; exec "$@"',
    "uv": """
        echo "uv $*" >>"$FAKE_CLOUD/installed-$WORKER"
        if [[ $1 == venv ]]; then
            mkdir -p "${@: -1}/bin"
            printf '#!/bin/sh\\nexec %s -I -S %s "$@"\\n' "$FAKE_PYTHON" "$FAKE_TRAINER" >"${@: -1}/bin/python"
            chmod +x "${@: -1}/bin/python"
        fi""",
    "mountpoint": "[[ -L ${@: -1} ]]",
    "gcsfuse": """
        echo "gcsfuse $*" >>"$FAKE_CLOUD/installed-$WORKER"
        for word in "$@"; do case $word in --only-dir=*) folder=/${word#*=} ;; esac; done
        place="$FAKE_CLOUD/buckets/${@: -2:1}${folder:-}"
        mkdir -p "$place" && rmdir "${@: -1}" && ln -s "$place" "${@: -1}" """,
    "mount": """
        echo "mount $*" >>"$FAKE_CLOUD/installed-$WORKER"
        mkdir -p "$FAKE_CLOUD/nfs" && rmdir "${@: -1}" && ln -s "$FAKE_CLOUD/nfs" "${@: -1}" """,
    "mount.nfs": ":",
}

SETTINGS = {
    "PROJECT": "my-project",
    "ZONE": "us-east5-a",
    "NAME": "vero",
    "ACCELERATOR_TYPE": "v5p-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5",
    "SHARED_DISK": "gs://my-bucket/some/where",
    "TRAIN_ARGS": "configs/mini.yaml trainer.steps=3",
    "POLL_S": "0.05",
    "BACKOFF_S": "0",
}


class Cloud:
    """One test's cloud, and the settings that its scripts are called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cloud"
        self.desk = folder / "desk"
        self.settings = dict(SETTINGS)
        for place in (self.folder / "machine", self.desk, folder / "bin"):
            place.mkdir(parents=True)
        _program(folder / "bin" / "gcloud", f'exec {sys.executable} -I -S {HERE / "fake_gcloud.py"} "$@"')
        for name, text in MACHINE.items():
            text = text.replace("$FAKE_PYTHON", sys.executable)
            _program(self.folder / "machine" / name, text.replace("$FAKE_TRAINER", str(HERE / "fake_python.py")))
        self.environ = {
            "PATH": f"{folder / 'bin'}{os.pathsep}/usr/bin:/bin",
            "HOME": str(self.desk),
            "FAKE_CLOUD": str(self.folder),
        }
        self.scenario()
        self.trainings(0)

    def scenario(self, **what: Any) -> None:
        """See fake_gcloud.py; a slice of two workers with nothing wrong, unless said otherwise."""
        (self.folder / "scenario.json").write_text(json.dumps({"workers": 2, **what}))

    def trainings(self, *plan: Any) -> None:
        """How the first, second, ... start of the run ends; see fake_python.py."""
        (self.folder / "trainings.json").write_text(json.dumps(plan))

    def run(self, script: str, *words: str, timeout: float = 180, **environ: str) -> subprocess.CompletedProcess[str]:
        """A script with the settings in a file, from an empty folder."""
        return subprocess.run(
            self.command(script, *words),
            cwd=self.desk,
            env=self.environ | environ,
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def command(self, script: str, *words: str) -> list[str]:
        file = self.desk / "slice.env"
        file.write_text("".join(f"{key}={value}\n" for key, value in self.settings.items()))
        return [str(SCRIPTS / f"{script}.sh"), "--env", str(file), *words]

    def calls(self, *start: str) -> list[list[str]]:
        """What gcloud was called with, of calls that begin with these words (after "compute tpus")."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [json.loads(line)["argv"] for line in lines]
        found = [argv[2:] if argv[:2] == ["compute", "tpus"] else argv for argv in found]
        return [argv for argv in found if argv[: len(start)] == list(start)]

    def starts(self, worker: int = 0) -> list[dict[str, Any]]:
        """Of the run on a worker: its arguments, and what it found saved."""
        file = self.folder / f"starts-{worker}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def ready(self) -> None:
        """A slice that is created and set up."""
        for script in ("create", "setup"):
            done = self.run(script)
            assert done.returncode == 0, done.stderr

    def exists(self) -> bool:
        """Whether there is a slice, or a request for one, that costs money."""
        file = self.folder / "state.json"
        return file.exists() and "name" in json.loads(file.read_text())

    def power_off(self) -> None:
        for file in self.folder.glob("workers/*/vero/job/pid"):
            end_job(file)


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\nset -eu\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    made.power_off()


@pytest.fixture(scope="session")
def shellcheck() -> str:
    """The checker of shell scripts, which the `test` extra brings."""
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail("shellcheck is missing: pip install -e '.[test]'")
        pytest.skip("shellcheck is not installed (extra: test)")
    return found
