#!/usr/bin/env bash
# status.sh: the state of the slice, and of the run on each of its workers.
#
#   tpu_scripts/status.sh [options]
#
# Needs PROJECT, ZONE and NAME.
#
# Exit status: 0 the run is going on or done on all workers, 1 it is not (the lines say where), 3 the slice is not ready.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "$@"
need PROJECT ZONE NAME
need_gcloud

look_at_slice
if ((DRY_RUN)); then
    look_at_jobs
    exit 0
fi
echo "slice $NAME in $ZONE: $STATE${DETAIL:+ ($DETAIL)}"
[[ $STATE == READY ]] || exit "$NOT_READY"
look_at_jobs
well=0
for worker in "${!JOBS[@]}"; do
    echo "worker $worker: ${JOBS[worker]}"
    case ${JOBS[worker]} in running | 'exited 0') ;; *) well=1 ;; esac
done
exit "$well"
