#!/usr/bin/env bash
# The batch script that launch/slurm_gpu.sh submits; arguments: WORKDIR PYTHON FLAGS...
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail
workdir=$1 python=$2
shift 2
trap '' TERM  # preemption also signals this script, which must wait for the run's exit code
code=0
srun --kill-on-bad-exit=1 launch/until_done.sh "$workdir" \
  "$python" -m coco_jax.main "--workdir=$workdir" "$@" --coordinator=auto || code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
