"""The grid: one layer at one step as tiles, or as a matrix where it has one plane only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from filmstrip.render._array_source import as_real
from filmstrip.render._grid_sheet import plan_tiles, tile_sheet
from filmstrip.render._image import Picture
from filmstrip.render._layout import Arrangement, arrange
from filmstrip.render._matrix_sheet import matrix_sheet, plan_matrix
from filmstrip.render._palette import BACKGROUND, NAN, NEGINF, POSINF, check_colormap, quantise
from filmstrip.render._picks import pick_entries
from filmstrip.render._scale import Scale, ScaleMode, choose_scale
from filmstrip.render._sheet import Caption, Ruler, Sheet, check_size
from filmstrip.render._spec import GridSpec
from filmstrip.render._tiles import pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from filmstrip.render._source import Frame, Source
    from filmstrip.render._spec import Spec

__all__ = ["draw", "of_sources"]

SEQUENTIAL: Final = "viridis"
DIVERGING: Final = "RdBu_r"
_MEASURES: Final = {
    "activations": "activation",
    "weights": "weight",
    "gradients": "gradient",
    "inputs": "input",
    "images": "intensity",
}


def draw(source: Source, spec: GridSpec, *, title: str | None = None) -> Picture:
    """Draw a grid.

    Parameters
    ----------
    source : Source
    spec : GridSpec
    title : str or None
        None: the layer.

    Returns
    -------
    Picture

    Raises
    ------
    SourceError, SpecError
        If the frame does not hold what the spec asks for.
    """
    frame = source.frame(spec)
    values, words = frame.values, list(frame.words)
    if np.iscomplexobj(values):
        values, words = np.abs(values), [*words, "modulus"]
    arranged = arrange(as_real(values), frame.layout, kind=spec.kind, sample=spec.sample)
    picked, names = _pick(arranged, spec)
    if spec.cmap is not None:
        check_colormap(spec.cmap)
    limits = source.limits(spec) if spec.scale == "run" else None
    if spec.scale == "run" and limits is None:
        words.append("no run to take the scale from")
    if arranged.flat:
        sheet = _flat(arranged, picked, names, frame, spec, limits, words, title)
    else:
        sheet = _tiled(arranged, picked, names, frame, spec, limits, words, title)
    check_size((sheet.chrome.width, sheet.chrome.height))
    return Picture(sheet=sheet, dpi=spec.dpi)


def _pick(arranged: Arrangement, spec: GridSpec) -> tuple[npt.NDArray[Any], list[int]]:
    """Apply ``channels``: to groups, or to the rows of a weight matrix, or to units.

    Returns the values and the numbers of what was picked.
    """
    values = arranged.values
    if spec.channels == "all":
        return values, list(range(values.shape[0]))
    if not arranged.flat:
        names = pick_entries(
            spec.channels, values.shape[0], "filter" if arranged.filters else "channel"
        )
        return values[names], names
    axis = _picked_axis(arranged)
    entries = pick_entries(spec.channels, values.shape[axis], "channel")
    return values.take(entries, axis=axis), entries


def _picked_axis(arranged: Arrangement) -> int:
    return 2 if arranged.row_name == "out features" else 3


def _scale(
    values: npt.NDArray[Any],
    spec: GridSpec,
    limits: tuple[float, float] | None,
    *,
    flat: bool = False,
) -> Scale:
    signed = True if spec.kind in {"weights", "gradients"} else None
    mode: ScaleMode = "shared" if flat and spec.scale == "each" else spec.scale
    return choose_scale(
        values, mode=mode, signed=signed, limits=limits, vmin=spec.vmin, vmax=spec.vmax
    )


def _bad(levels: npt.NDArray[np.uint8], values: npt.NDArray[Any]) -> dict[int, int]:
    """Count what is no number; looked for only where the bytes show some."""
    if levels.max() <= BACKGROUND:
        return {}
    return {
        NAN: int(np.isnan(values).sum()),
        POSINF: int(np.isposinf(values).sum()),
        NEGINF: int(np.isneginf(values).sum()),
    }


def _cmap(spec: GridSpec, scale: Scale) -> str:
    return spec.cmap or (DIVERGING if scale.diverging else SEQUENTIAL)


def _caption(spec: GridSpec, parts: list[str], title: str | None) -> Caption:
    name = spec.layer or spec.kind if title is None else title
    return Caption(name, tuple(parts), _MEASURES.get(spec.kind, "value"))


def _where(frame: Frame, arranged: Arrangement) -> list[str]:
    parts = [frame.kind] if frame.kind else []
    parts += [f"step {frame.step}"] if frame.step is not None else []
    return parts + ([f"sample {arranged.sample}"] if arranged.sample is not None else [])


def _tiled(
    arranged: Arrangement,
    picked: npt.NDArray[Any],
    names: list[int],
    frame: Frame,
    spec: GridSpec,
    limits: tuple[float, float] | None,
    words: list[str],
    title: str | None,
) -> Sheet:
    ruler = Ruler(spec.dpi)
    plan = plan_tiles(
        picked.shape,
        columns=spec.columns,
        padding=spec.padding,
        downsample=spec.downsample,
        ruler=ruler,
    )
    groups, inner, h, w = picked.shape
    check_size(plan.block(h, w))
    values = picked[: plan.groups, : plan.inner]
    scale = _scale(values, spec, limits)
    pooled = pool(values, (plan.factor, plan.factor), spec.downsample)
    if scale.lows is None or scale.highs is None:
        levels = quantise(pooled, scale.low, scale.high)
    else:
        levels = quantise(pooled, scale.lows, scale.highs)
    dead: list[int] = []
    if frame.kind == "activations":
        dead = np.flatnonzero(~values.any(axis=(1, 2, 3))).tolist()
    parts = _where(frame, arranged)
    parts += _sizes(arranged, plan.groups, plan.inner, (h, w))
    if plan.groups < groups or plan.inner < inner:
        parts.append("the others left out, --channels picks")
    elif len(names) < arranged.values.shape[0]:
        parts.append(f"of {arranged.values.shape[0]}")
    parts += [scale.words, *words]
    if plan.factor > 1:
        parts.append(_pooled((plan.factor, plan.factor), spec))
    if dead:
        # Of the sample that is shown, which is all that a frame can tell.
        parts.append(f"{len(dead)} dead")
    return tile_sheet(
        levels,
        plan=plan,
        scale=scale,
        caption=_caption(spec, parts, title),
        names=names[: plan.groups],
        inner_names=list(range(plan.inner)),
        dead=dead,
        bad=_bad(levels, values),
        cmap=_cmap(spec, scale),
        ruler=ruler,
    )


def _sizes(arranged: Arrangement, groups: int, inner: int, plane: tuple[int, int]) -> list[str]:
    size = f"{plane[0]}×{plane[1]}"
    total, depth = arranged.values.shape[:2]
    shown = f"{groups}" if groups == total else f"{groups} of {total}"
    if not arranged.filters:
        kind = "channels" if depth == 1 else f"channels × {inner} planes"
        return [f"{shown} {kind if total != 1 else kind.replace('channels', 'channel')} × {size}"]
    inputs = f"{inner}" if inner == depth else f"{inner} of {depth}"
    word = "channel" if depth == 1 else "channels"
    return [f"{shown} filters × {size}", f"{inputs} input {word}"]


def _pooled(factors: tuple[int, int], spec: GridSpec) -> str:
    how = {"absmax": "signed abs-max", "mean": "mean", "rms": "root mean square"}
    return f"1 cell = {factors[0]}×{factors[1]} values ({how[spec.downsample]})"


def _flat(
    arranged: Arrangement,
    picked: npt.NDArray[Any],
    numbers: list[int],
    frame: Frame,
    spec: GridSpec,
    limits: tuple[float, float] | None,
    words: list[str],
    title: str | None,
) -> Sheet:
    ruler = Ruler(spec.dpi)
    plane = picked[0, 0]
    h, w = plane.shape
    plan = plan_matrix(h, w, downsample=spec.downsample, ruler=ruler)
    check_size(plan.block(h, w))
    scale = _scale(picked, spec, limits, flat=True)
    pooled = pool(plane, plan.factors, spec.downsample)
    levels = quantise(pooled, scale.low, scale.high)
    bad = _bad(levels, plane)
    parts = _where(frame, arranged)
    vector = h == 1
    if vector:
        parts.append(f"{w} value{'s' * (w != 1)}")
    elif arranged.row_name == "out features":
        parts.append(f"{h} out × {w} in")
    elif arranged.row_name == "sample":
        parts.append(f"{h} samples × {w} units")
    else:
        parts.append(f"{h}×{w}")
    numbered: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if spec.channels != "all":
        axis = _picked_axis(arranged)
        parts.append(f"{len(numbers)} of {arranged.values.shape[axis]}")
        numbered = (tuple(numbers), ()) if axis == 2 else ((), tuple(numbers))
    parts += [scale.words.replace("shared scale", "one scale"), *words]
    shown = plane
    if plan.wrap is not None:
        rows = -(-w // plan.wrap)
        full = np.full(rows * plan.wrap, BACKGROUND, np.uint8)
        full[:w] = levels[0]
        levels, shown = full.reshape(rows, plan.wrap), np.zeros((rows, plan.wrap), plane.dtype)
        parts.append(f"in rows of {plan.wrap}")
    if plan.factors != (1, 1):
        parts.append(_pooled(plan.factors, spec))
    names = (arranged.row_name, arranged.column_name)
    if plan.wrap is not None:
        names = (f"row of {plan.wrap}", "unit")
    return matrix_sheet(
        levels,
        shown,
        plan=plan,
        scale=scale,
        caption=_caption(spec, parts, title),
        axes=names,
        numbers=numbered if plan.wrap is None else ((), ()),
        bad=bad,
        cmap=_cmap(spec, scale),
        ruler=ruler,
    )


def of_sources(sources: Sequence[Source], spec: Spec) -> Picture:
    """Draw from the only source there is."""
    assert isinstance(spec, GridSpec)
    (source,) = sources
    return draw(source, spec)
