#!/usr/bin/env bash
# Makes .venv beside this folder and installs the tested versions into it.
# A second call returns at once. Environment variables:
#   PYTHON           interpreter to build the environment from (3.10 or 3.11)
#   PIP_FIND_LINKS   pip's own: a folder with a prebuilt mmcv wheel, if there is one
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
MMCV_VERSION=2.1.0
LOG="$VENV/setup.log"

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] FAILED: %s\n' "$*" >&2; exit 1; }

stamp_of() {
    cat "$ROOT/requirements.txt" "$ROOT/requirements/dev.txt" "$ROOT/setup.py" "${BASH_SOURCE[0]}" | cksum
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.10 python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or 3.11 found. Install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# step TEXT COMMAND...: runs it with its output in the log, shows how long it took
step() {
    local text="$1" begin=$SECONDS
    shift
    printf '[setup] %s ...' "$text"
    if "$@" >>"$LOG" 2>&1; then
        printf ' done (%ds)\n' $((SECONDS - begin))
    else
        printf ' no (%ds)\n' $((SECONDS - begin))
        return 1
    fi
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"; }

mmcv_from_index() {
    # openmim knows where OpenMMLab keeps its prebuilt wheels; apart, since it pins old libraries
    "$VENV/bin/python" -m venv --system-site-packages "$VENV/mim" &&
        "$VENV/mim/bin/python" -m pip install --disable-pip-version-check openmim &&
        "$VENV/mim/bin/python" -m mim download --help >/dev/null &&
        local links &&
        links="$("$VENV/mim/bin/python" -c 'from mim.commands.install import get_mmcv_full_find_link as f; print(f("mmcv"))')" &&
        pip_install --retries 1 --timeout 20 --only-binary mmcv --find-links "$links" "mmcv==$MMCV_VERSION"
}

mmcv_has_ops() { "$VENV/bin/python" -c 'import mmcv.ops' 2>>"$LOG"; }

install_mmcv() {
    if step "mmcv $MMCV_VERSION from a wheel that pip knows" \
        pip_install --only-binary mmcv "mmcv==$MMCV_VERSION" && mmcv_has_ops; then
        say 'mmcv: ready-made wheel'
    elif step "mmcv $MMCV_VERSION from OpenMMLab's prebuilt index" mmcv_from_index && mmcv_has_ops; then
        say 'mmcv: prebuilt by OpenMMLab'
    else
        say 'building mmcv from source, about 8 minutes on 2 cores'
        # without --no-build-isolation the build does not see torch and leaves the ops out
        step "mmcv $MMCV_VERSION built from source" env MMCV_WITH_OPS=1 "$VENV/bin/python" -m pip install \
            --disable-pip-version-check --no-build-isolation --no-binary mmcv --force-reinstall --no-deps "mmcv==$MMCV_VERSION" ||
            fail "mmcv could not be built (see $LOG). A C++ compiler and Python's headers are needed:
    apt-get install g++ python3-dev    (or your system's equivalent), then run this again."
        step 'what mmcv needs' pip_install "mmcv==$MMCV_VERSION" || fail "see $LOG"
        mmcv_has_ops || fail "mmcv was built without its operators (see $LOG)"
    fi
    rm -rf "$VENV/mim"
}

main() {
    if [ -f "$VENV/.ready" ] && [ "$(cat "$VENV/.ready")" = "$(stamp_of)" ]; then
        say "using $VENV"
        return
    fi
    local python begin=$SECONDS
    python="$(find_python)"
    say "making $VENV with $("$python" --version 2>&1); the log is $LOG"
    mkdir -p "$VENV"
    if [ ! -x "$VENV/bin/pip" ]; then
        "$python" -m venv "$VENV" >>"$LOG" 2>&1 || fail "'$python -m venv' does not work (see $LOG).
    On Debian and Ubuntu: apt-get install python3-venv; without root: pip install --user virtualenv, then
    $python -m virtualenv $VENV, and run this again."
    fi
    local net="see the end of $LOG. Is the package index reachable (pip download six)? Is the disk full (df -h)? Then run this again."
    step 'build tools' pip_install 'setuptools<81' wheel ninja psutil || fail "$net"
    step 'torch and torchvision (large)' pip_install \
        -c "$ROOT/requirements.txt" torch torchvision numpy || fail "$net"
    install_mmcv
    step 'mmengine, mmpretrain, mmdet, mmsegmentation' pip_install -r "$ROOT/requirements.txt" || fail "$net"
    step 'tools of the tests' pip_install -c "$ROOT/requirements.txt" -r "$ROOT/requirements/dev.txt" || fail "$net"
    if ! "$VENV/bin/python" -c 'import cv2' 2>>"$LOG"; then
        # a machine without libGL
        step 'opencv without a display' sh -c "'$VENV/bin/python' -m pip uninstall -y opencv-python &&
            '$VENV/bin/python' -m pip install --disable-pip-version-check 'opencv-python-headless<4.12' 'numpy<2'" || fail "$net"
    fi
    step 'mmdyrep itself' pip_install --no-build-isolation --no-deps -e "$ROOT" || fail "see $LOG"
    "$VENV/bin/python" -c 'import mmcv.ops, mmpretrain, mmdet, mmseg, mmdyrep' >>"$LOG" 2>&1 ||
        fail "the installed packages do not import (see the end of $LOG). Remove $VENV and run this again."
    stamp_of >"$VENV/.ready"
    say "ready after $((SECONDS - begin))s"
}

main
