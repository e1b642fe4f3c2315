"""Measures the cost of each scheme: parameters, operations, and the time of a training step relative to none.

    python scripts/cost.py                                     # everything: about 10 minutes on two CPU cores
    python scripts/cost.py --schemes rope_axial cpe --rounds 5

Every scheme trains the same ViT (width 192, 12 blocks, 3 heads, 64 tokens of 4 pixels) on one batch. Each step is timed
between two steps of none, so that other load on the machine slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import growth
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vitpos
from vitpos.errors import VitposError
from vitpos.study.run import hardware
from vitpos.train.speed import keep_memory

MODEL = "vitpos_tiny_patch4_32"
SUMS = ["learned+rope_axial"]


def main() -> None:
    """Measures and writes ``results/cost.md``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", nargs="+", default=[*vitpos.available(), *SUMS], help="(all)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each scheme (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/cost.md"), help="(%(default)s)")
    options = parser.parse_args()
    keep_memory()
    try:
        models = {scheme: timm.create_model(MODEL, position=scheme) for scheme in options.schemes}
    except VitposError as error:
        parser.error(str(error))
    plain = timm.create_model(MODEL, position="none")
    least = operations(plain)
    steps = {scheme: growth.trainer(model) for scheme, model in models.items()}
    ratios = against(growth.trainer(plain), steps, options.rounds)
    lines = [
        "# What each scheme costs",
        "",
        f"{hardware(growth.DEVICE.type)}; torch {torch.__version__}. {MODEL} (width 192, 12 blocks, 3 heads of 64), "
        f"64 tokens, batches of {growth.BATCH}.",
        "Operations are those of products in one forward (as torch counts them). The time is that of a training step "
        f"relative to `none`: median, least and most of {options.rounds} steps, each between two of `none`. "
        "Images/s are what the median leaves of those of `none`.",
        "",
        "| scheme | parameters | operations | step | least to most | images/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for scheme, model in models.items():
        own, found = sum(p.numel() for p in model.pos_embed.parameters()), ratios[scheme]
        lines.append(
            f"| `{scheme}` | {own:,} | {operations(model) / least - 1:+.1%} | {statistics.median(found):.2f} "
            f"| {min(found):.2f} to {max(found):.2f} | {1 / statistics.median(found):.0%} |"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def operations(model: torch.nn.Module) -> int:
    """Counts the operations of matrix products in the forward pass of one image (a multiply-add counts as 2)."""
    image = torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops()


def against(plain: Callable[[], None], steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Times every step between two steps of `plain`, in turn over the rounds; returns the ratios."""
    ratios: dict[str, list[float]] = {scheme: [] for scheme in steps}
    before = [seconds(plain) for _ in range(3)][-1]  # the first ones warm up
    for step in steps.values():
        step()
    for done in range(rounds):
        print(f"round {done + 1} of {rounds}", flush=True)
        for scheme, step in steps.items():
            own, after = seconds(step), seconds(plain)
            ratios[scheme].append(2 * own / (before + after))
            before = after
    return ratios


def seconds(step: Callable[[], None]) -> float:
    """Times a step."""
    began = time.perf_counter()
    step()
    if growth.DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
