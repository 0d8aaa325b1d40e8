#!/usr/bin/env bash
# stop.sh: end the run on every worker; the slice stays. SIGTERM makes it save after the step it is in.
#
#   tpu_scripts/stop.sh [--now] [options]
#
# Needs PROJECT, ZONE and NAME. Waits up to STOP_S seconds for the end. A run that was stopped like this is not started
# again by run_until_done.sh; start.sh goes on from what was saved.
#
#   --now        kill it, unsaved
#
# Exit status: 0 nothing runs any more, 1 something still does or a worker does not answer (each is named),
# 3 there is no slice.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--now)
begin "$@"
need PROJECT ZONE NAME
need_gcloud

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
how=(stop)
if [[ -n ${OPT_NOW:-} ]]; then how+=(--now); fi
stop_on() { ssh_worker "$1" "$(job "${how[@]}")"; }
need_slice
if ! on_workers "$work" stop_on; then
    name_failures "$work" 'could not be told to stop'
    exit 1
fi
((DRY_RUN)) && exit 0
SECONDS=0
while :; do
    look_at_jobs
    running=() silent=()
    for worker in "${!JOBS[@]}"; do
        case ${JOBS[worker]} in running) running+=("$worker") ;; unreachable) silent+=("$worker") ;; esac
    done
    if ((${#running[@]} + ${#silent[@]} == 0)); then
        say "nothing runs on $NAME any more; the slice is still there, and costs money until delete.sh has removed it"
        exit 0
    fi
    if ((SECONDS >= STOP_S)); then
        say "error: after $STOP_S s the run still goes on at worker(s) ${running[*]:-none}, and ${silent[*]:-none} do not answer; --now kills it"
        exit 1
    fi
    sleep "$POLL_S"
done
