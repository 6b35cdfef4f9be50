"""Devices: the only place that speaks to the streams, events and page-locked memory of one.

All work of a stream is done in the order in which it was asked for, and the allocator gives freed
memory out again on the stream that used it last. So a copy that is asked for on the stream that
computes sees its source as it is, whatever is asked for afterwards, and needs no reference to it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch


class Device(Protocol):
    """What a stage needs of an accelerator.

    1. ``memory()``       training thread, at the end of the survey
    2. ``copy()``         training thread, in a tap; never waits
    3. ``record()``       training thread, at the end of a step
    4. ``synchronize()``  writer thread; only then may the copies be read
    """

    def memory(self, nbytes: int) -> torch.Tensor:
        """Return page-locked memory of the host, uint8, shape (nbytes,); may raise RuntimeError."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Ask for a copy to the host, on the stream that computes."""

    def record(self) -> object:
        """Mark all copies that were asked for so far."""

    def synchronize(self, mark: Any) -> None:
        """Wait until what lies before a mark is done."""


class Accelerator:
    """The accelerator that PyTorch was built for, with all devices and streams that are used."""

    def __init__(self) -> None:
        self._streams: dict[tuple[torch.device, int], torch.Stream] = {}

    def memory(self, nbytes: int) -> torch.Tensor:
        """Allocate page-locked memory, into which an accelerator copies by itself."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Ask for a copy on the current stream of the source's device."""
        stream = _current_stream(source.device)
        self._streams[stream.device, stream.stream_id] = stream
        target.copy_(source, non_blocking=True)

    def record(self) -> list[torch.Event]:
        """Return one event for each stream that copied anything so far: one, as a rule."""
        return [_event(stream) for stream in self._streams.values()]

    def synchronize(self, mark: list[torch.Event]) -> None:
        """Wait for events; other threads go on."""
        for event in mark:
            event.synchronize()


def reaches(device: torch.device) -> bool:
    """Return whether `Accelerator` can speak to a device; before torch 2.6, only to CUDA's.

    Examples
    --------
    >>> reaches(torch.device("cpu"))
    False
    """
    if device.type == "cuda":
        return True
    if not hasattr(torch, "accelerator") or not torch.accelerator.is_available():
        return False  # torch 2.6 raises where there is none
    current = torch.accelerator.current_accelerator()
    return current is not None and current.type == device.type


def _current_stream(device: torch.device) -> torch.Stream:
    if device.type == "cuda":
        return torch.cuda.current_stream(device)
    return torch.accelerator.current_stream(device)


def _event(stream: torch.Stream) -> torch.Event:
    if stream.device.type == "cuda":
        # A thread that waits for another kind of event keeps a core busy.
        event: torch.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    else:
        event = torch.Event(stream.device)
    event.record(stream)
    return event


class Later:
    """A private copy of a tensor that the writer thread reads, when the device has made it.

    It passes for an array, and for a number.

    Parameters
    ----------
    tensor : torch.Tensor
        On an accelerator; it may be overwritten afterwards.

    Attributes
    ----------
    nbytes : int
        Bytes of the array.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._made = _event(_current_stream(tensor.device)) if reaches(tensor.device) else None
        self.nbytes = self._copy.numel() * self._copy.element_size()

    def _read(self) -> torch.Tensor:
        if self._made is not None:  # the thread that reads has another stream
            self._made.synchronize()
        return self._copy.cpu()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Wait for the device, and copy to the host."""
        return np.asarray(self._read().resolve_conj().resolve_neg().numpy(), dtype)

    def __float__(self) -> float:
        """Wait for the device, and return the number."""
        return float(self._read())
