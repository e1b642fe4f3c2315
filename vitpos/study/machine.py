"""What this machine has. torch, which takes seconds and half a gigabyte, is asked only where it may have a GPU."""

import os
import platform
import sys
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # of CUDA, of ROCm, of CUDA in WSL


def cuda() -> bool:
    """Tells whether there is a GPU that torch can use."""
    if "torch" not in sys.modules and not any(any(Path("/dev").glob(each)) for each in DEVICES):
        return False
    import torch

    return torch.cuda.is_available()


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, each as ``CUDA_VISIBLE_DEVICES`` names it; none without CUDA."""
    if not cuda():
        return []
    import torch

    count, given = torch.cuda.device_count(), os.environ.get(VISIBLE)
    names = map(str, range(count)) if given is None else (name.strip() for name in given.split(","))
    return list(names)[:count]


def cores() -> int:
    """Returns the processors that this process may use."""
    # macOS has no sched_getaffinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_slots() -> int:
    """Returns how many runs are carried out at a time at first: one a GPU, else one a processor."""
    return len(visible_gpus()) or cores()


def name(device: str) -> str:
    """Names the GPU or the processor."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
