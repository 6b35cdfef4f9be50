"""The session: the only place that joins recorder, pump, sink and run, for any framework."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from filmstrip.capture import _report
from filmstrip.capture._budget import Blueprint
from filmstrip.capture._ledger import Ledger
from filmstrip.capture._pump import Job, Pump
from filmstrip.capture._recorder import Limits, Recorder
from filmstrip.capture._row import Kept, Row
from filmstrip.capture._schedule import EPOCH
from filmstrip.capture._seams import Stage, T, Tap
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import CaptureError, PlanError

if TYPE_CHECKING:
    from filmstrip.capture._sink import RunSink
    from filmstrip.store import FrameSpec

_LONGEST_BLOCK = 10.0
_LONGEST_CLOSE = 120.0
_LOGGER = logging.getLogger("filmstrip")


@dataclass(frozen=True, slots=True)
class _Scalars:
    sink: RunSink
    step: int
    values: Mapping[str, Any]
    slot: None = None

    @property
    def name(self) -> str:
        return f"a scalar of step {self.step}"

    def write(self) -> None:
        self.sink.log(self.step, {name: float(value) for name, value in self.values.items()})


@dataclass(frozen=True, slots=True)
class _Rewind:
    sink: RunSink
    step: int
    slot: None = None

    @property
    def name(self) -> str:
        return f"going back to step {self.step}"

    def write(self) -> None:
        self.sink.rewind(self.step)


@dataclass(frozen=True, slots=True)
class _Frames:
    sink: RunSink
    kind: str
    step: int
    frames: Mapping[str, tuple[Kept, FrameSpec]]
    slot: None = None

    @property
    def name(self) -> str:
        return f"{self.kind} of step {self.step}"

    def write(self) -> None:
        self.sink.whole(self.kind, self.step, self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A run that rank 0 made, for the ranks that write to it with it."""

    path: str
    run_id: str
    attempt: int
    first_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """The ranks that train together, seen from one of them.

    Parameters
    ----------
    rank, ranks : int
        This one, and how many there are.
    writers : tuple of int
        Those that write.
    together : bool
        Whether others than the first may write.
    outputs : bool
        Whether this one takes activations.
    made : Made, optional
        What rank 0 made, for the others.
    """

    rank: int = 0
    ranks: int = 1
    writers: tuple[int, ...] = (0,)
    together: bool = False
    outputs: bool = True
    made: Made | None = None


class _Nowhere:
    """The sink of a session that has nothing to write to, and hands nothing over."""

    def write(self, row: Row) -> None:
        raise AssertionError(f"step {row.step} was handed over, and there is no run")

    def lose(self, step: int) -> None:
        """Do nothing."""


class Session(Generic[T]):
    """A recorder at work on a run.

    Parameters
    ----------
    settings : Settings
        What was asked for.
    stage : Stage
        Copies from the device.
    framework : str
        As ``"pytorch 2.13"``.
    first_step : int or None
        First step of this attempt, when it is known.
    company : Company
        The ranks that train together. On others than the first, a store that cannot be made is a
        loss, not an error: the others have begun to train.
    epochs : collection of int, optional
        Steps at which an epoch began, to which the adapter adds; None: it knows none.

    Raises
    ------
    PlanError
        If captures are asked for by epochs, which nobody knows.
    StoreError
        If the run cannot be created.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stage: Stage[T],
        framework: str,
        first_step: int | None,
        company: Company,
        epochs: Collection[int] | None = None,
    ) -> None:
        if settings.every == EPOCH and epochs is None:
            raise PlanError(
                "every='epoch' needs a trainer that knows epochs; "
                "give a number of steps, such as every=100"
            )
        schedule = replace(settings.schedule, epochs=epochs if settings.every == EPOCH else None)
        self.settings, self.ledger, self._company = settings, Ledger(), company
        self.path = settings.run
        self.made: Made | None = None
        self._sink = None if settings.dry_run else self._created(framework, first_step)
        self._pump = Pump(self._finish, ledger=self.ledger)
        blocks = settings.on_pressure == "block" or (
            settings.on_pressure == "auto" and company.ranks == 1
        )
        self.recorder: Recorder[T] = Recorder(
            schedule,
            limits=Limits(
                settings.max_capture_bytes,
                dtype=settings.dtype,
                parameter_bytes=parameter_bytes(settings) if company.together else None,
                block=_LONGEST_BLOCK if blocks else 0.0,
                overhead=settings.max_overhead,
                later="train" not in settings.phases,
                dry=settings.dry_run,
            ),
            stage=stage,
            pump=self._pump,
            sink=self._sink or _Nowhere(),
            ledger=self.ledger,
        )
        self._tap: Tap[T] | None = None
        self._unfired: Callable[[], Sequence[str]] = tuple
        self._apart = stage.apart
        self._overdue: Callable[[], int] = lambda: 0
        self._newest: dict[str, int] = {}
        if self._sink is not None:
            self._sink.queued = lambda: self._pump.queued

    def _created(self, framework: str, first_step: int | None) -> RunSink | None:
        if self._company.made is None:
            return self._create(framework, first_step)
        try:
            return self._create(framework, self._company.made.first_step)
        except Exception as error:
            where = f"rank {self._company.rank} records nothing"
            self.ledger.fail("failed", where, error)
            self.ledger.full = True
            return None

    def _create(self, framework: str, first_step: int | None) -> RunSink:
        # The store imports zarr, which a training script pays for only when it captures.
        from filmstrip.capture._sink import RunSink
        from filmstrip.store import create_run
        from filmstrip.store._names import METADATA

        settings, company, made = self.settings, self._company, self._company.made
        if_exists = settings.if_exists
        if made is not None and if_exists != "overwrite":
            if_exists = "resume" if made.attempt > 1 else "fail"
        run = create_run(
            settings.run if made is None else made.path,
            metadata=settings.metadata,
            framework=framework.partition(" ")[0],
            plan=settings.plan(),
            if_exists=if_exists,  # type: ignore[arg-type]  # one of the store's words
            first_step=first_step,
            rank=company.rank,
            world_size=company.ranks if company.together else 1,
            writers=company.writers if company.together else None,
            run_id=None if made is None else made.run_id,
            compression=settings.compression,  # type: ignore[arg-type]
            fsync=settings.fsync,
        )
        self.path = str(run.path)
        if made is not None and not (Path(made.path) / METADATA).exists():
            _LOGGER.warning(
                "filmstrip: rank %d does not see %s, where rank 0 writes; its part of the run is "
                "at %s on this host, to be copied there",
                company.rank,
                made.path,
                self.path,
            )
        self.made = Made(
            path=self.path, run_id=run.run_id, attempt=run.attempt, first_step=first_step
        )
        return RunSink(
            run,
            ledger=self.ledger,
            framework=framework,
            max_run_bytes=settings.max_run_bytes,
            writers=len(company.writers),
            min_free=settings.min_free,
        )

    def _finish(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def start(
        self,
        tap: Tap[T],
        *,
        unfired: Callable[[], Sequence[str]],
        layers: Mapping[str, int],
        overdue: Callable[[], int] = lambda: 0,
    ) -> None:
        """Let a tap drive the recorder.

        Parameters
        ----------
        tap : Tap
            Watches the model.
        unfired : callable
            Returns the layers of which nothing came yet; called after the survey.
        layers : mapping of str to int
            Number of layers by kind, as far as they are known; for the line at attach.
        overdue : callable
            Returns how many forward passes went by while something else than the given optimizers
            changed the weights; called at close.
        """
        self._tap, self._unfired, self._overdue = tap, unfired, overdue
        if self._company.outputs and (layers.get("activations") or not any(layers.values())):
            self.recorder.awaited = frozenset({"activations"} & set(self.settings.kinds))
        if self._sink is not None:
            self._pump.start()
        for site in tap.sites():
            self.recorder.add(site)

        if self._company.rank == 0:
            self.recorder.surveyed, self.recorder.silence = self._surveyed, self._silence
            if not self.settings.dry_run:
                writers = len(self._company.writers)
                _report.say(
                    _report.attach_line(layers, self.settings, path=self.path, writers=writers)
                )
        tap.install(self.recorder)

    def _surveyed(self, plan: Blueprint, seconds: float) -> None:
        settings, unfired = self.settings, self._unfired()
        if settings.dry_run:
            _report.say(_report.dry_run(plan, settings, unfired=unfired))
            return
        cost = _report.Cost(seconds, self.recorder.pace, self._apart)
        writers = len(self._company.writers)
        _report.say(
            _report.survey_lines(plan, settings, unfired=unfired, writers=writers, cost=cost)
        )
        if _LOGGER.isEnabledFor(logging.INFO):
            _LOGGER.info(
                "filmstrip: what a capture to %s keeps:\n%s", self.path, _report.table(plan)
            )

    def _silence(self) -> str:
        return _report.silence(self._unfired() or ("what is captured",), self.settings)

    def rewind(self, step: int) -> None:
        """Queue that the run goes back to a step, before anything else is written to it."""
        if self._sink is not None and self.recorder.fresh:
            self._pump.submit(_Rewind(self._sink, step))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Queue scalars; they are turned into floats by the writer thread."""
        self._submit(
            lambda sink: _Scalars(sink, step, values), "scalars", step=step, number=len(values)
        )

    def frames(self, kind: str, step: int, frames: Mapping[str, tuple[Kept, FrameSpec]]) -> None:
        """Queue frames that did not pass through a slot."""
        self._submit(
            lambda sink: _Frames(sink, kind, step, frames), kind, step=step, number=len(frames)
        )

    def _submit(self, job: Callable[[RunSink], Job], kind: str, *, step: int, number: int) -> None:
        if self._company.rank:
            return  # numbers and images are those of the first rank
        newest = self._newest.setdefault(kind, step)
        if step < newest:
            self.ledger.lose(
                "unlogged",
                f"falling {kind}",
                f"the step of {kind} fell from {newest} to {step}; "
                f"none are kept until it is {newest} again",
                number,
            )
            return
        self._newest[kind] = step
        if self._sink is not None and not self._pump.submit(job(self._sink)):
            self.ledger.count("unlogged", number)

    def close(self) -> None:
        """Take the taps away, write what is queued and close the run.

        Raises
        ------
        CaptureError
            If something failed or the writer thread did not end in time. Losses that were accepted
            beforehand (dropped steps, ended frames) are a warning.
        """
        if self._tap is not None:
            self._tap.remove()
        self.recorder.close()
        in_time = self._pump.close(timeout=_LONGEST_CLOSE)
        lost = _report.losses(self.ledger.snapshot(), self.ledger.causes)
        if self.ledger.frames_over:
            _LOGGER.warning(
                "filmstrip: frames of %s ended early: %s", self.path, self.ledger.frames_over
            )
        self._say_overdue()
        if not in_time:
            raise CaptureError(
                f"the writer of {self.path} did not finish within {_LONGEST_CLOSE:.0f} s; "
                "what was committed before is safe"
            )
        if self.ledger.broken:
            raise CaptureError(
                f"capture to {self.path} lost something: {lost}; first cause: {self.ledger.cause}"
            ) from self.ledger.cause
        if lost:
            _LOGGER.warning("filmstrip: %s: %s; the run's health has the steps", self.path, lost)
        if self._sink is not None and not self.recorder.ended:
            _LOGGER.warning(
                "filmstrip: %s: no step ended, so nothing of the model was captured; "
                "the optimizer given to capture must be the one that steps, in this process",
                self.path,
            )
        elif self.recorder.awaited and "train" not in self.settings.phases and self._unfired():
            _LOGGER.warning(
                "filmstrip: %s: no outputs were kept: no captured step had a pass in eval mode, "
                "which phases='eval' asks for, before the optimizer stepped",
                self.path,
            )

    def _say_overdue(self) -> None:
        recorder = self.recorder
        if self._sink is None or self._company.rank or not recorder.ended or recorder.paused:
            return
        if passes := self._overdue():
            _LOGGER.warning(
                "filmstrip: %s: %d forward passes went by since the last step of the optimizer "
                "given to capture, and another one has changed the weights: none of it was "
                "captured; create a new Capture with the optimizer that steps, or give all of them",
                self.path,
                passes,
            )


def parameter_bytes(settings: Settings) -> int:
    """Return the bytes of a capture that weights and gradients have where several ranks write."""
    return settings.max_capture_bytes // (2 if {"activations", "inputs"} & {*settings.kinds} else 1)
