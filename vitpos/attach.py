"""A timm ViT and a position scheme become one model: `attach`, `detach`, and what is refused.

The classes of the model and of its attentions are exchanged for subclasses that call the scheme's hooks. All children
keep their names, so the keys of the backbone in the state dict stay as they were; the scheme's are ``pos_embed.*``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, build


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


class PositionedAttention(Attention):
    """timm's attention with a scheme's rotation and bias on the patch tokens."""

    seam: Seam
    layer: int

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Computes timm's forward; prefix tokens are not rotated and have zero bias."""
        batch, length, _ = x.shape
        seam, prefix = self.seam, self.seam.prefix
        seam.check(length, prefix)
        gate_layer = getattr(self, "gate", None)  # not in the oldest timm allowed
        gate = gate_layer(x).sigmoid() if gate_layer is not None else None
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)

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
            attn_mask, is_causal = self._mask(bias, attn_mask, is_causal), False

        if self.fused_attn and not seam.scheme.uses_attention:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            mask = self._mask(None, attn_mask, is_causal, like=logits)
            logits = logits if mask is None else logits + mask
            attention = self.attn_drop(logits.softmax(dim=-1))
            x = attention @ v
            if seam.scheme.uses_attention:
                added = seam.scheme.values(attention[:, :, prefix:, prefix:], seam.grid, self.layer)
                x = _joined(x[:, :, :prefix], x[:, :, prefix:] + added, dim=2)

        x = self.norm(x.transpose(1, 2).reshape(batch, length, self.attn_dim))
        x = x if gate is None else x * gate
        x = self.proj_drop(self.proj(x))
        return x

    @staticmethod
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


class PositionedVisionTransformer(VisionTransformer):
    """timm's ViT with a scheme as its ``pos_embed``. Made by `attach`, never directly."""

    seam: Seam
    pos_embed: Any  # the PositionEmbedding; timm declares a parameter

    def _pos_embed(self, x: Tensor) -> Tensor:
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

    def _without_scheme(self, method: str, *args: Any, **kwargs: Any) -> None:
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
        names: set[str] = super().no_weight_decay()
        return names | {f"pos_embed.{name}" for name, _ in self.pos_embed.named_parameters()}


def attach(model: nn.Module, scheme: str | PositionEmbedding, *, drop: bool = False) -> VisionTransformer:
    """Gives a timm ``VisionTransformer`` a position scheme, in place.

    The scheme is drawn on the CPU from a fork of the global random state, so the caller's random numbers do not depend
    on it. On a model that already has a scheme of vitpos, the new one takes its place.

    Args:
        model: Exactly a timm ``VisionTransformer`` (not a subclass) whose blocks use timm's plain ``Attention``.
        scheme: A text such as ``"sinusoidal_2d(temperature=100)"`` or an instance.
        drop: Throws away a learned table of timm's; without it, a model that has one is refused.

    Returns:
        `model`; its ``pos_embed`` is the scheme.

    Raises:
        VitposError: The model cannot be served correctly (the reason is given), its table would be lost, or the
            scheme cannot be built for it.
    """
    geometry = _geometry(model)
    host: Any = model
    table = host.pos_embed
    if isinstance(table, nn.Parameter) and not drop:
        raise VitposError(
            f"the model's learned pos_embed {tuple(table.shape)} would be lost: create the model with "
            'pos_embed="none", or attach with drop=True to drop it'
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        built = build(scheme, geometry)
    weight = next(model.parameters())
    built.to(device=weight.device, dtype=weight.dtype).train(model.training)
    if isinstance(model, PositionedVisionTransformer):
        host.seam.scheme = host.pos_embed = built
        return host  # type: ignore[no-any-return]
    seam = Seam(built, geometry.grid, host.num_prefix_tokens)
    del host.pos_embed  # a parameter cannot be overwritten by a module
    host.pos_embed = built
    host.seam = seam
    host.__class__ = PositionedVisionTransformer
    for layer, block in enumerate(host.blocks):
        block.attn.__class__ = PositionedAttention
        block.attn.seam, block.attn.layer = seam, layer
        if layer:
            block.register_forward_pre_hook(LayerTokens(seam, layer))
    return host  # type: ignore[no-any-return]


def detach(model: nn.Module) -> VisionTransformer:
    """Takes the scheme off again, in place: what is left is timm's model without positions.

    Args:
        model: A model that `attach` returned.

    Returns:
        `model`; its ``pos_embed`` is None.

    Raises:
        VitposError: The model has no scheme.
    """
    if not isinstance(model, PositionedVisionTransformer):
        raise VitposError(f"{type(model).__name__} has no position scheme of vitpos to detach")
    host: Any = model
    for block in host.blocks:
        hooks = block._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, LayerTokens)]:
            del hooks[key]
        del block.attn.seam, block.attn.layer
        block.attn.__class__ = Attention
    del host.seam, host.pos_embed
    host.pos_embed = None
    host.__class__ = VisionTransformer
    return host  # type: ignore[no-any-return]


def _geometry(model: Any) -> Geometry:
    """Reads the geometry off a model that can be served, and refuses others by name with the reason."""
    name = type(model).__name__
    if type(model) not in (VisionTransformer, PositionedVisionTransformer):
        kind = "a subclass of timm's VisionTransformer" if isinstance(model, VisionTransformer) else "another model"
        raise VitposError(f"cannot attach to {name}: only timm's VisionTransformer itself is served, this is {kind}")
    if not isinstance(model.patch_drop, nn.Identity):
        raise VitposError("cannot attach with patch_drop_rate > 0: the patches that are left have no grid")
    heads = set()
    for block in model.blocks:
        # Other blocks compute attention by themselves, so a scheme would be ignored silently.
        if type(block) not in (Block, ResPostBlock):
            raise VitposError(f"cannot attach to block {type(block).__name__}: only Block and ResPostBlock are served")
        if type(block.attn) not in (Attention, PositionedAttention):
            raise VitposError(
                f"cannot attach to attention {type(block.attn).__name__}: only timm's Attention is served"
            )
        heads.add((block.attn.num_heads, block.attn.head_dim))
    if len(heads) != 1:
        raise VitposError(f"cannot attach: heads differ by layer, (num_heads, head_dim) are {sorted(heads)}")
    ((num_heads, head_dim),) = heads
    if num_heads * head_dim != model.embed_dim:
        raise VitposError(f"cannot attach: {num_heads} heads of {head_dim} are not embed_dim {model.embed_dim}")
    grid = getattr(model.patch_embed, "grid_size", None)
    if grid is None:
        raise VitposError("cannot attach: the model's patch_embed has no grid_size; create it with an img_size")
    return Geometry(tuple(grid), model.embed_dim, num_heads, len(model.blocks))
