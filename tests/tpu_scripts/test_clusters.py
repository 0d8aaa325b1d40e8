"""GKE, XPK, one node of GPUs, and Slurm."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "tpu_scripts"
GKE = [
    "--image",
    "my-registry/vero_jax:1",
    "--accelerator",
    "tpu-v5p-slice",
    "--topology",
    "2x2x2",
]


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


def call(script: str, *words: str, path: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    places = [str(path)] if path else []
    return subprocess.run(
        [str(SCRIPTS / f"{script}.sh"), *words],
        env={"PATH": os.pathsep.join([*places, "/usr/bin", "/bin"]), **environ},
        text=True,
        capture_output=True,
        timeout=60,
    )


# --- GKE


def gke(*words: str, arguments: tuple[str, ...] = ("configs/qwen3_vl_8b.yaml",)):
    shared = ["--env", "/dev/null", "--name", "vero", "--shared-disk", "gs://my-bucket/vero"]
    return call("gke", *shared, *GKE, *words, "--", *arguments)


def job(manifest: str) -> dict:
    return yaml.safe_load(manifest)["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_the_manifest_in_the_repository_is_what_the_script_makes():
    done = gke("--print")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (SCRIPTS / "gke/jobset.yaml").read_text()


def test_the_manifest_restarts_what_can_go_on_and_fails_on_mistakes():
    manifest = yaml.safe_load(gke("--print", "--restarts", "7").stdout)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    topology = manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert topology == "cloud.google.com/gke-nodepool"
    assert manifest["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    pods = job(gke("--print").stdout)
    assert pods["backoffLimit"] == 0
    assert pods["template"]["spec"]["restartPolicy"] == "Never"  # a podFailurePolicy asks for it
    disruption, mistake = pods["podFailurePolicy"]["rules"]
    assert disruption == {
        "action": "Count",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert mistake == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "NotIn", "values": [75, 143]},
    }


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("2x2x2", "4", 2), ("4x4", "4", 4), ("2x4", "8", 1), ("4x4x8", "4", 32)]
)
def test_the_manifest_has_one_pod_to_a_host(topology, chips, hosts):
    pods = job(gke("--print", "--topology", topology, "--chips-per-host", chips).stdout)
    assert (pods["parallelism"], pods["completions"], pods["completionMode"]) == (hosts, hosts, "Indexed")
    [container] = pods["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == int(chips)
    assert pods["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": topology,
    }


def test_the_manifest_mounts_the_bucket_and_passes_every_word_as_it_is():
    nasty = 'name=it\'s "a" $HOME: # {x}'
    pods = job(gke("--print", "--spot", "1", arguments=("configs/my.yaml", nasty)).stdout)["template"]["spec"]
    [container] = pods["containers"]
    assert container["command"] == ["python", "-m", "vero_jax.train"]
    assert container["args"] == [
        "configs/my.yaml",
        nasty,
        "run_dir=/shared/runs/vero",
        "trainer.checkpoint_dir=gs://my-bucket/vero/checkpoints/vero",
    ]
    assert pods["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    volumes = {volume["name"]: volume for volume in pods["volumes"]}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shared": "/shared",
        "shm": "/dev/shm",
    }
    attributes = volumes["shared"]["csi"]["volumeAttributes"]
    assert attributes["bucketName"] == "my-bucket"
    assert attributes["mountOptions"].split(",") == [
        "implicit-dirs",
        "metadata-cache:ttl-secs:0",
        "metadata-cache:negative-ttl-secs:0",
        "only-dir:vero",
    ]


def test_kubectl_gets_the_manifest(tmp_path):
    program(tmp_path, "kubectl", 'echo "$*" >"$OUT/words"; cat >"$OUT/manifest"')
    words = ["--env", "/dev/null", "--name", "vero", "--shared-disk", "gs://b", *GKE, "--", "c.yaml"]
    done = call("gke", *words, path=tmp_path, OUT=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "words").read_text() == "apply --filename=-\n"
    assert yaml.safe_load((tmp_path / "manifest").read_text())["metadata"]["name"] == "vero"
    (tmp_path / "manifest").unlink()
    dry = call("gke", "--dry-run", *words, path=tmp_path, OUT=str(tmp_path))
    assert not (tmp_path / "manifest").exists()
    # What it prints is a command that does the same.
    subprocess.run(
        ["bash", "-c", dry.stdout], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path)}, check=True
    )
    assert yaml.safe_load((tmp_path / "manifest").read_text())["kind"] == "JobSet"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--topology", "2x3", "--chips-per-host", "4"], "--topology 2x3 has 6 chips, which are not whole hosts"),
        (["--topology", "big"], "--topology must be chips along each axis"),
        (["--image", "a b"], "--image must be the name of an image, not 'a b'"),
        (["--shared-disk", "10.0.0.1:/x"], "SHARED_DISK must be a bucket here"),
        (["--kubernetes-account", "x: y"], "--kubernetes-account must be the name of"),
    ],
)
def test_what_cannot_be_a_manifest_is_refused(words, sentence):
    done = gke("--print", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""


def test_the_image_has_what_the_manifest_starts():
    lines = (SCRIPTS / "gke/Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    for name in copied:
        assert (SCRIPTS.parent / name).exists()
    assert {"pyproject.toml", "vero_jax", "configs", "constraints.txt"} <= set(copied)


# --- XPK


def test_xpk_gets_one_workload_that_restarts_when_a_peer_is_lost(tmp_path):
    program(tmp_path, "xpk", 'printf "%s\\n" "$@"')
    words = ["--env", str(SCRIPTS / "slice.env.example"), "--cluster", "c", "--image", "a.dev/b:1"]
    done = call("xpk", *words, "--shared-path", "/mnt/shared", "--", "configs/my.yaml", "name=a b", path=tmp_path)
    assert done.returncode == 0, done.stderr
    *flags, command = done.stdout.splitlines()
    assert flags[:2] == ["workload", "create"]
    assert {"--workload=vero", "--tpu-type=v5p-16", "--max-restarts=50", "--restart-on-exit-codes=75"} <= set(flags)
    run = command.removeprefix("--command=cd /vero_jax && exec ")
    assert shlex.split(run) == [
        *("python", "-m", "vero_jax.train", "configs/my.yaml", "name=a b", "run_dir=/mnt/shared/runs/vero"),
        "trainer.checkpoint_dir=gs://my-bucket/vero/checkpoints/vero",
    ]


# --- one node of GPUs


SAY = f"""{sys.executable} -c 'import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))' "$@"
exit "${{END:-0}}\""""


@pytest.fixture
def node(tmp_path) -> Path:
    """A folder of programs: a python that tells how it was started, and 4 GPUs."""
    program(tmp_path, "python", SAY)
    program(tmp_path, "nvidia-smi", "seq 0 3")
    return tmp_path


def test_one_process_gets_all_gpus_in_an_environment_that_is_said(node):
    done = call("gpu_node", "configs/mini.yaml", "name=a b", path=node, XLA_FLAGS="--xla_mine=1")
    assert done.returncode == 0, done.stderr
    words, environ = json.loads(done.stdout)
    assert words == ["-m", "vero_jax.train", "configs/mini.yaml", "name=a b", "mesh.data=1", "mesh.fsdp=4"]
    assert environ["JAX_PLATFORMS"] == "cuda,cpu"
    assert environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"
    assert environ["XLA_FLAGS"].endswith(" --xla_mine=1")
    assert "CUDA_VISIBLE_DEVICES" not in environ
    assert done.stderr.startswith("4 GPU(s); JAX_PLATFORMS=cuda,cpu ")


def test_some_gpus_can_be_chosen_and_a_mesh_is_left_alone(node):
    done = call("gpu_node", "--gpus", "1,3", "--memory", "0.8", "--", "configs/mini.yaml", path=node)
    words, environ = json.loads(done.stdout)
    assert words[-2:] == ["mesh.data=1", "mesh.fsdp=2"]
    assert (environ["CUDA_VISIBLE_DEVICES"], environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == ("1,3", "0.8")
    words, _ = json.loads(call("gpu_node", "configs/mini.yaml", "mesh.tensor=4", path=node).stdout)
    assert words[-1] == "mesh.tensor=4"


@pytest.mark.parametrize("status", [0, 1, 143])
def test_the_status_of_the_run_is_that_of_the_launcher(node, status):
    assert call("gpu_node", "configs/mini.yaml", path=node, END=str(status)).returncode == status


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "what is to be trained?"),
        (["--gpus", "all", "c.yaml"], "--gpus must be numbers with commas between them, not 'all'"),
        (["--memory", "0", "c.yaml"], "--memory must be a share above 0 and up to 1, not '0'"),
        (["--memory"], "--memory needs a value"),
    ],
)
def test_mistakes_on_a_gpu_node_have_a_sentence(node, words, sentence):
    done = call("gpu_node", *words, path=node)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_a_machine_without_gpus_is_told_so(tmp_path):
    program(tmp_path, "python", SAY)
    done = call("gpu_node", "configs/mini.yaml", path=tmp_path)
    assert done.returncode == 2
    assert "there is no nvidia-smi here" in done.stderr


def test_a_dry_run_of_the_launcher_runs_nothing(node):
    done = call("gpu_node", "--dry-run", "configs/mini.yaml", "name=a b", path=node)
    words = shlex.split(done.stdout)
    assert words[:2] == ["env", "JAX_PLATFORMS=cuda,cpu"]
    assert "name=a b" in words


def test_xla_knows_the_flags_that_are_set():
    """XLA ends a process over a flag that it does not know; the parser is the same one without a GPU."""
    done = call("gpu_node", "--gpus", "0", "--dry-run", "configs/mini.yaml")
    flags = next(word for word in shlex.split(done.stdout) if word.startswith("XLA_FLAGS=")).removeprefix("XLA_FLAGS=")
    code = "import jax; print(jax.device_count())"
    environ = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "HOME": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    environ["XLA_FLAGS"] += " --xla_gpu_of_no_such_name=1"
    done = subprocess.run([sys.executable, "-c", code], env=environ, text=True, capture_output=True, timeout=120)
    assert "xla_gpu_of_no_such_name" in done.stderr
    assert done.returncode != 0


# --- Slurm


@pytest.fixture
def cluster(tmp_path) -> Path:
    program(tmp_path, "srun", 'printf "%s\\n" "$@" >"$OUT/srun.words"; exit "${END:-0}"')
    program(tmp_path, "scontrol", 'echo "$*" >>"$OUT/scontrol.words"')
    return tmp_path


def slurm(cluster: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    shown = {"SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(SCRIPTS.parent), "OUT": str(cluster), **environ}
    return call("slurm", *words, path=cluster, **shown)


def test_the_batch_script_asks_for_what_its_help_says():
    text = (SCRIPTS / "slurm.sh").read_text()
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {"--ntasks-per-node=1", "--gpus-per-node=8", "--signal=TERM@600", "--requeue"} <= set(asked)
    # Slurm reads options up to the first command only.
    assert text.index("#SBATCH --output") < text.index("set -euo pipefail")
    assert subprocess.run(["bash", "-n", str(SCRIPTS / "slurm.sh")]).returncode == 0
    # slurmd runs a copy of it elsewhere: nothing beside it can be read.
    assert "BASH_SOURCE" not in text


def test_a_job_starts_one_process_to_a_node_with_the_words_as_they_are(cluster):
    done = slurm(cluster, "configs/mini.yaml", "name=a b")
    assert done.returncode == 0, done.stderr
    assert (cluster / "srun.words").read_text().splitlines() == [
        *("--kill-on-bad-exit=0", "env", "JAX_PLATFORMS=cuda,cpu", "python", "-m", "vero_jax.train"),
        *("configs/mini.yaml", "name=a b"),
    ]
    assert not (cluster / "scontrol.words").exists()


@pytest.mark.parametrize("status", ["75", "143"])
def test_what_can_go_on_goes_back_into_the_queue(cluster, status):
    done = slurm(cluster, "configs/mini.yaml", END=status)
    assert done.returncode == 0, done.stderr
    assert (cluster / "scontrol.words").read_text() == "requeue 42\n"


@pytest.mark.parametrize("status", ["1", "2", "130", "137"])
def test_other_statuses_end_the_job(cluster, status):
    assert slurm(cluster, "configs/mini.yaml", END=status).returncode == int(status)
    assert not (cluster / "scontrol.words").exists()


def test_the_queue_has_an_end(cluster):
    done = slurm(cluster, "configs/mini.yaml", END="75", SLURM_RESTART_COUNT="3", MAX_REQUEUES="3")
    assert done.returncode == 75
    assert "not put into the queue again, after 3 times (MAX_REQUEUES)" in done.stderr
    assert not (cluster / "scontrol.words").exists()


def test_sigterm_to_the_batch_script_is_not_passed_on(cluster):
    """Slurm signals the processes of the run itself; a second SIGTERM would end them unsaved."""
    program(cluster, "srun", 'trap "echo passed on >$OUT/passed" TERM; kill -TERM "$PPID"; sleep 0.3; exit 143')
    done = slurm(cluster, "configs/mini.yaml")
    assert done.returncode == 0
    assert (cluster / "scontrol.words").read_text() == "requeue 42\n"
    assert not (cluster / "passed").exists()


@pytest.mark.parametrize(
    ("words", "environ", "sentence"),
    [
        (["configs/mini.yaml"], {"SLURM_JOB_ID": ""}, "this is no Slurm job; start it with: sbatch"),
        (["configs/mini.yaml"], {"SLURM_JOB_NUM_NODES": "2"}, "a run on 2 nodes needs run_dir="),
        ([], {}, "what is to be trained?"),
        (["configs/mini.yaml"], {"MAX_REQUEUES": "x"}, "MAX_REQUEUES must be a whole number, not 'x'"),
    ],
)
def test_mistakes_of_a_job_have_a_sentence(cluster, words, environ, sentence):
    done = slurm(cluster, *words, **environ)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (cluster / "srun.words").exists()


def test_a_virtual_environment_is_activated(cluster):
    program(cluster / "bin", "activate", "export ACTIVATED=yes")
    program(cluster, "srun", 'echo "$ACTIVATED" >"$OUT/srun.words"')
    assert slurm(cluster, "configs/mini.yaml", VENV=str(cluster)).returncode == 0
    assert (cluster / "srun.words").read_text() == "yes\n"
