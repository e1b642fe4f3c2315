"""Measures vitpos's training speed against common alternatives, and how the cost grows with the model.

    python scripts/bench.py                                    # everything: about 20 minutes on two CPU cores
    python scripts/bench.py --models d64 --rounds 2 --no-growth

The same ViT is trained on the same CIFAR-10 images (found as usual: $VITPOS_DATA, else ./data) by a plain Lightning
script, timm's loader and loop, vitpos, several runs of vitpos side by side as in a study, and a bare loop on one fixed
batch. They take turns, so that other load on the machine slows all of them; ratios are medians of those within a round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import growth
import torch

from vitpos.data.module import ImageData
from vitpos.errors import VitposError
from vitpos.study.run import hardware

CONTENDERS = {
    "lightning": "(a) plain Lightning",
    "timm_loop": "(b) timm's loop, bf16",
    "vitpos": "(c) vitpos",
    "compiled": "(c) vitpos, compiled",
    "study": "(c) vitpos, runs side by side",
    "bare": "(d) bare loop",
    "evaluation": "vitpos, evaluation",
}
CUDA = torch.cuda.is_available()


class Contender:
    """One way to train a model, in one process or several, with its measurements."""

    def __init__(self, name: str, model: str, processes: int = 1) -> None:
        """Starts the processes."""
        self.name, self.began = name, time.perf_counter()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (for as long as the process)
        script = str(Path(__file__).parent / "contenders.py")
        self.processes = [
            subprocess.Popen(
                [sys.executable, script, name, model],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
            for _ in range(processes)
        ]
        self.rates: list[float] = []
        self.gigabytes = self.ready = 0.0

    def wait(self) -> "Contender":
        """Waits until they have trained a step."""
        self.answers()
        self.ready = time.perf_counter() - self.began
        return self

    def turn(self, seconds: float) -> None:
        """Lets it train for this many seconds."""
        self.go(seconds)
        self.note()

    def go(self, seconds: float) -> None:
        """Starts a turn of this many seconds."""
        for process in self.processes:
            print(seconds, file=process.stdin, flush=True)

    def note(self) -> None:
        """Waits for the end of the turn and records it."""
        answers = self.answers()
        self.rates.append(sum(answer["rate"] for answer in answers))
        self.gigabytes = max(answer["gigabytes"] for answer in answers)

    def answers(self) -> list[dict[str, float]]:
        """Waits for the answers of its processes."""
        lines = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(lines):
            self.log.seek(0)
            sys.exit(f"bench: {self.name} ended early: {(self.log.read().splitlines() or ['no message'])[-1]}")
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        """Ends its processes."""
        for process in self.processes:
            process.communicate()


def main() -> None:
    """Measures, prints, and writes ``bench.md``, ``bench.json`` and ``growth.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(growth.SIZES), choices=list(growth.SIZES))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a turn, at least three steps (default 5)")
    parser.add_argument("--no-growth", action="store_true", help="leave out how cost grows with the model")
    parser.add_argument("--output", type=Path, default=Path("results/bench"), help="folder (default results/bench)")
    options = parser.parse_args()
    try:
        ImageData(name="cifar10").source  # noqa: B018  (decoded once, for all contenders)
    except VitposError as error:
        parser.error(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    text = [
        f"{hardware('cuda' if CUDA else 'cpu')}; torch {torch.__version__}, Python {platform.python_version()}.",
        "Batches of 256 images of 32 pixels, 64 tokens; median, least and most of the turns.",
    ]
    print("\n".join(text), flush=True)
    record = {}
    products: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for model in options.models:
        beside = (os.cpu_count() or 1) if not CUDA else 1
        contenders = [Contender(name, model, beside if name == "study" else 1).wait() for name in CONTENDERS]
        for _ in range(options.rounds):
            for dtype, rates in products.items():
                rates.append(product_rate(dtype))
            for contender in contenders:
                contender.turn(options.seconds)
        lines = table(model, contenders, max(map(statistics.median, products.values())))
        record[model] = {contender.name: contender.rates for contender in contenders}
        print("\n".join(lines), flush=True)
        text += lines
        for contender in contenders:
            contender.end()
    float32, bfloat16 = map(statistics.median, products.values())
    text.insert(1, f"Products of 2048 x 2048 matrices: {float32:.0f} GFLOP/s in float32, {bfloat16:.0f} in bfloat16.")
    print(text[1])
    if not options.no_growth:
        peak = max(float32, bfloat16)
        points = growth.measure()
        lines = growth.table(points, peak)
        growth.draw(points, peak, options.output / "growth.png")
        print("\n".join(lines))
        text += [*lines, "", "![Cost of training](growth.png)"]
    (options.output / "bench.md").write_text("# Training speed\n\n" + "\n".join(text) + "\n", encoding="utf-8")
    (options.output / "bench.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.output}")


def product_rate(dtype: torch.dtype) -> float:
    """Measures the rate of matrix products in GFLOP/s, the median of nine, in turn with the contenders."""
    one, two = (torch.randn(2048, 2048).to("cuda" if CUDA else "cpu", dtype) for _ in range(2))
    times = []
    for _ in range(12):
        began = time.perf_counter()
        one @ two
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(times[3:]) / 1e9


def table(model: str, contenders: list[Contender], peak: float) -> list[str]:
    """Formats the measurements of a model as lines of Markdown."""
    operations = growth.operations(**growth.SIZES[model])
    rates = {contender.name: contender.rates for contender in contenders}
    lines = [
        "",
        f"## {model} L6: {operations / 1e9:.2f} GFLOP an image",
        "",
        "| | images/s | least to most | x (a) | x (b) | x (d) | share of products | first step, s | GB a process |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for contender in contenders:
        own = contender.rates
        ratios = [
            statistics.median(mine / other for mine, other in zip(own, rates[name], strict=True))
            for name in ("lightning", "timm_loop", "bare")
        ]
        share = statistics.median(own) * operations / peak / 1e9
        cells = [
            CONTENDERS[contender.name],
            f"{statistics.median(own):,.0f}",
            f"{min(own):,.0f} to {max(own):,.0f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            "-" if contender.name == "evaluation" else f"{share:.0%}",
            f"{contender.ready:.1f}",
            f"{contender.gigabytes:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    training = next(contender.rates for contender in contenders if contender.name == "vitpos")
    evaluation = next(contender.rates for contender in contenders if contender.name == "evaluation")
    share = statistics.median(one / other for one, other in zip(training, evaluation, strict=True))
    return [*lines, "", f"An image of evaluation takes {share:.2f} of the time of one of training."]


if __name__ == "__main__":
    main()
