# shellcheck shell=bash
# What the scripts of this folder share: settings, options, printing or running a command, and asking gcloud. It is
# sourced, never run. A script sets FLAGS and VALUES (its own options) and calls `begin "$@"`.

# Much of what is set here is for the scripts that source it.
# shellcheck disable=SC2034

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: these scripts need bash 4.4 or newer, and this is $BASH_VERSION (macOS: install a newer bash)" >&2
    exit 2
fi

TRY_AGAIN=75 # EX_TEMPFAIL of sysexits.h, as vero_jax ends when a peer is lost: the same command may succeed later
NOT_READY=3  # there is no slice to work with
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$HERE")
REMOTE=vero # the folder of all that these scripts make on a worker, under its home

# Settings and their defaults, which slice.env and options of the same name (--name, --accelerator-type) replace.
# slice.env.example says what each is for.
SETTINGS=(PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION QUEUED SPOT RESERVED VALID_UNTIL NETWORK SUBNETWORK
    SERVICE_ACCOUNT INTERNAL_IPS LABELS SHARED_DISK INSTALL_GCSFUSE CHECKPOINT_DIR RUN TRAIN_ARGS JOB_ENV_FILE PYTHON_VERSION
    SSH_PARALLEL POLL_S WAIT_S STOP_S BACKOFF_S BACKOFF_MAX_S GOOD_RUN_S MAX_ATTEMPTS MAX_CRASHES)
PROJECT='' ZONE='' NAME='' ACCELERATOR_TYPE='' RUNTIME_VERSION=''
QUEUED=1 SPOT=0 RESERVED=0 VALID_UNTIL='' NETWORK='' SUBNETWORK='' SERVICE_ACCOUNT='' INTERNAL_IPS=0 LABELS=''
SHARED_DISK='' INSTALL_GCSFUSE='' CHECKPOINT_DIR='' RUN='' TRAIN_ARGS='' JOB_ENV_FILE='' PYTHON_VERSION=3.12
SSH_PARALLEL=16 POLL_S=60 WAIT_S=0 STOP_S=900
BACKOFF_S=60 BACKOFF_MAX_S=1800 GOOD_RUN_S=1800 MAX_ATTEMPTS=10 MAX_CRASHES=2

FLAGS=()    # options without a value; --keep sets OPT_KEEP=1
VALUES=()   # options with one; --worker 3 sets OPT_WORKER=3
ARGS=()     # what stands behind --
PASS=()     # settings as they were given, for a script that calls another
DRY_RUN=0   # 1: print each command and run none
ENV_FILE='' # of --env
exec 3>&1   # where commands are printed to, also from inside $(...)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

say() { printf '%s\n' "$*" >&2; }

# Prints a command as one would type it.
show() {
    local word line=''
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
            line+=" $word"
        elif [[ $word =~ ^[[:print:]]+$ && $word != *\'* ]]; then
            line+=" '$word'"
        else
            line+=" $(printf '%q' "$word")"
        fi
    done
    printf '%s\n' "${line# }" >&3
}

run() { if ((DRY_RUN)); then show "$@"; else "$@"; fi; }

# The comment at the head of the script, which is its help, and what all scripts have in common.
usage() {
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    cat <<'HELP'

Options of every script:
  --env FILE   settings to read (default: slice.env beside the scripts, if it is there)
  --SETTING V  any setting of slice.env.example, in lower case with dashes: --name, --zone, --accelerator-type, ...
  --dry-run    print every command, quoted for a shell, and run none
  --help       this text
HELP
}

contains() {
    local wanted=$1 one
    shift
    for one in "$@"; do [[ $one == "$wanted" ]] && return 0; done
    return 1
}

# Lines KEY=VALUE. They are read, not run: a file of settings is no program.
load_settings() {
    local file=$1 line key value number=0
    [[ -r $file ]] || fail "the file of settings $file cannot be read"
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        [[ $line =~ ^[[:space:]]*([A-Z_]+)=(.*)$ ]] || fail "$file, line $number, is not KEY=VALUE: $line"
        key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        contains "$key" "${SETTINGS[@]}" || fail "$file, line $number: $key is no setting; there are ${SETTINGS[*]}"
        if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
        printf -v "$key" '%s' "$value"
    done <"$file"
}

# Reads the options, then the settings: what stands on the command line wins.
begin() {
    local given=() option key value
    while (($#)); do
        option=$1
        shift
        case $option in
            --help | -h)
                usage
                exit 0
                ;;
            --dry-run) DRY_RUN=1 && continue ;;
            --) ARGS=("$@") && break ;;
            --*) ;;
            *) fail "$(basename "$0") takes no argument $option; see --help" ;;
        esac
        key=${option%%=*}
        if contains "$key" "${FLAGS[@]}"; then
            [[ $option == "$key" ]] || fail "$key takes no value"
            key=${key#--} && key=${key^^}
            printf -v "OPT_${key//-/_}" 1
            continue
        fi
        value=${key#--} && value=${value^^} && value=${value//-/_}
        contains "$key" --env "${VALUES[@]}" || contains "$value" "${SETTINGS[@]}" ||
            fail "$(basename "$0") has no option $key; see --help"
        if [[ $option == *=* ]]; then
            given+=("$value" "${option#*=}")
        else
            (($#)) || fail "$key needs a value"
            given+=("$value" "$1")
            shift
        fi
    done
    set -- "${given[@]}"
    while (($#)); do
        case $1 in ENV) ENV_FILE=$2 ;; esac
        shift 2
    done
    if [[ -z $ENV_FILE && -f $HERE/slice.env ]]; then ENV_FILE=$HERE/slice.env; fi
    if [[ -n $ENV_FILE ]]; then
        load_settings "$ENV_FILE"
        PASS+=(--env "$ENV_FILE")
    fi
    set -- "${given[@]}"
    while (($#)); do
        if contains "$1" "${SETTINGS[@]}"; then
            printf -v "$1" '%s' "$2"
            key=${1,,}
            PASS+=("--${key//_/-}" "$2")
        elif [[ $1 != ENV ]]; then
            printf -v "OPT_$1" '%s' "$2"
        fi
        shift 2
    done
    check_settings
}

# Everything that ends up in a command, in the shape that it must have.
check_settings() {
    local key
    need_shape NAME '^[a-z]([-a-z0-9]{0,58}[a-z0-9])?$' 'small letters, digits and dashes'
    need_shape PROJECT '^[a-z0-9][-a-z0-9.:]*$' 'the id of a project'
    need_shape ZONE '^[a-z]+-[a-z]+[0-9]+-[a-z]$' 'a zone, such as us-east5-a'
    need_shape ACCELERATOR_TYPE '^[A-Za-z0-9-]+$' 'a type, such as v5p-16'
    need_shape RUNTIME_VERSION '^[A-Za-z0-9.-]+$' 'a version, such as v2-alpha-tpuv5'
    need_shape RUN '^[A-Za-z0-9][A-Za-z0-9._-]*$' "a folder's name of letters, digits, dots, dashes and underscores"
    need_shape CHECKPOINT_DIR '^(gs://[a-z0-9][-a-z0-9._]*/|/|~/)[A-Za-z0-9._/=-]+$' 'a gs:// path or an absolute folder'
    need_shape SHARED_DISK '^(gs://[a-z0-9][-a-z0-9._]*(/[A-Za-z0-9._/=-]*)?|[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]+|/[A-Za-z0-9._/-]+)$' \
        'gs://bucket/folder, host:/share of an NFS server, or a folder that every worker has'
    # These have defaults, and none of them can be empty.
    need_value PYTHON_VERSION '^3\.[0-9]+$' 'a version, such as 3.12'
    for key in QUEUED SPOT RESERVED INTERNAL_IPS; do need_value "$key" '^[01]$' '0 or 1'; done
    for key in SSH_PARALLEL MAX_ATTEMPTS; do need_value "$key" '^[1-9][0-9]*$' 'a whole number from 1'; done
    for key in MAX_CRASHES WAIT_S STOP_S BACKOFF_S BACKOFF_MAX_S GOOD_RUN_S; do
        need_value "$key" '^[0-9]+$' 'a whole number'
    done
    need_value POLL_S '^[0-9]+(\.[0-9]+)?$' 'a number of seconds'
    if ((SPOT && RESERVED)); then fail "SPOT and RESERVED exclude each other"; fi
    if [[ -n $VALID_UNTIL ]] && ! ((QUEUED)); then fail "VALID_UNTIL is for a queued request; set QUEUED=1, too"; fi
}

need_shape() { [[ -z ${!1} ]] || need_value "$@"; }

need_value() {
    local key=$1 shape=$2 what=$3
    # --worker is kept in OPT_WORKER
    local name=$key
    if [[ $key == OPT_* ]]; then name=${key#OPT_} && name=--${name,,} && name=${name//_/-}; fi
    [[ ${!key} =~ $shape ]] || fail "$name must be $what, not '${!key}'"
}

need() {
    local key missing=()
    for key in "$@"; do [[ -n ${!key} ]] || missing+=("$key"); done
    ((${#missing[@]} == 0)) ||
        fail "${missing[*]} must be set, in ${ENV_FILE:-$HERE/slice.env (see slice.env.example)} or as an option of that name"
}

# need_tool NAME WHERE_FROM
need_tool() { ((DRY_RUN)) || command -v "$1" >/dev/null || fail "there is no $1 on the PATH here; it comes with $2"; }
need_gcloud() { need_tool gcloud 'the Google Cloud SDK'; }

# --- gcloud

place() { printf '%s\n' "--project=$PROJECT" "--zone=$ZONE" --quiet; }

# tpus GROUP VERB NAME [FLAG...]: one command of `gcloud compute tpus`, run or printed.
tpus() {
    local where
    mapfile -t where < <(place)
    run gcloud compute tpus "$@" "${where[@]}"
}

# Sets STATE (ABSENT, WAITING, READY, GONE, FAILED or UNKNOWN), DETAIL (in gcloud's words) and WORKERS.
look_at_slice() {
    STATE=UNKNOWN DETAIL='' WORKERS=0
    if ((QUEUED)); then
        if ! ask queued-resources describe "$NAME" --format='value(state.state)'; then return 0; fi
        if ((DRY_RUN)); then ANSWER=ACTIVE; fi
        DETAIL=$ANSWER
        case $ANSWER in
            ACTIVE) ;;
            SUSPENDING | SUSPENDED | DELETING) STATE=GONE ;;
            FAILED) STATE=FAILED ;;
            *) STATE=WAITING ;;
        esac
        [[ $ANSWER == ACTIVE ]] || return 0
    fi
    if ! ask tpu-vm describe "$NAME" --format='value(state,networkEndpoints.len())'; then
        # An active request whose node is gone is one that was preempted a moment ago.
        if ((QUEUED)) && [[ $STATE == ABSENT ]]; then STATE=GONE; fi
        return 0
    fi
    if ((DRY_RUN)); then ANSWER=$'READY\t1'; fi
    read -r DETAIL WORKERS <<<"$ANSWER" || true
    case $DETAIL in
        READY) if [[ $WORKERS =~ ^[1-9][0-9]*$ ]]; then STATE=READY; else DETAIL='READY, without workers'; fi ;;
        PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | UNKNOWN) STATE=GONE ;;
        *) STATE=WAITING ;;
    esac
}

# Sets ANSWER to what a describe prints. Where it fails, STATE says whether the thing is absent or nobody knows.
ask() {
    local errors
    errors=$(mktemp)
    if ANSWER=$(tpus "$@" 2>"$errors"); then
        rm -f "$errors"
        return 0
    fi
    DETAIL=$(tail -n 3 "$errors" | tr '\n' ' ')
    if grep -qE 'NOT_FOUND|was not found' "$errors"; then STATE=ABSENT DETAIL='not there'; else STATE=UNKNOWN; fi
    rm -f "$errors"
    return 1
}

# Ends the script, in a sentence, unless the slice can be worked with.
need_slice() {
    local why
    look_at_slice
    case $STATE in
        READY) return 0 ;;
        ABSENT) why="there is no slice $NAME in $ZONE; create.sh makes one" ;;
        WAITING) why="the slice $NAME is not ready ($DETAIL); create.sh waits for it" ;;
        GONE | FAILED) why="the slice $NAME is of no use any more ($DETAIL); delete.sh removes it, create.sh makes a new one" ;;
        *) why="gcloud does not tell the state of $NAME: $DETAIL" ;;
    esac
    say "error: $why"
    exit "$NOT_READY"
}

# --- workers

# Connections that do not come about, or fall silent, end within a minute or two instead of never.
SSH_OPTIONS=(-oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=4)

ssh_worker() {
    local worker=$1 command=$2 flags=()
    if ((INTERNAL_IPS)); then flags+=(--internal-ip); fi
    tpus tpu-vm ssh "$NAME" --worker="$worker" --command="$command" "${SSH_OPTIONS[@]/#/--ssh-flag=}" "${flags[@]}"
}

# scp_worker N SOURCE... TARGET
scp_worker() {
    local worker=$1 flags=()
    shift
    if ((INTERNAL_IPS)); then flags+=(--internal-ip); fi
    tpus tpu-vm scp "$@" --worker="$worker" "${SSH_OPTIONS[@]/#/--scp-flag=}" "${flags[@]}"
}

# remote WORD...: the words as one command of a worker's shell.
remote() {
    local line
    printf -v line '%q ' "$@"
    printf '%s' "${line% }"
}

job() { remote bash "$REMOTE/src/tpu_scripts/remote_job.sh" "$@"; }

# on_workers FOLDER FUNCTION [ARG...]: FUNCTION WORKER ARG... for all workers, SSH_PARALLEL at a time. What each prints
# goes to FOLDER/worker-N.log, how it ends to FOLDER/worker-N.status. FAILED_WORKERS holds those that failed.
#
# One gcloud for each worker, and not one with --worker=all: that one needs an ssh agent, and its exit status does not
# say whose it is.
on_workers() {
    local folder=$1 worker running=0
    shift
    FAILED_WORKERS=()
    if ((DRY_RUN)); then
        echo '# on every worker, here the first:' >&3
        "$1" 0 "${@:2}"
        return 0
    fi
    for ((worker = 0; worker < WORKERS; worker++)); do
        (
            # A status of its own, whatever `set -e` is in the caller's condition.
            "$1" "$worker" "${@:2}" >"$folder/worker-$worker.log" 2>&1 && status=0 || status=$?
            echo "$status" >"$folder/worker-$worker.status"
        ) &
        running=$((running + 1))
        # The first connection makes the key and tells the slice of it; several at a time would do so all at once.
        if ((worker == 0 || running >= SSH_PARALLEL)); then
            wait
            running=0
        fi
    done
    wait
    for ((worker = 0; worker < WORKERS; worker++)); do
        if [[ $(cat "$folder/worker-$worker.status" 2>/dev/null || echo 1) != 0 ]]; then FAILED_WORKERS+=("$worker"); fi
    done
    ((${#FAILED_WORKERS[@]} == 0))
}

# name_failures FOLDER WHAT: one sentence for each worker of FAILED_WORKERS.
name_failures() {
    local folder=$1 what=$2 worker
    for worker in "${FAILED_WORKERS[@]}"; do
        say "error: worker $worker of $WORKERS $what (status $(cat "$folder/worker-$worker.status")): $(last_words "$folder/worker-$worker.log")"
    done
}

last_words() { grep -v '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1 || true; }

# Sets JOBS[worker] to what its remote_job.sh says: running, absent, lost, "exited N", "stopped N"; or "unreachable".
look_at_jobs() {
    local folder worker word
    JOBS=()
    folder=$(mktemp -d)
    on_workers "$folder" job_state || true
    for ((worker = 0; worker < WORKERS; worker++)); do
        word=$(sed -n 's/^vero-job: //p' "$folder/worker-$worker.log" 2>/dev/null | tail -n 1) || true
        JOBS[worker]=${word:-unreachable}
    done
    rm -rf "$folder"
}

job_state() { ssh_worker "$1" "$(job status)"; }

# --- where a run is

# Name of the run's folder.
run_name() { printf '%s' "${RUN:-$NAME}"; }

# The folder of shared things as a worker sees it; its own shell or vero_jax puts its home for the tilde.
# shellcheck disable=SC2088
share_path() {
    case $SHARED_DISK in
        /*) printf '%s' "${SHARED_DISK%/}" ;;
        '') printf '%s' "~/$REMOTE" ;;
        *) printf '%s' "~/$REMOTE/shared" ;;
    esac
}

run_path() { printf '%s/runs/%s' "$(share_path)" "$(run_name)"; }

# Where checkpoints go; empty: into the run's folder. A bucket takes them directly, because renaming a folder of a
# mounted bucket is many small steps.
checkpoint_path() {
    if [[ -n $CHECKPOINT_DIR ]]; then
        printf '%s' "$CHECKPOINT_DIR"
    elif [[ $SHARED_DISK == gs://* ]]; then
        printf '%s/checkpoints/%s' "${SHARED_DISK%/}" "$(run_name)"
    fi
}
