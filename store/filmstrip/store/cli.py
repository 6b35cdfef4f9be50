"""The `filmstrip` command: what is in a run, and how it is doing.

Other portions add commands through the entry points of the group ``filmstrip.commands``. What is
heavy is imported inside a command, so that ``filmstrip --help`` starts at once.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from filmstrip.store._run import Run
    from filmstrip.store._status import Status

app = typer.Typer(
    name="filmstrip",
    help="Look at what happened inside a neural network while it trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Path of a run, as run.zarr.")]
EXIT_DEGRADED, EXIT_STALE = 3, 4


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"filmstrip {version('filmstrip')}")
        raise typer.Exit


@app.callback()
def _filmstrip(
    show: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def ls(
    run: RunArgument,
    pattern: Annotated[
        str, typer.Argument(help="Layers to list: a glob, or a regular expression behind re:.")
    ] = "*",
) -> None:
    """List the strips of a run: kind, layer, dtype, shape, steps."""
    from filmstrip.store._run import open_run

    opened = open_run(run)
    lines = [line for kind in opened.kinds for line in _listed(opened, kind, pattern)]
    if not lines and pattern != "*":
        from filmstrip.store._select import nearest_names
        from filmstrip.store.errors import LayerNotFoundError

        names = [layer for kind in opened.kinds for layer in opened.layers(kind)]
        raise LayerNotFoundError(pattern, opened.name, nearest_names(pattern, names))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _listed(run: Run, kind: str, pattern: str) -> list[tuple[str, ...]]:
    from filmstrip.store.errors import LayerNotFoundError

    try:
        layers = run.layers(kind, pattern)
    except LayerNotFoundError:
        return []
    if kind == "scalars":
        series = run.scalars
        return [(kind, name, "float64", "", f"{len(series[name].steps)} steps") for name in layers]
    strips = [run.strip(kind, layer) for layer in layers]
    return [
        (kind, strip.layer, strip.source_dtype, _shape(strip.shape), f"{len(strip.steps)} steps")
        for strip in strips
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


@app.command()
def info(run: RunArgument) -> None:
    """Show a run as a tree: kinds, layers, shapes, steps, bytes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from filmstrip.store._run import open_run
    from filmstrip.store._status import disk_bytes

    opened = open_run(run)
    status = opened.status()
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(opened.attributes["created"]))
    # Where nobody watches, nothing is cut to a terminal's width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(
        f"[bold]{escape(str(opened.path))}[/]  {_sentence(status)}, {_size(status.bytes)}"
    )
    framework = opened.attributes.get("framework") or "no framework"
    console.print(
        f"created {created}, {escape(framework)}, run {opened.id}, attempt {status.attempt}"
    )
    for name, value in opened.metadata.items():
        console.print(f"  {escape(str(name))} = {escape(str(value))}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "dtype", "shape", "layout", "steps", "on disk"):
        right = column in ("steps", "on disk")
        table.add_column(column, justify="right" if right else "left", no_wrap=not right)
    for kind in opened.kinds:
        view = opened.view(kind)
        span = _span(view.steps().tolist())
        table.add_row(f"[bold]{kind}[/]", "", "", "", span, _size(disk_bytes(view.place)))
        if kind == "scalars":
            for name, series in opened.scalars.items():
                table.add_row(f"  {escape(name)}", "float64", "", "", str(len(series.steps)), "")
            continue
        for layer, array in view.layers().items():
            strip = opened.strip(kind, layer)
            size = _size(disk_bytes(view.place / array))
            steps, shape = str(len(strip.steps)), _shape(strip.shape)
            name = f"  {escape(layer) or '(the model)'}"
            table.add_row(name, strip.source_dtype, shape, strip.layout or "", steps, size)
    for group in opened.groups():
        if group not in opened.kinds:
            view = opened.view(group)
            span = _span(view.steps().tolist())
            table.add_row(f"[bold]{group}[/]", "", "", "", span, _size(disk_bytes(view.place)))
    console.print(table)


def _span(steps: list[int]) -> str:
    if not steps:
        return "none"
    return str(steps[0]) if len(steps) == 1 else f"{len(steps)}: {steps[0]} … {steps[-1]}"


def _size(count: float | None) -> str:
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sentence(status: Status) -> str:
    if status.last_step is None or status.age is None:
        return f"{status.state}, no step yet"
    return f"{status.state}, last step {status.last_step}, {_ago(status.age)}"


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the run ends.")] = False,
    stale: Annotated[
        float, typer.Option(help="Seconds without a step after which a running run is stale.")
    ] = 600.0,
) -> None:
    """Say how a run is doing. Exit code 0 fine, 3 degraded (something was lost), 4 stale."""
    from filmstrip.store._run import open_run

    opened = open_run(run)
    while True:
        now = opened.status()
        print(json.dumps(now.to_dict()) if as_json else _told(now), flush=True)
        if not watch or now.state != "running":
            break
        time.sleep(2)
    raise typer.Exit(_exit_code(now, stale))


def _told(status: Status) -> str:
    rows = ", ".join(f"{name} {count}" for name, count in status.steps.items()) or "nothing yet"
    losses = [
        f"{count} {what}"
        for what, count in (("dropped", status.dropped), ("errors", status.errors))
        if count
    ]
    lost = f"; lost: {', '.join(losses)}" if losses else ""
    return f"{status.path}: {_sentence(status)}; {_size(status.bytes)}; steps: {rows}{lost}"


def _exit_code(status: Status, stale: float) -> int:
    if status.state == "stopped" or (
        status.state == "running" and status.age is not None and status.age > stale
    ):
        return EXIT_STALE
    return EXIT_DEGRADED if status.dropped or status.errors else 0


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr and exit code 1."""
    for point in entry_points(group="filmstrip.commands"):
        try:
            app.add_typer(point.load(), name=point.name)
        except ImportError as error:  # one portion that is broken must not take the others along
            print(f"filmstrip: no command {point.name!r}: {error}", file=sys.stderr)
    from filmstrip.store.errors import StoreError

    try:
        app()
    except StoreError as error:
        sys.exit(_complain(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _complain(error: Exception) -> int:
    print(f"filmstrip: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
