"""The stage of the CPU: the only place that copies a tensor into a slot.

The copy is made at once, in the tap: what comes after it in the forward pass, or the optimizer, may
overwrite the tensor. Tensors of an accelerator are copied to the host first, which waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from filmstrip.capture._budget import COUNT_BYTES, VALUE_BYTES, Order, Take
from filmstrip.capture._seams import Slot
from filmstrip.capture.pytorch._extract import Extractor

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class HostSlot:
    """A slot in ordinary memory, and the views of it that are made once."""

    memory: npt.NDArray[Any]
    frames: dict[int, torch.Tensor] = field(default_factory=dict)


class CpuStage:
    """Copies at once, so that there is nothing to wait for.

    Examples
    --------
    >>> stage = CpuStage()
    >>> slot = stage.slot(64)
    >>> order = Order(0, (4,), take=Take((2,), "float32", stride=2), frame=0)
    >>> stage.put(slot, order, torch.arange(4.0))
    >>> slot.memory[:8].view(np.float32)
    array([0., 2.], dtype=float32)
    """

    def __init__(self) -> None:
        self._extractor = Extractor()

    def dtype(self, tensor: torch.Tensor) -> str:
        """Return the name of a tensor's dtype."""
        return str(tensor.dtype).removeprefix("torch.")

    def slot(self, nbytes: int) -> HostSlot:
        """Allocate a slot, aligned so that every frame can be viewed in its dtype."""
        memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return HostSlot(memory[start : start + nbytes])

    def put(self, slot: Slot, order: Order, tensor: torch.Tensor) -> None:
        """Extract and copy."""
        assert isinstance(slot, HostSlot)
        tensor = tensor.detach()
        if order.take is not None:
            target, source = self._frame(slot, order, order.take), _part(tensor, order.take)
            if order.take.samples is not None:
                target = target[: len(source)]
            target.copy_(source)
        if order.values is not None:
            values = slot.memory[order.values : order.values + VALUE_BYTES].view(np.float64)
            counts = None
            if order.counts is not None:
                counts = slot.memory[order.counts : order.counts + COUNT_BYTES].view(np.int64)
            self._extractor.extract(tensor, values, counts)

    def _frame(self, slot: HostSlot, order: Order, take: Take) -> torch.Tensor:
        frame = slot.frames.get(order.site)
        if frame is None:
            assert order.frame is not None
            with torch.inference_mode(False):  # or it could be written in that mode only
                memory = torch.from_numpy(slot.memory[order.frame : order.frame + take.nbytes])
                frame = memory.view(getattr(torch, take.dtype)).view(take.shape)
            slot.frames[order.site] = frame
        return frame

    def fence(self) -> None:
        """Return nothing: the copies are done."""

    def wait(self, fence: object) -> None:
        """Return at once."""


class DryStage(CpuStage):
    """Copies nothing; for a survey of which nothing is kept."""

    def put(self, slot: Slot, order: Order, tensor: torch.Tensor) -> None:
        """Do nothing."""


def unreadable(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be copied and reduced, None when it can.

    Examples
    --------
    >>> unreadable(torch.ones(2)), unreadable(torch.ones(2).to_sparse())
    (None, 'are of layout torch.sparse_coo on cpu')
    """
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return f"are of layout {tensor.layout} on {tensor.device.type}"
    if tensor.is_quantized or tensor.is_nested:
        return f"are {'quantized' if tensor.is_quantized else 'nested'}"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"are of type {type(tensor).__name__}, which holds no values of its own"
    return None


def _part(tensor: torch.Tensor, take: Take) -> torch.Tensor:
    """Return the part of a tensor that a frame holds, as a view."""
    if take.samples is not None:
        tensor = tensor[: take.samples]
    if take.stride > 1:
        index = [slice(None)] * tensor.ndim
        index[take.axis] = slice(None, None, take.stride)
        tensor = tensor[tuple(index)]
    return tensor
