"""The session: the only place that joins recorder, pump, sink and run, for any framework."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import numpy.typing as npt

from filmstrip.capture import _report
from filmstrip.capture._budget import Blueprint
from filmstrip.capture._ledger import Ledger
from filmstrip.capture._pump import Job, Pump
from filmstrip.capture._recorder import Limits, Recorder
from filmstrip.capture._row import Row
from filmstrip.capture._seams import Stage, T, Tap
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import CaptureError

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
class _Frames:
    sink: RunSink
    kind: str
    step: int
    frames: Mapping[str, tuple[npt.NDArray[Any], FrameSpec]]
    slot: None = None

    @property
    def name(self) -> str:
        return f"{self.kind} of step {self.step}"

    def write(self) -> None:
        self.sink.whole(self.kind, self.step, self.frames)


class _Nowhere:
    """The sink of a dry run, which never hands anything over."""

    def write(self, row: Row) -> None:
        raise AssertionError(f"step {row.step} of a dry run was handed over")

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
    ranks : int
        How many ranks train together.

    Raises
    ------
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
        ranks: int,
    ) -> None:
        self.settings, self.ledger = settings, Ledger()
        self.path = settings.run
        self._sink = None if settings.dry_run else self._create(framework, first_step)
        self._pump = Pump(self._finish, ledger=self.ledger)
        blocks = settings.on_pressure == "block" or (settings.on_pressure == "auto" and ranks == 1)
        self.recorder: Recorder[T] = Recorder(
            settings.schedule,
            limits=Limits(
                settings.max_capture_bytes,
                dtype=settings.dtype,
                block=_LONGEST_BLOCK if blocks else 0.0,
                overhead=settings.max_overhead,
                needs=frozenset({"activations"} & set(settings.kinds)),
                patience=3 if "train" in settings.phases else None,
                dry=settings.dry_run,
            ),
            stage=stage,
            pump=self._pump,
            sink=self._sink or _Nowhere(),
            ledger=self.ledger,
        )
        self._tap: Tap[T] | None = None
        self._newest: dict[str, int] = {}
        if self._sink is not None:
            self._sink.queued = lambda: self._pump.queued

    def _create(self, framework: str, first_step: int | None) -> RunSink:
        # The store imports zarr, which a training script pays for only when it captures.
        from filmstrip.capture._sink import RunSink
        from filmstrip.store import create_run

        settings = self.settings
        run = create_run(
            settings.run,
            metadata=settings.metadata,
            framework=framework.partition(" ")[0],
            plan=settings.plan(),
            if_exists=settings.if_exists,  # type: ignore[arg-type]  # one of the store's words
            first_step=first_step,
            compression=settings.compression,  # type: ignore[arg-type]
            fsync=settings.fsync,
        )
        self.path = str(run.path)
        return RunSink(
            run,
            ledger=self.ledger,
            framework=framework,
            max_run_bytes=settings.max_run_bytes,
            min_free=settings.min_free,
        )

    def _finish(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def start(
        self, tap: Tap[T], *, unfired: Callable[[], Sequence[str]], layers: Mapping[str, int]
    ) -> None:
        """Let a tap drive the recorder.

        Parameters
        ----------
        tap : Tap
            Watches the model.
        unfired : callable
            Returns the layers of which nothing came yet; called after the survey.
        layers : mapping of str to int
            Number of layers by kind, for the line at attach.
        """
        self._tap = tap
        if self._sink is not None:
            self._pump.start()
        for site in tap.sites():
            self.recorder.add(site)

        def surveyed(plan: Blueprint) -> None:
            if self.settings.dry_run:
                _report.say(_report.table(plan, self.settings))
            else:
                _report.say(_report.survey_lines(plan, self.settings, unfired=unfired()))

        self.recorder.surveyed = surveyed
        if not self.settings.dry_run:
            _report.say(_report.attach_line(layers, self.settings, path=self.path))
        tap.install(self.recorder)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Queue scalars; they are turned into floats by the writer thread."""
        self._submit(
            lambda sink: _Scalars(sink, step, values), "scalars", step=step, number=len(values)
        )

    def frames(
        self, kind: str, step: int, frames: Mapping[str, tuple[npt.NDArray[Any], FrameSpec]]
    ) -> None:
        """Queue frames that did not pass through a slot."""
        self._submit(
            lambda sink: _Frames(sink, kind, step, frames), kind, step=step, number=len(frames)
        )

    def _submit(self, job: Callable[[RunSink], Job], kind: str, *, step: int, number: int) -> None:
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
        lost = _report.losses(self.ledger.snapshot())
        if self.ledger.frames_over:
            _LOGGER.warning(
                "filmstrip: frames of %s ended early: %s", self.path, self.ledger.frames_over
            )
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
