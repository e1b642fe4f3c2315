"""Code provenance of a result: a digest of the sources that training depends on, and their commit."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent
# These only read results or print; they cannot change a run.
NOT_TRAINING = ("analysis", "checks", "cli")


@functools.cache
def sources() -> str:
    """Returns the first 12 hex digits of SHA-256 over paths and contents of all vitpos files that can change a run.

    Computed once per process, when `vitpos.study.run` or `vitpos.train.task` is imported: later edits are not the
    running code. Untracked files count, and it also works for an installed wheel, where git knows nothing.
    """
    total = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        if path.parts[0] not in NOT_TRAINING:
            total.update(f"{path.as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def reporting() -> str:
    """Returns a digest of all files of vitpos, and of the versions of what its reports are made with."""
    total = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.*")):
        if file.is_file() and file.suffix != ".pyc":
            total.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    packages = ("numpy", "scipy", "pandas", "matplotlib", "jinja2", "markdown", "tensorboard")
    total.update(" ".join(map(importlib.metadata.version, packages)).encode())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions that must be the same wherever the runs of one study are trained."""
    packages = {name: importlib.metadata.version(name).partition("+")[0] for name in ("torch", "timm", "lightning")}
    return {"python": platform.python_version(), **packages, "vitpos's sources": sources()}


@functools.cache
def commit() -> str:
    """Returns the commit of vitpos's own repository, with a ``+`` if it has changes, else ``unknown``.

    If the package is installed inside another repository it is not tracked there, so that repository's commit is not
    used.
    """

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
