"""Checks of a scheme in a timm ViT: a model's behaviour in training and use."""

import copy
import io
import pickle
from typing import Any

import safetensors.torch
import torch
from timm.models import group_parameters
from timm.optim._param_groups import param_groups_layer_decay
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from vitpos.attach import attach, detach
from vitpos.checks.common import (
    BATCH,
    CLASSES,
    DEPTH,
    GEOMETRY,
    HALVES,
    PREFIXES,
    REGISTERS,
    WIDTH,
    CheckError,
    by,
    case,
    close,
    images,
    own,
    require,
    short,
    vit,
)
from vitpos.positions import PositionEmbedding, build
from vitpos.positions.base import parts

DRAWS = 100  # initialisations per test


def another_grid(text: str) -> None:
    """A model accepts grids other than the training grid, and keeps no state of a grid that it has seen."""
    for name, prefix in PREFIXES.items():
        host = vit(text, **prefix)
        unused = copy.deepcopy(host)
        at_home = host(images())
        with torch.inference_mode():
            for size in ((24, 16), (16, 16), (32, 40), (4, 4), (8, 48)):
                with case(f"{name}, grid {by((size[0] // 4, size[1] // 4))} after 4 x 6"):
                    out = host(images(*size))
                    require(tuple(out.shape) == (BATCH, CLASSES), f"expected {BATCH} x {CLASSES}, found {out.shape}")
                    require(bool(out.isfinite().all()), "the output is not finite")
                    close(out, copy.deepcopy(unused)(images(*size)), "output, and that of an unused copy")
        with case(f"{name}, grid 4 x 6 after others"):
            close(host(images()), at_home, "output, and that before other grids")
            host.train()(images()).sum().backward()  # raises if a tensor from inference mode was kept


def gradients(text: str) -> None:
    """Every parameter gets a finite, nonzero gradient, initially or (e.g. behind a zero gate) one step later."""
    everywhere: set[str] | None = None
    for name, prefix in PREFIXES.items():
        host = vit(text, start=True, **prefix).double().train()
        if host.pos_embed.sees_prefix and not host.num_prefix_tokens:
            continue  # its parameters for such tokens are unused
        with case(name):
            dead = _backward(host)
            with torch.no_grad():
                for _, parameter in _trained(host.pos_embed):
                    parameter.sub_(parameter.grad)
            dead = dead and _backward(host)
            everywhere = dead if everywhere is None else everywhere & dead
    # Zero for some prefixes is correct: e.g. the last block's patches do not affect the output of a class token.
    require(not everywhere, f"the gradient of {', '.join(sorted(everywhere or ()))} is zero")


def _backward(host: Any) -> set[str]:
    """Returns the names of the parameters whose gradient is zero."""
    host.zero_grad()
    host(images(dtype=torch.float64)).pow(2).sum().backward()
    for name, parameter in _trained(host):
        require(parameter.grad is not None, f"{name} receives no gradient")
        require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")
    return {name for name, parameter in _trained(host) if not parameter.grad.any()}


def _trained(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def permutation(text: str) -> None:
    """The output changes if the patches of an image are permuted (that of `none` does not)."""
    x = images(dtype=torch.float64)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    patches = x.reshape(BATCH, 3, 4, 4, 6, 4).transpose(3, 4).reshape(BATCH, 3, 24, 4, 4)[:, :, order]
    permuted = patches.reshape(BATCH, 3, 4, 6, 4, 4).transpose(3, 4).reshape(x.shape)
    host = vit(text).double()
    difference = (host(x) - host(permuted)).abs().max().item()
    if type(build(text, GEOMETRY)) is PositionEmbedding:
        require(difference < 1e-12, f"expected no change of the output without positions, found {difference:.2g}")
    else:
        require(difference > 1e-10, f"expected the output to change by more than 1e-10, found {difference:.2g}")


def images_apart(text: str) -> None:
    """Images of a batch do not affect each other."""
    x = images(dtype=torch.float64)
    host = vit(text, **REGISTERS).double()
    close(host(x[1:2]), host(x)[1:2], "an image alone and in a batch", atol=1e-12)


def fused_attention(text: str) -> None:
    """Fused and unfused attention compute the same."""
    x = images(dtype=torch.float64)
    host = vit(text, **REGISTERS).double()
    out = host(x)
    for block in host.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    close(host(x), out, "fused and not", atol=1e-12)


def autocast(text: str) -> None:
    """Training under autocast gives the float32 output up to rounding, and finite float32 gradients."""
    for dtype in HALVES:
        with case(short(dtype)):
            host = vit(text, **REGISTERS).train()
            torch.manual_seed(0)
            exact = host(images())
            torch.manual_seed(0)
            with torch.autocast("cpu", dtype):
                out = host(images())
            _half(out, exact, dtype)
            (1024 * out.float().pow(2).sum()).backward()  # a loss scale, as float16 needs
            for name, parameter in _trained(host):
                require(parameter.grad is not None, f"{name} receives no gradient")
                require(parameter.grad.dtype == torch.float32, f"the gradient of {name} is not float32")
                require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")


def half_model(text: str) -> None:
    """In a bfloat16 or float16 model the scheme is cast too, and the output is that of float32 up to rounding."""
    for dtype in HALVES:
        with case(short(dtype)):
            exact = vit(text, **REGISTERS)
            host = attach(vit(**REGISTERS).to(dtype), text)
            precise = {name for part in parts(host.pos_embed) for name in part.precise}
            other = [
                name
                for name, parameter in host.pos_embed.named_parameters()
                if parameter.dtype != dtype and name.rpartition(".")[2] not in precise
            ]
            require(not other, f"not in {short(dtype)}: {', '.join(other)}")
            host.load_state_dict(exact.state_dict())
            _half(host(images(dtype=dtype)), exact(images()), dtype)


def _half(out: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    require(out.dtype == dtype, f"expected the output in {short(dtype)}, found {short(out.dtype)}")
    # The initial logits have a standard deviation of 0.1.
    close(out.float(), exact, "output, and that of float32", atol=16 * 0.1 * torch.finfo(dtype).eps)


def state_dict(text: str) -> None:
    """A state dict, saved by torch or safetensors, restores the output."""
    one, two = vit(text), vit(text, seed=5)
    before = one(images())
    require(not torch.equal(before, two(images())), "another seed gives the same model")
    torch.save(one.state_dict(), file := io.BytesIO())
    file.seek(0)
    for kind, state in {
        "torch": torch.load(file),
        "safetensors": safetensors.torch.load(safetensors.torch.save(one.state_dict())),
    }.items():
        twin = copy.deepcopy(two)
        twin.load_state_dict(state, strict=True)
        close(twin(images()), before, f"output after load_state_dict ({kind}), and that of the saved model")


def copies(text: str) -> None:
    """Deep copies and pickles equal the model and share nothing with it."""
    host = vit(text)
    before = host(images())
    for kind, twin in {"deepcopy": copy.deepcopy(host), "pickle": pickle.loads(pickle.dumps(host))}.items():
        close(twin(images()), before, f"output of a {kind}, and of its original")
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        close(host(images()), before, f"output after a {kind} was changed, and before")


def moving_average(text: str) -> None:
    """A moving average of the weights averages the scheme's parameters too, and works as a model.

    With timm's ``ModelEmaV3``, and with torch's ``AveragedModel``, which averages buffers too, as in Lightning.
    """
    host = vit(text)
    start = {name: value.clone() for name, value in host.named_parameters()}
    average = ModelEmaV3(host, decay=0.5)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.add_(1)
    average.update(host)
    for name, value in average.module.named_parameters():
        close(value, start[name] + 0.5, f"average of {name}", atol=1e-6)
    twin = vit(text, seed=5)
    twin.load_state_dict(average.module.state_dict())
    close(average(images()), twin(images()), "output of the average, and of a model with its state dict")
    host = vit(text)
    for several in (get_ema_multi_avg_fn(0.9), None):  # type: ignore[no-untyped-call]
        single = None if several else get_ema_avg_fn(0.9)  # type: ignore[no-untyped-call]
        torchs = AveragedModel(host, avg_fn=single, multi_avg_fn=several, use_buffers=True)
        for _ in range(3):
            torchs.update_parameters(host)
        close(torchs(images()), host(images()), "output of the average of equal models, and of these", atol=1e-5)


def intermediates(text: str) -> None:
    """forward_intermediates and get_intermediate_layers return the intermediate results of the forward pass."""
    for name, prefix in PREFIXES.items():
        with case(name):
            host = vit(text, **prefix)
            x, tokens = images(24, 16), host.num_prefix_tokens
            final, maps = host.forward_intermediates(x, norm=True)
            shapes = [tuple(m.shape) for m in maps]
            require(shapes == [(BATCH, WIDTH, 6, 4)] * DEPTH, f"maps of shapes {shapes}")
            close(final, host.forward_features(x), "final of forward_intermediates, and forward_features")
            close(maps[-1].flatten(2).transpose(1, 2), final[:, tokens:], "the last map, and the final tokens")
            (last,) = host.get_intermediate_layers(x, 1, norm=True)
            close(last, final[:, tokens:], "get_intermediate_layers, and the final tokens")
            (early,) = host.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True, norm=True)
            close(early, maps[0], "the first map with and without stop_early")
            host.prune_intermediate_layers([0])
            pruned = host.forward_features(x)[:, tokens:]
            close(pruned, early.flatten(2).transpose(1, 2), "a model pruned to block 0, and the first map")


def input_size(text: str) -> None:
    """After set_input_size the output equals that with dynamic_img_size, and the scheme's tensors are unchanged."""
    dynamic, fixed = vit(text), vit(text, dynamic_img_size=False)
    fixed.set_input_size((32, 16))
    close(fixed(images(32, 16)), dynamic(images(32, 16)), "output after set_input_size, and with dynamic_img_size")
    found, expected = ({name: tuple(t.shape) for name, t in own(host).items()} for host in (fixed, dynamic))
    require(found == expected, f"tensors of the scheme: expected {expected}, found {found}")
    fixed.reset_classifier(9)
    require(tuple(fixed(images(32, 16)).shape) == (BATCH, 9), "reset_classifier(9) does not give 9 classes")


def checkpointing(text: str) -> None:
    """Gradient checkpointing changes no gradient."""
    host = vit(text, **REGISTERS).train()
    found: list[dict[str, Tensor]] = []
    for on in (False, True):
        host.set_grad_checkpointing(on)
        host.zero_grad()
        torch.manual_seed(0)
        host(images()).pow(2).sum().backward()
        found.append({name: parameter.grad for name, parameter in _trained(host)})
    for name, gradient in found[0].items():
        close(found[1][name], gradient, f"gradient of {name} with checkpointing and without")


def optimizer_groups(text: str) -> None:
    """The scheme's parameters get no weight decay in timm, and the layer decay of the stem."""
    host = vit(text)
    parameters = {f"pos_embed.{name}" for name, _ in _trained(host.pos_embed)}
    require(parameters <= host.no_weight_decay(), "no_weight_decay() leaves out parameters of the scheme")
    groups = group_parameters(host, host.group_matcher())
    require(parameters <= set(groups[0]), "group_matcher() does not put the scheme into the stem's group")
    groups = param_groups_layer_decay(host, 0.1, no_weight_decay_list=host.no_weight_decay(), layer_decay=0.5)
    names = {id(parameter): name for name, parameter in host.named_parameters()}
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    least = min(factor for factor, _ in found.values())
    for name in parameters:
        right = found[name] == (least, 0)
        require(right, f"{name}: expected learning rate x {least} without decay, found (x, decay) {found[name]}")


def init_weights(text: str) -> None:
    """The model's init_weights re-initialises the scheme, buffers too (by reset_parameters, and without nn.Linear).

    Random tensors are compared over 100 constructions and 100 re-initialisations, by Kolmogorov-Smirnov tests of the
    mean and of the mean square at the level 1e-6. So a correct tensor fails with probability 2e-6 at most, whatever its
    size.
    """
    host, starts, draws = vit(text), [], []
    host.blocks = nn.Identity()  # for speed
    for _ in range(DRAWS):
        scheme = build(text, GEOMETRY)
        starts.append({f"pos_embed.{n}": t.detach() for n, t in (*scheme.named_parameters(), *scheme.named_buffers())})
    with torch.no_grad():
        for value in own(host).values():  # as after to_empty
            value.fill_(float("nan") if value.is_floating_point() or value.is_complex() else -1)
    emptied = {name: value.clone() for name, value in own(host).items()}
    for _ in range(DRAWS):
        host.init_weights()
        draws.append({name: value.detach().clone() for name, value in own(host).items()})
    for name, empty in emptied.items():
        before, after = ([tensors[name] for tensors in several] for several in (starts, draws))
        fixed = all(torch.equal(value, before[0]) for value in before)
        unset = bool((after[0].isnan() & ~before[0].isnan()).any()) or (fixed and after[0].equal(empty))
        if unset and not before[0].equal(empty):
            raise CheckError(f"{name} is not set by init_weights; reset_parameters() has to draw or compute it again")
        if fixed:
            close(after[0], before[0], f"{name} after init_weights and at the start")
        else:
            again = all(torch.equal(value, after[0]) for value in after)
            require(not again, f"{name}: init_weights draws the same numbers again")
            _drawn_alike(name, before, after)


def _drawn_alike(name: str, before: list[Tensor], after: list[Tensor]) -> None:
    from scipy.stats import ks_2samp

    squares = [[value.abs().double().pow(2).mean().item() for value in several] for several in (before, after)]
    means = [[value.real.double().mean().item() for value in several] for several in (before, after)]
    for what, found, unit in (("mean square", squares, max(squares[0])), ("mean", means, max(squares[0]) ** 0.5)):
        old, new = (sum(values) / DRAWS for values in found)
        # Statistics that are always the same, such as the norm of a rotation, differ by rounding.
        alike = abs(new - old) < 1e-3 * unit or ks_2samp(*found).pvalue > 1e-6
        require(alike, f"{name}: its {what} after init_weights is {new:.2g}, at the start {old:.2g}")


def attach_and_detach(text: str) -> None:
    """Attaching it changes neither the backbone nor torch's random state; detach restores the old model."""
    plain, host = vit(**REGISTERS), vit(**REGISTERS)
    state = torch.random.get_rng_state()
    attach(host, text)
    require(torch.equal(torch.random.get_rng_state(), state), "attach changes the global random state")
    keys = {name for name in host.state_dict() if not name.startswith("pos_embed.")}
    require(keys == plain.state_dict().keys(), f"keys of the backbone: {sorted(keys ^ plain.state_dict().keys())}")
    host(images(24, 16))
    close(detach(host)(images()), plain(images()), "output after detach, and of a model that never had a scheme")
    again = attach(host, text)(images())
    close(again, vit(text, start=True, **REGISTERS)(images()), "output after detach and attach, and after one attach")
