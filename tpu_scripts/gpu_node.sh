#!/usr/bin/env bash
# gpu_node.sh: the run on all GPUs of this machine, as one process.
#
#   tpu_scripts/gpu_node.sh [--gpus 0,1,2,3] [--memory 0.92] [--dry-run] [--] configs/my.yaml a.b.c=value ...
#
# jax drives all GPUs from one process, so there is nothing to launch but python -m vero_jax.train, in an environment
# that is set here and said:
#
#   JAX_PLATFORMS=cuda,cpu          without CUDA support it stops, instead of training on the CPU
#   XLA_PYTHON_CLIENT_MEM_FRACTION  the share of each GPU's memory that jax takes at once (--memory)
#   XLA_FLAGS                       the latency hiding scheduler (computes while collectives are on their way), and
#                                   larger buckets of them; what you have in XLA_FLAGS comes behind, and wins
#   CUDA_VISIBLE_DEVICES            with --gpus
#
# Unless an argument says something about mesh.*, weights and rows are split over all GPUs (mesh.data=1 mesh.fsdp=N).
# Ctrl-C or SIGTERM saves, and the same command goes on. The exit status is that of the run.
#
#   --gpus LIST     which, by number (default: all)
#   --memory SHARE  (default: 0.92)
#   --dry-run       print the command, run nothing
#   PYTHON          in the environment: the interpreter (default: python)

set -euo pipefail

fail() { echo "error: $*" >&2 && exit 2; }

gpus='' memory=0.92 dry_run=0
while (($#)); do
    case $1 in
        --help | -h) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift ;;
        --gpus | --memory)
            (($# > 1)) || fail "$1 needs a value"
            if [[ $1 == --gpus ]]; then gpus=$2; else memory=$2; fi
            shift 2
            ;;
        --) shift && break ;;
        --*) fail "gpu_node.sh has no option $1; see --help" ;;
        *) break ;;
    esac
done
(($#)) || fail "what is to be trained? Give the arguments of python -m vero_jax.train"
[[ -z $gpus || $gpus =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus must be numbers with commas between them, not '$gpus'"
[[ $memory =~ ^(0?\.[0-9]*[1-9][0-9]*|1(\.0*)?)$ ]] || fail "--memory must be a share above 0 and up to 1, not '$memory'"

if [[ -n $gpus ]]; then
    visible=${gpus//[^,]/} && count=$((${#visible} + 1))
elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    visible=${CUDA_VISIBLE_DEVICES//[^,]/} && count=$((${#visible} + 1))
else
    command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi here, so there are no GPUs that jax could use (or name them with --gpus)"
    count=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
    ((count > 0)) || fail "nvidia-smi names no GPU"
fi

flags='--xla_gpu_enable_latency_hiding_scheduler=true'
flags+=' --xla_gpu_all_gather_combine_threshold_bytes=134217728 --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728'
settings=("JAX_PLATFORMS=cuda,cpu" "XLA_PYTHON_CLIENT_MEM_FRACTION=$memory" "XLA_FLAGS=$flags${XLA_FLAGS:+ $XLA_FLAGS}")
if [[ -n $gpus ]]; then settings+=("CUDA_DEVICE_ORDER=PCI_BUS_ID" "CUDA_VISIBLE_DEVICES=$gpus"); fi

words=("$@")
if [[ " $* " != *' mesh.'* ]]; then words+=(mesh.data=1 "mesh.fsdp=$count"); fi
command=(env "${settings[@]}" "${PYTHON:-python}" -m vero_jax.train "${words[@]}")
if ((dry_run)); then
    printf '%q ' "${command[@]}" && echo
    exit 0
fi
printf '%s GPU(s); %s\n' "$count" "$(IFS=' ' && echo "${settings[*]}")" >&2
exec "${command[@]}"
