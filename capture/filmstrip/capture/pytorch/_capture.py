"""Capture for PyTorch: the only place that a training script touches."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import index
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Self, SupportsIndex

import torch
from torch import nn

from filmstrip.capture._keywords import read_flag, read_step
from filmstrip.capture._plan import PlanLike
from filmstrip.capture._settings import Settings, settle, switched_off

if TYPE_CHECKING:
    from filmstrip.capture._session import Session
    from filmstrip.capture.pytorch._backward import OptimizerLike
    from filmstrip.capture.pytorch._images import ImageLike, ImageShelf
    from filmstrip.capture.pytorch._probe import Probe, ProbeLike

_LOGGER = logging.getLogger("filmstrip")


class Capture:
    """Records activations, weights and gradients while a model trains.

    Create it after the model and its optimizer, before the first step; nothing else is needed in
    the training loop. A frame of step i holds what step i used: activations of its forward pass,
    gradients as the optimizer is about to apply them, weights before they change. Training has the
    same losses and weights, bit by bit, with and without it.

    Parameters
    ----------
    model : torch.nn.Module
        What is trained; DistributedDataParallel is looked through, and then only rank 0 writes.
    optimizer : torch.optim.Optimizer or sequence of them, optional
        Steps are counted by it: by the last one, where there are several. None: call `step`.
    run : str or path
        Where the run is written.
    every : int or mapping
        A step is due when ``step % every == 0``; or one interval each for statistics, histograms
        and frames, of which those not named are not taken.
    start, stop : int
        Window of steps, half open.
    steps : collection of int, optional
        Take exactly these steps.
    step : int or callable, optional
        First step, or what returns the trainer's step, read at each forward pass. None: from 0.
    kinds : sequence of str
        Of activations, weights, gradients.
    layers, exclude : str or sequence of str
        Globs, ``re:`` and a regular expression, or exact names. ``*`` crosses dots. Wildcards take
        leaf modules, a container only by its exact name; a parameter is matched by its own path or
        its module's.
    statistics, histograms, frames : bool
        What to take of each tensor. Statistics come with histograms in any case.
    samples : int
        Leading samples of the batch kept in a frame. Statistics are of the whole tensor.
    probe : Tensor, tuple or mapping, optional
        What the model is called with, in eval mode, at steps at which frames are due: frames of
        activations are then of all its samples, statistics still of the training batch. It runs
        just before the optimizer changes the weights, and leaves random numbers, buffers and modes
        as they were. It is kept once, as ``inputs``.
    micro_batches : {"first", "all"}
        Forward passes of a step that are taken; ``layer#1`` is a layer's second call.
    phases : sequence of str
        ``("train",)`` or ``("eval",)``: the mode of the model in which outputs are taken.
    replicas : {"first", "all"}
        Ranks that write; only ``"first"`` with several.
    max_capture_bytes, max_run_bytes : int or str
        Bounds of the frames of one capture, fitted by fewer samples, then fewer channels, then half
        precision, then statistics only; and of the run, at which frames end and statistics go on.
    min_free : int, float or str
        What must stay free on the disk, in bytes or as a share.
    max_overhead : float, optional
        Share of the training time above which due steps are left out.
    on_pressure : {"auto", "drop", "block"}
        What to do when writing is slower than training: drop the step, or wait for at most 10 s.
        ``"auto"`` blocks with one rank and drops with several.
    if_exists : {"auto", "resume", "fail", "new", "overwrite"}
        What to do with a run that is there. ``"auto"`` resumes when `step` is an int above 0.
    dtype : str, optional
        dtype of floating frames.
    compression, fsync : str, optional; bool
        ``"zstd"``, ``"lz4"`` or ``"none"``; whether a commit must survive a loss of power.
    metadata : mapping, optional
        Kept with the run.
    plan : Plan, mapping or path of a TOML file, optional
        Beats the keywords.
    enabled : bool, optional
        False: do nothing at all.
    dry_run : bool
        Print what would be kept, after one forward pass, and write nothing.

    Raises
    ------
    PlanError
        If a keyword, the plan or the environment holds a value that cannot be used.
    UnsupportedModelError, AlreadyCompiledError
        If the model cannot be watched.
    StoreError
        If the run exists, or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from filmstrip.store import open_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> model = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Capture(model, optimizer, run=f"{folder.name}/run.zarr", every=1) as cap:
    ...     loss = model(torch.ones(4, 3)).sum()
    ...     loss.backward()
    ...     optimizer.step()
    ...     cap.log({"loss": loss})
    >>> open_run(f"{folder.name}/run.zarr").gradients["weight"].frame(0)
    array([[4., 4., 4.],
           [4., 4., 4.]], dtype=float32)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        run: str | PathLike[str] = "run.zarr",
        *,
        every: int | Mapping[str, int] | str = 100,
        start: int = 0,
        stop: int | None = None,
        steps: Collection[int] | None = None,
        step: int | Callable[[], int] | None = None,
        kinds: str | Sequence[str] = ("activations", "weights", "gradients"),
        layers: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        statistics: bool = True,
        histograms: bool = True,
        frames: bool = True,
        samples: int = 1,
        probe: ProbeLike | None = None,
        micro_batches: str = "first",
        phases: str | Sequence[str] = ("train",),
        replicas: str = "first",
        max_capture_bytes: int | str = "64MB",
        max_run_bytes: int | str = "20GB",
        min_free: int | float | str = "5%",
        max_overhead: float | None = None,
        on_pressure: str = "auto",
        if_exists: str = "auto",
        dtype: str | None = None,
        compression: str | None = None,
        fsync: bool = False,
        metadata: Mapping[str, object] | None = None,
        plan: PlanLike | None = None,
        enabled: bool | None = None,
        dry_run: bool = False,
    ) -> None:
        said = dict(locals())
        code = {name: said[name] for name in said if name not in _NOT_SETTINGS}
        self._attach(model, optimizer, code, plan=plan, command={}, step=step, probe=probe)

    @classmethod
    def _from_command(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
        code: Mapping[str, object],
        *,
        plan: PlanLike | None,
        command: Mapping[str, object],
        step: int | Callable[[], int] | None,
        probe: ProbeLike | None,
    ) -> Self:
        """Return a capture whose keywords may be overruled by a command line."""
        capture = cls.__new__(cls)
        capture._attach(model, optimizer, code, plan=plan, command=command, step=step, probe=probe)
        return capture

    def _attach(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
        code: Mapping[str, object],
        *,
        plan: PlanLike | None,
        command: Mapping[str, object],
        step: int | Callable[[], int] | None,
        probe: ProbeLike | None,
    ) -> None:
        self._session: Session[torch.Tensor] | None = None
        self._images: ImageShelf | None = None
        self._closed = self._done = False
        self._first = index(step) if isinstance(step, SupportsIndex) else 0
        enabled = code["enabled"] is None or read_flag("enabled", code["enabled"])
        if not enabled or switched_off(os.environ):
            return
        settings = settle(code, plan=plan, environment=os.environ, command=command)
        from filmstrip.capture.pytorch._checks import (
            check_settings,
            checked_step,
            optimizers_of,
            ranks_here,
        )

        step = checked_step(step)
        rank, ranks = ranks_here()
        check_settings(settings, ranks=ranks)
        if rank != 0:
            return
        self._start(model, optimizers_of(optimizer), settings, step=step, probe=probe, ranks=ranks)

    def _start(
        self,
        model: nn.Module,
        optimizers: Sequence[OptimizerLike],
        settings: Settings,
        *,
        step: int | Callable[[], int] | None,
        probe: ProbeLike | None,
        ranks: int,
    ) -> None:
        from filmstrip.capture._session import Session
        from filmstrip.capture.pytorch._images import ImageShelf
        from filmstrip.capture.pytorch._model import select_layers
        from filmstrip.capture.pytorch._probe import Probe
        from filmstrip.capture.pytorch._stage import CpuStage, DryStage
        from filmstrip.capture.pytorch._tap import TorchTap

        selection = select_layers(model, settings)
        batch = None if probe is None else Probe(probe)
        tap = TorchTap(selection, optimizers, settings=settings, step=step, probe=batch)
        session: Session[torch.Tensor] = Session(
            settings,
            stage=DryStage() if settings.dry_run else CpuStage(),
            framework=f"pytorch {torch.__version__.partition('+')[0]}",
            first_step=read_step("step()", step()) if callable(step) else step,
            ranks=ranks,
        )
        layers = {"activations": len(selection.layers)}
        for site in tap.sites():
            layers[site.kind] = layers.get(site.kind, 0) + 1
        self._session, self._tap, self._counts = session, tap, bool(optimizers)
        self._images = ImageShelf(session, samples=settings.samples)
        tap.forward.probed = self._keep_probe
        try:
            session.start(tap, unfired=lambda: tap.forward.unfired, layers=layers)
        except BaseException:
            self._close_quietly()
            raise
        atexit.register(self._close_quietly)
        itself = weakref.ref(self)

        def forked() -> None:
            capture = itself()
            if capture is not None:
                capture._leave_to_parent()

        os.register_at_fork(after_in_child=forked)

    @property
    def path(self) -> str | None:
        """Where the run is written; None when nothing is."""
        if self._session is None or self._session.settings.dry_run:
            return None
        return self._session.path

    @property
    def enabled(self) -> bool:
        """Whether anything may be recorded."""
        return self._session is not None and not self._closed and not self._session.recorder.paused

    def pause(self) -> None:
        """Record nothing until `resume`; steps are still counted."""
        if self._session is not None:
            self._session.recorder.paused = True
            self._session.recorder.begin(self._tap.clock.step)

    def resume(self) -> None:
        """Go on recording, from the next step that has not begun."""
        if self._session is not None:
            self._session.recorder.paused = False
            if not self._tap.clock.entered:
                self._tap.clock.start()

    def log(self, values: Mapping[str, object] | None = None, /, **named: object) -> None:
        """Record numbers of a step: the one in progress, or the one that ended last.

        Parameters
        ----------
        values : mapping of str to number, optional
            Numbers, or tensors of one element, for which an accelerator is not waited for.
        **named
            The same, by keyword.
        """
        if self._session is None or self._closed:
            return
        numbers: dict[str, object] = {}
        try:
            for name, value in {**({} if values is None else values), **named}.items():
                self._add_number(numbers, name, value)
        except Exception as error:
            self._session.ledger.lose(
                "unlogged", "log", f"log needs a mapping of names to numbers; not kept: {error}"
            )
        if numbers:
            self._session.log(self._tap.clock.logged, numbers)

    def _add_number(self, numbers: dict[str, object], name: object, value: object) -> None:
        try:
            numbers[str(name)] = _number(value)
        except Exception as error:
            assert self._session is not None
            self._session.ledger.lose(
                "unlogged", f"scalar {name}", f"log of {name!r} needs one number; not kept: {error}"
            )

    def image(self, name: str, x: ImageLike, *, layout: str | None = None) -> None:
        """Record an image, or any array, at steps at which frames are due.

        Parameters
        ----------
        name : str
            Name of the strip, of kind ``images``.
        x : Tensor or ndarray
            Copied at once. Shape and dtype stay the same over the run.
        layout : str, optional
            One letter an axis, as ``"NCHW"`` or ``"HW"``; of a leading N, ``samples`` are kept.
        """
        if self._images is not None and not self._closed:
            self._images.put(str(name), x, layout=layout, step=self._tap.clock.logged)

    def step(self) -> None:
        """Say that a step is over, where there is no optimizer to tell.

        Call it where the optimizer would step: after the backward pass, before the weights change.
        """
        if self._session is None or self._closed:
            return
        if self._counts:
            self._session.ledger.lose(
                "skipped", "step", "cap.step() does nothing here: the optimizer counts the steps"
            )
        else:
            self._tap.optimizer.step()

    def state_dict(self) -> dict[str, int]:
        """Return the step, for a checkpoint."""
        return {"step": self._first if self._session is None else self._tap.clock.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the step of a checkpoint."""
        if self._session is None:
            self._first = int(state["step"])
        else:
            self._tap.clock.set(int(state["step"]))

    def close(self) -> None:
        """Write what is pending and close the run; a second call does nothing.

        Raises
        ------
        CaptureError
            If something was lost that capture had promised to keep.
        """
        if self._session is None or self._done:
            return
        if self._images is not None and not self._closed:
            self._images.flush()
        self._closed = True
        try:
            self._session.close()
        except KeyboardInterrupt:
            raise  # who is in a hurry may call again; at exit, what is pending is waited for
        except BaseException:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        self._done = True
        atexit.unregister(self._close_quietly)

    def _leave_to_parent(self) -> None:
        """Do nothing in a forked process, which has neither the writer thread nor the run."""
        self._closed = self._done = True
        if self._session is not None:
            self._session.recorder.close()

    def _close_quietly(self) -> None:
        try:
            self.close()
        except Exception as error:
            _LOGGER.error("filmstrip: %s", error)  # noqa: TRY400  # its cause was logged when it came

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What went wrong in training must not be hidden by what went wrong in capture.
        if error is None:
            self.close()
        else:
            self._close_quietly()

    def _keep_probe(self, probe: Probe) -> None:
        from filmstrip.capture.pytorch._images import whole_frame
        from filmstrip.capture.pytorch._layout import input_layout

        if self._session is not None:
            frames = {
                name: whole_frame(tensor, layout=input_layout(tensor))
                for name, tensor in probe.tensors().items()
            }
            self._session.frames("inputs", self._tap.clock.step, frames)


_NOT_SETTINGS = frozenset({"self", "model", "optimizer", "step", "probe", "plan"})


def _number(value: object) -> object:
    """Return what the writer thread can turn into a float; raise if it is not one number."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.numel() != 1 or value.is_complex() or value.device.type in ("cpu", "meta"):
            return float(value)
        return value.clone()
    if getattr(value, "size", None) == 1:
        value = value.item()  # type: ignore[attr-defined]  # NumPy gives up float(array)
    return float(value)  # type: ignore[arg-type]
