"""Seams: the only place that says what an adapter gives and what it is asked for, and when.

Calls, in order, and who makes them:

1. ``Tap.sites()``       training thread, at attach
2. ``Tap.install()``     training thread, at attach, before the first forward pass
3. ``Recorder.begin()``  training thread, before each forward pass; sets ``on``
4. ``Recorder.take()``   training thread, in a tap, only while ``on``; calls ``Stage.put()``
5. ``Recorder.end()``    training thread, after the optimizer's step; calls ``Stage.fence()``
6. ``Stage.wait()``      writer thread; only then may the slot be read
7. ``Tap.remove()``      training thread, at close, then ``Recorder.close()``

The first due step is the survey: ``Stage.slot()`` is called for each tensor then, and
``Stage.ring()`` once at its end. Where no output came by then, both are called once more, at the
due step at which one comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy.typing as npt

from filmstrip.capture._schedule import EVERYTHING, Tiers

if TYPE_CHECKING:
    from filmstrip.capture._budget import Order


class TensorLike(Protocol):
    """As much of a framework's tensor as the recorder looks at."""

    @property
    def shape(self) -> Sequence[int]:
        """Lengths of the axes."""


T = TypeVar("T", bound=TensorLike)
Tout = TypeVar("Tout", bound=TensorLike, covariant=True)
Tin = TypeVar("Tin", bound=TensorLike, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a rank holds of a tensor that is spread over ranks.

    Parameters
    ----------
    global_shape, offset : tuple of int
        Shape of all of the tensor, and where the piece begins in it.
    mesh, placements : tuple of str
        How it is spread, in the framework's words.
    framed : bool
        Whether frames are kept; ranks must decide alike, since a frame is made of all pieces.
    """

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    mesh: tuple[str, ...]
    placements: tuple[str, ...]
    framed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where tensors are taken: one layer of one kind.

    Parameters
    ----------
    kind : str
        ``"activations"``, ``"inputs"``, ``"weights"`` or ``"gradients"``.
    layer : str
        Canonical dotted path.
    shape : tuple of int or None
        Shape of the tensor; None until it is seen.
    dtype : str
        dtype of the tensor, as ``"float32"`` or ``"bfloat16"``; empty until it is seen.
    batched : bool
        Whether the leading axis counts samples.
    samples : int or None
        Leading samples that are asked for; None: all.
    layout : str or None
        One letter an axis.
    original : str
        The framework's own name.
    aliases : tuple of str
        Further names of the same tensor.
    tiers : Tiers
        What may be taken here.
    piece : Piece or None
        Where the tensor lies in one that is spread over ranks.
    """

    kind: str
    layer: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    batched: bool = False
    samples: int | None = None
    layout: str | None = None
    original: str = ""
    aliases: tuple[str, ...] = ()
    tiers: Tiers = EVERYTHING
    piece: Piece | None = None

    @property
    def of_parameter(self) -> bool:
        """Whether it is a weight or a gradient, and not something of a forward pass."""
        return self.kind in ("weights", "gradients")


class Slot(Protocol):
    """Memory of one capture on the host."""

    @property
    def memory(self) -> npt.NDArray[Any]:
        """Its bytes, uint8, shape (nbytes,); valid after ``Stage.wait``."""


class Fence(Protocol):
    """What marks, in the order of the device's work, that a step's copies are done.

    It owns what must stay alive until then.
    """


class Stage(Protocol[Tin]):
    """Device to host."""

    @property
    def apart(self) -> str:
        """What a capture takes besides the time in `put`, for people; empty: nothing."""

    def dtype(self, tensor: Tin) -> str:
        """Return the name of a tensor's dtype, as ``"float32"``."""

    def slot(self, nbytes: int) -> Slot:
        """Allocate a slot for one tensor of the survey."""

    def ring(self, slots: int, nbytes: int) -> Sequence[Slot]:
        """Allocate the slots of the ring, in the memory to which copies are fastest."""

    def put(self, slot: Slot, order: Order, tensor: Tin) -> None:
        """Extract and copy on the current stream; never waits for the device."""

    def fence(self) -> Fence:
        """Mark the end of a step."""

    def wait(self, fence: Fence) -> None:
        """Wait until everything before the fence is in its slot."""


class Tap(Protocol[Tout]):
    """What watches a model for one framework."""

    def sites(self) -> Sequence[Site]:
        """Return the sites that are known before anything ran."""

    def install(self, recorder: Watcher[Tout]) -> None:
        """Start to watch."""

    def remove(self) -> None:
        """Stop to watch; the model is as it was before."""


class Watcher(Protocol[Tin]):
    """What a tap drives: the recorder, seen from the tap."""

    on: bool
    paused: bool

    @property
    def step(self) -> int:
        """The step that was begun last."""

    @property
    def tiers(self) -> Tiers:
        """What is due at this step."""

    @property
    def surveying(self) -> bool:
        """Whether this step is the survey, at which every site must show itself."""

    def begin(self, step: int) -> None:
        """Say that a step starts."""

    def discover(self, site: Site) -> int | None:
        """Return the number of a site that was not known at attach, None when it comes too late."""

    def take(self, site: int, tensor: Tin) -> None:
        """Take what is due of a tensor."""

    def forget(self, kind: str) -> None:
        """Drop what was taken of a kind in this step; it is taken again."""

    def skip(self, site: int, reason: str) -> None:
        """Say why a tensor that is due is not taken."""

    def trip(self, where: str, error: Exception) -> None:
        """Tell of an exception inside a tap, which must not reach training."""

    def end(self) -> None:
        """Say that a step is over."""
