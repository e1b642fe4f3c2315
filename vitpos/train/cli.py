"""The commands ``vitpos fit``, ``validate`` and ``test``, based on LightningCLI."""

import contextlib
import errno
import itertools
import json
import logging
import os
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from vitpos.configs import check_seed, refuse_duplicates
from vitpos.data.module import ImageData
from vitpos.errors import VitposError
from vitpos.lock import hold
from vitpos.paths import expand
from vitpos.train import checkpoint as checkpoints
from vitpos.train.callbacks import Bar, EpochLines, History, Last, SaveConfig, Similarity
from vitpos.train.flags import check_flags, check_length, in_one_process
from vitpos.train.parser import Parser, refused
from vitpos.train.speed import keep_memory, use_tf32
from vitpos.train.task import Classifier


class VitposCLI(LightningCLI):
    """LightningCLI for `Classifier` and `ImageData`, with a top-level ``--position`` and one folder per run.

    Args:
        args: Config as a dictionary, or the command line as a list.
        run: Whether to run the subcommand; otherwise only ``trainer``, ``model`` and ``datamodule`` are created.
        prefix: Prefix of progress lines; without one, a terminal gets a progress bar.
        checkpoint: Without a subcommand, the checkpoint to resume training from.
    """

    history: History

    def __init__(
        self, args: dict[str, Any] | list[str], *, run: bool, prefix: str = "", checkpoint: Path | None = None
    ) -> None:
        self.prefix = prefix
        self.checkpoint = None if checkpoint is None else checkpoints.read(checkpoint)
        keep_memory()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("timm.scheduler").setLevel(logging.ERROR)  # warns if all steps are warm-up
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a resumed run
        warnings.filterwarnings("ignore", "The dirpath has changed")  # run folders may be moved
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # validate needs no history
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own, against torch 2.14
        sys.argv = sys.argv[:1]  # LightningCLI warns when both this and args are given
        try:
            with contextlib.ExitStack() as self.held:
                super().__init__(
                    Classifier,
                    ImageData,
                    seed_everything_default=0,
                    trainer_defaults={
                        "max_epochs": 100,
                        "devices": 1,
                        "num_sanity_val_steps": 0,
                        "enable_model_summary": False,
                        "log_every_n_steps": 1,
                    },
                    save_config_callback=SaveConfig,
                    save_config_kwargs={"overwrite": True},
                    parser_class=Parser,
                    auto_configure_optimizers=False,
                    parser_kwargs={"allow_abbrev": False},
                    args=args,
                    run=run,
                )
        except Exception as error:
            raise refused(error) or error from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the subcommands and the arguments of their methods that are not options."""
        skipped = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": skipped, "validate": skipped, "test": skipped}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--position`` and ``--checkpoint_minutes``, and links the seed to model and data."""
        parser.add_argument("--position", type=str, default="none", help="Scheme, such as sinusoidal_2d(scale=1).")
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=10.0,
            help="Minutes of training after which a checkpoint is written inside an epoch too; 0: after epochs only.",
        )
        parser.link_arguments("position", "model.position")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the options; with a checkpoint, those not given are taken from it (model, position, seed).

        Raises:
            VitposError: A wrong option or config, or a missing checkpoint.
        """
        try:
            for before, word in itertools.pairwise(["", *args] if isinstance(args, list) else ()):
                option, _, value = word.rpartition("=")
                config = (option or before) in ("--config", "-c")  # there for any file name
                if (file := expand(value)).is_file() and (config or file.suffix in (".yaml", ".yml")):
                    refuse_duplicates(file)
            super().parse_arguments(parser, args)
        except VitposError as error:
            files = [word for option, word in itertools.pairwise(args) if option in ("--config", "-c")]
            where = ", ".join(file for file in files if file not in str(error))
            raise VitposError(f"{error} (config: {where})" if where else str(error)) from error
        self.subcommand = self.config.get("subcommand")
        check_seed(self._get(self.config, "seed_everything"), "seed_everything")
        if self.subcommand is None:
            return
        options = self.config[self.subcommand]
        if self.subcommand != "fit" and options.ckpt_path is None:
            raise VitposError(f"{self.subcommand} needs a checkpoint: --ckpt_path, such as runs/x/last.ckpt")
        if options.ckpt_path == "last":
            fresh = self.subcommand == "fit" and not checkpoints.candidates(self.folder)
            options.ckpt_path = None if fresh else str(checkpoints.newest(self.folder))
        elif options.ckpt_path is not None:
            given = expand(options.ckpt_path)
            options.ckpt_path = str(checkpoints.newest(given) if checkpoints.candidates(given) else given)
        if options.ckpt_path is not None:
            self.checkpoint = checkpoints.read(Path(options.ckpt_path))
            self.take_options(parser, args, options)

    def take_options(self, parser: LightningArgumentParser, args: list[str], options: Any) -> None:
        """Takes options that are not given from the checkpoint; `check_checkpoint` compares those that are given.

        Raises:
            VitposError: The checkpoint names a scheme in a file that the user has not named: its code would be run.
        """
        trained = cast(checkpoints.Checkpoint, self.checkpoint)["vitpos"]["options"]
        position = trained["position"]
        if checkpoints.runs_a_file(position) and not checkpoints.same_scheme(position, options.position):
            raise VitposError(
                f"{options.ckpt_path} was trained with a scheme from a file, whose code runs only if you name it: "
                f"pass --position {position!r}"
            )
        config: dict[str, Any] = {}
        for key, value in trained.items():
            group, _, name = key.rpartition(".")
            automatic = key == "trainer.precision" and value == chosen_precision(options.trainer.accelerator)
            wanted = key in checkpoints.OPTIONS if group == "trainer" else group in ("", "model", "data")
            if not automatic and wanted and (self.subcommand == "fit" or group != "trainer" or name == "precision"):
                (config.setdefault(group, {}) if group else config)[name] = value
        self.config = parser.parse_args([args[0], "--config", json.dumps(config), *args[1:]])  # later arguments win
        self.config[args[0]].ckpt_path = options.ckpt_path

    def _parse_ckpt_path(self) -> None:
        """Replaced by `take_options`, because LightningCLI's method would override given options."""

    def check_checkpoint(self) -> None:
        """Refuses options that contradict the checkpoint, before anything is written.

        Raises:
            VitposError: With the differing option and both values.
        """
        if self.checkpoint is not None:
            checkpoints.check(
                self.checkpoint, self.model, self.datamodule, self.trainer, train=self.subcommand in (None, "fit")
            )

    before_validate = before_test = check_checkpoint

    def before_fit(self) -> None:
        """Checks the checkpoint, and removes its path from the saved config, which has to reproduce the whole run."""
        self.check_checkpoint()
        last, path = self.folder / "last.ckpt", self.config["fit"]["ckpt_path"]
        if path and Path(path) == checkpoints.previous(last):
            last.unlink(missing_ok=True)  # it is damaged, and would replace the intact previous one at the next save
        self.config["fit"]["ckpt_path"] = None
        if self.checkpoint is not None:
            for key, old, new in checkpoints.lengths(self.checkpoint, self.trainer):
                print(f"{key} is {new}, it was {old}: from here on the learning rate follows the new length")
        elif not self._get(self.config, "trainer").fast_dev_run:
            checkpoints.discard(self.folder)

    @property
    def folder(self) -> Path:
        """The run's folder: ``trainer.default_root_dir``, else one named after data, model, scheme and seed."""
        given = self._get(self.config, "trainer").default_root_dir
        if given:
            return expand(given)
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        scheme, seed = slug(self._get(self.config, "position")), self._get(self.config, "seed_everything")
        return Path("runs", f"{data.name}-{model.name.removeprefix('vitpos_')}-{scheme}-s{seed}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Creates the trainer: bf16 by default if the device supports it, and all output in the run's folder.

        Raises:
            VitposError: The folder holds another run and ``--ckpt_path`` does not resume it, it cannot be written, or
                the trainer's options are incompatible.
        """
        config = self._get(self.config_init, "trainer")
        folder = self.folder
        check_flags(config)
        minutes = self._get(self.config_init, "checkpoint_minutes")
        if not minutes >= 0:  # written so that NaN fails too
            raise VitposError(f"checkpoint_minutes is {minutes}; it must be at least 0 (0: after whole epochs only)")
        if self.subcommand in (None, "fit"):
            self.claim(folder)
        files = checkpoints.candidates(folder) if self.subcommand == "fit" else []
        if files and (held := checkpoints.another(files[0], self.checkpoint)):
            raise VitposError(
                f"{folder} already holds {held}; resume it with --ckpt_path last, or name another folder with "
                "--trainer.default_root_dir"
            )
        kwargs["default_root_dir"] = folder
        if on_gpu(config.accelerator):
            use_tf32(config.precision is None)
        if config.precision is None:
            kwargs["precision"] = chosen_precision(config.accelerator)
        elif str(config.precision).startswith("bf16") and on_gpu(config.accelerator) and not fast_bf16("cuda"):
            raise VitposError(
                f"trainer.precision is {config.precision}, but {torch.cuda.get_device_name()} has no bfloat16; "
                "use 32-true or 16-mixed, or leave it out"
            )
        given = listed(config.callbacks)
        theirs = any(isinstance(callback, ProgressBar) for callback in given)
        bar = sys.stderr.isatty() and not self.prefix and config.enable_progress_bar is not False and not theirs
        if not theirs:
            kwargs["enable_progress_bar"] = bar
        bars: list[Callback] = [Bar()] if bar else []
        kwargs["plugins"] = in_one_process(listed(config.plugins))
        if self.subcommand not in (None, "fit"):
            kwargs |= {"logger": False, "enable_checkpointing": False, "callbacks": [*given, *bars]}
            return super().instantiate_trainer(**kwargs)
        history = self.history = History(folder)
        kwargs["callbacks"] = [
            *given,
            history,
            Similarity(),
            *(bars if bar or theirs else [EpochLines(folder, self.prefix or folder.name, history)]),
        ]
        if config.enable_checkpointing is not False:
            kwargs["callbacks"].append(Last(folder, minutes))
        if not any(isinstance(plugin, CheckpointIO) for plugin in kwargs["plugins"]):
            kwargs["plugins"].append(checkpoints.WholeFiles())
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                folder,
                name="",
                version="tensorboard",
                default_hp_metric=False,  # else every run shows hp_metric = -1
                purge_step=checkpoints.purge_step(self.checkpoint, config.max_epochs, config.max_steps),
            )
        trainer = super().instantiate_trainer(**kwargs)
        check_length(trainer)
        return trainer

    def claim(self, folder: Path) -> None:
        """Creates the run's folder and locks it until the run ends (`study run` locks by itself).

        Raises:
            VitposError: Another run uses it, or it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, "it is read-only")
            if self.subcommand == "fit":
                taken = f"another vitpos fit works in {folder}; wait for it, or name another folder with "
                self.held.enter_context(hold(folder / ".lease", f"{taken}--trainer.default_root_dir"))
                for part in folder.glob("*.part"):  # left by a killed process
                    part.unlink()
        except OSError as error:
            raise VitposError(f"cannot write to {folder}: {error.strerror}; name another folder") from error

    def after_fit(self) -> None:
        """Prints where the run was written."""
        if self.checkpoint is not None and self.checkpoint["global_step"] == self.trainer.global_step:
            way = "to train longer, raise --trainer.max_epochs or --trainer.max_steps"
            if self.trainer.should_stop:
                way = "EarlyStopping or trainer.max_time ended it"
            print(f"nothing left to do after {self.trainer.global_step} steps; {way}")
            return
        if self._get(self.config, "trainer").fast_dev_run:
            print("trial run (trainer.fast_dev_run): no checkpoint and no curves are written")
            return
        folders = [str(logger.save_dir) for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        print(
            f"written to {self.folder}" + "".join(f"; curves: tensorboard --logdir {shlex.quote(f)}" for f in folders)
        )

    def after_validate(self) -> None:
        """Prints the metrics."""
        for key, value in self.trainer.callback_metrics.items():
            print(f"{key} {float(value):.4f}")

    after_test = after_validate


def listed(given: Any) -> list[Any]:
    """Converts an option that may be one value, several or None to a list."""
    return given if isinstance(given, list) else [] if given is None else [given]


def slug(text: str) -> str:
    """Converts a scheme to a file name: ``sinusoidal_2d(scale=0.02)`` becomes ``sinusoidal_2d-scale-0.02``."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-")


def chosen_precision(accelerator: str) -> str:
    """Returns the default precision: bf16 if the hardware supports it."""
    return "bf16-mixed" if fast_bf16(accelerator) else "32-true"


def on_gpu(accelerator: str) -> bool:
    """Returns whether an accelerator name of Lightning means a CUDA device here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def fast_bf16(accelerator: str) -> bool:
    """Returns whether the training hardware has bfloat16 products (emulated ones are slower than float32)."""
    if on_gpu(accelerator):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
