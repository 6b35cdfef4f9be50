"""A device without a device: whatever is asked for is done later, in an order drawn by chance.

Streams are queues. What is asked for on one is done in order; between streams there is no order
but that of events. Memory that is freed is given to somebody else on the stream that computes,
who writes into it.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

POISON = 77
COMPUTE, SIDE = "compute", "side"
WAITS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique")


class Event:
    """Fires when its stream gets there."""

    def __init__(self) -> None:
        self.fired = False


class Memory:
    """A piece of the device's memory; when nobody refers to it, it is somebody else's."""

    def __init__(self, simulation: Simulation, real: torch.Tensor) -> None:
        self.simulation, self.real = simulation, real

    def __del__(self) -> None:
        real = self.real
        self.simulation.launch(lambda: real.fill_(POISON), COMPUTE)


class Remote(torch.Tensor):
    """A tensor whose values come into being some time."""

    actual: torch.Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, real: torch.Tensor, memory: Memory) -> Remote:
        remote = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device("meta"),  # any that is not the host
        )
        remote.actual, remote.memory = real, memory
        return remote

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError("the simulation is over")


class Simulation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The device; while it is entered, all that is done to its tensors is put into a queue."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._random = random.Random(seed)
        self._queues: dict[str, deque[Callable[[], object] | Event]] = {
            COMPUTE: deque(),
            SIDE: deque(),
        }
        self.stream = COMPUTE
        self._lock = threading.RLock()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = dict(kwargs or {})
        remotes = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Remote)]
        made = kwargs.get("device") == torch.device("meta")
        if not remotes and not made:
            return func(*args, **kwargs)
        if any(word in func.name() for word in WAITS):
            raise AssertionError(f"{func.name()} waits for the device")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        reals, named = pytree.tree_map_only(Remote, lambda remote: remote.actual, (args, kwargs))
        if func._schema.is_mutable:
            self.launch(lambda: func(*reals, **named))
            return args[0]
        return pytree.tree_map_only(
            torch.Tensor,
            lambda out: self._made(out, lambda: func(*reals, **named), remotes),
            func(*reals, **named),  # of nonsense, for the shape
        )

    def _made(
        self, out: torch.Tensor, make: Callable[[], torch.Tensor], given: list[Remote]
    ) -> Remote:
        place = out.untyped_storage().data_ptr()
        for remote in given:
            if place and remote.actual.untyped_storage().data_ptr() == place:
                return Remote(out, remote.memory)
        out.fill_(POISON)
        self.launch(lambda: out.copy_(make()))
        return Remote(out, Memory(self, out))

    def empty(self, like: torch.Tensor) -> Remote:
        """Return memory of the device."""
        real = torch.full_like(like, POISON)
        return Remote(real, Memory(self, real))

    def launch(self, act: Callable[[], object], stream: str | None = None) -> None:
        """Ask for something."""
        with self._lock:
            self._queues[stream or self.stream].append(act)

    def record(self, stream: str) -> Event:
        """Return an event behind what was asked for on a stream."""
        event = Event()
        self.launch(lambda: setattr(event, "fired", True), stream)
        return event

    def hold(self, stream: str, event: Event) -> None:
        """Let a stream wait for an event."""
        with self._lock:
            self._queues[stream].append(event)

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        """Ask on another stream for a while."""
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def _tick(self) -> bool:
        with self._lock:
            ready = [
                queue
                for queue in self._queues.values()
                if queue and not (isinstance(queue[0], Event) and not queue[0].fired)
            ]
            if not ready:
                return False
            act = self._random.choice(ready).popleft()
            if not isinstance(act, Event):
                act()
            return True

    def idle(self) -> None:
        """Let the device do a few of the things it was asked for."""
        for _ in range(self._random.randrange(12)):
            self._tick()

    def synchronize(self, event: Event) -> None:
        """Wait for an event."""
        while not event.fired:
            assert self._tick(), "what was waited for was never asked for"
