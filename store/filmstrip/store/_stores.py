"""Stores: the only place that finds the stores of a run's ranks.

Each rank that writes has a store of its own, rank 0's is the run's face. Nothing is listed: the
world's size tells which ones to expect.
"""

from __future__ import annotations

from filmstrip.store._metadata import Json, MetadataFile, run_attributes
from filmstrip.store._names import METADATA, rank_path
from filmstrip.store._place import LocalPlace, Place
from filmstrip.store._view import GroupView
from filmstrip.store.errors import FormatError


class RankStore:
    """One rank's store, read only.

    Parameters
    ----------
    place : Place
        Where it is.

    Raises
    ------
    RunNotFoundError, NotARunError, FormatError
        If it is not there, or cannot be read.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        if isinstance(place, LocalPlace):
            place.check_inside()
        self._file = MetadataFile(place / METADATA)
        self._views: dict[str, GroupView] = {}
        self.rank = int(self.attributes.get("rank", 0))

    @property
    def attributes(self) -> Json:
        """What the root of the store says."""
        return run_attributes(self.place, self._file)

    def groups(self) -> tuple[str, ...]:
        """Return the paths of its groups."""
        return tuple(self.attributes["groups"])

    def view(self, group: str) -> GroupView:
        """Return one of its groups."""
        view = self._views.get(group)
        if view is None:
            view = self._views[group] = GroupView(self.place, group)
        return view


class RankStores:
    """The stores of a run: the one that was opened and, when that is rank 0's, the other ranks'.

    Parameters
    ----------
    face : RankStore
        The store that was opened.
    """

    def __init__(self, face: RankStore) -> None:
        self.face = face
        self._found = {face.rank: face}
        self._gone: set[int] = set()

    @property
    def world_size(self) -> int:
        """Ranks to expect; 1 when one rank's store was opened by its own path."""
        return int(self.face.attributes.get("world_size", 1)) if self.face.rank == 0 else 1

    @property
    def writers(self) -> tuple[int, ...]:
        """Ranks that are expected to write."""
        writers = self.face.attributes.get("writers") if self.world_size > 1 else None
        return tuple(range(self.world_size)) if writers is None else tuple(writers)

    def all(self) -> list[RankStore]:
        """Return the stores that are there, by rank.

        Raises
        ------
        FormatError
            If the store at a rank's path says that it is another's.
        """
        final = "ended" in (self.face.attributes["attempts"] or [{}])[-1]
        for rank in range(1, self.world_size):
            if rank in self._found or (final and rank in self._gone):
                continue
            place = self.face.place / rank_path(rank)
            if not (place / METADATA).exists():
                self._gone.add(rank)
                continue
            store = RankStore(place)
            if store.rank != rank:
                raise FormatError(str(place), f"it says that it is the store of rank {store.rank}")
            self._found[rank] = store
        return [self._found[rank] for rank in sorted(self._found)]

    def having(self, group: str) -> list[RankStore]:
        """Return the stores that have a group, by rank."""
        return [store for store in self.all() if group in store.groups()]
