"""The training task: a timm ViT with a position scheme, and a recipe that is the same for all schemes."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data.mixup import Mixup
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]

import vitpos.models  # noqa: F401  (registers the small models with timm)
from vitpos import positions
from vitpos.data.module import ImageData
from vitpos.errors import VitposError, unknown
from vitpos.seeding import derive
from vitpos.train import checkpoint as checkpoints
from vitpos.train.speed import Attention, Compile, choose_attention, compiles

Batch = tuple[torch.Tensor, torch.Tensor]


class Classifier(L.LightningModule):
    """Trains a ViT with a position scheme to classify images.

    Every random quantity has its own stream (see `vitpos.seeding`): the backbone's weights use (seed, "weights");
    drop-path, dropout and mixup use (seed, "dropout", step). So two schemes with the same seed differ only in their
    positions.

    Args:
        name: A timm model name, such as ``vitpos_micro_patch4_32``.
        position: The scheme as text, such as ``sinusoidal_2d(temperature=100)`` or ``learned+sinusoidal_1d``.
        patch_size: Side of a patch in pixels; default: that of the model.
        global_pool: ``avg`` over the patches without a class token, or a class ``token``.
        drop_path_rate: Stochastic depth at the last block, growing linearly from 0 at the first.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices; positions, norms, biases and tokens have none.
        warmup_epochs: Epochs of linear warm-up before the cosine to 0.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of mixup (timm); 0 is off.
        cutmix: Alpha of cutmix (timm); 0 is off.
        attention: ``fused``, ``unfused``, or the faster one for training (``auto``); equal up to rounding.
        compile: Whether to compile the training step with ``torch.compile``: true, false, or ``auto`` (on a GPU, if it
            works); equal up to rounding.
        seed: Seed of all streams; the command line sets it from ``seed_everything``.
    """

    def __init__(
        self,
        *,
        name: str = "vitpos_micro_patch4_32",
        position: str = "none",
        patch_size: int | None = None,
        global_pool: Literal["avg", "token"] = "avg",
        drop_path_rate: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        attention: Attention = "auto",
        compile: Compile = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise unknown("model", name, timm.list_models("vitpos_*"))
        positions.check(position)  # now, not after the data has been downloaded
        if not (lr > 0 and weight_decay >= 0 and warmup_epochs >= 0 and 0 <= label_smoothing < 1):
            raise VitposError(
                f"lr must be above 0 (got {lr}), weight_decay and warmup_epochs at least 0 (got {weight_decay} and "
                f"{warmup_epochs}), label_smoothing in [0, 1) (got {label_smoothing})"
            )
        self.save_hyperparameters()
        self.net: VisionTransformer | None = None
        self.mix: Mixup | None = None
        self.right: list[torch.Tensor] = []
        self.run_hash: str | None = None  # set for runs of a study
        self.sources = checkpoints.trail([])
        self._trained: dict[str, Any] | None = None
        self._brought: checkpoints.Checkpoint = {}
        self.step: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self.loss

    @property
    def data(self) -> ImageData:
        """The trainer's data module."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageData):
            raise VitposError(f"training needs vitpos.data.ImageData as its data module, got {type(data).__name__}")
        return data

    def configure_model(self) -> None:
        """Builds the network for the data, once, and chooses attention and compilation; called before each stage."""
        net = self.build(self.data) if self.net is None else self.net
        device = self.trainer.strategy.root_device.type
        choose_attention(net, self.hparams["attention"], device, str(self.trainer.precision))
        if self.trainer.training and compiles(self.hparams["compile"], device):
            # The same draws as without compilation, so that dropout stays paired; and enough graphs for one per scheme,
            # which its other seeds reuse.
            torch._inductor.config.fallback_random = True
            torch._dynamo.config.recompile_limit = 100
            self.step = torch.compile(self.loss, dynamic=False)

    def build(self, data: ImageData) -> VisionTransformer:
        """Builds the network for the images of a data module, after its setup.

        The backbone is built before the scheme, so that the scheme's draws cannot affect the backbone.

        Args:
            data: Provides image size, channels and classes.

        Returns:
            The network, also stored as ``self.net``.

        Raises:
            VitposError: Unknown scheme or option, or sizes that are not divisible.
        """
        options = self.hparams
        torch.manual_seed(derive(options["seed"], "weights"))
        size = {} if options["patch_size"] is None else {"patch_size": options["patch_size"]}
        net = timm.create_model(
            options["name"],
            position=options["position"],
            img_size=data.img_size,
            in_chans=data.in_chans,
            num_classes=data.num_classes,
            global_pool=options["global_pool"],
            drop_path_rate=options["drop_path_rate"],
            **size,
        )
        if options["mixup"] > 0 or options["cutmix"] > 0:
            if data.batch_size % 2:
                raise VitposError(f"mixup and cutmix pair the images of a batch: batch_size {data.batch_size} is odd")
            self.mix = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=options["mixup"],
                cutmix_alpha=options["cutmix"],
                label_smoothing=options["label_smoothing"],
                num_classes=data.num_classes,
            )
        self.example_input_array = torch.zeros(1, data.in_chans, *data.img_size)  # for Lightning's model summary
        self.net = cast(VisionTransformer, net)
        return self.net

    def on_fit_start(self) -> None:
        """Records the options before callbacks change them between epochs."""
        self._trained = checkpoints.describe(self, self.data, self.trainer)

    def on_save_checkpoint(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Adds what the weights depend on, and, within an epoch, its running means and gradients."""
        mean, deviation = self.data.moments
        belongs = self._trained or checkpoints.describe(self, self.data, self.trainer)
        checkpoint["vitpos"] = {
            **belongs,
            "data": {**belongs["data"], "mean": mean.flatten().tolist(), "deviation": deviation.flatten().tolist()},
            "geometry": dataclasses.asdict(cast(Any, self.net).pos_embed.geometry),
            "hash": self.run_hash,
            "sources": self.sources,
            "batches": self.trainer.num_training_batches,
            **checkpoints.epoch_so_far(self, self.trainer),
        }

    def on_load_checkpoint(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Restores the normalisation of the training data, and prepares training to continue at the next step.

        Raises:
            VitposError: The data differs from that of the checkpoint, or the checkpoint is too old.
        """
        if "vitpos" not in checkpoint:
            raise VitposError("the checkpoint is of an older version of vitpos, which did not store its data")
        brought = checkpoint["vitpos"]
        train, data = self.trainer.state.fn == "fit", brought["data"]
        checkpoints.check_data(data, self.data.describe(), train=train)
        mean, deviation = (torch.tensor(data[key])[:, None, None] for key in ("mean", "deviation"))
        self.data.moments = mean, deviation
        self.sources = checkpoints.trail(brought["sources"])
        if train:
            inside = checkpoints.done(checkpoint)[1]
            self._brought = brought if inside else {**brought, "sums": {}, "gradients": {}}
            checkpoints.settle(checkpoint)

    def on_train_start(self) -> None:
        """Rebuilds the schedule and, in a resumed run, restores the accumulated gradients.

        The checkpoint's schedule may have another length, and learning rate or batch size finders change its inputs.
        """
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, CosineLRScheduler):
                config.scheduler = self.schedule(config.scheduler.optimizer)
                config.scheduler.step_update(self.global_step)
        if self._brought:
            self.trainer.accumulate_grad_batches = self._brought["accumulate"]
            if any(map(checkpoints.stopped, self.trainer.early_stopping_callbacks)):
                self.trainer.should_stop = True
            for name, parameter in self.named_parameters():
                if (gradient := self._brought["gradients"].get(name)) is not None:
                    parameter.grad = gradient.to(parameter.device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits (B, classes) from normalised images (B, C, H, W)."""
        if self.net is None:
            raise VitposError("the network is not built yet: call build(data) or let the trainer do it")
        return cast(torch.Tensor, self.net(images))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the step's own stream for drop-path, dropout and mixup, independent of earlier draws."""
        # counts batches, like the augmentation: with accumulated gradients there are fewer optimizer steps
        stream = derive(self.hparams["seed"], "dropout", self.trainer.fit_loop.epoch_loop.total_batch_idx)
        torch.manual_seed(stream)
        if self.mix is not None:
            np.random.seed(stream % 2**32)  # timm's Mixup draws from numpy's global state

    def loss(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes loss and logits; targets are labels, or class probabilities with mixup."""
        smoothing = self.hparams["label_smoothing"] if self.mix is None else 0.0  # mixup smooths by itself
        logits = self(images)
        return F.cross_entropy(logits, targets, label_smoothing=smoothing), logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Computes the loss of a batch, and after a resume adds the epoch's sums from before it."""
        images, labels = batch
        loss, logits = self.step(*(batch if self.mix is None else self.mix(images, labels)))
        self.record("train", loss.detach(), logits, labels)
        if self._brought:  # here, since callbacks may save a checkpoint when this batch ends
            checkpoints.add_sums(self._brought["sums"], self.trainer)
            self._brought = {}
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Computes loss and accuracy on validation images."""
        self.evaluate("val", batch)

    def on_test_epoch_start(self) -> None:
        """Clears the results of an earlier test."""
        self.right = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Computes loss and accuracy on test images, and stores which are classified correctly, in canonical order."""
        self.right.append(self.evaluate("test", batch))

    def evaluate(self, part: str, batch: Batch) -> torch.Tensor:
        """Records cross entropy (without smoothing) and accuracy of a batch; returns which images are correct."""
        images, labels = batch
        logits = self(images)
        return self.record(part, F.cross_entropy(logits, labels), logits, labels)

    def record(self, part: str, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Adds a batch to the epoch's means, which the history callback writes; returns which images are correct."""
        right = logits.argmax(1) == labels
        self.log_dict(
            {f"{part}/loss": loss, f"{part}/accuracy": right.float().mean()},
            on_step=False,
            on_epoch=True,
            prog_bar=part != "test",
            logger=False,
            batch_size=len(labels),
        )
        return right

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW, with weight decay on matrices only, and a per-step schedule of warm-up and cosine."""
        net = self.net
        if net is None:
            raise VitposError("the network is not built yet: call build(data) or let the trainer do it")
        decay = self.hparams["weight_decay"]
        groups = param_groups_weight_decay(net, weight_decay=decay, no_weight_decay_list=net.no_weight_decay())
        # in mixed precision Lightning can clip gradients only if the optimizer is not fused
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"], fused=not self.trainer.gradient_clip_val)
        self.trainer.fit_loop.setup_data()  # counts the batches, which max_epochs needs (max_steps does not)
        schedule = {"scheduler": self.schedule(optimizer), "interval": "step"}
        # Lightning accepts timm's schedulers, but its type annotations only torch's.
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": schedule})

    def schedule(self, optimizer: torch.optim.Optimizer) -> CosineLRScheduler:
        """Returns the learning rate schedule: linear warm-up, then a cosine to 0 at the last step."""
        steps = int(self.trainer.estimated_stepping_batches)
        epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches  # in steps
        warmup = max(min(round(self.hparams["warmup_epochs"] * epoch), steps - 1), 0)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self.hparams["lr"]
        return CosineLRScheduler(
            optimizer,
            t_initial=steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=self.hparams["lr"] / max(warmup, 1),  # from 0, the first step would do nothing
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advances timm's scheduler to the next step, or torch's by one step."""
        if isinstance(scheduler, CosineLRScheduler):
            scheduler.step_update(self.global_step)
        else:  # set by a callback
            super().lr_scheduler_step(scheduler, metric)
