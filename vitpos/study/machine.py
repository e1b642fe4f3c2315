"""What this machine has. torch, which takes seconds and half a gigabyte, is asked only where it may have a GPU."""

import os
import platform
import sys
from pathlib import Path

DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # of CUDA, of ROCm, of CUDA in WSL


def cuda() -> bool:
    """Tells whether there is a GPU that torch can use."""
    if "torch" not in sys.modules and not any(any(Path("/dev").glob(each)) for each in DEVICES):
        return False
    import torch

    return torch.cuda.is_available()


def default_slots() -> int:
    """Returns a run per processor, or up to four that share a GPU, which a small ViT alone does not fill."""
    # macOS has no sched_getaffinity
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // 4)) if cuda() else cores


def name(device: str) -> str:
    """Names the GPU or the processor."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
