"""The command `filmstrip capture`: the only place that asks people how to capture a script.

Its options are the keywords of capture, out of the table from which `add_capture_arguments` makes
the flags of a training script.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from filmstrip.capture._flags import LISTS, SWITCHES, WORDS, listed, read_pair, reader
from filmstrip.capture.errors import CaptureError
from filmstrip.store._terminal import say


def capture(**said: Any) -> None:
    """Run a training command as it is, and capture what it trains.

    Two dashes stand before the command: filmstrip capture run.zarr --every 100 --
    python train.py. What is watched is the model that an optimizer trains, or the
    models, where several optimizers were made before training; steps are counted
    by the one made last, from its own count when it comes from a checkpoint.

    The command keeps its exit code, its output and its signals. Where nothing can
    be captured it runs all the same, and stderr says why.
    """
    arguments, run = said.pop("arguments"), said.pop("run")
    with _usage():
        command = _read(said)
        command["run"] = os.path.abspath(run)  # noqa: PTH100  # the script may change its folder
        plan, step = said["plan"], command.pop("step", None)
        plan = None if plan is None else str(Path(plan).resolve())
        _check(command, plan)
    try:
        from filmstrip.capture.launch import launch

        code = launch(arguments, command=command, plan=plan, step=step)
    except CaptureError as error:
        say(f"filmstrip: {error}", err=True)
        code = 127
    raise typer.Exit(code)


@contextmanager
def _usage() -> Iterator[None]:
    """Turn what cannot be used into an error of usage, with exit code 2."""
    try:
        yield
    except (CaptureError, argparse.ArgumentTypeError) as error:
        raise typer.BadParameter(str(error)) from None


def _read(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that were said, each in its one form."""
    command: dict[str, Any] = {}
    for keyword in WORDS:
        value = said[keyword]
        if value is None or value == []:
            continue
        if keyword in LISTS:
            parts = [part for text in value for part in listed(reader(keyword)(text))]
            value = list(dict.fromkeys(parts))
        elif keyword not in SWITCHES:
            value = reader(keyword)(value)
        command[keyword] = value
    if said["metadata"]:
        command["metadata"] = dict(map(read_pair, said["metadata"]))
    if said["dry_run"]:
        command["dry_run"] = True
    return command


def _check(command: Mapping[str, object], plan: str | None) -> None:
    """Refuse before training starts what can be refused then."""
    from filmstrip.capture._schedule import EPOCH
    from filmstrip.capture._settings import DEFAULTS, settle

    settings = settle(DEFAULTS, plan=plan, environment=os.environ, command=command)
    if settings.every == EPOCH:
        raise CaptureError(
            "every='epoch' needs a trainer that knows epochs, and a script is followed step by "
            "step; give a number of steps, such as --every 100"
        )
    if settings.if_exists == "fail" and Path(settings.run).exists():
        raise CaptureError(f"{settings.run} is there already, and if_exists is 'fail'")


def _signature() -> Signature:
    """Return the command's parameters: RUN, one option for every keyword, and the command."""
    parameters = [
        _parameter("run", str, typer.Argument(metavar="RUN", help="Path of the run to write."), ...)
    ]
    for keyword, (metavar, words) in WORDS.items():
        name, words = (
            keyword.replace("_", "-"),
            f"{words[0].upper()}{words[1:]}.".replace("%%", "%"),
        )
        if keyword in SWITCHES:
            option = typer.Option(f"--{name}/--no-{name}", help=words, show_default=False)
            parameters.append(_parameter(keyword, bool | None, option, None))
        else:
            kind = list[str] if keyword in LISTS else str
            option = typer.Option(f"--{name}", metavar=metavar, help=words)
            parameters.append(_parameter(keyword, kind | None, option, None))
    option = typer.Option("--metadata", metavar="NAME=VALUE", help="Kept with the run.")
    parameters.append(_parameter("metadata", list[str] | None, option, None))
    option = typer.Option(
        "--plan", metavar="FILE", help="A TOML file of keywords; options beat it."
    )
    parameters.append(_parameter("plan", str | None, option, None))
    option = typer.Option("--dry-run", help="Train, print what would be kept, and write nothing.")
    parameters.append(_parameter("dry_run", bool, option, False))
    option = typer.Argument(
        metavar="COMMAND", help="As -- python train.py, or -- torchrun train.py."
    )
    parameters.append(_parameter("arguments", list[str], option, ...))
    return Signature(parameters)


def _parameter(name: str, kind: Any, option: Any, default: object) -> Parameter:
    default = Parameter.empty if default is ... else default
    annotation = Annotated[kind, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


capture.__signature__ = _signature()  # type: ignore[attr-defined]
capture.__annotations__ = {
    name: one.annotation
    for name, one in capture.__signature__.parameters.items()  # type: ignore[attr-defined]
}
