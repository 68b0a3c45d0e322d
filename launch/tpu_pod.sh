#!/usr/bin/env bash
# Runs training on a Cloud TPU slice, requested as a queued resource.
#
#   launch/tpu_pod.sh up --project=PROJECT --zone=ZONE --accelerator=v5litepod-256 \
#       --runtime=v2-alpha-tpuv5-lite --name=k400 --bucket=BUCKET --spot -- --config=configs/k400_zsar.py
#
# up       create, copy, run; requests a new slice after a preemption; deletes it after the run
# create   requests the slice
# copy     copies the current commit to all workers and installs its environment
# run      starts or resumes the run
# status   prints the state of the queued resource
# delete   deletes the slice, which ends the charges for it
#
# --project --zone --accelerator --runtime    as in gcloud
# --name      name of the queued resource, of its node, and of the run's folder in the bucket
# --bucket    Cloud Storage bucket with a hierarchical namespace: reads data/, writes runs/NAME
# --spot      cheaper, but the slice may be preempted at any time
# --poll      seconds between two checks of the slice's state (default 30)
# --dry-run   prints the commands without running them
# Arguments after -- are flags of coco_jax.main.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

PROJECT=${PROJECT:-} ZONE=${ZONE:-} ACCELERATOR=${ACCELERATOR:-} RUNTIME=${RUNTIME:-}
NAME=${NAME:-} BUCKET=${BUCKET:-} POLL=${POLL:-30} SPOT=''
(($#)) ||
  die "no command; the first argument must be up, create, copy, run, status or delete (see --help)"
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
  printf 'A slice is charged from its creation to its deletion (launch/README.md). To delete it: %s\n' \
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
  # Joined by && because `set -e` has no effect where `if` tests this function.
  run git archive --format=tar.gz --output=coco_jax.tar.gz HEAD &&
    run "${vm[@]}" scp coco_jax.tar.gz "$NAME:" "${where[@]}" --worker=all &&
    on_all mkdir -p coco_jax &&
    on_all tar -xzf coco_jax.tar.gz -C coco_jax &&
    on_all bash coco_jax/launch/tpu_worker.sh setup "$BUCKET"
}

start() {
  need BUCKET
  ((${#flags[@]})) ||
    die "no flags for coco_jax.main; add them after --, e.g. -- --config=configs/k400_zsar.py"
  on_all bash coco_jax/launch/tpu_worker.sh run "$NAME" "${flags[@]}"
}

finished() {
  gcloud storage ls "gs://$BUCKET/runs/$NAME/results.json" >/dev/null 2>&1
}

up() {
  need BUCKET ACCELERATOR RUNTIME
  ((${#flags[@]})) ||
    die "no flags for coco_jax.main; add them after --, e.g. -- --config=configs/k400_zsar.py"
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
          sleep "$POLL"  # preempted already, or not reachable yet
          ((++failures <= 10)) ||
            die "copying failed 11 times; the slice is still charged, delete it: launch/tpu_pod.sh delete"
          continue
        fi
        ready=1
        if start; then
          failures=0
        elif [[ $(state) == ACTIVE ]] && ((++failures >= 3)); then
          die "the run failed 3 times; the slice is still charged, delete it: launch/tpu_pod.sh delete"
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
  *) die "$ACTION is not a command; use up, create, copy, run, status or delete" ;;
esac
