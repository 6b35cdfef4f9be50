"""The index: the only place that writes ``index.html``, a page for all pictures of a folder.

It is made of the manifest, so that it lists what any command drew there. The page asks nothing of
any network: its script and style are in it, and pictures have paths relative to it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import numpy as np

from filmstrip.render._density import nonfinite_words
from filmstrip.render._image import write_atomically
from filmstrip.render._manifest import read_manifest
from filmstrip.store import STATISTICS, KindNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from filmstrip.render._manifest import Entry
    from filmstrip.render._plan import LeftOut
    from filmstrip.render._source import RunSource

__all__ = ["NAME", "write_index"]

NAME: Final = "index.html"
_KINDS: Final = ("scalars", "activations", "weights", "gradients", "inputs", "images")
_PICTURES: Final = ("grid", "histogram", "curve", "animation")
_STEP: Final = re.compile(r"(?<=-)\d{8,}(?=[-.~])")
_ASPECT: Final = (7, 5)  # of a format whose size is not looked up


@dataclass(slots=True)
class _Figure:
    """Pictures that differ in their step only; ``{step}`` stands for it.

    Attributes
    ----------
    name : str
        What it shows, and how, where that is not the default.
    suffix : str
        Format, with a dot.
    size : (int, int)
        Width and height, so that a page has its length before pictures are loaded.
    path : str
        Quoted, relative to the page.
    command : (str, str)
        What stands before the step, and behind it.
    steps : list of int
        Ascending; empty for a picture over steps.
    """

    name: str
    suffix: str
    size: tuple[int, int]
    path: str
    command: tuple[str, str]
    steps: list[int] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """Path of the last step."""
        return self.path.replace("{step}", f"{self.steps[-1]:08d}") if self.steps else self.path

    @property
    def whole_command(self) -> str:
        """Command of the last step."""
        return str(self.steps[-1] if self.steps else "").join(self.command)


@dataclass(frozen=True, slots=True)
class _Section:
    """All figures of one layer of one kind, or of all scalars.

    Attributes
    ----------
    kind, layer, title : str
    bad : str
        Since when it is not finite; empty when it always is.
    figures : list of _Figure
    """

    kind: str
    layer: str
    title: str
    bad: str
    figures: list[_Figure]


def write_index(out: Path, source: RunSource, left_out: Sequence[LeftOut] = ()) -> Path:
    """Write the page of a folder.

    Parameters
    ----------
    out : Path
        Folder of the pictures, which holds their manifest.
    source : RunSource
        The run that they show.
    left_out : sequence of LeftOut
        What has no picture, and why.

    Returns
    -------
    Path
        Where the page is.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    pictures, errors = read_manifest(out)
    sections = _sections(out, pictures, source)
    steps = sorted({step for one in sections for figure in one.figures for step in figure.steps})
    missing = [(f"{kind}/{layer}", why) for kind, layer, why in left_out]
    missing += [(str(error["path"]), str(error["error"])) for error in errors]
    template = (files("filmstrip.render") / "index.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["quoted"] = quote
    page = environment.from_string(template).render(
        name=source.run.name,
        path=str(source.run.path),
        run_id=source.id,
        covered=_covered(source),
        count=len(pictures),
        steps=steps,
        sections=sections,
        kinds=sorted({one.kind for one in sections}, key=lambda kind: _rank(kind, _KINDS)),
        missing=missing,
    )
    # Names of a user may hold what UTF-8 cannot.
    write_atomically(out / NAME, page.encode("utf-8", "replace"))
    return out / NAME


def _covered(source: RunSource) -> str:
    """Say over which steps the run goes."""
    steps = [source.run.steps(kind) for kind in source.run.kinds]
    known = [one for one in steps if len(one)]
    if not known:
        return "no steps"
    return f"steps {min(int(one[0]) for one in known)} to {max(int(one[-1]) for one in known)}"


def _nonfinite(source: RunSource) -> dict[tuple[str, str], str]:
    """Scalars, and layers whose statistics count NaN or infinities, and since when."""
    found: dict[tuple[str, str], str] = {}
    for kind in ("activations", "gradients", "weights"):
        try:
            statistics = source.run.statistics(kind)
        except KindNotFoundError:
            continue
        steps, table = statistics.table()
        columns = {name: np.nan_to_num(table[..., i]) for i, name in enumerate(STATISTICS)}
        for position, layer in enumerate(statistics.layers):
            nan, infinite = columns["nan"], columns["posinf"] + columns["neginf"]
            rows = np.flatnonzero((nan + infinite)[:, position])
            if rows.size:
                words = nonfinite_words(nan[rows, position].any(), infinite[rows, position].any())
                found[kind, layer] = f"{words} first at step {steps[rows[0]]}"
    scalars = []
    for name, (steps, values) in source.run.scalars.items():
        rows = np.flatnonzero(~np.isfinite(values))
        if rows.size:
            words = nonfinite_words(np.isnan(values).any(), np.isinf(values).any())
            scalars.append(f"{name}: {words} first at step {steps[rows[0]]}")
    if scalars:
        found["scalars", ""] = "; ".join(scalars)
    return found


def _seen(pictures: Iterable[Entry]) -> dict[tuple[str, str], str]:
    """Layers of which a picture shows NaN or infinities: known also without statistics."""
    seen: dict[tuple[str, str], tuple[int, str]] = {}
    for entry in pictures:
        words, step = entry.get("nonfinite"), entry.get("nonfinite_step")
        if isinstance(words, str) and isinstance(step, int):
            key = str(entry["kind"]), str(entry["layer"])
            seen[key] = min(seen.get(key, (step, words)), (step, words))
    return {key: f"{words} at step {step}" for key, (step, words) in seen.items()}


def _sections(out: Path, pictures: Sequence[Entry], source: RunSource) -> list[_Section]:
    """Sections in order: layers that are not finite, then by kind, in forward order."""
    layers: dict[tuple[str, str], dict[str, _Figure]] = {}
    for entry in pictures:
        kind, layer = str(entry["kind"]), str(entry["layer"])
        key = kind, layer if kind != "scalars" else ""
        _enter(layers.setdefault(key, {}), out, entry)
    nonfinite = _seen(pictures) | _nonfinite(source)
    sections = [
        _Section(
            kind=kind,
            layer=layer,
            title={"": "all", "*": "all layers"}.get(layer, layer),
            bad=nonfinite.get((kind, layer), ""),
            figures=_ordered(figures.values()),
        )
        for (kind, layer), figures in layers.items()
    ]
    forward = {
        (kind, layer): position
        for kind in {kind for kind, _ in layers} & {*source.run.kinds} - {"scalars"}
        for position, layer in enumerate(source.layers(kind, ()))
    }
    # Pictures of several layers come first.
    return sorted(
        sections,
        key=lambda one: (
            not one.bad,
            _rank(one.kind, _KINDS),
            forward.get((one.kind, one.layer), -1),
            one.layer,
        ),
    )


def _enter(figures: dict[str, _Figure], out: Path, entry: Entry) -> None:
    """Add a picture to the figure that it belongs to."""
    path, step = str(entry["path"]), entry["step"]
    folder, _, name = path.rpartition("/")
    framed = _STEP.sub("{step}", name, count=1) if step is not None else name
    key = f"{folder}/{framed}"
    command = str(entry.get("command", ""))
    if key not in figures:
        before, flag, after = (
            command.rpartition(f"--step {step}") if step is not None else ("",) * 3
        )
        figures[key] = _Figure(
            name=_named(framed) + f" · {entry['layer']}" * (entry["kind"] == "scalars"),
            suffix=Path(name).suffix,
            size=_size(out / path),
            path=f"{quote(folder)}/{quote(framed, safe='{}')}",
            command=(f"{before}--step ", after) if flag else (command, ""),
        )
    if step is not None:
        figures[key].steps = sorted({*figures[key].steps, int(step)})


def _named(framed: str) -> str:
    """Name a figure by its file: what is not the default is in it."""
    words = Path(framed).stem.split("-")
    return " · ".join(word for word in words if word != "{step}")


def _ordered(figures: Iterable[_Figure]) -> list[_Figure]:
    return sorted(figures, key=lambda one: (_rank(one.name.split(" ")[0], _PICTURES), one.name))


def _rank(word: str, words: Sequence[str]) -> int:
    return words.index(word) if word in words else len(words)


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        return _ASPECT
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
        return _ASPECT
    width, height = struct.unpack(">II", head[16:])
    return width, height
