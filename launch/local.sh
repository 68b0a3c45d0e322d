#!/usr/bin/env bash
# Starts several processes of one run on this machine; they communicate over loopback.
#
#   launch/local.sh --processes=2 --devices=4 -- --config=configs/demo.py --workdir=runs/two
#
# --processes=N   number of processes
# --devices=M     virtual CPU devices per process (default 1)
# --gpus          one GPU per process instead of CPU devices
# --dry-run       prints the commands without running them
# Arguments after -- are flags of coco_jax.main. The environment variable PYTHON is the Python
# interpreter (default .venv/bin/python).
#
# On Ctrl-C and SIGTERM every process saves a checkpoint and exits. If a process fails, the others are
# killed after 90 seconds. The exit code is that of the process that failed first.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

PROCESSES='' DEVICES=1 GPUS=0
while (($#)); do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry_run ;;
    --gpus) GPUS=1 ;;
    --) shift; break ;;
    *) take "$1" PROCESSES DEVICES ;;
  esac
  shift
done
need PROCESSES
[[ $PROCESSES =~ ^[1-9][0-9]*$ && $DEVICES =~ ^[1-9][0-9]*$ ]] ||
  die "--processes=$PROCESSES, --devices=$DEVICES: must be whole numbers above 0"
(($#)) || die "no flags for coco_jax.main; add them after --, e.g. -- --config=configs/demo.py"
PYTHON=${PYTHON:-.venv/bin/python}

PORT=PORT
if ((!DRY_RUN)); then
  PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

# Set the trap before the first process starts, so that no signal is lost. Ctrl-C is forwarded as SIGTERM
# because children of a shell without a terminal ignore SIGINT.
children=() stopping=0 signalled=0
trap 'signalled=1; kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < PROCESSES; i++)); do
  if ((GPUS)); then
    setting="CUDA_VISIBLE_DEVICES=$i"
  else
    setting="XLA_FLAGS=--xla_force_host_platform_device_count=$DEVICES"
  fi
  command=(env "$setting" "$PYTHON" -m coco_jax.main "$@")
  if ((PROCESSES > 1)); then
    command+=("--coordinator=127.0.0.1:$PORT" "--processes=$PROCESSES" "--process=$i")
  fi
  printf '%s\n' "$(quoted "${command[@]}")" >&3
  ((DRY_RUN)) && continue
  "${command[@]}" > >(sed -u "s/^/[$i] /") 2> >(sed -u "s/^/[$i] /" >&2) &
  children+=($!)
done
((DRY_RUN)) && exit 0
if ((signalled)); then kill -TERM "${children[@]}" 2>/dev/null || true; fi

code=0 watchdog=''
while ((${#children[@]})); do
  sleep 0.1 || true  # `wait -n` instead would lose the exit code of a process that ends at the same time
  running=$(jobs -pr)
  left=()
  for child in "${children[@]}"; do
    if [[ " ${running//$'\n'/ } " == *" $child "* ]]; then
      left+=("$child")
      continue
    fi
    this=0
    wait "$child" || this=$?
    # The signal ended a process that had nothing to save yet: not a failure.
    if ((signalled && (this == 143 || this == 130))); then this=0; fi
    if ((this && !stopping)); then code=$this stopping=1; fi
  done
  children=("${left[@]}")
  if ((stopping && ${#children[@]})) && [[ ! $watchdog ]]; then
    (sleep 90; kill -KILL "${children[@]}" 2>/dev/null) >/dev/null 2>&1 3>&- &
    watchdog=$!
  fi
done
if [[ $watchdog ]]; then kill "$watchdog" 2>/dev/null || true; fi
exit "$code"
