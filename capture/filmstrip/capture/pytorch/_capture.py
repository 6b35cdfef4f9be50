"""Capture for PyTorch: the only place that a training script touches."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import index
from os import PathLike
from typing import TYPE_CHECKING, Self, SupportsIndex

import torch
from torch import nn

from filmstrip.capture._agent import Agent, plain_number
from filmstrip.capture._keywords import Selectors, read_flag, read_step
from filmstrip.capture._plan import PlanLike
from filmstrip.capture._settings import Settings, settle, switched_off
from filmstrip.capture.errors import PlanError

if TYPE_CHECKING:
    from filmstrip.capture._clock import Clock
    from filmstrip.capture._session import Company, Session
    from filmstrip.capture.pytorch._backward import OptimizerLike
    from filmstrip.capture.pytorch._model import Selection
    from filmstrip.capture.pytorch._probe import Probe, ProbeLike
    from filmstrip.capture.pytorch._ranks import Lead

Ranks = tuple[int, ...]


class Capture(Agent):
    """Records activations, weights and gradients while a model trains.

    Create it after the model and its optimizer, before the first step; nothing else is needed in
    the training loop. A frame of step i holds what step i used: activations of its forward pass,
    gradients as the optimizer is about to apply them, weights before they change. Training has the
    same losses and weights, bit by bit, with and without it.

    Parameters
    ----------
    model : torch.nn.Module
        What is trained; DistributedDataParallel is looked through, and then only rank 0 writes.
        Of parameters that are spread over ranks (``fully_shard``, ``parallelize_module``), every
        rank writes the piece that it holds, and every rank must create its capture.
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
        Of activations, weights, gradients, and inputs: what the model is given.
    layers, exclude : str or class or sequence of these
        Globs, ``re:`` and a regular expression, exact names, or types: ``type:Conv*``, or a class,
        which is its name behind ``type:`` and takes modules of classes derived from it, too. ``*``
        crosses dots. Wildcards take leaf modules, a container only by its exact name or type; a
        parameter is matched by its own path or its module's, or by the type of its module. A module
        or parameter with several names is found by each of them.
    statistics, histograms, frames : bool
        What to take of each tensor. Statistics come with histograms in any case.
    samples : int
        Leading samples of the batch kept in a frame. Statistics are of the whole tensor.
    probe : Tensor, tuple or mapping, optional
        What the model is called with, in eval mode, at steps at which frames are due: frames of
        activations are then of all its samples, statistics still of the training batch. It runs
        just before the optimizer changes the weights, and leaves random numbers, buffers and modes
        as they were. It is kept once, as ``inputs``.
    micro_batches : {"first", "last", "all"}
        Forward passes of a step that are taken; ``layer#1`` is a layer's second call. For the last,
        each is taken in place of the one before.
    phases : sequence of str
        ``("train",)`` or ``("eval",)``: the mode of the model in which outputs are taken.
    replicas : {"first", "all"}
        Ranks whose activations are kept. With ``"all"``, queries join them along the samples.
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
        If the model cannot be watched. It may be compiled by `torch.compile`, before or after.
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

    _epochs: Collection[int] | None = None

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
        layers: Selectors = "*",
        exclude: Selectors = (),
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
        epochs: Collection[int] | None = None,
    ) -> Self:
        """Return a capture whose keywords may be overruled by a command line.

        Where a trainer knows epochs, it adds the first step of each to `epochs`.
        """
        capture = cls.__new__(cls)
        capture._epochs = epochs
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
        self._first = index(step) if isinstance(step, SupportsIndex) else 0
        enabled = code["enabled"] is None or read_flag("enabled", code["enabled"])
        if not enabled or switched_off(os.environ):
            return
        settings = settle(code, plan=plan, environment=os.environ, command=command)
        from filmstrip.capture._clock import checked_step
        from filmstrip.capture._session import Company
        from filmstrip.capture.pytorch._checks import check_settings, optimizers_of
        from filmstrip.capture.pytorch._ranks import agree, ranks_here, several_write, spread

        step = checked_step(step)
        rank, ranks = ranks_here()
        together = several_write(model, settings, ranks=ranks)
        alone = not together and not spread(model, ranks=ranks)
        check_settings(settings, alone=alone, probed=probe is not None)
        optimizers = optimizers_of(optimizer)

        def start(settings: Settings, company: Company, meshes: Mapping[str, Ranks]) -> Lead:
            return self._start(model, optimizers, settings, company, meshes, step=step, probe=probe)

        first = Company(ranks=ranks, together=together)
        if not together:
            if rank == 0:
                start(settings, first, {})
            return
        lead = agree(rank, lambda: start(settings, first, {}))
        if rank != 0:
            outputs = lead.settings.replicas == "all"
            with suppress(PlanError):  # a stage of a pipeline may have nothing of what is asked for
                start(lead.settings, replace(lead.company, rank=rank, outputs=outputs), lead.meshes)

    def _start(
        self,
        model: nn.Module,
        optimizers: Sequence[OptimizerLike],
        settings: Settings,
        company: Company,
        meshes: Mapping[str, Ranks],
        *,
        step: int | Callable[[], int] | None,
        probe: ProbeLike | None,
    ) -> Lead:
        from filmstrip.capture._images import ImageShelf
        from filmstrip.capture._report import spared
        from filmstrip.capture._session import Session
        from filmstrip.capture.pytorch._images import whole_frame
        from filmstrip.capture.pytorch._probe import Probe
        from filmstrip.capture.pytorch._ranks import Lead, part_of, spread_outputs
        from filmstrip.capture.pytorch._stage import DryStage, stage_for
        from filmstrip.capture.pytorch._tap import TorchTap

        watched = self._select(model, settings)
        stage = DryStage() if settings.dry_run else stage_for(model)
        settings = spared(settings, stage.least)
        part = part_of(watched, settings, company, meshes)
        selection = part.selection
        if company.rank == 0:
            company = replace(company, writers=part.writers)
        elif not selection.layers and not selection.variables:
            return Lead(settings, company, meshes)
        batch = None if probe is None else Probe(probe)
        tap = TorchTap(
            selection,
            optimizers,
            settings=settings,
            step=step,
            probe=batch,
            outputs=company.outputs,
            spread=spread_outputs(settings) if company.together else None,
        )
        session: Session[torch.Tensor] = Session(
            settings,
            stage=stage,
            framework=f"pytorch {torch.__version__.partition('+')[0]}",
            first_step=read_step("step()", step()) if callable(step) else step,
            company=company,
            epochs=self._epochs,
        )
        layers = {"activations": len(selection.layers)}
        for site in tap.sites():
            layers[site.kind] = layers.get(site.kind, 0) + 1
        self._session, self._tap, self._counts = session, tap, bool(optimizers)
        self._images = ImageShelf(session, whole_frame)
        tap.forward.probed = self._keep_probe
        try:
            session.start(
                tap,
                unfired=lambda: tap.forward.unfired,
                layers=layers,
                overdue=tap.optimizer.succession.overdue,
            )
        except BaseException:
            self._close_quietly()
            raise
        self._watch_process()
        return Lead(settings, replace(company, made=session.made), part.meshes)

    def _select(self, model: nn.Module, settings: Settings) -> Selection:
        from filmstrip.capture.pytorch._model import select_layers

        return select_layers(model, settings)

    @property
    def _clock(self) -> Clock:
        return self._tap.clock

    @staticmethod
    def _number(value: object) -> object:
        """Return what the writer thread can turn into a float; raise if it is not one number."""
        from filmstrip.capture.pytorch._device import Later

        if isinstance(value, torch.Tensor):
            value = value.detach()
            if value.numel() != 1 or value.is_complex() or value.device.type in ("cpu", "meta"):
                return float(value)
            return Later(value)
        return plain_number(value)

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

    def _keep_probe(self, probe: Probe) -> None:
        from filmstrip.capture.pytorch._images import whole_frame
        from filmstrip.capture.pytorch._layout import input_layout

        if self._session is not None:
            frames = {
                name: whole_frame(tensor, input_layout(tensor))
                for name, tensor in probe.tensors().items()
            }
            self._session.frames("inputs", self._tap.clock.step, frames)


_NOT_SETTINGS = frozenset({"self", "model", "optimizer", "step", "probe", "plan"})
