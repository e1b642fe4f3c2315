"""One process at a time, on one computer or several, whatever becomes of the one that holds the lock."""

import re
import signal
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
import pathlib, socket, sys, time, types
sys.modules["vitpos"] = types.ModuleType("vitpos")
sys.modules["vitpos"].__path__ = [{str(Path(lock.__file__).parent)!r}]
from vitpos import lock
file, host, lock.TAKEOVER, lock.BEAT = pathlib.Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])
socket.gethostname = lambda: host or gethostname()
with lock.hold(file, "taken"):
    print("in", flush=True)
    while True:
        time.sleep(0.01)
        file.with_name("work").write_text(str(time.time()))
""".replace("socket.gethostname =", "gethostname = socket.gethostname; socket.gethostname =")


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Returns a function that starts a process which holds the lock, on a computer of another name if one is given."""
    started = []

    def start(host="", takeover=30.0, beat=0.2):
        monkeypatch.setattr(lock, "TAKEOVER", takeover)
        monkeypatch.setattr(lock, "BEAT", beat)
        words = [sys.executable, "-c", HOLD, str(tmp_path / ".lease"), host, str(takeover), str(beat)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "in\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def without_exchange(monkeypatch):
    """Makes the file system one that cannot exchange two names."""
    monkeypatch.setattr("filelock._soft._exclusive._recovery.exchange_names", lambda *names: False)


def test_a_second_one_is_refused_until_the_first_ends(tmp_path):
    file = tmp_path / ".lease"
    refused = pytest.raises(VitposError, match=r"^taken \(process \d+ on .* since 20.*\)$")
    with hold(file, "taken"), refused, hold(file, "taken"):
        pass
    with hold(file, "taken"):
        assert file.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["", "node7"])
def test_one_at_work_is_refused_with_its_computer(tmp_path, other, host):
    process = other(host)
    with pytest.raises(VitposError) as refused, hold(tmp_path / ".lease", "taken"):
        pass
    found = re.fullmatch(r"taken \(process (\d+) on (\S+) since (.*)\)", str(refused.value))
    assert int(found[1]) == process.pid
    assert not host or found[2] == host
    assert abs(time.mktime(time.strptime(found[3], "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
    assert process.poll() is None


def test_one_that_was_killed_is_replaced_at_once_on_its_computer(tmp_path, other):
    process = other(takeover=1000)
    process.kill()
    process.wait()
    with hold(tmp_path / ".lease", "taken"):
        assert not list(tmp_path.glob(".lease.*"))


def test_one_that_was_killed_is_replaced_after_a_while_from_another_computer(tmp_path, other, capsys):
    process = other("node7", takeover=1)
    process.kill()
    process.wait()
    began = time.monotonic()
    with hold(tmp_path / ".lease", "taken"):
        assert time.monotonic() - began >= 1
    assert f"1 s for a sign of life of process {process.pid} on node7" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["", "node7"])
def test_a_lock_is_taken_over_where_names_cannot_be_exchanged(tmp_path, other, without_exchange, host):
    process = other(host, takeover=1)
    process.kill()
    process.wait()
    with hold(tmp_path / ".lease", "taken"):
        assert not list(tmp_path.glob(".lease.*"))


def test_one_that_was_suspended_ends_without_a_word_on_disk(tmp_path, other):
    process = other("node7", takeover=1)
    process.send_signal(signal.SIGSTOP)
    with hold(tmp_path / ".lease", "taken"):
        (tmp_path / "work").write_text("of the new one")
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 1
        error = process.stderr.read()
        assert "taken over by process" in error
        assert error.count("\n") == 1
        assert (tmp_path / ".lease").exists()


def test_a_lock_of_a_suspended_one_that_nobody_took_is_still_its_own(tmp_path, other):
    process = other("node7", takeover=30, beat=0.2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    (tmp_path / "work").unlink(missing_ok=True)
    time.sleep(0.5)
    assert process.poll() is None
    while not (tmp_path / "work").exists():
        time.sleep(0.01)


def test_a_file_of_something_else_is_no_lock_that_ever_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TAKEOVER", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    (tmp_path / ".lease").touch()
    with pytest.raises(VitposError, match=r"taken \(process \? .*remove .*\.lease"), hold(tmp_path / ".lease", "taken"):
        pass


def test_what_cannot_be_written_is_no_lock(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"), hold(tmp_path / "file" / ".lease", "taken"):
        pass
