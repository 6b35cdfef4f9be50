"""The animation: a grid over steps, all of it in one range of colours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render._image import Frames, Picture
from filmstrip.render._palette import tone_table
from filmstrip.render._picks import pick_steps
from filmstrip.render._scale import Spread, clipped_at, extremes_each
from filmstrip.render._sheet import Label, Patch, Ruler, Sheet
from filmstrip.render._spec import AnimationSpec, GridSpec
from filmstrip.render.errors import SourceError
from filmstrip.render.pictures.grid import lay_out, shown
from filmstrip.store import BINS, bit_histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from filmstrip.render._source import Source
    from filmstrip.render._spec import Spec

__all__ = ["draw", "of_sources"]

_LENGTH: Final = 250  # design pixels of the line that shows how far the steps have come
_SIZE: Final = 10.0  # points of the step


def draw(source: Source, spec: AnimationSpec, *, title: str | None = None) -> Picture:
    """Draw an animation.

    Frames are read and drawn when a file is made of the picture, one at a time.

    Parameters
    ----------
    source : Source
    spec : AnimationSpec
    title : str or None
        None: the layer.

    Returns
    -------
    Picture

    Raises
    ------
    SourceError, SpecError
        If there are no such steps, or a frame does not hold what the spec asks for.
    """
    steps = pick_steps(spec.step, source.steps(spec.frame), layer=spec.layer or "the array")
    spread = None if spec.frame.scale == "each" else source.spread(spec.frame, steps)
    if spread is None:
        spread = _spread_of_frames(source, spec.frame, steps)

    def frame(step: int) -> Sheet:
        at = replace(spec.frame, step=step)
        sheet = lay_out(source, at, title=title, spread=spread)
        return _with_step(sheet, step, steps)

    first = frame(steps[0])

    def checked(step: int) -> Sheet:
        sheet = frame(step)
        here, there = sheet.chrome, first.chrome
        if here.width > there.width or here.height > there.height:
            raise SourceError(
                f"the frame of step {step} is larger than that of step {steps[0]}; "
                "pick a sample, or steps whose frames have one shape"
            )
        return sheet

    return Picture(sheet=first, frames=Frames(first, steps, checked, spec.fps), dpi=spec.frame.dpi)


def _spread_of_frames(source: Source, spec: GridSpec, steps: Sequence[int]) -> Spread:
    """Read all frames once, where nothing is stored that tells their range."""
    lows: npt.NDArray[np.float64] = np.full(1, np.inf)
    highs = -lows
    bits = np.zeros(BINS, np.uint64)
    size, bad = 0, False
    for step in steps:
        _, values, _ = shown(source.frame(replace(spec, step=step)), spec)
        low, high = extremes_each(values)
        lows, highs = np.minimum(lows, low), np.maximum(highs, high)
        bits += bit_histogram(values)
        size = max(size, values.size)
        bad = bad or not np.isfinite(values).all()
    least, most = float(lows.min()), float(highs.max())
    if least > most:
        least = most = 0.0
    clip = clipped_at(bits, max(abs(least), abs(most)), size)
    return Spread(least, most, clip, bad, lows, highs)


def _with_step(sheet: Sheet, step: int, steps: Sequence[int]) -> Sheet:
    """Write the step beside the title, above a line that shows how far it has come."""
    ruler = Ruler(sheet.chrome.dpi)
    right = sheet.chrome.width - ruler(24)
    text = f"step {step:,}".replace(",", "\u202f")
    label = Label(right, ruler(54), text, _SIZE, "ink", bold=True, anchor="right")
    length, first, last = ruler(_LENGTH), steps[0], steps[-1]
    done = round(length * ((step - first) / (last - first) if last > first else 1.0))
    line = np.full((max(2, ruler(4)), length), tone_table("faint")[255], np.uint8)
    line[:, :done] = tone_table("mute")[255]
    patch = Patch(right - length, ruler(68), line)
    return replace(sheet, patches=(*sheet.patches, patch), labels=(*sheet.labels, label))


def of_sources(sources: Sequence[Source], spec: Spec) -> Picture:
    """Draw from the only source there is."""
    assert isinstance(spec, AnimationSpec)
    (source,) = sources
    return draw(source, spec)
