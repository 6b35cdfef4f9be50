"""The `filmstrip` command: the only place that puts its commands together and ends with a code.

Other portions add commands through the entry points of the group ``filmstrip.commands``.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points, version
from io import TextIOWrapper
from typing import Annotated

import typer

from filmstrip.store import _keeping, _looking
from filmstrip.store._terminal import say

app = typer.Typer(
    name="filmstrip",
    help="Look at what happened inside a neural network while it trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    _looking.ls,
    _looking.info,
    _looking.status,
    _keeping.du,
    _keeping.check,
    _keeping.repair,
    _keeping.copy,
    _keeping.prune,
):
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"filmstrip {version('filmstrip')}")
        raise typer.Exit


@app.callback()
def _filmstrip(
    show: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr and exit code 1."""
    for point in entry_points(group="filmstrip.commands"):
        try:
            command = point.load()
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=point.name)
            else:
                app.command(point.name)(command)
        except ImportError as error:  # one portion that is broken must not take the others along
            say(f"filmstrip: no command {point.name!r}: {error}", err=True)
    from filmstrip.store.errors import StoreError

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as where a process is started without one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, TextIOWrapper):  # which may know less than the words that are shown
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # while an error can be told still
    except StoreError as error:
        sys.exit(_complain(error))
    except ImportError as error:
        if error.name != "obstore":  # which an extra brings; anything else is a defect
            raise
        sys.exit(_complain(error))
    except OSError as error:
        if error.filename is not None:  # it was another file
            raise
        _discard_output()
        if not isinstance(error, BrokenPipeError):
            say(f"filmstrip: cannot write the output: {error.strerror or error}", err=True)
        sys.exit(1)


def _discard_output() -> None:
    """Let what is still buffered go nowhere, or Python complains of it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: Exception) -> int:
    say(f"filmstrip: {error}", err=True)
    return 1


if __name__ == "__main__":
    main()
