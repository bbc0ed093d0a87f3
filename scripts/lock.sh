#!/usr/bin/env bash
# Resolves every dependency for Python 3.11 on x86-64 Linux into locks/dev.txt, without addresses or paths of this machine.
set -euo pipefail
mkdir -p locks
"${VENV:-.venv}/bin/uv" pip compile -q --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
    --all-extras --group dev pyproject.toml -o locks/dev.txt
