"""What goes to the workers: the source, the run, its end and its results. What they are sent really runs here."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

pytest_plugins = ["fake_cloud"]


def worker(cloud, number: int) -> Path:
    return cloud.folder / "workers" / str(number)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def ended(cloud, number: int = 0) -> bool:
    return (worker(cloud, number) / "vero/job/status").exists()


def test_setup_brings_the_source_and_installs_it_on_every_worker(cloud):
    cloud.scenario(workers=3)
    assert cloud.run("create").returncode == 0
    done = cloud.run("setup")
    assert done.returncode == 0, done.stderr
    assert "3 worker(s) of vero are set up; worker 0 says: ready: Python" in done.stderr
    for number in range(3):
        source = worker(cloud, number) / "vero/src"
        assert (source / "vero_jax/train.py").exists()
        assert not (source / ".git").exists() and not (source / "tests").exists()
        assert (source / "tpu_scripts/remote_job.sh").stat().st_mode & 0o100
        installed = (cloud.folder / f"installed-{number}").read_text().splitlines()
        assert installed[0].startswith("uv venv --quiet --python 3.12 ")
        assert re.search(r"--editable \S+/vero/src\[tpu,gcs\] --constraint \S+/vero/src/constraints.txt$", installed[1])
        assert installed[2].split()[1:5] == [
            "--implicit-dirs",
            "--metadata-cache-ttl-secs=0",
            "--metadata-cache-negative-ttl-secs=0",
            "--rename-dir-limit=100000",
        ]
        assert "--only-dir=some/where my-bucket " in installed[2]


def test_setting_up_again_brings_what_has_changed_and_mounts_nothing_twice(cloud):
    cloud.ready()
    stale = worker(cloud, 0) / "vero/src/vero_jax/of_yesterday.py"
    stale.touch()
    assert cloud.run("setup").returncode == 0
    assert not stale.exists()
    installed = (cloud.folder / "installed-0").read_text()
    assert installed.count("gcsfuse") == 1
    assert installed.count("uv venv") == 1


@pytest.mark.parametrize(
    ("disk", "folder"),
    [("gs://my-bucket", "buckets/my-bucket"), ("10.0.0.2:/share", "nfs"), ("", "workers/0/vero")],
)
def test_the_run_lies_on_the_shared_disk(cloud, disk, folder):
    cloud.settings["SHARED_DISK"] = disk
    cloud.settings["RUN"] = "first"
    cloud.scenario(workers=1)
    cloud.ready()
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud))
    assert (cloud.folder / folder / "runs/first/metrics.jsonl").exists()
    words = cloud.starts()[0]["argv"]
    assert words[:2] == ["configs/mini.yaml", "trainer.steps=3"]
    checkpoints = [word for word in words if word.startswith("trainer.checkpoint_dir=")]
    wanted = "trainer.checkpoint_dir=gs://my-bucket/checkpoints/first"
    assert checkpoints == ([wanted] if disk.startswith("gs://") else [])


def test_checkpoints_go_where_they_are_told_to(cloud):
    cloud.ready()
    cloud.settings["CHECKPOINT_DIR"] = "gs://other/place"
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud, 0) and ended(cloud, 1))
    assert "trainer.checkpoint_dir=gs://other/place" in cloud.starts()[0]["argv"]
    assert cloud.run("start", "--", "trainer.checkpoint_dir=gs://third").returncode == 0
    until(lambda: len(cloud.starts()) == 2)
    words = cloud.starts()[1]["argv"]
    assert [word for word in words if word.startswith("trainer.")] == ["trainer.checkpoint_dir=gs://third"]


def test_a_folder_that_a_worker_lacks_is_named(cloud):
    cloud.settings["SHARED_DISK"] = "/nowhere/at/all"
    assert cloud.run("create").returncode == 0
    done = cloud.run("setup")
    assert done.returncode == 1
    assert (
        "worker 1 of 2 could not be set up (status 2): error: SHARED_DISK=/nowhere/at/all is no folder" in done.stderr
    )


@pytest.mark.parametrize("script", ["setup", "start"])
def test_a_worker_that_does_not_answer_is_named(cloud, script):
    cloud.scenario(workers=4)
    cloud.ready()
    cloud.trainings("hang")
    cloud.scenario(workers=4, down=[[2]])
    done = cloud.run(script)
    assert done.returncode == 1
    named = [line for line in done.stderr.splitlines() if line.startswith("error: worker")]
    assert len(named) == 1
    assert named[0].startswith("error: worker 2 of 4 could not ")
    assert named[0].endswith("[/usr/bin/ssh] exited with return code [255].")
    if script == "start":
        # The others would wait for it: nothing is left running.
        cloud.scenario(workers=4)
        lines = cloud.run("status").stdout.splitlines()
        assert lines[1:] == [
            "worker 0: stopped 137",
            "worker 1: stopped 137",
            "worker 2: absent",
            "worker 3: stopped 137",
        ]


def test_several_workers_without_a_shared_disk_are_refused(cloud):
    cloud.ready()
    cloud.settings["SHARED_DISK"] = ""
    done = cloud.run("start")
    assert done.returncode == 2
    assert "a run on 2 workers needs one folder that all of them see; set SHARED_DISK" in done.stderr
    assert cloud.starts() == []


def test_the_folder_of_the_run_is_not_set_twice(cloud):
    done = cloud.run("start", "--", "configs/mini.yaml", "run_dir=runs/x")
    assert done.returncode == 2
    assert "leave out run_dir=runs/x" in done.stderr


def test_secrets_go_as_a_private_file_and_reach_the_run(cloud):
    (cloud.desk / "secrets").write_text("# mine\nTEST_TOKEN=a b$(touch evil)\nTEST_EMPTY=\nno setting\n")
    cloud.settings["JOB_ENV_FILE"] = "secrets"
    cloud.ready()
    file = worker(cloud, 1) / "vero/job.env"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not (worker(cloud, 1) / "vero_job.env").exists()
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud, 1))
    assert cloud.starts(1)[0]["environ"] == {"TEST_TOKEN": "a b$(touch evil)", "TEST_EMPTY": ""}
    assert "a b$(touch" not in (cloud.folder / "calls.jsonl").read_text()
    assert not list(cloud.folder.rglob("evil"))


def test_starting_twice_is_starting_once(cloud):
    cloud.ready()
    cloud.trainings("hang")
    assert cloud.run("start").returncode == 0
    assert cloud.run("start").returncode == 0
    until(lambda: len(cloud.starts(1)) == 1)
    assert len(cloud.starts()) == 1
    done = cloud.run("start", "--", "configs/other.yaml")
    assert done.returncode == 1
    assert "worker 0 of 2 could not start the run (status 2): error: another run is going on here" in done.stderr


def test_stop_sends_one_signal_and_waits_until_the_run_has_saved(cloud):
    cloud.ready()
    cloud.trainings("hang")
    assert cloud.run("start").returncode == 0
    until(lambda: all("waiting" in (worker(cloud, n) / "vero/job/log").read_text() for n in (0, 1)))
    # The second one gives up waiting at once, and must not send a second signal, which would end the run unsaved.
    cloud.settings["STOP_S"] = "0"
    first = cloud.run("stop")
    assert first.returncode in (0, 1)
    cloud.settings["STOP_S"] = "30"
    done = cloud.run("stop")
    assert done.returncode == 0, done.stderr
    assert "nothing runs on vero any more; the slice is still there, and costs money" in done.stderr
    assert [(cloud.folder / f"signals-{n}").read_text() for n in (0, 1)] == ["1", "1"]
    assert cloud.run("status").stdout.splitlines()[1:] == ["worker 0: stopped 143", "worker 1: stopped 143"]


def test_what_does_not_stop_is_named_and_can_be_killed(cloud):
    (cloud.desk / "environment").write_text("TEST_SAVING_S=60\n")
    cloud.settings |= {"JOB_ENV_FILE": "environment", "STOP_S": "0"}
    cloud.ready()
    cloud.trainings([0, "hang"])
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud, 0) and "waiting" in (worker(cloud, 1) / "vero/job/log").read_text())
    done = cloud.run("stop")
    assert done.returncode == 1
    assert "after 0 s the run still goes on at worker(s) 1, and none do not answer; --now kills it" in done.stderr
    assert cloud.run("stop", "--now").returncode == 0
    pid = cloud.starts(1)[0]["pid"]
    until(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())


def test_a_run_whose_machine_was_restarted_is_lost(cloud):
    cloud.ready()
    cloud.trainings("hang")
    assert cloud.run("start").returncode == 0
    # As after a restart: the number is that of another process, which began at another time.
    file = worker(cloud, 0) / "vero/job/pid"
    real = file.read_text()
    file.write_text(f"{real.split()[0]} 1\n")
    assert cloud.run("status").stdout.splitlines()[1:] == ["worker 0: lost", "worker 1: running"]
    file.write_text(real)


def test_logs_are_those_of_the_worker_that_is_asked_for(cloud):
    cloud.ready()
    cloud.trainings([1, 75])
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud, 0) and ended(cloud, 1))
    assert "the end of worker 0 with 1" in cloud.run("logs", "--no-follow").stdout
    done = cloud.run("logs", "--worker", "1", "--lines=1", "--no-follow")
    assert re.fullmatch(r"=== .*: ended with status 75\n", done.stdout)
    done = cloud.run("logs", "--worker", "x")
    assert (done.returncode, done.stderr) == (2, "error: --worker must be a whole number, not 'x'\n")


def test_logs_follow_the_run(cloud):
    cloud.ready()
    assert "tail -n" in (worker(cloud, 0) / "vero/src/tpu_scripts/remote_job.sh").read_text()
    assert cloud.run("logs", "--dry-run").stdout.count("remote_job.sh logs 50 follow") == 1
    assert cloud.run("logs", "--dry-run", "--no-follow").stdout.count("remote_job.sh logs 50'") == 1


def test_results_come_from_the_bucket_also_when_the_slice_is_gone(cloud):
    cloud.ready()
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud, 0) and ended(cloud, 1))
    assert cloud.run("fetch", "--logs").returncode == 0
    assert (cloud.desk / "runs/vero/logs/worker-1.txt").exists()
    assert cloud.run("delete", "--yes").returncode == 0
    done = cloud.run("fetch", "--to", "here", "--checkpoints")
    assert done.returncode == 0, done.stderr
    assert (cloud.desk / "here/metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (cloud.desk / "here/checkpoints/saved-0").read_text() == "1"
    assert cloud.run("fetch", "--to", "there").returncode == 0
    assert sorted(path.name for path in (cloud.desk / "there").iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("checkpoints", [False, True])
def test_results_come_from_worker_0_where_there_is_no_bucket(cloud, checkpoints):
    cloud.settings["SHARED_DISK"] = "10.0.0.2:/share"
    cloud.ready()
    assert cloud.run("start").returncode == 0
    until(lambda: ended(cloud, 0) and ended(cloud, 1))
    done = cloud.run("fetch", *(["--checkpoints"] if checkpoints else []))
    assert done.returncode == 0, done.stderr
    assert (cloud.desk / "runs/vero/metrics.jsonl").exists()
    assert (cloud.desk / "runs/vero/checkpoints/saved-0").exists() == checkpoints


def test_a_run_that_is_not_there_cannot_be_fetched(cloud):
    done = cloud.run("fetch", "--run", "other")
    assert done.returncode != 0
    assert "Did not find existing container at: gs://my-bucket/some/where/runs/other" in done.stderr
