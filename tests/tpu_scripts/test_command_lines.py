"""What all scripts have in common: help, dry runs, settings, and the sentence for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_gcloud import FLAGS, WIDE

pytest_plugins = ["fake_cloud"]

SCRIPTS = Path(__file__).resolve().parents[2] / "tpu_scripts"
EVERY = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.name != "lib.sh")
SLICE = ["create", "setup", "start", "status", "logs", "fetch", "stop", "delete", "run_until_done"]
GKE = ["--image", "a.dev/b/c:1", "--accelerator", "tpu-v5p-slice", "--topology", "2x2x2"]
XPK = ["--cluster", "c", "--image", "a.dev/b/c:1", "--shared-path", "/shared"]
EXTRA = {"gke": GKE, "xpk": XPK}


def bare(script: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / f"{script}.sh"), *words],
        env={"PATH": "/usr/bin:/bin", **environ},
        text=True,
        capture_output=True,
        timeout=30,
    )


def test_there_is_a_script_for_every_step():
    assert {*SLICE, "gke", "xpk", "gpu_node", "slurm", "remote_setup", "remote_job"} == set(EVERY)


@pytest.mark.parametrize("script", EVERY)
def test_help_says_what_the_script_does_and_what_its_options_are(script):
    done = bare(script, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"{script}.sh: ")
    assert f"{script}.sh" in done.stdout.split("\n\n")[1]  # how it is called
    own = re.findall(r"^FLAGS=\((.*?)\)|^VALUES=\((.*?)\)", (SCRIPTS / f"{script}.sh").read_text(), re.MULTILINE)
    for option in " ".join(" ".join(pair) for pair in own).split():
        assert option in done.stdout
    assert "--dry-run" in done.stdout
    assert "xit status" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("script", ["create", "gke"])
def test_a_reader_that_leaves_the_help_early_is_no_mistake(script):
    done = subprocess.run(
        ["bash", "-c", f"'{SCRIPTS / script}.sh' --help | head -n 1"], text=True, capture_output=True, timeout=30
    )
    assert done.stdout.startswith(f"{script}.sh: ") and done.stderr == ""


@pytest.mark.parametrize(
    ("script", "tool"), [*((script, "gcloud") for script in SLICE), ("gke", "kubectl"), ("xpk", "xpk")]
)
def test_a_tool_that_is_not_there_is_said_at_once(cloud, tmp_path, script, tool):
    """A PATH with what any system has, and without the tool."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "env", "dirname", "basename", "sed", "grep", "mktemp", "rm", "cat", "tail", "tr", "date"):
        (few / name).symlink_to(shutil.which(name))
    words = ["--yes"] if script == "delete" else EXTRA.get(script, [])
    done = cloud.run(script, *words, PATH=str(few), timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: there is no {tool} on the PATH here")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("script", EVERY)
def test_scripts_can_be_executed_and_stop_at_errors(script):
    file = SCRIPTS / f"{script}.sh"
    assert file.stat().st_mode & 0o777 == 0o755
    text = file.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text or "lib.sh" in text


def test_shellcheck_finds_nothing(shellcheck):
    files = sorted(str(path) for path in SCRIPTS.rglob("*.sh"))
    done = subprocess.run([shellcheck, *files], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", EVERY)
def test_an_unknown_option_is_refused_by_name(script):
    words = ["--colour"]
    if script == "remote_job":
        words = ["colour"]
    done = bare(script, *words, "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words[0] in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("script", SLICE)
def test_a_dry_run_prints_commands_that_a_shell_can_read_and_runs_none(cloud, script):
    done = cloud.run(script, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    assert {path.name for path in cloud.desk.iterdir()} == {"slice.env"}
    commands = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert commands
    for command in commands:
        assert command[0] in ("gcloud", "mkdir", "tar")
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


def test_what_a_dry_run_prints_is_what_the_run_does(cloud):
    dry = cloud.run("create", "--dry-run")
    assert cloud.run("create").returncode == 0
    printed = [shlex.split(line)[1:] for line in dry.stdout.splitlines()]
    assert [argv[2:] for argv in printed] == cloud.calls()


def test_words_with_blanks_and_dollars_arrive_as_they_are(cloud):
    nasty = "name=a b'c $(touch evil) `touch evil`; touch evil"
    cloud.ready()
    cloud.trainings("hang")
    assert cloud.run("start", "--", "configs/mini.yaml", nasty).returncode == 0
    assert cloud.run("stop").returncode == 0
    assert cloud.starts()[0]["argv"][:2] == ["configs/mini.yaml", nasty]
    assert not list(cloud.folder.rglob("evil")) and not list(cloud.desk.rglob("evil"))
    dry = cloud.run("start", "--dry-run", "--", "configs/mini.yaml", nasty)
    line = next(line for line in dry.stdout.splitlines() if "--command=" in line)
    command = next(word for word in shlex.split(line) if word.startswith("--command="))
    assert nasty in shlex.split(command.removeprefix("--command="))


@pytest.mark.parametrize(
    ("script", "needed"),
    [
        ("create", "PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION"),
        ("setup", "PROJECT ZONE NAME"),
        ("start", "PROJECT ZONE NAME"),
        ("status", "PROJECT ZONE NAME"),
        ("logs", "PROJECT ZONE NAME"),
        ("stop", "PROJECT ZONE NAME"),
        ("delete", "PROJECT ZONE NAME"),
        ("fetch", "NAME"),
        ("run_until_done", "PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION SHARED_DISK"),
        ("gke", "NAME SHARED_DISK"),
        ("xpk", "PROJECT ZONE NAME ACCELERATOR_TYPE"),
    ],
)
def test_missing_settings_are_named_in_one_sentence(cloud, script, needed):
    cloud.settings = {}
    done = cloud.run(script, *EXTRA.get(script, []))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {needed} must be set, in ")
    assert done.stderr.count("\n") == 1
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAME", "vero; touch evil"),
        ("NAME", "-vero"),
        ("NAME", "$(touch evil)"),
        ("ZONE", "us-east5-a --async"),
        ("PROJECT", "a b"),
        ("RUN", "../other"),
        ("RUN", "{name}"),
        ("SHARED_DISK", "gs://bucket/a b"),
        ("SHARED_DISK", "runs"),
        ("CHECKPOINT_DIR", "gs://bucket/$(touch evil)"),
        ("ACCELERATOR_TYPE", "v5p-16,v5p-8"),
        ("PYTHON_VERSION", "3"),
        ("POLL_S", "soon"),
        ("POLL_S", ""),
        ("MAX_ATTEMPTS", ""),
        ("MAX_ATTEMPTS", "0"),
        ("QUEUED", "yes"),
    ],
)
def test_a_setting_of_another_shape_is_refused_with_its_value(cloud, key, value):
    cloud.settings[key] = value
    done = cloud.run("create")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {key} must be ")
    assert value in done.stderr
    assert cloud.calls() == []


def test_a_file_of_settings_is_read_and_not_run(cloud):
    (cloud.desk / "other.env").write_text("# mine\n\nNAME=\"vero\"\r\nLABELS=$(touch evil)\n  ZONE='us-east5-a'\n")
    done = cloud.run("create", "--env", "other.env", "--dry-run")
    assert done.returncode == 2  # the last --env wins, and it has no PROJECT
    assert "PROJECT ACCELERATOR_TYPE RUNTIME_VERSION must be set, in other.env" in done.stderr
    done = cloud.run(
        "create", "--env", "other.env", "--dry-run", "--project=p", "--accelerator-type=a", "--runtime-version=r"
    )
    assert shlex.split(done.stdout.splitlines()[0])[-5:-3] == ["--labels=$(touch evil)", "--async"]
    assert not (cloud.desk / "evil").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("PROJCT=x", "line 1: PROJCT is no setting; there are PROJECT ZONE NAME"),
        ("rm -rf /", "line 1, is not KEY=VALUE: rm -rf /"),
    ],
)
def test_a_line_that_is_no_setting_is_named(cloud, line, sentence):
    (cloud.desk / "other.env").write_text(line + "\n")
    done = cloud.run("create", "--env", "other.env")
    assert done.returncode == 2
    assert sentence in done.stderr


def test_an_option_wins_over_the_file(cloud):
    done = cloud.run("create", "--dry-run", "--name", "other", "--spot=1", "--zone=us-central1-a")
    first = shlex.split(done.stdout.splitlines()[0])
    assert {"other", "--node-id=other", "--spot", "--zone=us-central1-a"} <= set(first)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--name"], "--name needs a value"),
        (["--no-wait=1"], "--no-wait takes no value"),
        (["vero"], "create.sh takes no argument vero"),
        (["--worker", "1"], "create.sh has no option --worker"),
        (["--spot", "1", "--reserved", "1"], "SPOT and RESERVED exclude each other"),
        (["--queued", "0", "--valid-until", "6h"], "VALID_UNTIL is for a queued request"),
    ],
)
def test_mistakes_in_options_have_a_sentence(cloud, words, sentence):
    done = cloud.run("create", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert cloud.calls() == []


def test_the_example_of_settings_works_and_names_every_setting():
    example = SCRIPTS / "slice.env.example"
    done = bare("run_until_done", "--env", str(example), "--dry-run")
    assert done.returncode == 0, done.stderr
    listed = re.search(r"^SETTINGS=\((.*?)\)", (SCRIPTS / "lib.sh").read_text(), re.DOTALL | re.MULTILINE)
    assert listed is not None
    assert re.findall(r"^([A-Z_]+)=", example.read_text(), re.MULTILINE) == listed[1].split()
    assert (SCRIPTS.parent / "configs" / "qwen3_vl_8b.yaml").exists()


def test_the_example_has_the_defaults_of_the_scripts():
    defaults = {}
    for line in (SCRIPTS / "lib.sh").read_text().splitlines():
        if re.match(r"^[A-Z_]+=\S* *[A-Z_]+=|^QUEUED=", line):
            defaults |= dict(re.findall(r"([A-Z_]+)=('[^']*'|\S*)", line))
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (SCRIPTS / "slice.env.example").read_text(), re.MULTILINE))
    chosen = {"PROJECT", "ZONE", "NAME", "ACCELERATOR_TYPE", "RUNTIME_VERSION", "SPOT", "SHARED_DISK", "TRAIN_ARGS"}
    assert {k: v for k, v in example.items() if k not in chosen} == {
        k: v.strip("'") for k, v in defaults.items() if k not in chosen
    }


@pytest.mark.parametrize("script", ["start", "run_until_done", "gke", "xpk"])
def test_nothing_to_train_is_a_mistake(cloud, script):
    cloud.settings["TRAIN_ARGS"] = ""
    done = cloud.run(script, *EXTRA.get(script, []))
    assert done.returncode == 2
    assert "what is to be trained?" in done.stderr
    assert cloud.calls() == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="the Google Cloud SDK is not installed")
@pytest.mark.parametrize("command", sorted(FLAGS), ids=" ".join)
def test_the_flags_are_those_of_the_sdk(command, tmp_path):
    """No call to the network: help is part of the SDK."""
    done = subprocess.run(
        ["gcloud", *command, "--help"],
        text=True,
        capture_output=True,
        env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "PAGER": "cat"},
        timeout=120,
    )
    text = re.sub(r"\x1b\[?\d*m|.\x08", "", done.stdout)
    known = set(re.findall(r"--[a-z][a-z-]*", text))
    assert known >= FLAGS[command] | WIDE


def test_the_fake_refuses_what_gcloud_would_refuse(cloud):
    """Otherwise the other tests would prove nothing."""
    where = ["--project=p", "--zone=z", "--quiet"]
    gcloud = Path(cloud.environ["PATH"].split(os.pathsep)[0]) / "gcloud"
    for words in (
        ["compute", "tpus", "tpu-vm", "describe", "vero", "--colour", *where],
        ["compute", "tpus", "tpu-vm", "reboot", "vero", *where],
        ["compute", "tpus", "tpu-vm", "describe", "vero", "--zone=z", "--quiet"],
    ):
        done = subprocess.run([str(gcloud), *words], env=cloud.environ, text=True, capture_output=True)
        assert done.returncode == 2, words
    assert [json.loads(line) for line in (cloud.folder / "calls.jsonl").read_text().splitlines()]


# --- what runs on a worker


def test_a_dry_run_of_the_setup_of_a_bare_worker_prints_all_that_it_would_install(tmp_path):
    """With nothing but the system's own programs: no uv, no gcsfuse."""
    for name in ("bash", "sed", "dirname", "id", "env", "mountpoint"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    words = ["--dry-run", "--python", "3.13", "--share", "gs://bucket/some/where/"]
    done = subprocess.run(
        [str(SCRIPTS / "remote_setup.sh"), *words],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [command[0] for command in printed[:4]] == ["python3", "uv", "uv", "mkdir"]
    assert printed[1][2:5] == ["--quiet", "--python", "3.13"]
    mount = next(command for command in printed if command[0] == "gcsfuse")
    assert mount[-3:-1] == ["--only-dir=some/where", "bucket"]
    installs = [command[-1] for command in printed if "install" in command and "apt-get" in command]
    assert installs == ["gcsfuse"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["bash", "sed", "dirname", "id", "env", "mountpoint"]
    )


def test_a_dry_run_of_the_job_starts_nothing(tmp_path):
    (tmp_path / "src/tpu_scripts").mkdir(parents=True)
    script = tmp_path / "src/tpu_scripts/remote_job.sh"
    shutil.copy(SCRIPTS / "remote_job.sh", script)
    done = subprocess.run([str(script), "--dry-run", "start", "--", "a b"], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout)[-4:] == [f"{tmp_path}/venv/bin/python", "-m", "vero_jax.train", "a b"]
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


# --- the page about them


def test_the_page_begins_with_ten_lines_and_names_what_there_is():
    page = (SCRIPTS.parent / "docs/tpu.md").read_text()
    first = page.split("```bash\n")[1].split("```")[0].splitlines()
    assert len(first) == 10
    assert [line.split()[0] for line in first[6:]] == [
        f"tpu_scripts/{name}.sh" for name in ("create", "setup", "start", "logs")
    ]
    for name in re.findall(r"(?:tpu_scripts/)?([a-z_]+\.sh)\b", page):
        assert (SCRIPTS / name).exists(), name
    settings = set(re.findall(r"^([A-Z_]+)=", (SCRIPTS / "slice.env.example").read_text(), re.MULTILINE))
    others = {"VENV", "MAX_REQUEUES", "XLA_FLAGS", "NAME", "RUN", "RESOURCE_EXHAUSTED"}  # of Slurm, XLA and Google
    for name in re.findall(r"`([A-Z][A-Z_]{3,})(?:=[^`]*)?`", page):
        assert name in settings | others, name
    assert "None of this has been run on a real TPU" in page
