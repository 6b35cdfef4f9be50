"""Shards: the only place that knows which part of a tensor that is spread over ranks lies here.

Parameters of FSDP2 and of tensor parallelism are DTensors: each rank of a mesh holds a local piece,
which is written as it is. Nothing here talks to another rank. The arithmetic is our own, since
PyTorch's is private; a tensor whose piece is not as long as it says is left out, and it is said.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch

from filmstrip.capture._budget import fit, ladder
from filmstrip.capture._seams import Piece, Site
from filmstrip.capture.pytorch._stage import unreadable

_LOGGER = logging.getLogger("filmstrip")
_MODULES = ("torch.distributed.tensor", "torch.distributed._tensor")  # the second before torch 2.5


def sharded(tensor: object) -> bool:
    """Return whether a tensor is spread over ranks.

    Examples
    --------
    >>> sharded(torch.ones(2))
    False
    """
    kinds = [kind for name in _MODULES if (kind := getattr(sys.modules.get(name), "DTensor", None))]
    return isinstance(tensor, tuple(kinds))


@dataclass(frozen=True, slots=True)
class Split:
    """How one axis of a mesh cuts a tensor: its axis, and into how many strides it is cut before.

    FSDP2 cuts what tensor parallelism has cut already along the same axis, although its axis of the
    mesh comes first; such a cut has as many strides as the later one has parts.
    """

    axis: int
    strides: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor is cut over a mesh.

    Parameters
    ----------
    shape : tuple of int
        Shape of all of it.
    mesh : tuple of int
        Lengths of the mesh's axes.
    splits : tuple of Split or None
        One for each axis of the mesh; None: its ranks hold the same.

    Examples
    --------
    >>> cut = Cut((7, 2), (2,), (Split(0),))
    >>> cut.piece((0,)), cut.piece((1,))
    (((0, 0), (4, 2)), ((4, 0), (3, 2)))
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    splits: tuple[Split | None, ...]

    def piece(self, coordinate: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return offset and shape of the piece at a place of the mesh, None if it has gaps."""
        offset, shape = [], []
        for axis, length in enumerate(self.shape):
            held: Any = range(length)  # a slice of it costs nothing, however long it is
            for parts, here, split in zip(self.mesh, coordinate, self.splits, strict=True):
                if split is not None and split.axis == axis:
                    strides = [_chunk(held, split.strides, n) for n in range(split.strides)]
                    chunks = [_chunk(stride, parts, here) for stride in strides]
                    held = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
            if len(held) and held[-1] - held[0] + 1 != len(held):
                return None
            offset.append(int(held[0]) if len(held) else 0)
            shape.append(len(held))
        return tuple(offset), tuple(shape)

    def owners(self) -> Iterable[tuple[int, ...]]:
        """Yield the places of the mesh that write: of those that hold the same, the first."""
        first = [range(n if split else 1) for n, split in zip(self.mesh, self.splits, strict=True)]
        return itertools.product(*first)


def _chunk(held: Any, parts: int, number: int) -> Any:
    """Return one part, cut as `torch.chunk` does: equal lengths, of which the last may be short."""
    length = -(-len(held) // parts)
    return held[number * length : (number + 1) * length]


@lru_cache(maxsize=4096)
def _pieces(cut: Cut) -> Mapping[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]] | None]:
    """Return the pieces of all places of the mesh that write."""
    return {place: cut.piece(place) for place in cut.owners()}


@dataclass(slots=True)
class Sharding:
    """How one parameter is spread over ranks.

    Parameters
    ----------
    tensor : DTensor
        The parameter.

    Attributes
    ----------
    ranks : tuple of int
        Ranks of its mesh.
    mine : bool
        Whether this rank writes a piece of it.
    writers : tuple of int
        Ranks that do.
    piece : Piece or None
        What lies here; None when that is all of it.
    problem : str or None
        Why it cannot be kept.
    largest : tuple of int
        Shape of the largest piece of any rank.
    """

    tensor: Any
    ranks: tuple[int, ...] = ()
    mine: bool = False
    writers: tuple[int, ...] = ()
    piece: Piece | None = None
    problem: str | None = None
    largest: tuple[int, ...] = ()
    _placements: tuple[Any, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        mesh, self._placements = self.tensor.device_mesh, tuple(self.tensor.placements)
        self.ranks = tuple(mesh.mesh.flatten().tolist())
        if any(placement.is_partial() for placement in self._placements):
            self.problem = _partial(self._placements)
            return
        cut = Cut(
            tuple(self.tensor.shape), tuple(mesh.mesh.shape), tuple(map(_split, self._placements))
        )
        pieces = _pieces(cut)
        shapes = [piece[1] for piece in pieces.values() if piece is not None]
        here = mesh.get_coordinate()
        local = tuple(local_of(self.tensor).shape)
        if here is not None:
            piece = cut.piece(here)
            if piece is None or piece[1] != local:
                self.problem = (
                    f"are spread as {_words(self._placements)} in pieces of {local} that "
                    "do not lie in one place"
                )
                return
            self._settle(piece, tuple(here) in pieces)
        self.largest = max(shapes, key=prod, default=())
        self.writers = tuple(
            int(mesh.mesh[place]) for place, piece in pieces.items() if piece and _holds(piece[1])
        )

    def _settle(self, piece: tuple[tuple[int, ...], tuple[int, ...]], first: bool) -> None:
        offset, shape = piece
        self.mine = first and _holds(shape)
        if shape != tuple(self.tensor.shape):
            mesh = self.tensor.device_mesh
            names = mesh.mesh_dim_names or tuple(f"axis{n}" for n in range(mesh.mesh.ndim))
            self.piece = Piece(
                global_shape=tuple(self.tensor.shape),
                offset=offset,
                mesh=tuple(f"{n}={k}" for n, k in zip(names, mesh.mesh.shape, strict=True)),
                placements=tuple(map(_word, self._placements)),
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of the tensor that are cut, one for each axis of the mesh that cuts it."""
        splits = map(_split, self._placements)
        return tuple(split.axis for split in splits if split is not None)

    def current(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """Return the sharded parameter, while its module may hold all of it for a forward pass."""
        if sharded(tensor):
            self.tensor = tensor
        return None if tensor is None else self.tensor

    def local(self, tensor: torch.Tensor) -> tuple[torch.Tensor, str | None]:
        """Return what lies here of the parameter or its gradient, or why that cannot be kept."""
        if not sharded(tensor):
            return tensor, "are no longer spread over ranks as they were at attach"
        placements = tuple(tensor.placements)  # type: ignore[attr-defined]  # it is a DTensor
        if placements != self._placements:
            if any(placement.is_partial() for placement in placements):
                return tensor, _partial(placements)
            return tensor, (
                f"are spread as {_words(placements)}, and were as {_words(self._placements)} at "
                "attach"
            )
        return local_of(tensor), None


def local_of(tensor: Any) -> torch.Tensor:
    """Return the local piece of a tensor that is spread over ranks."""
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()
    return local


@dataclass(slots=True)
class SpreadOutputs:
    """Which outputs that are spread over ranks are kept, as all ranks decide it without asking.

    A frame holds the leading samples of every piece. Where the samples themselves are spread, or
    the pieces of a capture take too much, there is none, and statistics are all.

    Parameters
    ----------
    samples : int
        Leading samples kept in a frame.
    budget : int
        Bytes that the pieces of a capture may take on any rank.
    """

    samples: int
    budget: int
    _known: dict[object, Sharding] = field(default_factory=dict, repr=False)

    def part(self, key: object, tensor: Any) -> tuple[torch.Tensor, Piece | None, str | None]:
        """Return what lies here of an output, where in all of it, and why it cannot be kept.

        Parameters
        ----------
        key : object
            Tells the output from others; all of a key are spread alike.
        tensor : DTensor

        Returns
        -------
        local : torch.Tensor
        piece : Piece or None
            None where this rank writes nothing of it.
        reason : str or None
        """
        sharding = self._known.get(key)
        if sharding is None:
            sharding = self._known[key] = Sharding(tensor)
            self._settle(sharding)
        if sharding.problem is not None:
            return tensor, None, sharding.problem
        local, reason = sharding.local(tensor)
        if reason is None:
            local, reason = here(local)
        ours = sharding.mine and 0 in sharding.ranks  # or it is of another replica of the model
        return local, sharding.piece if ours else None, reason

    def _settle(self, sharding: Sharding) -> None:
        """Cut a piece to the samples that are kept."""
        if sharding.piece is None:
            return
        whole = sharding.piece.global_shape
        kept = min(self.samples, whole[0])
        nbytes = kept * prod(sharding.largest[1:]) * sharding.tensor.element_size()
        framed = 0 not in sharding.axes and nbytes <= self.budget
        self.budget -= nbytes if framed else 0
        sharding.piece = replace(
            sharding.piece,
            global_shape=(kept, *whole[1:]) if framed else whole,
            framed=framed,
        )


def scattered(tensor: object) -> bool:
    """Return whether ranks hold different parts of a tensor, or terms of it.

    Examples
    --------
    >>> scattered(torch.ones(2))
    False
    """
    return sharded(tensor) and not all(p.is_replicate() for p in tensor.placements)  # type: ignore[attr-defined]


def here(tensor: torch.Tensor) -> tuple[torch.Tensor, str | None]:
    """Return an output as it lies here, or why it cannot be read; ordinary ones as they are.

    One that another rank's part is still on its way to is waited for as whoever uses it next would;
    one that is spread over ranks is not kept.

    Examples
    --------
    >>> here(torch.ones(2))
    (tensor([1., 1.]), None)
    """
    if sharded(tensor):
        placements = tuple(tensor.placements)  # type: ignore[attr-defined]  # it is a DTensor
        if any(placement.is_partial() for placement in placements):
            return tensor, _partial(placements)
        if not all(placement.is_replicate() for placement in placements):
            return tensor, (
                f"are spread over ranks as {_words(placements)}; name the enclosing module in "
                "layers to see its output"
            )
        tensor = local_of(tensor)
    if type(tensor).__name__ == "AsyncCollectiveTensor":
        with torch.no_grad():
            tensor = tensor.wait()  # type: ignore[attr-defined]
    return tensor, unreadable(tensor)


def _split(placement: Any) -> Split | None:
    axis = getattr(placement, "dim", None)
    return None if axis is None else Split(axis, getattr(placement, "split_factor", 1))


def _holds(shape: Sequence[int]) -> bool:
    return 0 not in shape


def _word(placement: Any) -> str:
    return str(repr(placement)).replace("dim=", "").replace("()", "")


def _words(placements: Iterable[Any]) -> str:
    return ", ".join(map(_word, placements))


def _partial(placements: Iterable[Any]) -> str:
    return (
        f"are sums that are not made yet ({_words(placements)}): every rank has a term of its own, "
        "and capture never waits for other ranks"
    )


def agreed(
    shardings: Sequence[Sharding], *, kinds: Sequence[str], budget: int, dtype: str | None
) -> None:
    """Decide which pieces have frames, from nothing but what all ranks know alike.

    Parameters
    ----------
    shardings : sequence of Sharding
        Every sharded parameter that is watched, whoever writes it.
    kinds : sequence of str
        Kinds that are taken.
    budget : int
        Bytes that the pieces of a capture may take on any rank.
    dtype : str or None
        dtype that frames are converted to.
    """
    ladders = []
    for sharding in shardings:
        name = str(sharding.tensor.dtype).removeprefix("torch.")
        site = Site(kind="weights", layer="", shape=sharding.largest, dtype=name)
        copies = ("weights" in kinds) + ("gradients" in kinds and sharding.tensor.requires_grad)
        whole = ladder(site, dtype=dtype)[:1]  # of weights and gradients both are kept, or none
        ladders.append([replace(take, shape=(copies, *take.shape)) for take in whole])
    for sharding, take in zip(shardings, fit(ladders, budget), strict=True):
        if sharding.piece is not None:
            sharding.piece = replace(sharding.piece, framed=take is not None)
