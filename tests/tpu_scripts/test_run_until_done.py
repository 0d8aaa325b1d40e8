"""Whole scenarios: from nothing to a finished run, with everything that comes in between."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
from fake_gcloud import end_job

pytest_plugins = ["fake_cloud"]


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_run_without_trouble_is_fetched_and_its_slice_deleted(cloud):
    cloud.scenario(queue=["WAITING_FOR_RESOURCES"])
    done = cloud.run("run_until_done", "--", "configs/other.yaml", "a.b=c d")
    assert done.returncode == 0, done.stderr
    assert "the run is done: all 2 workers ended with status 0" in done.stderr
    assert not cloud.exists()
    assert [len(cloud.starts(worker)) for worker in (0, 1)] == [1, 1]
    assert cloud.starts(1)[0]["argv"][:2] == ["configs/other.yaml", "a.b=c d"]
    assert (cloud.desk / "runs/vero/metrics.jsonl").exists()
    assert "the end of worker 1" in (cloud.desk / "runs/vero/logs/worker-1.txt").read_text()


def test_after_a_preemption_a_new_slice_goes_on_from_the_last_checkpoint(cloud):
    cloud.scenario(preempt=[2, 2])
    cloud.trainings("hang", "hang", 0)
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the slice vero is lost (SUSPENDED): it is deleted and created anew") == 2
    assert len(cloud.calls("queued-resources", "create")) == 3
    assert len(cloud.calls("queued-resources", "delete")) == 3
    for worker in (0, 1):
        starts = cloud.starts(worker)
        assert [start["saved"] for start in starts] == [0, 1, 2]
        assert starts[0]["argv"] == starts[1]["argv"] == starts[2]["argv"]
    assert not cloud.exists()


def test_a_preempted_tpu_vm_is_replaced_too(cloud):
    cloud.settings["QUEUED"] = "0"
    cloud.scenario(workers=1, preempt=[1])
    cloud.trainings("hang", 0)
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
    assert "the slice vero is lost (PREEMPTED): it is deleted and created anew" in done.stderr
    assert len(cloud.calls("tpu-vm", "create")) == 2
    assert len(cloud.calls("tpu-vm", "delete")) == 2


@pytest.mark.parametrize("statuses", [(75, 75), (143, 143), (143, 75), (0, 75)])
def test_a_lost_peer_or_sigterm_starts_the_same_command_on_the_same_slice(cloud, statuses):
    cloud.trainings(list(statuses), 0)
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources", "create")) == 1
    assert [start["saved"] for start in cloud.starts(0)] == [0, 1]
    assert f"ended with status {max(statuses[0], 75) if statuses[0] else 75}" in done.stderr


@pytest.mark.parametrize("status", [1, 2, 130])
def test_a_mistake_is_shown_and_not_restarted(cloud, status):
    cloud.trainings([75, status])
    done = cloud.run("run_until_done")
    assert done.returncode == 1
    assert f"worker 1 ended with status {status}: this would happen again, so it is not restarted" in done.stderr
    assert f"error: the end of worker 1 with {status}" in done.stderr
    assert [len(cloud.starts(worker)) for worker in (0, 1)] == [1, 1]
    assert (cloud.desk / "runs/vero/logs/worker-1.txt").exists()
    assert not cloud.exists()


def test_what_was_killed_is_restarted_a_few_times_only(cloud):
    cloud.trainings(["kill", 75])
    done = cloud.run("run_until_done")
    assert done.returncode == 1
    assert "worker 0 was ended by signal 9 (status 137); crash 2 of at most 2" in done.stderr
    assert "worker 0 was ended by signal 9 (status 137), for the 3. time: not restarted" in done.stderr
    assert len(cloud.starts()) == 3
    assert not cloud.exists()


def test_without_quota_it_asks_again_and_waits_longer_each_time(cloud):
    cloud.settings["BACKOFF_S"] = "1"
    cloud.settings["BACKOFF_MAX_S"] = "2"
    cloud.scenario(workers=1, create=["quota", "capacity", "quota"])
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
    pauses = [line.split()[-2] for line in done.stderr.splitlines() if " attempt " in line]
    assert pauses == ["1", "2", "2"]
    assert len(cloud.calls("queued-resources", "create")) == 4


def test_it_gives_up_after_so_many_failures_in_a_row(cloud):
    cloud.settings["MAX_ATTEMPTS"] = "3"
    cloud.scenario(workers=1, create=["quota"] * 10)
    done = cloud.run("run_until_done")
    assert done.returncode == 75
    assert "given up after 3 failures in a row" in done.stderr
    assert len(cloud.calls("queued-resources", "create")) == 3


def test_giving_up_leaves_no_slice_behind(cloud):
    cloud.scenario(workers=1)
    cloud.settings["MAX_ATTEMPTS"] = "2"
    cloud.trainings(75)
    done = cloud.run("run_until_done")
    assert done.returncode == 75
    assert len(cloud.starts()) == 2
    assert not cloud.exists()


def test_a_run_that_lasted_is_no_failure_in_a_row(cloud):
    cloud.scenario(workers=1)
    cloud.settings |= {"MAX_ATTEMPTS": "2", "GOOD_RUN_S": "0"}
    cloud.trainings(75, 75, 75, 0)
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
    assert len(cloud.starts()) == 4


def test_a_refusal_for_ever_ends_it_at_once(cloud):
    cloud.scenario(workers=1, create=["denied"])
    done = cloud.run("run_until_done")
    assert done.returncode == 2
    assert "PERMISSION_DENIED" in done.stderr
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_a_slice_that_cannot_be_got_rid_of_is_no_endless_loop(cloud):
    cloud.settings["MAX_ATTEMPTS"] = "3"
    cloud.scenario(workers=1, preempt=[1], delete=["ignored"] * 20)
    cloud.trainings("hang")
    done = cloud.run("run_until_done")
    assert done.returncode == 75
    assert "vero was deleted, and is still there (SUSPENDED)" in done.stderr
    assert len(cloud.calls("queued-resources", "delete")) <= 4


def test_a_request_that_failed_is_deleted_and_made_anew(cloud):
    cloud.scenario(workers=1, create=["failed", "ok"], reason="Insufficient capacity")
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("queued-resources", "create")) == 2


def test_a_worker_that_is_down_from_the_start_is_named_until_it_gives_up(cloud):
    cloud.settings["MAX_ATTEMPTS"] = "2"
    cloud.scenario(workers=3, down=[[1]])
    done = cloud.run("run_until_done")
    assert done.returncode == 75
    assert done.stderr.count("error: worker 1 of 3 could not be set up") == 2
    assert not cloud.exists()


def test_a_worker_that_stays_silent_after_the_end_of_the_others(cloud):
    cloud.scenario(workers=3)
    cloud.trainings(["hang", "hang", "hang"], 0)
    process = subprocess.Popen(
        cloud.command("run_until_done"), cwd=cloud.desk, env=cloud.environ, text=True, stderr=subprocess.PIPE
    )
    try:
        until(lambda: all(len(cloud.starts(worker)) == 1 for worker in range(3)))
        cloud.scenario(workers=3, down=[[2]])
        for worker in (0, 1):
            job = cloud.folder / f"workers/{worker}/vero/job"
            until(lambda job=job: (job / "train.pid").exists())
            end_job(job / "pid")
            (job / "status").write_text("75\n")
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "worker 2 of 3 does not answer: vero is deleted and created anew" in said
    assert len(cloud.calls("queued-resources", "create")) == 2
    assert [start["saved"] for start in cloud.starts(2)] == [0, 1]


def test_a_run_that_ends_on_some_workers_only_is_ended_on_all(cloud):
    cloud.trainings([1, "hang"])
    done = cloud.run("run_until_done")
    assert done.returncode == 1
    assert "the run has ended on 1 worker(s) and not on the others; it is ended there" in done.stderr
    assert "worker 0 ended with status 1: this would happen again" in done.stderr


def test_stop_is_not_a_reason_to_start_again(cloud):
    cloud.trainings("hang")
    process = subprocess.Popen(
        cloud.command("run_until_done"), cwd=cloud.desk, env=cloud.environ, text=True, stderr=subprocess.PIPE
    )
    try:
        until(lambda: len(cloud.starts(0)) == len(cloud.starts(1)) == 1)
        assert cloud.run("stop").returncode == 0
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "stop.sh was called, so the run is not started again; the slice vero is still there" in said
    assert cloud.exists()
    assert len(cloud.starts()) == 1


def test_a_run_goes_on_without_the_script_which_finds_it_again(cloud):
    cloud.trainings("hang", 0)
    process = subprocess.Popen(
        cloud.command("run_until_done"),
        cwd=cloud.desk,
        env=cloud.environ,
        text=True,
        stderr=subprocess.PIPE,
        # Tests that were started in the background ignore it, and no shell can trap what it was born to ignore.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: len(cloud.starts(0)) == len(cloud.starts(1)) == 1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "this script ends; the slice vero, the run on it and what they cost go on" in said
    cloud.settings["STOP_S"] = "0"
    again = subprocess.Popen(
        cloud.command("run_until_done"), cwd=cloud.desk, env=cloud.environ, text=True, stderr=subprocess.PIPE
    )
    try:
        until(lambda: len(cloud.calls("tpu-vm", "describe")) > 12)
        cloud.run("stop")
        _, said = again.communicate(timeout=180)
    finally:
        again.kill()
    assert "a run is going on already on vero" in said
    assert "setting up" not in said
    assert len(cloud.starts()) == 1


def test_keep_leaves_the_slice_and_says_so(cloud):
    cloud.scenario(workers=1)
    done = cloud.run("run_until_done", "--keep", "--no-fetch")
    assert done.returncode == 0, done.stderr
    assert "the slice vero is still there, and costs money until delete.sh has removed it" in done.stderr
    assert cloud.exists()
    assert not (cloud.desk / "runs").exists()


def test_a_deletion_that_fails_at_the_end_is_loud(cloud):
    cloud.scenario(workers=1, delete=["fails"])
    done = cloud.run("run_until_done")
    assert done.returncode == 1
    assert "the slice vero COULD NOT BE DELETED and goes on costing money" in done.stderr
    assert cloud.exists()


def test_it_wants_a_disk_that_outlives_the_slice(cloud):
    cloud.settings["SHARED_DISK"] = ""
    done = cloud.run("run_until_done")
    assert done.returncode == 2
    assert done.stderr.startswith("error: SHARED_DISK must be set, in ")
    assert cloud.calls() == []


def test_a_cloud_that_does_not_answer_for_a_while_is_asked_again(cloud):
    cloud.scenario(workers=1, describe=["ok", "ok", "down", "ok", "down", "down"])
    cloud.trainings(75, 0)
    done = cloud.run("run_until_done")
    assert done.returncode == 0, done.stderr
