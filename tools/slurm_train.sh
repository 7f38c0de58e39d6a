#!/usr/bin/env bash
# Train as a Slurm job; a rank that dies ends the job:
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
#   GPUS            processes in all, default 8
#   GPUS_PER_NODE   on each machine, default 8; GPUS_PER_NODE=0 takes machines without GPU, GPUS counts processes
#   CPUS_PER_TASK   default 5
#   SRUN_ARGS       more options of srun
#   PORT            of the first machine, default 29500
set -euo pipefail

[ $# -ge 4 ] || {
    echo "usage: [GPUS= GPUS_PER_NODE= CPUS_PER_TASK= SRUN_ARGS= PORT=] $0 PARTITION JOB_NAME CONFIG WORK_DIR" \
        "[ARGUMENTS...]" >&2
    exit 2
}
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
read -r -a OPTIONS <<<"${SRUN_ARGS:-}"
if [ "$GPUS_PER_NODE" -gt 0 ]; then
    [ "$GPUS" -ge "$GPUS_PER_NODE" ] || GPUS_PER_NODE=$GPUS
    OPTIONS=(--gres="gpu:$GPUS_PER_NODE" --ntasks-per-node="$GPUS_PER_NODE" ${OPTIONS[@]+"${OPTIONS[@]}"})
fi
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
[ -x "$PYTHON" ] || PYTHON=python

export MASTER_PORT="${PORT:-29500}"
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec srun --partition="$PARTITION" --job-name="$JOB_NAME" \
    --ntasks="$GPUS" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${OPTIONS[@]+"${OPTIONS[@]}"} \
    "$PYTHON" -u "$ROOT/tools/train.py" "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm "${@:5}"
