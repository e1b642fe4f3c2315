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
if [ "${CI:-}" = true ]; then
    pytest "$@"
else
    pytest -m "not slow" "$@"
fi
