"""Differences: the only place that compares two runs, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from filmstrip.store._names import FRAME_KINDS
from filmstrip.store._select import Selector, select, slice_steps
from filmstrip.store.errors import StoreError

if TYPE_CHECKING:
    from filmstrip.store._run import Run


class Difference(NamedTuple):
    """How far two frames lie apart.

    Attributes
    ----------
    kind, layer : str
        What was compared.
    step : int
        At which step.
    max_abs : float
        Largest |a − b|; infinite where one is not finite and the other differs.
    relative_l2 : float
        ‖a − b‖₂ / ‖b‖₂, 0 for equal frames, infinite where b is zero and a is not.
    """

    kind: str
    layer: str
    step: int
    max_abs: float
    relative_l2: float


def difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the largest |a − b| and the relative L2 distance of two arrays of one shape.

    Examples
    --------
    >>> difference(np.array([3.0, 5.0]), np.array([3.0, 4.0]))
    (1.0, 0.2)
    """
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    one, other = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other)
    # Equal infinities, and NaN on both sides, are no difference; anything else unordered is one.
    apart[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    apart[np.isnan(apart)] = np.inf
    largest = float(apart.max(initial=0.0))
    if largest == 0.0:
        return 0.0, 0.0
    scale = float(np.linalg.norm(np.nan_to_num(other.ravel(), posinf=0.0, neginf=0.0)))
    distance = float(np.linalg.norm(apart.ravel()))
    return largest, distance / scale if scale else np.inf


def compare(
    run: Run,
    other: Run,
    *,
    kinds: Sequence[str] | None = None,
    layers: Selector = "*",
    steps: slice = slice(None),
) -> list[Difference]:
    """Compare what two runs have in common; see `Run.diff`."""
    shared = [kind for kind in run.kinds if kind in other.kinds and kind in FRAME_KINDS]
    found: list[Difference] = []
    compared = 0
    for kind in shared if kinds is None else kinds:
        there = set(other.layers(kind))
        for layer in select(layers, [name for name in run.layers(kind) if name in there]):
            one, two = run.strip(kind, layer), other.strip(kind, layer)
            if one.shape != two.shape:
                raise StoreError(
                    f"{kind} of {layer!r} are {one.shape} in {run.name} and {two.shape} in "
                    f"{other.name}; leave the layer out, or compare runs of one model"
                )
            common = np.intersect1d(one.steps, two.steps)
            for step in slice_steps(common, steps).tolist():
                a, b = one.frame(step), two.frame(step)
                length = min(len(a), len(b)) if a.ndim else None
                found.append(
                    Difference(kind, layer, step, *difference(a[:length], b[:length]))
                    if a.ndim
                    else Difference(kind, layer, step, *difference(a[None], b[None]))
                )
                compared += 1
    if not compared:
        raise StoreError(f"{run.name} and {other.name} have no frame in common")
    return sorted(found, key=lambda one: (-one.relative_l2, -one.max_abs, one.step))
