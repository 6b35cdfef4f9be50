"""Tile options: the only place for those that grids and animations share, as typer reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from filmstrip.render._spec import Format, GridSpec

__all__ = ["Tiles"]


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How a frame is drawn as tiles."""

    kind: Annotated[
        str, typer.Option(help="activations, weights, gradients, inputs or images.")
    ] = "activations"
    layout: Annotated[
        str | None,
        typer.Option(
            help="One letter an axis, in place of the stored ones: NCHW, NHWC, OIHW, HWIO; NHQK "
            "for heads of attention, queries and keys."
        ),
    ] = None
    samples: Annotated[
        str | None,
        typer.Option(help="Entries of the batch, one picture each: 0, 0,3 or 0:4. The first."),
    ] = None
    channels: Annotated[
        str, typer.Option(help="Channels, or filters of a kernel: all, 0,5 or 0:64.")
    ] = "all"
    columns: Annotated[
        int | None, typer.Option(help="Tiles in one row. Near-square by default.")
    ] = None
    padding: Annotated[int, typer.Option(help="Pixels between tiles at 200 dots an inch.")] = 4
    vmin: Annotated[float | None, typer.Option(help="Value at the low end of the colours.")] = None
    vmax: Annotated[float | None, typer.Option(help="Value at the high end of the colours.")] = None
    scale: Annotated[
        str,
        typer.Option(
            help="Range of the colours: shared by all tiles, each, or the run's. An animation has "
            "one over all frames."
        ),
    ] = "shared"
    cmap: Annotated[
        str | None,
        typer.Option(help="Colour map of matplotlib. viridis, or RdBu_r for signed values."),
    ] = None
    downsample: Annotated[
        str, typer.Option(help="How values that share a pixel join: absmax, mean, rms or none.")
    ] = "absmax"
    rgb: Annotated[
        bool | None,
        typer.Option(
            "--rgb/--no-rgb",
            help="1 or 3 channels as brightness or colours of pixels. "
            "By default of inputs and images.",
        ),
    ] = None
    dpi: Annotated[
        float, typer.Option(help="Dots an inch, 30 to 1200; sizes are made for 200.")
    ] = 200.0

    def spec(self, form: Format = "png") -> GridSpec:
        """Return the spec of all frames, whose layer, step and sample are filled in later.

        Raises
        ------
        SpecError
            If an option cannot be.
        """
        from filmstrip.render._palette import check_colormap
        from filmstrip.render._picks import check_picks
        from filmstrip.render._spec import GridSpec

        return GridSpec(
            kind=self.kind,
            layout=self.layout,
            channels=check_picks(self.channels, "--channels"),
            columns=self.columns,
            padding=self.padding,
            vmin=self.vmin,
            vmax=self.vmax,
            scale=self.scale,  # type: ignore[arg-type]  # the spec checks it
            cmap=self.cmap if self.cmap is None else check_colormap(self.cmap),
            downsample=self.downsample,  # type: ignore[arg-type]
            rgb=self.rgb,
            format=form,
            dpi=self.dpi,
        )

    def entries(self) -> str | None:
        """Return the entries of the batch that are asked for, None for what a layout shows.

        Raises
        ------
        SpecError
            If they are none.
        """
        from filmstrip.render._picks import check_picks

        return None if self.samples is None else check_picks(self.samples, "--samples")
