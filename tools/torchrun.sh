#!/usr/bin/env bash
# Starts PROCESSES copies of a script on this machine, as one job over NNODES machines.
#
# usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=free] tools/torchrun.sh PROCESSES SCRIPT [arguments]
#
# One process a GPU; without GPUs the processes share the CPU and talk over gloo.
# PYTHON names the interpreter (default: python).
set -euo pipefail

usage() { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 2 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
processes=$1; shift
python=${PYTHON:-python}
nnodes=${NNODES:-1}
if [ -z "${PORT:-}" ]; then
    # All machines must agree on the port, so only a lone one may take any.
    [ "$nnodes" -eq 1 ] || { echo "torchrun.sh: NNODES=$nnodes needs PORT, the same on every machine" >&2; exit 2; }
    PORT=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
# torchrun's and mmengine's default is one thread a process; without GPUs that leaves cores idle.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
exec "$python" -m torch.distributed.run \
    --nnodes="$nnodes" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$PORT" --nproc_per_node="$processes" "$@"
