"""The command line of one run: ``vitpos fit``, ``validate`` and ``test``, by LightningCLI."""

import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from vitpos.data.module import ImageData
from vitpos.errors import VitposError, unknown
from vitpos.train.callbacks import EpochLines, History, Similarity
from vitpos.train.task import Classifier


class Parser(LightningArgumentParser):
    """Says what is wrong with an option or a key of a config in one line, with the nearest that exists."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises the error instead of printing the usage, which here is two hundred lines long.

        Raises:
            VitposError: Always.
        """
        text = " ".join(message.split())
        keys = [action.dest for action in self._actions]
        if found := re.search(r"Unrecognized arguments: --([\w.]+)", text):
            raise unknown_key("option", found[1], keys)
        if found := re.search(r"Group '([\w.]+)' does not accept nested key '([\w.]+)'", text):
            group, key = found.groups()
            raise unknown_key("key", key if key.startswith(f"{group}.") else f"{group}.{key}", keys)
        if found := re.search(r"Key '([\w.]+)' is not expected", text):
            raise unknown_key("key", found[1], keys)
        raise VitposError(text.removeprefix("Parser "))


def unknown_key(kind: str, key: str, keys: list[str]) -> VitposError:
    """Makes the error for an unknown key; the known ones are those beside it, since all would fill a screen."""
    group = key.rpartition(".")[0]
    beside = [known for known in keys if known.rpartition(".")[0] == group and known not in ("help", "print_config")]
    return unknown(kind, key, beside or [known for known in keys if "." not in known])


class VitposCLI(LightningCLI):
    """LightningCLI for `Classifier` and `ImageData`, with ``--position`` at the top and one folder per run.

    Args:
        args: Config as a dictionary, or the command line as a list.
        run: Whether to carry the subcommand out; without, ``trainer``, ``model`` and ``datamodule`` are made only.
        prefix: What the lines of progress begin with; without one the terminal gets a progress bar.
    """

    history: History

    def __init__(self, args: dict[str, Any] | list[str], *, run: bool, prefix: str = "") -> None:
        self.prefix = prefix
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own, against torch 2.14
        sys.argv = sys.argv[:1]  # LightningCLI warns when both this and args are given
        super().__init__(
            Classifier,
            ImageData,
            seed_everything_default=0,
            trainer_defaults={"num_sanity_val_steps": 0, "enable_model_summary": False, "log_every_n_steps": 1},
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            auto_configure_optimizers=False,
            parser_kwargs={name: {"default_env": False} for name in self.subcommands()} if run else {},
            args=args,
            run=run,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Names the subcommands and what they leave out of the command line."""
        skipped = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": skipped, "validate": skipped, "test": skipped}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--position`` and gives the one seed to model and data."""
        parser.add_argument("--position", type=str, default="none", help="The scheme, such as sinusoidal_2d(scale=1).")
        parser.link_arguments("position", "model.position")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    @property
    def folder(self) -> Path:
        """The folder of the run: ``trainer.default_root_dir``, else one named after what is trained."""
        given = self._get(self.config, "trainer").default_root_dir
        if given:
            return Path(given)
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        scheme, seed = slug(self._get(self.config, "position")), self._get(self.config, "seed_everything")
        return Path("runs", f"{data.name}-{model.name.removeprefix('vitpos_')}-{scheme}-s{seed}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer: bf16 where the device has it unless asked otherwise, and all output in the folder.

        Raises:
            VitposError: The folder already holds a run and ``--ckpt_path`` does not say to go on with it.
        """
        config = self._get(self.config_init, "trainer")
        folder = self.folder
        last = folder / "last.ckpt"
        going_on = self.subcommand is None or self._get(self.config, "ckpt_path") is not None
        if self.subcommand == "fit" and last.exists() and not going_on:
            raise VitposError(
                f"{folder} already holds a run of {finished_epochs(last)} epochs; go on with --ckpt_path last, "
                "or name another folder with --trainer.default_root_dir"
            )
        kwargs["default_root_dir"] = folder
        if config.precision is None:
            kwargs["precision"] = "bf16-mixed" if fast_bf16(config.accelerator) else "32-true"
        if self.subcommand not in (None, "fit"):
            return super().instantiate_trainer(**kwargs, logger=False)
        folder.mkdir(parents=True, exist_ok=True)
        history = self.history = History(folder)
        bar = sys.stderr.isatty() and not self.prefix and config.enable_progress_bar is not False
        kwargs["enable_progress_bar"] = bar
        kwargs["callbacks"] = [
            *(config.callbacks or []),
            history,
            Similarity(),
            TQDMProgressBar() if bar else EpochLines(folder, self.prefix or folder.name, history),
            ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False),
        ]
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                folder,
                name="",
                version="tensorboard",
                default_hp_metric=False,  # else every run shows hp_metric = -1
                purge_step=finished_epochs(last) + 1 if going_on and last.exists() else None,
            )
        return super().instantiate_trainer(**kwargs)


def slug(text: str) -> str:
    """Writes a scheme as a file name: ``sinusoidal_2d(scale=0.02)`` becomes ``sinusoidal_2d-scale-0.02``."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-")


def finished_epochs(checkpoint: Path) -> int:
    """Reads how many epochs a checkpoint holds.

    Raises:
        VitposError: The file is no checkpoint.
    """
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["epoch"]) + 1
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise VitposError(f"{checkpoint} is damaged ({type(error).__name__}): remove it to start over") from error


def fast_bf16(accelerator: str) -> bool:
    """Tells whether bfloat16 products are in the hardware that will train (emulated ones are slower than float32)."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
