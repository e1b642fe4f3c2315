"""The state that a model shares with its blocks and attentions: the forward call that they belong to.

The grid belongs to a call, not to the model, so that threads, replicas and recomputation do not mix up grids.
"""

import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vitpos.errors import VitposError
from vitpos.positions.scheme import Grid, PositionEmbedding, hook_kwargs


class Call:
    """One forward pass of a model: the scheme, its grid, and what the scheme prepared for it."""

    def __init__(self, scheme: PositionEmbedding, grid: Grid, prefix: int, device: torch.device) -> None:
        self.scheme = scheme
        self.grid = grid
        self.prefix = prefix
        self.prepared: Any = scheme.prepare(grid, device)

    def hook(self, name: str, *args: Any) -> Any:
        """Calls a hook of the scheme; the last argument is the layer."""
        *tensors, layer = args
        return getattr(self.scheme, name)(*tensors, self.grid, layer, **hook_kwargs(self.scheme, name, self.prepared))

    def check(self, tokens: int, prefix: int) -> None:
        """Raises a VitposError unless there are rows * columns + prefix tokens."""
        rows, columns = self.grid
        if tokens != rows * columns + prefix:
            raise VitposError(
                f"{tokens} tokens are not the {rows} x {columns} patches and {prefix} prefix tokens expected"
            )


class Thread(threading.local):
    """The calls of a thread: `now`, whose blocks are running, and `last`, whose tokens were embedded last."""

    def __init__(
        self,
    ) -> None:  # runs once per thread; set here because torch.compile guards on the instance's attributes
        self.now: Call | None = None
        self.last: Call | None = None


class PositionState:
    """Maps blocks and attentions to the `Call` that they belong to.

    Not an nn.Module, so that the scheme is registered only once. One object is shared by all parts of a model, so that
    a deep copy of the model gets its own, shared by the parts of the copy.

    In a forward pass, the call is that of the current thread. Gradient checkpointing recomputes blocks in the backward
    pass, on some devices in another thread and possibly after other calls, but with the same input tensors.
    """

    def __init__(self) -> None:
        self.thread = Thread()
        self.inputs: MutableMapping[Tensor, Call] = WeakTensorKeyDictionary()

    def __reduce__(self) -> tuple[type["PositionState"], tuple[()]]:
        """Copies and pickles start without calls."""
        return PositionState, ()

    @contextmanager
    def separate_call(self) -> Iterator[None]:
        """Restores `Thread.last` afterwards, so that a forward pass within another does not replace its call."""
        before = self.thread.last
        try:
            yield
        finally:
            self.thread.last = before

    def call(self, x: Tensor) -> Call:
        """Returns the call that the input of a block or attention belongs to.

        Raises:
            VitposError: The call is unknown.
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
