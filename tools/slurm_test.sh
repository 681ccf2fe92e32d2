#!/usr/bin/env bash
# Tests a checkpoint under Slurm, one process per GPU.
#
# usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 CHECK=1 SRUN_ARGS=...] tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
set -euo pipefail
usage() { sed -n '4s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 4 ] || usage
[ -f "$3" ] || { echo "slurm_test.sh: config '$3' does not exist" >&2; usage; }
exec "$(dirname "$0")/env/srun.sh" "$1" "$2" test.py "${@:3}"
