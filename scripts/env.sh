# Sourced by the other scripts: goes to the project's root, makes .venv if need be and installs vitpos with the extra named
# in $1. Installs again only when pyproject.toml has changed since.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
done
if [ ! -x .venv/bin/python ]; then
    [ -n "$python" ] || { echo "vitpos needs Python 3.11 or newer; name it with PYTHON=/path/to/python" >&2; exit 2; }
    "$python" -m venv .venv || { echo "cannot make .venv with $python (on Debian: apt install python3-venv)" >&2; exit 2; }
fi
stamp=.venv/installed-${1:-plain}
if ! cmp -s pyproject.toml "$stamp"; then
    echo "installing vitpos and what it needs into .venv (PyTorch is large: some minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
    cp pyproject.toml "$stamp"
fi
