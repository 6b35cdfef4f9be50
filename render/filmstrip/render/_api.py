"""The functions for Python: strips, arrays and tensors in, pictures out.

They do no more than make a spec of their keywords; ``_given`` knows what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from filmstrip.render._array_source import ArraySource, StepsSource, as_real
from filmstrip.render._given import (
    curves_of,
    described,
    known_of,
    page_of,
    picks_of,
    source_of,
    step_of,
    title_of,
)
from filmstrip.render._layout import arrange, check_fits
from filmstrip.render._picks import check_picks, pick_steps
from filmstrip.render._source import RunSource
from filmstrip.render._spec import AnimationSpec, CurveSpec, GridSpec, HistogramSpec, checked
from filmstrip.render._tiles import mosaic_of
from filmstrip.render.errors import SpecError
from filmstrip.render.pictures import animation as animations
from filmstrip.render.pictures import grid as grids
from filmstrip.render.pictures import histogram as histograms
from filmstrip.render.pictures.curve import draw as draw_curves
from filmstrip.store import Strip

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from filmstrip.render._image import Picture
    from filmstrip.render._scale import ScaleMode
    from filmstrip.render._spec import BinScale, View, XAxis
    from filmstrip.render._tiles import Downsample

__all__ = ["animation", "curve", "grid", "histogram", "mosaic"]


def grid(
    x: object,
    step: int = -1,
    *,
    sample: int | None = None,
    layout: str | None = None,
    channels: str | int | slice | Sequence[int] = "all",
    columns: int | None = None,
    padding: int = 4,
    vmin: float | None = None,
    vmax: float | None = None,
    scale: ScaleMode = "shared",
    cmap: str | None = None,
    downsample: Downsample = "absmax",
    rgb: bool | None = None,
    title: str | None = None,
    dpi: float = 200.0,
) -> Picture:
    """Draw one layer at one step: feature maps, kernels, a matrix or a vector.

    Parameters
    ----------
    x : Strip or array_like or tensor
        A strip of a run, or any array: numpy, torch (on any device, bfloat16 too), TensorFlow,
        JAX.
    step : int
        Step of a strip, counted over the run; below 0 from the end. Arrays have none.
    sample : int or None
        Entry of the batch; None: the first, or all of them where they are rows of a matrix.
    layout : str or None
        One letter an axis, such as NCHW, NHWC, OIHW, HWIO; None: as stored, or by the number
        of axes.
    channels : str, int, slice or sequence of int
        Channels, or filters, to show.
    columns : int or None
        Tiles in one row; None: near-square.
    padding : int
        Pixels between tiles at 200 dots an inch.
    vmin, vmax : float or None
        Ends of the colour map; None: from the values.
    scale : {"shared", "each", "run"}
        One range for all tiles, one for each, or the range of the layer over the whole run.
    cmap : str or None
        Colour map of matplotlib; None: viridis, or RdBu_r where values have signs.
    downsample : {"absmax", "mean", "rms", "none"}
        How values that share a pixel are joined.
    rgb : bool or None
        Whether 1 or 3 channels are the brightness or the colours of pixels, so that a tile is an
        image or a filter; None: of inputs and images.
    title : str or None
        None: the layer.
    dpi : float
        Dots an inch; sizes are made for 200.

    Returns
    -------
    Picture

    Raises
    ------
    SpecError
        If the array cannot be drawn so.
    SourceError
        If there is no such sample or channel.
    StoreError
        If the strip has no such step.

    Examples
    --------
    >>> import numpy as np
    >>> from filmstrip import render
    >>> render.grid(np.random.default_rng(0).random((8, 12, 12)), title="random")
    <Picture 734×736 pixels>
    """
    strip, source = source_of(x, layout)
    spec = GridSpec(
        kind=strip.kind if strip is not None else "",
        layer=strip.layer if strip is not None else "",
        step=step_of(strip, step),
        layout=layout,
        sample=sample,
        channels=picks_of(channels, "channels"),
        columns=columns,
        padding=padding,
        vmin=vmin,
        vmax=vmax,
        scale=scale,
        cmap=cmap,
        downsample=downsample,
        rgb=rgb,
        dpi=dpi,
    )
    drawn = grids.draw(source, spec, title=title_of(title, x))
    return described(drawn, known_of(strip, spec))


def animation(
    x: object,
    step: str | int | slice | Sequence[int] = "all",
    *,
    fps: float = 12.0,
    sample: int | None = None,
    layout: str | None = None,
    channels: str | int | slice | Sequence[int] = "all",
    rgb: bool | None = None,
    columns: int | None = None,
    padding: int = 4,
    vmin: float | None = None,
    vmax: float | None = None,
    scale: ScaleMode = "shared",
    cmap: str | None = None,
    downsample: Downsample = "absmax",
    title: str | None = None,
    dpi: float = 200.0,
) -> Picture:
    """Draw one layer over steps as a film of grids, all in one range of colours.

    Parameters
    ----------
    x : Strip or array_like or tensor
        A strip of a run, or an array whose first axis are the steps.
    step : str, int, slice or sequence of int
        Which steps: ``"all"``, ``"0:5000:100"``, some.
    fps : float
        Frames a second, 0.1 to 60.
    sample, channels, rgb, columns, padding, vmin, vmax, cmap, downsample, title, dpi
        As of `grid`.
    layout : str or None
        One letter an axis of one frame.
    scale : {"shared", "each", "run"}
        One range for all tiles of all frames, one for each tile over all frames, or the range of
        the layer over the whole run.

    Returns
    -------
    Picture
        Moves in a notebook. Saved as ``.png`` or ``.apng``, ``.gif``, or ``.mp4``. Frames are
        read and drawn whenever that is done, one at a time.

    Raises
    ------
    SpecError
        If the array cannot be drawn so.
    SourceError
        If there is no such step, sample or channel.

    Examples
    --------
    >>> import numpy as np
    >>> from filmstrip import render
    >>> render.animation(np.random.default_rng(0).random((3, 8, 12, 12)), title="random")
    <Picture 734×736 pixels, 3 frames>
    """
    strip, source = source_of(x, layout)
    if isinstance(source, ArraySource):
        source = StepsSource(source.values, layout)
        if source.values.ndim < 2:
            raise SpecError(
                "an animation needs steps as the first of two or more axes; "
                f"the array has shape {source.values.shape}"
            )
    frame = GridSpec(
        kind=strip.kind if strip is not None else "",
        layer=strip.layer if strip is not None else "",
        layout=layout,
        sample=sample,
        channels=picks_of(channels, "channels"),
        rgb=rgb,
        columns=columns,
        padding=padding,
        vmin=vmin,
        vmax=vmax,
        scale=scale,
        cmap=cmap,
        downsample=downsample,
        dpi=dpi,
    )
    spec = AnimationSpec(frame=frame, step=check_picks(picks_of(step, "step"), "step"), fps=fps)
    drawn = animations.draw(source, spec, title=title_of(title, x))
    return described(drawn, known_of(strip, spec))


def histogram(
    x: object,
    step: str | int | slice | Sequence[int] | None = None,
    *,
    view: View | None = None,
    bins: int | None = None,
    bin_scale: BinScale = "linear",
    title: str | None = None,
    dpi: float = 200.0,
) -> Picture:
    """Draw the values of one layer at one step, as ridges over steps, or as a heat map.

    Parameters
    ----------
    x : Strip or array_like or tensor, or mapping
        For the views over steps, an array's first axis are the steps. A mapping of names to these
        is drawn side by side, or with ``view="overlay"`` one step of each in one picture.
    step : str, int, slice, sequence of int or None
        Steps of a strip: a number (below 0 from the end), some, ``"all"`` or ``"0:5000:100"``;
        None: all, or the last for a single one.
    view : {"single", "ridge", "overlay", "heatmap", "distribution"} or None
        None: ridge for a strip without a step, single otherwise.
    bins : int or None
        None: 50, 160 or 200 by view.
    bin_scale : {"linear", "symlog", "tensorboard"}
        Equal widths; equal widths of a logarithm with a linear middle; or TensorBoard's bins,
        each a tenth wider than the last.
    title : str or None
        None: the layer.
    dpi : float
        Dots an inch.

    Returns
    -------
    Picture

    Raises
    ------
    SpecError
        If the array cannot be drawn so.
    SourceError
        If there are no such steps or no finite values.

    Examples
    --------
    >>> import numpy as np
    >>> from filmstrip import render
    >>> render.histogram(np.random.default_rng(0).normal(size=1000))
    <Picture 1400×840 pixels>
    """
    if isinstance(x, Mapping):
        return _histograms(x, step, view, bins=bins, bin_scale=bin_scale, title=title, dpi=dpi)
    strip, source = source_of(x, None)
    if view is None:
        one = isinstance(step, int | np.integer)
        view = "ridge" if strip is not None and not one else "single"
    default = "-1" if view == "single" else "all"
    picks = check_picks(default if step is None else picks_of(step, "step"), "step")
    if strip is not None and view == "single":
        kept = RunSource(strip.run).histogram_steps(strip.kind, strip.layer)
        picks = str(pick_steps(picks, kept, layer=strip.layer, what="histogram")[-1])
    spec = HistogramSpec(
        kind=strip.kind if strip is not None else "",
        layer=strip.layer if strip is not None else "",
        view=view,
        step=picks,
        bins=bins,
        bin_scale=bin_scale,
        dpi=dpi,
    )
    drawn = histograms.draw(source, spec, title=title_of(title, x))
    return described(drawn, known_of(strip, spec))


def _histograms(
    several: Mapping[str, object],
    step: str | int | slice | Sequence[int] | None,
    view: View | None,
    *,
    bins: int | None,
    bin_scale: BinScale,
    title: str | None,
    dpi: float,
) -> Picture:
    """Draw several strips or arrays."""
    if not several:
        raise SpecError("there are no histograms: the mapping is empty")
    strips = all(isinstance(one, Strip) for one in several.values())
    seen = view or ("ridge" if strips else "single")
    default = "-1" if seen in {"single", "overlay"} else "all"
    picks = check_picks(default if step is None else picks_of(step, "step"), "step")
    spec = HistogramSpec(
        layer="*", page=True, view=seen, step=picks, bins=bins, bin_scale=bin_scale, dpi=dpi
    )
    counted = []
    for name, one in several.items():
        strip, source = source_of(one, None)
        whole = replace(
            spec,
            kind="" if strip is None else strip.kind,
            layer="" if strip is None else strip.layer,
            view="single" if seen == "overlay" else seen,
        )
        counted.append((str(name), histograms.counts_of(source, whole)))
    title = "" if title is None else title_of(title, several)
    drawn = histograms.draw_several(counted, replace(spec, kind=""), title=title)
    return described(drawn, page_of(several.values(), spec))


def curve(
    x: object,
    name: str = "*",
    *,
    stat: str | None = None,
    kind: str = "activations",
    band: bool = False,
    smoothing: float = 0.0,
    log: bool = False,
    axis: XAxis = "step",
    title: str | None = None,
    dpi: float = 200.0,
) -> Picture:
    """Draw scalars of a run, a statistic of a strip, or any curves.

    Parameters
    ----------
    x : Run, Strip, Series, mapping or array_like
        A run: its scalars; a strip: a stored statistic of it; a series as ``run.scalars["loss"]``
        or of pandas, a pair of steps and values, or the values alone; a mapping of names to any
        of these.
    name : str
        Which scalars of a run: patterns, separated by commas.
    stat : str or None
        Which statistic of a strip: mean, std, min, max, l2 (None), rms, dead, nan, …; of layers
        of a run, in place of its scalars: ``"conv*/l2"``.
    kind : str
        Of these layers of a run.
    band : bool
        Whether mean ± std is shaded around ``stat="mean"``.
    smoothing : float
        Weight of the past, at least 0 and below 1.
    log : bool
        Logarithmic value axis.
    axis : {"step", "time"}
        What runs to the right: steps, or the time since the first row, which a run knows.
    title : str or None
        None: the name.
    dpi : float
        Dots an inch.

    Returns
    -------
    Picture

    Raises
    ------
    SourceError
        If there is nothing of that name, or no finite value.
    SpecError
        If the values are no curve.

    Examples
    --------
    >>> from filmstrip import render
    >>> render.curve({"train": [2.3, 1.1, 0.4], "test": [2.3, 1.4, 0.9]}, smoothing=0.5)
    <Picture 1400×840 pixels>
    """
    spec = CurveSpec(name=name, band=band, smoothing=smoothing, log=log, x=axis, dpi=dpi)
    curves = curves_of(x, spec, stat=stat, kind=kind)
    title = curves.title if title is None else title_of(title, x)
    drawn = draw_curves(curves.lines, curves.spec, title=title, missing=curves.missing)
    return described(drawn, curves.known)


def mosaic(
    x: object,
    layout: str | None = None,
    *,
    sample: int = 0,
    columns: int | None = None,
    padding: int = 1,
) -> npt.NDArray[np.float32]:
    """Put the planes of an array side by side, one pixel a value.

    Parameters
    ----------
    x : Strip or array_like or tensor
        Of a strip, the last frame.
    layout : str or None
        One letter an axis; None: as stored, or by the number of axes.
    sample : int
        Entry of the batch.
    columns : int or None
        Planes in one row; None: near-square. A filter's input channels come one after another.
    padding : int
        Pixels between planes.

    Returns
    -------
    ndarray of float32, shape (height, width)
        Values as they are, NaN between planes. Ready for `matplotlib.axes.Axes.imshow`.

    Raises
    ------
    SpecError
        If the layout does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> mosaic(np.zeros((6, 4, 4)), columns=3).shape
    (9, 14)
    """
    sample, padding = checked("sample", sample, "int"), checked("padding", padding, "int")
    columns = checked("columns", columns, "int | None")
    strip, source = source_of(x, checked("layout", layout, "str | None"))
    spec = GridSpec(kind=strip.kind, layer=strip.layer) if strip is not None else GridSpec(kind="")
    frame = source.frame(spec)
    check_fits(layout, frame.values.shape, spec.layer)
    real = as_real(np.abs(frame.values) if np.iscomplexobj(frame.values) else frame.values)
    planes = arrange(real, layout or frame.layout, kind=spec.kind, sample=sample).values
    return mosaic_of(planes.reshape(-1, *planes.shape[2:]), columns=columns, padding=padding)
