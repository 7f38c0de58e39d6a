#!/usr/bin/env bash
# Builds the site into docs/_build/html; a warning is an error. Uses .venv, which is set up first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup_env.sh --quick
.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements/docs.txt
.venv/bin/python -m sphinx -W --keep-going -b html -q docs docs/_build/html
echo "[docs] docs/_build/html/index.html"
