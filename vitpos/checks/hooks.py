"""Checks of a scheme by itself: its hooks and its constructor."""

import copy
import difflib
import math
import random
import re
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from vitpos.checks.common import (
    BATCH,
    DEPTH,
    GEOMETRY,
    GRID,
    HALVES,
    HEADS,
    HOOKS,
    WIDTH,
    CheckError,
    SkippedError,
    by,
    case,
    close,
    overrides,
    perturbed,
    queries,
    require,
    short,
    spelled,
)
from vitpos.positions import Geometry, PositionEmbedding, build, options, parse
from vitpos.positions.base import Grid, parts
from vitpos.positions.scheme import hook_kwargs

GRIDS = (GRID, (6, 4), (3, 9), (1, 7), (5, 1), (1, 1))
# Global settings of torch, each with getter and setter.
SETTINGS: dict[str, tuple[Any, Any]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
}


def defined(text: str) -> None:
    """It overrides a hook, by its exact name; with `weights` or `values` it also overrides `uses_attention`."""
    for part in parts(build(text, GEOMETRY)):
        classes = type(part).__mro__[: type(part).__mro__.index(PositionEmbedding)]
        own = {name for holder in (*classes, part) for name in vars(holder) if name[0] != "_"}
        if classes and not own & {*HOOKS}:
            near = {name: difflib.get_close_matches(name, HOOKS, 1, 0.7) for name in sorted(own)}
            hints = [f"; did you mean {found[0]!r} by {name!r}?" for name, found in near.items() if found]
            hints += ["; forward is never called"] if "forward" in own else []
            raise CheckError(f"{part.scheme} overrides no hook ({', '.join(HOOKS)}){''.join(hints)}")
        asked = part.uses_attention
        require(isinstance(asked, bool), f"uses_attention is {asked!r}, not True or False; it has to be a property")
        silent = [name for name in ("weights", "values") if name in own and not overrides(part, "uses_attention")]
        require(not silent, f"{' and '.join(silent)} is never called, because uses_attention is not overridden")


def shapes(text: str) -> None:
    """On any grid, the hooks keep shape and dtype and return finite values; a bias may be -inf off its diagonal."""
    scheme = perturbed(build(text, GEOMETRY))
    for grid in GRIDS:
        for dtype in (torch.float64, torch.float32, *HALVES):
            for layer in range(DEPTH):
                with case(f"grid {by(grid)}, {short(dtype)}, layer {layer}"):
                    _shapes(scheme, grid, dtype, layer)


def _shapes(scheme: PositionEmbedding, grid: Grid, dtype: torch.dtype, layer: int) -> None:
    patches = math.prod(grid)
    x = torch.randn(BATCH, patches, WIDTH).to(dtype)
    q, k = queries(grid, dtype), queries(grid, dtype, seed=1)
    rotated = scheme.rotate(q, k, grid, layer)
    both = isinstance(rotated, tuple | list) and len(rotated) == 2
    require(both, f"rotate: expected queries and keys, found {_kind(rotated)}")
    pairs = {"tokens": (x, scheme.tokens(x, grid, layer)), "queries": (q, rotated[0]), "keys": (k, rotated[1])}
    if scheme.uses_attention:
        attention = q.new_full((BATCH, HEADS, patches, patches), 0.5 / patches)  # half goes to prefix tokens
        weights, values = scheme.weights(attention, grid, layer), scheme.values(attention, grid, layer)
        require(weights is not attention or values is not None, "uses_attention is true, but no weights or values")
        pairs["weights"], pairs["values"] = (attention, weights), (q, q if values is None else values)
        close(weights.sum(-1), attention.sum(-1), "sums of rows of weights", atol=4 * torch.finfo(dtype).eps)
    for name, (given, found) in pairs.items():
        right = isinstance(found, Tensor) and found.shape == given.shape and found.dtype == dtype
        require(right, f"{name}: expected {_kind(given)}, found {_kind(found)}")
        require(bool(found.isfinite().all()), f"{name}: not finite")
    bias = scheme.bias(q, k, grid, layer)
    if bias is not None:
        allowed = ((HEADS, patches, patches), (BATCH, HEADS, patches, patches))
        numbers = isinstance(bias, Tensor) and bias.dtype != torch.bool
        require(numbers, f"bias: expected a numeric tensor, found {_kind(bias)}")
        require(tuple(bias.shape) in allowed, f"bias: shape {tuple(bias.shape)} is none of {allowed}")
        require(not bool(bias.isnan().any() or bias.isposinf().any()), "bias: NaN or +inf")
        require(bool(bias.diagonal(dim1=-2, dim2=-1).isfinite().all()), "bias: -inf on the diagonal")


def _kind(value: object) -> str:
    return f"{tuple(value.shape)} {short(value.dtype)}" if isinstance(value, Tensor) else type(value).__name__


def prepared(text: str) -> None:
    """The hooks return the same with the result of `prepare` as without it."""
    scheme = perturbed(build(text, GEOMETRY).eval())
    if not overrides(scheme, "prepare"):
        raise SkippedError("it has no prepare")
    for grid in GRIDS:
        alone, ready = copy.deepcopy(scheme), scheme.prepare(grid, torch.device("cpu"))
        x, q, k = torch.randn(BATCH, math.prod(grid), WIDTH), queries(grid), queries(grid, seed=1)
        attention = (q @ k.mT).softmax(dim=-1)
        given = {"tokens": (x,), "rotate": (q, k), "bias": (q, k), "weights": (attention,), "values": (attention,)}
        for layer in range(DEPTH):
            for name, tensors in given.items():
                if name in ("weights", "values") and not scheme.uses_attention:
                    continue
                with case(f"grid {by(grid)}, layer {layer}"):
                    found = getattr(scheme, name)(*tensors, grid, layer, **hook_kwargs(scheme, name, ready))
                    expected = getattr(alone, name)(*tensors, grid, layer)
                    require(
                        (found is None) == (expected is None), f"{name} is None only with prepared=, or only without"
                    )
                    pairs = zip(found, expected, strict=True) if name == "rotate" else [(found, expected)]
                    for one, other in pairs if found is not None else ():
                        one, other = (t.clamp(min=-1e4) for t in (one, other))  # a bias may be -inf
                        close(one, other, f"{name} with prepared=, and without", atol=1e-5)


def untouched(text: str) -> None:
    """A hook changes no argument in place, and returns the same tensor objects if it changes nothing."""
    scheme = perturbed(build(text, GEOMETRY))
    x, q, k = torch.randn(BATCH, math.prod(GRID), WIDTH), queries(GRID), queries(GRID, seed=1)
    attention = (q @ k.mT).softmax(dim=-1)
    given = {"tokens": x, "queries": q, "keys": k, "attention": attention}
    before = {name: tensor.clone() for name, tensor in given.items()}
    for layer in range(DEPTH):
        scheme.bias(q, k, GRID, layer)
        out = (scheme.tokens(x, GRID, layer), *scheme.rotate(q, k, GRID, layer))
        if scheme.uses_attention:
            scheme.values(attention, GRID, layer)
        for name, old in given.items():
            require(torch.equal(old, before[name]), f"layer {layer}: a hook changes its {name} in place")
        for name, new, old in zip(given, out, (x, q, k), strict=False):
            require(new is old or not torch.equal(new, old), f"layer {layer}: {name} are an equal copy")


def placed(scheme: PositionEmbedding, grid: Grid, layer: int) -> list[Tensor]:
    """Computes a scheme's effect on each pair of patches when all queries are equal and all keys are equal.

    Returns:
        Tensors of (any, N * N) in float64, as far as the scheme acts on them: the logits, with -10,000 for -inf; the
        result of uniform attention weights; and the term added to patch i if it attends only to patch j.
    """
    patches = math.prod(grid)
    q, k = (queries((1, 1), torch.float64, seed).expand(-1, -1, patches, -1) for seed in (0, 1))
    new_q, new_k = scheme.rotate(q, k, grid, layer)
    bias = scheme.bias(q, k, grid, layer)
    found = []
    if bias is not None or new_q is not q or new_k is not k:
        logits = new_q @ new_k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS) + (0 if bias is None else bias)
        found.append(logits.clamp(min=-1e4).flatten(0, 1).flatten(1))
    if scheme.uses_attention:
        equal = q.new_full((1, HEADS, patches, patches), 1 / patches)
        weights = scheme.weights(equal, grid, layer)
        found += [] if weights is equal else [weights.flatten(0, 1).flatten(1)]
        attention = torch.eye(patches, dtype=torch.float64)[:, None, None].expand(-1, HEADS, patches, -1)
        values = scheme.values(attention, grid, layer)
        found += [] if values is None else [values.permute(1, 3, 2, 0).flatten(0, 1).flatten(1)]
    return found


def by_offset(text: str) -> None:
    """The effect on logits and values depends only on the offset between two patches (rotary and relative schemes).

    A scheme for which this does not hold by design declares it: ``by_offset = False``.
    """
    scheme = perturbed(build(text, GEOMETRY).double().eval())
    if not overrides(scheme, "rotate", "bias", "weights", "values"):
        raise SkippedError("it has no rotate, bias, weights or values")
    only = all(part.by_offset for part in parts(scheme))
    acts, most = False, 0.0
    for grid in (GRID, (6, 4), (3, 7)):
        rows, columns = grid
        row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
        offset = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
        index = offset.flatten()
        for layer in range(DEPTH):
            with case(f"grid {by(grid)}, layer {layer}"):
                for found in placed(scheme, grid, layer):
                    acts = True
                    total = found.new_zeros(len(found), int(index.max()) + 1).index_add(1, index, found)
                    mean = total / index.bincount()
                    require(mean.std(dim=1).max().item() > 1e-6, "all offsets are treated the same")
                    off = (found - mean[:, index]).abs().max().item()
                    # float64, except for tables that stay in float32, and angles of up to 25
                    most = max(most, off)
                    if only:
                        require(off < 5e-6, f"the same offset elsewhere differs by {off:.2g}, allowed is 5e-06")
    require(acts, "rotate, bias, weights and values change nothing in any layer")
    if not only:
        require(most > 1e-3, f"by_offset is False, but the same offset elsewhere differs by {most:.2g}")
        raise SkippedError("does not hold, as declared by by_offset = False")


def rows_and_columns(text: str) -> None:
    """Patches are in row-major order: no hook swaps rows and columns, which would show on grids that are not square."""
    for part in parts(perturbed(build(text, GEOMETRY).double().eval())):
        for layer in range(DEPTH):
            # A scheme without order, such as a random table, has ratios of about 1. One based on the raster index has a
            # ratio above 1 if there are more columns than rows, and below 1 if there are more rows.
            wide, tall = (_swapped(part, grid, layer) for grid in ((7, 12), (12, 7)))
            for name, ratio in wide.items():
                found = min(ratio, tall[name])
                require(found < 1.5, f"layer {layer}, {name}: rows and columns are swapped ({found:.2g} x the change)")


def _swapped(scheme: PositionEmbedding, grid: Grid, layer: int) -> dict[str, float]:
    """Compares how a scheme's effect changes between neighbours in a column and if rows and columns were swapped.

    Returns:
        Ratios by hook: above 1 if the swapped grid fits better.
    """
    (rows, columns), patches = grid, math.prod(grid)
    zero = torch.zeros(1, patches, WIDTH, dtype=torch.float64)
    one, middle = zero.clone(), rows // 2 * columns + columns // 2
    one[0, middle] = 1
    added, changed = scheme.tokens(zero, grid, layer)[0], scheme.tokens(one, grid, layer)[0]
    spread = (changed - added).pow(2).sum(dim=1)  # the part that a convolution moves to the neighbours
    found = {"spread of tokens": [(spread[middle + step] + spread[middle - step]).item() for step in (rows, columns)]}
    maps = {"tokens": added}
    for number, pairs in enumerate(placed(scheme, grid, layer)):
        maps[f"attention ({number + 1})"] = pairs.reshape(-1, patches).T
    for name, values in maps.items():
        found[name] = [(values[step:] - values[:-step]).pow(2).mean().item() for step in (columns, rows)]
    return {name: one / other if other > 1e-12 else 1 + one * 1e12 for name, (one, other) in found.items()}


def half_precision(text: str) -> None:
    """In bfloat16 and float16, by autocast or cast, only results are rounded, never angles or tables."""
    torch.manual_seed(0)
    for trained_on in (GRID, (512, 2)):
        scheme = perturbed(build(text, Geometry(trained_on, WIDTH, HEADS, DEPTH)).eval())
        if not overrides(scheme, "tokens", "rotate"):
            raise SkippedError("it has no tokens and no rotate")
        for dtype in HALVES:
            for mode in ("autocast", "cast"):
                low, exact = copy.deepcopy(scheme), copy.deepcopy(scheme)
                if mode == "cast":
                    low = low.to(dtype)
                    for parameter, rounded in zip(exact.parameters(), low.parameters(), strict=True):
                        parameter.data = rounded.data.float()
                for grid in ((512, 2), (2, 512)):  # bfloat16 represents integers up to 256
                    with case(f"{mode} {short(dtype)}, grid {by(grid)} after {by(trained_on)}"):
                        _rounded(low, exact.double(), grid, dtype, autocast=mode == "autocast")


@torch.no_grad()
def _rounded(low: PositionEmbedding, exact: PositionEmbedding, grid: Grid, dtype: torch.dtype, autocast: bool) -> None:
    # Zero tokens, so that the result is the added term alone.
    x, q, k = torch.zeros(1, 1024, WIDTH), queries(grid)[:1], queries(grid, seed=1)[:1]
    for layer in range(DEPTH if grid[0] > grid[1] else 1):
        with torch.autocast("cpu", dtype) if autocast else nullcontext():
            given = x.to(dtype), q.to(dtype), k.to(dtype)
            rounded = low.tokens(given[0], grid, layer), *low.rotate(given[1], given[2], grid, layer)
        full = [tensor.double() for tensor in given]
        expected = exact.tokens(full[0], grid, layer), *exact.rotate(full[1], full[2], grid, layer)
        for name, one, other in zip(("tokens", "queries", "keys"), rounded, expected, strict=True):
            error = (one.double() - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-30)
            # Half an eps each for the table (or for cosines and products) and for the result.
            worst, allowed = error.max().item(), 1.5 * torch.finfo(dtype).eps
            require(worst < allowed, f"layer {layer}, {name}: relative error {worst:.2g}, allowed is {allowed:.2g}")


def scale(text: str) -> None:
    """The option `scale` is the initial RMS of the vectors added to the tokens."""
    ((name, given), *more) = parse(text)
    if more or "scale" not in options(name):
        raise SkippedError("it has no option scale")
    torch.manual_seed(0)
    squares = []
    for _ in range(200):
        scheme = build(spelled(name, given, scale="0.3"), Geometry((8, 8), 64, 2, 2))
        squares.append(scheme.tokens(torch.zeros(1, 64, 64), (8, 8), 0).double().pow(2).mean())
    mean, error = torch.stack(squares).mean().item(), torch.stack(squares).std().item() / len(squares) ** 0.5
    # The RMS may be off by 5 %, and its estimate by five standard errors, which happens once in a million times.
    right = abs(mean - 0.09) < 0.1 * 0.09 + 5 * error
    require(right, f"scale=0.3: expected an RMS within 5 % of it, found {mean**0.5:.4g}")


def geometries(text: str) -> None:
    """Any width, number of heads and grid works, or is refused by a one-line ValueError that names the scheme."""
    names = [part.scheme for part in parts(build(text, GEOMETRY))]
    for width, heads in ((1, 1), (3, 1), (10, 2), (12, 2), (30, 5), (32, 2), (96, 12)):
        for grid in (GRID, (1, 1)):
            with case(f"width {width}, {heads} heads, grid {by(grid)}"):
                try:
                    scheme = build(text, Geometry(grid, width, heads, 1))
                except ValueError as error:
                    _one_line(error, names)
                    continue
                patches = math.prod(grid)
                x, q = torch.randn(2, patches, width), torch.randn(2, heads, patches, width // heads)
                found, bias = [scheme.tokens(x, grid, 0), *scheme.rotate(q, q, grid, 0)], scheme.bias(q, q, grid, 0)
                right = [tensor.shape for tensor in found] == [x.shape, q.shape, q.shape]
                right = right and (bias is None or bias.shape[-3:] == (heads, patches, patches))
                require(right, "a hook changes the shape")


def bad_options(text: str) -> None:
    """A list, infinity or an unknown word as an option is refused by a one-line ValueError that names the option."""
    read = parse(text)
    if not any(options(name) for name, _ in read):
        raise SkippedError("it has no options")
    for part, (name, given) in zip(parts(build(text, GEOMETRY)), read, strict=True):
        for option in options(name):
            for value in ("[]", "-1e999", "'?'"):
                with case(f"{option}={value}"):
                    try:
                        build(spelled(name, given, **{option: value}), GEOMETRY)
                    except ValueError as error:
                        _one_line(error, [part.scheme], option)
                    else:
                        raise CheckError("expected a ValueError that names the option, found none")


def _one_line(error: ValueError, names: list[str], option: str = "") -> None:
    """Requires that an error is one line and names one of the schemes and the option."""
    message = str(error)
    require("\n" not in message, f"the error is longer than one line: {message.splitlines()[0]}")
    require(any(name in message for name in names), f"the error does not name {' or '.join(names)}: {message}")
    require(bool(re.search(rf"\b{option}\b", message)), f"the error does not name {option}: {message}")


def global_state(text: str) -> None:
    """Building and using it changes no setting of torch and seeds nothing; it draws from torch's global stream only."""
    settings = {name: read() for name, (read, _) in SETTINGS.items()}
    states = []
    try:
        for seed in (0, 1):
            torch.manual_seed(seed)
            scheme = build(text, GEOMETRY).eval()
            states.append(torch.random.get_rng_state())
        require(not torch.equal(*states), "building it seeds the global generator")
        torch.manual_seed(1)
        for name, value in build(text, GEOMETRY).state_dict().items():
            close(value, scheme.state_dict()[name], f"{name} built twice from one seed")
        outside = random.getstate()
        for layer in range(DEPTH):
            scheme.tokens(torch.zeros(1, 24, WIDTH), GRID, layer)
            scheme.rotate(queries(GRID), queries(GRID), GRID, layer)
            scheme.bias(queries(GRID), queries(GRID), GRID, layer)
        after = torch.random.get_rng_state()
        same = torch.equal(states[1], after) and outside == random.getstate()
        require(same, "a hook uses random numbers in eval mode")
        for name, (read, _) in SETTINGS.items():
            require(read() == settings[name], f"{name}: it was {settings[name]}, it is {read()}")
    finally:
        for name, (read, write) in SETTINGS.items():
            if read() != settings[name]:
                write(settings[name])
