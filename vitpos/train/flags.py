"""Lightning Trainer flags that a run of vitpos does not support."""

import re
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer

from vitpos.errors import VitposError

LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}


def check_flags(config: Any) -> None:
    """Checks flags that Lightning would fail on much later, or misinterpret.

    Args:
        config: The parsed flags.

    Raises:
        VitposError: More than one device or machine, a flag out of range, or one that makes the run meaningless.
    """
    devices = len(config.devices) if isinstance(config.devices, list) else config.devices
    if devices not in (1, "1"):  # Lightning would start this command once per device
        raise VitposError(f"a run takes one device, got trainer.devices={config.devices!r}")
    if config.num_nodes != 1:  # Lightning would wait for the other machines
        raise VitposError(f"a run takes one machine, got trainer.num_nodes={config.num_nodes}")
    for flag, least in LEAST.items():
        if (value := config[flag]) is not None and not value >= least:  # written so that NaN fails too
            raise VitposError(f"trainer.{flag} is {value}; it must be at least {least}")
    if config.val_check_interval == 0:
        raise VitposError("trainer.val_check_interval is 0; it must be above 0 (trainer.limit_val_batches 0: never)")
    if re.search("spawn|fork|notebook", str(config.strategy)):
        raise VitposError(f"a run is one process, but trainer.strategy={config.strategy} starts others; leave it out")
    if config.barebones:
        raise VitposError("trainer.barebones cannot be used: it disables the metrics that a run reports")


def check_length(trainer: Trainer) -> None:
    """Checks that training has a last step, which the learning rate schedule needs, and at least one step.

    Raises:
        VitposError: With the flags to set.
    """
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise VitposError(
            "the learning rate falls to 0 at a last step, so training needs one: give trainer.max_epochs or "
            "trainer.max_steps (trainer.max_time may end it before)"
        )
    for flag in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, flag) == 0:
            raise VitposError(f"trainer.{flag} is 0: nothing would be trained")


def in_one_process(plugins: list[Any]) -> list[Any]:
    """Adds a plugin that makes the run a single process, whatever a cluster's environment variables say."""
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return plugins
    return [*plugins, LightningEnvironment()]
