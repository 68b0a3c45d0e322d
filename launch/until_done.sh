#!/usr/bin/env bash
# Runs a command that SIGTERM stops with its work saved, and says by the exit code whether it is done.
#
#   launch/until_done.sh WORKDIR COMMAND...
#
# 0: WORKDIR/results.json is there, the run is done. 75: it was stopped before its end; the same command
# goes on. Anything else: the command's own exit code. SIGTERM, and a
# lost connection, are passed on to the command as SIGTERM.
set -euo pipefail
if (($# < 2)) || [[ $1 == --help ]]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 2
fi
workdir=$1
shift

# The trap comes first: a signal at any moment is passed on, or the command is not begun.
child='' told=0
trap 'told=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
((told)) && exit 75
"$@" &
child=$!
if ((told)); then kill -TERM "$child" 2>/dev/null || true; fi
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do  # a signal ends `wait` before the command ends
  code=0
  wait "$child" || code=$?
done
if ((told)) && ((code > 128)); then
  code=0
  wait "$child" || code=$?  # what it ended with, once it has ended
fi
((code == 0)) || exit "$code"
# Of several processes the first one writes the results, which may take it a while longer.
for ((i = 0; i < 60 && !told; i++)); do
  [[ -e $workdir/results.json ]] && exit 0
  sleep 1
done
[[ -e $workdir/results.json ]] && exit 0
exit 75
