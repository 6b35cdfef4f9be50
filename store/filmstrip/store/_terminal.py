"""Terminal: the only place that writes what people read: lines, tables, sizes, ages.

Names come from runs, and runs from anywhere: what would steer a terminal, or break a line, is shown
as its escape.
"""

from __future__ import annotations

import typer


def say(text: object, *, err: bool = False) -> None:
    """Write one line, to stderr if that is asked for."""
    typer.echo(printable(str(text)), err=err)


def printable(text: str) -> str:
    r"""Return a text as one line that does nothing to a terminal.

    Examples
    --------
    >>> printable("conv1\x1b[2J")
    'conv1\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )


def print_table(lines: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Write lines in columns as wide as they need; those of `right` flush right."""
    lines = [tuple(map(printable, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def span(steps: list[int]) -> str:
    """Return how many steps there are, the first and the last."""
    if not steps:
        return "none"
    return str(steps[0]) if len(steps) == 1 else f"{len(steps)}: {steps[0]} … {steps[-1]}"


def size(count: float | None) -> str:
    """Return bytes in the unit that suits them, "" for None."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ago(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
