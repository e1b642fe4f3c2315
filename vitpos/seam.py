"""What a model, its blocks and its attentions share: nothing but the call that runs.

The grid of a forward belongs to that call, whatever thread, replica or recomputation asks for it.
"""

import threading
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vitpos.errors import VitposError
from vitpos.positions.scheme import Grid, PositionEmbedding, given


class Call:
    """One forward of a model: the scheme, its grid, and what the scheme prepared for it."""

    def __init__(self, scheme: PositionEmbedding, grid: Grid, prefix: int, device: torch.device) -> None:
        self.scheme = scheme
        self.grid = grid
        self.prefix = prefix
        self.prepared: Any = scheme.prepare(grid, device)

    def hook(self, name: str, *args: Any) -> Any:
        """Calls a hook of the scheme; the last argument is the layer."""
        *tensors, layer = args
        return getattr(self.scheme, name)(*tensors, self.grid, layer, **given(self.scheme, name, self.prepared))

    def check(self, tokens: int, prefix: int) -> None:
        """Raises a VitposError unless `tokens` are those of the grid and `prefix` more."""
        rows, columns = self.grid
        if tokens != rows * columns + prefix:
            raise VitposError(
                f"{tokens} tokens are not the {rows} x {columns} patches and {prefix} prefix tokens expected"
            )


class Thread(threading.local):
    """The calls of a thread: the one whose blocks run now, and the last one whose tokens were embedded."""

    def __init__(self) -> None:  # run in each thread: a compiler guards on what the instance holds
        self.now: Call | None = None
        self.last: Call | None = None


class Seam:
    """Where blocks and attentions find the call that they belong to. A copy of the model has a seam of its own.

    In a forward, the call is the one of their thread. Gradient checkpointing runs blocks again in the backward pass,
    in another thread on some devices and perhaps after other calls; but with the very tensors of the first time.
    """

    def __init__(self) -> None:
        self.thread = Thread()
        self.inputs: MutableMapping[Tensor, Call] = WeakTensorKeyDictionary()

    def __reduce__(self) -> tuple[type["Seam"], tuple[()]]:
        """Copies and pickles hold no call."""
        return Seam, ()

    def call(self, x: Tensor) -> Call:
        """Gives the call that the input of a block or of an attention belongs to.

        Raises:
            VitposError: Nothing tells which call it is.
        """
        compiled = torch.compiler.is_compiling()
        again = not compiled and torch._C._current_graph_task_id() != -1
        call = (self.inputs.get(x) or self.thread.now) if again else (self.thread.now or self.thread.last)
        if call is None:
            why = "runs outside of its model's forward, so its grid is unknown: call model._pos_embed before it"
            if again:
                why = "runs again in the backward pass with other tensors: use_reentrant=False, and no offloading"
            raise VitposError(f"a block {why}")
        if not compiled and not again and torch.is_grad_enabled():
            self.inputs[x] = call
        return call
