"""Time ``filmstrip --help`` beside a typer app that does nothing: ``scripts/bench cli``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import Figure, interleaved, report

EMPTY = """
import typer
app = typer.Typer(add_completion=False)
for name in "abc":
    app.command(name)(lambda: None)
app()
"""


def main() -> int:
    """Measure whole processes in turn."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.write_text(EMPTY)
        commands = {
            "filmstrip": [sys.executable, "-m", "filmstrip.store.cli", "--help"],
            "empty": [sys.executable, str(script), "--help"],
        }

        def run(name: str) -> None:
            subprocess.run(commands[name], check=True, stdout=subprocess.DEVNULL)

        least = interleaved({name: partial(run, name) for name in commands}, 15)
    ratio = least["filmstrip"] / least["empty"]
    return report("command line", [Figure("filmstrip --help, of an empty app", ratio, goal=1.5)])


if __name__ == "__main__":
    sys.exit(main())
