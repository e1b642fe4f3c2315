"""What this machine has."""

import pytest
import torch

from vitpos.study import machine


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [(None, 3, ["0", "1", "2"]), ("2,3", 2, ["2", "3"]), ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b"]),
     ("", 0, []), ("1,-1,2", 1, ["1"])],
)  # fmt: skip
def test_only_gpus_that_the_user_allows_are_used(monkeypatch, given, count, names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert machine.visible_gpus() == names
