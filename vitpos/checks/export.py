"""Checks of compilers and exporters, and of a simulated GPU."""

import copy
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitpos.checks.common import BATCH, CLASSES, REGISTERS, SIZE, SkippedError, by, case, close, images, require, vit
from vitpos.positions.base import Grid

SIZES = (SIZE, (32, 8))  # the training grid, for which tables may be stored, and another


def at(size: Grid) -> Any:
    """Marks the grid of an image size as the current case."""
    return case(f"grid {by((size[0] // 4, size[1] // 4))}")


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Resets the compiler, because the graphs of other checks count towards the recompilation limit."""
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


def fake_cuda(text: str) -> None:
    """On a (simulated) GPU, a forward pass uses no CPU tensor and never reads a value."""
    for training in (False, True):
        model = vit(text, **REGISTERS).train(training)
        with FakeTensorMode() as mode:
            tensors = dict([*model.named_parameters(), *model.named_buffers()])
            moved = {name: mode.from_tensor(tensor).to("cuda") for name, tensor in tensors.items()}
            for size in SIZES:
                with at(size):
                    x = torch.zeros(BATCH, 3, *size, device="cuda")
                    out = torch.func.functional_call(model, moved, (x,))
                    found = (tuple(out.shape), out.device.type)
                    require(found == ((BATCH, CLASSES), "cuda"), f"expected {BATCH} x {CLASSES} on cuda, found {found}")


def export(text: str) -> None:
    """torch.export returns a program for any batch size."""
    model = vit(text, **REGISTERS)
    for size in SIZES:
        with at(size):
            batch = {"x": {0: torch.export.Dim("batch")}}
            program: Any = torch.export.export(model, (images(*size),), dynamic_shapes=batch).module()
            for n in (1, BATCH + 1):
                x = images(*size, batch=n)
                close(program(x), model(x), f"output of the program for {n} images, and of the model", atol=1e-6)


def one_graph(text: str) -> None:
    """torch.compile captures the training forward in one graph (fullgraph=True), with the same output."""
    model = vit(text, **REGISTERS).train()
    plain = copy.deepcopy(model)
    with fresh_compiler():
        traced: Any = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
        for size in SIZES:
            with at(size):
                torch.manual_seed(0)
                found = traced(images(*size))
                torch.manual_seed(0)
                close(found, plain(images(*size)), "output of the graph, and of the model", atol=1e-6)


def inductor(text: str) -> None:
    """torch.compile with Inductor, which generates the kernels, gives the same output up to rounding."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        raise SkippedError("it needs a C++ compiler")
    model = vit(text, depth=1)
    with fresh_compiler():
        compiled: Any = torch.compile(model, fullgraph=True, dynamic=False)
        for size in SIZES:
            with at(size):
                close(compiled(images(*size)), model(images(*size)), "output compiled and not", atol=1e-5)


def onnx(text: str) -> None:
    """An ONNX file of the model, run by onnxruntime, gives the same output up to rounding."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise SkippedError(f"not installed: pip install {' '.join(missing)}")
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]  # installed or not

    model = vit(text, **REGISTERS)
    for size in SIZES:
        with at(size):
            try:
                program: Any = torch.onnx.export(model, (images(*size),), dynamo=True, verbose=False)
            except Exception as error:
                # One of the causes says so if the exporter does not support an operation, of any scheme.
                text = "".join(traceback.format_exception(error))
                if lacking := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text):
                    raise SkippedError(f"torch.onnx does not support {lacking[1]}") from error
                raise
            session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
            (out,) = session.run(None, {session.get_inputs()[0].name: images(*size).numpy()})
            close(torch.from_numpy(out), model(images(*size)), "output of onnxruntime, and of the model", atol=1e-5)
