#!/usr/bin/env bash
# All set-up, then the tests; arguments go to pytest: bash tools/run_tests.sh -m "not slow"
# In the light set of versions the tests of detection and segmentation are skipped: STACK=maintained or original has all.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$ROOT/tools/setup_env.sh"
bash "$ROOT/tools/get_fashion_mnist.sh"
cd "$ROOT"
# the tests start processes of their own; two cores are used by two of them at most
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
