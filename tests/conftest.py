"""What many tests need: real data where it is, small studies, and a machine left as it was found."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture
def cifar_root() -> Path:
    """The folder that holds real CIFAR-10, or a skip that says where it was looked for."""
    root = Path(os.environ.get("VITPOS_DATA", SHARED))
    if not (root / "cifar10").exists() and not (root / "cifar-10-batches-py").exists():
        pytest.skip(f"no CIFAR-10 in {root}: set VITPOS_DATA to the folder that holds it")
    return root


@pytest.fixture
def study_file(tmp_path: Path):
    """Returns a function that writes a small study on digits and returns its file; keywords change its keys."""

    def make(name: str = "small", **changes: object) -> Path:
        import yaml

        base = tmp_path / "base.yaml"
        if not base.exists():
            config = {
                "model": {"name": "vitpos_nano_patch4_32", "patch_size": 2, "warmup_epochs": 0},
                "data": {"name": "digits", "batch_size": 64, "crop_padding": 0, "flip": False},
                "trainer": {"max_epochs": 1, "accelerator": "cpu"},
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
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return file

    return make
