"""timm's models and attentions with the hooks of a scheme: what `vitpos.attach` turns a model and its attentions into.

Each is a subclass of timm's class that adds no child, so all children keep their names and parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Grid, PositionEmbedding, parts
from vitpos.positions.learned import Learned
from vitpos.positions.record import accept, label
from vitpos.seam import Call, Seam


def _joined(prefix: Tensor, patches: Tensor, dim: int) -> Tensor:
    """Puts the prefix tokens back in front; without any there is nothing to copy."""
    return torch.cat([prefix, patches], dim=dim) if prefix.shape[dim] else patches


class PositionedBlock:
    """What the blocks share: the patch tokens pass through the scheme as they enter; then timm's forward."""

    seam: Seam
    layer: int

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Computes timm's forward of what the scheme makes of the tokens."""
        thread, call = self.seam.thread, self.seam.call(x)
        # For the attention, also where this runs again. Compiled, gradient checkpointing allows no such change.
        before, eager = thread.now, not torch.compiler.is_compiling()
        if eager:
            thread.now = call
        try:
            if self.layer:  # the tokens of layer 0 are changed by the model
                prefix = call.prefix
                call.check(x.shape[1], prefix)
                patches = x[:, prefix:]
                changed = call.hook("tokens", patches, self.layer)
                x = x if changed is patches else _joined(x[:, :prefix], changed, dim=1)
            return super().forward(x, *args, **kwargs)  # type: ignore[misc,no-any-return]
        finally:
            if eager:
                thread.now = before


class PositionedViTBlock(PositionedBlock, Block):
    """timm's block of the ViT with a scheme."""


class PositionedResPostBlock(PositionedBlock, ResPostBlock):
    """timm's block with norms after attention and MLP, with a scheme."""


class PositionedEvaBlock(PositionedBlock, EvaBlock):
    """timm's block of ``Eva`` with a scheme."""


class PositionedEvaBlockPostNorm(PositionedBlock, EvaBlockPostNorm):
    """timm's block of ``Eva(use_post_norm=True)`` with a scheme."""


class Positioned:
    """What the attentions share: the scheme's rotation and bias on the patch tokens, then timm's forward."""

    seam: Seam
    layer: int

    def _attend(
        self: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Computes what follows the norms of q and k; prefix tokens are not rotated, nor biased unless it sees them."""
        batch, length, _ = x.shape
        call = self.seam.call(x)
        prefix = call.prefix
        call.check(length, prefix)
        gate_layer = getattr(self, "gate", None)  # not in the oldest timm allowed
        gate = gate_layer(x).sigmoid() if gate_layer is not None else None

        patch_q, patch_k = q[:, :, prefix:], k[:, :, prefix:]
        first = 0 if call.scheme.sees_prefix else prefix  # of the tokens that bias and values are about
        bias = call.hook("bias", q[:, :, first:], k[:, :, first:], self.layer)
        new_q, new_k = call.hook("rotate", patch_q, patch_k, self.layer)
        if new_q is not patch_q:
            q = _joined(q[:, :, :prefix], new_q, dim=2)
        if new_k is not patch_k:
            k = _joined(k[:, :, :prefix], new_k, dim=2)
        if bias is not None:
            bias = bias.to(q.dtype)
            bias = F.pad(bias, (first, 0, first, 0)) if first else bias
            # 4-D, for the fused kernels refuse a mask of 3.
            bias = bias if bias.dim() == 4 else bias[None]
            attn_mask, is_causal = _mask(bias, attn_mask, is_causal), False

        # Exported, fused attention with a bias by image has other strides than when traced, and the export fails.
        exported = bias is not None and torch.compiler.is_exporting()
        if self.fused_attn and not call.scheme.uses_attention and not exported:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            mask = _mask(None, attn_mask, is_causal, like=logits)
            logits = logits if mask is None else logits + mask
            attention = logits.softmax(dim=-1)
            if call.scheme.uses_attention:
                patches = attention[:, :, prefix:, prefix:]
                weights = call.hook("weights", patches, self.layer)
                if weights is not patches:
                    weights = _joined(attention[:, :, prefix:, :prefix], weights, dim=3)
                    attention = _joined(attention[:, :, :prefix], weights, dim=2)
            attention = self.attn_drop(attention)
            x = attention @ v
            if call.scheme.uses_attention:
                added = call.hook("values", attention[:, :, first:, first:], self.layer)
                x = x if added is None else _joined(x[:, :, :first], x[:, :, first:] + added, dim=2)

        x = self.norm(x.transpose(1, 2).reshape(batch, length, -1))
        x = x if gate is None else x * gate
        x = self.proj_drop(self.proj(x))
        return x


def _mask(bias: Tensor | None, mask: Tensor | None, is_causal: bool, like: Tensor | None = None) -> Tensor | None:
    """Joins a bias with what else acts on the logits; as in timm, `is_causal` takes precedence over `mask`."""
    like = bias if like is None else like
    if like is not None and is_causal:
        mask = like.new_full(like.shape[-2:], float("-inf")).triu_(1)
    elif like is not None and mask is not None and mask.dtype == torch.bool:
        # Added as it is, True would be 1.0 and False no obstacle.
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, float("-inf"))
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias + mask.to(bias.dtype)


class PositionedAttention(Positioned, Attention):
    """timm's attention of the ViT with a scheme."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Computes timm's forward with the scheme's hooks."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self._attend(x, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)


class PositionedRopeAttention(Positioned):
    """What the two attentions of timm's ``Eva`` share; rotary positions of the model's own come before the scheme's."""

    def forward(
        self: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Computes timm's forward with the scheme's hooks."""
        if self.qkv is not None:
            biases: list[Any] = [getattr(self, name, None) for name in ("q_bias", "k_bias", "v_bias")]
            if biases[0] is None:
                qkv = self.qkv(x)
            elif self.qkv_bias_separate:
                qkv = self.qkv(x) + torch.cat(biases)
            else:
                qkv = F.linear(x, self.qkv.weight, torch.cat(biases))
            q, k, v = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            projected = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
            q, k, v = (t.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for t in projected)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            prefix = self.seam.call(x).prefix
            q, k = (
                _joined(t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope, half=self.rotate_half), dim=2)
                for t in (q, k)
            )
            q, k = q.type_as(v), k.type_as(v)
        return self._attend(x, q, k, v, attn_mask, is_causal)  # type: ignore[no-any-return]


class PositionedEvaAttention(PositionedRopeAttention, EvaAttention):
    """timm's attention of ``Eva(attn_type="eva")`` with a scheme."""


class PositionedAttentionRope(PositionedRopeAttention, AttentionRope):
    """timm's attention of ``Eva(attn_type="rope")`` with a scheme."""


class PositionedModel:
    """What the models share: a scheme as ``pos_embed``. Made by `vitpos.attach`, never directly."""

    seam: Seam
    pos_embed: Any  # the PositionEmbedding; timm declares a parameter

    def __setattr__(self, name: str, value: Any) -> None:
        """Gives a scheme that comes in place of another its record, so that the state dict knows it."""
        if name == "pos_embed" and isinstance(value, PositionEmbedding):
            label(value)
        super().__setattr__(name, value)

    def _positions(self: Any, x: Tensor) -> tuple[Tensor, Grid]:
        """Begins a call: adds positions to the patch tokens, puts the prefix tokens in front, and gives the grid."""
        if isinstance(x, torch.fx.Proxy):
            raise VitposError("a model with a position scheme is not for torch.fx: use torch.export or torch.compile")
        grid = training_grid(self.patch_embed)
        if x.dim() == 4:  # dynamic_img_size leaves the map as it is
            # torch.jit.trace and torch.onnx.export(dynamo=False) give sizes as tensors.
            rows, columns = (int(side) if isinstance(side, Tensor) else side for side in x.shape[1:3])
            grid = (rows, columns)
            x = x.flatten(1, 2)
        call = self.seam.thread.last = Call(self.pos_embed, grid, self.num_prefix_tokens, x.device)
        call.check(x.shape[1], 0)
        x = call.hook("tokens", x, 0)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        # Both for every scheme. timm skips the dropout without positions, and the concatenation with positions but no
        # prefix (that keeps the convolution's memory layout, 4 % slower). Either would pass for the scheme's effect.
        return self.pos_drop(torch.cat([*prefix, x], dim=1)), grid

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        """Computes timm's forward, as a call of its own."""
        thread = self.seam.thread
        before = thread.last
        try:
            return super().forward_features(*args, **kwargs)  # type: ignore[misc]
        finally:
            thread.last = before

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Computes timm's forward, as a call of its own."""
        thread = self.seam.thread
        before = thread.last
        try:
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]
        finally:
            thread.last = before

    def _without_scheme(self: Any, method: str, *args: Any, **kwargs: Any) -> None:
        """Calls a method of timm that would take ``pos_embed`` for its own parameter."""
        scheme = self.pos_embed
        self.pos_embed = None
        try:
            getattr(super(), method)(*args, **kwargs)
        finally:
            self.pos_embed = scheme

    def _load_from_state_dict(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Makes the state dict fit the scheme, before anything is loaded."""
        if isinstance(self.pos_embed, PositionEmbedding):  # and not a wrapper of somebody's
            accept(self.pos_embed, state_dict, f"{prefix}pos_embed.")
            self._take_table(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def _take_table(self: Any, state: dict[str, Any], prefix: str) -> None:
        """Makes of a table of timm's in a state dict that of the scheme ``learned``, where the model has one.

        As in `vitpos.attach`, what the table has for prefix tokens is added to them.
        """
        numbers = [n for n, part in enumerate(parts(self.pos_embed)) if isinstance(part, Learned) and part.tables == 1]
        table = state.get(f"{prefix}pos_embed")
        if not numbers or not isinstance(table, Tensor) or table.dim() != 3:
            return
        grid, front = training_grid(self.patch_embed), self.num_prefix_tokens
        here = {grid[0] * grid[1] + more: (grid, more) for more in (0, front)}
        square = {side**2 + more: ((side, side), more) for side in range(1, table.shape[1]) for more in (0, front)}
        old, front = (here if table.shape[1] in here else square).get(table.shape[1], (None, 0))
        if old is None:
            return
        start = 0
        for name in (f"{prefix}cls_token", f"{prefix}reg_token"):
            if front and name in state:
                stop = start + state[name].shape[1]
                state[name] = state[name] + table[:, start:stop]
                start = stop
        own = "" if parts(self.pos_embed)[0] is self.pos_embed else f"parts.{numbers[0]}."
        new = resample_abs_pos_embed(table[:, front:], grid, old, num_prefix_tokens=0)
        state[f"{prefix}pos_embed.{own}table"] = new
        del state[f"{prefix}pos_embed"]

    def load_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        """Loads what timm loads from a file of NumPy arrays; its table becomes that of the scheme ``learned``."""
        scheme = self.pos_embed
        if not any(isinstance(part, Learned) for part in parts(scheme)):
            raise VitposError(f"the file has a learned table, the model has {scheme.text!r}: load it before you attach")
        table = torch.zeros(1, scheme.shape[1] + (0 if self.no_embed_class else self.num_prefix_tokens), self.embed_dim)
        del self.pos_embed
        self.pos_embed = nn.Parameter(table.to(self.cls_token if self.cls_token is not None else table))
        try:
            super().load_pretrained(*args, **kwargs)  # type: ignore[misc]
            loaded = {name: getattr(self, name) for name in ("pos_embed", "cls_token", "reg_token")}
        finally:
            del self.pos_embed
            self.pos_embed = scheme
        self.load_state_dict({name: value.data for name, value in loaded.items() if value is not None}, strict=False)

    def __prepare_scriptable__(self) -> None:
        """Refuses ``torch.jit.script``, which calls this first."""
        raise VitposError("a model with a position scheme is not for TorchScript: use torch.export or torch.compile")

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Draws all weights anew, those of the scheme last."""
        self._without_scheme("init_weights", *args, **kwargs)
        for module in self.pos_embed.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Changes the size of the input as timm does; the scheme serves other grids by itself."""
        self._without_scheme("set_input_size", *args, **kwargs)

    def no_weight_decay(self) -> set[str]:
        """Gives timm's names and those of the scheme's parameters."""
        names: set[str] = super().no_weight_decay()  # type: ignore[misc]
        return names | {f"pos_embed.{name}" for name, _ in self.pos_embed.named_parameters()}


class PositionedVisionTransformer(PositionedModel, VisionTransformer):
    """timm's ``VisionTransformer`` with a scheme."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Adds positions and puts the prefix tokens in front."""
        return self._positions(x)[0]


class PositionedEva(PositionedModel, Eva):
    """timm's ``Eva`` (EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT) with a scheme."""

    rope: Any

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Adds positions and puts the prefix tokens in front; rotary positions of the model's own go to its blocks."""
        x, grid = self._positions(x)
        if self.rope is None:
            return x, None
        # As timm: the size is then the rope's own.
        fixed = not self.dynamic_img_size and hasattr(self.rope, "feat_shape")
        return x, self.rope.get_embed() if fixed else self.rope.get_embed(shape=grid)


def training_grid(patch_embed: Any) -> Grid:
    """Gives the grid of images of the model's own size; with ``dynamic_img_pad`` they are padded first."""
    if getattr(patch_embed, "dynamic_img_pad", False):
        rows, columns = patch_embed.dynamic_feat_size(patch_embed.img_size)
        return rows, columns
    rows, columns = patch_embed.grid_size
    return rows, columns


MODELS: dict[type[nn.Module], type[nn.Module]] = {VisionTransformer: PositionedVisionTransformer, Eva: PositionedEva}
BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    Block: PositionedViTBlock,
    ResPostBlock: PositionedResPostBlock,
    EvaBlock: PositionedEvaBlock,
    EvaBlockPostNorm: PositionedEvaBlockPostNorm,
}
ATTENTIONS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: PositionedAttention,
    EvaAttention: PositionedEvaAttention,
    AttentionRope: PositionedAttentionRope,
}
