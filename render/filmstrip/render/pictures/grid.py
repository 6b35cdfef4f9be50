"""The grid: one layer at one step as tiles, or as a matrix where it has one plane only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from filmstrip.render._array_source import as_real
from filmstrip.render._density import nonfinite_words
from filmstrip.render._grid_sheet import plan_tiles, tile_sheet
from filmstrip.render._grid_words import dead_words, plane_words, pooled_words, tile_words
from filmstrip.render._image import Picture
from filmstrip.render._layout import Arrangement, arrange, arrange_images, check_fits
from filmstrip.render._matrix_sheet import matrix_sheet, plan_matrix
from filmstrip.render._palette import BACKGROUND, NAN, NEGINF, POSINF, check_colormap, quantise
from filmstrip.render._picks import pick_entries
from filmstrip.render._scale import Scale, ScaleMode, Spread, choose_scale
from filmstrip.render._sheet import Caption, Ruler, Sheet, check_size
from filmstrip.render._spec import GridSpec
from filmstrip.render._thumbnail import thumbnail
from filmstrip.render._tiles import pool
from filmstrip.render.errors import SourceError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from filmstrip.render._source import Frame, Source
    from filmstrip.render._spec import Spec
    from filmstrip.render._tiles import Downsample

__all__ = ["draw", "lay_out", "of_sources", "shown"]

SEQUENTIAL: Final = "viridis"
DIVERGING: Final = "RdBu_r"
GREY: Final = "gray"  # as matplotlib spells it
ROOM: Final = 300  # design pixels that the title of a frame leaves for its step
FIGURE_SPACE: Final = "\u2007"  # as wide as a digit
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
    drawing = _drawing(source, spec, title, None)
    sheet = _sheet(drawing)
    words = nonfinite_words(
        sheet.bad.get(NAN, 0), sheet.bad.get(POSINF, 0) + sheet.bad.get(NEGINF, 0)
    )
    nonfinite = (words, drawing.frame.step) if words else None
    return Picture(sheet=sheet, dpi=spec.dpi, nonfinite=nonfinite)


def lay_out(
    source: Source, spec: GridSpec, *, title: str | None = None, spread: Spread | None = None
) -> Sheet:
    """Lay out a grid, or one frame of an animation.

    Parameters
    ----------
    source : Source
    spec : GridSpec
    title : str or None
        None: the layer.
    spread : Spread or None
        Of the values of all frames, of which this is one: all are laid out alike, without
        their step, and with room for it.

    Returns
    -------
    Sheet

    Raises
    ------
    SourceError, SpecError
        If the frame does not hold what the spec asks for.
    """
    return _sheet(_drawing(source, spec, title, spread))


def _sheet(drawing: _Drawing) -> Sheet:
    sheet = _flat(drawing) if drawing.arranged.flat else _tiled(drawing)
    check_size((sheet.chrome.width, sheet.chrome.height))
    return sheet


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A frame as it is to be drawn: ``values`` are those of ``arranged`` that were picked.

    ``numbers`` are theirs; ``input`` is the image that the maps were made of, where it is known.
    """

    spec: GridSpec
    frame: Frame
    arranged: Arrangement
    values: npt.NDArray[Any]
    numbers: list[int]
    limits: tuple[float, float] | None
    spread: Spread | None
    input: npt.NDArray[Any] | None
    words: tuple[str, ...]
    title: str | None

    def scale(self, values: npt.NDArray[Any], pooled: npt.NDArray[Any], how: Downsample) -> Scale:
        """Choose the range of the colours: of the values, or of means, which are much smaller."""
        spec, arranged = self.spec, self.arranged
        signed = True if spec.kind in {"weights", "gradients"} else None
        if pooled.shape != values.shape and how != "absmax":
            values, signed = pooled, None if how == "rms" else signed
        vmin, vmax = spec.vmin, spec.vmax
        if arranged.color and arranged.group == "image":
            signed = False  # else a normalised image would be grey
            if vmin is None and vmax is None and spec.scale == "shared":
                vmin, vmax = _brightness(self.frame.values)
        mode: ScaleMode = "shared" if arranged.flat and spec.scale == "each" else spec.scale
        return choose_scale(
            values,
            mode=mode,
            signed=signed,
            limits=self.limits,
            spread=self.spread,
            vmin=vmin,
            vmax=vmax,
        )

    def cmap(self, scale: Scale) -> str:
        """Choose the colours."""
        if self.arranged.color:
            return self.spec.cmap or GREY
        return self.spec.cmap or (DIVERGING if scale.diverging else SEQUENTIAL)

    def bad(self, levels: npt.NDArray[np.uint8], values: npt.NDArray[Any]) -> dict[int, int]:
        """Count what is no number; looked for only where bytes, or other frames, show some."""
        if levels.max() <= BACKGROUND and not (self.spread is not None and self.spread.bad):
            return {}
        return {
            NAN: int(np.isnan(values).sum()),
            POSINF: int(np.isposinf(values).sum()),
            NEGINF: int(np.isneginf(values).sum()),
        }

    def caption(self, parts: Sequence[str]) -> Caption:
        """Put title and subtitle together, which begins with where the frame stands."""
        frame, sample = self.frame, self.arranged.sample
        where = [frame.kind] if frame.kind else []
        if frame.step is not None and self.spread is None:
            where.append(f"step {frame.step}")
        if sample is not None:
            where.append(f"sample {sample}")
        name = self.spec.layer or self.spec.kind if self.title is None else self.title
        room = 0 if self.spread is None else ROOM
        measure = _MEASURES.get(self.spec.kind, "value")
        return Caption(name, (*where, *parts), measure, room)


def _drawing(source: Source, spec: GridSpec, title: str | None, spread: Spread | None) -> _Drawing:
    frame = source.frame(spec)
    words = [*frame.words, *(["modulus"] if np.iscomplexobj(frame.values) else [])]
    arranged, picked, numbers = shown(frame, spec)
    if spec.cmap is not None:
        check_colormap(spec.cmap)
        if arranged.color and picked.shape[1] > 1:
            raise SpecError(f"{spec.layer or 'the array'} has colours of its own; leave --cmap out")
    limits = source.limits(spec) if spec.scale == "run" else None
    if spec.scale == "run" and limits is None:
        words.append("no run to take the scale from")
    image = None
    if not arranged.flat and arranged.sample is not None and spread is None:
        image = _input(source, spec, arranged.sample)
    return _Drawing(
        spec, frame, arranged, picked, numbers, limits, spread, image, tuple(words), title
    )


def shown(frame: Frame, spec: GridSpec) -> tuple[Arrangement, npt.NDArray[Any], list[int]]:
    """Return a frame's arrangement, the values of it that a grid shows, and their numbers.

    Raises
    ------
    SpecError
        If colours are wanted of what has none, or a layout of what has other axes.
    """
    check_fits(spec.layout, frame.values.shape, spec.layer)
    values = np.abs(frame.values) if np.iscomplexobj(frame.values) else frame.values
    values = as_real(values)
    arranged = None
    wanted = spec.kind in {"inputs", "images"} if spec.rgb is None else spec.rgb
    if wanted:
        arranged = arrange_images(values, frame.layout, kind=spec.kind, sample=spec.sample)
    if spec.rgb and arranged is None:
        shape = "×".join(map(str, values.shape))
        raise SpecError(
            f"--rgb needs images, or kernels of them, with 1 or 3 channels; "
            f"{spec.layer or 'the array'} has shape {shape}"
        )
    if arranged is None:
        arranged = arrange(values, frame.layout, kind=spec.kind, sample=spec.sample)
    picked, numbers = _pick(arranged, spec, _thinned(frame, arranged))
    if arranged.color and arranged.group == "image" and spec.sample is not None:
        numbers = [spec.sample % len(frame.values)]
    return arranged, picked, numbers


def _thinned(frame: Frame, arranged: Arrangement) -> int:
    """Return of how many groups one was kept."""
    return frame.every[1] if frame.every and frame.every[0] == arranged.group_axis else 1


def _pick(arranged: Arrangement, spec: GridSpec, every: int) -> tuple[npt.NDArray[Any], list[int]]:
    """Apply ``channels``: to groups, or to the rows of a weight matrix, or to units.

    Returns the values and the numbers of what was picked, which are the network's.
    """
    values = arranged.values
    count = values.shape[0]
    if spec.channels == "all":
        return values, list(range(0, count * every, every))
    of = f" of {spec.layer}" if spec.layer else ""
    if not arranged.flat:
        asked = pick_entries(spec.channels, count * every, f"{arranged.group}{of}")
        names = [name for name in asked if name % every == 0]
        if not names:
            raise SourceError(f"{arranged.group} {asked[0]} was not kept: one of {every} was")
        return values[[name // every for name in names]], names
    axis = _picked_axis(arranged)
    entries = pick_entries(spec.channels, values.shape[axis], f"channel{of}")
    return values.take(entries, axis=axis), entries


def _picked_axis(arranged: Arrangement) -> int:
    return 2 if arranged.row_name in {"out features", "row", "unit"} else 3


def _input(source: Source, spec: GridSpec, sample: int) -> npt.NDArray[Any] | None:
    """Return the image that an activation was made of, shape (channel, h, w)."""
    if spec.kind != "activations":
        return None
    frame = source.input(spec)
    if frame is None:
        return None
    values = as_real(frame.values)
    arranged = arrange_images(values, frame.layout, kind="inputs")
    if arranged is None or sample >= len(arranged.values):
        return None
    image: npt.NDArray[Any] = arranged.values[sample]
    return image


def _brightness(values: npt.NDArray[Any]) -> tuple[float, float] | tuple[None, None]:
    """Return the range of all images of this kind, None where values do not tell it."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() < 0 or finite.max() > 255:
        return None, None
    if finite.max() <= 1:
        return 0.0, 1.0
    return (0.0, 255.0) if (finite == np.rint(finite)).all() else (None, None)


def _tiled(drawing: _Drawing) -> Sheet:
    spec, arranged, picked = drawing.spec, drawing.arranged, drawing.values
    ruler = Ruler(spec.dpi)
    groups, inner, h, w = picked.shape
    plan = plan_tiles(
        (groups, 1 if arranged.color else inner, h, w),
        columns=spec.columns,
        padding=spec.padding,
        downsample=spec.downsample,
        ruler=ruler,
    )
    check_size(plan.block(h, w))
    values = picked[: plan.groups, : inner if arranged.color else plan.inner]
    # What is farthest from black is not the colour of a place.
    how: Downsample = "mean" if arranged.color and spec.downsample == "absmax" else spec.downsample
    pooled = pool(values, (plan.factor, plan.factor), how)
    scale = drawing.scale(values, pooled, how)
    if scale.lows is None or scale.highs is None:
        levels = quantise(pooled, scale.low, scale.high)
    else:
        levels = quantise(pooled, scale.lows, scale.highs)
    dead: list[int] = []
    if drawing.frame.kind == "activations":
        dead = _dead(drawing, values)
    parts = tile_words(arranged, plan.groups, plan.inner)
    if plan.groups < groups or plan.inner < (1 if arranged.color else inner):
        parts.append("the others left out, --channels picks")
    parts += [scale.words, *drawing.words, *pooled_words((plan.factor, plan.factor), how)]
    if dead or (drawing.spread is not None and drawing.frame.kind == "activations"):
        # Of equal width in all frames of an animation, or its lines would move.
        width = len(dead_words(arranged, plan.groups)) if drawing.spread is not None else 0
        parts.append(dead_words(arranged, len(dead)).ljust(width, FIGURE_SPACE))
        if plan.margins and drawing.spread is None:  # where no tile has a label of its own
            first = ", ".join(str(drawing.numbers[i]) for i in dead[:4])
            parts[-1] += f": {first}{', …' * (len(dead) > 4)}"
    return tile_sheet(
        levels,
        plan=plan,
        scale=scale,
        caption=drawing.caption(parts),
        names=drawing.numbers[: plan.groups],
        inner_names=list(range(plan.inner)),
        dead=dead,
        bad=drawing.bad(levels, values),
        beside=None if drawing.input is None else thumbnail(drawing.input, ruler),
        cmap=drawing.cmap(scale),
        ruler=ruler,
    )


def _dead(drawing: _Drawing, values: npt.NDArray[Any]) -> list[int]:
    """Positions of groups that are zero in all samples that were kept."""
    every = _thinned(drawing.frame, drawing.arranged)
    everything, numbers = drawing.arranged.samples, drawing.numbers
    silent = np.flatnonzero(~values.any(axis=(1, 2, 3)))
    return [int(i) for i in silent if not everything[:, numbers[i] // every].any()]


def _flat(drawing: _Drawing) -> Sheet:
    spec, arranged, picked = drawing.spec, drawing.arranged, drawing.values
    ruler = Ruler(spec.dpi)
    plane = picked[0, 0]
    h, w = plane.shape
    plan = plan_matrix(h, w, downsample=spec.downsample, ruler=ruler)
    check_size(plan.block(h, w))
    pooled = pool(plane, plan.factors, spec.downsample)
    scale = drawing.scale(picked, pooled[None, None], spec.downsample)
    levels = quantise(pooled, scale.low, scale.high)
    bad = drawing.bad(levels, plane)
    parts = [plane_words(arranged, (h, w))]
    numbered: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if spec.channels != "all":
        axis, numbers = _picked_axis(arranged), tuple(drawing.numbers)
        parts.append(f"{len(numbers)} of {arranged.values.shape[axis]}")
        numbered = (numbers, ()) if axis == 2 else ((), numbers)
    parts += [scale.words.replace("shared scale", "one scale"), *drawing.words]
    seen = plane
    names = (arranged.row_name, arranged.column_name)
    if plan.wrap is not None:
        rows = -(-w // plan.wrap)
        full = np.full(rows * plan.wrap, BACKGROUND, np.uint8)
        full[:w] = levels[0]
        levels, seen = full.reshape(rows, plan.wrap), np.zeros((rows, plan.wrap), plane.dtype)
        parts.append(f"in rows of {plan.wrap}")
        names = (f"row of {plan.wrap}", "unit")
    parts += pooled_words(plan.factors, spec.downsample)
    return matrix_sheet(
        levels,
        seen,
        plan=plan,
        scale=scale,
        caption=drawing.caption(parts),
        axes=names,
        numbers=numbered if plan.wrap is None else ((), ()),
        bad=bad,
        cmap=drawing.cmap(scale),
        ruler=ruler,
    )


def of_sources(sources: Sequence[Source], spec: Spec) -> Picture:
    """Draw from the only source there is."""
    assert isinstance(spec, GridSpec)
    (source,) = sources
    return draw(source, spec)
