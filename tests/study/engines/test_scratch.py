"""What travels between a driver and a machine that share no folder."""

import dataclasses
import os
import subprocess
import sys

import pytest

from vitpos.data import sources
from vitpos.errors import VitposError
from vitpos.positions import text as texts
from vitpos.study.engines import scratch

OWN_SCHEME = (
    "from vitpos.positions import PositionEmbedding\n\n\n"
    "class Nothing(PositionEmbedding):\n    '''Adds nothing.'''\n\n    def apply(self, x):\n        return x\n"
)


def test_files_arrive_whole_and_the_result_last(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "curves").mkdir(parents=True)
    for name in ("result.json", "last.ckpt", "curves/a", ".lease", "x.123.part", "zzz"):
        (there / name).write_text(name)
    seen = {}
    first = scratch.changes(there, seen)
    assert list(first.files) == ["curves/a", "last.ckpt", "zzz", "result.json"]
    scratch.apply(first, here)
    assert scratch.changes(there, seen) == scratch.Changes({})
    (there / "last.ckpt").write_text("another")
    (there / "zzz").unlink()
    assert scratch.changes(there, {**seen}, "last.ckpt") == scratch.Changes({}, ("zzz",))
    scratch.apply(scratch.changes(there, seen), here)
    assert (here / "last.ckpt").read_text() == "another"
    assert sorted(path.name for path in here.rglob("*")) == ["a", "curves", "last.ckpt", "result.json"]


@pytest.mark.parametrize("absolute", [True, False])
def test_the_file_of_a_scheme_travels(tmp_path, absolute):
    home, there = tmp_path / "home", tmp_path / "there"
    home.mkdir(), there.mkdir()
    (home / "mine.py").write_text(OWN_SCHEME)
    file = str(home / "mine.py") if absolute else "mine.py"
    with texts.looking_in(home):
        digests, content = texts.digests(f"{file}:Nothing"), texts.source(file)
    (home / "mine.py").unlink()
    texts.copy_in(there, file).write_bytes(content)
    with texts.looking_in(there):
        assert texts.digests(f"{file}:Nothing") == digests
        assert texts.load(file).Nothing.__name__ == "Nothing"


def test_data_of_the_machine_or_lent(tmp_path, monkeypatch):
    monkeypatch.setenv("VITPOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITPOS_DATA", str(tmp_path / "none"))
    digits = sources.load("digits")
    monkeypatch.setenv(sources.LENT, "of the run before")
    scratch.borrow("digits", None, digits.fingerprint, lambda: digits)
    assert sources.LENT not in os.environ
    other = dataclasses.replace(digits, name="cifar10", fingerprint="0f")
    scratch.borrow("cifar10", None, "0f", lambda: other)
    lent = sources.load("cifar10")
    assert (lent.name, lent.fingerprint, len(lent.test)) == ("cifar10", "0f", len(digits.test))
    scratch.borrow("cifar10", None, "0f", lambda: digits)  # it is there now
    sources.lent_file("0f").unlink()
    sources._lent.cache_clear()
    with pytest.raises(VitposError, match="start the run again"):
        sources.load("cifar10")
    monkeypatch.delenv(sources.LENT)


def test_scratch_folders_of_killed_processes_go(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"{gone.pid}-x", f"{os.getpid()}-x", "odd"):
        (tmp_path / f"{scratch.SCRATCH}{name}" / "runs").mkdir(parents=True)
    scratch.remove_abandoned()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{scratch.SCRATCH}{os.getpid()}-x",
        f"{scratch.SCRATCH}odd",
    ]
