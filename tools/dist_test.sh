#!/usr/bin/env bash
# Test in several processes of this machine: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# On several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as torchrun takes them. Without a GPU: gloo.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -ge 3 ] || { sed -n 2,3p "${BASH_SOURCE[0]}" >&2; exit 2; }
ARGUMENTS=("$1" "$2")
GPUS="$3"
shift 3

PYTHON="${PYTHON:-$([ -x "$ROOT/.venv/bin/python" ] && echo "$ROOT/.venv/bin/python" || echo python)}"
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" --nproc_per_node="$GPUS" \
    "$ROOT/tools/test.py" "${ARGUMENTS[@]}" --launcher pytorch "$@"
