#!/usr/bin/env bash
# A run on a GKE cluster that has JobSet and the Cloud Storage FUSE driver.
#
#   launch/gke.sh apply --kind=tpu --name=k400 --image=IMAGE --bucket=BUCKET --service-account=ACCOUNT \
#       --config=configs/k400_zsar.py --accelerator=tpu-v5-lite-podslice --topology=4x4 --nodes=4 --chips=4
#
# render   prints the JobSet     apply   starts it     delete   stops it (--name is enough)
#
# --kind             tpu or gpu
# --name             of the JobSet, and of the run's folder in the bucket; lower-case letters, digits, -
# --image            built from launch/gke/Dockerfile
# --bucket           a Cloud Storage bucket with a hierarchical namespace; holds data/, takes runs/NAME
# --service-account  of Kubernetes, allowed to write to the bucket
# --config           a file of configs/
# --accelerator      the nodes' label: tpu-v5-lite-podslice, tpu-v6e-slice, nvidia-h100-80gb ...
# --topology         of a TPU slice, e.g. 4x4
# --nodes --chips    how many nodes, and chips or GPUs of each
# --restarts         after so many preemptions or failures it gives up (default 20)
# --dry-run          shows the commands and runs none
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

KIND=${KIND:-} NAME=${NAME:-} IMAGE=${IMAGE:-} BUCKET=${BUCKET:-} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
CONFIG=${CONFIG:-} ACCELERATOR=${ACCELERATOR:-} TOPOLOGY=${TOPOLOGY:-} NODES=${NODES:-} CHIPS=${CHIPS:-}
RESTARTS=${RESTARTS:-20}
(($#)) || die "no command; give render, apply or delete (--help)"
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
  die "--name=$NAME: Kubernetes takes lower-case letters, digits and -, beginning with a letter"

render() {
  need KIND IMAGE BUCKET SERVICE_ACCOUNT CONFIG ACCELERATOR NODES CHIPS
  [[ $KIND == tpu || $KIND == gpu ]] || die "--kind=$KIND: give tpu or gpu"
  if [[ $KIND == tpu ]]; then need TOPOLOGY; fi
  BUCKET=${BUCKET#gs://}
  local text name
  text=$(<"launch/gke/$KIND.yaml")
  for name in NAME IMAGE BUCKET SERVICE_ACCOUNT CONFIG ACCELERATOR TOPOLOGY NODES CHIPS RESTARTS; do
    # What is filled in becomes part of YAML: only what can mean nothing else there.
    [[ ${!name} =~ ^[A-Za-z0-9._/:@-]*$ ]] || die "$name=${!name}: holds characters that no name here has"
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
    printf 'Nodes are charged while they are there (launch/README.md). Stop it: %s\n' \
      "launch/gke.sh delete --name=$NAME" >&2
    run kubectl apply --filename "$file"
    ;;
  delete) run kubectl delete jobset "$NAME" ;;
  *) die "$ACTION is not a command; give render, apply or delete" ;;
esac
