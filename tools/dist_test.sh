#!/usr/bin/env bash
# Tests a checkpoint on several GPUs, or without GPUs in several processes.
#
# usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
#
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT on each (docs/coco.md).
set -euo pipefail
usage() { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 3 ] && [[ $3 =~ ^[1-9][0-9]*$ ]] || usage
[ -f "$1" ] || { echo "dist_test.sh: config '$1' does not exist" >&2; usage; }
here=$(dirname "$0")
exec "$here/env/torchrun.sh" "$3" "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
