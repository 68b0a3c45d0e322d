#!/usr/bin/env bash
# A run on GPUs under SLURM: one process a GPU, requeued until it is done.
#
#   launch/slurm_gpu.sh --nodes=2 --gpus=8 --time=24:00:00 --partition=PARTITION --account=ACCOUNT \
#       --name=k400 --workdir=/shared/runs/k400 -- --config=configs/k400_zsar.py --config.data.dir=/shared/data
#
# --nodes=N --gpus=G      nodes, and GPUs of each
# --time=T                the limit of one stay in the queue's hands; a requeued run gets it again
# --name=NAME             what the job is called
# --workdir=DIR           where the run keeps all that it writes, on a disk that all nodes share
# --partition=P --account=A   optional, as your cluster has them
# --cpus=C                CPU cores a GPU (default 8; config.data.workers takes them)
# --dry-run               shows the command and submits nothing
# After -- come the flags of coco_jax.main. PYTHON names the interpreter (default .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

NODES=${NODES:-} GPUS=${GPUS:-} TIME=${TIME:-} NAME=${NAME:-} WORKDIR=${WORKDIR:-}
PARTITION=${PARTITION:-} ACCOUNT=${ACCOUNT:-} CPUS=${CPUS:-8}
while (($#)); do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry_run ;;
    --) shift; break ;;
    *) take "$1" NODES GPUS TIME NAME WORKDIR PARTITION ACCOUNT CPUS ;;
  esac
  shift
done
need NODES GPUS TIME NAME WORKDIR
(($#)) || die "no flags for coco_jax.main; give them after --, e.g. -- --config=configs/k400_zsar.py"

# All GPUs of a node are visible to each of its processes: JAX takes the one of SLURM_LOCALID.
job=(sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS"
  "--cpus-per-task=$CPUS" "--time=$TIME" "--output=$NAME-%j.log")
[[ $PARTITION ]] && job+=("--partition=$PARTITION")
[[ $ACCOUNT ]] && job+=("--account=$ACCOUNT")
printf 'The GPUs are charged to your account while the job runs. Stop it: scancel --name=%s\n' \
  "$(quoted "$NAME")" >&2
run "${job[@]}" launch/slurm_job.sh "$WORKDIR" "${PYTHON:-.venv/bin/python}" "$@"
