"""Asking for a slice, waiting for it, saying how it is, and deleting it."""

from __future__ import annotations

import pytest

pytest_plugins = ["fake_cloud"]


def test_a_queued_request_is_waited_for_until_the_slice_is_ready(cloud):
    cloud.settings |= {"SPOT": "1", "LABELS": "team=vision", "VALID_UNTIL": "6h", "SERVICE_ACCOUNT": "a@b.iam"}
    cloud.scenario(workers=4, queue=["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"])
    done = cloud.run("create")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("vero: ")]
    assert said == [f"vero: {word}" for word in ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "READY")]
    assert "with 4 worker(s). It costs money until delete.sh" in done.stderr
    [asked] = cloud.calls("queued-resources", "create")
    assert asked[2] == "vero"
    assert set(asked[3:]) == {
        "--node-id=vero",
        "--runtime-version=v2-alpha-tpuv5",
        "--accelerator-type=v5p-16",
        "--spot",
        "--labels=team=vision",
        "--valid-until-duration=6h",
        "--service-account=a@b.iam",
        "--async",
        "--project=my-project",
        "--zone=us-east5-a",
        "--quiet",
    }


def test_a_tpu_vm_is_made_without_a_queue(cloud):
    cloud.settings |= {"QUEUED": "0", "RESERVED": "1", "NETWORK": "n", "SUBNETWORK": "s", "INTERNAL_IPS": "1"}
    assert cloud.run("create").returncode == 0
    [asked] = cloud.calls("tpu-vm", "create")
    wanted = {"--version=v2-alpha-tpuv5", "--reserved", "--network=n", "--subnetwork=s", "--internal-ips"}
    assert wanted <= set(asked)
    assert cloud.calls("queued-resources") == []
    assert cloud.run("delete", "--yes").returncode == 0
    assert not cloud.exists()


def test_no_wait_returns_when_the_request_stands(cloud):
    cloud.scenario(queue=["WAITING_FOR_RESOURCES"] * 100)
    assert cloud.run("create", "--no-wait").returncode == 0
    assert cloud.calls("queued-resources", "describe") == []
    assert cloud.exists()


@pytest.mark.parametrize("reason", ["quota", "capacity"])
def test_no_room_at_present_is_status_75(cloud, reason):
    cloud.scenario(create=[reason])
    done = cloud.run("create")
    assert done.returncode == 75
    assert done.stderr.startswith("no room for vero (v5p-16 in us-east5-a) at present: ")
    assert {"quota": "Limit 16", "capacity": "no more capacity"}[reason] in done.stderr
    assert not cloud.exists()


def test_a_refusal_for_ever_is_status_2(cloud):
    cloud.scenario(create=["denied"])
    done = cloud.run("create")
    assert done.returncode == 2
    assert "gcloud did not take the request for vero: ERROR" in done.stderr
    assert "PERMISSION_DENIED" in done.stderr


@pytest.mark.parametrize(("reason", "status"), [("Quota exceeded for v5p", 75), ("", 75), ("no such version", 2)])
def test_a_request_that_fails_in_the_queue_says_why(cloud, reason, status):
    cloud.scenario(create=["failed"], reason=reason)
    done = cloud.run("create")
    assert done.returncode == status
    assert reason in done.stderr
    assert cloud.run("delete", "--yes").returncode == 0


def test_what_is_there_already_is_waited_for(cloud):
    assert cloud.run("create", "--no-wait").returncode == 0
    done = cloud.run("create")
    assert done.returncode == 0
    assert "vero is there already" in done.stderr
    assert "vero is ready" in done.stderr


def test_waiting_has_an_end_when_one_is_set(cloud):
    cloud.settings["WAIT_S"] = "1"
    cloud.scenario(queue=["WAITING_FOR_RESOURCES"] * 1000)
    done = cloud.run("create")
    assert done.returncode == 75
    assert "vero is not ready after 1 s (WAITING_FOR_RESOURCES); the request stands" in done.stderr


def test_a_look_that_fails_once_is_repeated(cloud):
    cloud.scenario(describe=["down"])
    done = cloud.run("create")
    assert done.returncode == 0
    assert "auth tokens" in done.stderr


def test_a_state_that_nobody_tells_ends_the_waiting(cloud):
    cloud.settings["MAX_ATTEMPTS"] = "3"
    cloud.scenario(describe=["down"] * 100)
    done = cloud.run("create")
    assert done.returncode == 2
    assert "gcloud does not tell the state of vero" in done.stderr
    assert len(cloud.calls("tpu-vm", "describe")) == 3


@pytest.mark.parametrize("script", ["setup", "start", "stop"])
def test_without_a_slice_the_others_say_so(cloud, script):
    done = cloud.run(script)
    assert done.returncode == 3
    assert done.stderr == "error: there is no slice vero in us-east5-a; create.sh makes one\n"


def test_status_tells_slice_and_workers(cloud):
    cloud.scenario(workers=3, queue=["WAITING_FOR_RESOURCES"] * 2)
    done = cloud.run("status")
    assert (done.returncode, done.stdout) == (3, "slice vero in us-east5-a: ABSENT (not there)\n")
    assert cloud.run("create", "--no-wait").returncode == 0
    done = cloud.run("status")
    assert (done.returncode, done.stdout) == (3, "slice vero in us-east5-a: WAITING (WAITING_FOR_RESOURCES)\n")
    cloud.ready()
    cloud.trainings([0, "hang", 1])
    assert cloud.run("start").returncode == 0
    for _ in range(50):
        done = cloud.run("status")
        if "worker 2: exited 1" in done.stdout and "worker 0: exited 0" in done.stdout:
            break
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "slice vero in us-east5-a: READY (READY)",
        "worker 0: exited 0",
        "worker 1: running",
        "worker 2: exited 1",
    ]


def test_delete_asks_unless_told_not_to(cloud):
    assert cloud.run("create").returncode == 0
    done = cloud.run("delete")
    assert done.returncode == 2
    assert "give it --yes" in done.stderr
    assert cloud.exists()
    assert cloud.run("delete", "--yes").returncode == 0
    assert not cloud.exists()
    [asked] = cloud.calls("queued-resources", "delete")
    assert "--force" in asked
    done = cloud.run("delete", "--yes")
    assert (done.returncode, done.stderr) == (0, "there is no vero in us-east5-a\n")


def test_a_deletion_that_fails_says_that_it_goes_on_costing(cloud):
    cloud.scenario(delete=["fails"])
    assert cloud.run("create").returncode == 0
    done = cloud.run("delete", "--yes")
    assert done.returncode == 2
    assert "vero could not be deleted, and goes on costing money" in done.stderr
