#!/usr/bin/env bash
# All set-up, then the main job on real images: train with DyRep, test, fuse to the plain network, test that
# with mmpretrain's own script, print and plot what happened. What is there already is used again.
#   WORK_DIR          where the run goes, default work_dirs/quickstart
#   OMP_NUM_THREADS   threads, default: as many as cores are free
#   STACK, PYTHON     see tools/setup_env.sh
# Arguments are settings of the config to override: bash tools/quickstart.sh train_cfg.max_epochs=4
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$ROOT/tools/setup_env.sh" --quick
bash "$ROOT/tools/get_fashion_mnist.sh"
cd "$ROOT"

PYTHON="$ROOT/.venv/bin/python"
CONFIG=configs/small/dyrep_resnet18-w8_b64_fashion-mnist.py
RUN="${WORK_DIR:-work_dirs/quickstart}"
OPTIONS=()
[ $# -eq 0 ] || OPTIONS=(--cfg-options "$@")

say() { printf '\n[quickstart] %s\n' "$*"; }
# shown while it works; what went wrong is in its output
quiet() {
    local log="$RUN/quickstart-$1.log"
    shift
    "$@" >"$log" 2>&1 || { tail -15 "$log" >&2; printf '[quickstart] FAILED, all of it is in %s\n' "$log" >&2; exit 1; }
}

if [ -z "${OMP_NUM_THREADS:-}" ]; then
    # threads that wait for a core that another process has make this many times slower
    OMP_NUM_THREADS="$(bash tools/free_cores.sh)"
    export OMP_NUM_THREADS OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
fi
mkdir -p "$RUN"
say "training with DyRep ($CONFIG), about 4 minutes on two free cores; threads: $OMP_NUM_THREADS"
"$PYTHON" -W ignore tools/train.py "$CONFIG" --work-dir "$RUN" --resume "${OPTIONS[@]}" 2>&1 |
    tee "$RUN/quickstart-train.log" |
    grep --line-buffered -E 'INFO - DyRep|Epoch\(val\)|WARNING - .*DyRep|Error' ||
    { tail -15 "$RUN/quickstart-train.log" >&2; echo '[quickstart] FAILED in training' >&2; exit 1; }
CHECKPOINT="$(cat "$RUN/last_checkpoint")"

say 'testing the augmented network'
quiet test "$PYTHON" tools/test.py "$CONFIG" "$CHECKPOINT" --work-dir "$RUN/test_augmented" "${OPTIONS[@]}"
say 'fusing it to the plain network'
"$PYTHON" -W ignore tools/deploy_fuse.py "$CONFIG" "$CHECKPOINT" "$RUN/plain.pth" --out-config "$RUN/plain.py" \
    --images 1000 "${OPTIONS[@]}"
say "testing the plain checkpoint with mmpretrain's own model and script"
MMPRETRAIN="$("$PYTHON" -c 'import mmpretrain; print(mmpretrain.__path__[0])')"
quiet test-plain "$PYTHON" "$MMPRETRAIN/.mim/tools/test.py" "$RUN/plain.py" "$RUN/plain.pth" --work-dir "$RUN/test_plain"
say 'plotting'
quiet plot "$PYTHON" tools/analysis_tools/plot_history.py "$RUN" "$RUN/history.png"
quiet plot-structure "$PYTHON" tools/analysis_tools/plot_structure.py "$CHECKPOINT" "$RUN/structure.png"
"$PYTHON" -W ignore tools/analysis_tools/report_run.py "$RUN"
say 'for the commands of README and docs: source .venv/bin/activate'
