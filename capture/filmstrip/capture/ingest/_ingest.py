"""Ingesting: the only place that puts the weights of checkpoints into a run, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from filmstrip.capture.errors import CheckpointError
from filmstrip.capture.ingest._checkpoint import Checkpoint, Weight
from filmstrip.capture.ingest._formats import Found, find, opened, translated
from filmstrip.capture.ingest._layout import layout_of
from filmstrip.capture.ingest._numbers import described
from filmstrip.capture.ingest._step import Step, steps_of
from filmstrip.store._attach import create_run
from filmstrip.store._bits import BINS
from filmstrip.store._frame import FrameSpec, as_stored
from filmstrip.store._recording import RunWriter
from filmstrip.store._run import Run, open_run
from filmstrip.store._select import nearest_names, select
from filmstrip.store._summary import STATISTICS
from filmstrip.store.errors import KindNotFoundError, RunExistsError, RunNotFoundError

_KIND = "weights"
IfExists = Literal["resume", "fail", "new", "overwrite"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of one checkpoint, or would be.

    Attributes
    ----------
    path : Path
        The checkpoint.
    step : Step
        Its step.
    specs : dict of str to FrameSpec
        By layer; empty when the run has this step already.
    left_out : Counter of str
        Tensors that were not taken, in words.
    bare : int
        Layers whose statistics the run has no room for.
    """

    path: Path
    step: Step
    specs: dict[str, FrameSpec] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    bare: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its frames, uncompressed."""
        return sum(spec.nbytes for spec in self.specs.values())


@dataclass(slots=True)
class _Before:
    """What the run held before, as far as the next checkpoint must fit to it.

    Attributes
    ----------
    frames, statistics : list of int
        Steps of weights that there are.
    counted : list of str
        Layers that the statistics are of; empty while there are none.
    forms : dict
        Of every layer its shape, its dtype, the name it had first, and where it was so.
    ranks : int
        How many processes wrote the run.
    """

    frames: list[int] = field(default_factory=list)
    statistics: list[int] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    forms: dict[str, tuple[tuple[int, ...], str, str | None, str]] = field(default_factory=dict)
    ranks: int = 1

    @classmethod
    def of(cls, run: Run) -> _Before:
        """Return what a run holds."""
        before = cls(ranks=int(run.attributes.get("world_size", 1)))
        if _KIND in run.kinds:
            before.frames = run.steps(_KIND).tolist()
            for layer, strip in run.weights.items():
                before.forms[layer] = (strip.shape, strip.dtype.name, None, run.path)
        try:
            statistics = run.statistics(_KIND)
        except KindNotFoundError:
            return before
        before.counted, before.statistics = list(statistics.layers), statistics.steps.tolist()
        return before


class Ingest:
    """Puts checkpoints into a run.

    Parameters
    ----------
    run : path-like
        The run; made when it is not there.
    checkpoints : sequence of path-like
        Files, folders and prefixes, in any order.
    steps : sequence of int
        Their steps, one for each; read from their names when empty.
    layers, exclude : sequence of str
        Selectors of layers to take, and to leave out; a weight is matched by its own path or its
        module's.
    if_exists : {"resume", "fail", "new", "overwrite"}
        What to do with a run that is there. ``"resume"`` adds later steps to it.

    Raises
    ------
    CheckpointError
        If there is no such checkpoint, its step is not known, or lies before those of the run.
    StoreError
        If the run cannot be read, or is there and must not be.
    """

    def __init__(
        self,
        run: str | PathLike[str],
        checkpoints: Sequence[str | PathLike[str]],
        *,
        steps: Sequence[int] = (),
        layers: Sequence[str] = (),
        exclude: Sequence[str] = (),
        if_exists: IfExists = "resume",
    ) -> None:
        if if_exists not in get_args(IfExists):
            raise CheckpointError(
                f"if_exists={if_exists!r} has no meaning; use one of "
                f"{', '.join(get_args(IfExists))}"
            )
        if "://" in str(run):
            raise CheckpointError(f"runs are written to a local path; {str(run)!r} is a URL")
        self.path = Path(run)
        self._layers, self._exclude, self._if_exists = layers or ("*",), exclude, if_exists
        found = [find(Path(checkpoint)) for checkpoint in checkpoints]
        unique = {(one.form, one.parts): one for one in found}
        self._found = {one.path: one for one in unique.values()}
        self._items = steps_of(list(self._found), steps)
        self._before = self._look()
        self._writer: RunWriter | None = None

    def _look(self) -> _Before:
        try:
            run = open_run(self.path)
        except RunNotFoundError:
            return _Before()
        if self._if_exists == "fail":
            raise RunExistsError(str(self.path), run.status().last_step)
        if self._if_exists != "resume":
            return _Before()
        before = _Before.of(run)
        last = max(before.frames, default=-1)
        for step, path in self._items:
            if step.number < last and step.number not in before.frames:
                raise CheckpointError(
                    f"{path} is of step {step.number}, and the weights of {self.path} go up to "
                    f"step {last}; only later ones can be added: use another run or --if-exists new"
                )
        return before

    def take(self, *, dry_run: bool, progress: Progress) -> Iterator[Taken]:
        """Take one checkpoint after the other, in the order of steps, and say what was taken.

        Parameters
        ----------
        dry_run : bool
            Look at them, and write nothing.
        progress : callable
            Called with a layer's name, bytes done and bytes in all of a checkpoint.

        Yields
        ------
        Taken
            After each checkpoint.

        Raises
        ------
        CheckpointError
            If one cannot be read or does not fit to those before it. These stay in the run.
        StoreError
            If the run cannot be written.
        """
        try:
            for step, path in self._items:
                yield self._one(self._found[path], step, dry_run, progress)
        finally:
            if self._writer is not None:
                self._writer.close()

    def _one(self, found: Found, step: Step, dry_run: bool, progress: Progress) -> Taken:
        there = step.number in self._before.frames
        # Frames come first: a process that died between the two left a step without statistics.
        describe = step.number > max(self._before.statistics, default=-1)
        if there and not describe:
            return Taken(found.path, step)
        with opened(found) as checkpoint:
            specs = self._chosen(found, checkpoint)
            counted = self._before.counted or list(specs)
            frames = _Frames(found, checkpoint.weights, specs, progress)
            if not dry_run:
                writer = self._attached(checkpoint)
                if there:
                    frames.read_all()
                else:
                    writer.writer(_KIND, specs).append(step.number, frames)
                if describe:
                    statistics = writer.statistics_writer(_KIND, counted)
                    statistics.append(step.number, *frames.rows(counted))
            self._before.counted = counted
            for layer, spec in specs.items():
                form = (spec.shape, spec.stored_dtype.name, spec.original, str(found.path))
                self._before.forms[layer] = form
        bare = len(set(specs) - set(counted)) if describe else len(specs)
        return Taken(found.path, step, specs, checkpoint.left_out, bare)

    def _attached(self, checkpoint: Checkpoint) -> RunWriter:
        if self._writer is None:
            self._writer = create_run(
                self.path,
                framework=checkpoint.framework,
                if_exists=self._if_exists,
                world_size=self._before.ranks,
            )
            self.path = self._writer.path
        return self._writer

    def _chosen(self, found: Found, checkpoint: Checkpoint) -> dict[str, FrameSpec]:
        """Return the frames to take of a checkpoint, which fit to those before."""
        names = list(checkpoint.weights)
        if not names:
            left = ", ".join(f"{count} {what}" for what, count in checkpoint.left_out.items())
            raise CheckpointError(f"{found.path} holds no weights; it holds {left or 'nothing'}")
        chosen = select(self._layers, names, owner=_owner)
        dropped = set(select(self._exclude, names, owner=_owner)) if self._exclude else set()
        specs = {
            layer: self._spec(layer, checkpoint, order)
            for order, layer in enumerate(names)
            if layer in set(chosen) - dropped
        }
        if not specs:
            nearest = ", ".join(nearest_names(self._layers, names))
            raise CheckpointError(
                f"no weight of {found.path} is selected by --layers {', '.join(self._layers)}"
                f"{' and --exclude' if dropped else ''}; nearest: {nearest}"
            )
        checkpoint.left_out["not selected"] += len(names) - len(specs)
        for layer, spec in specs.items():
            self._check(found, layer, spec)
        return specs

    def _spec(self, layer: str, checkpoint: Checkpoint, order: int) -> FrameSpec:
        weight = checkpoint.weights[layer]
        first = self._before.forms.get(layer)
        return FrameSpec(
            weight.shape,
            weight.dtype,
            layout=layout_of(layer, len(weight.shape), checkpoint.framework),
            order=order,
            original=first[2] if first and first[2] else weight.original,
            framework=checkpoint.framework,
            aliases=tuple(weight.aliases),
        )

    def _check(self, found: Found, layer: str, spec: FrameSpec) -> None:
        if layer not in self._before.forms:
            return
        shape, dtype, _, where = self._before.forms[layer]
        if (shape, dtype) != (spec.shape, spec.stored_dtype.name):
            raise CheckpointError(
                f"{found.path}: {layer} is {spec.stored_dtype.name} {spec.shape}, and {dtype} "
                f"{shape} in {where}; leave it out by --exclude '{layer}', or use another run"
            )


def _owner(weight: str) -> str:
    return weight.rpartition(".")[0]


class _Frames(Mapping[str, npt.ArrayLike]):
    """Weights of a checkpoint, each read and described when its frame is asked for."""

    def __init__(
        self,
        found: Found,
        weights: Mapping[str, Weight],
        specs: Mapping[str, FrameSpec],
        progress: Progress,
    ) -> None:
        self._found, self._weights, self._specs = found, weights, specs
        self._progress, self._done = progress, 0
        self._total = sum(spec.nbytes for spec in specs.values())
        self._described: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}

    def __getitem__(self, layer: str) -> npt.ArrayLike:
        self._progress(layer, self._done, self._total)
        spec = self._specs[layer]
        with translated(self._found):
            array = self._weights[layer].read()
            stored = as_stored(array, spec, layer)
            if stored.shape != spec.shape:
                raise ValueError(f"{layer} has shape {stored.shape}, not {spec.shape} as announced")
        self._described[layer] = described(stored)
        self._done += spec.nbytes
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def read_all(self) -> None:
        """Describe all of them."""
        for layer in self:
            self[layer]

    def rows(self, layers: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return statistics and histograms in the order of layers; nothing of those not read."""
        values = np.full((len(layers), len(STATISTICS)), np.nan)
        counts = np.zeros((len(layers), BINS), np.uint64)
        for row, layer in enumerate(layers):
            if layer in self._described:
                values[row], counts[row] = self._described[layer]
        return values, counts
