"""The survey: the only place that takes from tensors whose shapes were not known before.

Until all shapes are known there is no slot. Each tensor goes into a small one of its own, as fine
as the budget allows so far; whenever the sum is twice the budget, as much as the slots that follow,
what was taken is made coarser. Not sooner, or a large model would be fitted anew for every tensor.
At the end everything moves into a slot of the ring, so that the step of the survey is captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from filmstrip.capture._budget import (
    COUNT_BYTES,
    VALUE_BYTES,
    Blueprint,
    Order,
    Take,
    blueprint,
    fit_sites,
    ladder,
    total,
)
from filmstrip.capture._schedule import Tiers
from filmstrip.capture._seams import Site, Slot, Stage, T

Bytes = npt.NDArray[Any]
_NUMBERS = VALUE_BYTES + COUNT_BYTES  # statistics and histogram, in front of a frame


@dataclass(slots=True)
class _Piece:
    """What was taken of one site."""

    order: Order
    slot: Slot
    frame: Bytes | None = None  # made coarser, so that it no longer lies in the slot


class Survey(Generic[T]):
    """One due step without a slot.

    Parameters
    ----------
    stage : Stage
        Copies.
    budget : int
        Bytes that the frames of a capture may take.
    dtype : str or None
        dtype that floating frames are converted to.
    parameters : int or None
        Bytes of the budget that weights and gradients have to themselves; see `fit_sites`. May be
        set until `plan` is called.
    tiers : Tiers
        What is due at this step.
    """

    def __init__(
        self,
        stage: Stage[T],
        *,
        budget: int,
        dtype: str | None,
        parameters: int | None,
        tiers: Tiers,
    ) -> None:
        self._stage, self._budget, self._dtype, self._tiers = stage, budget, dtype, tiers
        self.parameters = parameters
        self._sites: dict[int, Site] = {}
        self._pieces: dict[int, _Piece] = {}
        self._ladders: dict[int, list[Take]] = {}
        self._takes: dict[int, Take | None] = {}
        self._total = 0
        self._refused: dict[bool, int] = {}  # bytes that are too many, by whether they are outputs

    def take(self, number: int, site: Site, tensor: T) -> int:
        """Take what is due of a tensor, whose shape its site has by now; return samples kept."""
        self._sites[number] = site
        self._ladders[number] = ladder(site, dtype=self._dtype)
        take = self._takes[number] = self._finest(number)
        self._total += 0 if take is None else take.nbytes
        if self._total > 2 * self._budget:
            self._lower()
            take = self._takes[number]
        order = _alone(number, site, take).only(self._tiers)
        if order is not None:
            slot = self._stage.slot(_NUMBERS + (take.nbytes if take is not None else 0))
            self._stage.put(slot, order, tensor)
            self._pieces[number] = _Piece(order, slot)
        return take.samples or 0 if take is not None else 0

    def _finest(self, number: int) -> Take | None:
        """Return the finest take that was not refused to others, as more sites allow only less."""
        whole = self._sites[number].piece is not None
        most = inf if whole else self._refused.get(self._apart(number), inf)
        return next((take for take in self._ladders[number] if take.nbytes < most), None)

    def _apart(self, number: int) -> bool:
        """Return whether a site does not share the budget with parameters."""
        return self.parameters is not None and not self._sites[number].of_parameter

    def _lower(self) -> None:
        """Fit what is known so far, and make coarser what was taken already."""
        self._takes = self._fitted()
        self._total = total(self._takes.values())
        self._stage.wait(self._stage.fence())
        for number, piece in self._pieces.items():
            self._coarsen(piece, self._takes[number])
        for number, take in self._takes.items():
            kept = 0 if take is None else take.nbytes
            finer = [rung.nbytes for rung in self._ladders[number] if rung.nbytes > kept]
            if finer and self._sites[number].piece is None:
                apart = self._apart(number)
                self._refused[apart] = min(*finer, self._refused.get(apart, finer[-1]))

    def _fitted(self) -> dict[int, Take | None]:
        takes = fit_sites(
            list(self._sites.values()),
            list(self._ladders.values()),
            self._budget,
            parameters=self.parameters,
        )
        return dict(zip(self._ladders, takes, strict=True))

    def _coarsen(self, piece: _Piece, take: Take | None) -> None:
        old = piece.order.take
        if old is None or take == old:
            return
        if take is not None:
            piece.frame = coarser(_frame(piece), old, take)
            piece.order = replace(piece.order, take=take)
        else:
            piece.frame = None
            piece.order = replace(piece.order, take=None, frame=None)
        if len(piece.slot.memory) > _NUMBERS:  # the memory of the finer frame goes back
            small = self._stage.slot(_NUMBERS)
            small.memory[:] = piece.slot.memory[:_NUMBERS]
            piece.slot = small

    def adopt(
        self, plan: Blueprint, orders: Sequence[Order | None], taken: Iterable[int], slot: Slot
    ) -> None:
        """Keep a layout that has only become too small, and what a step took by it into a slot."""
        for number, (site, order) in enumerate(zip(plan.sites, plan.orders, strict=True)):
            self._sites[number] = site
            take = None if order is None else order.take
            self._ladders[number] = [] if take is None else [take]
        for number in taken:
            if number < len(orders) and (order := orders[number]) is not None:
                self._pieces[number] = _Piece(order, slot)

    def plan(self, sites: Sequence[Site]) -> Blueprint:
        """Return the layout of the slots of all captures to come.

        Parameters
        ----------
        sites : sequence of Site
            All of them, by number. A site of which nothing came yet has its place if its shape is
            known, as that of a parameter without a gradient.
        """
        for number, site in enumerate(sites):
            if number not in self._ladders:
                self._sites[number] = site
                self._ladders[number] = ladder(site, dtype=self._dtype)
        takes = self._fitted()
        for number, piece in self._pieces.items():
            self._coarsen(piece, takes[number])
        return blueprint(sites, [takes[number] for number in range(len(sites))])

    def move(self, plan: Blueprint, memory: Bytes) -> None:
        """Copy what was taken into a slot's memory. The stage must have been waited for."""
        for number, piece in self._pieces.items():
            order = plan.orders[number]
            if order is None:
                continue
            if order.frame is not None and piece.order.take is not None:
                source = _frame(piece).reshape(-1).view(np.uint8)
                memory[order.frame : order.frame + source.size] = source
            for size, source_at, target_at in (
                (VALUE_BYTES, piece.order.values, order.values),
                (COUNT_BYTES, piece.order.counts, order.counts),
            ):
                if source_at is not None and target_at is not None:
                    memory[target_at : target_at + size] = piece.slot.memory[
                        source_at : source_at + size
                    ]


def _alone(number: int, site: Site, take: Take | None) -> Order:
    """Return the order of a site that has a slot to itself: statistics, histogram, frame."""
    assert site.shape is not None
    statistics = site.tiers.statistics
    return Order(
        number,
        site.shape,
        take,
        frame=_NUMBERS if take is not None else None,
        values=0 if statistics else None,
        counts=VALUE_BYTES if statistics and site.tiers.histograms else None,
    )


def _frame(piece: _Piece) -> Bytes:
    take, start = piece.order.take, piece.order.frame
    assert take is not None
    assert start is not None
    if piece.frame is not None:
        return piece.frame
    return view(piece.slot.memory, start, take)


def view(memory: Bytes, start: int, take: Take) -> Bytes:
    """Return a frame inside a slot's memory; bfloat16 as uint16 bits.

    Examples
    --------
    >>> view(np.zeros(64, np.uint8), 0, Take((2, 3), "bfloat16")).dtype
    dtype('uint16')
    """
    dtype = np.dtype("uint16" if take.dtype == "bfloat16" else take.dtype)
    return memory[start : start + take.nbytes].view(dtype).reshape(take.shape)


def coarser(frame: Bytes, old: Take, new: Take) -> Bytes:
    """Return a frame as a coarser take of the same ladder would have had it.

    Examples
    --------
    >>> fine, coarse = Take((4,), "float32"), Take((2,), "float32", stride=2)
    >>> coarser(np.arange(4, dtype=np.float32), fine, coarse)
    array([0., 2.], dtype=float32)
    """
    if old.samples != new.samples:
        frame = frame[: new.samples]
    if old.stride != new.stride:
        index: list[slice] = [slice(None)] * frame.ndim
        index[new.axis] = slice(None, None, new.stride // old.stride)
        frame = frame[tuple(index)]
    if old.dtype != new.dtype:
        frame = _halve(np.ascontiguousarray(frame, dtype=np.float32))
    return frame.copy()


def _halve(frame: Bytes) -> Bytes:
    """Round float32 to the bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = frame.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    high = np.where(np.isnan(frame), np.uint32(0x7FC00000), rounded) >> np.uint32(16)
    return high.astype(np.uint16)
