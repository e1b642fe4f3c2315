"""A timm ViT and a position scheme become one model: `attach`, `detach`, and what is refused.

The classes of the model, of its blocks and of their attentions are exchanged for those of `vitpos.hosts`, which call
the scheme's hooks. All children keep their names, so the keys of the backbone in the state dict stay as they were; the
scheme's are ``pos_embed.*``.
"""

from typing import Any, TypeVar

from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.hosts import ATTENTIONS, BLOCKS, MODELS, PositionedModel, training_grid
from vitpos.positions.base import Geometry, PositionEmbedding, Sum, apart, build, parts
from vitpos.positions.learned import Learned
from vitpos.seam import Seam

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model, scheme: str | PositionEmbedding, *, existing: str | None = None) -> Model:
    """Gives a timm ViT a position scheme, in place.

    The scheme is drawn on the CPU from a fork of the global random state, so the caller's random numbers do not depend
    on it.

    Positions that the model has already are a scheme of vitpos; or, of its own, a learned table and, in ``Eva``, a
    rotation. With ``existing="keep"`` the new scheme is added to them: the table becomes the scheme ``learned`` in
    front of the sum (also in place of a ``learned`` that `scheme` asks for), the rotation stays in the blocks. What the
    table has for class and register tokens is added to these tokens, whatever becomes of the rest, so they enter the
    blocks as before. So with a scheme that starts as the identity the output does not change.

    Args:
        model: A timm ``VisionTransformer`` whose blocks use timm's plain ``Attention``, or a timm ``Eva``; no subclass.
        scheme: A text such as ``"sinusoidal_2d(temperature=100)"`` or an instance.
        existing: What becomes of positions that the model has: ``"keep"`` or ``"drop"``. Without a word, a model that
            has some is refused.

    Returns:
        `model`; its ``pos_embed`` is the scheme.

    Raises:
        VitposError: The model cannot be served correctly (the reason is given), its positions would be lost, or the
            scheme cannot be built for it.
    """
    geometry = _geometry(model)
    host: Any = model
    positioned = isinstance(model, PositionedModel)
    table = host.pos_embed if isinstance(host.pos_embed, nn.Parameter) else None
    _decided(host, existing)
    with apart():
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
    del host.pos_embed  # a parameter cannot be overwritten by a module
    host.__class__ = MODELS[type(model)]
    host.pos_embed = built
    host.seam = seam = Seam()
    for layer, block in enumerate(host.blocks):
        block.__class__, block.attn.__class__ = BLOCKS[type(block)], ATTENTIONS[type(block.attn)]
        for part in (block, block.attn):
            part.seam, part.layer = seam, layer
    return model


def detach(model: Model) -> Model:
    """Takes the scheme off again, in place: what is left is timm's model without the positions of the scheme.

    Args:
        model: A model that `attach` returned.

    Returns:
        `model`; its ``pos_embed`` is None. A learned table that `attach` kept is a part of the scheme, so it goes too.

    Raises:
        VitposError: The model has no scheme.
    """
    if not isinstance(model, PositionedModel):
        raise VitposError(f"{type(model).__name__} has no position scheme of vitpos to detach")
    host: Any = model
    plain = {positioned: timms for timms, positioned in [*MODELS.items(), *BLOCKS.items(), *ATTENTIONS.items()]}
    for block in host.blocks:
        for part in (block.attn, block):
            del part.seam, part.layer
            part.__class__ = plain[type(part)]
    del host.seam, host.pos_embed
    host.pos_embed = None
    host.__class__ = plain[type(host)]
    _describe(host, None, None)
    return model


def _describe(host: Any, position: str | None, existing: str | None) -> None:
    """Says in a model of ``timm.create_model`` how it is created again: what ``timm.models.save_for_hf`` writes."""
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


def _decided(host: Any, existing: str | None) -> None:
    """Raises a VitposError where the model has positions and nothing is said of what becomes of them."""
    if existing not in (None, "keep", "drop"):
        raise VitposError(f'existing={existing!r} must be "keep" or "drop"')
    own, rope = host.pos_embed, getattr(host, "rope", None)
    found = []
    if isinstance(own, nn.Parameter):
        found.append(f"learned pos_embed {tuple(own.shape)}")
    elif own is not None and _parts(own):
        found.append(f"position scheme {'+'.join(part.scheme for part in _parts(own))!r}")
    if rope is not None and not isinstance(host, PositionedModel):  # else it was kept when that scheme came
        found.append(f"rotary positions ({type(rope).__name__})")
    if found and existing is None:
        raise VitposError(
            f'the model already has {" and ".join(found)}: say what becomes of it, attach(..., existing="keep") to add '
            'the scheme to it or existing="drop" to lose it'
        )


def _parts(scheme: PositionEmbedding) -> list[PositionEmbedding]:
    """Lists the terms of a sum; ``none`` has no term."""
    return [part for part in parts(scheme) if type(part) is not PositionEmbedding]


def _learned(geometry: Geometry, table: Tensor) -> PositionEmbedding:
    """Makes the scheme of a table of timm's, (1, rows * columns, embed_dim), prefix tokens in front or not."""
    scheme = Learned(geometry)
    scheme.table.data.copy_(table.data[:, -geometry.grid[0] * geometry.grid[1] :])
    scheme.table.requires_grad = table.requires_grad
    return scheme


def _sum(geometry: Geometry, kept: list[PositionEmbedding], new: list[PositionEmbedding]) -> PositionEmbedding:
    """Joins the terms; a kept table takes the place of a new one."""
    if any(isinstance(part, Learned) for part in kept):
        new = [part for part in new if not (isinstance(part, Learned) and part.inject == "stem")]
    parts = [*kept, *new]
    if len(parts) > 1:
        return Sum(geometry, parts)
    return parts[0] if parts else PositionEmbedding(geometry)


def _geometry(model: Any) -> Geometry:
    """Reads the geometry off a model that can be served, and refuses others by name with the reason."""
    name = type(model).__name__
    if type(model) not in (*MODELS, *MODELS.values()):
        parent = next((host.__name__ for host in MODELS if isinstance(model, host)), None)
        kind = f"a subclass of timm's {parent}, whose forward may differ" if parent else "another model"
        kind += f" (of {type(model).__module__})"
        if type(getattr(model, "model", None)) in (*MODELS, *MODELS.values()):  # features_only
            kind += f" around {type(model.model).__name__}: attach to its .model"
        raise VitposError(f"cannot attach to {name}: timm's VisionTransformer and Eva are served, this is {kind}")
    if not isinstance(model.patch_drop, nn.Identity | None):
        raise VitposError("cannot attach with patch_drop_rate > 0: the patches that are left have no grid")
    heads = set()
    for block in model.blocks:
        for kind, part, served in (("block", block, BLOCKS), ("attention", getattr(block, "attn", None), ATTENTIONS)):
            if type(part) not in (*served, *served.values()):
                raise VitposError(
                    f"cannot attach to {kind} {type(part).__name__}: it computes attention in a way of its own; those "
                    f"served are {', '.join(one.__name__ for one in served)}"
                )
        if (groups := getattr(block.attn, "num_kv_groups", 1)) > 1:
            raise VitposError(f"cannot attach to grouped-query attention: {groups} queries share a key")
        heads.add((block.attn.num_heads, block.attn.head_dim))
    if len(heads) != 1:
        raise VitposError(f"cannot attach: heads differ by layer, (num_heads, head_dim) are {sorted(heads)}")
    ((num_heads, head_dim),) = heads
    if num_heads * head_dim != model.embed_dim:
        raise VitposError(f"cannot attach: {num_heads} heads of {head_dim} are not embed_dim {model.embed_dim}")
    if getattr(model.patch_embed, "grid_size", None) is None:
        raise VitposError("cannot attach: the model's patch_embed has no grid_size; create it with an img_size")
    return Geometry(training_grid(model.patch_embed), model.embed_dim, num_heads, len(model.blocks))
