#!/usr/bin/env bash
# From a clone to a verdict: installs vitpos into .venv, trains four position schemes on scikit-learn's digits with seven
# seeds each, and reports. Two minutes after installation, on two CPU cores; a second start skips what is done.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" ""
.venv/bin/vitpos study run configs/studies/quickstart.yaml "$@"
