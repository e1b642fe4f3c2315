"""Common random numbers: every consumer draws from its own stream, derived from the seed and its purpose."""

import hashlib

import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """Derives the seed of one stream, a pure function of its arguments.

    It is the first 8 bytes of ``BLAKE2b(f"{seed}/{purpose}/{counters...}")``, so streams of different purpose, epoch or
    step do not overlap, and no stream depends on how much another has drawn.

    Args:
        seed: The seed of the run.
        purpose: The consumer, such as ``"weights"``, ``"order"``, ``"augment"`` or ``"dropout"``.
        *counters: Epoch or step.

    Returns:
        A seed for ``torch.manual_seed``, in [0, 2**63).
    """
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns the generator of one stream (see `derive`) on a device."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, *counters))
