#!/usr/bin/env bash
# What vitpos does on a GPU: its tests for CUDA, its speed, runs side by side and a short study, in ten minutes at most with
# the installation. Writes results/gpu/<card>.md. Started again, it goes on with what failed or found no time.
#   VITPOS_PYTHON=/path/to/python  an interpreter with vitpos, PyTorch and pytest, where nothing can be installed
#   VITPOS_GPU_DRY=1               all of it on the CPU, with next to no work, to try the script out
set -euo pipefail
if [ -z "${VITPOS_GPU_DRY:-}" ] && ! nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then
    echo "no GPU here (nvidia-smi lists none); scripts/gpu.sh is for a machine with one" >&2
    exit 2
fi
if [ -n "${VITPOS_PYTHON:-}" ]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
else
    source "$(dirname "${BASH_SOURCE[0]}")/env.sh" gpu
    VITPOS_PYTHON=$PWD/.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec "$VITPOS_PYTHON" scripts/gpu.py --spent "$SECONDS" "$@"
