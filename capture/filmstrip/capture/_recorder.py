"""The recorder: all that an adapter calls while a model trains, in its threads.

Most models have one. Where modules run in several, or one thread steps while another computes,
what they hand in is taken one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from filmstrip.capture._budget import Blueprint, Order
from filmstrip.capture._ledger import Ledger
from filmstrip.capture._pump import Pump
from filmstrip.capture._row import LossJob, Row, RowJob, Sink
from filmstrip.capture._schedule import NOTHING, Pace, Schedule, Thrift, Tiers
from filmstrip.capture._seams import Fence, Site, Slot, Stage, T
from filmstrip.capture._survey import Survey

_SLOTS = 2  # one being filled while the other is written
_PASSES = 2  # that a dry run waits for outputs; the first may be one that only builds the model
_SLOW = "writing was slower than training"
_SILENT = "nothing came of what is captured"


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a recorder.

    Parameters
    ----------
    capture_bytes : int
        Bytes of frames a capture may hold.
    dtype : str or None
        dtype that floating frames are converted to.
    block : float
        Seconds to wait for a free slot before a due step is dropped.
    parameter_bytes : int or None
        Bytes of them that weights and gradients have to themselves; None: everybody shares.
    overhead : float or None
        Share of the time that capture may cost.
    later : bool
        Whether outputs come from passes between the steps, so that a step may well have none.
    dry : bool
        Whether only the survey is made, and nothing handed over.
    """

    capture_bytes: int
    dtype: str | None = None
    parameter_bytes: int | None = None
    block: float = 0.0
    overhead: float | None = None
    later: bool = False
    dry: bool = False


class Recorder(Generic[T]):
    """Takes what is due, step by step, and hands it over.

    Parameters
    ----------
    schedule : Schedule
        What is due when.
    limits : Limits
        Bounds.
    stage : Stage
        Copies from the device.
    pump : Pump
        Carries rows to the sink.
    sink : Sink
        Writes them.
    ledger : Ledger
        Counts losses.

    Attributes
    ----------
    on : bool
        Whether a tap has anything to do; the only thing that it reads when nothing is due.
    tiers : Tiers
        What is due at this step.
    ended : bool
        Whether a step ended since attach.
    awaited : frozenset of str
        Kinds that are to come and did not yet. The layout is extended by them when they do.
    surveyed : callable
        Called with the layout of a capture, and the seconds that this one cost without what is done
        once: at the survey, and when the layout was extended.
    silence : callable
        Returns in words why nothing may have come.

    Notes
    -----
    No method raises: a failure is counted, logged once, and raised by ``Capture.close``.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        limits: Limits,
        stage: Stage[T],
        pump: Pump,
        sink: Sink,
        ledger: Ledger,
    ) -> None:
        self.on = False
        self.paused = False
        self.ended = False
        self.step = 0
        self.sites: list[Site] = []
        self.awaited: frozenset[str] = frozenset()
        self.surveyed: Callable[[Blueprint, float], None] = lambda plan, seconds: None
        self.silence: Callable[[], str] = lambda: _SILENT
        self._schedule, self._limits, self._stage = schedule, limits, stage
        self._pump, self._sink, self._ledger = pump, sink, ledger
        self._thrift = Thrift(limits.overhead, began=time.perf_counter())
        self._plan: Blueprint | None = None
        self._survey: Survey[T] | None = None
        self._pace = Pace()
        self._tries = 0
        self.tiers = NOTHING
        self._last = -1
        self._orders: Sequence[Order | None] = ()
        self._by_tiers: dict[Tiers, Sequence[Order | None]] = {}
        self._slots: list[Slot] = []
        self._slot: int | None = None
        self._taken: dict[int, int] = {}
        self._loss = ""
        self._seconds = 0.0
        self._closed = False
        self._lock = threading.RLock()

    @property
    def fresh(self) -> bool:
        """Whether nothing was handed over yet."""
        return self._last < 0

    def due(self, step: int) -> Tiers:
        """Return what will be taken at a step, as things stand."""
        if self.paused or self._closed or self._ledger.full:
            return NOTHING
        tiers = self._schedule.due(step)
        return tiers._replace(frames=False) if self._ledger.frames_over else tiers

    def begin(self, step: int) -> None:
        """Arm what is due at a step, or nothing."""
        self.step = step
        if self._closed:  # in a forked process nobody may ever unlock what was locked
            self.on, self.tiers = False, NOTHING
            return
        with self._lock:
            self._begin(step)

    def _begin(self, step: int) -> None:
        started = time.perf_counter()
        try:
            self._give_up()
            self.tiers = self.due(step) if step > self._last else self._repeated(step)
            self.on = any(self.tiers) and self._arm()
        except Exception as error:
            self.trip(f"step {step} could not be armed", error)
        self._seconds = time.perf_counter() - started

    def _repeated(self, step: int) -> Tiers:
        """Take nothing of a step that was written already; steps of a run only rise."""
        if step < self._last and any(self.due(step)):
            self._ledger.lose(
                "skipped",
                "falling",
                f"the step fell from {self._last} to {step}; "
                f"nothing is kept until it is behind {self._last}",
            )
        return NOTHING

    def _give_up(self) -> None:
        """Leave a step that was begun and never ended."""
        self.on, self._survey, self._taken, self._loss = False, None, {}, ""
        if self._slot is not None:
            self._pump.disarm(self._slot)
            self._slot = None

    def _arm(self) -> bool:
        if self._thrift.exceeded(now=time.perf_counter()):
            self._loss = "thinned"
            return False
        if self._plan is None:
            self._survey = self._new_survey(self._limits.parameter_bytes)
            return True
        self._slot = self._pump.arm(timeout=self._limits.block)
        if self._slot is None:
            self._loss = "dropped"
            return False
        if self.tiers not in self._by_tiers:
            orders = [order and order.only(self.tiers) for order in self._plan.orders]
            self._by_tiers[self.tiers] = orders
        self._orders = self._by_tiers[self.tiers]
        return True

    def _new_survey(self, parameter_bytes: int | None) -> Survey[T]:
        return Survey(
            self._stage,
            budget=self._limits.capture_bytes,
            dtype=self._limits.dtype,
            parameters=parameter_bytes,
            tiers=self.tiers,
        )

    def discover(self, site: Site) -> int | None:
        """Return the number of a site that was not known at attach, None when it comes too late."""
        in_time = self._survey is not None if self._plan is None else site.kind in self.awaited
        if not in_time:
            self._ledger.lose(
                "skipped",
                f"late {site.kind} {site.layer}",
                f"{site.kind} of {site.layer!r} came after the first capture and are not kept",
            )
            return None
        self.add(site)
        return len(self.sites) - 1

    def add(self, site: Site) -> None:
        """Add a site; of what is never due, nothing is planned."""
        self.sites.append(replace(site, tiers=site.tiers & self._schedule.tiers))

    @property
    def surveying(self) -> bool:
        """Whether this step is the survey, at which every site must show itself."""
        return self.on and self._survey is not None

    def skip(self, site: int, reason: str) -> None:
        """Note why a tensor that is due is not taken."""
        if site not in self._taken:
            self._ledger.lose(
                "skipped",
                reason,
                f"{self._name(site)} {reason}; not kept at step {self.step}, nor is what is alike",
            )

    def forget(self, kind: str) -> None:
        """Drop what was taken of a kind in this step; it is taken again."""
        if self.on:
            with self._lock:
                for site in [site for site in self._taken if self.sites[site].kind == kind]:
                    del self._taken[site]

    def trip(self, where: str, error: Exception) -> None:
        """Note an exception inside a tap; one that was under way at close has nothing to lose."""
        if not self._closed:
            self._ledger.fail("errors", where, error)

    def take(self, site: int, tensor: T) -> None:
        """Take what is due of a tensor; a site is taken once a step."""
        with self._lock:
            started = time.perf_counter()
            try:
                if self.on and site not in self._taken:
                    self._take(site, tensor)
            except Exception as error:
                self.trip(f"{self._name(site)} could not be taken", error)
            self._seconds += time.perf_counter() - started

    def _take(self, site: int, tensor: T) -> None:
        plan = self._plan
        if plan is not None and not self._late(site, plan):
            self._put(site, tensor)
            return
        if plan is not None and self._survey is None:
            self._survey = self._new_survey(self._share)
        if self._survey is not None:
            self._taken[site] = self._survey.take(site, self._seen(site, tensor), tensor)

    def _late(self, site: int, plan: Blueprint) -> bool:
        """Return whether a site has no place yet in a layout that was made without its kind."""
        return site >= len(plan.sites) and self.sites[site].kind in self.awaited

    @property
    def _share(self) -> int:
        """Bytes that weights and gradients have where room is left for what is awaited."""
        share = self._limits.parameter_bytes
        return self._limits.capture_bytes // 2 if share is None else share

    def _name(self, site: int) -> str:
        return f"{self.sites[site].kind} of {self.sites[site].layer!r}"

    def _seen(self, number: int, tensor: T) -> Site:
        site = replace(
            self.sites[number],
            shape=tuple(int(length) for length in tensor.shape),
            dtype=self._stage.dtype(tensor),
        )
        self.sites[number] = site
        return site

    def _put(self, site: int, tensor: T) -> None:
        order = self._orders[site] if site < len(self._orders) else None
        if order is None:
            return
        kept = order.kept(tensor.shape)
        if kept is None:
            self._ledger.lose(
                "skipped",
                f"shape {site}",
                f"{self._name(site)} changed shape from {order.source} to {tuple(tensor.shape)} "
                f"at step {self.step}; frames of another shape are not kept",
            )
            order = order.only(Tiers(False, self.tiers.statistics, self.tiers.histograms))
            if order is None:
                return
        assert self._slot is not None
        self._stage.put(self._slots[self._slot], order, tensor)
        self._taken[site] = -1 if kept is None else kept

    def end(self) -> None:
        """End a step: hand over what was taken, or count that nothing could be."""
        self.ended = True
        if self._plan is None:
            self._pace.tick(time.perf_counter())
        if self._loss:
            self._lose(self._loss)
        if self.on:
            with self._lock:
                self._end()
                if self._limits.dry and not self._closed:
                    self._begin(self.step)

    def _end(self) -> None:
        self.on = False
        started = time.perf_counter()
        try:
            fence = self._stage.fence()
            if self._survey is not None:
                self._end_survey(self._survey, fence)
            if self._slot is not None and self._plan is not None:
                self._hand_over(self._slot, self._plan, fence, started)
        except Exception as error:
            self.trip(f"step {self.step} could not be handed over", error)
        self._survey = None

    def _lose(self, name: str) -> None:
        self._loss = ""
        self._ledger.count(name, cause=_SLOW if name == "dropped" else "")
        self._pump.submit(LossJob(self.step, self._sink))

    def _end_survey(self, survey: Survey[T], fence: Fence) -> None:
        seen = {self.sites[number].kind for number in self._taken}
        awaited = self.awaited - seen
        if self._plan is None and self._waits(seen, awaited):
            return
        seconds = self._seconds
        self._stage.wait(fence)
        if self._plan is not None:
            assert self._slot is not None
            survey.adopt(self._plan, self._orders, self._taken, self._slots[self._slot])
        elif awaited:
            survey.parameters = self._share
        self.awaited = awaited
        plan = survey.plan(self.sites)
        self.surveyed(plan, seconds)
        if self._limits.dry:
            self._closed = True
            return
        if self._slot is None:
            self._pump.provide(_SLOTS)
            self._slot = self._pump.arm(timeout=0.0)
        assert self._slot is not None
        # What is queued holds on to the memory that it lies in.
        self._slots = list(self._stage.ring(_SLOTS, plan.nbytes))
        survey.move(plan, self._slots[self._slot].memory)
        self._plan = plan
        self._by_tiers = {}

    def _waits(self, seen: set[str], awaited: frozenset[str]) -> bool:
        """Return whether the survey has to be made at a later step, and say why."""
        later = self._limits.later and bool(awaited)
        if self._limits.dry:
            self._tries += 1
            if not awaited or (self._tries == _PASSES and not later):
                return False
        elif seen:
            return False
        lost = not (later or self._limits.dry)  # where outputs come between steps, no step had any
        if lost or later:
            self._ledger.lose("dropped", _SILENT, self.silence(), int(lost), cause=_SILENT)
        if lost:
            self._pump.submit(LossJob(self.step, self._sink))
        return True

    @property
    def pace(self) -> float | None:
        """Seconds between the ends of steps before the survey, None where there were too few."""
        return self._pace.seconds

    def _hand_over(self, slot: int, plan: Blueprint, fence: Fence, started: float) -> None:
        seconds = self._seconds + time.perf_counter() - started
        if self._survey is None:  # the survey is paid once
            self._thrift.spend(seconds)
        stage = self._stage
        row = Row(
            self.step,
            self.tiers,
            plan,
            self._taken,
            self._slots[slot],
            lambda: stage.wait(fence),
            seconds,
        )
        self._slot, self._taken, self._last = None, {}, self.step
        self._pump.submit(RowJob(row, slot, self._sink))

    def leave(self) -> None:
        """Take nothing any more, and touch nothing: this process was forked from the one that may.

        No lock is taken, which somebody may have held at the fork, and no memory is let go of: to
        unlock its pages, a device would have to be asked that only the parent can speak to.
        """
        self._closed, self.on = True, False

    def close(self) -> None:
        """Take nothing any more, and let go of all memory.

        Training may be in the middle of a step, in another thread.
        """
        self.leave()
        self._survey, self._slot, self._slots = None, None, []
