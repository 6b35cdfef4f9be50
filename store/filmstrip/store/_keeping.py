"""Keeping: the only place for the commands that keep runs: du, check, repair, copy, prune.

What is heavy is imported inside a command, so that ``filmstrip --help`` starts at once.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from filmstrip.store._looking import RunArgument
from filmstrip.store._terminal import print_table, say, size


def du(run: RunArgument) -> None:
    """Say what of a run takes how much room: on disk, uncompressed, and their ratio."""
    from filmstrip.store._usage import usage

    found = usage(run)
    disk, raw = sum(one.disk for one in found), sum(one.raw for one in found)
    lines = [("on disk", "raw", "ratio", "kind", "layer")]
    lines += [
        (size(one.disk), size(one.raw), _ratio(one.raw, one.disk), one.kind, one.layer)
        for one in found
    ]
    print_table([*lines, (size(disk), size(raw), _ratio(raw, disk), "all", "")], (0, 1, 2))


def _ratio(raw: int, disk: int) -> str:
    return f"{raw / disk:.2f}" if disk else ""


def check(run: RunArgument) -> None:
    """Read everything of a run, verify it, and name what is wrong. Exit code 0 when nothing is."""
    from filmstrip.store._check import check

    found = check(run)
    for finding in found:
        say(finding)
    wrong = [finding for finding in found if finding.severity != "note"]
    if not wrong:
        say(f"{run}: nothing is wrong")
    raise typer.Exit(1 if wrong else 0)


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
        say(line)
    if not report:
        say(f"{run}: nothing to do")
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
    say(f"{done.path}: {done.frames} frames, {size(done.bytes)}; {size(done.written)} written now")


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
            say(f"{size(done)} of {size(total)}{share}", err=True)


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
    say(
        f"{run}: {would} away {done.frames} frames of {kind}, {size(done.bytes)}; "
        f"{done.kept} stay{layer_count}"
    )
