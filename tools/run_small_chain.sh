#!/usr/bin/env bash
# Table 5 of the paper on a small machine, from set-up to the table: pre-training plain and with DyRep, fusing,
# detection and segmentation from either backbone with DyRep and without, tests, fusing of what has grown, tests again.
# Steps that are done are skipped, a training that was interrupted goes on: call it again.
#   WORK_DIR         where it all goes, default work_dirs/small_chain
#   FASHION_SCENES   the data sets, default data/fashion-scenes (made if they are not there)
#   SCENES           options of tools/dataset_converters/fashion_scenes.py to make them with
#   JOBS             trainings at a time, one thread each, default: one a core, 8 at most
#   PYTHON_OF_CHAIN  an interpreter that has everything; default: that of .venv, which is set up first
#   PRETRAIN, DETECT, SEGMENT   settings of the configs to override, as "train_cfg.max_epochs=2 key=value"
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
PYTHON="${PYTHON_OF_CHAIN:-$ROOT/.venv/bin/python}"
RUN="${WORK_DIR:-work_dirs/small_chain}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
export SMALL_CHAIN="$RUN" FASHION_SCENES="${FASHION_SCENES:-data/fashion-scenes}"

PRETRAININGS=(dyrep_resnet18-w16_b64 resnet18-w16_b64)
# those with DyRep first: they take longest
DOWNSTREAM=(
    pspnet_r18-w16-d8-dyrep-cd_b8 faster-rcnn_r18-w16-dyrep-cd_fpn_b8
    pspnet_r18-w16-d8-dyrep-d_b8 faster-rcnn_r18-w16-dyrep-d_fpn_b8
    pspnet_r18-w16-d8-dyrep-c_b8 faster-rcnn_r18-w16-dyrep-c_fpn_b8
    pspnet_r18-w16-d8_b8 faster-rcnn_r18-w16_fpn_b8)

say() { printf '[chain %s] %s\n' "$(date +%H:%M:%S)" "$*"; }

config() { echo "configs/small/$1_fashion-scenes.py"; }
last() { cat "$RUN/$1/last_checkpoint"; }

# step NAME OF_WHAT COMMAND...: once; its output goes to a log, val lines are shown
step() {
    local name="$1" what="$2" log="$RUN/$1/$2.log" begin=$SECONDS
    shift 2
    [ ! -e "$RUN/$name/$what.done" ] || return 0
    mkdir -p "$RUN/$name"
    say "$name: $what"
    "$@" >>"$log" 2>&1 || {
        tail -15 "$log" >&2
        say "FAILED: $name, $what; all of it is in $log. Call this script again to go on" >&2
        return 1
    }
    # of a training that was interrupted, the seconds since it went on
    echo $((SECONDS - begin)) >"$RUN/$name/.$what.tmp" && mv "$RUN/$name/.$what.tmp" "$RUN/$name/$what.done"
    say "$name: $what done ($((SECONDS - begin)) s)$(grep -oE '(accuracy/top1|bbox_mAP|mIoU): [0-9.]+' "$log" | tail -1 | sed 's/^/, /')"
}

# run NAME [KEY=VALUE...]: all steps of one training
run() {
    local name="$1" cfg options=()
    cfg="$(config "$1")"
    shift
    [ $# -eq 0 ] || options=(--cfg-options "$@")
    step "$name" train "$PYTHON" -W ignore tools/train.py "$cfg" --work-dir "$RUN/$name" --resume ${options[@]+"${options[@]}"}
    step "$name" test "$PYTHON" -W ignore tools/test.py "$cfg" "$(last "$name")" --work-dir "$RUN/$name/test" ${options[@]+"${options[@]}"}
    grep -q DyRepBackbone "$RUN/$name/$(basename "$cfg")" || return 0
    step "$name" fuse "$PYTHON" -W ignore tools/deploy_fuse.py "$cfg" "$(last "$name")" "$RUN/$name/fused/plain.pth" \
        --out-config "$RUN/$name/fused/plain.py" ${options[@]+"${options[@]}"}
    step "$name" test-fused "$PYTHON" -W ignore tools/test.py "$RUN/$name/fused/plain.py" "$RUN/$name/fused/plain.pth" \
        --work-dir "$RUN/$name/test_fused"
}

# the backbones that detection and segmentation start from
backbones() {
    local grown="dyrep_resnet18-w16_b64" plain="resnet18-w16_b64"
    step backbones plain "$PYTHON" -W ignore tools/deploy_fuse.py "$(config $grown)" "$(last $plain)" \
        "$RUN/backbones/plain.pth" --backbone-only
    step backbones fused "$PYTHON" -W ignore tools/deploy_fuse.py "$(config $grown)" "$(last $grown)" \
        "$RUN/backbones/dyrep_fused.pth" --backbone-only
    step backbones augmented ln -sf "$(cd "$(dirname "$(last $grown)")" && pwd)/$(basename "$(last $grown)")" \
        "$RUN/backbones/dyrep_augmented.pth"
}

options_of() {
    case "$1" in
        faster-rcnn*) echo "${DETECT:-}" ;;
        pspnet*) echo "${SEGMENT:-}" ;;
        *) echo "${PRETRAIN:-}" ;;
    esac
}

if [ "${1:-}" = --one ]; then
    read -r -a options <<<"$(options_of "$2")"
    run "$2" ${options[@]+"${options[@]}"}
    exit
fi

if [ -z "${PYTHON_OF_CHAIN:-}" ]; then
    bash tools/setup_env.sh
    "$PYTHON" -c 'from importlib.util import find_spec as find; raise SystemExit(not (find("mmdet") and find("mmseg")))' || {
        say "FAILED: mmdet and mmseg are not in .venv, which has the light set of versions. STACK=maintained bash $0
    (or STACK=original, on Python 3.10 and 3.11) makes it anew with them and goes on" >&2
        exit 1
    }
    bash tools/get_fashion_mnist.sh
fi
# nproc takes OMP_NUM_THREADS for the number of cores
CORES="$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)"
JOBS="${JOBS:-$((CORES < 8 ? CORES : 8))}"
all() { printf '%s\n' "$@" | xargs -P "$JOBS" -I{} bash "$ROOT/tools/run_small_chain.sh" --one {}; }

mkdir -p "$RUN"
read -r -a SCENES <<<"${SCENES:-}"
say "data sets in $FASHION_SCENES"
"$PYTHON" tools/dataset_converters/fashion_scenes.py --out "$FASHION_SCENES" ${SCENES[@]+"${SCENES[@]}"}
say "trainings, $JOBS at a time; the logs are in $RUN/*/train.log"
all "${PRETRAININGS[@]}"
backbones
all "${DOWNSTREAM[@]}"
"$PYTHON" -W ignore tools/analysis_tools/report_chain.py "$RUN"
