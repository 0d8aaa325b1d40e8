#!/usr/bin/env bash
# remote_job.sh: runs on a worker, where setup.sh puts it. Starts the run's process so that it outlives the connection,
# and knows how it is and how it ended.
#
#   remote_job.sh start -- ARGUMENTS   of python -m vero_jax.train
#   remote_job.sh status               one line: "vero-job: running", "exited 75", "stopped 143", "lost" or "absent"
#   remote_job.sh stop [--now]         SIGTERM, which saves and ends; a second one would end it unsaved, so only --now kills
#   remote_job.sh logs [LINES [follow]]
#   remote_job.sh pack FOLDER FILE [--checkpoints]   the run's folder as a compressed tar
#
# Exit status: 0, or 2 for a mistake and where there is nothing to show.
#
# --dry-run in the first place prints what would be done. In ~/vero/job: pid, train.pid, log, status (the exit status),
# command, stopped (somebody asked for the end).

set -euo pipefail

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
base=$(dirname "$source")
job=$base/job
train=("$base/venv/bin/python" -m vero_jax.train)

# A process by its number and the time of its start: numbers are used again, after a reboot very soon.
identity() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    [[ $stat != Z* ]] || return 1 # ended, and not yet missed by its parent
    printf '%s %s' "$1" "$(cut -d' ' -f20 <<<"$stat")"
}
alive() {
    local pid
    pid=$(cut -d' ' -f1 "$job/$1" 2>/dev/null) || return 1
    [[ $pid =~ ^[0-9]+$ ]] && ((pid > 1)) && [[ $(identity "$pid") == "$(cat "$job/$1")" ]]
}

state() {
    if alive pid; then
        echo running
    elif [[ -s $job/status ]]; then
        if [[ -e $job/stopped ]]; then echo "stopped $(cat "$job/status")"; else echo "exited $(cat "$job/status")"; fi
    elif [[ -s $job/pid ]]; then
        echo lost
    else
        echo absent
    fi
}

start() {
    [[ ${1:-} == -- ]] && shift
    local command
    printf -v command '%q ' "$@"
    if alive pid; then
        [[ $(cat "$job/command") == "$command" ]] || {
            echo "error: another run is going on here ($(cat "$job/command")); stop.sh ends it" >&2
            exit 2
        }
        echo "running already" && return 0
    fi
    mkdir -p "$job"
    rm -f "$job"/{pid,train.pid,status,stopped}
    printf '%s' "$command" >"$job/command"
    printf '\n=== %s: python -m vero_jax.train %s\n' "$(date -u '+%F %T')" "$command" >>"$job/log"
    # A session of its own, and no terminal: it does not end with the connection that starts it.
    setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" >>"$job/log" 2>&1 </dev/null &
    identity $! >"$job/pid" || echo "$! over" >"$job/pid" # so soon
    echo "started"
}

# The parent of the run's process: it writes down how that ended, whatever happens to the connection.
supervise() {
    local line interrupted status child
    cd "$source"
    export PYTHONUNBUFFERED=1
    if [[ -r $base/job.env ]]; then
        while IFS= read -r line || [[ -n $line ]]; do
            [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] && export "${line?}"
        done <"$base/job.env"
    fi
    # When a machine goes down, every process gets SIGTERM. It is not passed on: a second one would end the run unsaved.
    trap 'interrupted=1' TERM INT HUP
    "${train[@]}" "$@" &
    child=$!
    identity "$child" >"$job/train.pid" || true
    while :; do
        interrupted=0
        wait "$child" && status=0 || status=$?
        ((interrupted)) || break
    done
    echo "$status" >"$job/status.new"
    mv "$job/status.new" "$job/status"
    printf '=== %s: ended with status %s\n' "$(date -u '+%F %T')" "$status"
}

stop() {
    if ! alive pid; then
        echo "vero-job: $(state)" && return 0
    fi
    if [[ ${1:-} == --now ]]; then
        : >"$job/stopped"
        kill -KILL -- "-$(cut -d' ' -f1 "$job/pid")" # its whole session: supervisor, run, and reward workers
        echo 137 >"$job/status"
    elif [[ ! -e $job/stopped ]]; then
        : >"$job/stopped"
        if alive train.pid; then kill -TERM "$(cut -d' ' -f1 "$job/train.pid")"; fi
    fi
    echo "vero-job: $(state)"
}

logs() {
    [[ -e $job/log ]] || { echo "nothing was started on $(hostname)" >&2 && exit 2; }
    if [[ ${2:-} == follow ]]; then tail -n "${1:-50}" -F "$job/log"; else tail -n "${1:-50}" "$job/log"; fi
}

pack() {
    local folder=${1/#\~/$HOME} file=$2 leave_out=(--exclude=./checkpoints)
    [[ ${3:-} == --checkpoints ]] && leave_out=()
    [[ -d $folder ]] || { echo "error: there is no folder $folder on $(hostname)" >&2 && exit 2; }
    tar -C "$folder" "${leave_out[@]}" --exclude=./.lock -czf "$file" .
}

if [[ ${1:-} == --dry-run ]]; then
    shift
    printf 'in %q: ' "$job"
    if [[ ${1:-} == start ]]; then printf '%q ' setsid nohup "${train[@]}" "${@:3}" && echo; else printf '%q ' "$@" && echo; fi
    exit 0
fi
case ${1:---help} in
    --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" ;;
    status) echo "vero-job: $(state)" ;;
    start | supervise | stop | logs | pack) "$@" ;;
    *) echo "error: remote_job.sh does not know $1; see --help" >&2 && exit 2 ;;
esac
