#!/usr/bin/env bash
# run_until_done.sh: from nothing to the finished run, through preemptions: create (or find) the slice, set it up, start
# the run, watch it, and when it or the slice is lost do so again until the run is done; then fetch and delete.
#
#   tpu_scripts/run_until_done.sh [--keep] [--no-fetch] [--to FOLDER] [options] [-- configs/my.yaml a.b.c=value ...]
#
# Needs PROJECT, ZONE, NAME, ACCELERATOR_TYPE, RUNTIME_VERSION and SHARED_DISK: what a preempted slice had on its own
# disks is gone. Leave it running in tmux; a run goes on without it, and it finds a run that is going on.
#
#   slice preempted, failed or away   deleted and created anew, the run goes on from its last checkpoint
#   no quota, no room                 asked again after BACKOFF_S, twice that, ..., at most BACKOFF_MAX_S
#   status 75 or 143 of the run       the same command again (a peer was lost, or SIGTERM came)
#   killed or crashed (128 + signal)  the same, at most MAX_CRASHES times
#   a worker that does not answer     named; a new slice when it stays so and the run has ended
#   any other status of the run       a mistake that would happen again: its words are shown, and it is not restarted
#   stop.sh                           somebody wants the end: not restarted, the slice stays
#
# It gives up after MAX_ATTEMPTS failures in a row; a run that lasted GOOD_RUN_S seconds counts as a success.
#
#   --keep        leave the slice there at the end (it is deleted when the run is done, and when it failed)
#   --no-fetch    do not copy the run's folder here at the end
#   --to FOLDER   where to (default: runs/RUN)
#
# Exit status: 0 done, 1 the run failed, 75 given up, 143 stopped by stop.sh, 2 a mistake in the settings.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--keep --no-fetch)
VALUES=(--to)
begin "$@"
need PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION SHARED_DISK
need_gcloud
((${#ARGS[@]})) || [[ -n $TRAIN_ARGS ]] || fail "what is to be trained? Give the arguments of python -m vero_jax.train behind --, or set TRAIN_ARGS"
target=${OPT_TO:-runs/$(run_name)}

SILENT_CHECKS=3  # of a worker that does not answer, before it counts as broken
LINGER_CHECKS=10 # of a run that has ended on some workers only, before it is ended on all

log() { say "$(date '+%F %T') $*"; }
step() { "$HERE/$1.sh" "${PASS[@]}" "${@:2}"; }

if ((DRY_RUN)); then
    for name in create setup; do step "$name" --dry-run; done
    step start --dry-run -- "${ARGS[@]}"
    echo "# every $POLL_S s, until it is done:" >&3
    step status --dry-run
    echo '# when the slice is lost:' >&3
    step delete --yes --dry-run
    echo '# and from the first line again. When the run is done:' >&3
    [[ -n ${OPT_NO_FETCH:-} ]] || step fetch --logs --to "$target" --dry-run
    [[ -n ${OPT_KEEP:-} ]] || step delete --yes --dry-run
    exit 0
fi

trap 'log "this script ends; the slice $NAME, the run on it and what they cost go on (stop.sh, delete.sh)"; exit 130' INT TERM

# --- what a look at the run means

is_in() { case " $1 " in *" $2 "*) return 0 ;; esac && return 1; }

# judge [after_the_end]: reads JOBS; sets OUTCOME to running, done, again, crash, mistake, stopped, silent or absent;
# and WHO, a sentence. After the end, what still runs counts as lost.
judge() {
    local worker word status running=() silent=() again=() crash=() absent=() stopped=() mistake=()
    for worker in "${!JOBS[@]}"; do
        word=${JOBS[worker]} && status=${word##* }
        if [[ -n ${1:-} && $word == running ]]; then word=lost; fi
        case $word in
            running) running+=("$worker") ;;
            unreachable) silent+=("$worker") ;;
            absent) absent+=("$worker") ;;
            stopped*) stopped+=("$worker") ;;
            lost) again+=("worker $worker was started and has left no status") ;;
            'exited 0') ;;
            *)
                if is_in '75 143' "$status"; then
                    again+=("worker $worker ended with status $status")
                elif ((status > 128 && status != 130)); then
                    crash+=("worker $worker was ended by signal $((status - 128)) (status $status)")
                else
                    mistake+=("worker $worker ended with status $status")
                fi
                ;;
        esac
    done
    ENDED=$((WORKERS - ${#running[@]} - ${#silent[@]}))
    if ((${#running[@]})); then
        OUTCOME=running WHO="${#running[@]} of $WORKERS workers run"
        if ((${#silent[@]})); then WHO+="; worker ${silent[*]} does not answer"; fi
    elif ((${#mistake[@]})); then
        OUTCOME=mistake WHO=${mistake[0]} BAD=${mistake[0]#worker } && BAD=${BAD%% *}
    elif ((${#stopped[@]})); then
        OUTCOME=stopped WHO='stop.sh was called'
    elif ((${#silent[@]})); then
        OUTCOME=silent WHO="worker ${silent[*]} of $WORKERS does not answer"
    elif ((${#crash[@]})); then
        OUTCOME=crash WHO=${crash[0]}
    elif ((${#again[@]})); then
        OUTCOME=again WHO=${again[0]}
    elif ((${#absent[@]})); then
        OUTCOME=absent WHO="nothing was started on worker ${absent[*]}"
    else
        OUTCOME='done' WHO="all $WORKERS workers ended with status 0"
    fi
}

# Watches until the run does not run any more. Sets OUTCOME as `judge`, or to gone when the slice is lost.
watch() {
    local quiet=0 linger=0 before=''
    while :; do
        look_at_slice
        case $STATE in
            GONE | FAILED | ABSENT) OUTCOME=gone WHO="the slice is lost: $DETAIL" && return 0 ;;
            READY)
                look_at_jobs
                judge
                [[ $WHO == "$before" ]] || log "$WHO"
                before=$WHO
                case $OUTCOME in
                    running)
                        quiet=0
                        if ((ENDED)); then linger=$((linger + 1)); else linger=0; fi
                        if ((linger >= LINGER_CHECKS)); then
                            log "the run has ended on $ENDED worker(s) and not on the others; it is ended there"
                            judge after_the_end
                            step stop --now || true
                            return 0
                        fi
                        ;;
                    silent)
                        quiet=$((quiet + 1))
                        ((quiet < SILENT_CHECKS)) || return 0
                        ;;
                    *) return 0 ;;
                esac
                ;;
            *) [[ "$STATE $DETAIL" == "$before" ]] || log "the slice is $STATE ($DETAIL)" && before="$STATE $DETAIL" ;;
        esac
        sleep "$POLL_S"
    done
}

# --- failures in a row, and how long to wait

failures=0 crashes=0
failed() {
    local pause
    failures=$((failures + 1))
    log "$1"
    if ((failures >= MAX_ATTEMPTS)); then
        log "given up after $failures failures in a row"
        finish "$TRY_AGAIN"
    fi
    pause=$((failures > 20 ? BACKOFF_MAX_S : BACKOFF_S << (failures - 1)))
    if ((pause > BACKOFF_MAX_S)); then pause=$BACKOFF_MAX_S; fi
    log "attempt $((failures + 1)) of $MAX_ATTEMPTS in $pause s"
    sleep "$pause"
}

# The end: what was asked for about the slice, and the exit status.
finish() {
    local status=$1
    look_at_slice
    if [[ $STATE == ABSENT ]]; then
        log "there is no slice $NAME any more"
    elif [[ -n ${OPT_KEEP:-} ]]; then
        log "the slice $NAME is still there, and costs money until delete.sh has removed it"
    elif ! step delete --yes; then
        log "the slice $NAME COULD NOT BE DELETED and goes on costing money: $HERE/delete.sh"
        ((status)) || status=1
    fi
    exit "$status"
}

remove() {
    step delete --yes || failed "$NAME could not be deleted"
    look_at_slice
    if [[ $STATE == GONE || $STATE == FAILED ]]; then failed "$NAME was deleted, and is still there ($DETAIL)"; fi
}

# --- the loop

first=1
while :; do
    look_at_slice
    case $STATE in
        READY) ;;
        GONE | FAILED)
            log "the slice $NAME is lost ($DETAIL): it is deleted and created anew"
            remove
            continue
            ;;
        UNKNOWN)
            failed "gcloud does not tell the state of $NAME: $DETAIL"
            continue
            ;;
        *)
            log "asking for $NAME ($ACCELERATOR_TYPE in $ZONE)"
            step create && status=0 || status=$?
            if ((status == TRY_AGAIN)); then failed "no slice yet" && continue; fi
            ((status == 0)) || exit "$status"
            first=0
            look_at_slice
            [[ $STATE == READY ]] || continue
            ;;
    esac
    if ((first)); then look_at_jobs && judge; fi
    if ((first)) && [[ $OUTCOME == running ]]; then
        log "a run is going on already on $NAME" # which start.sh leaves alone if it is the same, and names if it is not
    else
        log "setting up $NAME"
        step setup && status=0 || status=$?
        ((status != 2)) || exit 2 # a mistake in the settings, in its own words
        if ((status)); then failed "$NAME is not set up" && continue; fi
    fi
    step start -- "${ARGS[@]}" && status=0 || status=$?
    ((status != 2)) || exit 2
    if ((status)); then failed "the run is not started" && continue; fi
    first=0
    SECONDS=0
    watch
    if ((SECONDS >= GOOD_RUN_S)); then failures=0; fi
    case $OUTCOME in
        'done')
            log "the run is done: $WHO"
            if [[ -z ${OPT_NO_FETCH:-} ]] && ! step fetch --logs --to "$target"; then
                log "its folder could not be fetched, so the slice stays, and costs money: fetch.sh, then delete.sh"
                exit 1
            fi
            finish 0
            ;;
        mistake)
            log "$WHO: this would happen again, so it is not restarted. Its last words:"
            step logs --worker "$BAD" --lines 20 --no-follow >&2 || true
            [[ -n ${OPT_NO_FETCH:-} ]] || step fetch --logs --to "$target" || true
            finish 1
            ;;
        stopped)
            log "$WHO, so the run is not started again; the slice $NAME is still there, and costs money until delete.sh has removed it"
            exit 143
            ;;
        crash)
            crashes=$((crashes + 1))
            if ((crashes > MAX_CRASHES)); then
                log "$WHO, for the $crashes. time: not restarted"
                [[ -n ${OPT_NO_FETCH:-} ]] || step fetch --logs --to "$target" || true
                finish 1
            fi
            failed "$WHO; crash $crashes of at most $MAX_CRASHES"
            ;;
        silent)
            log "$WHO: $NAME is deleted and created anew"
            remove
            failed "a worker was lost"
            ;;
        *) failed "the run has to go on from its last checkpoint: $WHO" ;;
    esac
done
