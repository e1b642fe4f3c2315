"""Summary curves for TensorBoard, which cannot aggregate runs itself (tensorboard#376)."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from vitpos.analysis.runs import Row, Variant, by_epoch, frame
from vitpos.analysis.tables import leaders
from vitpos.errors import VitposError
from vitpos.text import slug

_METRICS = {"val/accuracy": "validation accuracy", "train/loss": "training loss"}


def write_curves(rows: Sequence[Row], folder: Path) -> Path:
    """Writes one summary run per variant, or only of the best if there are many: mean and range over seeds by epoch.

    Tags are ``val/accuracy/mean``, ``.../low``, ``.../high`` and the same for ``train/loss``; the charts are in the
    "custom scalars" tab.

    Args:
        rows: The rows of a study.
        folder: The study's folder; what was in ``folder/tensorboard`` is replaced.

    Returns:
        ``folder/tensorboard``.

    Raises:
        VitposError: If there are no rows, or the folder cannot be written.
    """
    runs = frame(rows, "val/accuracy")
    kept = leaders(runs, runs[:0])
    groups = {v: own["row"].tolist() for v, own in runs.groupby("variant", sort=True) if v in kept}
    target = Path(folder) / "tensorboard"
    part = target.with_name(".tensorboard.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        names = Counter(_plain(variant).lower() for variant in groups)  # some file systems ignore case
        for variant, runs in groups.items():
            _write(part / _folder(variant, names), runs)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    except OSError as error:
        raise VitposError(f"cannot write {target}: {error.strerror}; name a folder that can be written") from error
    return target


def _write(folder: Path, rows: Sequence[Row]) -> None:
    writer = SummaryWriter(str(folder))
    # One layout for both charts: TensorBoard reads only the first that a run has.
    charts = {title: ["Margin", [f"{m}/mean", f"{m}/low", f"{m}/high"]] for m, title in _METRICS.items()}
    writer.add_custom_scalars({"mean over seeds, band: lowest to highest": charts})
    for metric in _METRICS:
        epochs, values = by_epoch(rows, metric)
        for i, epoch in enumerate(epochs):
            for name, reduce in (("mean", np.mean), ("low", np.min), ("high", np.max)):
                writer.add_scalar(f"{metric}/{name}", float(reduce(values[:, i])), int(epoch))
    writer.close()
    for file in folder.glob("events.out.tfevents.*"):
        file.rename(folder / "events.out.tfevents.summary")  # the writer's name has the host's name and the time in it


def _plain(variant: Variant) -> str:
    return slug(variant.label).strip(".")[:150]


def _folder(variant: Variant, names: Counter[str]) -> str:
    """Names the folder of a variant: readable, short, never ``..``, and not that of another variant."""
    name = _plain(variant)
    whole = name and len(variant.label) <= 150 and names[name.lower()] == 1
    return name if whole else f"{name}-{hashlib.sha256(variant.label.encode()).hexdigest()[:8]}"
