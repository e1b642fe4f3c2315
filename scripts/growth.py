"""How the time of a training step grows with tokens, width and depth, compared to its operation count."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import vitpos.models  # noqa: F401  (registers the models)
from vitpos.train.cli import fast_bf16
from vitpos.train.speed import choose_attention, keep_memory

SIZES = {
    "d64": {"embed_dim": 64, "depth": 6, "num_heads": 2},
    "d96": {"embed_dim": 96, "depth": 6, "num_heads": 3},
    "d192": {"embed_dim": 192, "depth": 6, "num_heads": 3},
}
BASE = {"embed_dim": 96, "depth": 6, "patch_size": 4}
FACTORS = {"patch_size": (8, 4, 2), "embed_dim": (48, 96, 192, 384), "depth": (3, 6, 12)}
BATCH = 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Point(NamedTuple):
    """A model size and the cost of training on one image."""

    factor: str
    value: int
    operations: float
    milliseconds: float


def operations(embed_dim: int, depth: int, patch_size: int = 4, **_: Any) -> float:
    """Counts the operations of training on one 32-pixel image (a multiply-add counts as 2, backward twice the forward).

    Per token, a block has ``24 d^2`` in its four linear layers and ``4 N d`` in its attention.
    """
    tokens = (32 // patch_size) ** 2
    return 3.0 * tokens * depth * (24 * embed_dim**2 + 4 * tokens * embed_dim)


def measure() -> list[Point]:
    """Times steps of models that differ from `BASE` in one factor, in turn; returns medians of seven rounds."""
    keep_memory()
    sizes = [(factor, value) for factor, values in FACTORS.items() for value in values]
    steps = [trainer(model({**BASE, factor: value})) for factor, value in sizes]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(9):  # the first two warm up
        for step, own in zip(steps, times, strict=True):
            began = time.perf_counter()
            step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            own.append((time.perf_counter() - began) / BATCH * 1e3)
    return [
        Point(factor, value, operations(**{**BASE, factor: value}), statistics.median(own[2:]))
        for (factor, value), own in zip(sizes, times, strict=True)
    ]


def model(size: dict[str, int]) -> VisionTransformer:
    """Builds a model with 32 channels per head."""
    heads = max(size["embed_dim"] // 32, 1)
    return timm.create_model("vitpos_nano_patch4_32", position="learned", num_heads=heads, **size)


def trainer(model: VisionTransformer) -> Callable[[], None]:
    """Returns a function that trains a model for one step, always on the same batch."""
    model.to(DEVICE)
    bf16 = fast_bf16("auto")
    choose_attention(model, "auto", DEVICE.type, "bf16-mixed" if bf16 else "32-true")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.randn(BATCH, 3, 32, 32, device=DEVICE), torch.randint(0, 10, (BATCH,), device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def table(points: list[Point], peak: float) -> list[str]:
    """Formats the points as lines of Markdown; `peak` is the machine's rate of products in GFLOP/s."""
    lines = [
        "",
        "## How cost grows",
        "",
        "Width 96, depth 6, patches of 4 pixels, and one of them changed.",
        "",
        "| | tokens | GFLOP an image | ms an image | GFLOP/s | share of products |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for point in points:
        tokens = (32 // point.value) ** 2 if point.factor == "patch_size" else 64
        rate = point.operations / point.milliseconds / 1e6
        lines.append(
            f"| {point.factor} {point.value} | {tokens} | {point.operations / 1e9:.3f} | {point.milliseconds:.3f} "
            f"| {rate:.0f} | {rate / peak:.0%} |"
        )
    return lines


def draw(points: list[Point], peak: float, file: Path) -> None:
    """Draws time against operations, with the line of a machine that computes only products."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    names = {"patch_size": "patch", "embed_dim": "width", "depth": "depth"}
    for (factor, name), marker, color in zip(names.items(), "so^", ("#0072b2", "#d55e00", "#009e73"), strict=True):
        own = [point for point in points if point.factor == factor]
        axes.plot(
            [point.operations / 1e9 for point in own],
            [point.milliseconds for point in own],
            marker=marker,
            color=color,
            label=name,
        )
        for point in own:
            axes.annotate(
                "" if point.value == BASE[factor] else f"{name} {point.value}",
                (point.operations / 1e9, point.milliseconds),
                textcoords="offset points",
                xytext=(7, -9),
                fontsize=8,
            )
    span = [min(point.operations for point in points) / 1e9, max(point.operations for point in points) / 1e9]
    axes.plot(span, [value / peak * 1e3 for value in span], color="0.5", linestyle="--", label="products alone")
    base = points[1]
    axes.annotate(
        "width 96, depth 6, patch 4",
        (base.operations / 1e9, base.milliseconds),
        textcoords="offset points",
        xytext=(10, -12),
        fontsize=8,
    )
    axes.margins(x=0.12)
    axes.set(xscale="log", yscale="log", xlabel="GFLOP an image of training", ylabel="milliseconds an image")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
