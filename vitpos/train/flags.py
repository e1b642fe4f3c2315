"""Flags of Lightning's Trainer that a run of vitpos cannot take as they are."""

import re
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer

from vitpos.errors import VitposError

LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}


def check_flags(config: Any) -> None:
    """Checks the flags that Lightning would stumble over much later, or take for something else.

    Args:
        config: The flags, as parsed.

    Raises:
        VitposError: More than one device or machine, a flag below its range, or one that leaves nothing of a run.
    """
    devices = len(config.devices) if isinstance(config.devices, list) else config.devices
    if devices not in (1, "1"):  # more would start this command once per device
        raise VitposError(f"a run takes one device, got trainer.devices={config.devices!r}")
    if config.num_nodes != 1:  # it would wait for the others
        raise VitposError(f"a run takes one machine, got trainer.num_nodes={config.num_nodes}")
    for flag, least in LEAST.items():
        if (value := config[flag]) is not None and not value >= least:  # written so that NaN fails too
            raise VitposError(f"trainer.{flag} is {value}; it must be at least {least}")
    if config.val_check_interval == 0:
        raise VitposError("trainer.val_check_interval is 0; it must be above 0 (trainer.limit_val_batches 0: never)")
    if re.search("spawn|fork|notebook", str(config.strategy)):
        raise VitposError(f"a run is one process, which trainer.strategy={config.strategy} would leave; leave it out")
    if config.barebones:
        raise VitposError("trainer.barebones cannot be used: it switches off the metrics that a run is there for")


def check_length(trainer: Trainer) -> None:
    """Checks that training has an end and a step, for the learning rate falls from a first to a last one.

    Raises:
        VitposError: Names the flags.
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
    """Adds to the plugins that a run is one process, whatever the variables of a cluster say of its allocation."""
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return plugins
    return [*plugins, LightningEnvironment()]
