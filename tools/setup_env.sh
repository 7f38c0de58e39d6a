#!/usr/bin/env bash
# Makes .venv beside this folder and installs one of the three sets of versions in requirements/ that are tested:
#   original     OpenMMLab's own libraries, torch 2.1, Python 3.10 and 3.11
#   maintained   their maintained continuation, today's torch, Python 3.10 to 3.13
#   light        classification alone, today's torch, no compiler needed, Python 3.10 to 3.13
# A second call returns at once. With --quick a set that is there will do, and nothing is built. Environment variables:
#   STACK            the set; default: the one that .venv has, else original for Python 3.10 and 3.11, maintained for newer
#   PYTHON           interpreter to build the environment from; default: the newest there is of 3.10 to 3.13
#   MMDYREP_CACHE    folder for what was built, default ~/.cache/mmdyrep
#   PIP_FIND_LINKS   pip's own: a folder with a prebuilt mmcv wheel, if there is one
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
LOG="$VENV/setup.log"
CACHE="${MMDYREP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmdyrep}"
QUICK="${1:-}"

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] FAILED: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------------------- which

stamp_of() { printf '%s ' "$1"; cat "$ROOT/requirements/$1.txt" "$ROOT/setup.py" "${BASH_SOURCE[0]}" | cksum; }

pythons_of() {
    case "$1" in
        original) echo 'python3.11 python3.10 python3 python' ;;
        *) echo 'python3.13 python3.12 python3.11 python3.10 python3 python' ;;
    esac
}

find_python() {
    local stack="$1" candidate range='Python 3.10 to 3.13'
    [ "$stack" != original ] || range='Python 3.10 or 3.11 (the original set works with no other)'
    for candidate in "${PYTHON:-}" $(pythons_of "$stack"); do
        [ -n "$candidate" ] || continue
        if "$candidate" -c "
import sys
newest = 11 if '$stack' == 'original' else 13
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, newest))
try:
    import venv, ensurepip
except ImportError:
    sys.exit(1)" 2>/dev/null; then
            echo "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no $range with the modules venv and ensurepip"
    done
    fail "no $range with the modules venv and ensurepip found. Install one (Debian and Ubuntu: apt-get install
    python3-venv), or name it: PYTHON=/path/to/python bash $0    (with uv: PYTHON=\"\$(uv python find 3.12)\")"
}

minor_of() { "$1" -c 'import sys; print(sys.version_info[1])'; }
pinned() { sed -n "s/^$2==\([^ ;]*\).*/\1/p" "$ROOT/requirements/$1.txt"; }

# ---------------------------------------------------------------------------- how

# step TEXT COMMAND...: runs it with its output in the log, shows how long it took and what is being compiled
step() {
    local text="$1" begin=$SECONDS from result=0 process
    shift
    from=$(($(wc -l <"$LOG") + 1))
    printf '[setup] %s ...' "$text"
    "$@" >>"$LOG" 2>&1 &
    process=$!
    # what runs in the background does not hear of Ctrl-C
    trap "kill $process 2>/dev/null; exit 130" INT TERM
    while kill -0 $process 2>/dev/null; do
        sleep 1
        if (((SECONDS - begin) % 30 == 29)); then
            printf ' %ds%s ...' $((SECONDS - begin)) "$(tail -n +$from "$LOG" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -1)"
            sleep 1
        fi
    done
    wait $process || result=$?
    trap - INT TERM
    printf ' %s (%ds)\n' "$([ $result = 0 ] && echo done || echo no)" $((SECONDS - begin))
    return $result
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# uv is faster, but knows nothing of pip's settings: it is told those that it has, and where it fails pip is asked
install() {
    if [ -n "$UV" ]; then
        UV_FIND_LINKS="${UV_FIND_LINKS:-$(as_uv "${PIP_FIND_LINKS:-}")}" UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$INDEX}" \
            VIRTUAL_ENV="$VENV" "$UV" pip install --index-strategy unsafe-best-match "$@" && return
        echo 'uv could not install this; trying pip'
    fi
    pip install "$@"
}

# a list of folders and addresses: pip wants blanks between them, uv commas and no folder that is missing
as_uv() {
    local link links=
    for link in $1; do
        case "$link" in *://*) ;; *) [ -d "$link" ] || continue ;; esac
        links="$links${links:+,}$link"
    done
    echo "$links"
}

reachable() { "$VENV/bin/python" -c "import urllib.request as r; r.urlopen('$1', timeout=5)" 2>/dev/null; }

make_venv() {
    local python="$1"
    mkdir -p "$VENV"
    : >"$LOG"
    if [ ! -x "$VENV/bin/python" ] || [ ! -x "$VENV/bin/pip" ]; then
        "$python" -m venv "$VENV" >>"$LOG" 2>&1 || fail "'$python -m venv' does not work (see $LOG).
    On Debian and Ubuntu: apt-get install python3-venv; without root: pip install --user virtualenv, then
    $python -m virtualenv $VENV, and run this again."
    fi
    UV="$(command -v uv || true)"
    if [ -z "$UV" ] && pip install uv >>"$LOG" 2>&1; then
        UV="$VENV/bin/uv"
    fi
    INDEX="$(pip config list | sed -n "s/^[a-z:]*\.index-url='\(.*\)'/\1/p" | head -1)"
    INDEX="${INDEX:-https://pypi.org/simple}"
}

install_torch() {
    local from=() what='torch and torchvision'
    if ! command -v nvidia-smi >/dev/null && reachable https://download.pytorch.org/whl/cpu/torch/; then
        from=(--extra-index-url https://download.pytorch.org/whl/cpu)
        what="$what for the CPU"
    else
        what="$what (some GB)"
    fi
    step "$what" install ${from[@]+"${from[@]}"} -c "$LOCK" torch torchvision numpy setuptools wheel ninja psutil
}

# ---------------------------------------------------------------------------- mmcv with its operators

# a wheel that need not be built: sets WHEEL
find_mmcv() {
    local built="$CACHE/wheels/torch$(pinned "$STACK" torch)-cp3$MINOR-$(uname -m)" ready="$VENV/mmcv" device=cpu torch
    WHEEL="$(ls "$built"/*.whl 2>/dev/null | head -1 || true)"
    [ -z "$WHEEL" ] || return 0
    rm -rf "$ready"
    torch="$(pinned "$STACK" torch)"
    if ! pip download --no-deps --only-binary :all: -d "$ready" "$MMCV" >>"$LOG" 2>&1 && [ "$STACK" = original ] &&
        reachable https://download.openmmlab.com; then
        ! command -v nvidia-smi >/dev/null || device=cu121
        pip download --no-deps --only-binary :all: -d "$ready" "$MMCV" \
            -f "https://download.openmmlab.com/mmcv/dist/$device/torch${torch%.*}.0/index.html" >>"$LOG" 2>&1 || true
    fi
    WHEEL="$(ls "$ready"/*.whl 2>/dev/null | head -1 || true)"
    [ -n "$WHEEL" ]
}

build_mmcv() {
    local folder="$CACHE/wheels/torch$(pinned "$STACK" torch)-cp3$MINOR-$(uname -m)" compiler="${CXX:-c++}"
    if [ "$STACK" = maintained ]; then
        # the headers of torch >= 2.14 need C++20, mmcv's build asks for C++17; the last word counts
        printf '#!/bin/sh\nexec %s "$@" -std=c++20\n' "$compiler" >"$VENV/bin/c++20"
        chmod +x "$VENV/bin/c++20"
        compiler="$VENV/bin/c++20"
    fi
    mkdir -p "$folder"
    # without --no-build-isolation the build does not see torch and leaves the ops out; to write what a debugger
    # wants (Python's own flags ask for it) takes two thirds of the time
    step "building $MMCV, once on this machine (about 10 minutes on 2 cores)" \
        env MMCV_WITH_OPS=1 CFLAGS="${CFLAGS:-} -g0" CXX="$compiler" PATH="$VENV/bin:$PATH" "$VENV/bin/python" -m pip wheel -v \
        --no-build-isolation --no-deps --no-binary "${MMCV%%=*}" -w "$folder" "$MMCV" || fail "mmcv could not be built (see $LOG).
    A C++ compiler and Python's headers are needed:
    apt-get install g++ python3-dev    (or your system's equivalent), then run this again.
    Without detection and segmentation nothing has to be built: STACK=light"
    WHEEL="$(ls "$folder"/*.whl)"
}

mmcv_has_ops() { "$VENV/bin/python" -c 'import mmcv.ops' 2>>"$LOG"; }

install_mmcv() {
    find_mmcv || build_mmcv
    step "mmcv from $WHEEL" install --no-deps "$WHEEL" || fail "see $LOG"
    if ! mmcv_has_ops; then
        say 'this wheel of mmcv does not work here'
        case "$WHEEL" in "$CACHE"/*) rm -f "$WHEEL" ;; esac
        build_mmcv
        step "mmcv from $WHEEL" install --no-deps --reinstall "$WHEEL" || fail "see $LOG"
        mmcv_has_ops || fail "mmcv was built without its operators (see $LOG)"
    fi
}

# ---------------------------------------------------------------------------- all of it

# uv leaves bytecode to the first import; where that must not write it, each process would compile all anew, for 5 s
compile_bytecode() {
    [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || return 0
    # some packages bring files that are no Python of this version
    step 'bytecode, which Python is not to write itself (PYTHONDONTWRITEBYTECODE)' sh -c \
        "'$VENV/bin/python' -m compileall -q -j 0 '$VENV/lib' || true"
}

choose() {
    local had
    had="$(cut -d' ' -f1 "$VENV/.ready" 2>/dev/null || true)"
    case "$had" in original | maintained | light) ;; *) had= ;; esac
    case "${STACK:=$had}" in
        '' | original | maintained | light) ;;
        *) fail "STACK is original, maintained or light, not $STACK" ;;
    esac
    if [ -n "$had" ] && [ "$had" != "$STACK" ]; then
        say "$VENV has the $had set; it is made anew"
        rm -rf "$VENV"
    fi
}

ready() {
    if [ -L "$VENV" ]; then
        say "using $VENV, a link, as it is"
    elif [ -f "$VENV/.ready" ] && [ "$(cat "$VENV/.ready")" = "$(stamp_of "$STACK")" ]; then
        say "using $VENV, the $STACK set"
    else
        return 1
    fi
}

main() {
    local begin=$SECONDS python net modules='mmpretrain, mmdyrep'
    [ -L "$VENV" ] || choose
    ready && return
    python="$(find_python "$STACK")"
    make_venv "$python"
    # what is there may be of another version
    MINOR="$(minor_of "$VENV/bin/python")"
    if [ -z "$STACK" ]; then
        STACK="$([ "$MINOR" -lt 12 ] && echo original || echo maintained)"
        case "$STACK" in original) MMCV=mmcv==2.1.0 ;; maintained) MMCV=onedl-mmcv==2.3.6 ;; esac
        if [ "$QUICK" = --quick ] && ! find_mmcv; then
            say "there is no ready-made mmcv for Python 3.$MINOR, and this needs none: taking the light set"
            STACK=light
        fi
    fi
    case "$STACK" in original) MMCV=mmcv==2.1.0 ;; maintained) MMCV=onedl-mmcv==2.3.6 ;; esac
    LOCK="$ROOT/requirements/$STACK.txt"
    say "Python 3.$MINOR, the $STACK set (STACK=original|maintained|light chooses), into $VENV; the log is $LOG"
    net="see the end of $LOG. Is the package index reachable (pip download six)? Is the disk full (df -h)? Then run this again."
    install_torch || fail "$net"
    step 'the libraries and the tools of the tests' install -r "$LOCK" || fail "$net"
    if [ "$STACK" != light ]; then
        install_mmcv
        modules='mmcv.ops, mmdet, mmseg, mmpretrain, mmdyrep'
    fi
    if ! "$VENV/bin/python" -c 'import cv2' 2>>"$LOG"; then
        # a machine without libGL
        step 'opencv without a display' sh -c "'$VENV/bin/python' -m pip uninstall -y opencv-python opencv-python-headless &&
            '$VENV/bin/python' -m pip install --no-deps 'opencv-python-headless==$("$VENV/bin/python" -c \
            'from importlib.metadata import version; print(version("opencv-python"))')'" || fail "$net"
    fi
    step 'mmdyrep itself' pip install --no-build-isolation --no-deps -e "$ROOT" || fail "see $LOG"
    "$VENV/bin/python" -c "import $modules" >>"$LOG" 2>&1 ||
        fail "the installed packages do not import (see the end of $LOG). Remove $VENV and run this again."
    compile_bytecode
    stamp_of "$STACK" >"$VENV/.ready"
    say "ready after $((SECONDS - begin))s, $(du -sh "$VENV" | cut -f1)B"
    [ "$STACK" != light ] || say 'for classification alone; STACK=maintained has detection and segmentation, too'
}

main
