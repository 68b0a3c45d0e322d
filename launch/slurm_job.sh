#!/usr/bin/env bash
# The batch script of launch/slurm_gpu.sh: WORKDIR PYTHON FLAGS...
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail
workdir=$1 python=$2
shift 2
trap '' TERM  # preemption tells the batch script too: it stays to see how the run ends
code=0
srun --kill-on-bad-exit=1 launch/until_done.sh "$workdir" \
  "$python" -m coco_jax.main "--workdir=$workdir" "$@" --coordinator=auto || code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
