#!/usr/bin/env bash
# Puts the four files of Fashion-MNIST (MIT licence) into data/fashion-mnist, or the folder given:
# from Debian's package where apt is there (no root needed), else by mmpretrain's own download.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="${1:-$ROOT/data/fashion-mnist}"
FILES=(train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte)

complete() {
    local file
    for file in "${FILES[@]}"; do [ -s "$OUT/$file" ] || return 1; done
}

unpack_from() {
    local folder="$1" file
    mkdir -p "$OUT"
    for file in "${FILES[@]}"; do
        [ -s "$folder/$file.gz" ] || return 1
        gunzip -c "$folder/$file.gz" >"$OUT/.$file.tmp" && mv "$OUT/.$file.tmp" "$OUT/$file" || return 1
    done
}

from_debian() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    local folder
    folder="$(mktemp -d)"
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" RETURN
    (cd "$folder" && {
        apt-get download -q dataset-fashion-mnist ||
            { [ "$(id -u)" = 0 ] && apt-get update -q && apt-get download -q dataset-fashion-mnist; } ||
            with_own_lists
    }) >"$folder/log" 2>&1 || { tail -3 "$folder/log" >&2; return 1; }
    dpkg -x "$folder"/dataset-fashion-mnist_*.deb "$folder/x" && unpack_from "$folder/x/usr/share/datasets/fashion-mnist"
}

# package lists in a folder of our own, for a machine whose lists are empty and whose user is not root
with_own_lists() {
    mkdir -p lists/partial cache/archives/partial
    local options=(-o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o Debug::NoLocking=1)
    apt-get "${options[@]}" update -q && apt-get "${options[@]}" download -q dataset-fashion-mnist
}

from_mmpretrain() {
    "$ROOT/.venv/bin/python" - "$OUT" <<'PYTHON'
import sys
from mmpretrain.datasets import FashionMNIST
FashionMNIST(data_root=sys.argv[1], test_mode=True)
PYTHON
}

if complete; then
    echo "[data] using $OUT"
elif unpack_from /usr/share/datasets/fashion-mnist; then
    echo "[data] Fashion-MNIST from the installed Debian package, in $OUT"
elif from_debian; then
    echo "[data] Fashion-MNIST from Debian's package, in $OUT"
elif from_mmpretrain && complete; then
    echo "[data] Fashion-MNIST by mmpretrain's download, in $OUT"
else
    echo "[data] FAILED: Fashion-MNIST could not be fetched. Install Debian's package dataset-fashion-mnist, or put
    the files ${FILES[*]} (unpacked) into $OUT, and run this again." >&2
    exit 1
fi
