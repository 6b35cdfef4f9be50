"""What is given: the only place that tells strips, runs, arrays and mappings of them apart.

And the only one that knows which command draws what Python's functions were given.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from filmstrip.render._array_source import ArraySource, as_array, is_column, lines_of
from filmstrip.render._draw import describe
from filmstrip.render._source import RunSource
from filmstrip.render._spec import CurveSpec, Spec, checked
from filmstrip.render.errors import SourceError, SpecError
from filmstrip.store import Run, Series, StoreError, Strip

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from filmstrip.render._image import Picture
    from filmstrip.render._source import Line
    from filmstrip.render._spec import HistogramSpec

__all__ = [
    "Curves",
    "curves_of",
    "described",
    "known_of",
    "page_of",
    "picks_of",
    "source_of",
    "step_of",
    "title_of",
]

# What a picture is described by: a spec and the runs that it is of. None where only they are known.
Known: TypeAlias = tuple[Spec | None, tuple[RunSource, ...]]
# Selectors are separated by commas, and a name of these letters is none but itself.
_PLAIN: Final = re.compile(r"(?!re:)[^-*?\[,][^*?\[,]*")


def source_of(x: object, layout: str | None) -> tuple[Strip | None, RunSource | ArraySource]:
    """Return what a picture is drawn from, and the strip if it is one."""
    if isinstance(x, Strip):
        return x, RunSource(x.run)
    if isinstance(x, Run):
        raise SpecError(f"{x.name} is a run; give one of its strips, as run.activations['conv1']")
    return None, ArraySource(as_array(x), layout)


def step_of(strip: Strip | None, step: object) -> int:
    """Return the step itself where it was counted from the end, so that it is in the metadata."""
    number: int = checked("step", step, "int")
    if strip is None or number >= 0 or -number > len(strip.steps):
        return number
    return int(strip.steps[number])


def title_of(title: str | None, x: object) -> str:
    """Return the title that was given, else what tells where the values come from."""
    if checked("title", title, "str | None") is not None:
        return str(title)
    if isinstance(x, Strip):
        return x.layer
    return type(x).__name__ if not isinstance(x, np.ndarray) else "array"


def picks_of(picks: str | int | slice | Sequence[int], what: str) -> str:
    """Write picks as on the command line.

    Raises
    ------
    SpecError
        If they are no whole numbers.
    """
    if isinstance(picks, slice):
        parts = [picks.start, picks.stop, picks.step]
        words = ["" if part is None else str(part) for part in parts]
        return ":".join(words if picks.step is not None else words[:2])
    if isinstance(picks, str):
        return picks
    several: Any = picks if np.iterable(picks) else [picks]
    try:
        return ",".join(str(operator.index(one)) for one in several)
    except TypeError:
        raise SpecError(
            f"{what} is {picks!r}; it must be a whole number, several, a slice, or a string as "
            "'all' or '0:64'"
        ) from None


def known_of(strip: Strip | None, spec: Spec) -> Known:
    """Describe a picture of a strip; of an array nothing is known."""
    return (None, ()) if strip is None else (spec, (RunSource(strip.run),))


def described(picture: Picture, known: Known) -> Picture:
    """Write into a picture what is known of where it comes from."""
    spec, sources = known
    if spec is not None and sources:
        return picture.with_metadata(describe(spec, sources))
    about = {"Software": "filmstrip"}
    if sources:
        about["filmstrip-run"] = " ".join(source.id for source in sources)
    return picture.with_metadata(about)


def page_of(strips: Iterable[object], spec: HistogramSpec) -> Known:
    """Describe histograms of several strips: a page of the layers of one run, or of several."""
    given = list(strips)
    names, sources = _joined([_origin(one, "") for one in given])
    kinds = {one.kind for one in given if isinstance(one, Strip)}
    if not names or len(kinds) != 1 or not all(map(_PLAIN.fullmatch, names)):
        return None, sources
    return replace(spec, kind=kinds.pop(), layer=",".join(names)), sources


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves, how they are drawn, names of what holds none, and where they come from."""

    lines: list[Line]
    spec: CurveSpec
    title: str | None
    missing: list[str]
    known: Known


def curves_of(x: object, spec: CurveSpec, *, stat: str | None, kind: str) -> Curves:
    """Take curves from whatever holds some.

    Parameters
    ----------
    x : object
        A run, a strip, a series, values, or a mapping of names to these.
    spec : CurveSpec
    stat : str or None
        Of a strip a statistic, of a run ``"LAYER/STAT"``.
    kind : str
        Of the layers of a run.

    Raises
    ------
    SourceError, StoreError
        If none of them holds such a curve.
    SpecError
        If values are no curve, or are asked for what only runs know.
    """
    checked("stat", stat, "str | None")
    several = hasattr(x, "keys") and hasattr(x, "__getitem__") and not is_column(x)
    given: dict[str, Any] = {str(name): x[name] for name in x.keys()} if several else {"": x}  # type: ignore[attr-defined, index]  # noqa: SIM118
    if not given:
        raise SourceError("there are no curves: the mapping is empty")
    stored = all(isinstance(one, Run | Strip) for one in given.values())
    if spec.x == "time" and not stored:
        raise SpecError("only a run knows the time of its steps; give times as x of a pair")
    if (stat is not None or spec.band) and not stored:
        raise SpecError("stat and band are of strips and runs; these are values already")
    lines: list[Line] = []
    failed: dict[str, SourceError | StoreError] = {}
    specs = [_spec_of(one, spec, stat, kind) for one in given.values()]
    for (name, one), own in zip(given.items(), specs, strict=True):
        try:
            found = _lines(one, own, name)
        except (SourceError, StoreError) as error:
            failed[name] = error
            continue
        if several and stored:
            labels = [f"{name} {line.label}" if len(found) > 1 else name for line in found]
            found = [replace(a, label=b) for a, b in zip(found, labels, strict=True)]
        lines += found
    if failed and (not lines or not stored):
        raise next(iter(failed.values()))
    origins = [_origin(a, b.name) for a, b in zip(given.values(), specs, strict=True)]
    names, sources = _joined(origins)
    one = replace(specs[0], name=",".join(names) or "*")
    alike = len({(own.stat, own.kind) for own in specs}) == 1
    plain = len(names) == 1 or all(map(_PLAIN.fullmatch, names))
    known = (one if names and alike and plain else None, sources)
    if not stored:
        return Curves(lines, spec, lines[0].label if len(lines) == 1 else "", [], known)
    one = replace(one, kind=" and ".join(dict.fromkeys(own.kind for own in specs)))
    return Curves(lines, one, None if len(names) == 1 else one.stat, list(failed), known)


def _spec_of(one: object, spec: CurveSpec, stat: str | None, kind: str) -> CurveSpec:
    if isinstance(one, Strip):
        what = stat or ("mean" if spec.band else "l2")
        return replace(spec, name=one.layer, stat=what, kind=one.kind)
    if isinstance(one, Run) and stat is not None:
        layer, _, what = stat.rpartition("/")
        if not layer or not what:
            raise SpecError(f"stat is {stat!r}; of a run it must be LAYER/STAT, as 'conv1/l2'")
        return replace(spec, name=layer, stat=what, kind=kind)
    if isinstance(one, Run) and spec.band:
        raise SpecError("band is around a mean: give stat='LAYER/mean'")
    return spec


def _lines(one: object, spec: CurveSpec, name: str) -> list[Line]:
    if isinstance(one, Strip):
        source = RunSource(one.run)
        if not source.described(one.kind, one.layer):
            raise SourceError(f"{one.layer} has no committed steps yet")
        return source.series(spec)
    return RunSource(one).series(spec) if isinstance(one, Run) else lines_of(one, name)


def _origin(one: object, name: str) -> tuple[Run, str] | None:
    """Return the run of something given, and what of the run it is."""
    if isinstance(one, Run):
        return one, name
    if isinstance(one, Strip):
        return one.run, one.layer
    return (one.run, one.name) if isinstance(one, Series) and one.run is not None else None


def _joined(
    origins: Sequence[tuple[Run, str] | None],
) -> tuple[list[str], tuple[RunSource, ...]]:
    """Return runs, and the names of what is shown of each; none where that is not all alike."""
    known = [one for one in origins if one is not None]
    runs = {str(run.path): run for run, _ in known}
    names = list(dict.fromkeys(name for _, name in known))
    pairs = {(str(run.path), name) for run, name in known}
    if len(known) < len(origins) or len(pairs) < len(runs) * len(names):
        names = []
    return names, tuple(RunSource(run) for run in runs.values())
