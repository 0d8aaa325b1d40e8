#!/usr/bin/env bash
# delete.sh: delete the slice, or withdraw the request for it. What lies on its disks is gone, what is in a bucket stays.
#
#   tpu_scripts/delete.sh [--yes] [options]
#
# Needs PROJECT, ZONE and NAME, and QUEUED as it was when the slice was created.
#
#   --yes        do not ask
#
# Exit status: 0 when nothing of this name is left (also when nothing was there), 2 otherwise.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--yes)
begin "$@"
need PROJECT ZONE NAME
need_gcloud

if [[ -z ${OPT_YES:-} ]] && ! ((DRY_RUN)); then
    [[ -t 0 ]] || fail "delete.sh asks before it deletes $NAME, and nobody is there to answer; give it --yes"
    read -r -p "Delete $NAME in $ZONE, with everything on its disks? [y/N] " answer
    [[ $answer == [yY]* ]] || fail "$NAME was not deleted"
fi

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
if ((QUEUED)); then
    remove=(queued-resources delete "$NAME" --force)
else
    remove=(tpu-vm delete "$NAME")
fi
if tpus "${remove[@]}" 2>"$errors"; then
    ((DRY_RUN)) || say "$NAME is deleted"
elif grep -qE 'NOT_FOUND|was not found' "$errors"; then
    say "there is no $NAME in $ZONE"
else
    cat "$errors" >&2
    fail "$NAME could not be deleted, and goes on costing money: $(last_words "$errors")"
fi
