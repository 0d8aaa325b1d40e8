#!/usr/bin/env bash
# fetch.sh: copy the run's folder here: metrics, samples, validation, the exported policy.
#
#   tpu_scripts/fetch.sh [--to FOLDER] [--checkpoints] [--logs] [options]
#
# With SHARED_DISK=gs://... it reads the bucket, and works when the slice is gone (needs NAME or RUN); otherwise it asks
# worker 0 (needs PROJECT, ZONE and NAME).
#
#   --to FOLDER     where to (default: runs/RUN)
#   --checkpoints   those, too; they are large
#   --logs          what every worker has said, into FOLDER/logs (needs the slice)
#
# Exit status: 0 copied, 2 a mistake, 3 there is no slice to ask, 1 or gcloud's own when something could not be copied.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--checkpoints --logs)
VALUES=(--to)
begin "$@"
need NAME
need_gcloud
name=$(run_name)
target=${OPT_TO:-runs/$name}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run mkdir -p "$target"

copy_bucket() { run gcloud storage rsync "$1" "$2" --recursive ${PROJECT:+"--project=$PROJECT"} --quiet "${@:3}"; }
if [[ $SHARED_DISK == gs://* ]]; then
    leave_out=(--exclude='^checkpoints/.*|^\.lock$|^\.hosts$')
    copy_bucket "${SHARED_DISK%/}/runs/$name" "$target" "${leave_out[@]}"
else
    need PROJECT ZONE
    need_slice
    extra=()
    if [[ -n ${OPT_CHECKPOINTS:-} && -z $(checkpoint_path) ]]; then extra=(--checkpoints); fi
    ssh_worker 0 "$(job pack "$(run_path)" "$REMOTE/fetch.tgz" "${extra[@]}")"
    scp_worker 0 "$NAME:$REMOTE/fetch.tgz" "$work/"
    run tar -xzf "$work/fetch.tgz" -C "$target"
fi
if [[ -n ${OPT_CHECKPOINTS:-} && $(checkpoint_path) == gs://* ]]; then
    run mkdir -p "$target/checkpoints"
    copy_bucket "$(checkpoint_path)" "$target/checkpoints"
fi
if [[ -n ${OPT_LOGS:-} ]]; then
    need PROJECT ZONE
    need_slice
    run mkdir -p "$target/logs"
    fetch_log() { scp_worker "$1" "$NAME:$REMOTE/job/log" "$target/logs/worker-$1.txt"; }
    if ! on_workers "$work" fetch_log; then
        name_failures "$work" 'did not give its log'
        exit 1
    fi
fi
((DRY_RUN)) || say "the run $name is in $target"
