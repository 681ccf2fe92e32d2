#!/usr/bin/env bash
# Starts PROCESSES copies of a script on this machine, as one job over NNODES machines.
#
# usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=free RESTARTS=0] tools/env/torchrun.sh PROCESSES SCRIPT [arguments]
#
# One process per GPU; without GPUs the processes share the CPU and talk over gloo.
# RESTARTS=3 starts all processes again, up to 3 times, when one fails; train.py then resumes.
# SIGTERM, SIGUSR1 and Ctrl-C let the training save; the exit status is then 75 (docs/safety.md).
# PYTHON names the interpreter (default: python).
set -euo pipefail

usage() { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 2 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
[ -f "$2" ] || { echo "torchrun.sh: script '$2' does not exist" >&2; usage; }
processes=$1; shift
python=${PYTHON:-python}
here=$(dirname "$0")
# torchrun's and mmengine's default is one thread per process; without GPUs that leaves cores idle.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
# torchrun's default keeps the addresses of the processes before a restart, and the new ones wait for them.
[ "${RESTARTS:-0}" = 0 ] || export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# torchrun exits with 1 whatever its processes exit with; report_status.py writes their status here.
PARTIALNET_STATUS_FILE=$(mktemp)
export PARTIALNET_STATUS_FILE
trap 'rm -f "$PARTIALNET_STATUS_FILE"' EXIT
# SIGUSR1 would end torchrun at once. SIGTERM it passes on, and gives its processes 30 s. In a session of its own it does
# not get the terminal's Ctrl-C, which would cut these 30 s short. (macOS has no setsid.)
(trap '' USR1; exec $(command -v setsid) "$python" "$here/launch.py" "$processes" "$@") &
torchrun=$!
leave() {
    trap '' TERM USR1 INT HUP  # once is enough: a second signal would cut the saving short
    kill -TERM "$torchrun" 2>/dev/null || true
    echo "torchrun.sh: the processes save and leave, within 30 s" >&2
}
trap leave TERM USR1 INT HUP
status=0
wait "$torchrun" || status=$?
while kill -0 "$torchrun" 2>/dev/null; do  # a signal has ended the wait, not torchrun
    status=0
    wait "$torchrun" || status=$?
done
if [ "$status" -ne 0 ] && [ -s "$PARTIALNET_STATUS_FILE" ]; then
    status=$(cat "$PARTIALNET_STATUS_FILE")
fi
exit "$status"
