#!/usr/bin/env bash
# Everything that must hold: style, types, import rules, tests. Words after it go to pytest, such as: -k attach
# With CI=true the tests marked slow run too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" dev
PATH=$PWD/.venv/bin:$PATH
ruff check
ruff format --check
mypy
lint-imports
# a worker a core, one thread each: more threads would only wait for each other
export OMP_NUM_THREADS=1
if [ "${CI:-}" = true ]; then
    pytest -n auto --dist loadfile "$@"
else
    pytest -n auto --dist loadfile -m "not slow" "$@"
fi
