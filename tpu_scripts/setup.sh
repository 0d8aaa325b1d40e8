#!/usr/bin/env bash
# setup.sh: bring this checkout to every worker of the slice, install it there, and mount the shared folder.
#
#   tpu_scripts/setup.sh [options]
#
# Needs PROJECT, ZONE and NAME. All files of the checkout that git does not ignore are copied, as they are now, without
# tests and docs. Running it again brings what has changed. JOB_ENV_FILE (lines KEY=VALUE, such as a token) goes to each worker as a private file.
#
# Exit status: 0 when every worker is ready, 1 when some are not (each is named), 2 a mistake in the settings,
# 3 there is no slice to set up.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "$@"
need PROJECT ZONE NAME
need_gcloud
if [[ -n $JOB_ENV_FILE && ! -r $JOB_ENV_FILE ]]; then fail "JOB_ENV_FILE=$JOB_ENV_FILE cannot be read"; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the workers get. Names come with a zero byte at the end, so that any name is only a name.
list_files() {
    if git -C "$REPO" ls-files --error-unmatch pyproject.toml >/dev/null 2>&1; then
        local file
        git -C "$REPO" ls-files -z --cached --others --exclude-standard -- . ':!tests' ':!docs' | while IFS= read -r -d '' file; do
            if [[ -e $REPO/$file ]]; then printf '%s\0' "$file"; fi
        done
    else
        (cd "$REPO" && find pyproject.toml README.md LICENSE constraints.txt configs vero_jax tpu_scripts -type f \
            ! -path '*/__pycache__/*' -print0)
    fi
}
upload=$work/vero_jax_source.tgz
if ((DRY_RUN)); then
    echo "# $upload: the files of $REPO" >&3
else
    list_files >"$work/files"
    tar -C "$REPO" --null -T "$work/files" -czf "$upload"
    chmod 600 "$upload"
fi
things=("$upload")
if [[ -n $JOB_ENV_FILE ]]; then
    cp "$JOB_ENV_FILE" "$work/vero_job.env"
    chmod 600 "$work/vero_job.env"
    things+=("$work/vero_job.env")
fi

unpack="mkdir -p $REMOTE && rm -rf $REMOTE/src.new && mkdir $REMOTE/src.new"
unpack+=" && tar -xzf vero_jax_source.tgz -C $REMOTE/src.new && rm vero_jax_source.tgz && rm -rf $REMOTE/src && mv $REMOTE/src.new $REMOTE/src"
if [[ -n $JOB_ENV_FILE ]]; then unpack+=" && chmod 600 vero_job.env && mv vero_job.env $REMOTE/job.env"; fi
install="bash $REMOTE/src/tpu_scripts/remote_setup.sh $(remote --python "$PYTHON_VERSION" ${SHARED_DISK:+--share "$SHARED_DISK"} ${INSTALL_GCSFUSE:+--install-gcsfuse "$INSTALL_GCSFUSE"})"

set_up() {
    scp_worker "$1" "${things[@]}" "$NAME:" && ssh_worker "$1" "$unpack && $install"
}

need_slice
if ! on_workers "$work" set_up; then
    name_failures "$work" 'could not be set up'
    exit 1
fi
((DRY_RUN)) || say "$WORKERS worker(s) of $NAME are set up; worker 0 says: $(last_words "$work/worker-0.log")"
