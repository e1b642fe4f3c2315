"""Checkpoints: written whole, checked when read, and refused where a run would not go on as the run that it was.

Each carries, under the key ``vitpos``, what its weights belong to: text and geometry of the scheme, the options that
enter training, the data with its classes and normalisation, and the sources that trained.
"""

import copy
import errno
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

from vitpos.errors import VitposError
from vitpos.positions import text as scheme_text
from vitpos.provenance import sources

if TYPE_CHECKING:
    from vitpos.data.module import ImageData
    from vitpos.train.task import Classifier

Checkpoint = dict[str, Any]

# Of the trainer's options those that change what is trained.
_TRAINER = ("accumulate_grad_batches", "limit_train_batches", "overfit_batches", "gradient_clip_val", "precision")
LENGTH = ("trainer.max_epochs", "trainer.max_steps")  # may change: the schedule is computed anew
OPTIONS = (*(f"trainer.{key}" for key in _TRAINER), *LENGTH, "trainer.gradient_clip_algorithm")
_EVALUATED = ("position", "model.name", "model.patch_size", "model.global_pool")  # what the weights' shapes follow from


class CheckpointError(VitposError):
    """A checkpoint that cannot be used: it is damaged, of another run, or does not fit what is asked for."""


class WholeFiles(TorchCheckpointIO):
    """Writes beside the target, flushes and replaces, and keeps the file that was there as ``last.previous.ckpt``.

    Lightning stages in ``$TMPDIR`` and moves, which is a plain copy where that is another file system: a crash leaves
    half a checkpoint under the final name.
    """

    def save_checkpoint(self, checkpoint: Checkpoint, path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint whole or not at all.

        Raises:
            OSError: It cannot be written; what was there is untouched.
        """
        target = Path(path)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        buffer = io.BytesIO()  # torch makes a RuntimeError of what the disk says
        torch.save(checkpoint, buffer)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                target.replace(previous(target))
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(target)) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint and the one before it under the same name."""
        previous(Path(path)).unlink(missing_ok=True)
        super().remove_checkpoint(path)


def previous(file: Path) -> Path:
    """Names the checkpoint that ``file`` replaced."""
    return file.with_name(f"{file.stem}.previous{file.suffix}")


def candidates(folder: Path) -> list[Path]:
    """Lists the checkpoints of a run's own that there are, newest first."""
    last = folder / "last.ckpt"
    return [file for file in (last, previous(last)) if file.exists()]


def discard(folder: Path) -> None:
    """Empties a folder of what a run that starts there writes anew: checkpoints and curves."""
    for file in (*candidates(folder), *folder.glob("tensorboard/events.out.tfevents.*")):
        file.unlink(missing_ok=True)


def read(file: Path) -> Checkpoint:
    """Reads a checkpoint of `Classifier`; its tensors stay on disk until they are used.

    The checksums in the file are checked too, which torch does not do: a flipped bit would train on unnoticed.

    Raises:
        VitposError: There is no such file, it is damaged, or it is no checkpoint of this version.
    """
    if not file.exists():
        raise CheckpointError(f"no checkpoint {file}")
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder without a last.ckpt; name a checkpoint, such as runs/x/last.ckpt")
    try:
        with zipfile.ZipFile(file) as archive:
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {bad}")
        checkpoint: Checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is no checkpoint of vitpos fit: it holds objects beside tensors and numbers"
        ) from None
    except Exception as error:  # zipfile and torch raise half a dozen kinds for a damaged file
        if isinstance(error, MemoryError):
            raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek to where nothing can be
            raise VitposError(f"cannot read {file}: {error.strerror}") from error
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        ) from error
    if not isinstance(checkpoint, dict) or not {"epoch", "hyper_parameters"} <= checkpoint.keys():
        holds = ", ".join(map(str, checkpoint))[:80] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise CheckpointError(f"{file} is no checkpoint of vitpos fit: it holds {holds}")
    if "vitpos" not in checkpoint:
        raise CheckpointError(f"{file} is of an older version of vitpos, which did not keep its options and data in it")
    return checkpoint


def newest(folder: Path) -> Path:
    """Finds the newest whole checkpoint of a run, and says where that is not ``last.ckpt``.

    Raises:
        VitposError: None is whole.
    """
    files = candidates(folder) or [folder / "last.ckpt"]
    for file in files:
        try:
            read(file)
        except VitposError as error:
            if file == files[-1]:
                way = f"; to start over, remove {' and '.join(map(str, files))}" if file.exists() else ""
                raise CheckpointError(f"{error}{way}") from error
            print(f"{error}; taking the one before, {files[-1]}", flush=True)
        else:
            return file
    raise AssertionError


def done(checkpoint: Checkpoint) -> tuple[int, int]:
    """Reads how many epochs a checkpoint has finished, and how many batches of the next one."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]["ready"]
    if epochs["processed"] < epochs["ready"]:
        return epochs["processed"], batches
    if 0 < batches < checkpoint["vitpos"]["batches"]:  # max_steps or max_time ended the epoch before its last batch
        return epochs["processed"] - 1, batches
    return epochs["processed"], 0


def another(file: Path, going_on: Checkpoint | None) -> str:
    """Says what run a checkpoint in the way is of; nothing where it is of the one that goes on, at whatever length."""

    def made(checkpoint: Checkpoint) -> tuple[Any, ...]:
        belongs = checkpoint["vitpos"]
        given = {key: value for key, value in belongs["options"].items() if key not in LENGTH}
        return given, belongs["data"], belongs["hash"]

    try:
        there = read(file)
    except CheckpointError:
        return "a run with a damaged checkpoint" if going_on is None else ""
    if going_on is not None and made(there) == made(going_on):
        return ""
    return f"a run of {done(there)[0]} epochs"


def lengths(checkpoint: Checkpoint, trainer: Trainer) -> list[tuple[str, int, int]]:
    """Lists the options of the length that are not what they were, with the old value and the new one."""
    then, now = checkpoint["vitpos"]["options"], {key: getattr(trainer, key.rpartition(".")[2]) for key in LENGTH}
    return [(key, then[key], now[key]) for key in LENGTH if then[key] != now[key]]


def purge_step(checkpoint: Checkpoint | None, max_epochs: int | None, max_steps: int) -> int | None:
    """Returns from which epoch on a run that goes on draws its curves anew; None where it draws nothing."""
    if checkpoint is None:
        return None
    epochs, _ = done(checkpoint)
    over = 0 <= max_steps <= checkpoint["global_step"] or 0 <= (max_epochs or -1) <= epochs
    return None if over else epochs + 1


def stopped(callback: EarlyStopping) -> bool:
    """Tells whether early stopping had ended the run when the checkpoint was written; Lightning would go on."""
    return bool(callback.stopped_epoch) or 0 < callback.patience <= callback.wait_count


def settle(checkpoint: Checkpoint) -> None:
    """Sets Lightning's counters to where training goes on: at an epoch's start, or at the batch that comes next.

    With ``max_steps``, Lightning would take an epoch that is over for one to go on with; an epoch that it cut short it
    would take for finished.

    Raises:
        VitposError: The checkpoint was written inside a step, or between an epoch's last batch and its end.
    """
    loop, (_, inside) = checkpoint["loops"]["fit_loop"], done(checkpoint)
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    whole = checkpoint["vitpos"]["batches"]
    if inside >= whole or batches["current"]["ready"] != batches["current"]["processed"]:
        where = "inside a step" if inside < whole else "after the last batch of an epoch, before its end"
        raise CheckpointError(f"the checkpoint was written {where}: a run cannot go on from there; take last.ckpt")
    for counts in epochs["total"], epochs["current"]:
        if inside:
            counts["processed"] = counts["completed"] = counts["ready"] - 1
        else:
            counts["completed"] = counts["processed"]
    if not inside:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


def options(model: "Classifier", data: "ImageData", trainer: Trainer) -> dict[str, Any]:
    """Returns the options that enter training, by their names on the command line."""
    own = {key: value for key, value in model.hparams.items() if not key.startswith("_")}  # not Lightning's
    position, seed = own.pop("position"), own.pop("seed")
    used = {key: getattr(trainer, key) for key in _TRAINER} | {"max_epochs": trainer.max_epochs}
    algorithm = trainer.gradient_clip_algorithm
    used |= {"max_steps": trainer.max_steps, "gradient_clip_algorithm": algorithm and str(algorithm.value)}
    return {
        "position": position,
        "seed_everything": seed,
        **{f"model.{key}": value for key, value in own.items()},
        **{f"data.{key}": value for key, value in data.hparams.items() if key != "seed" and key[0] != "_"},
        **{f"trainer.{key}": value for key, value in used.items()},
    }


def describe(model: "Classifier", data: "ImageData", trainer: Trainer) -> dict[str, Any]:
    """Returns what the weights belong to, as a checkpoint keeps it; called at the start of training."""
    given, callbacks = options(model, data, trainer), getattr(trainer, "callbacks", [])
    return {
        "position": given["position"],
        "files": list(scheme_text.digests(given["position"]).values()),
        "accumulation": [str(c.scheduling) for c in callbacks if isinstance(c, GradientAccumulationScheduler)],
        "options": given,
        "data": data.describe(),
    }


def check(checkpoint: Checkpoint, model: "Classifier", data: "ImageData", trainer: Trainer, *, train: bool) -> None:
    """Refuses a checkpoint that does not fit what is asked for.

    Args:
        checkpoint: The checkpoint.
        model: The model that would take its weights.
        data: The data that the model would see.
        trainer: The trainer, with its options.
        train: Whether training goes on; else the weights are only evaluated, on any images of the same classes.

    Raises:
        VitposError: Both values of the first thing that differs.
    """
    then, now = checkpoint["vitpos"], describe(model, data, trainer)
    for key, value in now["options"].items():
        old = then["options"].get(key, value)
        # 1 is one batch and 1.0 are all
        equal = repr(old) == repr(value) if key.endswith("_batches") else old == value
        if equal or key in LENGTH or (not train and key not in _EVALUATED):
            continue
        if key == "position" and same_scheme(old, value):
            continue
        what = "a run goes on with the options it began with" if train else "its weights are for that"
        raise CheckpointError(f"{key} is {value!r}, but the checkpoint was trained with {old!r}; {what}")
    check_data(then["data"], now["data"], train=train)
    if not train:
        return
    if then["accumulation"] != now["accumulation"]:
        ours, theirs = (", ".join(each["accumulation"]) or "none" for each in (now, then))
        raise CheckpointError(f"GradientAccumulationScheduler is {ours}, but the checkpoint was trained with {theirs}")
    if then["files"] != now["files"]:
        raise CheckpointError(f"the file of {now['position']} changed since the checkpoint was trained")
    settle({"vitpos": then, "loops": copy.deepcopy(checkpoint["loops"])})
    (epochs, inside), steps = done(checkpoint), checkpoint["global_step"]
    most, limit = trainer.max_epochs, trainer.max_steps
    if most is not None and 0 <= most < epochs + (inside > 0):
        raise CheckpointError(
            f"trainer.max_epochs is {most}, but the checkpoint has trained {epochs + (inside > 0)} epochs"
        )
    if 0 <= limit < steps:
        raise CheckpointError(f"trainer.max_steps is {limit}, but the checkpoint has trained {steps} steps")


def check_data(then: dict[str, Any], now: dict[str, Any], *, train: bool) -> None:
    """Refuses data that the weights are not for: other classes or sizes, and where training goes on other contents.

    Raises:
        VitposError: Both values of the first thing that differs.
    """
    for key, word in {"classes": "classes", "shape": "images", "fingerprint": "contents"}.items():
        if then[key] != now[key] and (train or key != "fingerprint"):
            ours, theirs = shown(now[key], then[key])
            raise CheckpointError(
                f"the {word} of the data {now['name']} are {ours}, but the checkpoint was trained on {then['name']} "
                f"with {theirs}"
            )


def shown(ours: Any, theirs: Any) -> tuple[str, str]:
    """Writes two values that differ; of long lists only where."""
    if not isinstance(ours, list) or len(ours) + len(theirs) < 20:
        return str(ours), str(theirs)

    def others(one: list[Any], two: list[Any]) -> str:
        return f"{len(one)}, among them {', '.join(str(each) for each in one if each not in two)[:80] or 'no others'}"

    return others(ours, theirs), others(theirs, ours)


def same_scheme(one: str, other: str) -> bool:
    """Tells whether two texts name the same parts with the same options; a file may have moved."""

    def parts(text: str) -> list[tuple[str, dict[str, object]]]:
        return [(Path(name).name, given) for name, given in scheme_text.parse(text)]

    return parts(one) == parts(other)


def runs_a_file(text: str) -> bool:
    """Tells whether the text of a scheme names a file."""
    return any(scheme_text.split(name) for name, _ in scheme_text.parse(text))


def trail(earlier: list[str]) -> list[str]:
    """Returns the digests of the sources in order of use: those of a checkpoint, then that of this process."""
    return earlier if earlier[-1:] == [sources()] else [*earlier, sources()]


def epoch_so_far(model: "Classifier", trainer: Trainer) -> dict[str, Any]:
    """Returns what an epoch in progress has: sums of its metrics, and gradients where steps accumulate them."""
    loop = trainer.fit_loop.epoch_loop
    sums = {key: (metric.value.cpu(), metric.cumulated_batch_size.cpu()) for key, metric in _means(trainer).items()}
    gradients: dict[str, Any] = {}
    if loop._should_accumulate():
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # a GradientAccumulationScheduler sets this at the start of an epoch only
    return {"sums": sums, "gradients": gradients, "accumulate": trainer.accumulate_grad_batches}


def add_sums(sums: dict[str, tuple[torch.Tensor, torch.Tensor]], trainer: Trainer) -> None:
    """Adds the sums of an epoch's first part to those of its first batch after the restart."""
    for key, metric in _means(trainer).items():
        if key in sums:
            value, weight = sums[key]
            metric.value += value.to(metric.value.device)
            metric.cumulated_batch_size += weight.to(metric.cumulated_batch_size.device)


def _means(trainer: Trainer) -> dict[str, Any]:
    """Returns Lightning's running means over the training epoch."""
    return {
        key: metric
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor and metric.meta.is_mean_reduction
    }
