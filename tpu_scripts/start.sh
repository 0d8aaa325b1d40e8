#!/usr/bin/env bash
# start.sh: start the run on every worker of the slice, where it goes on without this connection.
#
#   tpu_scripts/start.sh [options] [-- configs/my.yaml a.b.c=value ...]
#
# What stands behind -- (or TRAIN_ARGS) are the arguments of python -m vero_jax.train; run_dir and, for a bucket,
# trainer.checkpoint_dir are added: RUN (default: NAME) under the shared folder. A run that was stopped or preempted goes
# on from its last checkpoint. Needs PROJECT, ZONE and NAME, after setup.sh.
#
# Exit status: 0 started (or running already), 1 some worker failed (each is named; nothing is left running), 2 a mistake,
# 3 there is no slice that is ready.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "$@"
need PROJECT ZONE NAME
need_gcloud

words=("${ARGS[@]}")
if ((${#words[@]} == 0)); then read -r -a words <<<"$TRAIN_ARGS"; fi
((${#words[@]})) || fail "what is to be trained? Give the arguments of python -m vero_jax.train behind --, or set TRAIN_ARGS"
for word in "${words[@]}"; do
    [[ $word != run_dir=* ]] || fail "run_dir is set by SHARED_DISK and RUN, so leave out $word"
done
words+=("run_dir=$(run_path)")
checkpoints=$(checkpoint_path)
if [[ -n $checkpoints ]]; then
    for word in "${words[@]}"; do
        [[ $word != trainer.checkpoint_dir=* ]] || checkpoints=''
    done
    if [[ -n $checkpoints ]]; then words+=("trainer.checkpoint_dir=$checkpoints"); fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
need_slice
if ((WORKERS > 1)) && [[ -z $SHARED_DISK ]]; then
    fail "a run on $WORKERS workers needs one folder that all of them see; set SHARED_DISK"
fi

start_on() { ssh_worker "$1" "$(job start -- "${words[@]}")"; }
kill_on() { ssh_worker "$1" "$(job stop --now)"; }
if ! on_workers "$work" start_on; then
    name_failures "$work" 'could not start the run'
    mkdir "$work/stop"
    # The others would wait for the missing one.
    on_workers "$work/stop" kill_on || true
    exit 1
fi
((DRY_RUN)) || say "the run $(run_name) is started on $WORKERS worker(s); logs.sh shows what it says"
