"""The commands of ``filmstrip render``.

What is heavy is imported inside a command. Matplotlib reads ``MPLBACKEND`` when it is first
imported and raises at a value that it cannot load, such as the one that a notebook's kernel hands
down; a command therefore sets the variable before, which the library never does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.render._options import Options, with_options
from filmstrip.render._tile_options import Tiles

if TYPE_CHECKING:
    from filmstrip.render._batch import Job
    from filmstrip.render._source import RunSource

app = typer.Typer(
    name="render",
    help="Draw pictures of a run: grids, histograms, curves, animations.",
    no_args_is_help=True,
    add_completion=False,
)

_EXTRAS = {
    "matplotlib": ("pictures", "render"),
    "PIL": ("pictures", "render"),
    "jinja2": ("index.html", "render"),
    "distributed": ("--scheduler", "render"),
    "dask_jobqueue": ("--slurm", "slurm"),
}
_MANY = 2000  # files, of which nobody is surprised
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
Format = Annotated[str, typer.Option(help="png, svg or pdf.")]
Dpi = Annotated[float, typer.Option(help="Dots an inch, 30 to 1200; sizes are made for 200.")]


@app.command()
@with_options
def grid(
    run: RunPath,
    layers: Layers = None,
    step: Annotated[
        str, typer.Option(help="Steps: -1 (the last), all, 1200, 100,200 or 0:5000:100.")
    ] = "-1",
    format: Format = "png",
    *,
    tiles: Tiles,
    options: Options,
) -> None:
    """Draw layers as tiles: feature maps, kernels, matrices."""
    with _mistakes():
        from filmstrip.render._picks import check_picks
        from filmstrip.render._plan import grid_jobs

        with _usage():
            spec = tiles.spec(format)  # type: ignore[arg-type]  # the spec checks it
            steps, entries = check_picks(step, "--step"), tiles.entries()
        sources = _open([run])
        wanted = grid_jobs(sources[0], spec, layers=layers or (), steps=steps, samples=entries)
        _run(wanted, sources, options)


@app.command()
@with_options
def animation(
    run: RunPath,
    layers: Annotated[
        list[str],
        typer.Argument(
            metavar="LAYER", help="Layers: globs, or regular expressions behind re:. One film each."
        ),
    ],
    step: Annotated[str, typer.Option(help="Steps: all, 100,200 or 0:5000:100.")] = "all",
    fps: Annotated[float, typer.Option(help="Frames a second, 0.1 to 60.")] = 12.0,
    format: Annotated[
        str, typer.Option(help="apng (exact, in a .png), gif, or mp4 (small; needs ffmpeg).")
    ] = "apng",
    *,
    tiles: Tiles,
    options: Options,
) -> None:
    """Draw layers over steps as films of grids."""
    with _mistakes():
        from filmstrip.render._mp4 import find_ffmpeg
        from filmstrip.render._picks import check_picks
        from filmstrip.render._plan import animation_jobs
        from filmstrip.render._spec import AnimationSpec

        with _usage():
            spec = AnimationSpec(
                frame=tiles.spec(),
                step=check_picks(step, "--step"),
                fps=fps,
                format=format,  # type: ignore[arg-type]  # the spec checks it
            )
            entries = tiles.entries()
        if format == "mp4":
            find_ffmpeg()
        sources = _open([run])
        _run(animation_jobs(sources[0], spec, layers=layers, samples=entries), sources, options)


@app.command("all")
@with_options
def everything(
    run: RunPath,
    layers: Layers = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this kind, such as weights, or scalars. May be repeated. Everything."
        ),
    ] = None,
    step: Annotated[
        str, typer.Option(help="Steps of grids: -1 (the last), all, 1200, 100,200 or 0:5000:100.")
    ] = "-1",
    format: Format = "png",
    dpi: Dpi = 200.0,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help=f"Draw also more than {_MANY:,} pictures.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Draw everything a run holds, with a page to look through it, index.html."""
    with _mistakes():
        from filmstrip.render._index import write_index
        from filmstrip.render._picks import check_picks
        from filmstrip.render._plan import about_bytes, all_jobs
        from filmstrip.render._spec import GridSpec

        with _usage():
            steps = check_picks(step, "--step")
            spec = GridSpec(format=format, dpi=dpi)  # type: ignore[arg-type]  # it checks both
        sources = _open([run])
        wanted, left_out = all_jobs(
            sources[0],
            kinds=kind or (),
            layers=layers or (),
            steps=steps,
            form=spec.format,
            dpi=spec.dpi,
        )

        def before(missing: list[Job], folder: Path) -> None:
            size = f"about {about_bytes(missing) / 1e6:,.1f} MB"
            told = f"{_pictures(len(missing))}, {size}, in {folder}"
            if options.dry_run:
                typer.echo(size, err=True)
            elif len(missing) > _MANY and not yes:
                _fail(f"that would be {told}; say --yes, or choose with --kind, --step or LAYER")
            elif missing and not options.quiet:
                typer.echo(f"drawing {told}", err=True)

        def after(folder: Path) -> None:
            page = write_index(folder, sources[0], left_out)
            if not options.quiet:
                typer.echo(f"look at {page}", err=True)

        chosen = bool(kind or layers or options.part)
        _run(wanted, sources, options, before, after, named=False, everything=not chosen)


@app.command()
@with_options
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
    page: Annotated[
        bool, typer.Option("--page", help="All layers side by side on one page.")
    ] = False,
    versus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Another run beside the first; in one picture with --view overlay, which then "
            "shows one step of each. May be repeated.",
        ),
    ] = None,
    format: Format = "png",
    dpi: Dpi = 200.0,
    *,
    options: Options,
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
                page=page,
                format=format,  # type: ignore[arg-type]
                dpi=dpi,
            )
            default = "-1" if view == "single" else "all"
            steps = check_picks(default if step is None else step, "--step")
        sources = _open([run, *(versus or ())])
        wanted = histogram_jobs(sources, spec, layers=layers or (), steps=steps)
        _run(wanted, sources, options)


@app.command()
@with_options
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
            "mean, std, min, max, l2, rms, dead (share of zeros), nan, posinf, neginf, zeros; "
            "norm, of all these layers as one vector.",
        ),
    ] = None,
    kind: Kind = "activations",
    band: Annotated[
        bool, typer.Option("--band", help="Shade mean ± std around --stat LAYER/mean.")
    ] = False,
    smoothing: Annotated[
        float, typer.Option(help="Weight of the past in a running average, 0 to below 1.")
    ] = 0.0,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic value axis.")] = False,
    x: Annotated[
        str, typer.Option("--x", help="What runs to the right: step, or time since the first.")
    ] = "step",
    format: Format = "png",
    dpi: Dpi = 200.0,
    *,
    options: Options,
) -> None:
    """Draw scalars and statistics over steps; several runs in one picture."""
    with _mistakes():
        from filmstrip.render._plan import curve_jobs
        from filmstrip.render._spec import CurveSpec

        with _usage():
            spec = CurveSpec(
                kind=kind,
                band=band,
                smoothing=smoothing,
                log=log,
                x=x,  # type: ignore[arg-type]  # the spec checks it
                format=format,  # type: ignore[arg-type]
                dpi=dpi,
            )
            pairs = [_layer_and_stat(one) for one in stat or ()]
            if band and {what for _, what in pairs} != {"mean"}:
                raise typer.BadParameter("--band is around a mean: give --stat LAYER/mean")
        sources = _open(runs)
        wanted = curve_jobs(sources, spec, names=name or (), stats=pairs)
        _run(wanted, sources, options)


def _layer_and_stat(text: str) -> tuple[str, str]:
    layer, slash, stat = text.rpartition("/")
    if not slash or not layer or not stat:
        raise typer.BadParameter(f"--stat {text!r} is not LAYER/STAT, such as 'conv1/l2'")
    return layer, stat


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
        if error.name not in _EXTRAS:
            raise
        what, extra = _EXTRAS[error.name]
        _fail(
            f"{what} need{'s' * (what[-1] != 's')} {error.name}: pip install 'filmstrip[{extra}]'"
        )


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
    options: Options,
    before: Callable[[list[Job], Path], None] | None = None,
    after: Callable[[Path], None] | None = None,
    *,
    named: bool = True,
    everything: bool = False,
) -> None:
    """Draw; ``before`` is told what is missing and where, ``after`` where it was drawn.

    Unless it was ``named``, what has nothing to show is no failure. ``everything``: there are to
    be no other pictures in the folder.
    """
    from filmstrip.render._draw import Drawn
    from filmstrip.render._driver import check_folder, drive, split
    from filmstrip.render._manifest import Report
    from filmstrip.render._progress import progress

    folder = options.out or _beside(str(sources[0].run.path))
    if options.slurm_script:
        from filmstrip.render._slurm import script_of

        print(script_of(options.job_spec(), folder))
        return
    with _usage():
        part = options.read_part()
    missing, kept = split(wanted, sources, folder, options.existing, part)
    if before is not None:
        before(missing, folder)
    if options.dry_run and options.as_json:
        planned = [Drawn(job) for job in missing]
        print(Report(str(folder), kept=kept, planned=planned).to_json())
        return
    if options.dry_run:
        for job in missing:
            print(folder / job.path)
        print(f"would draw {_pictures(len(missing))}, keep {len(kept)}")
        return
    check_folder(folder)
    with _ended_in_order(), options.place(folder, len(missing)) as place:
        report = drive(
            missing,
            kept,
            runs=tuple(str(source.run.path) for source in sources),
            out=folder,
            place=place,
            progress=progress(quiet=options.quiet or options.as_json),
            everything=everything,
        )
    if after is not None:
        after(folder)
    if options.as_json:
        print(report.to_json())
    elif not options.quiet:
        print(
            f"drew {_pictures(len(report.drawn))}, kept {len(report.kept)}, "
            f"in {report.seconds:.1f} s: {folder}"
        )
    failures = [one for one in report.failed if named or not one.nothing]
    for failed in failures[:_TOLD]:
        typer.echo(f"filmstrip: {failed.job.path}: {failed.error}", err=True)
    if len(failures) > _TOLD:
        more = len(failures) - _TOLD
        typer.echo(f"filmstrip: {more} more not drawn: {folder}/manifest.json", err=True)
    if failures:
        raise typer.Exit(1)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, by which SLURM ends a job, interrupt as Ctrl-C does, with exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = False

    def interrupt(*_: object) -> None:
        nonlocal ended
        if not ended:  # what a first one began is not interrupted by a second one
            ended = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not ended:
            raise
        raise typer.Exit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _beside(run: str) -> Path:
    """Return the folder beside a run; for a run by URL, one in the current folder."""
    path = Path(run.rpartition("/")[2]) if "://" in run else Path(run)
    return path.with_name(f"{path.name.removesuffix('.zarr')}-pictures")


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


if __name__ == "__main__":
    app()
