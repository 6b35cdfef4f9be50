"""The budget: the only place that decides how much of a tensor is kept, and where in a slot.

Each site has a ladder of takes, coarser and coarser: the samples asked for → fewer samples → every
second, fourth, … channel → half precision → statistics only. One cap in bytes is lowered until the
frames of a capture fit; every site takes its first rung under the cap, so small layers stay whole.
Strides are powers of two, and a coarser take can always be made out of a finer one.

What several ranks hold together must be cut alike on all of them, without asking: a piece of a
sharded tensor is kept whole or not at all, which was settled at attach, and where several ranks
write, activations and parameters have a part of the budget each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from filmstrip.capture._schedule import Tiers
from filmstrip.capture._seams import Site

VALUE_BYTES = 9 * 8
COUNT_BYTES = 4096 * 8
_ALIGNMENT = 64
_LONGEST_STRIDE = 16
_ITEM_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
}
_HALVED = frozenset({"float32", "float64"})
_FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True, slots=True)
class Take:
    """What is kept of a tensor as a frame.

    Parameters
    ----------
    shape : tuple of int
        Shape of the frame.
    dtype : str
        dtype of the frame.
    samples : int or None
        Leading samples kept; None: the leading axis does not count samples.
    axis, stride : int
        Every `stride`-th index along `axis` is kept.
    wanted : int or None
        Samples that were asked for.
    """

    shape: tuple[int, ...]
    dtype: str
    samples: int | None = None
    axis: int = 0
    stride: int = 1
    wanted: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the frame."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]

    def degraded(self, source: str) -> str | None:
        """Return in words what is missing because of the budget, None when nothing is."""
        words = []
        if self.samples is not None and self.wanted is not None and self.samples < self.wanted:
            words.append(f"{self.samples} of {self.wanted} samples")
        if self.stride > 1:
            words.append(f"every {self.stride}th index of axis {self.axis}".replace("2th", "2nd"))
        if source in _HALVED and self.dtype == "bfloat16":
            words.append("half precision")
        return ", ".join(words) or None


@dataclass(frozen=True, slots=True)
class Order:
    """What the stage does with one tensor, and where in the slot the results go.

    Parameters
    ----------
    site : int
        Number of the site.
    source : tuple of int
        Shape of the tensor at the survey.
    take : Take or None
        The frame; None: no frame.
    frame, values, counts : int or None
        Offsets in bytes of the frame, the statistics (9 × float64) and the bit histogram
        (4096 × int64); None: not taken.
    """

    site: int
    source: tuple[int, ...]
    take: Take | None = None
    frame: int | None = None
    values: int | None = None
    counts: int | None = None

    def only(self, tiers: Tiers) -> Order | None:
        """Return the part of the order that is due, None when nothing is."""
        part = replace(
            self,
            take=self.take if tiers.frames else None,
            frame=self.frame if tiers.frames else None,
            values=self.values if tiers.statistics else None,
            counts=self.counts if tiers.histograms else None,
        )
        return None if part.take is None and part.values is None else part

    def kept(self, shape: Sequence[int]) -> int | None:
        """Return how many samples of a tensor the frame holds, None if its shape does not fit.

        A leading axis that counts samples may be shorter than at the survey, or longer; any other
        difference does not fit. No frame, or one without samples, answers 0.

        Examples
        --------
        >>> order = Order(0, (32, 8), take=Take((4, 8), "float32", samples=4), frame=0)
        >>> order.kept((32, 8)), order.kept((3, 8)), order.kept((32, 9))
        (4, 3, None)
        """
        if self.take is None:
            return 0
        if self.take.samples is None:
            return 0 if tuple(shape) == self.source else None
        if tuple(shape) == self.source:
            return self.take.samples
        if len(shape) != len(self.source) or tuple(shape[1:]) != self.source[1:] or shape[0] < 1:
            return None
        return min(shape[0], self.take.samples)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Where everything of a capture lies in a slot.

    Parameters
    ----------
    sites : tuple of Site
        With shapes, in the order of their numbers; sites that were never seen have none.
    orders : tuple of Order or None
        One for each site.
    nbytes : int
        Bytes of a slot.
    """

    sites: tuple[Site, ...]
    orders: tuple[Order | None, ...]
    nbytes: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of frames in a capture."""
        return total(order.take for order in self.orders if order is not None)


def storable(dtype: str) -> bool:
    """Return whether frames of a dtype can be kept.

    Examples
    --------
    >>> storable("bfloat16"), storable("float8_e4m3fn")
    (True, False)
    """
    return dtype in _ITEM_BYTES


def ladder(site: Site, *, dtype: str | None = None) -> list[Take]:
    """Return the takes of a site that has been seen, from the one asked for to the coarsest.

    Parameters
    ----------
    site : Site
        With shape and dtype.
    dtype : str, optional
        dtype that floating frames are converted to.

    Returns
    -------
    list of Take
        At least one; empty when the dtype cannot be stored or no frame may be taken.

    Examples
    --------
    >>> site = Site(kind="weights", layer="w", shape=(6, 4), dtype="float32")
    >>> [(take.shape, take.dtype) for take in ladder(site)]
    [((6, 4), 'float32'), ((3, 4), 'float32'), ((2, 4), 'float32'), ((2, 4), 'bfloat16')]
    """
    shape, kept = site.shape, site.dtype
    if shape is None or not site.tiers.frames or not storable(kept):
        return []
    if dtype is not None and kept in _FLOATING:
        kept = dtype
    if not shape:
        return [Take((), kept)]
    if site.piece is not None and not site.piece.framed:
        return []
    samples = None
    if site.batched:
        samples = shape[0] if site.samples is None else min(site.samples, shape[0])
        shape = (samples, *shape[1:])
    takes = [Take(shape, kept, samples=samples, wanted=samples)]
    if site.piece is not None:
        return takes
    while takes[-1].samples is not None and takes[-1].samples > 1:
        fewer = takes[-1].samples // 2
        takes.append(replace(takes[-1], shape=(fewer, *shape[1:]), samples=fewer))
    axis = _channels(site)
    stride = 2
    while axis is not None and stride <= min(_LONGEST_STRIDE, shape[axis]):
        thinner = list(takes[-1].shape)
        thinner[axis] = -(-shape[axis] // stride)
        takes.append(replace(takes[-1], shape=tuple(thinner), axis=axis, stride=stride))
        stride *= 2
    if kept in _HALVED:
        takes.append(replace(takes[-1], dtype="bfloat16"))
    return takes


def _channels(site: Site) -> int | None:
    """Return the axis that holds channels: of the layout, else the one behind the samples."""
    assert site.shape is not None
    axis = 1 if site.batched else 0
    for letter in "CO":
        if site.layout is not None and letter in site.layout:
            axis = site.layout.index(letter)
            break
    return axis if axis < len(site.shape) else None


def fit_sites(
    sites: Sequence[Site],
    ladders: Sequence[Sequence[Take]],
    budget: int,
    *,
    parameters: int | None = None,
) -> list[Take | None]:
    """Return what is kept of each site.

    Parameters
    ----------
    sites : sequence of Site
        In any order.
    ladders : sequence of sequences of Take
        One for each site.
    budget : int
        Bytes.
    parameters : int, optional
        Bytes of them that weights and gradients have, and nothing else. None: everybody shares.

    Returns
    -------
    list of Take or None
        One for each site; None: statistics only.

    Examples
    --------
    >>> sites = [Site(kind=kind, layer="a") for kind in ("activations", "weights")]
    >>> fit_sites(sites, [[Take((10,), "float32")], [Take((9,), "float32")]], 72, parameters=36)
    [None, Take(shape=(9,), dtype='float32', samples=None, axis=0, stride=1, wanted=None)]
    """
    if parameters is None:
        return fit(ladders, budget)
    takes: list[Take | None] = [None] * len(sites)
    for of_parameters, room in ((False, budget - parameters), (True, parameters)):
        group = [n for n, site in enumerate(sites) if site.of_parameter is of_parameters]
        for number in group:
            if sites[number].piece is not None and ladders[number]:
                takes[number] = ladders[number][0]
        left = max(0, room - total(takes[number] for number in group))
        rest = [number for number in group if sites[number].piece is None]
        for number, take in zip(rest, fit([ladders[n] for n in rest], left), strict=True):
            takes[number] = take
    return takes


def fit(ladders: Sequence[Sequence[Take]], budget: int) -> list[Take | None]:
    """Return each ladder's first rung under one cap, the highest under which the sum fits.

    Parameters
    ----------
    ladders : sequence of sequences of Take
        One for each site; empty: no frame.
    budget : int
        Bytes.

    Returns
    -------
    list of Take or None
        One for each ladder; None: statistics only.

    Examples
    --------
    >>> small, large = [Take((10,), "float32")], [Take((100,), "float32"), Take((50,), "float32")]
    >>> [take and take.nbytes for take in fit([small, large], 250)]
    [40, 200]
    """
    caps = sorted({take.nbytes for rungs in ladders for take in rungs})

    def under(cap: int) -> list[Take | None]:
        return [next((take for take in rungs if take.nbytes <= cap), None) for rungs in ladders]

    low, high = 0, len(caps)
    while low < high:
        middle = (low + high) // 2
        if total(under(caps[middle])) <= budget:
            low = middle + 1
        else:
            high = middle
    return under(caps[low - 1]) if low else [None] * len(ladders)


def total(takes: Iterable[Take | None]) -> int:
    """Return the bytes of several takes."""
    return sum(take.nbytes for take in takes if take is not None)


def blueprint(sites: Sequence[Site], takes: Sequence[Take | None]) -> Blueprint:
    """Return the layout of a slot: frames first, then statistics, then histograms.

    The statistics of one kind lie side by side, so that the writer sees them as one array.

    Examples
    --------
    >>> site = Site(kind="weights", layer="w", shape=(5,), dtype="float32")
    >>> blueprint([site], [Take((5,), "float32")]).orders[0].values
    64
    """
    offset = 0
    frames: dict[int, int] = {}
    for number, take in enumerate(takes):
        if take is not None:
            frames[number] = offset
            offset += -(-take.nbytes // _ALIGNMENT) * _ALIGNMENT
    counted = [
        n for n, site in enumerate(sites) if site.shape is not None and site.tiers.statistics
    ]
    counted.sort(key=lambda number: sites[number].kind)
    values = {number: offset + row * VALUE_BYTES for row, number in enumerate(counted)}
    offset += -(-len(counted) * VALUE_BYTES // _ALIGNMENT) * _ALIGNMENT
    counted = [number for number in counted if sites[number].tiers.histograms]
    counts = {number: offset + row * COUNT_BYTES for row, number in enumerate(counted)}
    offset += len(counted) * COUNT_BYTES
    orders = []
    for number, (site, take) in enumerate(zip(sites, takes, strict=True)):
        order = None
        if site.shape is not None and (take is not None or number in values):
            order = Order(
                number, site.shape, take, frames.get(number), values.get(number), counts.get(number)
            )
        orders.append(order)
    return Blueprint(tuple(sites), tuple(orders), offset)
