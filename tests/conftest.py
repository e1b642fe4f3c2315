"""What many tests need: real data where it is, small studies, and a machine left as it was found."""

import os
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_process_group():
    """Lightning leaves the process group of a distributed strategy behind, and later trainers think they are in it."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if not torch.cuda.is_available() and not os.environ.get("VITPOS_GPU_DRY"):
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here; scripts/gpu.sh runs these on one"))


@pytest.fixture
def cifar_root() -> Path:
    """The folder that holds real CIFAR-10, or a skip that says where it was looked for."""
    root = Path(os.environ.get("VITPOS_DATA", SHARED))
    if not (root / "cifar10").exists() and not (root / "cifar-10-batches-py").exists():
        pytest.skip(f"no CIFAR-10 in {root}: set VITPOS_DATA to the folder that holds it")
    return root


class Here:
    """Stands in for an engine: runs come one after another in this process, so that tests can reach into them."""

    def __init__(self, options, results) -> None:
        self.slots, self.results, self.ended = options.workers or 1, results, []

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, run) -> None:
        from vitpos.study import run as runs

        self.ended.append(runs.execute(run, self.results.of(run)))

    def wait(self, seconds: float):
        return [self.ended.pop(0)]


@pytest.fixture
def in_process(monkeypatch):
    """Makes studies run in this process."""
    monkeypatch.setattr("vitpos.study.engines.make", Here)


def write_study(folder: Path, name: str = "small", **changes: object) -> Path:
    """Writes a small study on digits, about a second a run, and returns its file; keywords change its keys."""
    base = folder / "base.yaml"
    if not base.exists():
        config = {
            "model": {"name": "vitpos_nano_patch4_32", "patch_size": 2, "warmup_epochs": 0},
            "data": {"name": "digits", "batch_size": 64, "crop_padding": 0, "flip": False},
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 4},
        }
        base.write_text(yaml.safe_dump(config))
    keys = {
        "question": "Does it work?",
        "base": "base.yaml",
        "axes": {"position": ["none", "learned"]},
        "seeds": [0, 1],
        "reference": "learned",
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    return file


@pytest.fixture
def study_file(tmp_path: Path):
    """Returns `write_study` for a folder of the test."""
    return partial(write_study, tmp_path)


@dataclass(frozen=True)
class Done:
    """A study that was run: its file, the folder of all results, and what the command printed."""

    file: Path
    results: Path
    printed: str

    @property
    def folder(self) -> Path:
        return self.results / self.file.stem


@pytest.fixture(scope="session")
def done_once(tmp_path_factory) -> Done:
    """The small study, run once for all tests."""
    from vitpos.cli.main import main

    folder = tmp_path_factory.mktemp("done")
    file, printed = write_study(folder), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr("vitpos.study.engines.make", Here)
        assert main(["study", "run", str(file), "--results", str(folder / "results")]) == 0
    return Done(file, folder / "results", printed.getvalue())


@pytest.fixture
def done(done_once, tmp_path) -> Done:
    """A copy of the finished study for a test to change."""
    shutil.copytree(done_once.file.parent, tmp_path, dirs_exist_ok=True)
    return Done(tmp_path / done_once.file.name, tmp_path / "results", done_once.printed)


@pytest.fixture
def refused(capsys):
    """Returns a function that runs a command that must be refused, and returns its one line."""
    from vitpos.cli.main import main

    def run(*words, expected=()):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vitpos: error: ")
        assert error.count("\n") == 1
        assert all(str(text) in error for text in expected), error
        return error

    return run
