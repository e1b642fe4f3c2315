"""Faster training without changing results: memory, attention, compilation."""

import ctypes
import platform
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer

from vitpos.errors import VitposError

Attention = Literal["auto", "fused", "unfused"]
Compile = Literal["auto"] | bool

# options of glibc's mallopt
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
# Up to this many tokens, the (tokens x tokens) matrices of unfused attention are small compared to other activations.
UNFUSED_TOKENS = 256


def keep_memory() -> None:
    """Makes the process keep freed memory for the next step, instead of returning it and faulting it in again.

    At width 96, about 30,000 page faults per step took 8 % of its time. Does nothing if the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**26)


def use_tf32(use: bool) -> None:
    """Sets whether a GPU computes products of float32 in TF32, for the process, and so anew for each run.

    By the older of torch's two ways: after the newer one, `torch.get_float32_matmul_precision`, which Lightning calls
    on GPUs from Ampere on, raises an error.
    """
    torch.set_float32_matmul_precision("high" if use else "highest")
    torch.backends.cudnn.allow_tf32 = use


def choose_attention(net: VisionTransformer, attention: Attention, device: str, precision: str) -> None:
    """Sets whether the attentions of a network use the fused operation.

    On a CPU in bfloat16 the backward of the fused operation is slow: unfused, a whole step takes 0.35 to 0.8 of the
    time. In float32 and on a GPU the fused one is as fast or faster, and beyond 256 tokens it saves memory.

    Args:
        net: The network; changed in place.
        attention: ``fused``, ``unfused``, or the faster one (``auto``).
        device: Type of the training device.
        precision: Lightning's name of the precision, such as ``bf16-mixed``.
    """
    if attention == "auto":
        slow = device == "cpu" and precision.startswith("bf16")
        fused = not slow or net.patch_embed.num_patches > UNFUSED_TOKENS
    else:
        fused = attention == "fused"
    for block in net.blocks:
        block.attn.fused_attn = fused  # type: ignore[union-attr]


def compiles(compile: Compile, device: str) -> bool:
    """Returns whether to compile the training step: by default on a GPU.

    On a CPU a compiled step is a sixth faster on two threads and no faster on one, and takes 25 s to compile.

    Args:
        compile: True, False, or ``auto``: on a GPU if compilation works.
        device: Type of the training device.

    Raises:
        VitposError: `compile` is true, but compilation fails.
    """
    if compile is False or (compile == "auto" and device != "cuda"):
        return False
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, no headers, no Triton, an old GPU: each raises its own error
        if compile == "auto":
            return False
        reason = " ".join(str(error).split())
        raise VitposError(f"model.compile is true, but torch.compile fails on this {device}: {reason:.200}") from error
    return True
