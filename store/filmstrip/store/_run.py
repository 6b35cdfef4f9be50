"""Runs: the only place that opens a run and says what is in it."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from filmstrip.store._diff import Difference, compare
from filmstrip.store._mappings import Scalars, Strips
from filmstrip.store._metadata import Json
from filmstrip.store._names import (
    FRAME_KINDS,
    HEALTH,
    SCALARS,
    STATISTICS,
    statistics_group,
)
from filmstrip.store._pieces import Assembly, Piece
from filmstrip.store._place import Place, place_of
from filmstrip.store._select import Selector, known, nearest_names, select
from filmstrip.store._statistics import Statistics
from filmstrip.store._status import Status, state_of, status_of
from filmstrip.store._stores import RankStore, RankStores
from filmstrip.store._strip import Strip
from filmstrip.store._summary import derive
from filmstrip.store._view import GroupView, Series
from filmstrip.store.errors import KindNotFoundError, LayerNotFoundError

Steps = npt.NDArray[np.int64]


class NonFinite(NamedTuple):
    """Where numbers first stopped being finite."""

    step: int
    kind: str
    layer: str
    nan: int
    posinf: int
    neginf: int


class Run:
    """A run, read only; live or finished. Obtained from `open_run`.

    Every question is answered from the store as it is at that moment.

    Attributes
    ----------
    place : Place
        Where it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._stores = RankStores(RankStore(place))

    @property
    def path(self) -> str:
        """Path or URL of the run."""
        return str(self.place)

    @property
    def attributes(self) -> Json:
        """What the store says of the run."""
        return self._stores.face.attributes

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def id(self) -> str:
        """Identity of the run, which copies share."""
        return str(self.attributes["run_id"])

    @property
    def metadata(self) -> Json:
        """What the user kept with the run."""
        return dict(self.attributes.get("metadata", {}))

    def groups(self) -> tuple[str, ...]:
        """Return the paths of all groups of all ranks, statistics and health included."""
        return tuple(dict.fromkeys(g for store in self._stores.all() for g in store.groups()))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that have written something."""
        return tuple(store.rank for store in self._stores.all())

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of which the run holds something, ``"scalars"`` included."""
        return tuple(sorted(g for g in self.groups() if g in FRAME_KINDS or g == SCALARS))

    def view(self, group: str) -> GroupView:
        """Return one group, that of the lowest rank that has it.

        Raises
        ------
        KindNotFoundError
            If the run has no such group.
        """
        return self.views(group)[0][1]

    def views(self, group: str) -> list[tuple[int, GroupView]]:
        """Return one group of every rank that has it, with the rank.

        Raises
        ------
        KindNotFoundError
            If the run has no such group.
        """
        if group in self._stores.face.groups() and self._stores.world_size == 1:
            return [(self._stores.face.rank, self._stores.face.view(group))]
        views = [(store.rank, store.view(group)) for store in self._stores.having(group)]
        if not views:
            raise KindNotFoundError(self.path, group, self.kinds)
        return views

    def group_steps(self, group: str) -> Steps:
        """Return the steps of a group that all ranks that have it have committed."""
        (_, first), *others = self.views(group)
        steps = first.steps()
        for _, view in others:
            steps = steps[np.isin(steps, view.steps(), assume_unique=True)]
        return steps

    def layers(self, kind: str, pattern: Selector = "*") -> list[str]:
        """Return the layers of a kind that a selector matches.

        Parameters
        ----------
        kind : str
            The kind.
        pattern : str or iterable of str
            A glob whose ``*`` crosses dots, a regular expression behind ``re:``, or several. What
            has several names, as tied weights, is listed once, and found by each exact name.

        Returns
        -------
        list of str
            In forward order.

        Raises
        ------
        KindNotFoundError
            If the run has nothing of the kind.
        LayerNotFoundError
            If nothing matches. Names the nearest layers.
        SelectionError
            If a selector asks for a type, which is known only when capturing.
        """
        names = list(Scalars(self, SCALARS)) if kind == SCALARS else list(self._arrays(kind))
        chosen = select(pattern, names, aliases=self._aliases(kind) if pattern != "*" else None)
        if not chosen and not (pattern == "*" and not names):
            shown = pattern if isinstance(pattern, str) else ", ".join(pattern)
            raise LayerNotFoundError(shown, f"{kind} in {self.name}", nearest_names(pattern, names))
        return chosen

    def _arrays(self, kind: str) -> dict[str, list[tuple[int, GroupView, str]]]:
        """Return, by layer in forward order, where each rank keeps it."""
        if kind not in FRAME_KINDS:
            raise KindNotFoundError(self.path, kind, self.kinds)
        views = self.views(kind)
        if len(views) == 1:
            rank, view = views[0]
            return {layer: [(rank, view, array)] for layer, array in view.layers().items()}
        found: dict[str, list[tuple[int, GroupView, str]]] = {}
        orders: dict[str, int] = {}
        for rank, view in views:
            for layer, array in view.layers().items():
                found.setdefault(layer, []).append((rank, view, array))
                about = view.documents[array]["attributes"]["filmstrip"]
                orders.setdefault(layer, int(about.get("order", 0)))
        return {layer: found[layer] for layer in sorted(found, key=orders.__getitem__)}

    def _aliases(self, kind: str) -> dict[str, str]:
        """Return the layers of a kind by what else they are called: aliases, the framework's name.

        A module that has several strips gives none of them its own name.
        """
        if kind not in FRAME_KINDS or kind not in self.groups():
            return {}
        layers = self._arrays(kind)
        meant: dict[str, set[str]] = {}
        for layer, ((_, view, array), *_) in layers.items():
            about = view.documents[array]["attributes"]["filmstrip"]
            for name in (about["original"], *(about.get("aliases") or ())):
                meant.setdefault(name, set()).add(layer)
        return {
            name: layer
            for name, (layer, *others) in meant.items()
            if not others and name not in layers
        }

    def strip(self, kind: str, layer: str) -> Strip:
        """Return one layer of one kind.

        Parameters
        ----------
        kind, layer : str
            What to return; a layer also by the framework's own name, or by another name of its
            tensor, as tied weights have.

        Returns
        -------
        Strip
            Its frames over steps.

        Raises
        ------
        KindNotFoundError
            If the run has nothing of the kind.
        LayerNotFoundError
            If there is no such layer. Names the nearest ones.
        """
        arrays = self._arrays(kind)
        name = known(layer, arrays, lambda: self._aliases(kind))
        if name is not None:
            pieces = [Piece(view, array, rank) for rank, view, array in arrays[name]]
            return Strip(self, kind, name, pieces)
        where = f"{kind} in {self.name}"
        raise LayerNotFoundError(layer, where, nearest_names(layer, list(arrays)))

    @property
    def activations(self) -> Mapping[str, Strip]:
        """Outputs of modules, by layer."""
        return Strips(self, "activations")

    @property
    def weights(self) -> Mapping[str, Strip]:
        """Parameters, by layer."""
        return Strips(self, "weights")

    @property
    def gradients(self) -> Mapping[str, Strip]:
        """Gradients of parameters, by layer."""
        return Strips(self, "gradients")

    @property
    def inputs(self) -> Mapping[str, Strip]:
        """Inputs of the model, by name."""
        return Strips(self, "inputs")

    @property
    def images(self) -> Mapping[str, Strip]:
        """Images kept by the training code, by name."""
        return Strips(self, "images")

    @property
    def scalars(self) -> Mapping[str, Series]:
        """Scalars by name; a step at which one was not logged is not in its series."""
        return Scalars(self, SCALARS)

    @property
    def health(self) -> Mapping[str, Series]:
        """What capture itself cost, and what it lost, by name."""
        return Scalars(self, HEALTH)

    def steps(self, kind: str) -> Steps:
        """Return the steps of a kind that all ranks that have it have committed.

        Raises
        ------
        KindNotFoundError
            If the run has nothing of the kind.
        """
        return self.group_steps(kind)

    def statistics(self, kind: str) -> Statistics:
        """Return the stored statistics of a kind.

        Raises
        ------
        KindNotFoundError
            If the run has no statistics of the kind.
        """
        if statistics_group(kind) not in self.groups():
            described = [
                g.partition("/")[2] for g in self.groups() if g.startswith(f"{STATISTICS}/")
            ]
            raise KindNotFoundError(self.path, f"statistics of {kind}", described)
        sharded = self._stores.world_size > 1 and kind in self.kinds
        arrays = self._arrays(kind) if sharded else {}

        def owners(layer: str, ranks: Sequence[int]) -> Sequence[int]:
            places = [place for place in arrays.get(layer, ()) if place[0] in ranks]
            if not places:
                return ranks
            whole = Assembly(kind, [Piece(view, array, rank) for rank, view, array in places])
            return [piece.rank for piece in whole.pieces] if whole.complete else []

        views = self.views(statistics_group(kind))
        return Statistics(views, kind, owners, lambda: self._aliases(kind))

    def nonfinite(self) -> NonFinite | None:
        """Return the first step, and its first layer in forward order, with NaN or infinity.

        Returns
        -------
        NonFinite or None
            None when all statistics are of finite values. Of one step, activations come before
            gradients and gradients before weights, as they arise.
        """
        first: NonFinite | None = None
        for kind in ("activations", "gradients", "weights"):
            if statistics_group(kind) not in self.groups():
                continue
            statistics = self.statistics(kind)
            steps, values = statistics.table()
            counts = np.nan_to_num(
                np.stack([derive(values, name) for name in ("nan", "posinf", "neginf")], axis=-1)
            )
            bad = np.argwhere(counts.any(axis=-1))
            if len(bad) and (first is None or steps[bad[0][0]] < first.step):
                row, position = bad[0].tolist()
                nan, posinf, neginf = counts[row, position].astype(int).tolist()
                layer = statistics.layers[position]
                first = NonFinite(int(steps[row]), kind, layer, nan, posinf, neginf)
        return first

    def diff(
        self,
        other: Run | str | os.PathLike[str],
        *,
        kinds: Sequence[str] | None = None,
        layers: Selector = "*",
        steps: slice = slice(None),
    ) -> list[Difference]:
        """Compare this run's frames with another's.

        Parameters
        ----------
        other : Run, str or path-like
            The other run.
        kinds : sequence of str, optional
            Kinds to compare; all that both have by default.
        layers : str or iterable of str
            Selector of layers; those that both have are compared.
        steps : slice
            Of steps, by label; those that both have are compared.

        Returns
        -------
        list of Difference
            One for each kind, layer and step, the worst first.

        Raises
        ------
        StoreError
            If a layer has different shapes, or nothing can be compared.
        """
        against = other if isinstance(other, Run) else open_run(other)
        return compare(self, against, kinds=kinds, layers=layers, steps=steps)

    def follow(self, kind: str, *, poll: float = 0.2) -> Iterator[int]:
        """Yield the steps of a kind, those that are there and those that a live run adds.

        Parameters
        ----------
        kind : str
            The kind.
        poll : float
            Seconds between looks.

        Yields
        ------
        int
            Steps, ascending; a run that is resumed from an earlier step repeats some. Ends when the
            run is no longer running.
        """
        last, attempts = -1, len(self.attributes["attempts"])
        while True:
            made = self.attributes["attempts"]
            for attempt in made[attempts:]:  # resumed: steps from there on come again
                last = min(last, (attempt["first_step"] or 2**63) - 1)
            attempts = len(made)
            running = state_of(made, self.place) == "running"
            steps = self.steps(kind) if kind in self.groups() else np.empty(0, np.int64)
            for step in steps[steps > last].tolist():
                last = step
                yield step
            if not running:
                return
            time.sleep(poll)

    def status(self) -> Status:
        """Return how the run is doing, on all ranks."""
        return status_of(self.path, self._stores)

    def close(self) -> None:
        """Do nothing: a run that is read holds no files open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Run {self.path}: {', '.join(self.kinds) or 'empty'}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{kind}</td><td>{len(self.layers(kind))}</td><td>{len(self.steps(kind))}</td></tr>"
            for kind in self.kinds
        )
        head = "<tr><th>kind</th><th>layers</th><th>steps</th></tr>"
        return f"<b>{html.escape(self.path)}</b><table>{head}{rows}</table>"


def open_run(run: str | os.PathLike[str]) -> Run:
    """Open a run for reading, live or finished.

    Parameters
    ----------
    run : str or path-like
        Local path, or a URL (``s3://``, ``gs://``, ``az://``, ``http://``, ``https://``), for which
        the extra ``remote`` is needed.

    Returns
    -------
    Run
        The run.

    Raises
    ------
    RunNotFoundError
        If there is nothing at the path.
    NotARunError
        If it is not a filmstrip run.
    FormatError
        If a newer filmstrip wrote it.

    Examples
    --------
    >>> import tempfile
    >>> from filmstrip.store import create_run
    >>> folder = tempfile.mkdtemp()
    >>> with create_run(f"{folder}/run.zarr") as run:
    ...     run.log(0, {"loss": 0.5})
    >>> open_run(f"{folder}/run.zarr").scalars["loss"].values
    array([0.5])
    """
    return Run(place_of(run))
