#!/usr/bin/env bash
# logs.sh: what the run says, and goes on to say until Ctrl-C (which does not stop the run).
#
#   tpu_scripts/logs.sh [--worker N] [--lines N] [--no-follow] [options]
#
# Needs PROJECT, ZONE and NAME. Worker 0 shows the progress; the others speak only of trouble.
#
#   --worker N    of this worker (default: 0)
#   --lines N     so many of the last lines first (default: 50)
#   --no-follow   only those
#
# Exit status: 0, 2 for a mistake or where nothing was started, else gcloud's own.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--no-follow)
VALUES=(--worker --lines)
begin "$@"
need PROJECT ZONE NAME
need_gcloud
: "${OPT_WORKER:=0}" "${OPT_LINES:=50}"
need_shape OPT_WORKER '^[0-9]+$' 'a whole number'
need_shape OPT_LINES '^[0-9]+$' 'a whole number'
follow=(follow)
if [[ -n ${OPT_NO_FOLLOW:-} ]]; then follow=(); fi
ssh_worker "$OPT_WORKER" "$(job logs "$OPT_LINES" "${follow[@]}")"
