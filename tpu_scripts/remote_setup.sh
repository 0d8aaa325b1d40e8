#!/usr/bin/env bash
# remote_setup.sh: runs on a worker, where setup.sh puts it. Makes the Python environment, installs vero_jax from the
# source that came with this file, and mounts the shared folder. Running it again does what is missing.
#
#   remote_setup.sh [--python 3.12] [--share gs://bucket/folder | host:/share | /folder] [--install-gcsfuse COMMAND]
#       [--dry-run]
#
# Exit status: 0 when all is there, else that of what failed; 2 a mistake in the settings.

set -euo pipefail

python=3.12 share='' gcsfuse='' dry_run=0
while (($#)); do
    case $1 in
        --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
        --dry-run) dry_run=1 && shift ;;
        --python | --share | --install-gcsfuse)
            (($# > 1)) || { echo "error: $1 needs a value" >&2 && exit 2; }
            case $1 in --python) python=$2 ;; --share) share=$2 ;; *) gcsfuse=$2 ;; esac
            shift 2
            ;;
        *) echo "error: remote_setup.sh has no option $1; see --help" >&2 && exit 2 ;;
    esac
done

run() { if ((dry_run)); then printf '%q ' "$@" && echo; else "$@"; fi; }
apt() { run sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq "$@"; } # new machines update themselves first

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
base=$(dirname "$source")
mount=$base/shared
export PATH="$HOME/.local/bin:$PATH"

# --- Python: the images of TPU VMs have 3.10, vero_jax needs 3.11. uv brings its own where the system has none.
if ! command -v uv >/dev/null; then run python3 -m pip install --quiet --user uv; fi
if [[ ! -x $base/venv/bin/python ]]; then run uv venv --quiet --python "$python" "$base/venv"; fi
run uv pip install --quiet --python "$base/venv/bin/python" --editable "${source}[tpu,gcs]" --constraint "$source/constraints.txt"

# --- the folder that all workers share
install_gcsfuse() {
    command -v gcsfuse >/dev/null && return 0
    if [[ -n $gcsfuse ]]; then
        run bash -c "$gcsfuse"
        return
    fi
    apt update
    if ! apt install -y gcsfuse; then
        echo "error: this image has no gcsfuse and its package sources have none; set INSTALL_GCSFUSE to a command that installs it" >&2
        exit 2
    fi
}

case $share in
    '') ;;
    /*)
        if ! ((dry_run)) && [[ ! -w $share ]]; then
            echo "error: SHARED_DISK=$share is no folder that $(whoami) can write to on $(hostname)" >&2
            exit 2
        fi
        ;;
    *)
        run mkdir -p "$mount"
        if mountpoint -q "$mount"; then
            : # from the time before
        elif [[ $share == gs://* ]]; then
            install_gcsfuse
            place=${share#gs://} && bucket=${place%%/*} && folder=${place#"$bucket"} && folder=${folder#/} && folder=${folder%/}
            # Without a cache of what exists: what one host writes, the others must see at once.
            run gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
                --rename-dir-limit=100000 ${folder:+"--only-dir=$folder"} "$bucket" "$mount"
        else
            if ! command -v mount.nfs >/dev/null; then
                apt update
                apt install -y nfs-common
            fi
            # Hosts must see each other's files at once here, too.
            run sudo mount -t nfs -o hard,actimeo=1 "$share" "$mount"
            # A new share belongs to root.
            if [[ ! -w $mount ]]; then run sudo chown "$(id -u):$(id -g)" "$mount"; fi
        fi
        if ! ((dry_run)); then
            { probe=$(mktemp "$mount/.writable-XXXXXXXX") && rm "$probe"; } || { echo "error: $share can be mounted, but not written to" >&2 && exit 2; }
        fi
        ;;
esac

# Not the devices: one worker alone would wait for the others.
run "$base/venv/bin/python" -c 'import importlib.metadata, sys, vero_jax, jax; print("ready: Python", sys.version.split()[0], "jax", jax.__version__, "libtpu", importlib.metadata.version("libtpu"))'
