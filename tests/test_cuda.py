"""What only a GPU can show; scripts/gpu.sh runs these on one, and with VITPOS_GPU_DRY=1 on the CPU, to try them out."""

import copy
import json
import os
from functools import partial

import pytest
import timm
import torch
from lightning.pytorch.callbacks import Callback
from schemes import NAMES, SUMS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitpos.models  # noqa: F401  (registers the models)
from vitpos.cli.main import main
from vitpos.study import plan
from vitpos.study.run import execute, prepare
from vitpos.train import speed
from vitpos.train.task import Classifier

pytestmark = pytest.mark.cuda
DRY = bool(os.environ.get("VITPOS_GPU_DRY"))
DEVICE, ACCELERATOR = ("cpu", "cpu") if DRY else ("cuda", "gpu")
every_scheme = pytest.mark.parametrize("scheme", ["none", "learned", "rope_axial"] if DRY else NAMES + SUMS)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products, before the first one


@pytest.fixture(autouse=True)
def settings():
    """Puts back what a run sets for its process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    speed.use_tf32(False)


def pair(scheme):
    """Returns the same small network on the CPU and on the GPU, and images for it; its scheme does something."""
    torch.manual_seed(0)
    model = timm.create_model("vitpos_nano_patch4_32", position=scheme, depth=2).eval()
    for parameter in model.pos_embed.parameters():  # some start at 0, where they change nothing
        torch.nn.init.normal_(parameter, std=0.02)
    return model, copy.deepcopy(model).to(DEVICE), torch.randn(8, 3, 32, 32)


def step(model, images):
    """Returns logits and gradients of a loss, on the CPU."""
    logits = model(images)
    logits.float().logsumexp(1).sum().backward()
    gradients = {name: p.grad.cpu().float() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().cpu().float(), gradients


def off(found, expected):
    return float((found - expected).norm() / (expected.norm() + 1e-6))


@every_scheme
def test_logits_and_gradients_are_those_of_the_cpu(scheme):
    speed.use_tf32(False)
    here, there, images = pair(scheme)
    (expected, slopes), (found, own) = step(here, images), step(there, images.to(DEVICE))
    assert off(found, expected) < 1e-4
    assert own.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert off(own[name], slope) < 2e-3, name


@every_scheme
def test_bf16_is_near_float32(scheme):
    _, there, images = pair(scheme)
    expected, _ = step(there, images.to(DEVICE))
    there.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16):
        found, gradients = step(there, images.to(DEVICE))
    assert off(found, expected) < 0.1
    assert all(gradient.isfinite().all() for gradient in gradients.values())


class Devices(TorchDispatchMode):
    """Notes the devices of all tensors that operations take and give, but for numbers."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor) and tensor.ndim:
                self.seen.setdefault(tensor.device.type, str(func))
        return out


@every_scheme
def test_no_table_is_on_the_cpu(scheme):
    _, there, images = pair(scheme)
    images = images.to(DEVICE)
    with Devices() as devices:
        there(images).sum().backward()
    assert devices.seen.keys() == {DEVICE}, devices.seen


CONFIG = {
    "position": "learned",
    "seed_everything": 0,
    "model": {"name": "vitpos_nano_patch4_32", "patch_size": 2, "drop_path_rate": 0.3, "compile": False},
    "data": {"name": "digits", "batch_size": 64, "crop_padding": 1},
    "trainer": {"max_epochs": 1, "accelerator": ACCELERATOR, "limit_train_batches": 8, "precision": "32-true"},
}


class Seen(Callback):
    """Keeps the images, labels and losses of each step."""

    def __init__(self):
        self.batches, self.losses = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches += [tensor.cpu() for tensor in batch]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def train(folder, position="learned", precision="32-true", **model):
    config = copy.deepcopy(CONFIG)
    config["model"] |= model
    config["trainer"]["precision"] = precision
    run = plan.Run({"position": position}, 0, {**config, "position": position})
    cli = prepare(run, folder)
    seen = Seen()
    cli.trainer.callbacks.append(seen)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return seen


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_schemes_of_one_seed_see_the_same_images(tmp_path, mixup):
    # learned(scale=1e-20) adds nothing to a float32, so its first loss tells whether dropout is paired too
    none, other = (train(tmp_path / name, name, mixup=mixup) for name in ("none", "learned(scale=1e-20)"))
    assert all(map(torch.equal, none.batches, other.batches))
    assert none.losses[0] == other.losses[0]


PLAIN = {"attention": "unfused", "compile": False}


@pytest.mark.parametrize(
    ("options", "precision", "mode", "bound"),
    [
        pytest.param({"attention": "fused"}, "32-true", None, 1e-4, id="fused"),
        pytest.param({"compile": True}, "32-true", None, 1e-4, id="compiled"),
        pytest.param({"compile": True, "attention": "fused"}, "bf16-mixed", None, 3e-2, id="as-by-default"),
        pytest.param({"compile": True}, "32-true", "reduce-overhead", 1e-4, id="graphs"),
    ],
)
def test_what_makes_it_fast_changes_rounding_alone(tmp_path, monkeypatch, options, precision, mode, bound):
    plain = torch.tensor(train(tmp_path / "plain", **PLAIN).losses)
    if mode:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, mode=mode))
    fast = torch.tensor(train(tmp_path / "fast", precision=precision, **{**PLAIN, **options}).losses)
    assert len(plain) == len(fast) == 8
    assert (fast - plain).abs().max() < bound


def fit(folder, *words, code=0):
    own = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "8", "--trainer.accelerator", ACCELERATOR]
    own += ["--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "2", "--data.name", "digits"]
    own += ["--data.batch_size", "64", "--position", "learned", "--model.drop_path_rate", "0.2"]
    assert main(["fit", *own, *words, "--trainer.default_root_dir", str(folder)]) == code
    return folder


def weights(folder):
    return torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def interrupted(tmp_path, *words):
    """Returns the weights of a run, and those of one that was cut inside an epoch and went on."""

    def on_train_batch_start(self, batch, batch_idx):
        start(self, batch, batch_idx)
        if self.trainer.current_epoch == 1 and batch_idx == 5:
            raise ConnectionError("power cut")

    whole, start = weights(fit(tmp_path / "whole", *words)), Classifier.on_train_batch_start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", on_train_batch_start)
        fit(tmp_path / "cut", *words, "--checkpoint_minutes", "1e-9", code=2)
    return whole, weights(fit(tmp_path / "cut", *words, "--ckpt_path", "last"))


@pytest.mark.parametrize("compiled", ["false", "auto"])
def test_a_run_goes_on_bit_equal_with_deterministic_kernels(tmp_path, compiled):
    whole, cut = interrupted(tmp_path, "--trainer.deterministic", "true", "--model.compile", compiled)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.xfail(reason="torch's fast kernels may add in another order each time", strict=False)
def test_a_run_goes_on_bit_equal_by_default(tmp_path):
    whole, cut = interrupted(tmp_path)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_checkpoint_of_the_gpu_is_evaluated_on_the_cpu(tmp_path, capsys):
    found = []
    fit(tmp_path / "run", "--trainer.precision", "32-true")
    for accelerator in (ACCELERATOR, "cpu"):
        capsys.readouterr()
        words = ["--ckpt_path", str(tmp_path / "run"), "--trainer.accelerator", accelerator]
        assert main(["validate", *words, "--trainer.precision", "32-true"]) == 0
        found.append(dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("val/")))
    assert float(found[0]["val/loss"]) == pytest.approx(float(found[1]["val/loss"]), abs=1e-3)


def test_a_run_of_a_study_says_what_it_ran_on(tmp_path):
    config = copy.deepcopy(CONFIG)
    del config["trainer"]["precision"], config["model"]["compile"]  # as by default
    assert execute(plan.Run({"position": "learned"}, 0, config), tmp_path / "run").error is None
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert row["environment"]["device"] == DEVICE
    assert row["peak_memory_mb"] > 0
    assert DRY or row["environment"]["hardware"] == torch.cuda.get_device_name()
    assert row["position"]["rms_start"] == pytest.approx(0.02, rel=0.1)
    assert 0 < row["metrics"]["test/accuracy"] <= 1
