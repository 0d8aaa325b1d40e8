#!/usr/bin/env bash
#SBATCH --job-name=vero
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# slurm.sh: the run as a Slurm job on GPU nodes, one process to a node for all of its GPUs.
#
#   sbatch [--nodes=2 --partition=... --account=...] tpu_scripts/slurm.sh configs/my.yaml run_dir=/shared/runs/my a.b.c=value ...
#   tpu_scripts/slurm.sh --help | --dry-run configs/my.yaml ...
#
# To be submitted from the checkout. run_dir must be on a disk that all nodes share. Processes find each other by Slurm's
# variables. Ten minutes before the time is over (--signal; longer than a step and saving it) the run gets SIGTERM,
# saves, and ends with 143; then, and when a node was lost (75), the job is put into the queue again, at most
# MAX_REQUEUES times, and goes on from its last checkpoint. Any other status is a mistake: it ends the job.
#
# Exit status: that of the run; 2 for a mistake in the command.
#
# In the environment:
#   VENV          a virtual environment to activate
#   MAX_REQUEUES  (default: 20)
#   XLA_PYTHON_CLIENT_MEM_FRACTION, XLA_FLAGS   as you like them; gpu_node.sh --help names some

set -euo pipefail

fail() { echo "error: $*" >&2 && exit 2; }

dry_run=0
while (($#)); do
    case $1 in
        --help | -h) sed -n '/^# slurm.sh:/,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift ;;
        --) shift && break ;;
        --*) fail "slurm.sh has no option $1 (options of sbatch stand before the script); see --help" ;;
        *) break ;;
    esac
done
(($#)) || fail "what is to be trained? Give the arguments of python -m vero_jax.train"
most=${MAX_REQUEUES:-20}
[[ $most =~ ^[0-9]+$ ]] || fail "MAX_REQUEUES must be a whole number, not '$most'"

# A process that ends must not take the others down at once: they say who is gone, and save.
command=(srun --kill-on-bad-exit=0 env "JAX_PLATFORMS=cuda,cpu" python -m vero_jax.train "$@")
if ((dry_run)); then
    printf '%q ' "${command[@]}" && echo
    exit 0
fi
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no Slurm job; start it with: sbatch $0 $*"
[[ " $* " == *' run_dir='* || ${SLURM_JOB_NUM_NODES:-1} == 1 ]] ||
    fail "a run on ${SLURM_JOB_NUM_NODES:-1} nodes needs run_dir=<a folder on a disk that they share>"
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC1091
if [[ -n ${VENV:-} ]]; then . "$VENV/bin/activate"; fi

restarts=${SLURM_RESTART_COUNT:-0}
echo "=== $(date -u '+%F %T'): job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, start $((restarts + 1))"
# Slurm sends SIGTERM to the processes of the run itself. Passing on what comes here would be the second one, which ends
# a run unsaved.
trap ':' TERM
"${command[@]}" && status=0 || status=$?
echo "=== $(date -u '+%F %T'): ended with status $status"

case $status in
    75 | 143)
        if ((restarts >= most)); then
            echo "error: not put into the queue again, after $restarts times (MAX_REQUEUES)" >&2
            exit "$status"
        fi
        echo "the job goes back into the queue, and on from its last checkpoint"
        exec scontrol requeue "$SLURM_JOB_ID"
        ;;
esac
exit "$status"
