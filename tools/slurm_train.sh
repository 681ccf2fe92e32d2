#!/usr/bin/env bash
# Trains under Slurm, one process per GPU.
#
# usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 CHECK=1 SRUN_ARGS=...] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
set -euo pipefail
usage() { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
[ -f "$3" ] || { echo "slurm_train.sh: config '$3' does not exist" >&2; usage; }
exec "$(dirname "$0")/env/srun.sh" "$1" "$2" train.py "${@:3}"
