"""timm's models and attentions with the hooks of a scheme: what `vitpos.attach` turns a model and its attentions into.

Each is a subclass of timm's class that adds no child, so all children keep their names and parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Grid, PositionEmbedding


class Seam:
    """What a model shares with its attentions: the scheme, the number of prefix tokens, and the grid of this forward.

    No module, so that the scheme is in the model's tree once; one object, so that the parts of a copy share the copy's.
    """

    def __init__(self, scheme: PositionEmbedding, grid: Grid, prefix: int) -> None:
        self.scheme = scheme
        self.grid = grid
        self.prefix = prefix

    def check(self, tokens: int, prefix: int) -> None:
        """Raises a VitposError unless `tokens` are those of the grid and `prefix` more."""
        rows, columns = self.grid
        if tokens != rows * columns + prefix:
            raise VitposError(
                f"{tokens} tokens are not the {rows} x {columns} patches and {prefix} prefix tokens expected"
            )


def _joined(prefix: Tensor, patches: Tensor, dim: int) -> Tensor:
    """Puts the prefix tokens back in front; without any there is nothing to copy."""
    return torch.cat([prefix, patches], dim=dim) if prefix.shape[dim] else patches


class LayerTokens:
    """A hook in front of a block that hands its patch tokens to the scheme.

    An object, for a closure would survive a deepcopy with the scheme of the original.
    """

    def __init__(self, seam: Seam, layer: int) -> None:
        self.seam = seam
        self.layer = layer

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Gives the changed inputs of the block, or None."""
        x, prefix = inputs[0], self.seam.prefix
        self.seam.check(x.shape[1], prefix)
        patches = x[:, prefix:]
        changed = self.seam.scheme.tokens(patches, self.seam.grid, self.layer)
        return None if changed is patches else (_joined(x[:, :prefix], changed, dim=1), *inputs[1:])


class Positioned:
    """What the attentions share: the scheme's rotation and bias on the patch tokens, then timm's forward."""

    seam: Seam
    layer: int

    def _attend(
        self: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Computes what follows the norms of q and k; prefix tokens are not rotated and have zero bias."""
        batch, length, _ = x.shape
        seam, prefix = self.seam, self.seam.prefix
        seam.check(length, prefix)
        gate_layer = getattr(self, "gate", None)  # not in the oldest timm allowed
        gate = gate_layer(x).sigmoid() if gate_layer is not None else None

        patch_q, patch_k = q[:, :, prefix:], k[:, :, prefix:]
        bias = seam.scheme.bias(patch_q, patch_k, seam.grid, self.layer)
        new_q, new_k = seam.scheme.rotate(patch_q, patch_k, seam.grid, self.layer)
        if new_q is not patch_q:
            q = _joined(q[:, :, :prefix], new_q, dim=2)
        if new_k is not patch_k:
            k = _joined(k[:, :, :prefix], new_k, dim=2)
        if bias is not None:
            bias = bias.to(q.dtype)
            bias = F.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias
            # 4-D, for the fused kernels refuse a mask of 3.
            bias = bias if bias.dim() == 4 else bias[None]
            attn_mask, is_causal = _mask(bias, attn_mask, is_causal), False

        # Exported, fused attention with a bias by image has other strides than when traced, and the export fails.
        exported = bias is not None and torch.compiler.is_exporting()
        if self.fused_attn and not seam.scheme.uses_attention and not exported:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            mask = _mask(None, attn_mask, is_causal, like=logits)
            logits = logits if mask is None else logits + mask
            attention = logits.softmax(dim=-1)
            if seam.scheme.uses_attention:
                patches = attention[:, :, prefix:, prefix:]
                weights = seam.scheme.weights(patches, seam.grid, self.layer)
                if weights is not patches:
                    weights = _joined(attention[:, :, prefix:, :prefix], weights, dim=3)
                    attention = _joined(attention[:, :, :prefix], weights, dim=2)
            attention = self.attn_drop(attention)
            x = attention @ v
            if seam.scheme.uses_attention:
                added = seam.scheme.values(attention[:, :, prefix:, prefix:], seam.grid, self.layer)
                x = x if added is None else _joined(x[:, :, :prefix], x[:, :, prefix:] + added, dim=2)

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
            prefix = self.seam.prefix
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

    def _positions(self: Any, x: Tensor) -> Tensor:
        """Adds positions to the patch tokens, then puts the prefix tokens in front."""
        grid = self.patch_embed.grid_size
        if x.dim() == 4:  # dynamic_img_size leaves the map as it is
            grid = (x.shape[1], x.shape[2])
            x = x.flatten(1, 2)
        if self.grad_checkpointing and self.training and grid != self.seam.grid and torch.is_grad_enabled():
            # The backward pass computes the blocks again, and would do so with the grid of the latest forward.
            raise VitposError(f"gradient checkpointing needs one grid: {grid} comes after {self.seam.grid}")
        self.seam.grid = grid
        self.seam.check(x.shape[1], 0)
        x = self.seam.scheme.tokens(x, grid, 0)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        # Both for every scheme. timm skips the dropout without positions, and the concatenation with positions but no
        # prefix (that keeps the convolution's memory layout, 4 % slower). Either would pass for the scheme's effect.
        x = self.pos_drop(torch.cat([*prefix, x], dim=1))
        return x

    def _without_scheme(self: Any, method: str, *args: Any, **kwargs: Any) -> None:
        """Calls a method of timm that would take ``pos_embed`` for its own parameter."""
        scheme = self.pos_embed
        self.pos_embed = None
        try:
            getattr(super(), method)(*args, **kwargs)
        finally:
            self.pos_embed = scheme

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
        return self._positions(x)


class PositionedEva(PositionedModel, Eva):
    """timm's ``Eva`` (EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT) with a scheme."""

    rope: Any

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Adds positions and puts the prefix tokens in front; rotary positions of the model's own go to its blocks."""
        x = self._positions(x)
        if self.rope is None:
            return x, None
        fixed = not self.dynamic_img_size and hasattr(
            self.rope, "feat_shape"
        )  # as timm: the size is then the rope's own
        return x, self.rope.get_embed() if fixed else self.rope.get_embed(shape=self.seam.grid)


MODELS: dict[type[nn.Module], type[nn.Module]] = {VisionTransformer: PositionedVisionTransformer, Eva: PositionedEva}
ATTENTIONS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: PositionedAttention,
    EvaAttention: PositionedEvaAttention,
    AttentionRope: PositionedAttentionRope,
}
