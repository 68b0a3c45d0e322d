#!/usr/bin/env bash
# Runs training on a GKE cluster that has JobSet and the Cloud Storage FUSE driver.
#
#   launch/gke.sh apply --kind=tpu --name=k400 --image=IMAGE --bucket=BUCKET --service-account=ACCOUNT \
#       --config=configs/k400_zsar.py --accelerator=tpu-v5-lite-podslice --topology=4x4 --nodes=4 --chips=4
#
# render   prints the JobSet
# apply    creates the JobSet, which starts the run
# delete   deletes the JobSet; needs only --name
#
# --kind             tpu or gpu
# --name             name of the JobSet and of the run's folder; lower-case letters, digits, -
# --image            container image built from launch/gke/Dockerfile
# --bucket           Cloud Storage bucket with a hierarchical namespace: reads data/, writes runs/NAME
# --service-account  Kubernetes service account with write access to the bucket
# --config           config file, relative to the repository: configs/k400_zsar.py
# --accelerator      node label: tpu-v5-lite-podslice, tpu-v6e-slice, nvidia-h100-80gb ...
# --topology         topology of the TPU slice, e.g. 4x4
# --nodes --chips    number of nodes; TPU chips or GPUs per node
# --restarts         maximum number of restarts after preemptions and failures (default 20)
# --dry-run          prints the commands without running them
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

KIND=${KIND:-} NAME=${NAME:-} IMAGE=${IMAGE:-} BUCKET=${BUCKET:-} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
CONFIG=${CONFIG:-} ACCELERATOR=${ACCELERATOR:-} TOPOLOGY=${TOPOLOGY:-} NODES=${NODES:-} CHIPS=${CHIPS:-}
RESTARTS=${RESTARTS:-20}
(($#)) || die "no command; the first argument must be render, apply or delete (see --help)"
ACTION=$1
shift
[[ $ACTION == --help ]] && { help; exit 0; }
while (($#)); do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry_run ;;
    *) take "$1" KIND NAME IMAGE BUCKET SERVICE_ACCOUNT CONFIG ACCELERATOR TOPOLOGY NODES CHIPS RESTARTS ;;
  esac
  shift
done
need NAME
[[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  die "--name=$NAME: a Kubernetes name has lower-case letters, digits and -, and starts with a letter"

render() {
  need KIND IMAGE BUCKET SERVICE_ACCOUNT CONFIG ACCELERATOR NODES CHIPS
  [[ $KIND == tpu || $KIND == gpu ]] || die "--kind=$KIND: must be tpu or gpu"
  if [[ $KIND == tpu ]]; then need TOPOLOGY; fi
  BUCKET=${BUCKET#gs://}
  local text name
  text=$(<"launch/gke/$KIND.yaml")
  for name in NAME IMAGE BUCKET SERVICE_ACCOUNT CONFIG ACCELERATOR TOPOLOGY NODES CHIPS RESTARTS; do
    # The values become part of YAML, so allow only characters without a meaning in YAML.
    [[ ${!name} =~ ^[A-Za-z0-9._/:@-]*$ ]] ||
      die "$name=${!name}: only letters, digits and ._/:@- are allowed"
    text=${text//"\${$name}"/"${!name}"}
  done
  printf '%s\n' "$text"
}

case $ACTION in
  render) render ;;
  apply)
    file=$(mktemp "${TMPDIR:-/tmp}/jobset.XXXXXX")
    trap 'rm -f "$file"' EXIT
    render >"$file"
    printf 'Nodes are charged while they exist (launch/README.md). To stop the run: %s\n' \
      "launch/gke.sh delete --name=$NAME" >&2
    run kubectl apply --filename "$file"
    ;;
  delete) run kubectl delete jobset "$NAME" ;;
  *) die "$ACTION is not a command; use render, apply or delete" ;;
esac
