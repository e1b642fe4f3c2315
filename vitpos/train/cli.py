"""The command line of one run: ``vitpos fit``, ``validate`` and ``test``, by LightningCLI."""

import contextlib
import itertools
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from vitpos.data.module import ImageData
from vitpos.errors import VitposError, unknown
from vitpos.lock import hold
from vitpos.paths import expand
from vitpos.train.callbacks import Bar, EpochLines, History, Similarity
from vitpos.train.speed import keep_memory
from vitpos.train.task import Classifier


class Parser(LightningArgumentParser):
    """Says what is wrong with an option or a key of a config in one line, with the nearest that exists."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises the error instead of printing the usage, which here is two hundred lines long.

        Raises:
            VitposError: Always.
        """
        raise readable(" ".join(message.split()), list(destinations(self)))


def destinations(parser: Any) -> Iterator[str]:
    """Names all keys of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                yield from destinations(subparser)
        elif action.dest not in ("help", "print_config", "print_shtab", "model.position", "model.seed", "data.seed"):
            yield action.dest


def readable(text: str, keys: list[str]) -> VitposError:
    """Turns what jsonargparse says about a mistake into what a user wants to know."""
    key = r"(?:(?:[Uu]nrecognized arguments: --)|(?:(?:[Oo]ption|key|Key) '))([\w.]+)"
    refused = re.search(r"nrecognized arguments|not accept|not expected", text)
    if refused and (found := re.search(key, text)):
        group = re.search(r"Group '([\w.]+)'", text)
        return unknown_key(f"{group[1]}.{found[1]}" if group else found[1], keys)
    wanted = r"(?:Expected an? (.*?)\. Got value|Does not .* Subtypes: \[(.*?)\] Errors: .*Given value)"
    if found := re.search(rf'"([\w.]+)": .*?{wanted}: (.*)$', text):
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", found[2] or found[3]).replace("NoneType", "null")
        kind = kind.replace("typing.Literal", "one of ") if "[" in kind else kind.replace(", ", " or ")
        return VitposError(f"{found[1]} should be {kind}, got {found[4]!r}")
    text = re.sub(r'^(Parser )?key "config": | "<unicode string>",', "", text)
    return VitposError(text.replace("Unexpected config", "a config should hold keys and values, got"))


def unknown_key(key: str, keys: list[str]) -> VitposError:
    """Makes the error for an unknown key; the known ones are those beside it, since all would fill a screen."""
    group = key.rpartition(".")[0]
    beside = {known for known in keys if known.rpartition(".")[0] == group}
    return unknown("option", key, beside or {known.partition(".")[0] for known in keys})


def command(words: list[str]) -> None:
    """Carries ``vitpos fit``, ``validate`` or ``test`` out.

    Raises:
        VitposError: A user's mistake.
    """
    try:
        VitposCLI(words, run=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit code of it
            raise KeyboardInterrupt from error
        raise


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
        keep_memory()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("timm.scheduler").setLevel(logging.ERROR)  # warns where all steps are warm-up
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on
        warnings.filterwarnings("ignore", "The dirpath has changed")  # a folder may be moved
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # validate needs no history
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own, against torch 2.14
        sys.argv = sys.argv[:1]  # LightningCLI warns when both this and args are given
        with contextlib.ExitStack() as self.held:
            self.begin(args, run)

    def begin(self, args: dict[str, Any] | list[str], run: bool) -> None:
        """Parses, builds, and carries the subcommand out."""
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
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            auto_configure_optimizers=False,
            parser_kwargs={"allow_abbrev": False},
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the options; a checkpoint brings those of its model along, its position and its seed.

        Raises:
            VitposError: A mistake in the options or the config, or no checkpoint where one is needed.
        """
        try:
            super().parse_arguments(parser, args)
        except VitposError as error:
            files = [word for option, word in itertools.pairwise(args) if option in ("--config", "-c")]
            where = ", ".join(file for file in files if file not in str(error))
            raise VitposError(f"{error} (config: {where})" if where else str(error)) from error
        self.subcommand = self.config.get("subcommand")
        if isinstance(seed := self._get(self.config, "seed_everything"), bool):
            raise VitposError(f"seed_everything should be a whole number, got {str(seed).lower()}")
        if self.subcommand is None:
            return
        options = self.config[self.subcommand]
        if self.subcommand != "fit" and options.ckpt_path is None:
            raise VitposError(f"{self.subcommand} needs a checkpoint: --ckpt_path, such as runs/x/last.ckpt")
        if options.ckpt_path == "last":
            last = self.folder / "last.ckpt"
            options.ckpt_path = None if self.subcommand == "fit" and not last.exists() else str(last)
        elif options.ckpt_path is not None:
            options.ckpt_path = str(expand(options.ckpt_path))
        if options.ckpt_path is not None:  # the model's options come from the checkpoint, by LightningCLI
            trained = read_checkpoint(Path(options.ckpt_path))["hyper_parameters"]
            options.position, options.seed_everything = trained["position"], trained["seed"]

    @property
    def folder(self) -> Path:
        """The folder of the run: ``trainer.default_root_dir``, else one named after what is trained."""
        given = self._get(self.config, "trainer").default_root_dir
        if given:
            return expand(given)
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        scheme, seed = slug(self._get(self.config, "position")), self._get(self.config, "seed_everything")
        return Path("runs", f"{data.name}-{model.name.removeprefix('vitpos_')}-{scheme}-s{seed}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer: bf16 where the device has it unless asked otherwise, and all output in the folder.

        Raises:
            VitposError: The folder already holds a run and ``--ckpt_path`` does not say to go on with it, it cannot
                be written, or the trainer's options do not go together.
        """
        config = self._get(self.config_init, "trainer")
        folder = self.folder
        last = folder / "last.ckpt"
        if self.subcommand in (None, "fit"):
            self.claim(folder)
        going_on = self.subcommand is None or self._get(self.config, "ckpt_path") is not None
        if self.subcommand == "fit" and last.exists() and not going_on:
            raise VitposError(
                f"{folder} already holds a run of {finished_epochs(last)} epochs; go on with --ckpt_path last, "
                "or name another folder with --trainer.default_root_dir"
            )
        devices = len(config.devices) if isinstance(config.devices, list) else config.devices
        if devices not in (1, "1"):  # more would start this command once per device
            raise VitposError(f"a run takes one device, got trainer.devices={config.devices!r}")
        kwargs["default_root_dir"] = folder
        if config.precision is None:
            kwargs["precision"] = "bf16-mixed" if fast_bf16(config.accelerator) else "32-true"
            torch.backends.cuda.matmul.fp32_precision = "tf32"  # of the products that stay in float32
        elif str(config.precision).startswith("bf16") and on_gpu(config.accelerator) and not fast_bf16("cuda"):
            raise VitposError(
                f"trainer.precision is {config.precision}, but {torch.cuda.get_device_name()} has no bfloat16; "
                "use 32-true or 16-mixed, or leave it out"
            )
        bar = sys.stderr.isatty() and not self.prefix and config.enable_progress_bar is not False
        kwargs["enable_progress_bar"] = bar
        bars: list[Callback] = [Bar()] if bar else []
        if self.subcommand not in (None, "fit"):
            return self.make_trainer(
                **kwargs, logger=False, enable_checkpointing=False, callbacks=[*(config.callbacks or []), *bars]
            )
        history = self.history = History(folder)
        kwargs["callbacks"] = [
            *(config.callbacks or []),
            history,
            Similarity(),
            *(bars or [EpochLines(folder, self.prefix or folder.name, history)]),
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
        return self.make_trainer(**kwargs)

    def claim(self, folder: Path) -> None:
        """Makes the folder of a run, and keeps other runs out of it until this one ends; `study run` does so itself.

        Raises:
            VitposError: Another one is in it, or it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.subcommand == "fit":
                taken = f"another vitpos fit works in {folder}; wait for it, or name another folder with "
                self.held.enter_context(hold(folder / ".lock", f"{taken}--trainer.default_root_dir"))
        except OSError as error:
            raise VitposError(f"cannot write to {folder}: {error.strerror}; name another folder") from error

    def make_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer; what Lightning has against its options becomes one line."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ModuleNotFoundError) as error:
            raise VitposError(f"trainer: {' '.join(str(error).split())}") from error

    def after_fit(self) -> None:
        """Says where the run lies."""
        print(f"written to {self.folder}; curves: tensorboard --logdir {self.folder}")

    def after_validate(self) -> None:
        """Prints the metrics."""
        for key, value in self.trainer.callback_metrics.items():
            print(f"{key} {float(value):.4f}")

    after_test = after_validate


def slug(text: str) -> str:
    """Writes a scheme as a file name: ``sinusoidal_2d(scale=0.02)`` becomes ``sinusoidal_2d-scale-0.02``."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-")


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Reads a checkpoint of `Classifier`.

    Raises:
        VitposError: There is no such file, or it is no checkpoint.
    """
    if not file.exists():
        raise VitposError(f"no checkpoint {file}")
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if {"epoch", "hyper_parameters"} <= checkpoint.keys():
            return checkpoint
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise VitposError(f"{file} is damaged ({type(error).__name__}): remove it to start over") from error
    raise VitposError(f"{file} is no checkpoint of vitpos fit: it holds {', '.join(map(str, checkpoint))[:80]}")


def finished_epochs(checkpoint: Path) -> int:
    """Reads how many epochs a checkpoint holds (errors as `read_checkpoint`)."""
    return int(read_checkpoint(checkpoint)["epoch"]) + 1


def on_gpu(accelerator: str) -> bool:
    """Tells whether Lightning's accelerator of this name is a CUDA device here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def fast_bf16(accelerator: str) -> bool:
    """Tells whether bfloat16 products are in the hardware that will train (emulated ones are slower than float32)."""
    if on_gpu(accelerator):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
