#!/usr/bin/env bash
# create.sh: ask for a TPU slice and wait until it is ready.
#
#   tpu_scripts/create.sh [--no-wait] [options]
#
# QUEUED=1 (the default) puts a queued resource into the queue, which becomes a slice when there is room; QUEUED=0 makes
# a TPU VM at once or not at all. Needs PROJECT, ZONE, NAME, ACCELERATOR_TYPE and RUNTIME_VERSION. A slice or request of
# this name that is there already is waited for.
#
#   --no-wait    return when the request stands
#
# Exit status: 0 ready, 75 no quota or no room at present (try again later), 2 anything else.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--no-wait)
begin "$@"
need PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION
need_gcloud

flags=("--accelerator-type=$ACCELERATOR_TYPE")
if ((SPOT)); then flags+=(--spot); fi
if ((RESERVED)); then flags+=(--reserved); fi
if ((INTERNAL_IPS)); then flags+=(--internal-ips); fi
if [[ -n $NETWORK ]]; then flags+=("--network=$NETWORK"); fi
if [[ -n $SUBNETWORK ]]; then flags+=("--subnetwork=$SUBNETWORK"); fi
if [[ -n $SERVICE_ACCOUNT ]]; then flags+=("--service-account=$SERVICE_ACCOUNT"); fi
if [[ -n $LABELS ]]; then flags+=("--labels=$LABELS"); fi

request() {
    if ((QUEUED)); then
        if [[ -n $VALID_UNTIL ]]; then flags+=("--valid-until-duration=$VALID_UNTIL"); fi
        tpus queued-resources create "$NAME" --node-id="$NAME" --runtime-version="$RUNTIME_VERSION" "${flags[@]}" --async
    elif [[ -n ${OPT_NO_WAIT:-} ]]; then
        tpus tpu-vm create "$NAME" --version="$RUNTIME_VERSION" "${flags[@]}" --async
    else
        tpus tpu-vm create "$NAME" --version="$RUNTIME_VERSION" "${flags[@]}"
    fi
}

# What may be different in an hour: quota in use, no free capacity, a service that does not answer.
passing='RESOURCE_EXHAUSTED|[Qq]uota|QUOTA|[Nn]o more capacity|[Ii]nsufficient|[Ss]tockout|[Rr]ate.?[Ll]imit|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL'

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
if request 2>"$errors"; then
    cat "$errors" >&2
elif grep -qE 'ALREADY_EXISTS|already exists' "$errors"; then
    say "$NAME is there already"
elif grep -qE "$passing" "$errors"; then
    say "no room for $NAME ($ACCELERATOR_TYPE in $ZONE) at present: $(last_words "$errors")"
    exit "$TRY_AGAIN"
else
    cat "$errors" >&2
    fail "gcloud did not take the request for $NAME: $(last_words "$errors")"
fi
if [[ -n ${OPT_NO_WAIT:-} ]]; then exit 0; fi

SECONDS=0 before='' unknown=0
while :; do
    look_at_slice
    if [[ $DETAIL != "$before" ]] && ! ((DRY_RUN)); then say "$NAME: ${DETAIL:-$STATE}"; fi
    before=$DETAIL
    case $STATE in
        READY)
            ((DRY_RUN)) || say "$NAME is ready, with $WORKERS worker(s). It costs money until delete.sh has removed it."
            exit 0
            ;;
        FAILED | GONE)
            ANSWER=''
            if ((QUEUED)); then
                ask queued-resources describe "$NAME" --format='value(state.failedData.error.message)' || true
            fi
            if [[ $STATE == GONE || $ANSWER =~ $passing || -z $ANSWER ]]; then
                say "$NAME came to nothing ($before${ANSWER:+: $ANSWER}); delete.sh removes what is left of it"
                exit "$TRY_AGAIN"
            fi
            fail "the request for $NAME has failed: $ANSWER"
            ;;
        UNKNOWN)
            unknown=$((unknown + 1))
            ((unknown < MAX_ATTEMPTS)) || fail "gcloud does not tell the state of $NAME: $DETAIL"
            ;;
        *) unknown=0 ;;
    esac
    if ((WAIT_S > 0)) && ((SECONDS >= WAIT_S)); then
        say "$NAME is not ready after $WAIT_S s ($DETAIL); the request stands, and delete.sh withdraws it"
        exit "$TRY_AGAIN"
    fi
    sleep "$POLL_S"
done
