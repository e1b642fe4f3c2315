"""A worker's time limit, and where a run hung."""

import os
import subprocess
import sys
import sysconfig

import pytest

import vitpos
from vitpos.study import worker

HANGS = """
import sys, time, types
from pathlib import Path
sys.modules["vitpos"] = types.ModuleType("vitpos")  # its own imports take seconds, and are not needed here
sys.modules["vitpos"].__path__ = [sys.argv[2]]
from vitpos.study.worker import limited

def hangs():
    {how}

with limited(Path(sys.argv[1]), 1):
    hangs()
"""


@pytest.mark.parametrize(
    "how",
    ["time.sleep(1000)", "import ctypes; ctypes.PyDLL(None).sleep(1000)",
     "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"],
)  # fmt: skip
def test_a_limit_ends_the_process_and_says_where_it_was(tmp_path, how):
    script, file = tmp_path / "script.py", tmp_path / worker.HUNG
    script.write_text(HANGS.format(how=how))
    done = subprocess.run(
        [sys.executable, str(script), str(file), vitpos.__path__[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert worker.where(file.read_text()) == f"{script}:9 hangs"


def test_what_ends_in_time_leaves_nothing(tmp_path):
    for limit in (None, 1000, 1e9):
        with worker.limited(tmp_path / worker.HUNG, limit):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_innermost_line_that_is_not_a_library_is_shown():
    library, own = sysconfig.get_path("purelib"), os.path.dirname(worker.__file__)  # noqa: PTH120
    dump = (
        "Timeout (0:00:01)!\nThread 0x01 (most recent call first):\n"
        '  File "/other/thread.py", line 1 in run\n\n'
        "Thread 0x02 (most recent call first):\n"
        f'  File "{library}/torch/nn/module.py", line 9 in _call\n'
        '  File "<frozen runpy>", line 2 in run\n'
        '  File "/home/me/my scheme.py", line 12 in tokens\n'
        f'  File "{own}/run.py", line 7 in train\n'
    )
    assert worker.where(dump) == "/home/me/my scheme.py:12 tokens"
    assert worker.where(dump.replace("/home/me/my scheme.py", f"{library}/x.py")) == f"{own}/run.py:7 train"
    assert worker.where("Timeout") == ""
