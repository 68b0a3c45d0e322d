#!/usr/bin/env bash
# Runs training on GPUs under SLURM: one process per GPU, requeued until the run is finished.
#
#   launch/slurm_gpu.sh --nodes=2 --gpus=8 --time=24:00:00 --partition=PARTITION --account=ACCOUNT \
#       --name=k400 --workdir=/shared/runs/k400 -- --config=configs/k400_zsar.py --config.data.dir=/shared/data
#
# --nodes=N --gpus=G      number of nodes; GPUs per node
# --time=T                time limit of one job; a requeued job gets the full limit again
# --name=NAME             job name
# --workdir=DIR           folder of the run, on a disk that all nodes share
# --partition=P --account=A   optional, as your cluster requires
# --cpus=C                CPU cores per GPU (default 8), for the processes of config.data.workers
# --dry-run               prints the command without submitting the job
# Arguments after -- are flags of coco_jax.main. The environment variable PYTHON is the Python
# interpreter (default .venv/bin/python).
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
(($#)) || die "no flags for coco_jax.main; add them after --, e.g. -- --config=configs/k400_zsar.py"

# Each process sees all GPUs of its node; JAX uses the one with index SLURM_LOCALID.
job=(sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS"
  "--cpus-per-task=$CPUS" "--time=$TIME" "--output=$NAME-%j.log")
[[ $PARTITION ]] && job+=("--partition=$PARTITION")
[[ $ACCOUNT ]] && job+=("--account=$ACCOUNT")
printf 'The GPUs are charged to your account while the job runs. To stop it: scancel --name=%s\n' \
  "$(quoted "$NAME")" >&2
run "${job[@]}" launch/slurm_job.sh "$WORKDIR" "${PYTHON:-.venv/bin/python}" "$@"
