"""The command `filmstrip ingest`: the only place that tells people what ingest does.

What is heavy is imported inside the command, so that ``filmstrip --help`` starts at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.capture.errors import CaptureError
from filmstrip.store._terminal import print_table, say, size

if TYPE_CHECKING:
    from filmstrip.capture.ingest._ingest import Taken


class IfExists(StrEnum):
    """What to do with a run that is there."""

    resume = "resume"
    fail = "fail"
    new = "new"
    overwrite = "overwrite"


def ingest(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Path of a run, as run.zarr; made if need be.")
    ],
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT",
            help="Saved models: .pt, .pth, .bin, .ckpt, .safetensors, .keras, .h5, .npz, "
            "TensorFlow checkpoints, SavedModels, folders of Hugging Face or of PyTorch's "
            "distributed checkpoints. In any order.",
        ),
    ],
    step: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Step of a checkpoint; once for each. By default read from its name."
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers to take: a glob, or a regular expression behind re:; may be repeated. "
            "All by default."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Layers to leave out, likewise; may be repeated.")
    ] = None,
    if_exists: Annotated[
        IfExists,
        typer.Option(
            help="A run that is there: add later steps to it (resume), stop (fail), make another "
            "(new), or delete it (overwrite)."
        ),
    ] = IfExists.resume,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; say what would be taken.")
    ] = False,
) -> None:
    """Put the weights of saved models into a run, one step each. Runs no code that they hold."""
    from filmstrip.capture.ingest._ingest import Ingest

    try:
        work = Ingest(
            run,
            checkpoints,
            steps=step or (),
            layers=layers or (),
            exclude=exclude or (),
            if_exists=if_exists.value,
        )
        with _progress() as progress:
            taken: list[Taken] = []
            for one in work.take(dry_run=dry_run, progress=progress):
                if dry_run and one.specs and not any(before.specs for before in taken):
                    _print_layers(one)
                say(_line(one))
                taken.append(one)
    except CaptureError as error:
        say(f"filmstrip: {error}", err=True)
        raise typer.Exit(1) from None
    written = [one for one in taken if one.specs]
    frames, nbytes = sum(len(one.specs) for one in written), sum(one.nbytes for one in written)
    what = f"{_count(len(written), 'step')}, {_count(frames, 'frame')} of weights, {size(nbytes)}"
    say(f"{run} would get {what}" if dry_run else f"{work.path}: {what}")


def _line(one: Taken) -> str:
    source = f" (from {one.step.source!r})" if one.step.source else ""
    start = f"step {one.step.number}{source}: {one.path}"
    if not one.specs:
        return f"{start}: there already, skipped"
    parts = [f"{_count(len(one.specs), 'layer')}, {size(one.nbytes)}"]
    left = [f"{count} {what}" for what, count in sorted(one.left_out.items()) if count]
    if left:
        parts.append(f"left out {', '.join(left)}")
    if one.bare:
        parts.append(f"{_count(one.bare, 'layer')} for whose statistics the run has no room")
    return f"{start}: {'; '.join(parts)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_layers(one: Taken) -> None:
    lines = [
        (layer, spec.dtype, " × ".join(map(str, spec.shape)) or "scalar", spec.layout or "")
        for layer, spec in one.specs.items()
    ]
    print_table([("layer", "dtype", "shape", "layout"), *lines])


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows how far a checkpoint is: a bar on a terminal; elsewhere lines do."""
    if not sys.stderr.isatty():
        yield lambda layer, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from filmstrip.store._terminal import printable

    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.description}", markup=False))
    console, seen = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=seen) as bar:
        task = bar.add_task("", total=None)
        yield lambda layer, done, total: bar.update(
            task, description=printable(layer), completed=done, total=total
        )
