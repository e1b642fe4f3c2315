"""What makes training fast on the machine at hand without changing what is computed: memory, attention, compilation."""

import ctypes
import platform
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer

from vitpos.errors import VitposError

Attention = Literal["auto", "fused", "unfused"]
Compile = Literal["auto"] | bool

# glibc's names of options of mallopt
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
# Tokens up to which the (tokens x tokens) matrices of unfused attention are small against the other activations.
UNFUSED_TOKENS = 256


def keep_memory() -> None:
    """Makes the process keep freed memory for its next step, instead of handing it back and faulting it in again.

    At width 96, some 30,000 page faults a step were 8 % of its time. Where the C library is not glibc, nothing is done.
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
    """Sets whether the attentions of a network are computed by the fused operation or product by product.

    On a CPU in bfloat16 the backward of the fused operation is slow: product by product, a whole step takes 0.35 to
    0.8 of the time. In float32 and on a GPU the fused one is faster or equal, and past 256 tokens it saves memory.

    Args:
        net: The network; its attentions are changed in place.
        attention: ``fused``, ``unfused``, or what is faster (``auto``).
        device: Type of the device that will train.
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
    """Tells whether the training step is to be compiled: on a GPU, unless the option says otherwise.

    On a CPU a compiled step is a sixth faster on two threads and no faster on one, for 25 s of warm-up.

    Args:
        compile: Whether to; ``auto`` compiles on a GPU where that works.
        device: Type of the device that will train.

    Raises:
        VitposError: True where it does not work.
    """
    if compile is False or (compile == "auto" and device != "cuda"):
        return False
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, no headers, no Triton, an old GPU: each has its own
        if compile == "auto":
            return False
        reason = " ".join(str(error).split())
        raise VitposError(f"model.compile is true, but torch.compile fails on this {device}: {reason:.200}") from error
    return True
