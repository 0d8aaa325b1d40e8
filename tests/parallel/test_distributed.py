"""How a run finds out that it has several processes, and how they pass values around (real processes on loopback)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from vero_jax.config import DistributedConfig
from vero_jax.errors import UserError
from vero_jax.parallel.distributed import Hosts, _arguments

PROCESS = """
import json, sys
import numpy as np
from vero_jax.config import DistributedConfig
from vero_jax.errors import UserError, friendly
from vero_jax.parallel.distributed import check_alike, connect

index, count, port = map(int, sys.argv[1:4])
config = DistributedConfig("manual", f"127.0.0.1:{port}", count, index, timeout_s=60, peer_timeout_s=20)

def refuse():
    raise UserError("only the first process knows this")

@friendly
def main():
    with connect(config) as hosts:
        big = np.full(3_000_000 * (index + 1), index, np.uint8)
        found = hosts.exchange({"index": index, "big": big})
        items = [f"item {n}" for n in range(7)][index::count]
        report = {
            "sizes": [len(part["big"]) for part in found],
            "right": all((part["big"] == at).all() and part["index"] == at for at, part in enumerate(found)),
            "empty": hosts.exchange(None),
            "shares": hosts.shares(items),
            "agreed": hosts.agree(lambda: f"made by {index}"),
        }
        try:
            hosts.agree(refuse)
        except UserError as error:
            report["refused"] = str(error)
        check_alike(hosts, {"a.b": 1, "distributed.process_id": index})
        print(json.dumps(report), flush=True)
        check_alike(hosts, {"a.b": 1, "optim.lr": 1e-6 * (1 + index)})
    return 0

sys.exit(main())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_values_go_round_and_all_agree():
    port, environ = free_port(), {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), "3", str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
        )
        for index in range(3)
    ]  # fmt: skip
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert output, errors
        assert json.loads(output.splitlines()[-1]) == {  # Gloo has something to say, too
            "sizes": [3_000_000, 6_000_000, 9_000_000],
            "right": True,
            "empty": [None, None, None],
            "shares": [f"item {n}" for n in range(7)],
            "agreed": "made by 0",
            "refused": "only the first process knows this",
        }
        assert process.returncode == 2
        assert "were started with different settings: optim.lr" in errors


def test_one_process_exchanges_with_itself():
    hosts, value = Hosts(), object()
    assert hosts.exchange(value) == [value] and hosts.agree(lambda: value) is value and hosts.shares([1, 2]) == [1, 2]
    assert hosts.primary


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4"}, None),  # in a job, but not started by srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a,b"}, {}),
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"},
            {"local_device_ids": [0, 1, 2, 3]},
        ),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "a", "SLURM_STEP_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "8"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, {}),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {}),
    ],
)
def test_what_has_started_us_is_recognised(environ, wanted):
    assert _arguments(DistributedConfig(), {"JAX_PLATFORMS": "cpu", **environ}) == wanted
    assert _arguments(DistributedConfig("off"), {"JAX_PLATFORMS": "cpu", **environ}) is None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (DistributedConfig("manual"), "distributed.coordinator"),
        (DistributedConfig("manual", "host:1", 2, 2), "process_id"),
        (DistributedConfig("manual", "host", 2, 1), "host:port"),
        (DistributedConfig("manual", "host:99999", 2, 0), "a port from 1 to 65535, not 'host:99999'"),
        (DistributedConfig("auto", "host:1", 2, 1), "distributed.mode=manual"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, named):
    with pytest.raises(UserError, match=named):
        _arguments(config, {})


def test_a_process_without_the_first_one_waits_no_longer_than_asked():
    config = f"DistributedConfig('manual', '127.0.0.1:{free_port()}', 2, 1, timeout_s=3)"
    code = (
        "import sys\nfrom vero_jax.config import DistributedConfig\nfrom vero_jax.errors import friendly\n"
        "from vero_jax.parallel.distributed import connect\n"
        f"@friendly\ndef main():\n    with connect({config}):\n        return 0\nsys.exit(main())"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "process 0 is not at distributed.coordinator=127.0.0.1:" in done.stderr, done.stderr
    assert time.monotonic() - start < 60
