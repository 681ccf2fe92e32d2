#!/usr/bin/env bash
# Runs train.py or test.py under Slurm: what slurm_train.sh and slurm_test.sh share.
#
# usage: tools/env/srun.sh PARTITION JOB_NAME train.py|test.py [arguments]
#
# Before it asks for any machine, this one checks command line, config, checkpoints and data; it needs no GPU for that.
# CHECK=0 leaves the check to the job, for files that only the machines of the job have.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
cpus=${CPUS_PER_TASK:-5}
for setting in "GPUS=$gpus" "GPUS_PER_NODE=$per_node" "CPUS_PER_TASK=$cpus"; do
    [[ ${setting#*=} =~ ^[1-9][0-9]*$ ]] || { echo "srun.sh: $setting is wrong: a number from 1 up is needed" >&2; exit 2; }
done
[ "$per_node" -le "$gpus" ] || per_node=$gpus
command -v srun >/dev/null || { echo "srun.sh: srun is not on the PATH: this machine has no Slurm" >&2; exit 1; }
tool=$(dirname "$0")/../$3
if [ "${CHECK:-1}" != 0 ]; then
    "${PYTHON:-python}" "$(dirname "$0")/launch.py" --check "$gpus" "$tool" "${@:4}" --launcher slurm || {
        status=$?
        echo "srun.sh: nothing was submitted. CHECK=0 leaves the check to the job, for files that this machine lacks" >&2
        exit "$status"
    }
    export PARTIALNET_CHECKED=1
fi
# shellcheck disable=SC2086  # SRUN_ARGS is several words on purpose
exec srun -p "$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="$cpus" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tool" "${@:4}" --launcher slurm
