"""Stages: the only place that copies a tensor into a slot.

The copy is made, or asked for on the stream that computes, in the tap: what comes after it in the
forward pass, or the optimizer, may overwrite the tensor.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from filmstrip.capture._budget import COUNT_BYTES, VALUE_BYTES, Order, Take
from filmstrip.capture._seams import Slot
from filmstrip.capture._size import size_text
from filmstrip.capture.pytorch._device import Accelerator, Device, reaches
from filmstrip.capture.pytorch._extract import Extractor
from filmstrip.capture.pytorch._extract_device import DeviceExtractor
from filmstrip.capture.pytorch._sparse import part, settled

_ALIGNMENT = 64
_PIECE = 8 << 20  # bytes of one copy, so that another stream's copies may come in between
_LOGGER = logging.getLogger("filmstrip")


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's dtype, without that of the module.

    Examples
    --------
    >>> dtype_name(torch.ones(1))
    'float32'
    """
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class HostSlot:
    """A slot as PyTorch sees it, and the views of it that are made once."""

    bytes: torch.Tensor
    memory: npt.NDArray[Any]
    frames: dict[int, torch.Tensor] = field(default_factory=dict)

    def frame(self, order: Order, take: Take) -> torch.Tensor:
        """Return the memory of a frame, in its dtype and shape."""
        frame = self.frames.get(order.site)
        if frame is None:
            assert order.frame is not None
            frame = self._part(order.frame, take.nbytes, getattr(torch, take.dtype))
            self.frames[order.site] = frame = frame.view(take.shape)
        return frame

    def _part(self, start: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
        with torch.inference_mode(False):  # or it could be written in that mode only
            return self.bytes[start : start + nbytes].view(dtype)

    def numbers(self, start: int, like: torch.Tensor) -> torch.Tensor:
        """Return the memory of results, in the dtype that they have on the device."""
        return self._part(start, like.numel() * like.element_size(), like.dtype)


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

    least = 1
    """Steps that must lie between statistics, for training not to be held up."""
    apart = ""

    def __init__(self) -> None:
        self._extractor = Extractor()

    def dtype(self, tensor: torch.Tensor) -> str:
        """Return the name of a tensor's dtype."""
        return dtype_name(tensor)

    def slot(self, nbytes: int) -> HostSlot:
        """Allocate a slot, aligned so that every frame can be viewed in its dtype."""
        memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        memory = memory[start : start + nbytes]
        with torch.inference_mode(False):
            return HostSlot(torch.from_numpy(memory), memory)

    def ring(self, slots: int, nbytes: int) -> list[HostSlot]:
        """Allocate the slots of the ring."""
        return [self.slot(nbytes) for _ in range(slots)]

    def put(self, slot: Slot, order: Order, tensor: torch.Tensor) -> None:
        """Extract and copy."""
        assert isinstance(slot, HostSlot)
        tensor = settled(tensor.detach())
        if order.take is not None:
            target, source = slot.frame(order, order.take), _part(tensor, order.take)
            if order.take.samples is not None:
                target = target[: len(source)]
            target.copy_(source)
        if order.values is not None:
            values = slot.memory[order.values : order.values + VALUE_BYTES].view(np.float64)
            counts = None
            if order.counts is not None:
                counts = slot.memory[order.counts : order.counts + COUNT_BYTES].view(np.int64)
            self._extractor.extract(tensor, values, counts)

    def fence(self) -> object:
        """Return nothing: the copies are done."""

    def wait(self, fence: Any) -> None:
        """Return at once."""


class DryStage(CpuStage):
    """Copies nothing; for a survey of which nothing is kept."""

    def put(self, slot: Slot, order: Order, tensor: torch.Tensor) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _Fence:
    """A mark behind a step's copies, and statistics that came in float32."""

    mark: object
    narrow: list[npt.NDArray[Any]]


class AccelStage(CpuStage):
    """Asks for extraction and copies on the stream that computes, and is never waited for in a tap.

    Tensors of the host are copied at once.

    Parameters
    ----------
    device : Device
        What copies.
    extractor : DeviceExtractor, optional
        What reduces tensors there.
    """

    least = 10
    apart = "to ask for it"

    def __init__(self, device: Device, extractor: DeviceExtractor | None = None) -> None:
        super().__init__()
        self._device = device
        self._reducer = extractor or DeviceExtractor()
        self._narrow: list[npt.NDArray[Any]] = []

    def ring(self, slots: int, nbytes: int) -> list[HostSlot]:
        """Allocate the slots of the ring in page-locked memory, or say that there is none."""
        try:
            memories = [self._device.memory(max(nbytes, 1))[:nbytes] for _ in range(slots)]
        except RuntimeError as error:
            _LOGGER.warning(
                "filmstrip: no %s of page-locked memory could be had (%s); training waits for "
                "copies into ordinary memory; a lower max_capture_bytes may help",
                size_text(slots * nbytes),
                str(error).partition("\n")[0],
            )
            return super().ring(slots, nbytes)
        return [HostSlot(memory, memory.numpy()) for memory in memories]

    def put(self, slot: Slot, order: Order, tensor: torch.Tensor) -> None:
        """Ask for extraction and copies; waits for the device only where a tensor is sparse."""
        if tensor.device.type == "cpu":
            super().put(slot, order, tensor)
            return
        assert isinstance(slot, HostSlot)
        tensor = settled(tensor.detach())
        if order.take is not None:
            frame, source = slot.frame(order, order.take), _part(tensor, order.take)
            source = source.to(frame.dtype).resolve_conj().resolve_neg().contiguous()
            self._copy(frame.view(-1)[: source.numel()], source.view(-1))
        if order.values is not None:
            values, counts = self._reducer.extract(tensor)
            self._copy(slot.numbers(order.values, values), values)
            if values.dtype != torch.float64:
                self._narrow.append(slot.memory[order.values : order.values + VALUE_BYTES])
            if order.counts is not None:
                self._copy(slot.numbers(order.counts, counts), counts)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        step = _PIECE // source.element_size()
        for start in range(0, len(source), step):
            self._device.copy(target[start : start + step], source[start : start + step])

    def fence(self) -> _Fence:
        """Mark the copies so far."""
        fence = _Fence(self._device.record(), self._narrow)
        self._narrow = []
        return fence

    def wait(self, fence: Any) -> None:
        """Wait until everything before the fence is in its slot, statistics in float64."""
        assert isinstance(fence, _Fence)
        self._device.synchronize(fence.mark)
        for row in fence.narrow:
            wide = row.view(np.float64)
            wide[:] = row.view(np.float32)[: len(wide)].copy()


def stage_for(model: torch.nn.Module) -> CpuStage:
    """Return the stage that suits a model, on whatever devices its parts lie.

    Examples
    --------
    >>> type(stage_for(torch.nn.Linear(2, 1))).__name__
    'CpuStage'
    """
    tensors = chain(model.parameters(), model.buffers())
    accelerated = any(reaches(tensor.device) for tensor in tensors)
    return AccelStage(Accelerator()) if accelerated else CpuStage()


def unreadable(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be copied and reduced, None when it can.

    Examples
    --------
    >>> unreadable(torch.ones(2)), unreadable(torch.ones(2, device="meta"))
    (None, 'are of layout torch.strided on meta')
    """
    if tensor.layout not in (torch.strided, torch.sparse_coo) or tensor.device.type == "meta":
        return f"are of layout {tensor.layout} on {tensor.device.type}"
    if tensor.is_quantized or tensor.is_nested:
        return f"are {'quantized' if tensor.is_quantized else 'nested'}"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"are of type {type(tensor).__name__}, which holds no values of its own"
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return "are recorded into a CUDA graph, which would copy at every replay"
    return None


def _part(tensor: torch.Tensor, take: Take) -> torch.Tensor:
    """Return the part of a tensor that a frame holds, as a view of it if it is dense."""
    if tensor.layout is torch.sparse_coo:
        return part(tensor, take)
    if take.samples is not None:
        tensor = tensor[: take.samples]
    if take.stride > 1:
        index = [slice(None)] * tensor.ndim
        index[take.axis] = slice(None, None, take.stride)
        tensor = tensor[tuple(index)]
    return tensor
