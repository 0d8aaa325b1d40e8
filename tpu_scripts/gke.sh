#!/usr/bin/env bash
# gke.sh: the run as a JobSet on a GKE cluster with TPU nodes. gke/jobset.yaml is what it makes of the example below.
#
#   tpu_scripts/gke.sh --image my-registry/vero_jax:1 --accelerator tpu-v5p-slice --topology 2x2x2 \
#       --name vero --shared-disk gs://my-bucket/vero [--print] [options] -- configs/qwen3_vl_8b.yaml
#
# The cluster needs JobSet and the Cloud Storage FUSE driver, and the service account must be allowed to write to the
# bucket. One pod to a host, all of one node pool. When a pod ends with 75 (a peer was lost) or 143 (SIGTERM), or its node
# is taken away, all are started again, at most --restarts times; any other status is a mistake and ends the JobSet.
#
#   --image I             of gke/Dockerfile
#   --accelerator A       tpu-v5p-slice, tpu-v6e-slice, tpu-v5-lite-podslice, tpu-v4-podslice
#   --topology T          chips along each axis, such as 2x2x2 or 4x4
#   --chips-per-host N    (default: 4)
#   --kubernetes-account  Kubernetes service account (default: default)
#   --restarts N          (default: 50)
#   --print               print the manifest; without it, kubectl applies it
#   kubectl delete jobset NAME    ends and removes it; kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME -c train follows it
#
# Exit status: 0 the manifest is printed or applied, 2 a mistake, else kubectl's own.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
FLAGS=(--print)
VALUES=(--image --accelerator --topology --chips-per-host --kubernetes-account --restarts)
begin "$@"
: "${OPT_IMAGE=}" "${OPT_ACCELERATOR=}" "${OPT_TOPOLOGY=}" "${OPT_CHIPS_PER_HOST:=4}"
: "${OPT_KUBERNETES_ACCOUNT:=default}" "${OPT_RESTARTS:=50}"
need NAME SHARED_DISK
for option in IMAGE ACCELERATOR TOPOLOGY; do
    value=OPT_$option
    [[ -n ${!value} ]] || fail "--${option,,} must be given; see --help"
done
need_shape OPT_IMAGE '^[a-z0-9][A-Za-z0-9._/:@-]*$' 'the name of an image'
need_shape OPT_ACCELERATOR '^[a-z0-9-]+$' 'a type of GKE, such as tpu-v5p-slice'
need_shape OPT_TOPOLOGY '^[1-9][0-9]*(x[1-9][0-9]*){1,2}$' 'chips along each axis, such as 2x2x2'
need_shape OPT_CHIPS_PER_HOST '^[1-9][0-9]*$' 'a whole number from 1'
need_shape OPT_RESTARTS '^[0-9]+$' 'a whole number'
need_shape OPT_KUBERNETES_ACCOUNT '^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$' 'the name of a Kubernetes service account'
[[ $SHARED_DISK == gs://* ]] || fail "SHARED_DISK must be a bucket here (gs://bucket/folder), not '$SHARED_DISK'"
if ((${#ARGS[@]} == 0)); then read -r -a ARGS <<<"$TRAIN_ARGS"; fi
((${#ARGS[@]})) || fail "what is to be trained? Give the arguments of python -m vero_jax.train behind --, or set TRAIN_ARGS"

chips=$((${OPT_TOPOLOGY//x/*}))
hosts=$((chips / OPT_CHIPS_PER_HOST))
((hosts * OPT_CHIPS_PER_HOST == chips && hosts > 0)) ||
    fail "--topology $OPT_TOPOLOGY has $chips chips, which are not whole hosts of --chips-per-host $OPT_CHIPS_PER_HOST"
place=${SHARED_DISK#gs://} && bucket=${place%%/*} && folder=${place#"$bucket"} && folder=${folder#/} && folder=${folder%/}

# Between single quotes YAML knows no escapes but the doubled quote.
yaml_list() {
    local word
    for word in "$@"; do
        [[ $word != *[$'\n\t\r']* ]] || fail "an argument with a line break cannot stand in a manifest: $word"
        printf "                - '%s'\n" "${word//\'/\'\'}"
    done
}

manifest() {
    cat <<YAML
# Made by tpu_scripts/gke.sh, whose --help says how; kubectl apply -f starts it, kubectl delete jobset $NAME ends it.
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    # All pods on one slice, and nothing else on it.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $OPT_RESTARTS
    rules:
      # A mistake would happen again. Everything else (BackoffLimitExceeded) starts all pods anew.
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0 # one pod alone cannot be started again: the others have ended with it
          podFailurePolicy:
            rules:
              # The node was taken away, whatever status the container had time for.
              - action: Count
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True" # Job has it as a default, JobSet asks for it
              # 75: a peer was lost; 143: SIGTERM. Both go on from the last checkpoint.
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: NotIn
                  values: [75, 143]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              serviceAccountName: $OPT_KUBERNETES_ACCOUNT
              terminationGracePeriodSeconds: 600 # longer than a step and saving it
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $OPT_ACCELERATOR
                cloud.google.com/gke-tpu-topology: $OPT_TOPOLOGY
YAML
    if ((SPOT)); then printf '                cloud.google.com/gke-spot: "true"\n'; fi
    cat <<YAML
              containers:
              - name: train
                image: $OPT_IMAGE
                command: [python, -m, vero_jax.train]
                args:
YAML
    yaml_list "${ARGS[@]}" "run_dir=/shared/runs/$(run_name)" "trainer.checkpoint_dir=$(checkpoint_path)"
    cat <<YAML
                env:
                - name: PYTHONUNBUFFERED
                  value: "1"
                ports:
                - containerPort: 8471 # between the hosts' TPU runtimes
                - containerPort: 8476 # jax's coordinator
                resources:
                  limits:
                    google.com/tpu: $OPT_CHIPS_PER_HOST
                volumeMounts:
                - name: shared
                  mountPath: /shared
                - name: shm
                  mountPath: /dev/shm
              volumes:
              - name: shared
                csi:
                  driver: gcsfuse.csi.storage.gke.io
                  volumeAttributes:
                    bucketName: $bucket
                    # Without a cache of what exists: what one host writes, the others must see at once.
                    mountOptions: "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0${folder:+,only-dir:$folder}"
              - name: shm # readers of data pass pictures through it, and a container's own has 64 MB
                emptyDir:
                  medium: Memory
YAML
}

if [[ -n ${OPT_PRINT:-} ]]; then
    manifest
elif ((DRY_RUN)); then
    printf "kubectl apply --filename=- <<'MANIFEST'\n%s\nMANIFEST\n" "$(manifest)"
else
    need_tool kubectl Kubernetes
    manifest | kubectl apply --filename=-
    say "$NAME is asked for; it costs money until it is done, or: kubectl delete jobset $NAME"
fi
