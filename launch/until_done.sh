#!/usr/bin/env bash
# Runs a training command and reports by the exit code whether the run is finished.
#
#   launch/until_done.sh WORKDIR COMMAND...
#
# Exit code 0: the run is finished, WORKDIR/results.json exists. 75: the command exited with 0 before the
# end of the run (it saved a checkpoint after SIGTERM); run it again to resume. Any other exit code is
# the command's own. SIGTERM, SIGINT and SIGHUP (a lost connection) are forwarded to the command as SIGTERM.
set -euo pipefail
if (($# < 2)) || [[ $1 == --help ]]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 2
fi
workdir=$1
shift

# Set the trap first: a signal before the command starts prevents the start, a later one is forwarded.
child='' signalled=0
trap 'signalled=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
((signalled)) && exit 75
"$@" &
child=$!
if ((signalled)); then kill -TERM "$child" 2>/dev/null || true; fi
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do  # a signal interrupts `wait` before the command exits
  code=0
  wait "$child" || code=$?
done
if ((signalled)) && ((code > 128)); then
  code=0
  wait "$child" || code=$?  # the command's own exit code
fi
((code == 0)) || exit "$code"
# Only the first process writes results.json, and it may finish later than this one.
for ((i = 0; i < 60 && !signalled; i++)); do
  [[ -e $workdir/results.json ]] && exit 0
  sleep 1
done
[[ -e $workdir/results.json ]] && exit 0
exit 75
