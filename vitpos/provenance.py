"""Which code made a result: a digest of the sources that training depends on, and the commit they are at."""

import functools
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent
# What only reads results or talks to people cannot change a run.
NOT_TRAINING = ("analysis", "checks", "cli.py", "commands.py")


@functools.cache
def sources() -> str:
    """Returns the first 12 hex digits of SHA-256 over path and contents of all files of vitpos that can change a run.

    Read once per process, at import of `vitpos.study.run` or `vitpos.train.task`: files edited later are not the code
    that runs. Untracked files count, and so does an installed wheel, where git knows nothing.
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


@functools.cache
def commit() -> str:
    """Returns the commit of vitpos's own repository, ``+`` behind it where it has changes, else ``unknown``.

    A package installed inside somebody else's repository is not tracked there, so that commit is never taken for ours.
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
