"""Small ViTs for 32-pixel images, and any timm ViT with a scheme, registered with timm."""

import inspect
from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, load_pretrained, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitpos.attach import attach
from vitpos.errors import VitposError, unknown
from vitpos.positions import parse, text

__all__: list[str] = []  # register_model appends the entry points

_POOLS = ("avg", "token", "avgmax", "max", "map", "prr", "")
# Arguments of build_model_with_cfg and timm.create_model that are not passed to the model.
_SOURCE = ("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir")
_BUILDER = (*_SOURCE, "features_only", "out_indices", "feature_cls")
_REFUSED = ("pos_embed", "no_embed_class")  # `position` replaces them

_configs: dict[str, Any] = {
    f"vitpos_{size}_patch4_32": {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),  # of CIFAR-10's training images
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for size in ("nano", "micro", "mini", "tiny9", "tiny")
}
default_cfgs = generate_default_cfgs({**_configs, "vitpos": {}})


def create_model(name: str, position: str, *, existing: str | None = None, **kwargs: Any) -> nn.Module:
    """Creates a timm ViT with a position scheme: ``timm.create_model``, then `vitpos.attach`.

    A model saved by ``timm.models.save_for_hf`` is loaded by ``timm.create_model("local-dir:...", pretrained=True)``
    including its scheme, once vitpos is imported.

    Args:
        name: A timm model name, also ``hf-hub:...`` or ``local-dir:...``.
        position: The text of the scheme.
        existing: ``"keep"`` or ``"drop"`` positions that the model already has, see `vitpos.attach`.
        kwargs: Passed to ``timm.create_model``.

    Raises:
        VitposError: See `vitpos.attach`.
    """
    features = {key: kwargs.pop(key) for key in ("features_only", "out_indices") if key in kwargs}
    model = attach(timm.create_model(name, **kwargs), position, existing=existing)
    return _features(model, **features)


@register_model
def vitpos(
    pretrained: bool = False,
    *,
    base: str = "",
    position: str = "none",
    existing: str | None = None,
    features_only: bool = False,
    out_indices: Any = 3,
    **kwargs: Any,
) -> nn.Module:
    """Any timm ViT with a scheme, for tools that accept only a model name: timm's train script, or a saved model."""
    if not base:
        raise VitposError("model 'vitpos' needs base, the name of a timm ViT: base='vit_tiny_patch16_224'")
    source = {key: kwargs.pop(key, None) for key in _SOURCE}
    _no_strange_file(position, source["pretrained_model_args"])
    resolved: Any = resolve_pretrained_cfg("vitpos", source["pretrained_cfg"], source["pretrained_cfg_overlay"])
    saved: dict[str, Any] = resolved.to_dict()
    if not _has_weights(saved):  # a new model, not one saved with its scheme
        model = timm.create_model(base, pretrained, cache_dir=source["cache_dir"], **kwargs)
        return _features(attach(model, position, existing=existing), features_only, out_indices)
    model = timm.create_model(base, pretrained_cfg={**saved, "architecture": base}, **kwargs)
    attach(model, position, existing=existing)
    if pretrained:
        sizes = {"num_classes": model.num_classes, "in_chans": kwargs.get("in_chans", 3)}
        load_pretrained(model, saved, cache_dir=source["cache_dir"], **sizes)
    return _features(model, features_only, out_indices)


def _features(model: nn.Module, features_only: bool = False, out_indices: Any = 3) -> nn.Module:
    return FeatureGetterNet(model, out_indices=out_indices) if features_only else model


def _has_weights(source: dict[str, Any]) -> bool:
    return any(source.get(key) for key in ("file", "url", "hf_hub_id", "state_dict"))


def _no_strange_file(position: str, saved: dict[str, Any] | None) -> None:
    """Raises a VitposError if a saved configuration names a code file that the user has not loaded."""
    if saved and position == saved.get("position"):
        for name, _ in parse(position):
            if (inside := text.split(name)) and not text.loaded(inside[0]):
                raise VitposError(
                    f"the saved model runs code from {name}; if you trust it, call vitpos.positions.find({name!r}) "
                    "before"
                )


def _vit(
    variant: str, pretrained: bool, position: str, model: dict[str, Any], given: dict[str, Any]
) -> VisionTransformer:
    """Checks the arguments, builds the model through timm, and attaches the scheme."""
    source: Any = resolve_pretrained_cfg(variant, given.get("pretrained_cfg"), given.get("pretrained_cfg_overlay"))
    if pretrained and not _has_weights(source.to_dict()):
        raise VitposError(f"{variant} has no pretrained weights; create it with pretrained=False")
    _no_strange_file(position, given.get("pretrained_model_args"))
    takes = [n for n in inspect.signature(VisionTransformer).parameters if n not in _REFUSED] + ["position"]
    for option in given:
        if option not in (*takes, *_BUILDER):
            raise unknown(f"option of {variant}:", option, takes)
    args = {"img_size": 32, "patch_size": 4, "in_chans": 3, "num_classes": 10, "global_pool": "avg", **model, **given}
    args.setdefault("class_token", args["global_pool"] == "token")
    _check(variant, args)
    built: VisionTransformer = build_model_with_cfg(
        partial(_positioned, position),
        variant,
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **args,
    )
    return built


def _positioned(position: str, **args: Any) -> VisionTransformer:
    return attach(VisionTransformer(**args, pos_embed="none"), position)


def _check(variant: str, args: dict[str, Any]) -> None:
    """Raises errors that timm would raise as bare assertions or not at all."""
    size, patch = _pair("img_size", args["img_size"]), _pair("patch_size", args["patch_size"])
    if size[0] % patch[0] or size[1] % patch[1]:
        raise VitposError(
            f"{variant}: img_size {args['img_size']} is not a multiple of patch_size {args['patch_size']}"
        )
    for name in ("embed_dim", "num_heads", "depth", "in_chans"):
        if not isinstance(args.get(name, 1), int) or args.get(name, 1) < 1:
            raise VitposError(f"{variant}: {name} {args[name]!r} must be a whole number of at least 1")
    if args["embed_dim"] % args["num_heads"]:
        raise VitposError(f"{variant}: embed_dim {args['embed_dim']} is not divisible by num_heads {args['num_heads']}")
    if args["global_pool"] not in _POOLS:
        raise unknown(f"global_pool of {variant}:", str(args["global_pool"]), _POOLS)
    if args["global_pool"] == "token" and not args["class_token"]:
        raise VitposError(f"{variant}: global_pool 'token' needs class_token=True, given False")


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise VitposError(f"{name} {value!r} must be a whole number above 0, or two of them (height, width)")
    return pair


@register_model
def vitpos_nano_patch4_32(pretrained: bool = False, *, position: str = "none", **kwargs: Any) -> VisionTransformer:
    """ViT of width 64, 6 blocks, 2 heads."""
    model = {"embed_dim": 64, "depth": 6, "num_heads": 2}
    return _vit("vitpos_nano_patch4_32", pretrained, position, model, kwargs)


@register_model
def vitpos_micro_patch4_32(pretrained: bool = False, *, position: str = "none", **kwargs: Any) -> VisionTransformer:
    """ViT of width 96, 6 blocks, 3 heads."""
    model = {"embed_dim": 96, "depth": 6, "num_heads": 3}
    return _vit("vitpos_micro_patch4_32", pretrained, position, model, kwargs)


@register_model
def vitpos_mini_patch4_32(pretrained: bool = False, *, position: str = "none", **kwargs: Any) -> VisionTransformer:
    """ViT of width 128, 6 blocks, 4 heads: the shape of the published CIFAR comparison of s-chh."""
    model = {"embed_dim": 128, "depth": 6, "num_heads": 4}
    return _vit("vitpos_mini_patch4_32", pretrained, position, model, kwargs)


@register_model
def vitpos_tiny9_patch4_32(pretrained: bool = False, *, position: str = "none", **kwargs: Any) -> VisionTransformer:
    """ViT of width 192, 9 blocks, 12 heads, MLP ratio 2: the ViT of SPT_LSA_ViT (Lee et al. 2021)."""
    model = {"embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2.0}
    return _vit("vitpos_tiny9_patch4_32", pretrained, position, model, kwargs)


@register_model
def vitpos_tiny_patch4_32(pretrained: bool = False, *, position: str = "none", **kwargs: Any) -> VisionTransformer:
    """ViT of width 192, 12 blocks, 3 heads: timm's vit_tiny with patches of 4."""
    model = {"embed_dim": 192, "depth": 12, "num_heads": 3}
    return _vit("vitpos_tiny_patch4_32", pretrained, position, model, kwargs)
