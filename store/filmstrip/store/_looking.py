"""Looking: the only place for the commands that show a run and change nothing: ls, info, status.

What is heavy is imported inside a command, so that ``filmstrip --help`` starts at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.store._terminal import ago, print_table, printable, say, size, span

if TYPE_CHECKING:
    from filmstrip.store._place import Place
    from filmstrip.store._run import Run
    from filmstrip.store._status import Status

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Path of a run, as run.zarr.")]
_DEGRADED, _STALE = 3, 4


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
        print_table(_not_finite(opened, pattern))
        return
    lines = [line for kind in opened.kinds for line in _listed(opened, kind, pattern)]
    if not lines and pattern != "*":
        from filmstrip.store._select import nearest_names
        from filmstrip.store.errors import LayerNotFoundError

        names = [layer for kind in opened.kinds for layer in opened.layers(kind)]
        raise LayerNotFoundError(pattern, opened.name, nearest_names(pattern, names))
    print_table(lines)


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
        for layer in statistics.select(pattern):
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
        say("filmstrip: the run holds no statistics; only scalars were looked at", err=True)
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


def info(run: RunArgument) -> None:
    """Show a run as a tree: kinds, layers, shapes, steps, bytes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from filmstrip.store._run import open_run

    def shown(value: object) -> str:
        return escape(printable(str(value)))

    opened = open_run(run)
    status = opened.status()
    created = _date(opened.attributes["created"])
    # Where nobody watches, nothing is cut to a terminal's width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"[bold]{shown(opened.path)}[/]  {_sentence(status)}, {size(status.bytes)}")
    framework = shown(opened.attributes.get("framework") or "no framework")
    console.print(
        f"created {created}, {framework}, run {shown(opened.id)}, attempt {status.attempt}"
    )
    for name, value in opened.metadata.items():
        console.print(f"  {shown(name)} = {shown(value)}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "dtype", "shape", "layout", "steps", "on disk"):
        right = column in ("steps", "on disk")
        table.add_column(column, justify="right" if right else "left", no_wrap=not right)
    for kind in opened.kinds:
        table.add_row(*_heading(opened, kind))
        if kind == "scalars":
            for name, series in opened.scalars.items():
                table.add_row(f"  {shown(name)}", "float64", "", "", str(len(series.steps)), "")
            continue
        for layer in opened.layers(kind):
            strip = opened.strip(kind, layer)
            room = _room(piece.place for piece in strip.pieces)
            steps, shape = str(len(strip.steps)), _shape(strip.shape)
            name, layout = f"  {shown(layer) or '(the model)'}", shown(strip.layout or "")
            table.add_row(name, shown(strip.source_dtype), shape, layout, steps, room)
    for group in opened.groups():
        if group not in opened.kinds:
            table.add_row(*_heading(opened, group))
    if len(opened.ranks) > 1 or status.missing:
        missing = f", missing: {', '.join(map(str, status.missing))}" if status.missing else ""
        console.print(f"{len(opened.ranks)} of {status.ranks} ranks have written{missing}")
    console.print(table)


def _heading(run: Run, group: str) -> tuple[str, ...]:
    room = _room(view.place for _, view in run.views(group))
    return f"[bold]{printable(group)}[/]", "", "", "", span(run.group_steps(group).tolist()), room


def _room(places: Iterable[Place]) -> str:
    """Return the room that folders take together, "" where that cannot be told."""
    from filmstrip.store._status import disk_bytes

    sizes = [disk_bytes(place) for place in places]
    return size(None if None in sizes else sum(filter(None, sizes)))


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "at no time"


def _sentence(status: Status) -> str:
    if status.last_step is None or status.age is None:
        return f"{status.state}, no step yet"
    return f"{status.state}, last step {status.last_step}, {ago(status.age)}"


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
        say(json.dumps(now.to_dict()) if as_json else _told(now))
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
    return f"{status.path}: {_sentence(status)}; {size(status.bytes)}; steps: {rows}{lost}"


def _exit_code(status: Status, stale: float) -> int:
    if status.state == "stopped" or (
        status.state == "running" and status.age is not None and status.age > stale
    ):
        return _STALE
    return _DEGRADED if status.dropped or status.errors else 0
