"""Steps: the only place that reads a step out of a checkpoint's name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from filmstrip.capture.errors import CheckpointError

# The first that a name holds counts: `epoch=3-step=1200` is step 1200.
_LABELS = {
    "step": r"(?:global[-_]?)?steps?|iterations?|iters?",
    "checkpoint": r"checkpoints?|ckpts?|cp",
    "epoch": r"epochs?|ep",
}
_LABELLED = {
    unit: re.compile(rf"(?<![a-z])(?:{label})[-_=. ]?(\d+)(?![\da-z])", re.IGNORECASE)
    for unit, label in _LABELS.items()
}
_ALONE = re.compile(r"(?<![^\W_])(\d+)(?![^\W_])")
_SUFFIX = re.compile(
    r"(\.(pt|pth|bin|ckpt|safetensors|keras|weights|h5|hdf5|npz|index|json))+$", re.IGNORECASE
)
# Numbers that count something else: parts of one checkpoint, ranks, versions, losses.
_OTHERS = re.compile(
    r"-\d+-of-\d+|(?<![a-z])(?:rank|shard|part|mp|tp|pp|dp|v)[-_=]?\d+(?:\.\d+)*(?![^\W_])"
    r"|(?<![\d.])\d+\.\d+(?![\d.])",
    re.IGNORECASE,
)
_ABOVE = 2  # folders whose names are looked at when the file's own says nothing
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Step:
    """A step, and where it comes from.

    Attributes
    ----------
    number : int
        The step.
    source : str
        The part of the name that it was read from; empty where it was given.
    unit : str
        What the name says that it counts: ``"step"``, ``"checkpoint"``, ``"epoch"`` or nothing.
    """

    number: int
    source: str = ""
    unit: str = ""


def step_of(path: Path) -> Step:
    """Return the step that a checkpoint's name tells.

    Parameters
    ----------
    path : Path
        The checkpoint. Where its own name holds no number, those of the folders above are read.

    Returns
    -------
    Step
        The step.

    Raises
    ------
    CheckpointError
        If there is no number, or several of which none is said to be the step.

    Examples
    --------
    >>> [step_of(Path(name)).number for name in ("step-1200.pt", "checkpoint-500/model.bin")]
    [1200, 500]
    >>> step_of(Path("epoch=3-step=1200.ckpt"))
    Step(number=1200, source='step=1200', unit='step')
    >>> step_of(Path("net_00001200.pt")).number
    1200
    """
    for depth, name in enumerate(_names(path)):
        found = _labelled(name) or _alone(name, whole=depth > 0)
        if found:
            numbers = sorted({step.number for step in found})
            if len(numbers) > 1:
                said = " and ".join(map(str, numbers))
                raise CheckpointError(f"{path}: which of {said} is the step? Say it with --step")
            return found[0]
    raise CheckpointError(f"{path}: no step in this name; say it with --step")


def _names(path: Path) -> Iterator[str]:
    for depth, part in enumerate((path, *path.parents)):
        if depth > _ABOVE or not part.name:
            return
        yield _OTHERS.sub("", _SUFFIX.sub("", part.name))


def _labelled(name: str) -> list[Step]:
    for unit, pattern in _LABELLED.items():
        found = [Step(int(match[1]), match[0], unit) for match in pattern.finditer(name)]
        if found:
            return found
    return []


def _alone(name: str, *, whole: bool) -> list[Step]:
    """Return the numbers that no letter touches; those of a folder only when it has no other."""
    if whole:
        return [Step(int(name), name)] if name.isascii() and name.isdigit() else []
    return [Step(int(match[1]), match[1]) for match in _ALONE.finditer(name)]


def steps_of(paths: Sequence[Path], given: Sequence[int]) -> list[tuple[Step, Path]]:
    """Return checkpoints in the order of their steps.

    Parameters
    ----------
    paths : sequence of Path
        The checkpoints.
    given : sequence of int
        Their steps, or nothing, so that their names are read.

    Returns
    -------
    list of (Step, Path)
        Rising.

    Raises
    ------
    CheckpointError
        If two have one step, one is too large, or they count different things.

    Examples
    --------
    >>> [step.number for step, _ in steps_of([Path("step-20.pt"), Path("step-3.pt")], [])]
    [3, 20]
    """
    if given and len(given) != len(paths):
        raise CheckpointError(
            f"{len(given)} steps were given for {len(paths)} checkpoints; say --step once for each"
        )
    steps = [Step(step) for step in given] or [step_of(path) for path in paths]
    ordered = sorted(zip(steps, paths, strict=True), key=lambda pair: pair[0].number)
    for step, path in ordered:
        if step.number > _LARGEST:
            raise CheckpointError(f"{path}: step {step.number} is too large; say it with --step")
    for (step, path), (after, other) in pairwise(ordered):
        if step.number == after.number:
            raise CheckpointError(
                f"{path} and {other} are both of step {step.number}; say --step once for each"
            )
    epochs = [(step, path) for step, path in ordered if step.unit == "epoch"]
    others = [(step, path) for step, path in ordered if step.unit != "epoch"]
    if epochs and others:
        raise CheckpointError(
            f"{epochs[0][1]} counts epochs and {others[0][1]} does not; "
            f"say --step once for each checkpoint"
        )
    return ordered
