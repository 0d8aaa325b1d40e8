"""Stands for a worker's python: `-m vero_jax.train` runs what trainings.json says, and keeps its place in a bucket.

trainings.json holds a list; the n-th start of worker w, on whatever slice, does the n-th entry (or the last), which is
a status or a list of one for each worker. "hang" waits for SIGTERM, then "saves" and ends with 143.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
WORKER = os.environ["WORKER"]


def train(argv: list[str]) -> int:
    settings = dict(word.split("=", 1) for word in argv if "=" in word)
    run = Path(settings["run_dir"]).expanduser()
    run.mkdir(parents=True, exist_ok=True)
    (run / "checkpoints").mkdir(exist_ok=True)
    saved = run / "checkpoints" / f"saved-{WORKER}"
    if "trainer.checkpoint_dir" in settings:
        folder = CLOUD / "buckets" / settings["trainer.checkpoint_dir"].removeprefix("gs://")
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / f"saved-{WORKER}"
    before = int(saved.read_text()) if saved.exists() else 0
    started = CLOUD / f"starts-{WORKER}.jsonl"
    number = len(started.read_text().splitlines()) if started.exists() else 0
    visible = {key: value for key, value in os.environ.items() if key.startswith("TEST_")}
    plan = json.loads((CLOUD / "trainings.json").read_text())
    entry = plan[min(number, len(plan) - 1)]
    what = entry[int(WORKER)] if isinstance(entry, list) else entry
    (run / "metrics.jsonl").write_text(f'{{"step": {before + 1}}}\n')
    saved.write_text(str(before + 1))
    # The last thing: who sees it knows that all the rest is there.
    with started.open("a") as file:
        file.write(json.dumps({"argv": argv, "saved": before, "environ": visible, "pid": os.getpid()}) + "\n")
    if what == "hang":
        signals = []
        signal.signal(signal.SIGTERM, lambda received, frame: signals.append(received))
        print("waiting", flush=True)
        limit = time.monotonic() + 300  # of tests that were killed nothing is left running
        while not signals and time.monotonic() < limit:
            time.sleep(0.02)
        # A second signal within this time would be one too many.
        time.sleep(float(os.environ.get("TEST_SAVING_S", "0.3")))
        (CLOUD / f"signals-{WORKER}").write_text(str(len(signals)))
        return 143
    time.sleep(0.1)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"error: the end of worker {WORKER} with {what}", file=sys.stderr)
    return int(what)


if __name__ == "__main__":
    if sys.argv[1:3] == ["-m", "vero_jax.train"]:
        sys.exit(train(sys.argv[3:]))
    print("ready: Python 3.12.0 jax 0.0 libtpu 0.0")
