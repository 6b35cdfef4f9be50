"""The commands of ``filmstrip render``.

What is heavy is imported inside a command. Matplotlib reads ``MPLBACKEND`` when it is first
imported and raises at a value that it cannot load, such as the one that a notebook's kernel hands
down; a command therefore sets the variable before, which the library never does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from filmstrip.render._batch import Job
    from filmstrip.render._source import RunSource

app = typer.Typer(
    name="render",
    help="Draw pictures of a run: grids, histograms, curves.",
    no_args_is_help=True,
    add_completion=False,
)

_TOLD = 5  # failures that are named; all of them are in the manifest

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="Path of a run, as run.zarr.")]
RunPaths = Annotated[
    list[str], typer.Argument(metavar="RUN", help="Paths of one run, or of several to compare.")
]
Layers = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="LAYER",
        help="Layers: globs, or regular expressions behind re:. All of the kind by default.",
    ),
]
Kind = Annotated[str, typer.Option(help="activations, weights, gradients, inputs or images.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the pictures. By default beside the run."),
]
Format = Annotated[str, typer.Option(help="png, svg or pdf.")]
Dpi = Annotated[float, typer.Option(help="Dots an inch, 30 to 1200; sizes are made for 200.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be drawn.")]
Force = Annotated[bool, typer.Option("--force", help="Draw also what is done already.")]
Keep = Annotated[
    bool, typer.Option("--keep", help="Skip whatever exists, even when the run has gone on.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the manifest of this command.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Threads. By default the CPUs of this process."),
]


@app.command()
def grid(
    run: RunPath,
    layers: Layers = None,
    kind: Kind = "activations",
    step: Annotated[
        str, typer.Option(help="Steps: -1 (the last), all, 1200, 100,200 or 0:5000:100.")
    ] = "-1",
    samples: Annotated[
        str | None,
        typer.Option(help="Entries of the batch, one picture each: 0, 0,3 or 0:4. The first."),
    ] = None,
    channels: Annotated[
        str, typer.Option(help="Channels, or filters of a kernel: all, 0,5 or 0:64.")
    ] = "all",
    columns: Annotated[
        int | None, typer.Option(help="Tiles in one row. Near-square by default.")
    ] = None,
    padding: Annotated[int, typer.Option(help="Pixels between tiles at 200 dots an inch.")] = 4,
    vmin: Annotated[float | None, typer.Option(help="Value at the low end of the colours.")] = None,
    vmax: Annotated[
        float | None, typer.Option(help="Value at the high end of the colours.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="Range of the colours: shared by all tiles, each, or the run's.")
    ] = "shared",
    cmap: Annotated[
        str | None,
        typer.Option(help="Colour map of matplotlib. viridis, or RdBu_r for signed values."),
    ] = None,
    downsample: Annotated[
        str, typer.Option(help="How values that share a pixel join: absmax, mean, rms or none.")
    ] = "absmax",
    out: Out = None,
    format: Format = "png",
    dpi: Dpi = 200.0,
    dry_run: DryRun = False,
    force: Force = False,
    keep: Keep = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jobs: Jobs = None,
) -> None:
    """Draw layers as tiles: feature maps, kernels, matrices."""
    with _mistakes():
        from filmstrip.render._palette import check_colormap
        from filmstrip.render._picks import check_picks
        from filmstrip.render._plan import grid_jobs
        from filmstrip.render._spec import GridSpec

        with _usage():
            spec = GridSpec(
                kind=kind,
                channels=check_picks(channels, "--channels"),
                columns=columns,
                padding=padding,
                vmin=vmin,
                vmax=vmax,
                scale=scale,  # type: ignore[arg-type]  # the spec checks it
                cmap=cmap if cmap is None else check_colormap(cmap),
                downsample=downsample,  # type: ignore[arg-type]
                format=format,  # type: ignore[arg-type]
                dpi=dpi,
            )
            steps = check_picks(step, "--step")
            entries = None if samples is None else check_picks(samples, "--samples")
        sources = _open([run])
        wanted = grid_jobs(sources[0], spec, layers=layers or (), steps=steps, samples=entries)
        _run(wanted, sources, out, dry_run, _existing(force, keep), quiet, as_json, jobs)


@app.command()
def histogram(
    run: RunPath,
    layers: Layers = None,
    kind: Kind = "activations",
    view: Annotated[
        str,
        typer.Option(
            help="single (one step), or over steps: ridge, overlay, heatmap or distribution."
        ),
    ] = "ridge",
    step: Annotated[
        str | None,
        typer.Option(
            help="Steps: all, -1 (the last), 1200, 100,200 or 0:5000:100. "
            "By default the last one for single, else all."
        ),
    ] = None,
    bins: Annotated[
        int | None,
        typer.Option(
            help="Number of bins, 1 to 4096. 50, 160 for ridge and overlay, 200 for heatmap."
        ),
    ] = None,
    bin_scale: Annotated[
        str,
        typer.Option(
            help="Widths of bins: linear; symlog, for heavy tails; or TensorBoard's own, "
            "tensorboard, each a tenth wider than the last."
        ),
    ] = "linear",
    out: Out = None,
    format: Format = "png",
    dpi: Dpi = 200.0,
    dry_run: DryRun = False,
    force: Force = False,
    keep: Keep = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jobs: Jobs = None,
) -> None:
    """Draw how the values of layers are distributed."""
    with _mistakes():
        from filmstrip.render._picks import check_picks
        from filmstrip.render._plan import histogram_jobs
        from filmstrip.render._spec import HistogramSpec

        with _usage():
            spec = HistogramSpec(
                kind=kind,
                view=view,  # type: ignore[arg-type]  # the spec checks it
                bins=bins,
                bin_scale=bin_scale,  # type: ignore[arg-type]
                format=format,  # type: ignore[arg-type]
                dpi=dpi,
            )
            default = "-1" if view == "single" else "all"
            steps = check_picks(default if step is None else step, "--step")
        sources = _open([run])
        wanted = histogram_jobs(sources[0], spec, layers=layers or (), steps=steps)
        _run(wanted, sources, out, dry_run, _existing(force, keep), quiet, as_json, jobs)


@app.command()
def curve(
    runs: RunPaths,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Scalar to draw: a name, or patterns separated by commas for one picture of "
            "several. May be repeated. Every scalar by default."
        ),
    ] = None,
    stat: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER/STAT",
            help="Statistic of layers: 'conv1/l2', 'conv*/std'. May be repeated. "
            "mean, std, min, max, l2, rms, dead, nan, posinf, neginf, zeros.",
        ),
    ] = None,
    kind: Kind = "activations",
    smoothing: Annotated[
        float, typer.Option(help="Weight of the past in a running average, 0 to below 1.")
    ] = 0.0,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic value axis.")] = False,
    x: Annotated[
        str, typer.Option("--x", help="What runs to the right: step, or time since the first.")
    ] = "step",
    out: Out = None,
    format: Format = "png",
    dpi: Dpi = 200.0,
    dry_run: DryRun = False,
    force: Force = False,
    keep: Keep = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jobs: Jobs = None,
) -> None:
    """Draw scalars and statistics over steps; several runs in one picture."""
    with _mistakes():
        from filmstrip.render._plan import curve_jobs
        from filmstrip.render._spec import CurveSpec

        with _usage():
            spec = CurveSpec(
                kind=kind,
                smoothing=smoothing,
                log=log,
                x=x,  # type: ignore[arg-type]  # the spec checks it
                format=format,  # type: ignore[arg-type]
                dpi=dpi,
            )
            pairs = [_layer_and_stat(one) for one in stat or ()]
        sources = _open(runs)
        wanted = curve_jobs(sources, spec, names=name or (), stats=pairs)
        _run(wanted, sources, out, dry_run, _existing(force, keep), quiet, as_json, jobs)


def _layer_and_stat(text: str) -> tuple[str, str]:
    layer, slash, stat = text.rpartition("/")
    if not slash or not layer or not stat:
        raise typer.BadParameter(f"--stat {text!r} is not LAYER/STAT, such as 'conv1/l2'")
    return layer, stat


def _existing(force: bool, keep: bool) -> str:
    if force and keep:
        raise typer.BadParameter("--force and --keep exclude each other")
    return "force" if force else "keep" if keep else "digest"


@contextmanager
def _mistakes() -> Iterator[None]:
    """Turn expected errors into one line on stderr and exit code 1."""
    os.environ["MPLBACKEND"] = "agg"
    try:
        from filmstrip.render.errors import RenderError
        from filmstrip.store import StoreError

        try:
            yield
        except (RenderError, StoreError) as error:
            _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in {"matplotlib", "PIL"}:
            raise
        _fail(f"pictures need {error.name}: pip install 'filmstrip[render]'")


def _fail(message: str) -> None:
    typer.echo(f"filmstrip: {message}", err=True)
    raise typer.Exit(1)


@contextmanager
def _usage() -> Iterator[None]:
    """Turn an option that cannot be into a mistake of usage, exit code 2."""
    from filmstrip.render.errors import SpecError

    try:
        yield
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error


def _open(runs: list[str]) -> list[RunSource]:
    from filmstrip.render._source import open_sources

    return open_sources(list(dict.fromkeys(runs)))


def _run(
    wanted: list[Job],
    sources: list[RunSource],
    out: Path | None,
    dry_run: bool,
    existing: str,
    quiet: bool,
    as_json: bool,
    jobs: int | None,
) -> None:
    from filmstrip.render._draw import Drawn
    from filmstrip.render._driver import check_folder, drive, split
    from filmstrip.render._executors import available_cpus, threads
    from filmstrip.render._manifest import Report
    from filmstrip.render._progress import progress

    folder = out or _beside(str(sources[0].run.path))
    missing, kept = split(wanted, sources, folder, existing)  # type: ignore[arg-type]
    if dry_run and as_json:
        planned = [Drawn(job) for job in missing]
        print(Report(str(folder), kept=kept, planned=planned).to_json())
        return
    if dry_run:
        for job in missing:
            print(folder / job.path)
        print(f"would draw {_pictures(len(missing))}, keep {len(kept)}")
        return
    check_folder(folder)
    workers = jobs or available_cpus()
    report = drive(
        missing,
        kept,
        runs=tuple(str(source.run.path) for source in sources),
        out=folder,
        executor=threads(workers),
        workers=workers,
        progress=progress(quiet=quiet or as_json),
    )
    if as_json:
        print(report.to_json())
    elif not quiet:
        print(
            f"drew {_pictures(len(report.drawn))}, kept {len(report.kept)}, "
            f"in {report.seconds:.1f} s: {folder}"
        )
    for failed in report.failed[:_TOLD]:
        print(f"filmstrip: {failed.job.path}: {failed.error}", file=sys.stderr)
    if len(report.failed) > _TOLD:
        more = len(report.failed) - _TOLD
        print(f"filmstrip: {more} more not drawn: {folder}/manifest.json", file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


def _beside(run: str) -> Path:
    """Return the folder beside a run; for a run by URL, one in the current folder."""
    path = Path(run.rpartition("/")[2]) if "://" in run else Path(run)
    return path.with_name(f"{path.name.removesuffix('.zarr')}-pictures")


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


if __name__ == "__main__":
    app()
