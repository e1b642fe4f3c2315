"""Any flag of Lightning's Trainer works, or one line says why not; also what people add as callbacks and loggers."""

import inspect
import json
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import lightning
import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import callbacks, loggers

from vitpos.cli.main import main
from vitpos.train.parser import refused

FIT = ["fit", "--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "4", "--model.warmup_epochs", "0",
       "--data.name", "digits", "--data.batch_size", "64", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1",
       "--trainer.limit_train_batches", "2"]  # fmt: skip
WORKS = ""

# Each flag of the Trainer with values, and what the line says where one is refused.
FLAGS = {
    "accelerator": [("tpu", "torch_xla")],
    "strategy": [
        ("ddp", WORKS),
        ("fsdp", "requires a GPU"),
        ("deepspeed", "installed"),
        ("odd", "invalid strategy"),
        ("ddp_spawn", "a run is one process"),
    ],
    "devices": [("[0]", "should be an int > 0"), ("2", "a run takes one device"), ("auto", "a run takes one device")],
    "num_nodes": [("2", "a run takes one machine, got trainer.num_nodes=2")],
    "precision": [("bf16-true", WORKS), ("32-true", WORKS), ("64-true", WORKS), ("16-mixed", WORKS)],
    "logger": [("false", WORKS)],
    "callbacks": [("ModelCheckpoint", WORKS)],
    "fast_dev_run": [("true", WORKS)],
    "max_epochs": [("-1", "give trainer.max_epochs or trainer.max_steps"), ("0", "nothing would be trained")],
    "min_epochs": [("2", WORKS)],
    "max_steps": [("1", WORKS), ("0", "nothing would be trained"), ("-5", "must be a non-negative")],
    "min_steps": [("3", WORKS)],
    "max_time": [("00:01:00:00", WORKS), ("soon", "not a valid duration")],
    "limit_train_batches": [("0", "trainer.limit_train_batches is 0: nothing would be trained"), ("0.5", WORKS)],
    "limit_val_batches": [("0", WORKS), ("1.5", "invalid value 1.5")],
    "limit_test_batches": [("1", WORKS)],
    "limit_predict_batches": [("1", WORKS)],
    "overfit_batches": [("1", WORKS), ("0.5", "Please increase")],
    "val_check_interval": [
        ("0", "it must be above 0"),
        ("0.0", "it must be above 0"),
        ("5", "must be less than or equal"),
        ("0.5", WORKS),
    ],
    "check_val_every_n_epoch": [("0", "must be at least 1"), ("2", WORKS)],
    "num_sanity_val_steps": [("1", WORKS)],
    "log_every_n_steps": [("2", WORKS), ("0", WORKS)],
    "enable_checkpointing": [("false", WORKS)],
    "enable_progress_bar": [("true", WORKS), ("false", WORKS)],
    "enable_model_summary": [("true", WORKS)],
    "accumulate_grad_batches": [("0", "must be at least 1"), ("2", WORKS)],
    "gradient_clip_val": [("1.0", WORKS), ("-1", "must be at least 0")],
    "gradient_clip_algorithm": [("value", WORKS), ("odd", "is invalid")],
    "deterministic": [("true", WORKS)],
    "benchmark": [("false", WORKS)],
    "inference_mode": [("false", WORKS)],
    "use_distributed_sampler": [("false", WORKS)],
    "profiler": [("simple", WORKS), ("odd", "can only be one of")],
    "detect_anomaly": [("true", WORKS)],
    "barebones": [("true", "trainer.barebones cannot be used")],
    "plugins": [("lightning.pytorch.plugins.environments.LightningEnvironment", WORKS)],
    "sync_batchnorm": [("true", WORKS)],
    "reload_dataloaders_every_n_epochs": [("1", WORKS)],
    "default_root_dir": [("elsewhere", WORKS)],
    "enable_autolog_hparams": [("false", WORKS)],
    "model_registry": [("odd", WORKS)],
}
# What vitpos does something about, and so what is tried by default.
OURS = {"devices", "num_nodes", "callbacks", "logger", "fast_dev_run", "max_epochs", "max_steps", "barebones",
        "limit_train_batches", "val_check_interval", "check_val_every_n_epoch", "enable_checkpointing",
        "enable_model_summary", "gradient_clip_val", "gradient_clip_algorithm"}  # fmt: skip
CALLBACKS = {
    "BackboneFinetuning": ({}, "no attribute 'backbone'"),
    "BaseFinetuning": ({}, "NotImplementedError"),
    "BasePredictionWriter": ({}, WORKS),
    "BatchSizeFinder": ({"max_val": 128, "steps_per_trial": 1}, WORKS),
    "Callback": ({}, WORKS),
    "Checkpoint": ({}, WORKS),
    "DeviceStatsMonitor": ({}, WORKS if find_spec("psutil") else "psutil"),
    "EMAWeightAveraging": ({}, WORKS),
    "EarlyStopping": ({"monitor": "val/loss"}, WORKS),
    "GradientAccumulationScheduler": ({"scheduling": "{0: 2}"}, WORKS),
    "LambdaCallback": ({}, WORKS),
    "LearningRateFinder": ({"num_training_steps": 3}, WORKS),
    "LearningRateMonitor": ({}, WORKS),
    "ModelCheckpoint": ({"save_top_k": -1}, WORKS),
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, "lightning/pytorch/callbacks/pruning.py"),
    "ModelSummary": ({}, WORKS),
    "OnExceptionCheckpoint": ({"dirpath": "x"}, WORKS),
    "ProgressBar": ({}, WORKS),
    "RichModelSummary": ({}, WORKS),
    "RichProgressBar": ({}, WORKS),
    "SpikeDetection": ({}, WORKS),
    "StochasticWeightAveraging": ({"swa_lrs": 0.001}, WORKS),
    "TQDMProgressBar": ({}, WORKS),
    "ThroughputMonitor": ({}, "ThroughputMonitor needs batch_size_fn"),
    "Timer": ({"duration": "00:01:00:00"}, WORKS),
    "WeightAveraging": ({}, WORKS),
    "Nonsense": ({}, "unknown class of trainer.callbacks 'Nonsense'"),
}
OUR_CALLBACKS = {"LearningRateFinder", "ModelCheckpoint", "StochasticWeightAveraging", "TQDMProgressBar", "Timer",
                 "ThroughputMonitor", "Nonsense", "BackboneFinetuning"}  # fmt: skip
LOGGERS = {
    "CSVLogger": ({"save_dir": "logs"}, WORKS),
    "CometLogger": ({}, "comet-ml"),
    "LitLogger": ({}, "unknown class of trainer.logger 'LitLogger'"),
    "Logger": ({}, "abstract"),
    "MLFlowLogger": ({}, "mlflow"),
    "TensorBoardLogger": ({}, "TensorBoardLogger needs save_dir"),
    "WandbLogger": ({}, "WandbLogger: Requirement 'wandb"),
}


def cases(table, ours):
    return [
        pytest.param(name, value, expected, id=f"{name}-{value}", marks=[] if name in ours else [pytest.mark.slow])
        for name, tries in table.items()
        for value, expected in (tries if isinstance(tries, list) else [tries])
    ]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fit(capsys):
    """Returns a function that trains, or is refused with a line that has the text; warnings are Lightning's own."""

    def run(*words, expected=WORKS):
        code, printed = main([*FIT, *words]), capsys.readouterr()
        if not expected:
            assert code == 0, printed.err
            return printed.out
        assert code == 2
        (line,) = [line for line in printed.err.splitlines() if line.startswith("vitpos: error: ")]
        assert expected in line
        assert "Traceback" not in printed.err
        return line

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield run


def rows(folder="runs/digits-nano_patch4_32-none-s0"):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_every_flag_of_the_installed_trainer_is_in_the_table():
    assert FLAGS.keys() == inspect.signature(lightning.Trainer).parameters.keys()
    assert CALLBACKS.keys() - {"Nonsense"} == set(callbacks.__all__)
    assert LOGGERS.keys() == set(loggers.__all__)


@pytest.mark.parametrize(("flag", "value", "expected"), cases(FLAGS, OURS))
def test_a_flag_works_or_one_line_says_why_not(fit, flag, value, expected):
    fit(f"--trainer.{flag}={value}", *(["--trainer.gradient_clip_val=1"] if "algorithm" in flag else []),
        expected=expected)  # fmt: skip


@pytest.mark.parametrize(("name", "options", "expected"), cases(CALLBACKS, OUR_CALLBACKS))
def test_a_callback_works_or_one_line_says_why_not(fit, name, options, expected):
    words = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    fit(f"--trainer.callbacks+={name}", *words, expected=expected)


@pytest.mark.parametrize(("name", "options", "expected"), cases(LOGGERS, {"WandbLogger", "TensorBoardLogger"}))
def test_a_logger_works_or_one_line_says_why_not(fit, name, options, expected):
    fit(f"--trainer.logger={name}", *(f"--trainer.logger.{k}={v}" for k, v in options.items()), expected=expected)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", [
    "bf16-mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("32-true", "bf16-true", "64-true")),
])  # fmt: skip
def test_gradients_are_clipped(fit, monkeypatch, precision, algorithm):
    seen = []
    step = torch.optim.AdamW.step

    def watch(self, *args, **kwargs):
        gone = step(self, *args, **kwargs)
        gradients = [p.grad.double().flatten() for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat(gradients))
        return gone

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    fit("--trainer.gradient_clip_val=0.001", f"--trainer.gradient_clip_algorithm={algorithm}",
        f"--trainer.precision={precision}")  # fmt: skip
    sizes = [float(gradient.norm() if algorithm == "norm" else gradient.abs().max()) for gradient in seen]
    assert sizes == pytest.approx([0.001] * 2, rel=0.01)


def test_a_row_has_metrics_of_its_own_epoch_only(fit):
    fit("--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2")
    assert ["val/loss" in row for row in rows()] == [False, True, False]
    fit("--trainer.max_epochs=2", "--trainer.max_steps=3", "--trainer.default_root_dir=x")
    assert ["val/loss" in row for row in rows("x")] == [True, False]
    fit("--trainer.num_sanity_val_steps=1", "--trainer.check_val_every_n_epoch=2", "--trainer.default_root_dir=y")
    assert "val/loss" not in rows("y")[0]


def test_training_of_so_many_steps(fit):
    printed = fit("--trainer.max_epochs=-1", "--trainer.max_steps=3")
    assert "epoch 1/2" in printed
    assert "epoch 2/2" in printed
    assert rows()[-1]["lr"] == pytest.approx(0, abs=1e-12)
    printed = fit("--trainer.max_epochs=9", "--trainer.max_steps=2", "--trainer.limit_train_batches=3",
                  "--trainer.accumulate_grad_batches=2", "--trainer.default_root_dir=y")  # fmt: skip
    assert "epoch 1/1" in printed


def test_overfitting_sees_the_same_images_in_each_epoch(fit, monkeypatch):
    from vitpos.train.task import Classifier

    labels, step = [], Classifier.training_step

    def watch(self, batch, batch_idx):
        labels.append(batch[1].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", watch)
    fit("--trainer.overfit_batches=1", "--trainer.max_epochs=2")
    assert labels[0] == labels[1]


def test_the_schedule_follows_what_finders_find(fit, monkeypatch):
    from lightning.pytorch.tuner import lr_finder

    monkeypatch.setattr(lr_finder._LRFinder, "suggestion", lambda self, *args, **kwargs: 0.125)
    fit("--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps=2", "--trainer.max_epochs=2")
    assert [row["lr"] for row in rows()] == pytest.approx([0.0625, 0], abs=1e-9)


def test_a_batch_size_that_is_found_too_large_is_refused(fit):
    fit("--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.init_val=1024",
        "--trainer.callbacks.steps_per_trial=1",
        expected="data.batch_size is 2048, but there are 1295 training images")  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_the_users_own_bar_stands_alone(fit, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    printed = fit("--trainer.callbacks+=TQDMProgressBar")
    assert "Epoch 0: 100%" in printed
    assert "epoch 1/1" not in printed


def test_the_users_checkpoints_stand_beside_the_last(fit, folder):
    fit("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.dirpath=mine",
        "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.dirpath=best", "--trainer.max_epochs=2", "--trainer.default_root_dir=run")  # fmt: skip
    assert len(list((folder / "mine").iterdir())) == 2
    assert len(list((folder / "best").iterdir())) == 1
    assert (folder / "run" / "last.ckpt").exists()
    fit("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.default_root_dir=other", expected="more than one stateful callback")  # fmt: skip


def test_one_callback_that_is_no_list(fit, folder):
    (folder / "c.yaml").write_text("trainer: {callbacks: {class_path: LearningRateMonitor}}")
    fit("--config", "c.yaml")


def test_what_is_printed_at_the_end_is_there(fit, folder):
    assert "no checkpoint and no curves are written" in fit(
        "--trainer.fast_dev_run=true", "--trainer.default_root_dir=a"
    )
    assert fit("--trainer.logger=false", "--trainer.default_root_dir=b").endswith("written to b\n")
    printed = fit("--trainer.default_root_dir=my runs/c")
    assert printed.endswith("written to my runs/c; curves: tensorboard --logdir 'my runs/c'\n")
    assert not list(folder.glob("a/**/*.ckpt"))
    fit("--trainer.enable_checkpointing=false", "--trainer.default_root_dir=d")
    assert not list(folder.glob("d/**/*.ckpt"))


def test_the_model_summary_counts_operations(fit):
    printed = fit("--trainer.enable_model_summary=true")
    assert re.search(r"Total FLOPs: [1-9]", printed)


@pytest.mark.parametrize(("words", "expected"), [
    (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patiance=3"], "'patiance'; did you mean 'patience'"),
    (["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=foo"],
     "logging_interval should be one of ['step', 'epoch']"),
    (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los"], "val/los"),
    (["--trainer.logger=CSVLoger"], "unknown class of trainer.logger 'CSVLoger'; did you mean 'CSVLogger'"),
    (["--seed_everything=4294967296"], "seed_everything should be a whole number from 0 to 4294967295, got 4294967296"),
    (["--seed_everything=-1"], "seed_everything should be a whole number from 0 to 4294967295, got -1"),
])  # fmt: skip
def test_mistakes_in_what_is_added(fit, words, expected):
    fit(*words, expected=expected)


def test_an_error_of_the_users_own_code_keeps_its_traceback(fit, monkeypatch):
    from vitpos.train.task import Classifier

    def broken(self, batch, batch_idx):
        return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr(Classifier, "training_step", broken)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        fit()


def test_a_full_gpu_is_one_line():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
    assert re.fullmatch(r"CUDA out of memory\. .* GPU 0 has \.\.\. \(.*data\.batch_size\)", str(refused(error)))


def test_a_cluster_allocation_of_several_tasks_is_one_run(fit, monkeypatch):
    for name, value in {"NTASKS": "4", "JOB_ID": "7", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fit("--trainer.max_steps=1")


def test_what_early_stopping_ended_does_not_go_on(fit):
    words = ("--trainer.max_epochs=5", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss",
             "--trainer.callbacks.min_delta=9", "--trainer.callbacks.patience=1")  # fmt: skip
    fit(*words)
    before = rows()
    assert len(before) == 2
    assert "nothing left to do" in (printed := fit(*words, "--ckpt_path=last"))
    assert "EarlyStopping" in printed
    assert rows() == before


def test_an_error_in_what_lightning_calls_is_the_callers():
    with pytest.raises(UserWarning) as found:  # warnings are errors here; this one is raised in lightning_utilities
        rank_zero_warn("odd")
    assert refused(found.value) is None
