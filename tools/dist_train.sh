#!/usr/bin/env bash
# Train in several processes, one for each GPU, or on a machine without GPU over gloo:
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several machines: NNODES, NODE_RANK, MASTER_ADDR (of machine 0) and PORT on each of them.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: [NNODES= NODE_RANK= MASTER_ADDR= PORT=] $0 CONFIG GPUS [ARGUMENTS...]" >&2; exit 2; }
CONFIG=$1
GPUS=$2
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
[ -x "$PYTHON" ] || PYTHON=python

# exec: a signal to this script reaches the launcher, which ends its processes
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "${@:3}"
