"""Subclasses of timm's models, blocks and attentions that call a scheme's hooks; `vitpos.attach` swaps them in.

None adds a child module, so all submodules keep their names and parameters.
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
from vitpos.positions.record import adapt, add_record
from vitpos.state import Call, PositionState


def _joined(prefix: Tensor, patches: Tensor, dim: int) -> Tensor:
    """Puts the prefix tokens back in front; without any, nothing is copied."""
    return torch.cat([prefix, patches], dim=dim) if prefix.shape[dim] else patches


class PositionedBlock:
    """Mixin for blocks: passes the patch tokens through the scheme, then runs timm's forward."""

    position_state: PositionState
    layer: int

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Runs timm's forward on the tokens returned by the scheme."""
        thread, call = self.position_state.thread, self.position_state.call(x)
        # The attention reads `now`, also when the block is recomputed. Not in compiled code, in which gradient
        # checkpointing does not allow such a side effect.
        before, eager = thread.now, not torch.compiler.is_compiling()
        if eager:
            thread.now = call
        try:
            if self.layer:  # the model itself applies the hook of layer 0
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
    """timm's ViT block with a scheme."""


class PositionedResPostBlock(PositionedBlock, ResPostBlock):
    """timm's ViT block with norms after attention and MLP, with a scheme."""


class PositionedEvaBlock(PositionedBlock, EvaBlock):
    """timm's ``Eva`` block with a scheme."""


class PositionedEvaBlockPostNorm(PositionedBlock, EvaBlockPostNorm):
    """timm's ``Eva(use_post_norm=True)`` block with a scheme."""


class Positioned:
    """Mixin for attentions: timm's attention with the scheme's rotation and bias on the patch tokens."""

    position_state: PositionState
    layer: int

    def _attend(
        self: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Computes attention from normalised q and k.

        Prefix tokens are never rotated, and biased only if the scheme's `sees_prefix` is true.
        """
        batch, length, _ = x.shape
        call = self.position_state.call(x)
        prefix = call.prefix
        call.check(length, prefix)
        gate_layer = getattr(self, "gate", None)  # missing in the oldest supported timm
        gate = gate_layer(x).sigmoid() if gate_layer is not None else None

        patch_q, patch_k = q[:, :, prefix:], k[:, :, prefix:]
        first = 0 if call.scheme.sees_prefix else prefix  # index of the first token that bias and values cover
        bias = call.hook("bias", q[:, :, first:], k[:, :, first:], self.layer)
        new_q, new_k = call.hook("rotate", patch_q, patch_k, self.layer)
        if new_q is not patch_q:
            q = _joined(q[:, :, :prefix], new_q, dim=2)
        if new_k is not patch_k:
            k = _joined(k[:, :, :prefix], new_k, dim=2)
        if bias is not None:
            bias = bias.to(q.dtype)
            bias = F.pad(bias, (first, 0, first, 0)) if first else bias
            # 4-D, because the fused kernels reject 3-D masks.
            bias = bias if bias.dim() == 4 else bias[None]
            attn_mask, is_causal = _mask(bias, attn_mask, is_causal), False

        # Exported fused attention with a per-image bias has other strides than in tracing, which fails the export.
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
    """Combines a bias with the attention mask; as in timm, `is_causal` takes precedence over `mask`."""
    like = bias if like is None else like
    if like is not None and is_causal:
        mask = like.new_full(like.shape[-2:], float("-inf")).triu_(1)
    elif like is not None and mask is not None and mask.dtype == torch.bool:
        # If added directly, True would be 1.0 and False 0.0, which masks nothing.
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, float("-inf"))
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias + mask.to(bias.dtype)


class PositionedAttention(Positioned, Attention):
    """timm's ViT attention with a scheme."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Runs timm's forward with the scheme's hooks."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self._attend(x, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)


class PositionedRopeAttention(Positioned):
    """Mixin for both attentions of timm's ``Eva``; the model's own rotary embedding is applied before the scheme's."""

    def forward(
        self: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Runs timm's forward with the scheme's hooks."""
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
            prefix = self.position_state.call(x).prefix
            q, k = (
                _joined(t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope, half=self.rotate_half), dim=2)
                for t in (q, k)
            )
            q, k = q.type_as(v), k.type_as(v)
        return self._attend(x, q, k, v, attn_mask, is_causal)  # type: ignore[no-any-return]


class PositionedEvaAttention(PositionedRopeAttention, EvaAttention):
    """timm's ``Eva(attn_type="eva")`` attention with a scheme."""


class PositionedAttentionRope(PositionedRopeAttention, AttentionRope):
    """timm's ``Eva(attn_type="rope")`` attention with a scheme."""


class PositionedModel:
    """Mixin for models: a scheme as ``pos_embed``. Created by `vitpos.attach`, never directly."""

    position_state: PositionState
    pos_embed: Any  # the PositionEmbedding; timm declares a parameter

    def __setattr__(self, name: str, value: Any) -> None:
        """Adds the record to a new scheme, so that the state dict names it."""
        if name == "pos_embed" and isinstance(value, PositionEmbedding):
            add_record(value)
        super().__setattr__(name, value)

    def _positions(self: Any, x: Tensor) -> tuple[Tensor, Grid]:
        """Starts a `Call`: adds positions to the patch tokens and prepends the prefix tokens; also returns the grid."""
        if isinstance(x, torch.fx.Proxy):
            raise VitposError("position schemes do not support torch.fx: use torch.export or torch.compile")
        grid = training_grid(self.patch_embed)
        if x.dim() == 4:  # dynamic_img_size does not flatten the grid
            # torch.jit.trace and torch.onnx.export(dynamo=False) give sizes as tensors.
            rows, columns = (int(side) if isinstance(side, Tensor) else side for side in x.shape[1:3])
            grid = (rows, columns)
            x = x.flatten(1, 2)
        call = self.position_state.thread.last = Call(self.pos_embed, grid, self.num_prefix_tokens, x.device)
        call.check(x.shape[1], 0)
        x = call.hook("tokens", x, 0)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        # Dropout and concatenation run for every scheme. timm skips the dropout if there are no positions, and the
        # concatenation if there are positions but no prefix (which keeps the convolution's memory layout, 4 % slower).
        # Either difference would be mistaken for an effect of the scheme.
        return self.pos_drop(torch.cat([*prefix, x], dim=1)), grid

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        """Runs timm's forward as a separate call."""
        with self.position_state.separate_call():
            return super().forward_features(*args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Runs timm's forward as a separate call."""
        with self.position_state.separate_call():
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]

    def _without_scheme(self: Any, method: str, *args: Any, **kwargs: Any) -> None:
        """Calls a timm method that would mistake the scheme in ``pos_embed`` for a parameter."""
        scheme = self.pos_embed
        self.pos_embed = None
        try:
            getattr(super(), method)(*args, **kwargs)
        finally:
            self.pos_embed = scheme

    def _load_from_state_dict(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Adapts the state dict to the scheme before anything is loaded."""
        if isinstance(self.pos_embed, PositionEmbedding):  # not if the user has wrapped it
            adapt(self.pos_embed, state_dict, f"{prefix}pos_embed.")
            self._take_table(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def _take_table(self: Any, state: dict[str, Any], prefix: str) -> None:
        """Converts timm's learned table in a state dict to the table of the scheme ``learned``, if the model has one.

        As in `vitpos.attach`, its entries for prefix tokens are added to these tokens.
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
        """Loads timm's NumPy checkpoints; their table becomes that of the scheme ``learned``."""
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
        raise VitposError("position schemes do not support TorchScript: use torch.export or torch.compile")

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Re-initialises all weights, those of the scheme last."""
        self._without_scheme("init_weights", *args, **kwargs)
        for module in self.pos_embed.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Changes the input size like timm; the scheme needs no change, because it accepts any grid."""
        self._without_scheme("set_input_size", *args, **kwargs)

    def no_weight_decay(self) -> set[str]:
        """Returns timm's names and those of the scheme's parameters."""
        names: set[str] = super().no_weight_decay()  # type: ignore[misc]
        return names | {f"pos_embed.{name}" for name, _ in self.pos_embed.named_parameters()}


class PositionedVisionTransformer(PositionedModel, VisionTransformer):
    """timm's ``VisionTransformer`` with a scheme."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Adds positions and prepends the prefix tokens."""
        return self._positions(x)[0]


class PositionedEva(PositionedModel, Eva):
    """timm's ``Eva`` (EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT) with a scheme."""

    rope: Any

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Adds positions and prepends the prefix tokens; also returns the rotary embedding of the model itself."""
        x, grid = self._positions(x)
        if self.rope is None:
            return x, None
        # As in timm: without a dynamic size the rotary embedding has a fixed one.
        fixed = not self.dynamic_img_size and hasattr(self.rope, "feat_shape")
        return x, self.rope.get_embed() if fixed else self.rope.get_embed(shape=grid)


def training_grid(patch_embed: Any) -> Grid:
    """Returns the grid for images of the model's own size, after padding with ``dynamic_img_pad``."""
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
