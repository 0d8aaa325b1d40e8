#!/usr/bin/env bash
# xpk.sh: the run as a workload of XPK, on a cluster that XPK has made.
#
#   tpu_scripts/xpk.sh --cluster C --image I --shared-path /shared [--storage S] [options] -- configs/qwen3_vl_8b.yaml ...
#
# Needs PROJECT, ZONE, NAME, ACCELERATOR_TYPE (as xpk names them, such as v5p-16), and one folder that all pods see:
# `xpk storage attach` makes one, and its mount point is the --shared-path. The checkpoints go to CHECKPOINT_DIR or, if
# SHARED_DISK is a bucket, below that. 75 (a peer was lost), 143 (SIGTERM) and crashes are started again, at most
# --restarts times; 1 and 2, mistakes, are not.
#
#   --cluster C       of xpk cluster list
#   --image I         of gke/Dockerfile
#   --shared-path P   where the shared folder is mounted in the pods
#   --storage S       the name of it in xpk storage list (default: those that are mounted without being asked for)
#   --restarts N      (default: 50)
#   xpk workload list, xpk workload delete show and end it.
#
# Exit status: 0 the workload is asked for, 2 a mistake, else xpk's own.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
VALUES=(--cluster --image --shared-path --storage --restarts)
begin "$@"
: "${OPT_CLUSTER=}" "${OPT_IMAGE=}" "${OPT_SHARED_PATH=}" "${OPT_STORAGE=}" "${OPT_RESTARTS:=50}"
need PROJECT ZONE NAME ACCELERATOR_TYPE
for option in CLUSTER IMAGE SHARED_PATH; do
    value=OPT_$option name=${option,,}
    [[ -n ${!value} ]] || fail "--${name//_/-} must be given; see --help"
done
need_shape OPT_CLUSTER '^[a-z]([-a-z0-9]*[a-z0-9])?$' 'the name of a cluster'
need_shape OPT_IMAGE '^[a-z0-9][A-Za-z0-9._/:@-]*$' 'the name of an image'
need_shape OPT_SHARED_PATH '^/[A-Za-z0-9._/-]+$' 'an absolute folder'
need_shape OPT_STORAGE '^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$' 'the name of a storage'
need_shape OPT_RESTARTS '^[0-9]+$' 'a whole number'
if ((${#ARGS[@]} == 0)); then read -r -a ARGS <<<"$TRAIN_ARGS"; fi
((${#ARGS[@]})) || fail "what is to be trained? Give the arguments of python -m vero_jax.train behind --, or set TRAIN_ARGS"

words=("${ARGS[@]}" "run_dir=${OPT_SHARED_PATH%/}/runs/$(run_name)")
if [[ -n $(checkpoint_path) ]]; then words+=("trainer.checkpoint_dir=$(checkpoint_path)"); fi
need_tool xpk 'pip install xpk'
# 143, and whatever else is a signal, xpk restarts anyway.
run xpk workload create --workload="$NAME" --cluster="$OPT_CLUSTER" --project="$PROJECT" --zone="$ZONE" \
    --tpu-type="$ACCELERATOR_TYPE" --num-slices=1 --docker-image="$OPT_IMAGE" ${OPT_STORAGE:+"--storage=$OPT_STORAGE"} \
    --max-restarts="$OPT_RESTARTS" --restart-on-exit-codes="$TRY_AGAIN" --termination-grace-period-seconds=600 \
    --command="cd /vero_jax && exec $(remote python -m vero_jax.train "${words[@]}")"
