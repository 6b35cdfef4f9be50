"""Mappings: the only place that lets a run be used like a dict of its layers and scalars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from filmstrip.store._names import SCALARS, canonical
from filmstrip.store._select import nearest_names
from filmstrip.store._strip import Strip
from filmstrip.store._view import Series
from filmstrip.store.errors import LayerNotFoundError

if TYPE_CHECKING:
    from filmstrip.store._run import Run


class Strips(Mapping[str, Strip]):
    """The strips of one kind by layer, in forward order."""

    def __init__(self, run: Run, kind: str) -> None:
        self._run, self._kind = run, kind

    def _names(self) -> list[str]:
        return self._run.layers(self._kind) if self._kind in self._run.groups() else []

    def __getitem__(self, layer: str) -> Strip:
        return self._run.strip(self._kind, layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<{self._kind}: {', '.join(self) or 'none'}>"


class Scalars(Mapping[str, Series]):
    """The scalars by the names under which they were logged."""

    def __init__(self, run: Run, kind: str) -> None:
        self._run, self._kind = run, kind

    def _names(self) -> dict[str, str]:
        if self._kind not in self._run.groups():
            return {}
        documents = self._run.view(self._kind).documents
        return {
            document["attributes"]["filmstrip"]["original"]: name
            for name, document in documents.items()
            if document["attributes"]
        }

    def __getitem__(self, name: str) -> Series:
        names = self._names()
        found: str | None = name
        if name not in names:  # `train/loss` and `train.loss` are one name
            found = {canonical(original): original for original in names}.get(canonical(name))
        if found is None:
            raise LayerNotFoundError(
                name,
                f"the {self._kind} of {self._run.name}",
                nearest_names(name, list(names)),
            )
        series = self._run.view(self._kind).series(names[found])
        return Series.named(found, *series, run=self._run if self._kind == SCALARS else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<{self._kind}: {', '.join(self) or 'none'}>"
