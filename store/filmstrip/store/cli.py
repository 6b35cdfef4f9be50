"""The `filmstrip` command: what is in a run, how it is doing, and how it is kept.

Other portions add commands through the entry points of the group ``filmstrip.commands``. What is
heavy is imported inside a command, so that ``filmstrip --help`` starts at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
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
    nonfinite: Annotated[
        bool,
        typer.Option(
            "--nonfinite", help="List only layers with NaN or infinity, the first step first."
        ),
    ] = False,
) -> None:
    """List the strips of a run: kind, layer, dtype, shape, steps."""
    from filmstrip.store._run import open_run

    opened = open_run(run)
    if nonfinite:
        _print_table(_not_finite(opened, pattern))
        return
    lines = [line for kind in opened.kinds for line in _listed(opened, kind, pattern)]
    if not lines and pattern != "*":
        from filmstrip.store._select import nearest_names
        from filmstrip.store.errors import LayerNotFoundError

        names = [layer for kind in opened.kinds for layer in opened.layers(kind)]
        raise LayerNotFoundError(pattern, opened.name, nearest_names(pattern, names))
    _print_table(lines)


def _print_table(lines: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _not_finite(run: Run, pattern: str) -> list[tuple[str, ...]]:
    """Return a line for every layer and scalar with a NaN or infinity, the earliest first."""
    import numpy as np

    from filmstrip.store._select import select
    from filmstrip.store.errors import KindNotFoundError

    found: list[tuple[int, tuple[str, ...]]] = []
    known = False
    for kind in ("activations", "gradients", "weights", "inputs", "images"):
        try:
            statistics = run.statistics(kind)
        except KindNotFoundError:
            continue
        known = True
        for layer in select(pattern, statistics.layers):
            nan, high, low = (statistics[layer, name] for name in ("nan", "posinf", "neginf"))
            bad = np.flatnonzero(nan.values + high.values + low.values > 0)
            if bad.size:
                step = int(nan.steps[bad[0]])
                infinite = int(high.values[bad[0]] + low.values[bad[0]])
                counts = f"{int(nan.values[bad[0]])} NaN", f"{infinite} infinite"
                steps = f"{bad.size} of {len(nan.steps)} steps"
                found.append((step, (kind, layer, f"from step {step}", *counts, steps)))
    scalars = run.scalars
    for name in select(pattern, scalars):
        steps_kept, values = scalars[name]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            step, count = int(steps_kept[bad[0]]), f"{bad.size} of {len(values)} steps"
            what = "NaN" if np.isnan(values[bad[0]]) else "infinite"
            found.append((step, ("scalars", name, f"from step {step}", what, "", count)))
    if not known:
        print(
            "filmstrip: the run holds no statistics; only scalars were looked at", file=sys.stderr
        )
    return [line for _, line in sorted(found, key=lambda item: item[0])]


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
        table.add_row(*_heading(opened, kind))
        if kind == "scalars":
            for name, series in opened.scalars.items():
                table.add_row(f"  {escape(name)}", "float64", "", "", str(len(series.steps)), "")
            continue
        for layer in opened.layers(kind):
            strip = opened.strip(kind, layer)
            sizes = [disk_bytes(piece.place) for piece in strip.pieces]
            size = _size(None if None in sizes else sum(filter(None, sizes)))
            steps, shape = str(len(strip.steps)), _shape(strip.shape)
            name = f"  {escape(layer) or '(the model)'}"
            table.add_row(name, strip.source_dtype, shape, strip.layout or "", steps, size)
    for group in opened.groups():
        if group not in opened.kinds:
            table.add_row(*_heading(opened, group))
    if len(opened.ranks) > 1 or status.missing:
        missing = f", missing: {', '.join(map(str, status.missing))}" if status.missing else ""
        console.print(f"{len(opened.ranks)} of {status.ranks} ranks have written{missing}")
    console.print(table)


def _heading(run: Run, group: str) -> tuple[str, ...]:
    from filmstrip.store._status import disk_bytes

    sizes = [disk_bytes(view.place) for _, view in run.views(group)]
    size = _size(None if None in sizes else sum(filter(None, sizes)))
    return f"[bold]{group}[/]", "", "", "", _span(run.group_steps(group).tolist()), size


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
    """Say how a run is doing.

    Exit code 0 fine, 1 not a run, 2 usage, 3 degraded (something was lost), 4 stale.
    """
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


@app.command()
def du(run: RunArgument) -> None:
    """Say what of a run takes how much room: on disk, uncompressed, and their ratio."""
    from filmstrip.store._usage import usage

    found = usage(run)
    disk, raw = sum(one.disk for one in found), sum(one.raw for one in found)
    lines = [("on disk", "raw", "ratio", "kind", "layer")]
    lines += [
        (_size(one.disk), _size(one.raw), _ratio(one.raw, one.disk), one.kind, one.layer)
        for one in found
    ]
    _print_table([*lines, (_size(disk), _size(raw), _ratio(raw, disk), "all", "")], (0, 1, 2))


def _ratio(raw: int, disk: int) -> str:
    return f"{raw / disk:.2f}" if disk else ""


@app.command()
def check(run: RunArgument) -> None:
    """Read everything of a run, verify it, and name what is wrong. Exit code 0 when nothing is."""
    from filmstrip.store._check import check

    found = check(run)
    for finding in found:
        print(finding)
    wrong = [finding for finding in found if finding.severity != "note"]
    if not wrong:
        print(f"{run}: nothing is wrong")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def repair(
    run: RunArgument,
    set_aside: Annotated[
        bool,
        typer.Option(
            "--set-aside",
            help="Rename shards that are damaged for good, so that the rest can be read.",
        ),
    ] = False,
) -> None:
    """Bring a run into order whose process died, or that was damaged; deletes nothing committed.

    Exit code 1 when something had to be left as it is.
    """
    from filmstrip.store._repair import repair

    report = repair(run, set_aside=set_aside)
    for line in report:
        print(line)
    if not report:
        print(f"{run}: nothing to do")
    raise typer.Exit(0 if all(line.done for line in report) else 1)


def _steps(text: str) -> slice:
    """Return the slice that START:STOP or START:STOP:STRIDE says."""
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise typer.BadParameter(f"{text!r} is not START:STOP or START:STOP:STRIDE")
    return slice(*numbers)


@app.command()
def copy(
    run: RunArgument,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION",
            help="Path of the copy. One that was cut short is completed.",
        ),
    ],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Kind to copy, as activations; may be repeated. All by default."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers to copy: a glob, or a regular expression behind re:; may be repeated."
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Steps to copy, as START:STOP or START:STOP:STRIDE; half open.")
    ] = ":",
) -> None:
    """Copy a run, or a part of it: sealed, without holes, equal to the bit. Also a live one."""
    from filmstrip.store._copy import copy

    chosen = _steps(steps)
    with _progress() as progress:
        done = copy(
            run,
            destination,
            kinds=kind or None,
            layers=layers or "*",
            steps=chosen,
            progress=progress,
        )
    print(
        f"{done.path}: {done.frames} frames, {_size(done.bytes)}; {_size(done.written)} written now"
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what shows bytes done of bytes in all: a bar on a terminal, else a line at times."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    bar = Progress(
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("copy", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Progress where nobody watches: a line every ten seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= 10:
            self._last = now
            share = f", {100 * done // total} %" if total else ""
            print(f"{_size(done)} of {_size(total)}{share}", file=sys.stderr, flush=True)


@app.command()
def prune(
    run: RunArgument,
    kind: Annotated[str, typer.Option(help="Kind of the frames to take away, as activations.")],
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers to prune: a glob, or a regular expression behind re:; may be repeated. "
            "Without any other option they vanish as a whole."
        ),
    ] = None,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Keep the frames of steps that this number divides.")
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(min=0, help="Keep the last frames of every layer, so many.")
    ] = None,
    before: Annotated[
        int | None, typer.Option(min=0, help="Keep the frames of this step and all later ones.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would be taken away.")
    ] = False,
) -> None:
    """Take frames out of a run to free space; rows, statistics and scalars stay."""
    from filmstrip.store._prune import prune

    if layers is None and keep_every is None and keep_last is None and before is None:
        raise typer.BadParameter(
            "say what to keep (--keep-every, --keep-last, --before), or which --layers vanish"
        )
    done = prune(
        run,
        kind=kind,
        layers=layers,
        keep_every=keep_every,
        keep_last=keep_last,
        before=before,
        dry_run=dry_run,
    )
    would = "would take" if dry_run else "took"
    layer_count = f"; {len(done.layers)} layers vanish" if done.layers else ""
    print(
        f"{run}: {would} away {done.frames} frames of {kind}, {_size(done.bytes)}; "
        f"{done.kept} stay{layer_count}"
    )


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
    except ImportError as error:
        if error.name != "obstore":  # which an extra brings; anything else is a defect
            raise
        sys.exit(_complain(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _complain(error: Exception) -> int:
    print(f"filmstrip: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
