"""A gcloud that talks to no cloud: it keeps a slice in a folder, runs what is sent by ssh in a folder per worker,
writes down every call, and fails as scenario.json says.

$FAKE_CLOUD/
  scenario.json   {"workers": 2,           of every slice
                   "create": ["quota"],    what the first, second, ... request meets: quota, denied, failed, or ok
                   "queue": ["WAITING_FOR_RESOURCES"],   states of a queued request before it is active
                   "preempt": [3],         after so many looks at the first, second, ... slice on which the run goes on
                   "down": [[1]],          workers of the first, second, ... slice that ssh does not reach
                   "describe": ["down"],   what looks at a node meet first
                   "delete": ["fails"]}    what deletions meet first: fails, or ignored
  calls.jsonl     {"argv": [...]}
  state.json      what there is
  workers/N/      the home of worker N
  buckets/B/      Cloud Storage

It knows the flags of SDK 528 that the scripts may use, and refuses all others as gcloud would.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

CLOUD = Path(os.environ.get("FAKE_CLOUD", "."))

WIDE = {"--project", "--quiet", "--format"}
PLACE = {"--zone", "--async"}
NEW = {"--accelerator-type", "--spot", "--reserved", "--internal-ips", "--network", "--subnetwork", "--service-account"}
NEW |= {"--labels"}
FLAGS = {
    ("compute", "tpus", "queued-resources", "create"): PLACE
    | NEW
    | {"--node-id", "--runtime-version", "--valid-until-duration"},
    ("compute", "tpus", "queued-resources", "describe"): {"--zone"},
    ("compute", "tpus", "queued-resources", "delete"): PLACE | {"--force"},
    ("compute", "tpus", "tpu-vm", "create"): PLACE | NEW | {"--version"},
    ("compute", "tpus", "tpu-vm", "describe"): {"--zone"},
    ("compute", "tpus", "tpu-vm", "delete"): PLACE,
    ("compute", "tpus", "tpu-vm", "ssh"): {"--zone", "--worker", "--command", "--ssh-flag", "--internal-ip"},
    ("compute", "tpus", "tpu-vm", "scp"): {"--zone", "--worker", "--scp-flag", "--internal-ip"},
    ("storage", "rsync"): {"--recursive", "--exclude"},
}
"""Of each command that the scripts use, beside those of every command (`WIDE`)."""


def main(argv: list[str]) -> int:
    with locked(), (CLOUD / "calls.jsonl").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps({"argv": argv}) + "\n")
    command = next((known for known in FLAGS if tuple(argv[: len(known)]) == known), None)
    if command is None:
        error("gcloud", f"Invalid choice: {argv[:4]!r}", 2)
    where = "gcloud." + ".".join(command)
    flags: dict[str, str] = {}
    words = []
    for word in argv[len(command) :]:
        name, _, value = word.partition("=")
        if not word.startswith("--"):
            words.append(word)
        elif name not in FLAGS[command] | WIDE:
            error(where, f"unrecognized arguments: {word}", 2)
        else:
            flags[name] = value
    if command[0] == "compute":
        for needed in ("--project", "--zone", "--quiet"):
            if needed not in flags:
                error(where, f"argument {needed} was not given", 2)
    globals()["_".join(command[-2:]).replace("-", "_")](where, words, flags)
    return 0


# --- what there is


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with (CLOUD / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def state() -> Iterator[dict[str, Any]]:
    """state.json, to be read and changed by one at a time."""
    with locked():
        file = CLOUD / "state.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        try:
            yield found
        finally:  # a refusal leaves by SystemExit
            file.write_text(json.dumps(found))


def scenario() -> dict[str, Any]:
    return json.loads((CLOUD / "scenario.json").read_text())


def turn(known: dict[str, Any], what: str, otherwise: Any) -> Any:
    """The next of what a list of the scenario holds."""
    count = known.setdefault("turns", {}).get(what, 0)
    known["turns"][what] = count + 1
    listed = scenario().get(what, [])
    return listed[count] if count < len(listed) else otherwise


def error(where: str, message: str, status: int = 1) -> NoReturn:
    print(f"ERROR: ({where}) {message}", file=sys.stderr)
    sys.exit(status)


def not_found(where: str, name: str) -> NoReturn:
    error(where, f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{name}' was not found")


def starts() -> int:
    """How often the run was started, over all workers."""
    return sum(len(file.read_text().splitlines()) for file in CLOUD.glob("starts-*.jsonl"))


def end_processes() -> None:
    """Power off: whatever was started on the workers is killed."""
    for file in CLOUD.glob("workers/*/vero/job/pid"):
        end_job(file)
    shutil.rmtree(CLOUD / "workers", ignore_errors=True)


def end_job(file: Path) -> None:
    """Kills the session of a job by the file that holds its number, if that is still the one that was started.

    A number alone may be another process's by now; and to kill the group 1 is to kill everything.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(file.read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if pid > 1 and os.getpgid(pid) == pid and str(file.parents[1]).encode() in command + _home(pid):
            os.killpg(pid, signal.SIGKILL)


def _home(pid: int) -> bytes:
    """HOME in the environment of a process: which worker it belongs to."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((word[5:] + b"/vero" for word in words if word.startswith(b"HOME=")), b"")


# --- queued resources and nodes


def request(where: str, name: str, kind: str) -> None:
    with state() as known:
        if known.get("name") == name:
            error(where, f"ALREADY_EXISTS: Resource '{name}' already exists")
        outcome = turn(known, "create", "ok")
        if outcome == "quota":
            error(
                where, "RESOURCE_EXHAUSTED: Quota 'TPUV5sPreemptiblePodPerProjectPerZone' exhausted. Limit 16 in zone z"
            )
        if outcome == "capacity":
            message = 'There is no more capacity in the zone "z"; you can try in another zone'
            error(where, json.dumps({"code": 8, "message": message}))
        if outcome == "denied":
            error(where, "PERMISSION_DENIED: The caller does not have permission")
        queue = list(scenario().get("queue", [])) if kind == "queued" else []
        if outcome == "failed":
            queue.append("FAILED")
        number = known.get("slices", 0)
        known.update(name=name, kind=kind, queue=queue, node="READY", slices=number + 1, looks=0)
        known["starts"] = starts()
        (CLOUD / "workers").mkdir(exist_ok=True)


def queued_resources_create(where: str, words: list[str], flags: dict[str, str]) -> None:
    if flags.get("--node-id") != words[0] or not flags.get("--runtime-version"):
        error(where, "argument --node-id --runtime-version: Must be specified.", 2)
    request(where, words[0], "queued")


def tpu_vm_create(where: str, words: list[str], flags: dict[str, str]) -> None:
    if not flags.get("--version"):
        error(where, "argument --version: Must be specified.", 2)
    request(where, words[0], "node")


def queued_resources_describe(where: str, words: list[str], flags: dict[str, str]) -> None:
    with state() as known:
        if known.get("name") != words[0] or known["kind"] != "queued":
            not_found(where, words[0])
        if flags["--format"] == "value(state.failedData.error.message)":
            print(scenario().get("reason", "") if known["queue"] == ["FAILED"] else "")
            return
        if known["node"] == "PREEMPTED":
            print("SUSPENDED")
        elif known["queue"]:
            print(known["queue"][0])
            if known["queue"] != ["FAILED"]:
                known["queue"].pop(0)
        else:
            print("ACTIVE")


def tpu_vm_describe(where: str, words: list[str], flags: dict[str, str]) -> None:
    with state() as known:
        if turn(known, "describe", "ok") == "down":
            error(where, "There was a problem refreshing your current auth tokens: Unable to find the server")
        if known.get("name") != words[0] or known["queue"]:
            not_found(where, words[0])
        limits = scenario().get("preempt", [])
        if starts() - known["starts"] >= scenario().get("workers", 1):
            known["looks"] += 1
        limit = limits[known["slices"] - 1] if known["slices"] <= len(limits) else 0
        if limit and known["looks"] >= limit and known["node"] == "READY":
            known["node"] = "PREEMPTED"
            end_processes()
        print(known["node"], scenario().get("workers", 1), sep="\t")


def remove(where: str, name: str) -> None:
    with state() as known:
        if known.get("name") != name:
            not_found(where, name)
        outcome = turn(known, "delete", "ok")
        if outcome == "fails":
            error(where, "INTERNAL: the operation failed")
        if outcome == "ignored":
            return
        end_processes()
        known.pop("name")


def queued_resources_delete(where: str, words: list[str], flags: dict[str, str]) -> None:
    if "--force" not in flags:
        error(where, "FAILED_PRECONDITION: the queued resource has nodes")
    remove(where, words[0])


def tpu_vm_delete(where: str, words: list[str], flags: dict[str, str]) -> None:
    remove(where, words[0])


# --- workers


def home(where: str, worker: str) -> Path:
    """The home of a worker, unless it cannot be reached."""
    with state() as known:
        down = scenario().get("down", [])
        if known.get("node") != "READY" or "name" not in known:
            error(where, f"TPU is in state {known.get('node')}, and unusable")
        if int(worker) in (down[known["slices"] - 1] if known["slices"] <= len(down) else []):
            error(where, "[/usr/bin/ssh] exited with return code [255].")
    folder = CLOUD / "workers" / worker
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tpu_vm_ssh(where: str, words: list[str], flags: dict[str, str]) -> None:
    folder = home(where, flags["--worker"])
    path = f"{CLOUD / 'machine'}{os.pathsep}{os.environ['PATH']}"
    environ = {"HOME": str(folder), "PATH": path, "FAKE_CLOUD": str(CLOUD), "WORKER": flags["--worker"]}
    done = subprocess.run(["bash", "-c", flags["--command"]], cwd=folder, env=environ, stdin=subprocess.DEVNULL)
    sys.exit(done.returncode)


def tpu_vm_scp(where: str, words: list[str], flags: dict[str, str]) -> None:
    folder = home(where, flags["--worker"])

    def local(word: str) -> Path:
        name, colon, path = word.partition(":")
        return folder / path if colon and "/" not in name else Path(word)

    *sources, target = words
    for source in sources:
        if not local(source).is_file():
            error(where, f"scp: {source}: No such file or directory")
        place = local(target)
        shutil.copy(local(source), place / local(source).name if place.is_dir() else place)


# --- Cloud Storage


def storage_rsync(where: str, words: list[str], flags: dict[str, str]) -> None:
    source, target = (CLOUD / "buckets" / w[5:] if w.startswith("gs://") else Path(w) for w in words)
    if not source.is_dir():
        error(where, f"Did not find existing container at: {words[0]}")
    for file in source.rglob("*"):
        path = file.relative_to(source).as_posix()
        if file.is_file() and not (flags.get("--exclude") and re.match(flags["--exclude"], path)):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
