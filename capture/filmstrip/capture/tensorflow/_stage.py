"""The stage of TensorFlow: the only place that turns its tensors into bytes of a slot.

Tensors that a step has returned never change, so nothing is copied in the training thread: the
writer thread reads them, and waits for the device where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from filmstrip.capture._budget import COUNT_BYTES, VALUE_BYTES, Order, Take
from filmstrip.capture._seams import Fence, Slot
from filmstrip.capture._survey import view
from filmstrip.store import bit_histogram, summarize
from filmstrip.store._summary import merge

_ALIGNMENT = 64
_HALF = 2048
_PIECE = 1 << 13  # values at a time: of more, BLAS makes threads, which fight with training
Array: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True, slots=True)
class HostSlot:
    """A slot in ordinary memory."""

    memory: Array


@dataclass(slots=True)
class Held:
    """What a step took, which lives until it has been written."""

    puts: list[Callable[[], None]] = field(default_factory=list)


class HeldStage:
    """Holds tensors until the writer thread asks for them.

    Examples
    --------
    >>> import tensorflow as tf
    >>> stage = HeldStage()
    >>> slot = stage.slot(64)
    >>> order = Order(0, (4,), take=Take((2,), "float32", stride=2), frame=0)
    >>> stage.put(slot, order, tf.range(4.0))
    >>> stage.wait(stage.fence())
    >>> slot.memory[:8].view(np.float32)
    array([0., 2.], dtype=float32)
    """

    apart = "beside the graph that returns it"

    def __init__(self) -> None:
        self._held = Held()

    def dtype(self, tensor: Any) -> str:
        """Return the name of a tensor's dtype."""
        name = tensor.dtype
        return str(getattr(name, "name", name))

    def slot(self, nbytes: int) -> HostSlot:
        """Allocate a slot, aligned so that every frame can be viewed in its dtype."""
        memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return HostSlot(memory[start : start + nbytes])

    def ring(self, slots: int, nbytes: int) -> Sequence[HostSlot]:
        """Allocate the slots of the ring."""
        return [self.slot(nbytes) for _ in range(slots)]

    def put(self, slot: Slot, order: Order, tensor: Any) -> None:
        """Hold a tensor for a slot."""
        self._held.puts.append(lambda: _write(slot.memory, order, tensor))

    def drop(self) -> None:
        """Let go of what a step took that never ended."""
        self._held = Held()

    def fence(self) -> Held:
        """Return what is held, and hold nothing."""
        held, self._held = self._held, Held()
        return held

    def wait(self, fence: Fence) -> None:
        """Write what was held into its slots; a second call has nothing to do."""
        assert isinstance(fence, Held)
        puts, fence.puts = fence.puts, []
        for put in puts:
            put()


class DryStage(HeldStage):
    """Holds nothing; for a survey of which nothing is kept."""

    def put(self, slot: Slot, order: Order, tensor: Any) -> None:
        """Do nothing."""


def host(tensor: Any) -> Array:
    """Return a tensor's values; of bfloat16 and float8, those of ml_dtypes.

    Examples
    --------
    >>> host([1.0, 2.0])
    array([1., 2.])
    """
    return np.asarray(tensor.numpy() if hasattr(tensor, "numpy") else tensor)


def numbers(array: Array) -> Array:
    """Return an array in a dtype of NumPy's own, with the same values; of complex ones, the parts.

    Examples
    --------
    >>> numbers(np.array([1 + 2j], np.complex64))
    array([1., 2.], dtype=float32)
    """
    if array.dtype.kind == "c":
        return np.ascontiguousarray(array).reshape(-1).view(array.real.dtype)
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def _write(memory: Array, order: Order, tensor: Any) -> None:
    array = host(tensor)
    if order.take is not None and order.frame is not None:
        target = view(memory, order.frame, order.take)
        part = _part(array, order.take)
        if order.take.samples is not None:
            target = target[: len(part)]
        if order.take.dtype == "bfloat16":
            target[...] = _bfloat16(part)
        else:
            target[...] = part.astype(target.dtype, copy=False)
    if order.values is None:
        return
    plain = numbers(array).reshape(-1)
    pieces = [plain[start : start + _PIECE] for start in range(0, max(plain.size, 1), _PIECE)]
    values = memory[order.values : order.values + VALUE_BYTES].view(np.float64)
    values[:] = merge(np.stack([summarize(piece) for piece in pieces]))
    if order.counts is not None:
        counts = bit_histogram(plain)
        by_bits = memory[order.counts : order.counts + COUNT_BYTES].view(np.int64)
        by_bits[:_HALF], by_bits[_HALF:] = counts[_HALF:], counts[_HALF - 1 :: -1]


def _bfloat16(part: Array) -> Array:
    if part.dtype.name != "bfloat16":
        import ml_dtypes  # comes with TensorFlow

        part = part.astype(ml_dtypes.bfloat16)
    return np.ascontiguousarray(part).view(np.uint16)


def _part(array: Array, take: Take) -> Array:
    """Return the part of an array that a frame holds, as a view."""
    if take.samples is not None:
        array = array[: take.samples]
    if take.stride > 1:
        index = [slice(None)] * array.ndim
        index[take.axis] = slice(None, None, take.stride)
        array = array[tuple(index)]
    return array
