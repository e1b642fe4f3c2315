"""The sections of gpu.sh, each in a process with a time limit of its own, and the page that is made of them.

A section prints lines of Markdown as it comes by them; those that it had printed when it failed or was cut stay.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from vitpos.provenance import commit, sources

ROOT = Path(__file__).resolve().parent.parent
DRY = bool(os.environ.get("VITPOS_GPU_DRY"))
TOTAL = 6000 if DRY else 600  # seconds, with the installation
MODELS = ("d64",) if DRY else ("d64", "d192")  # of bench.py
TURN = 0.1 if DRY else 2.0  # seconds of a turn of a contender
LIMITS = {"machine": 60, "tests": 240, "bench": 130, "beside": 110, "study": 130}  # seconds
if DRY:  # on a CPU that may be busy
    LIMITS = {name: 10 * limit for name, limit in LIMITS.items()}
TITLES = {
    "machine": "Machine",
    "tests": "Tests on CUDA",
    "bench": "Speed of one run",
    "beside": "Runs side by side on one GPU",
    "study": "The quickstart",
}
WAYS = {
    "vitpos": "vitpos as by default: compiled, fused attention",
    "eager": "not compiled",
    "unfused": "compiled, attention product by product",
    "eager_unfused": "neither",
    "graphs": "compiled to CUDA graphs (`reduce-overhead`)",
    "evaluation": "evaluation",
    "bare": "bare loop on one batch, compiled",
    "bare_graphs": "bare loop, CUDA graphs",
    "lightning": "plain Lightning script, float32",
    "timm_loop": "timm's loop, bf16",
}


def main() -> int:
    """Carries out the sections that are not done, within the time that is left, and writes the page after each.

    Returns:
        0 where all sections are done, 1 where one failed or found no time.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spent", type=int, default=0, help="seconds that the installation took")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", help="folder of the page (%(default)s)")
    parser.add_argument("--again", action="store_true", help="do again what was done before")
    parser.add_argument("--section", choices=list(LIMITS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        {"machine": machine, "tests": tests, "bench": bench, "beside": beside, "study": study}[options.section]()
        return 0
    if not DRY and not torch.cuda.is_available():
        parser.error(
            f"there is a GPU, but torch {torch.__version__} finds none: install the PyTorch that goes with its driver "
            "(nvidia-smi names it) and start again"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    ends = time.monotonic() + TOTAL - options.spent
    card = "dry" if DRY else re.sub(r"[^\w.]+", "-", torch.cuda.get_device_name())
    work = options.out / ".work" / card
    work.mkdir(parents=True, exist_ok=True)
    state = work / "state.json"
    code = f"{sources()}, torch {torch.__version__}"  # what was measured with another is done again
    kept = json.loads(state.read_text()) if state.exists() and not options.again else {}
    found = {name: each for name, each in kept.items() if each["code"] == code}
    for name in LIMITS:
        if found.get(name, {}).get("outcome") != "done":
            limit = min(LIMITS[name], ends - time.monotonic())
            print(f"{TITLES[name]} (at most {max(limit, 0):.0f} s)", flush=True)
            found[name] = {**carry_out(name, work, limit), "code": code}
            state.write_text(json.dumps(found))
        page(options.out / f"{card}.md", card, found)
        print(f"  {found[name]['outcome']}", flush=True)
    print(f"written to {options.out / f'{card}.md'}")
    return int(any(each["outcome"] != "done" for each in found.values()))


def carry_out(name: str, work: Path, limit: float) -> dict[str, Any]:
    """Carries a section out, and returns its text, how it ended and how long it took."""
    if limit < 5:
        return {"outcome": "no time was left; start scripts/gpu.sh again", "text": "", "seconds": 0}
    began, out, log = time.monotonic(), work / f"{name}.md", work / f"{name}.log"
    own = {"BENCH_MADE_UP": "1", "GPU_WORK": str(work), "PYTHONUNBUFFERED": "1"}
    own |= {"VITPOS_CACHE": str(work / "cache"), "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    own |= {"TORCHDYNAMO_DISABLE": "1", "BENCH_BATCH": "4"} if DRY else {}
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, "--section", name],
            stdout=stdout, stderr=stderr, cwd=ROOT, env={**os.environ, **own}, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            outcome = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"was cut after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
    text = out.read_text(errors="replace")
    if outcome != "done":
        last = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        text += f"\n```\n{last}\n```\n"
    return {"outcome": outcome, "text": text, "seconds": time.monotonic() - began}


def page(file: Path, card: str, found: dict[str, Any]) -> None:
    """Writes the page."""
    lines = [f"# vitpos on {card}", "", f"By `bash scripts/gpu.sh` at commit {commit()}.", ""]
    lines += [f"- {TITLES[name]}: {each['outcome']}, {each['seconds']:.0f} s" for name, each in found.items()]
    for name, each in found.items():
        lines += ["", f"## {TITLES[name]}", "", each["text"].strip() or f"({each['outcome']})"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def machine() -> None:
    """Says what everything runs on, and whether torch.compile works here."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader"]
    try:
        print("- card:", subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"- card: nvidia-smi says nothing ({error})")
    print(f"- CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {os.cpu_count()} CPU cores")
    if torch.cuda.is_available():
        print(f"- compute capability {torch.cuda.get_device_capability()}, bf16 {torch.cuda.is_bf16_supported(False)}")
    for name in ("torch", "timm", "lightning", "triton"):
        try:
            print(f"- {name} {version(name)}")
        except ModuleNotFoundError:
            print(f"- {name}: not installed")
    print(f"- Python {platform.python_version()}, {platform.platform()}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
        print("- torch.compile works")
    except Exception as error:  # no compiler, no headers, no Triton, an old GPU: each has its own
        print(f"- torch.compile fails: {' '.join(str(error).split())[:300]}")
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.randn(64 if DRY else 8192, 64 if DRY else 8192, device=device, dtype=dtype)
        times = []
        for _ in range(8):
            began = time.perf_counter()
            one @ one
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        print(f"- products in {dtype}: {2 * len(one) ** 3 / min(times) / 1e12:.1f} TFLOP/s")


def tests() -> None:
    """Runs the tests marked cuda, and prints how they came out.

    Raises:
        SystemExit: Some failed.
    """
    words = "-m pytest tests/test_cuda.py -v -rfExXs --tb=short -p no:cacheprovider -W default --color=no"
    process = subprocess.Popen([sys.executable, *words.split()], stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    lines = []
    for line in process.stdout or ():
        print(line, end="", file=sys.stderr, flush=True)  # to the log: the page shows its end if time runs out
        lines.append(line.rstrip())
    print(f"{lines[-1].strip('= ') if lines else 'pytest said nothing'}\n")
    found = [line for line in lines if re.match("(FAILED|ERROR|XFAIL|XPASS|SKIPPED) ", line)]
    print("".join(f"- {line[:400]}\n" for line in found))
    if process.wait():
        errors = [line for line in lines if line.startswith("E ")]
        sys.exit("\n".join(errors[-60:]))


def contender(name: str, model: str) -> Any:
    """Starts a contender of bench.py."""
    sys.path.insert(0, str(Path(__file__).parent))
    from bench import Contender

    return Contender(name, model)


def at_a_time() -> int:
    """Returns how many processes of torch the memory of this machine holds, up to 8."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(2, min(8, int(gigabytes // 4)))


def ready(names: list[str], model: str) -> Iterator[Any]:
    """Yields contenders; the next ones are made ready in the meantime, as many as there is memory for."""
    waiting = [contender(name, model) for name in names[: at_a_time()]]
    for name in [*names[at_a_time() :], *[""] * len(waiting)]:
        each = waiting.pop(0)
        yield each
        each.end()
        waiting += [contender(name, model)] if name else []


def bench() -> None:
    """Prints images a second for each way to train, and for each model; one that fails is a line."""
    print(f"Made-up images of 32 pixels in batches of 256, 64 tokens; median of three turns of {TURN} s.")
    failed = []
    for model in MODELS:
        print(
            f"\n| {model}, 6 blocks | images/s | x default | first step, s | GB |\n| --- | ---: | ---: | ---: | ---: |"
        )
        default = 0.0
        for each in ready(list(WAYS), model):
            name = each.name
            try:
                each.wait()
                for _ in range(1 if DRY else 3):
                    each.turn(TURN)
                rate = statistics.median(each.rates)
                default = default or rate
                ratio = f"{rate / default:.2f}"
                print(f"| {WAYS[name]} | {rate:,.0f} | {ratio} | {each.ready:.0f} | {each.gigabytes:.2f} |", flush=True)
            except (SystemExit, OSError) as error:
                failed.append(name)
                print(f"| {WAYS[name]} | failed: {str(error)[:200].replace('|', ' ')} | | | |", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def beside() -> None:
    """Prints the images a second of 1, 2, 4 and 8 runs of a study at a time."""
    for model in MODELS:
        first = contender("study", model).wait()  # fills the caches of torch.compile for the others
        running = [
            first,
            *(each.wait() for each in [contender("study", model) for _ in range(1 if DRY else at_a_time() - 1)]),
        ]
        print(f"\n| {model}: runs at a time | images/s of all | x one | GB each |\n| ---: | ---: | ---: | ---: |")
        alone = 0.0
        for count in sorted({min(count, len(running)) for count in (1, 2, 4, 8)}):
            now = running[:count]
            for each in now:
                each.go(2 * TURN)
            for each in now:
                each.note()
            rate = sum(each.rates[-1] for each in now)
            alone = alone or rate
            print(f"| {len(now)} | {rate:,.0f} | {rate / alone:.2f} | {first.gigabytes:.2f} |", flush=True)
        for each in running:
            each.end()


def study() -> None:
    """Runs the quickstart, and prints what came of each scheme and how fast it was.

    Raises:
        SystemExit: Runs failed.
    """
    work, file = Path(os.environ["GPU_WORK"]), ROOT / "configs" / "studies" / "quickstart.yaml"
    if DRY:
        with tempfile.TemporaryDirectory() as folder:
            small = yaml.safe_load(file.read_text())
            small |= {"seeds": [0, 1], "base": str(ROOT / "configs" / "vit_digits.yaml")}
            small["overrides"] = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "model.warmup_epochs": 0}
            file = Path(folder, "quickstart.yaml")
            file.write_text(yaml.safe_dump(small))
            carry_study(file, work)
    else:
        carry_study(file, work)


def carry_study(file: Path, work: Path) -> None:
    """Runs a study, and prints its table."""
    began = time.monotonic()
    words = ["-m", "vitpos", "study", "run", str(file), "--results", str(work / "results"), "--leave-old"]
    done = subprocess.run([sys.executable, *words], stdout=sys.stderr)
    rows = work / "results" / "quickstart" / "rows.jsonl"
    table: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, rows.read_text().splitlines() if rows.exists() else []):
        table.setdefault(row["axes"]["position"], []).append(row)
    print(f"{sum(map(len, table.values()))} runs after {time.monotonic() - began:.0f} s.\n")
    print(
        "| scheme | seeds | test accuracy, mean | images/s of a run, median | on |\n| --- | ---: | ---: | ---: | --- |"
    )
    for scheme, made in table.items():
        accuracy = statistics.mean(row["metrics"]["test/accuracy"] for row in made)
        rate = statistics.median(row["images_per_second"] for row in made)
        where = f"{made[0]['environment']['hardware']}, {made[0]['environment']['precision']}"
        print(f"| `{scheme}` | {len(made)} | {accuracy:.2%} | {rate:,.0f} | {where} |")
    if done.returncode:
        sys.exit(f"vitpos study run ended with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
