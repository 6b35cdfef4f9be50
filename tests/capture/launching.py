"""How tests run a script by itself, and once more under `filmstrip capture`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
CAPTURE = (sys.executable, "-c", "import typer, filmstrip.capture.cli as c; typer.run(c.capture)")
_LONGEST = 180


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit code and all that it wrote."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which filmstrip can be imported, and nothing is downloaded."""
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def started(command: Sequence[str], **more: str) -> subprocess.Popen[str]:
    """Start a process."""
    return subprocess.Popen(
        command,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process."""
    try:
        out, err = process.communicate(timeout=_LONGEST)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def captured(run: Path | str, *options: str, command: Sequence[str], **more: str) -> Ended:
    """Run a command under `filmstrip capture`."""
    return ended(started((*CAPTURE, str(run), *options, "--", *command), **more))


def both(run: Path | str, *options: str, command: Sequence[str]) -> tuple[Ended, Ended]:
    """Run a command by itself and, at the same time, captured."""
    plain = started(command)
    under = started((*CAPTURE, str(run), *options, "--", *command))
    try:
        return ended(plain), ended(under)
    finally:
        under.kill()
