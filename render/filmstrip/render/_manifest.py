"""The manifest: the only place that lists what was drawn into a folder, for people and programs.

``manifest.json`` joins what earlier commands drew into the same folder with what this one did;
pictures that are no longer there are left out.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from filmstrip.render._image import write_atomically
from filmstrip.render._spec import CurveSpec, GridSpec, HistogramSpec, command
from filmstrip.render.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filmstrip.render._draw import Drawn
    from filmstrip.render._spec import Spec

__all__ = ["Entry", "Report", "read_manifest", "write_manifest"]

Entry: TypeAlias = dict[str, str | int | float | None]
NAME: Final = "manifest.json"


@dataclass(slots=True)
class Report:
    """What a command did.

    Attributes
    ----------
    out : str
        Folder of the pictures.
    drawn, kept, failed, planned : list of Drawn
        Pictures made, found to be done, not made, and to be made.
    seconds : float
        From start to end.
    runs : tuple of str
        Paths of the runs.
    everything : frozenset of str or None
        Paths of all pictures that there are to be, if the command knows them: that others were
        not drawn is of no interest any more.
    """

    out: str
    drawn: list[Drawn] = field(default_factory=list)
    kept: list[Drawn] = field(default_factory=list)
    failed: list[Drawn] = field(default_factory=list)
    planned: list[Drawn] = field(default_factory=list)
    seconds: float = 0.0
    runs: tuple[str, ...] = ()
    everything: frozenset[str] | None = None

    def to_json(self) -> str:
        """Return the report in the form of the manifest."""
        return _dump(_entries(self), _errors(self))


def write_manifest(report: Report) -> None:
    """Add a report to the manifest of its folder.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    out = Path(report.out)
    with _alone(out):
        _merge(report, out)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other commands from writing the manifest of a folder meanwhile."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:  # taken away while it was drawn into
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
    try:
        with suppress(OSError):  # some file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _merge(report: Report, out: Path) -> None:
    pictures, errors = read_manifest(out)
    merged = {str(entry["path"]): entry for entry in pictures}
    for entry in _entries(report):
        before = merged.get(str(entry["path"]), {})
        if entry["state"] == "kept" and before.get("digest") == entry["digest"]:
            found = ("nonfinite", "nonfinite_step")  # only drawing tells
            entry.update((key, before[key]) for key in found if key in before)
        merged[str(entry["path"])] = entry
    there = [entry for path, entry in sorted(merged.items()) if (out / path).is_file()]
    # What another part of the pictures could not draw, unless it has been drawn since.
    if report.everything is not None:
        errors = [entry for entry in errors if entry["path"] in report.everything]
    failed = {str(entry["path"]): entry for entry in (*errors, *_errors(report))}
    for entry in _entries(report):
        failed.pop(str(entry["path"]), None)
    write_atomically(out / NAME, _dump(there, list(failed.values())).encode())


def read_manifest(out: Path) -> tuple[list[Entry], list[Entry]]:
    """Return what the manifest of a folder lists: pictures, and errors of those not drawn."""
    try:
        whole = json.loads((out / NAME).read_bytes())
        pictures, errors = (
            [entry for entry in whole[key] if isinstance(entry["path"], str)]
            for key in ("pictures", "errors")
        )
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not one of ours
        return [], []
    return pictures, errors


def _entries(report: Report) -> list[Entry]:
    groups = (("redrawn", report.drawn), ("kept", report.kept), ("planned", report.planned))
    return [_entry(one, state, report.runs) for state, group in groups for one in group]


def _entry(one: Drawn, state: str, runs: tuple[str, ...]) -> Entry:
    spec = one.job.spec
    words, step = one.nonfinite or (None, None)
    return {
        "path": one.job.path,
        "picture": spec.picture,
        "kind": "scalars" if isinstance(spec, CurveSpec) and spec.stat is None else spec.kind,
        "layer": spec.name if isinstance(spec, CurveSpec) else spec.layer,
        "step": step_of(spec),
        "command": command(spec, runs),
        "digest": one.digest,
        "seconds": round(one.seconds, 4),
        "state": state,
        "nonfinite": words,
        "nonfinite_step": step,
    }


def step_of(spec: Spec) -> int | None:
    """Return the step that a picture shows, None for one over steps."""
    if isinstance(spec, GridSpec):
        return spec.step
    if isinstance(spec, HistogramSpec) and spec.view == "single" and not spec.page:
        return int(spec.step)
    return None


def _errors(report: Report) -> list[Entry]:
    return [{"path": one.job.path, "error": one.error} for one in report.failed]


def _dump(pictures: list[Entry], errors: list[Entry]) -> str:
    whole = {"format": 1, "pictures": pictures, "errors": errors}
    return json.dumps(whole, indent=1, ensure_ascii=False)
