"""The recipe: what decays, how the rate goes, which precision is chosen, and what a run prints and writes."""

import itertools
import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module

from vitpos.data import module as data_module
from vitpos.data.images import Split
from vitpos.data.module import ImageData
from vitpos.errors import VitposError
from vitpos.seeding import generator
from vitpos.study import plan
from vitpos.study.run import prepare
from vitpos.train import cli as train_cli
from vitpos.train.callbacks import EpochLines, History
from vitpos.train.task import Classifier


@pytest.fixture
def fit(tmp_path):
    """Returns a function that trains a few steps and gives the command line object and the rate at each step."""

    def make(position="learned", **settings):
        keys = {
            "model.name": "vitpos_nano_patch4_32", "model.patch_size": 2, "data.name": "digits", "data.batch_size": 128,
            "data.crop_padding": 0, "data.flip": False, "trainer.max_epochs": 2, "trainer.accelerator": "cpu",
            "trainer.limit_train_batches": 5, **{key.replace("__", "."): value for key, value in settings.items()},
        }  # fmt: skip
        config = plan.nest({**keys, "seed_everything": 0, "position": position})
        cli, rates = prepare(plan.Run({"position": position}, 0, config), tmp_path / "run"), []

        class Rates(lightning.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        cli.trainer.callbacks.append(Rates())
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        return cli, rates

    return make


def test_decay_is_of_matrices_only(fit):
    cli, _ = fit("learned", model__global_pool="token", model__weight_decay=0.3, trainer__max_epochs=1)
    names = {id(parameter): name for name, parameter in cli.model.net.named_parameters()}
    groups = cli.trainer.optimizers[0].param_groups
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay.keys() == set(names.values())
    assert {"pos_embed.table", "cls_token", "blocks.0.norm1.weight", "head.bias", "head.weight"} <= decay.keys()
    for name, value in decay.items():
        plain = name.endswith("bias") or "norm" in name or name in ("cls_token", "pos_embed.table")
        assert value == (0 if plain else 0.3), name


def test_every_part_of_a_sum_is_without_decay(fit):
    cli, _ = fit("learned+learned(scale=1)", trainer__max_epochs=1)
    positions = {id(parameter) for parameter in cli.model.net.pos_embed.parameters()}
    groups = cli.trainer.optimizers[0].param_groups
    found = [group["weight_decay"] for group in groups for p in group["params"] if id(p) in positions]
    assert found == [0, 0]


def test_rate_warms_up_to_the_peak_and_ends_near_zero(fit):
    cli, rates = fit(model__lr=0.01, model__warmup_epochs=0.8)  # 4 of 10 steps
    assert rates[:5] == pytest.approx([0.0025, 0.0025 + 0.0075 / 4, 0.00625, 0.0025 + 0.0075 * 3 / 4, 0.01])
    assert len(rates) == 10
    assert all(one > two > 0 for one, two in itertools.pairwise(rates[4:]))
    assert rates[7] == pytest.approx(0.005)  # half way down the cosine: 3 of 6 steps
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert [row["lr"] for row in cli.history.rows] == pytest.approx([rates[5], 0], abs=1e-12)


def test_rate_without_warm_up_starts_at_the_peak(fit):
    _, rates = fit(model__lr=0.01, model__warmup_epochs=0, trainer__max_epochs=1)
    assert rates[0] == 0.01
    assert rates[1] < 0.01


def test_warm_up_longer_than_training_leaves_a_last_step(fit):
    _, rates = fit(model__lr=0.01, model__warmup_epochs=50, trainer__max_epochs=1)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.01)


def test_mixup_trains_and_reports_plain_accuracy(fit):
    cli, _ = fit(model__mixup=0.8, model__cutmix=1.0, trainer__max_epochs=1)
    assert 0 <= cli.history.rows[0]["train/accuracy"] <= 1
    assert cli.history.rows[0]["train/loss"] > 1


@pytest.mark.parametrize(
    ("accelerator", "cuda", "cpu", "expected"),
    [
        ("auto", None, True, True),
        ("auto", None, False, False),
        ("cpu", True, False, False),
        ("cpu", None, True, True),
        ("auto", True, False, True),
        ("gpu", False, True, False),
    ],
)
def test_bf16_is_chosen_where_the_hardware_has_it(monkeypatch, accelerator, cuda, cpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert train_cli.fast_bf16(accelerator) is expected


@pytest.mark.parametrize(("fast", "asked", "expected"), [
    (True, None, "bf16-mixed"), (False, None, "32-true"), (True, "32-true", "32-true"), (False, "64", "64-true"),
])  # fmt: skip
def test_precision_asked_for_wins(monkeypatch, tmp_path, fast, asked, expected):
    monkeypatch.setattr(train_cli, "fast_bf16", lambda accelerator: fast)
    config = {"trainer": {"default_root_dir": str(tmp_path), "precision": asked}, "data": {"name": "digits"}}
    assert train_cli.VitposCLI(config, run=False).trainer.precision == expected


def test_one_folder_holds_the_run_with_a_curve_by_epoch(fit, tmp_path, capsys):
    cli, _ = fit("sinusoidal_2d")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == cli.history.rows
    assert [row["epoch"] for row in rows] == [1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["sinusoidal_2d, seed 0", "epoch 1/2"], ["sinusoidal_2d, seed 0", "epoch 2/2"]
    ]  # fmt: skip
    log = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in log] == lines
    for logger in cli.trainer.loggers:
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for key in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second"):
        assert [event.step for event in events.Scalars(key)] == [1, 2]
        assert [event.value for event in events.Scalars(key)] == pytest.approx([row[key] for row in rows])
    assert [event.step for event in events.Images("position/similarity")] == [0, 2]
    assert events.Tags()["scalars"] == sorted(events.Tags()["scalars"], key=events.Tags()["scalars"].index)
    assert "hp_metric" not in events.Tags()["scalars"]


def test_none_has_no_picture(fit, tmp_path):
    cli, _ = fit("none", trainer__max_epochs=1)
    cli.trainer.loggers[0].finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == []


def test_line_of_an_epoch(tmp_path, capsys):
    history = History(tmp_path)
    lines = EpochLines(tmp_path, "learned, seed 0", history)
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    counts = {"num_training_batches": 8, "accumulate_grad_batches": 1, "max_steps": -1}
    trainer = SimpleNamespace(current_epoch=0, max_epochs=2, fit_loop=loop, **counts)
    lines.on_train_start(trainer, None)
    history.rows.append({"epoch": 1, "train/loss": 1.23456, "val/accuracy": 0.5, "images_per_second": 99.6})
    lines.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().out == "learned, seed 0  epoch 1/2  loss 1.235  val 50.00%  100 img/s  0 s left\n"
    history.rows.append({"epoch": 2, "train/loss": 1.0, "images_per_second": 1000.4})
    trainer.current_epoch = 1
    lines.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().out == "learned, seed 0  epoch 2/2  loss 1.000  1000 img/s  done\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_huge"}, r"unknown model 'vit_huge'"),
        ({"lr": 0}, r"lr must be above 0 \(got 0\)"),
        ({"weight_decay": -1}, r"weight_decay .* at least 0 \(got -1 and"),
        ({"label_smoothing": 1}, r"label_smoothing in \[0, 1\) \(got 1\)"),
        ({"lr": float("nan")}, r"lr must be above 0 \(got nan\)"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(VitposError, match=message):
        Classifier(**options)


def test_a_network_that_is_not_built_says_so():
    with pytest.raises(VitposError, match="not built yet"):
        Classifier()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(VitposError, match="not built yet"):
        Classifier().configure_optimizers()


def test_data_of_another_kind_are_refused(tmp_path):
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, max_epochs=1, accelerator="cpu",
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    data = lightning.LightningDataModule()
    data.val_dataloader = data.train_dataloader = lambda: [(torch.zeros(2, 3, 32, 32), torch.zeros(2))]
    with pytest.raises(VitposError, match=r"needs vitpos.data.ImageData as its data module, got LightningDataModule"):
        trainer.fit(Classifier(), datamodule=data)


def test_slug():
    assert train_cli.slug("learned+sinusoidal_2d(scale=0.02)") == "learned+sinusoidal_2d-scale-0.02"


def test_folder_is_named_after_what_is_trained(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = {"data": {"name": "digits"}, "position": "sinusoidal_2d(scale=1)", "seed_everything": 3}
    cli = train_cli.VitposCLI(config, run=False)
    assert str(cli.folder) == "runs/digits-micro_patch4_32-sinusoidal_2d-scale-1-s3"


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_a_step_meets_no_tensor_of_the_cpu_on_a_fake_gpu(monkeypatch, mixup):
    # a backward pass needs a real one: tests/test_cuda.py
    monkeypatch.setattr(data_module, "generator", lambda *words, device: generator(*words))
    data = ImageData(name="digits", batch_size=32)
    data.setup("fit")
    model = Classifier(name="vitpos_nano_patch4_32", patch_size=2, position="learned", mixup=mixup, drop_path_rate=0.2)
    model.build(data)
    with FakeTensorMode() as mode:

        def there(tensor):
            return mode.from_tensor(tensor).to("cuda").detach()

        moved = {name: torch.nn.Parameter(there(parameter)) for name, parameter in model.named_parameters()}
        monkeypatch.setattr(data, "order", lambda: mode.from_tensor(torch.arange(len(data.source.train))))
        data._train = Split(there(data._train.images), there(data._train.labels))
        data._mean, data._deviation = map(there, data.source.moments)
        images, labels = next(iter(data.train_dataloader()))
        images = data.normalise(data.augment(images, 1))
        with _reparametrize_module(model, moved):
            loss, logits = model.loss(*((images, labels) if model.mix is None else model.mix(images, labels)))
        assert {tensor.device.type for tensor in (images, labels, loss, logits)} == {"cuda"}
        for parameter in moved.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = torch.optim.AdamW(moved.values(), fused=True)
        optimizer.step()
        assert {tensor.device.type for own in optimizer.state.values() for tensor in own.values()} == {"cuda"}
