"""Launching: the only place that runs a training command so that it is captured unmodified.

The command is a child of this process, with its standard streams, its signals and its exit code.
Its environment gets two additions, which `_launched` takes up in every Python of the command, be it
a script or one of torchrun's ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from filmstrip.capture import _report, _start
from filmstrip.capture._launched import VARIABLE, WATCHES, Wishes
from filmstrip.capture._settings import switched_off
from filmstrip.capture.errors import CaptureError

_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")
_OF_TERMINALS = frozenset({"SIGINT", "SIGHUP", "SIGQUIT"})
_BY_SIGNAL = 128


def launch(
    arguments: Sequence[str],
    *,
    command: Mapping[str, object],
    plan: str | None = None,
    step: int | None = None,
) -> int:
    """Run a training command, and capture what it trains.

    Parameters
    ----------
    arguments : sequence of str
        The command, as ``["python", "train.py"]``.
    command : mapping
        Keywords of capture that were said; ``run`` among them.
    plan : str, optional
        Path of a TOML file.
    step : int, optional
        First step; by default what the optimizer has counted, else 0.

    Returns
    -------
    int
        The command's exit code; 128 and the number of the signal, where one ended it.

    Raises
    ------
    CaptureError
        If the command cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="filmstrip-") as folder:
        wishes = Wishes(command=command, plan=plan, step=step, folder=folder)
        code = _run(arguments, {**os.environ, **_additions(wishes, os.environ)})
        notes = wishes.notes()
    if switched_off(os.environ):
        _report.say("nothing was captured: FILMSTRIP is off in the environment")
    elif "attached" not in notes:
        _report.say(f"nothing was captured: {_why(notes)}")
    elif "others" in notes:
        _report.say("more than one process trained; the first of each rank was captured")
    elif "later" in notes:
        _report.say(notes["later"])
    return code if code >= 0 else _BY_SIGNAL - code


def _additions(wishes: Wishes, environment: Mapping[str, str]) -> dict[str, str]:
    folders = [str(Path(next(iter(_start.__path__))).resolve())]
    if before := environment.get("PYTHONPATH"):
        folders.append(before)
    return {VARIABLE: wishes.text(), "PYTHONPATH": os.pathsep.join(folders)}


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, and pass on the signals that come meanwhile."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not (signal.Signals(number).name in _OF_TERMINALS and _before_a_terminal()):
            for child in children:
                with suppress(OSError):
                    child.send_signal(number)

    with _handled(pass_on):
        try:
            child = subprocess.Popen(arguments, env=environment)
        except OSError as error:
            raise CaptureError(
                f"{arguments[0]} cannot be started: {error.strerror or error}"
            ) from error
        children.append(child)
        return child.wait()


def _before_a_terminal() -> bool:
    """Return whether a terminal sends its signals to us, and so to our child by itself."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextmanager
def _handled(handler: object) -> Iterator[None]:
    """Handle signals for a while; ones that are ignored stay so, as under nohup."""
    numbers = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    before = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)  # type: ignore[arg-type]
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _why(notes: Mapping[str, str]) -> str:
    """Return in words why nothing was captured."""
    if "refused" in notes:
        return notes["refused"]
    if "optimizer" in notes:
        return (
            f"{notes['optimizer']} was made, but no module that holds its parameters was called "
            "in order to learn"
        )
    if "imported" in notes:
        return notes["imported"]
    if "started" in notes:
        return f"{' or '.join(WATCHES)} was not imported"
    return (
        "the command started no Python in which filmstrip is installed; "
        "python -E, -I and -S leave it out, too"
    )
