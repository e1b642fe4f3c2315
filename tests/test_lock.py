"""One process at a time, on file systems with locks and without."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitpos import lock
from vitpos.errors import VitposError
from vitpos.lock import hold

# The package above imports torch, so the module is loaded under a bare parent.
HOLD = f"""
import pathlib, sys, time, types
sys.modules["vitpos"] = types.ModuleType("vitpos")
sys.modules["vitpos"].__path__ = [{str(Path(lock.__file__).parent)!r}]
from vitpos.lock import hold
with hold(pathlib.Path(sys.argv[1]), "taken"):
    print("in", flush=True)
    time.sleep(60)
"""
WITHOUT = """
import fcntl
def flock(*args):
    raise OSError(38, "Function not implemented")
fcntl.flock = flock
"""


def without_locks(monkeypatch, code):
    def flock(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_one_is_refused_until_the_first_ends(tmp_path):
    file = tmp_path / ".lock"
    with hold(file, "taken"), pytest.raises(VitposError, match=r"^taken$"), hold(file, "taken"):
        pass
    with hold(tmp_path / ".lock", "taken"):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_in_the_file_system_a_file_stands_for_one(tmp_path, monkeypatch, capsys, code):
    without_locks(monkeypatch, code)
    lock._say_once.cache_clear()
    with hold(tmp_path / ".lock", "taken"):
        (line,) = capsys.readouterr().err.splitlines()
        assert "has no locks" in line
        with pytest.raises(VitposError, match=r"taken .*remove .*\.lock\.soft"), hold(tmp_path / ".lock", "taken"):
            pass
    with hold(tmp_path / ".lock", "taken"):
        pass


@pytest.mark.parametrize("before", ["", WITHOUT])
def test_a_process_that_was_killed_leaves_no_lock(tmp_path, monkeypatch, capsys, before):
    file = tmp_path / ".lock"
    other = subprocess.Popen([sys.executable, "-c", before + HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        if before:
            without_locks(monkeypatch, errno.ENOSYS)
        with pytest.raises(VitposError, match="taken"), hold(file, "taken"):
            pass
    finally:
        other.kill()
        other.communicate()
    began = time.monotonic()
    with hold(file, "taken", wait=5):
        assert time.monotonic() - began < 5


def test_what_cannot_be_written_is_no_missing_lock(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"), hold(tmp_path / "file" / ".lock", "taken"):
        pass
