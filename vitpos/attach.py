"""Attaching a position scheme to a timm ViT, and detaching it.

The classes of the model, its blocks and its attentions are replaced by those of `vitpos.hosts`, which call the scheme's
hooks. No submodule is renamed, so the backbone's keys in the state dict stay the same; the scheme's are
``pos_embed.*``.
"""

from typing import Any, TypeVar

from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.hosts import ATTENTIONS, BLOCKS, MODELS, PositionedModel, training_grid
from vitpos.positions.base import Geometry, PositionEmbedding, Sum, build, isolated_init, parts
from vitpos.positions.learned import Learned
from vitpos.state import PositionState

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model, scheme: str | PositionEmbedding, *, existing: str | None = None) -> Model:
    """Attaches a position scheme to a timm ViT, in place.

    The scheme is initialised on the CPU from a fork of the global random state, so it does not affect the caller's
    random numbers.

    A model may already have positions: a scheme of vitpos, or timm's own learned table and, in ``Eva``, rotary
    embedding. With ``existing="keep"`` the new scheme is added to them: the table becomes the scheme ``learned``, first
    in the sum (replacing a ``learned`` in `scheme`), and the rotary embedding stays in the blocks. Entries of the table
    for class and register tokens are always added to these tokens, whether the rest is kept or not, so that they enter
    the blocks as before. So with a scheme that starts as the identity, the output does not change.

    Args:
        model: A timm ``VisionTransformer`` whose blocks use timm's plain ``Attention``, or a timm ``Eva``; no subclass.
        scheme: A text such as ``"sinusoidal_2d(temperature=100)"``, or an instance.
        existing: ``"keep"`` or ``"drop"`` the positions that the model already has. If None, such a model is refused.

    Returns:
        `model`, with the scheme as ``pos_embed``.

    Raises:
        VitposError: The model is not supported (with the reason), its positions would be lost, or the scheme cannot be
            built for it.
    """
    geometry = _geometry(model)
    host: Any = model
    positioned = isinstance(model, PositionedModel)
    table = host.pos_embed if isinstance(host.pos_embed, nn.Parameter) else None
    _require_decision(host, existing)
    with isolated_init():
        built = build(scheme, geometry)
        if existing == "keep":
            kept = _parts(host.pos_embed) if positioned else [] if table is None else [_learned(geometry, table)]
            built = _sum(geometry, kept, _parts(built))
    weight = next(model.parameters())
    built.to(device=weight.device, dtype=weight.dtype).train(model.training)
    if existing == "drop" and getattr(host, "rope", None) is not None:
        host.rope, host.rope_mixed = None, False
    _describe(host, scheme if isinstance(scheme, str) and not positioned else built.text, existing)
    if positioned:
        host.pos_embed = built
        return model
    if table is not None and not host.no_embed_class:
        start = 0
        for token in (host.cls_token, host.reg_token):
            if token is not None:
                token.data += table.data[:, start : start + token.shape[1]]
                start += token.shape[1]
    del host.pos_embed  # a parameter cannot be replaced by a module
    host.__class__ = MODELS[type(model)]
    host.pos_embed = built
    host.position_state = state = PositionState()
    for layer, block in enumerate(host.blocks):
        block.__class__, block.attn.__class__ = BLOCKS[type(block)], ATTENTIONS[type(block.attn)]
        for part in (block, block.attn):
            part.position_state, part.layer = state, layer
    return model


def detach(model: Model) -> Model:
    """Removes the scheme, in place; leaves timm's model without the positions of the scheme.

    A learned table that `attach` kept is part of the scheme, so it is removed too.

    Args:
        model: A model returned by `attach`.

    Returns:
        `model`, with ``pos_embed`` None.

    Raises:
        VitposError: The model has no scheme.
    """
    if not isinstance(model, PositionedModel):
        raise VitposError(f"{type(model).__name__} has no position scheme of vitpos to detach")
    host: Any = model
    plain = {positioned: timms for timms, positioned in [*MODELS.items(), *BLOCKS.items(), *ATTENTIONS.items()]}
    for block in host.blocks:
        for part in (block.attn, block):
            del part.position_state, part.layer
            part.__class__ = plain[type(part)]
    del host.position_state, host.pos_embed
    host.pos_embed = None
    host.__class__ = plain[type(host)]
    _describe(host, None, None)
    return model


def _describe(host: Any, position: str | None, existing: str | None) -> None:
    """Records how ``timm.create_model`` rebuilds the model, for ``timm.models.save_for_hf``."""
    if not isinstance(config := getattr(host, "pretrained_cfg", None), dict):
        return
    args = dict(getattr(host, "_model_args", {}))
    base = args.pop("base", config.get("architecture"))
    if "position" in args and "base" not in host._model_args:  # a small ViT of vitpos takes it as its own option
        args["position"] = position or "none"
    elif position is None:
        args.pop("position", None)
        args.pop("existing", None)
        config = {**config, "architecture": base}
    else:
        before = args.pop("existing", None)
        existing = "drop" if "drop" in (before, existing) else existing or before
        args.update({"existing": existing} if existing else {})
        args.update(base=base, position=position)
        config = {**config, "architecture": "vitpos"}
    host._model_args, host.pretrained_cfg, host.default_cfg = args, config, config


def _require_decision(host: Any, existing: str | None) -> None:
    """Raises a VitposError if the model has positions and `existing` is not given, or is invalid."""
    if existing not in (None, "keep", "drop"):
        raise VitposError(f'existing={existing!r} must be "keep" or "drop"')
    own, rope = host.pos_embed, getattr(host, "rope", None)
    found = []
    if isinstance(own, nn.Parameter):
        found.append(f"learned pos_embed {tuple(own.shape)}")
    elif own is not None and _parts(own):
        found.append(f"position scheme {'+'.join(part.scheme for part in _parts(own))!r}")
    if rope is not None and not isinstance(host, PositionedModel):  # else it was kept by the earlier attach
        found.append(f"rotary positions ({type(rope).__name__})")
    if found and existing is None:
        raise VitposError(
            f'the model already has {" and ".join(found)}: pass attach(..., existing="keep") to add the scheme to it, '
            'or existing="drop" to remove it'
        )


def _parts(scheme: PositionEmbedding) -> list[PositionEmbedding]:
    """Returns the terms of a sum; ``none`` has no terms."""
    return [part for part in parts(scheme) if type(part) is not PositionEmbedding]


def _learned(geometry: Geometry, table: Tensor) -> PositionEmbedding:
    """Converts timm's table, (1, [prefix +] rows * columns, embed_dim), to the scheme ``learned``."""
    scheme = Learned(geometry)
    scheme.table.data.copy_(table.data[:, -geometry.grid[0] * geometry.grid[1] :])
    scheme.table.requires_grad = table.requires_grad
    return scheme


def _sum(geometry: Geometry, kept: list[PositionEmbedding], new: list[PositionEmbedding]) -> PositionEmbedding:
    """Joins the terms; a kept learned table replaces a new one."""
    if any(isinstance(part, Learned) for part in kept):
        new = [part for part in new if not (isinstance(part, Learned) and part.inject == "stem")]
    parts = [*kept, *new]
    if len(parts) > 1:
        return Sum(geometry, parts)
    return parts[0] if parts else PositionEmbedding(geometry)


def _geometry(model: Any) -> Geometry:
    """Returns the geometry of a supported model; raises a VitposError with the reason for others."""
    name = type(model).__name__
    if type(model) not in (*MODELS, *MODELS.values()):
        parent = next((host.__name__ for host in MODELS if isinstance(model, host)), None)
        kind = f"a subclass of timm's {parent}, whose forward may differ" if parent else "another model"
        kind += f" (of {type(model).__module__})"
        if type(getattr(model, "model", None)) in (*MODELS, *MODELS.values()):  # features_only
            kind += f" around {type(model.model).__name__}: attach to its .model"
        raise VitposError(f"cannot attach to {name}: supported are timm's VisionTransformer and Eva, this is {kind}")
    if not isinstance(model.patch_drop, nn.Identity | None):
        raise VitposError("cannot attach with patch_drop_rate > 0: the remaining patches form no grid")
    heads = set()
    for block in model.blocks:
        for kind, part, known in (("block", block, BLOCKS), ("attention", getattr(block, "attn", None), ATTENTIONS)):
            if type(part) not in (*known, *known.values()):
                raise VitposError(
                    f"cannot attach to {kind} {type(part).__name__}: it computes attention in its own way; supported "
                    f"are {', '.join(one.__name__ for one in known)}"
                )
        if (groups := getattr(block.attn, "num_kv_groups", 1)) > 1:
            raise VitposError(f"cannot attach to grouped-query attention: {groups} queries share a key")
        heads.add((block.attn.num_heads, block.attn.head_dim))
    if len(heads) != 1:
        raise VitposError(f"cannot attach: heads differ between layers, (num_heads, head_dim) are {sorted(heads)}")
    ((num_heads, head_dim),) = heads
    if num_heads * head_dim != model.embed_dim:
        raise VitposError(f"cannot attach: {num_heads} heads of {head_dim} are not embed_dim {model.embed_dim}")
    if getattr(model.patch_embed, "grid_size", None) is None:
        raise VitposError("cannot attach: the model's patch_embed has no grid_size; create it with an img_size")
    return Geometry(training_grid(model.patch_embed), model.embed_dim, num_heads, len(model.blocks))
