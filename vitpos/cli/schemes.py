"""The commands ``vitpos positions`` and ``vitpos show``: what schemes there are, and a picture of one."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitpos.errors import VitposError
from vitpos.paths import expand

if TYPE_CHECKING:
    from vitpos.positions import Geometry, PositionEmbedding

_WIDTH = 100  # columns of a terminal
_TEXT = 36  # where the options begin
_FAMILIES = ("", "absolute", "relative", "contextual", "rotary", "conditional")  # in the README's order
_SCHEME = "name, name(option=value), a+b, or my_file.py:Name"


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the three commands to the parser."""
    text = "list the schemes, or describe one"
    listed = commands.add_parser("positions", help=text, description=f"{text.capitalize()}.")
    listed.add_argument("scheme", nargs="?", help=f"{_SCHEME}; left out, all are listed")
    listed.set_defaults(command=positions_command)
    text = "draw a scheme as it is before training"
    show = commands.add_parser("show", help=text, description=f"{text.capitalize()}.")
    show.add_argument("scheme", help=_SCHEME)
    show.add_argument("--model", help="a timm model, whose geometry holds where the options below are left out")
    show.add_argument("--grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="grid of patches (8 8)")
    show.add_argument("--embed-dim", type=int, help="width of a token (192)")
    show.add_argument("--num-heads", type=int, help="attention heads of a block (3)")
    show.add_argument("--depth", type=int, help="blocks (12)")
    show.add_argument("--out", type=expand, help="PNG file, an SVG beside it (the scheme as a name, here)")
    show.set_defaults(command=show_command)
    text = "test that a scheme does what every scheme must"
    check = commands.add_parser("check", help=text, description=f"{text[0].upper()}{text[1:]}.")
    check.add_argument("scheme", help="name, name(option=value), a+b, or my_file.py:Name")
    check.add_argument("--fast", action="store_true", help="leave out Inductor and ONNX")
    check.set_defaults(command=check_command)


def positions_command(options: argparse.Namespace) -> int:
    """Carries out ``vitpos positions``."""
    print(everything() if options.scheme is None else "\n\n".join(described(options.scheme)))
    return 0


def show_command(options: argparse.Namespace) -> int:
    """Carries out ``vitpos show``."""
    import torch

    from vitpos.portraits.draw import draw
    from vitpos.positions import build

    out = options.out or Path(re.sub(r"[^\w.+]+", "-", options.scheme).strip("-.") + ".png")
    if out.suffix != ".png":
        raise VitposError(f"--out {out} must end in .png")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scheme = build(options.scheme, geometry(options))
    drawn = draw(scheme, options.scheme, out)
    print(
        out if drawn else f"{options.scheme} does nothing to tokens, queries, keys or logits: there is nothing to draw"
    )
    return 0


def check_command(options: argparse.Namespace) -> int:
    """Carries out ``vitpos check``."""
    from vitpos.checks import run

    return run.check_command(options.scheme, options.fast)


def geometry(options: argparse.Namespace) -> Geometry:
    """Reads the geometry of ``vitpos show``: each option, else the model's, else that of a small ViT.

    Raises:
        VitposError: No such model, it cannot take a scheme, or the numbers do not go together.
    """
    from vitpos.positions import Geometry

    base = Geometry((8, 8), 192, 3, 12)
    if options.model is not None:
        import timm
        import torch

        from vitpos.attach import attach

        if not timm.is_model(options.model):
            near = ", ".join(difflib.get_close_matches(options.model, timm.list_models(), 5, 0))
            raise VitposError(f"timm has no model {options.model!r}; nearest: {near}")
        with torch.device("meta"):  # no weights: only its shape is asked for
            model: Any = attach(timm.create_model(options.model), "none", existing="drop")
        base = model.pos_embed.geometry
    asked = {key: getattr(options, key) for key in ("grid", "embed_dim", "num_heads", "depth")}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if "grid" in given:
        given["grid"] = tuple(given["grid"])
    return replace(base, **given)


def everything() -> str:
    """Lists all schemes by family: name, parameters at ViT-S, options, source; those that are broken last."""
    from vitpos import positions
    from vitpos.positions.text import installed

    groups: dict[str, list[str]] = {family: [] for family in _FAMILIES}
    broken = []
    for name in positions.available():
        try:
            family, parameters = measured(name)
            cls, options = positions.find(name), positions.options(name)
        except Exception as error:  # of an installed package: it must not hide the others
            said = str(error) if isinstance(error, VitposError) else f"{name}: {type(error).__name__}: {error}"
            broken.append(f"broken: {' '.join(said.split())}")
            continue
        spelled = ", ".join(f"{option}={default!r}" for option, default in options.items())
        lines = [part for text in (spelled, source(cls)) for part in textwrap.wrap(text, _WIDTH - _TEXT)]
        first = f"  {name:23} {parameters:>8,}  "
        groups.setdefault(family, []).append(first + f"\n{' ' * _TEXT}".join(lines or [""]))
    for point in installed():
        own = positions.base._registry.get(point.name)
        if own is not None and point.value != f"{own.__module__}:{own.__qualname__}":
            broken.append(f"hidden: {point.value} of an installed package, for vitpos has a scheme {point.name!r}")
    head = f"{'scheme':23}   {'ViT-S':>8}  options and their defaults; source"
    table = [line for family, rows in groups.items() if rows for line in (family, *rows) if line]
    noted = [part for line in broken for part in textwrap.wrap(line, _WIDTH, subsequent_indent="    ")]
    end = [
        "",
        "ViT-S: parameters with 14 x 14 patches, width 384, 6 heads, 12 blocks",
        "one in full: vitpos positions NAME",
    ]
    return "\n".join(line.rstrip() for line in [head, *table, *noted, *end])


def described(text: str) -> list[str]:
    """Describes each scheme of a text in full: what it does, its docstring, its options; paragraphs."""
    from vitpos import positions

    paragraphs = []
    for name, given in positions.check(text):
        family, parameters = measured(f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})")
        cls = positions.find(name)
        paragraphs.append(f"{name}: {family or 'no positions'}, {parameters:,} parameters at ViT-S")
        for paragraph in (inspect.cleandoc(cls.__doc__) if cls.__doc__ else "").split("\n\n"):
            if re.match(r"(Args|Attributes|Raises):\n", paragraph):
                continue  # options follow below, those of base classes too
            flowing = paragraph and not re.search(r"^\s", paragraph, re.MULTILINE)
            whole = re.sub("``.+?``", lambda span: span[0].replace(" ", "\N{NO-BREAK SPACE}"), paragraph)  # formulas
            filled = textwrap.fill(whole, _WIDTH).replace("\N{NO-BREAK SPACE}", " ")
            paragraphs += [filled if flowing else paragraph] if paragraph else []
        documented, explained = documents(cls), []
        for option, default in positions.options(name).items():
            first = f"{option}={default!r}"
            lines = textwrap.wrap(f"{first}  {documented.get(option, '')}", _WIDTH - 2, subsequent_indent=" " * 4)
            explained += [f"  {line}" for line in lines]
        paragraphs += ["\n".join(explained)] if explained else []
    return paragraphs


def measured(text: str) -> tuple[str, int]:
    """Finds out the family of a scheme, ``""`` where it does nothing, and counts its parameters at ViT-S."""
    from vitpos.portraits import probes
    from vitpos.positions import Geometry, build

    small = build(text, Geometry((3, 4), 384, 6, 12))  # it does the same on a small grid, sooner
    families = dict.fromkeys(probes.FAMILIES[kind] for kind in probes.kinds(small))
    whole = build(text, Geometry((14, 14), 384, 6, 12))
    return ", ".join(families), sum(parameter.numel() for parameter in whole.parameters())


def source(cls: type[PositionEmbedding]) -> str:
    """Reads the source off a class: authors, year and title, else the first clause, of its paragraph ``Source:``."""
    found = re.search(r"Source: (.*?)(?:\n\n|\Z)", inspect.cleandoc(vars(cls).get("__doc__") or ""), re.DOTALL)
    text = " ".join(found[1].split()) if found else ""
    paper = re.match(r"[^;(]*? \d{4} \([^()]*\)", text)
    return paper[0] if paper else re.split(r"[;.](?: |$)", text)[0]


def documents(cls: type[PositionEmbedding]) -> dict[str, str]:
    """Reads the options' descriptions from ``Args:`` of the classes (base classes first) and their constructors."""
    documented: dict[str, str] = {}
    for holder in (holder for base in cls.__mro__[::-1] for holder in (base, vars(base).get("__init__"))):
        text = inspect.cleandoc(holder.__doc__ or "")
        name = ""
        for line in text.partition("Args:\n")[2].split("\n\n")[0].splitlines():
            if found := re.match(r" {4}(\w+): (.*)", line):
                name, documented[found[1]] = found[1], found[2]
            elif name:
                documented[name] += f" {line.strip()}"
    return documented
