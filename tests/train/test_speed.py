"""What makes training fast must change nothing but rounding, and must say so where it cannot work."""

import platform
import statistics
import subprocess
import sys

import pytest
import timm
import torch
from lightning.pytorch.callbacks import Callback
from scipy.stats import ttest_1samp
from torch.utils._python_dispatch import TorchDispatchMode

from vitpos.errors import VitposError
from vitpos.train import cli as train_cli
from vitpos.train import speed
from vitpos.train.cli import VitposCLI


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def train(folder, *, seed=0, steps=20, epochs=1, callbacks=(), precision="32-true", **model):
    """Trains on digits and returns the command line that did."""
    config = {
        "position": "learned",
        "seed_everything": seed,
        "model": {"name": "vitpos_nano_patch4_32", "patch_size": 2, "warmup_epochs": 0.5, "lr": 3e-3, **model},
        "data": {"name": "digits", "batch_size": 32, "crop_padding": 0, "flip": False},
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "limit_train_batches": steps,
            "precision": precision,
            "default_root_dir": str(folder),
        },
    }
    cli = VitposCLI(config, run=False, prefix="test")
    cli.trainer.callbacks.extend(callbacks)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def losses(folder, **options):
    seen = Losses()
    train(folder, callbacks=[seen], drop_path_rate=0.3, **options)
    return torch.tensor(seen.values)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("plain"), attention="fused", compile=False)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        pytest.param({"attention": "unfused"}, 5e-6, id="unfused"),  # sums in another order, at a loss of 2.3
        pytest.param({"compile": True}, 5e-6, id="compiled", marks=pytest.mark.slow),
        pytest.param({"precision": "bf16-mixed"}, 1e-2, id="bf16"),  # activations of 8 bits
        pytest.param(
            {"precision": "bf16-mixed", "attention": "unfused", "compile": True},
            1e-2,
            id="all",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_losses_of_the_first_steps_differ_by_rounding_alone(tmp_path, plain, options, bound):
    other = losses(tmp_path, **{"attention": "fused", "compile": False, **options})
    assert len(plain) == 20
    assert (other - plain).abs().max() < bound


def test_the_bounds_tell_another_seed_apart(tmp_path, plain):
    assert (losses(tmp_path, seed=1) - plain).abs().max() > 5e-2


@pytest.mark.slow
def test_the_accuracy_of_a_short_study_is_the_same(tmp_path):
    def accuracy(name, seed, **options):
        cli = train(tmp_path / f"{name}{seed}", seed=seed, steps=None, epochs=6, **options)
        return cli.trainer.callback_metrics["val/accuracy"].item()

    plain = [accuracy("plain", seed, attention="fused", compile=False) for seed in range(4)]
    fast = [accuracy("fast", seed, attention="unfused", compile=True, precision="bf16-mixed") for seed in range(4)]
    low, high = ttest_1samp(plain, 0).confidence_interval()
    assert low > 0.4  # of ten classes: they did learn
    assert low < statistics.mean(fast) < high


@pytest.mark.slow
def test_another_seed_needs_no_other_graph(tmp_path):
    from torch._dynamo.utils import counters

    train(tmp_path / "one", steps=2, compile=True)
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    train(tmp_path / "two", steps=2, compile=True, seed=1)
    assert counters["stats"]["unique_graphs"] == before


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for the device: values read, and tensors of data-dependent size."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_no_step_reads_a_value_from_the_device(tmp_path, mixup):
    counts = []
    for steps in (2, 9):
        with Reads() as reads:
            train(tmp_path / str(steps), steps=steps, compile=False, mixup=mixup)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0  # those of the epoch's end


@pytest.mark.parametrize(
    ("attention", "device", "precision", "patch", "fused"),
    [
        ("auto", "cpu", "bf16-mixed", 4, False),
        ("auto", "cpu", "bf16-true", 2, False),
        ("auto", "cpu", "bf16-mixed", 1, True),  # 1024 tokens
        ("auto", "cpu", "32-true", 4, True),
        ("auto", "cuda", "bf16-mixed", 4, True),
        ("fused", "cpu", "bf16-mixed", 4, True),
        ("unfused", "cuda", "32-true", 1, False),
    ],
)
def test_attention_by_device_precision_and_length(attention, device, precision, patch, fused):
    net = timm.create_model("vitpos_nano_patch4_32", patch_size=patch)
    speed.choose_attention(net, attention, device, precision)
    assert {block.attn.fused_attn for block in net.blocks} == {fused}


def test_a_run_takes_the_attention_asked_for(tmp_path):
    for attention, fused in (("fused", True), ("unfused", False), ("auto", False)):
        cli = train(tmp_path / attention, steps=1, attention=attention, precision="bf16-mixed")
        assert cli.model.net.blocks[0].attn.fused_attn is fused


def test_compile_on_a_cpu_only_when_asked():
    assert not speed.compiles("auto", "cpu")
    assert not speed.compiles(False, "cuda")


@pytest.mark.slow
def test_compile_on_a_cpu_works():
    assert speed.compiles(True, "cpu")


def test_compile_where_it_fails(monkeypatch):
    def broken(function):
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(torch, "compile", broken)
    assert not speed.compiles("auto", "cuda")
    with pytest.raises(VitposError, match=r"^model.compile is true, .* fails on this cpu: no C\+\+ compiler here$"):
        speed.compiles(True, "cpu")


def test_bfloat16_on_a_gpu_without_it(monkeypatch, tmp_path):
    monkeypatch.setattr(train_cli, "on_gpu", lambda accelerator: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(VitposError, match="precision is bf16-mixed, but Tesla T4 has no bfloat16; use 32-true or 16-"):
        train(tmp_path, precision="bf16-mixed")


@pytest.fixture
def untouched():
    yield
    speed.use_tf32(False)
    torch.backends.cudnn.allow_tf32 = True


def test_tf32_on_a_gpu_unless_a_precision_is_asked_for(monkeypatch, tmp_path, untouched):
    seen = []
    monkeypatch.setattr(train_cli, "on_gpu", lambda accelerator: True)
    monkeypatch.setattr(train_cli, "fast_bf16", lambda accelerator: False)
    for precision in (None, "32-true", None):  # of one worker's runs, each its own
        train(tmp_path / str(len(seen)), steps=1, precision=precision)
        seen.append(torch.get_float32_matmul_precision())  # Lightning asks for it, on newer GPUs
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision is None)
    assert seen == ["high", "highest", "high"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept():
    code = """
import resource, torch
from vitpos.train.speed import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
keep_memory()
faults()
print(plain, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert kept < 100 < plain
