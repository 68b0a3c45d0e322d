#!/usr/bin/env bash
# A run on a Cloud TPU slice, by way of a queued resource.
#
#   launch/tpu_pod.sh up --project=PROJECT --zone=ZONE --accelerator=v5litepod-256 \
#       --runtime=v2-alpha-tpuv5-lite --name=k400 --bucket=BUCKET --spot -- --config=configs/k400_zsar.py
#
# up       create, wait, copy, set up, run; created again where it was preempted; deleted when the run is done
# create   asks for the slice              copy     this commit and its environment, on all workers
# run      starts the run, or goes on      status   the state of the queued resource
# delete   gives the slice back: nothing is charged for it from then on
#
# --project --zone --accelerator --runtime    as gcloud names them
# --name      of the queued resource, its node, and the run's folder in the bucket
# --bucket    a Cloud Storage bucket with a hierarchical namespace; it holds data/ and takes runs/NAME
# --spot      cheaper, may be taken back at any time
# --poll      seconds between two looks at the state (default 30)
# --dry-run   shows the commands and runs none
# After -- come the flags of coco_jax.main.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

PROJECT=${PROJECT:-} ZONE=${ZONE:-} ACCELERATOR=${ACCELERATOR:-} RUNTIME=${RUNTIME:-}
NAME=${NAME:-} BUCKET=${BUCKET:-} POLL=${POLL:-30} SPOT=''
(($#)) || die "no command; give up, create, copy, run, status or delete (--help)"
ACTION=$1
shift
[[ $ACTION == --help ]] && { help; exit 0; }
while (($#)); do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry_run ;;
    --spot) SPOT=--spot ;;
    --) shift; break ;;
    *) take "$1" PROJECT ZONE ACCELERATOR RUNTIME NAME BUCKET POLL ;;
  esac
  shift
done
need PROJECT ZONE NAME
BUCKET=${BUCKET#gs://}
flags=("$@") where=("--project=$PROJECT" "--zone=$ZONE")
queued=(gcloud compute tpus queued-resources) vm=(gcloud compute tpus tpu-vm)

state() {
  "${queued[@]}" describe "$NAME" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

create() {
  need ACCELERATOR RUNTIME
  printf 'A slice costs money from its creation to its deletion (launch/README.md). Stop it: %s\n' \
    "$(quoted launch/tpu_pod.sh delete "--name=$NAME" "${where[@]}")" >&2
  run "${queued[@]}" create "$NAME" "--node-id=$NAME" "${where[@]}" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" ${SPOT:+"$SPOT"}
}

delete() {
  run "${queued[@]}" delete "$NAME" "${where[@]}" --force --quiet
}

on_all() {
  run "${vm[@]}" ssh "$NAME" "${where[@]}" --worker=all "--command=$(quoted "$@")"
}

copy() {
  need BUCKET
  # One chain: where `if` asks whether this succeeds, the shell would not stop at a failure.
  run git archive --format=tar.gz --output=coco_jax.tar.gz HEAD &&
    run "${vm[@]}" scp coco_jax.tar.gz "$NAME:" "${where[@]}" --worker=all &&
    on_all mkdir -p coco_jax &&
    on_all tar -xzf coco_jax.tar.gz -C coco_jax &&
    on_all bash coco_jax/launch/tpu_worker.sh setup "$BUCKET"
}

start() {
  need BUCKET
  ((${#flags[@]})) || die "no flags for coco_jax.main; give them after --, e.g. -- --config=configs/k400_zsar.py"
  on_all bash coco_jax/launch/tpu_worker.sh run "$NAME" "${flags[@]}"
}

finished() {
  gcloud storage ls "gs://$BUCKET/runs/$NAME/results.json" >/dev/null 2>&1
}

up() {
  need BUCKET ACCELERATOR RUNTIME
  ((${#flags[@]})) || die "no flags for coco_jax.main; give them after --, e.g. -- --config=configs/k400_zsar.py"
  if ((DRY_RUN)); then
    create
    copy
    start
    delete
    return
  fi
  local ready=0 failures=0
  until finished; do
    case $(state) in
      '') create; ready=0 ;;
      ACTIVE)
        if ((!ready)) && ! copy; then
          sleep "$POLL"  # preempted already, or not yet to be reached
          ((++failures <= 10)) || die "copying fails; the slice is still charged: launch/tpu_pod.sh delete"
          continue
        fi
        ready=1
        if start; then
          failures=0
        elif [[ $(state) == ACTIVE ]] && ((++failures >= 3)); then
          die "the run failed three times on a whole slice, which is still charged: launch/tpu_pod.sh delete"
        else
          sleep "$POLL"
        fi
        ;;
      SUSPENDED | FAILED) delete; ready=0 ;;
      *) sleep "$POLL" ;;
    esac
  done
  delete
}

case $ACTION in
  up) up ;;
  create) create ;;
  copy) copy ;;
  run) start ;;
  status)
    run "${queued[@]}" describe "$NAME" "${where[@]}" ;;
  delete) delete ;;
  *) die "$ACTION is not a command; give up, create, copy, run, status or delete" ;;
esac
