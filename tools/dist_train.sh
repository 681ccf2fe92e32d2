#!/usr/bin/env bash
# Trains on several GPUs, or without GPUs in several processes.
#
# usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT on each (docs/coco.md).
set -euo pipefail
usage() { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 2 ] && [[ $2 =~ ^[1-9][0-9]*$ ]] || usage
[ -f "$1" ] || { echo "dist_train.sh: config '$1' does not exist" >&2; usage; }
here=$(dirname "$0")
exec "$here/env/torchrun.sh" "$2" "$here/train.py" "$1" --launcher pytorch "${@:3}"
