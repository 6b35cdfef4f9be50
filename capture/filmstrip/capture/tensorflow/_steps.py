"""Steps: the only place that runs train steps, with taps where something is due."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from filmstrip.capture._clock import Clock, StepLike
from filmstrip.capture._schedule import EVERYTHING, Tiers
from filmstrip.capture._seams import Site, Watcher
from filmstrip.capture._settings import Settings
from filmstrip.capture.keras._layers import Layer, Variable
from filmstrip.capture.keras._layout import Layouts, variable_layout
from filmstrip.capture.tensorflow._stage import HeldStage
from filmstrip.capture.tensorflow._taps import Point, Taps

R = TypeVar("R")
_COMPILING = re.compile(r"compil|XLA", re.IGNORECASE)
_UNREADABLE = (tf.string, tf.variant, tf.resource)


class Steps:
    """Runs one train step after the other.

    Parameters
    ----------
    taps : Taps
        Note what captured steps do.
    stage : HeldStage
        Holds it.
    settings : Settings
        Micro-batches and samples.
    step : int, callable or None
        See `Clock`.
    parts, part : int
        Calls that make one step of the optimizer, and how many of them were made before.
    probed : bool
        Whether a probe gives the frames of activations.
    together : bool
        Whether several workers train together. Their collectives must be those of the same graph,
        so that steps have taps by the schedule alone, whatever a worker can record.
    """

    def __init__(
        self,
        taps: Taps,
        stage: HeldStage,
        *,
        settings: Settings,
        step: StepLike,
        parts: int = 1,
        part: int = 0,
        probed: bool = False,
        together: bool = False,
    ) -> None:
        self._taps, self._stage, self._settings = taps, stage, settings
        self._step, self._parts, self._probed = step, parts, probed
        self._part = part
        self._schedule = settings.schedule if together else None
        self._sites: dict[tuple[Point, int], int | None] = {}
        self._names: set[tuple[bool, str]] = set()
        self._layouts = Layouts()
        self._given_up = False

    def sites(self) -> Sequence[Site]:
        """Return none: all come with the survey, since a model may not be built before."""
        return ()

    def install(self, recorder: Watcher[Any]) -> None:
        """Begin the first step."""
        self._recorder = recorder
        self.clock = Clock(recorder, self._step)
        self.clock.start()

    def remove(self) -> None:
        """Capture nothing any more; what runs steps here goes on to do so."""
        self._given_up = True

    @property
    def unfired(self) -> list[str]:
        """Layers of which no output came yet."""
        fired = {point.owner.name for point, _ in self._sites if point.kind == "activations"}
        return [layer.name for layer in self._taps.selection.layers if layer.name not in fired]

    def run(self, plain: Callable[[], R], captured: Callable[[], tuple[R, Mapping[int, Any]]]) -> R:
        """Run a step, and take what is due.

        Parameters
        ----------
        plain : callable
            Runs it.
        captured : callable
            Runs it with taps, and returns besides what they noted.
        """
        if self._part == 0:
            self._stage.drop()
            self.clock.enter_pass()
        tensors: Mapping[int, Any] = {}
        try:
            if self._wanted():
                result, tensors = self._try(plain, captured)
            else:
                result = plain()
        except BaseException:
            self.clock.entered = False  # there was no such step
            raise
        try:
            if self._recorder.on:
                self._take(tensors)
        except Exception as error:
            self._recorder.trip("what a step did could not be taken", error)
        self._part = (self._part + 1) % self._parts
        if self._part == 0:
            self.clock.advance()
        return result

    @property
    def whole(self) -> bool:
        """Whether every call is a step."""
        return self._parts == 1

    def passed(self, steps: int) -> None:
        """Note that steps were run elsewhere, of which nothing was due."""
        for _ in range(steps):
            self.clock.advance()

    def _wanted(self) -> bool:
        """Return whether this part of a step is run with taps."""
        on = any(self._schedule.due(self.clock.step)) if self._schedule else self._recorder.on
        return on and not self._given_up and self._has_part()

    def _has_part(self) -> bool:
        """Return whether something is taken from this part of a step; the last has gradients."""
        first, last = self._part == 0, self._part == self._parts - 1
        return last or {"first": first, "last": False, "all": True}[self._settings.micro_batches]

    def _has_outputs(self) -> bool:
        first, last = self._part == 0, self._part == self._parts - 1
        return {"first": first, "last": last, "all": True}[self._settings.micro_batches]

    def _try(
        self, plain: Callable[[], R], captured: Callable[[], tuple[R, Mapping[int, Any]]]
    ) -> tuple[R, Mapping[int, Any]]:
        """Run a captured step; one that cannot be traced, or has no memory, makes way."""
        traces = self._taps.traces
        try:
            return captured()
        except Exception as error:
            traced = traces != self._taps.traces
            if not isinstance(error, tf.errors.ResourceExhaustedError) and (
                not traced or _while_running(error)
            ):
                raise
            result = plain()  # raises it again, if capture is not to blame
            self._given_up = True
            self._recorder.trip("the step could not be run with taps; capture ends here", error)
            return result, {}

    def _take(self, tensors: Mapping[int, Any]) -> None:
        points = self._taps.points
        calls: dict[str, int] = {}
        for number in tensors:
            point = points[number]
            calls[point.owner.name] = max(calls.get(point.owner.name, 0), point.call + 1)
        for number in sorted(tensors):
            point, tensor = points[number], tensors[number]
            if point.kind == "gradients" and self._part < self._parts - 1:
                continue
            if point.kind == "activations" and not (point.probing or self._has_outputs()):
                continue
            part = 0
            if self._settings.micro_batches == "all" and point.kind == "activations":
                part = 0 if point.probing else self._part
            key = (point, part)
            if key not in self._sites:
                call = point.call + part * calls[point.owner.name]
                self._sites[key] = self._recorder.discover(self._site(point, call, tensor))
            site = self._sites[key]
            if site is None:
                continue
            if tensor.dtype in _UNREADABLE:
                self._recorder.skip(site, f"are of dtype {tensor.dtype.name}")
            else:
                self._recorder.take(site, tensor)

    def _site(self, point: Point, call: int, tensor: Any) -> Site:
        owner, rank = point.owner, len(tensor.shape)
        if isinstance(owner, Variable):
            return Site(
                kind=point.kind,
                layer=owner.name,
                layout=variable_layout(owner.owner, owner.name, rank),
                original=owner.original,
                aliases=owner.aliases,
            )
        tiers = EVERYTHING
        if self._probed:
            tiers = Tiers(frames=True) if point.probing else Tiers(False, True, True)
        return Site(
            kind="activations",
            layer=self._unique(owner, point, call),
            batched=rank > 0,
            samples=None if point.probing else self._settings.samples,
            layout=self._layouts.of(_keras_or_none(owner.module), tensor.shape),
            original=owner.original,
            tiers=tiers,
        )

    def _unique(self, layer: Layer, point: Point, call: int) -> str:
        """Return a name; that of an output ``x.0`` must not pass for a layer of that name."""
        name = layer.name + (f"#{call}" if call else "") + point.leaf
        while (point.probing, name) in self._names:
            name += "'"
        self._names.add((point.probing, name))
        return name


def _while_running(error: Exception) -> bool:
    """Return whether an error came of what a graph did, and not of tracing or compiling it."""
    return isinstance(error, tf.errors.OpError) and not _COMPILING.search(error.message)


def _keras_or_none(module: Any) -> Any:
    return None if isinstance(module, tf.Module) else module
