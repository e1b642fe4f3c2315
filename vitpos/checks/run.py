"""Properties that every position scheme must have, as functions of its text, and the command that checks one scheme.

A check takes the text of a scheme. It returns if the property in its docstring holds and raises a `CheckError`
otherwise. The project's own tests run these functions on all registered schemes.
"""

import logging
import re
import sysconfig
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import timm
import torch

from vitpos.checks import export, hooks, model
from vitpos.checks.common import DEPTH, GEOMETRY, GRID, HEADS, WIDTH, CheckError, SkippedError, by, spelled
from vitpos.errors import VitposError
from vitpos.positions import build, options, parse
from vitpos.positions import check as exists

Check = Callable[[str], None]
FAST: tuple[Check, ...] = (
    hooks.defined,
    hooks.shapes,
    hooks.prepared,
    hooks.global_state,
    hooks.untouched,
    hooks.by_offset,
    hooks.rows_and_columns,
    hooks.half_precision,
    hooks.scale,
    hooks.geometries,
    hooks.bad_options,
    model.another_grid,
    model.gradients,
    model.permutation,
    model.images_apart,
    model.fused_attention,
    model.autocast,
    model.half_model,
    model.state_dict,
    model.copies,
    model.moving_average,
    model.intermediates,
    model.input_size,
    model.checkpointing,
    model.optimizer_groups,
    model.init_weights,
    model.attach_and_detach,
    export.fake_cuda,
    export.export,
    export.one_graph,
)
SLOW: tuple[Check, ...] = (export.inductor, export.onnx)
_BASIC = (hooks.defined, hooks.shapes, hooks.prepared)  # if one fails, most others fail too

_PACKAGE = Path(__file__).parent.parent
# Code that an error can pass through without being its cause.
_FOREIGN = (
    Path(torch.__file__).parent,
    Path(timm.__file__).parent,
    Path(sysconfig.get_paths()["stdlib"]),
    *(
        _PACKAGE / name
        for name in (
            "checks",
            "attach.py",
            "hosts.py",
            "state.py",
            "positions/base.py",
            "positions/scheme.py",
            "positions/text.py",
        )
    ),
)


def outcome(check: Check, scheme: str) -> tuple[str, str]:
    """Runs a check.

    Args:
        check: One of `FAST` or `SLOW`.
        scheme: The text of a scheme that can be built.

    Returns:
        ``"ok"`` and the property, ``"FAILED"`` and the error, or ``"skipped"`` and the reason.
    """
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            check(scheme)
    except SkippedError as error:
        return "skipped", str(error)
    except Exception as error:
        return "FAILED", reason(error)
    return "ok", sentence(check)


def sentence(check: Check) -> str:
    """Returns the first line of a check's docstring: the property."""
    return (check.__doc__ or "").splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings and torch's logs of exceptions that are reported as a line here."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason(error: Exception) -> str:
    """Formats an exception as one line: the case of the check, the message, and the line in the scheme's own file."""
    root: BaseException = error
    while type(root).__module__.startswith("torch.") and root.__cause__:  # the exporter wraps the scheme's error
        root = root.__cause__
    said = next((line.strip() for line in str(root).splitlines() if line.strip()), "")
    text = said if isinstance(root, CheckError) else f"{type(root).__name__}: {said}".removesuffix(": ")
    return ": ".join([*reversed(getattr(error, "__notes__", [])), text]) + _where(root)


def _where(error: BaseException) -> str:
    """Finds the line of the scheme's file in the traceback, or in the message of torch.compile."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    lines += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error))]
    foreign = {file for file, _ in lines if file[0] == "<" or any(Path(file).is_relative_to(p) for p in _FOREIGN)}
    own = [(file, line) for file, line in lines if file not in foreign]
    last = [line for file, line in own if file == own[0][0]]  # not in a library that the scheme calls
    return f" ({Path(own[0][0]).name}:{last[-1]})" if own else ""


def variants(scheme: str) -> list[str]:
    """Returns texts that set one more option of a scheme: each flag inverted, each allowed word."""
    ((name, given), *more) = parse(scheme)
    texts = []
    for option, default in {} if more else options(name).items():
        values: list[object] = [not default] if isinstance(default, bool) else []
        if default is None or isinstance(default, str):
            try:
                build(spelled(name, given, **{option: "'?'"}), GEOMETRY)
            except Exception as error:  # the message lists the allowed words, unless the option is a number
                known = re.search(r"\(known: (.*)\)", str(error))
                values = [word for word in known[1].split(", ") if word != default] if known else []
        for value in values if option not in given else ():
            text = spelled(name, given, **{option: repr(value)})
            with suppress(ValueError):  # valid only with another option
                build(text, GEOMETRY)
                texts.append(text)
    return texts


def check_command(scheme: str, fast: bool) -> int:
    """Runs ``vitpos check``: prints a line per check and a summary; an error that several checks hit is printed once.

    Args:
        scheme: The text of a scheme.
        fast: Skips the checks in `SLOW`.

    Returns:
        0 if nothing failed, else 1.

    Raises:
        VitposError: The text cannot be parsed or built.
    """
    start = time.monotonic()
    torch.set_num_threads(1)  # small tensors are slower on several
    exists(scheme)
    small = f"width {WIDTH}, {HEADS} heads, {DEPTH} blocks, grid {by(GRID)}"
    try:
        build(scheme, GEOMETRY)
    except VitposError as error:
        raise VitposError(f"{error}; the checks use {small}") from error
    except Exception as error:
        print(f"{'constructor':18}{'FAILED':9}{reason(error)}")
        return 1
    print(f"{scheme}: {small}", flush=True)
    counts: Counter[str] = Counter()
    failed: dict[str, list[str]] = {}  # names of checks by error
    checks = [*FAST, *SLOW]
    while checks:
        check = checks.pop(0)
        name = check.__name__.replace("_", " ")
        state, text = ("skipped", "slow, left out by --fast") if fast and check in SLOW else outcome(check, scheme)
        counts[state] += 1
        if state == "FAILED":
            line = re.search(r" \(\S+:\d+\)$", text)  # errors from the same line of the scheme count as one
            names = failed.setdefault(line[0] if line else text, [])
            names.append(name)
            if len(names) > 1:
                continue
        print(f"{name:18}{state:9}{text}", flush=True)
        if state == "FAILED":
            print(f"{'':27}({sentence(check)})", flush=True)
            if check in _BASIC:
                print(f"{'all others':18}{'skipped':9}until this is fixed")
                counts["skipped"] += len(checks)
                break
    for first, *others in failed.values():
        if others:
            print(f"{'':27}(the error of {first} in {', '.join(others)} too)")
    seconds = time.monotonic() - start
    print(", ".join(f"{counts[state]} {state}" for state in ("ok", "FAILED", "skipped")) + f" in {seconds:.0f} s")
    for text in variants(scheme):
        print(f"not checked: {text}")
    return 1 if counts["FAILED"] else 0
