"""The training task: a timm ViT, a position scheme, and the recipe that is the same for all of them."""

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
    """Trains one ViT with one position scheme to classify images.

    Everything random is drawn from a stream of its own (see `vitpos.seeding`): the backbone's weights from
    (seed, "weights"), drop-path, dropout and mixup from (seed, "dropout", step). So two schemes of one seed differ in
    their positions alone.

    Args:
        name: A model that timm knows, such as ``vitpos_micro_patch4_32``.
        position: The scheme as text, such as ``sinusoidal_2d(temperature=100)`` or ``learned+sinusoidal_1d``.
        patch_size: Side of a patch in pixels; left out, the model's own.
        global_pool: ``avg`` over the patches without a class token, or a class ``token``.
        drop_path_rate: Stochastic depth at the last block, growing linearly from 0 at the first.
        lr: Peak learning rate of AdamW.
        weight_decay: Of matrices only; positions, norms, biases and tokens have none.
        warmup_epochs: Epochs of linear warm-up before the cosine to 0.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of mixup (timm); 0 is off.
        cutmix: Alpha of cutmix (timm); 0 is off.
        attention: ``fused``, ``unfused``, or what is faster where it trains (``auto``); equal but for rounding.
        compile: Whether the training step is compiled by ``torch.compile``: true, false, or ``auto``, that is on a GPU
            where it works; equal but for rounding.
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
        positions.check(position)  # before the data, which may have to be downloaded
        if not (lr > 0 and weight_decay >= 0 and warmup_epochs >= 0 and 0 <= label_smoothing < 1):
            raise VitposError(
                f"lr must be above 0 (got {lr}), weight_decay and warmup_epochs at least 0 (got {weight_decay} and "
                f"{warmup_epochs}), label_smoothing in [0, 1) (got {label_smoothing})"
            )
        self.save_hyperparameters()
        self.net: VisionTransformer | None = None
        self.mix: Mixup | None = None
        self.right: list[torch.Tensor] = []
        self.run_hash: str | None = None  # of the run of a study
        self.sources = checkpoints.trail([])
        self._trained: dict[str, Any] | None = None
        self._brought: checkpoints.Checkpoint = {}
        self.step: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self.loss

    @property
    def data(self) -> ImageData:
        """The data module that the trainer feeds from."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageData):
            raise VitposError(f"training needs vitpos.data.ImageData as its data module, got {type(data).__name__}")
        return data

    def configure_model(self) -> None:
        """Builds the network for the images at hand, once, and chooses how it is computed; called before each stage."""
        net = self.build(self.data) if self.net is None else self.net
        device = self.trainer.strategy.root_device.type
        choose_attention(net, self.hparams["attention"], device, str(self.trainer.precision))
        if self.trainer.training and compiles(self.hparams["compile"], device):
            # draws as without compilation, so that dropout stays paired; a graph a scheme, kept for its other seeds
            torch._inductor.config.fallback_random = True
            torch._dynamo.config.recompile_limit = 100
            self.step = torch.compile(self.loss, dynamic=False)

    def build(self, data: ImageData) -> VisionTransformer:
        """Builds the network for the images of a data module that is set up.

        Backbone first, scheme second, so that the scheme's draws cannot move the backbone's.

        Args:
            data: Gives image size, channels and classes.

        Returns:
            The network, also kept as ``self.net``.

        Raises:
            VitposError: Unknown scheme or option, or sizes that do not divide.
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
        """Notes the options before callbacks change them from epoch to epoch."""
        self._trained = checkpoints.describe(self, self.data, self.trainer)

    def on_save_checkpoint(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Adds what the weights belong to, and of an epoch in progress its means and gradients."""
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
        """Takes the normalisation of the training data, and makes training go on at the step that comes next.

        Raises:
            VitposError: The data are not those that the checkpoint was trained on, or it is of an older version.
        """
        if "vitpos" not in checkpoint:
            raise VitposError("the checkpoint is of an older version of vitpos, which did not keep its data in it")
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
        """Makes the schedule anew and, where a run goes on, sets its gradients accumulated so far.

        A checkpoint may bring the schedule of another length, and finders of the rate or the batch size change what it
        was made from.
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
        """Starts the step's own stream for drop-path, dropout and mixup, whatever was drawn before."""
        # by batch, as the augmentation: optimizer steps are fewer where gradients are accumulated
        stream = derive(self.hparams["seed"], "dropout", self.trainer.fit_loop.epoch_loop.total_batch_idx)
        torch.manual_seed(stream)
        if self.mix is not None:
            np.random.seed(stream % 2**32)  # timm's Mixup draws from numpy's global state

    def loss(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes loss and logits; targets are labels, or shares of the classes where the images are mixed."""
        smoothing = self.hparams["label_smoothing"] if self.mix is None else 0.0  # mixup has smoothed them
        logits = self(images)
        return F.cross_entropy(logits, targets, label_smoothing=smoothing), logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Computes the loss of one batch; the first one of an epoch that goes on adds what was summed up before."""
        images, labels = batch
        loss, logits = self.step(*(batch if self.mix is None else self.mix(images, labels)))
        self.record("train", loss.detach(), logits, labels)
        if self._brought:  # here, since callbacks may save a checkpoint when this batch ends
            checkpoints.add_sums(self._brought["sums"], self.trainer)
            self._brought = {}
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Computes loss and accuracy on held-out images."""
        self.evaluate("val", batch)

    def on_test_epoch_start(self) -> None:
        """Forgets which images an earlier test got right."""
        self.right = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Computes loss and accuracy on the test images, and keeps which ones are right, in their order in memory."""
        self.right.append(self.evaluate("test", batch))

    def evaluate(self, part: str, batch: Batch) -> torch.Tensor:
        """Records plain cross entropy (no smoothing) and accuracy of one batch, and returns which images are right."""
        images, labels = batch
        logits = self(images)
        return self.record(part, F.cross_entropy(logits, labels), logits, labels)

    def record(self, part: str, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Adds a batch to the epoch's means, which the history callback writes out; returns which images are right."""
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
        """Makes AdamW, with decay on matrices only, and warm-up and cosine by step."""
        net = self.net
        if net is None:
            raise VitposError("the network is not built yet: call build(data) or let the trainer do it")
        decay = self.hparams["weight_decay"]
        groups = param_groups_weight_decay(net, weight_decay=decay, no_weight_decay_list=net.no_weight_decay())
        # Lightning clips in mixed precision what is not fused only
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"], fused=not self.trainer.gradient_clip_val)
        self.trainer.fit_loop.setup_data()  # which counts the batches; max_epochs needs that, but max_steps does not
        schedule = {"scheduler": self.schedule(optimizer), "interval": "step"}
        # Lightning takes timm's schedulers, but its types name torch's only.
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": schedule})

    def schedule(self, optimizer: torch.optim.Optimizer) -> CosineLRScheduler:
        """Makes the course of the learning rate: linear warm-up, then a cosine to 0 at the last step."""
        steps = int(self.trainer.estimated_stepping_batches)
        epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches  # in steps
        warmup = max(min(round(self.hparams["warmup_epochs"] * epoch), steps - 1), 0)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self.hparams["lr"]
        return CosineLRScheduler(
            optimizer,
            t_initial=steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=self.hparams["lr"] / max(warmup, 1),  # from 0, the first step would be lost
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Moves timm's scheduler to the step that comes next, and one of torch's by one step."""
        if isinstance(scheduler, CosineLRScheduler):
            scheduler.step_update(self.global_step)
        else:  # of a callback's
            super().lr_scheduler_step(scheduler, metric)
