"""Specs: the only place that says what a picture is, its digest and its file name. Pure.

A spec is frozen data and pickles to a worker. The digest joins it with the run and with how
far the run had come in what the picture shows: a file that carries the digest is done.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
import shlex
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np

from filmstrip.render._layout import check_layout
from filmstrip.render._picks import check_picks
from filmstrip.render._scale import SCALES, ScaleMode
from filmstrip.render._tiles import DOWNSAMPLE, Downsample
from filmstrip.render.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FORMATS",
    "AnimationFormat",
    "AnimationSpec",
    "BinScale",
    "CurveSpec",
    "Format",
    "GridSpec",
    "HistogramSpec",
    "Spec",
    "View",
    "XAxis",
    "checked",
    "command",
    "digest",
    "file_name",
    "folder_name",
]

Format: TypeAlias = Literal["png", "svg", "pdf"]
View: TypeAlias = Literal["single", "ridge", "overlay", "heatmap", "distribution"]
BinScale: TypeAlias = Literal["linear", "symlog", "tensorboard"]
XAxis: TypeAlias = Literal["step", "time"]
AnimationFormat: TypeAlias = Literal["apng", "gif", "mp4"]
FORMATS: Final = ("png", "svg", "pdf")
ANIMATION_FORMATS: Final = ("apng", "gif", "mp4")
VIEWS: Final = ("single", "ridge", "overlay", "heatmap", "distribution")
BIN_SCALES: Final = ("linear", "symlog", "tensorboard")
X_AXES: Final = ("step", "time")
_ACCEPTED: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "True or False",
}
_SHOWN: Final = 60  # characters of a value of the wrong type
_LONGEST: Final = 180  # bytes of a part of a path; file systems take 255
_LOOKS: Final = 2  # raised when the same spec draws another picture


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """One layer at one step as tiles. Fields are the options of ``filmstrip render grid``."""

    picture: ClassVar[str] = "grid"

    kind: str = "activations"
    layer: str = ""
    step: int = -1
    layout: str | None = None
    sample: int | None = None
    channels: str = "all"
    columns: int | None = None
    padding: int = 4
    vmin: float | None = None
    vmax: float | None = None
    scale: ScaleMode = "shared"
    cmap: str | None = None
    downsample: Downsample = "absmax"
    rgb: bool | None = None
    format: Format = "png"
    dpi: float = 200.0

    def __post_init__(self) -> None:
        _check_types(self)
        if self.layout is not None:
            object.__setattr__(self, "layout", check_layout(self.layout))
        check_picks(self.channels, "--channels")
        _check_choice("--scale", self.scale, SCALES)
        _check_choice("--downsample", self.downsample, DOWNSAMPLE)
        _check_common(self.format, self.dpi)
        if self.columns is not None and self.columns < 1:
            raise SpecError(f"--columns is {self.columns}; it must be 1 or more tiles")
        if not 0 <= self.padding <= 200:
            raise SpecError(f"--padding is {self.padding}; it must be 0 to 200 pixels")
        for name, value in (("--vmin", self.vmin), ("--vmax", self.vmax)):
            if value is not None and not abs(value) < float("inf"):
                raise SpecError(f"{name} is {value}; it must be a finite number")
        if self.vmin is not None and self.vmax is not None and not self.vmin < self.vmax:
            raise SpecError(f"--vmin {self.vmin:g} must be below --vmax {self.vmax:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSpec:
    """The values of one layer, at one step or over steps; of several layers on a page.

    ``layer`` holds patterns separated by commas with ``page`` set.
    """

    picture: ClassVar[str] = "histogram"

    kind: str = "activations"
    layer: str = ""
    view: View = "ridge"
    step: str = "all"
    bins: int | None = None
    bin_scale: BinScale = "linear"
    page: bool = False
    format: Format = "png"
    dpi: float = 200.0

    def __post_init__(self) -> None:
        _check_types(self)
        check_picks(self.step, "--step")
        _check_choice("--view", self.view, VIEWS)
        _check_choice("--bin-scale", self.bin_scale, BIN_SCALES)
        _check_common(self.format, self.dpi)
        if self.bins is not None and not 1 <= self.bins <= 4096:
            raise SpecError(f"--bins is {self.bins}; it must be 1 to 4096")
        if self.bins is not None and self.bin_scale == "tensorboard":
            raise SpecError("--bins has no meaning with --bin-scale tensorboard, whose bins are")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSpec:
    """Scalars by name, or one statistic of layers, over steps.

    ``name`` holds patterns separated by commas; with ``stat`` set they select layers of ``kind``.
    """

    picture: ClassVar[str] = "curve"

    name: str = "loss"
    stat: str | None = None
    kind: str = "activations"
    band: bool = False
    smoothing: float = 0.0
    log: bool = False
    x: XAxis = "step"
    format: Format = "png"
    dpi: float = 200.0

    def __post_init__(self) -> None:
        _check_types(self)
        _check_common(self.format, self.dpi)
        _check_choice("--x", self.x, X_AXES)
        if self.band and self.stat not in {None, "mean"}:
            raise SpecError(f"--band is around a mean; --stat ends in {self.stat}")
        if self.stat is not None and self.kind == "scalars":
            raise SpecError("--stat is of layers; scalars are drawn by their --name")
        if not 0 <= self.smoothing < 1:
            raise SpecError(f"--smoothing is {self.smoothing:g}; it must be at least 0 and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimationSpec:
    """A grid over steps, all frames in one range of colours.

    ``frame`` says how each looks; its step and its format have no meaning here.
    """

    picture: ClassVar[str] = "animation"

    frame: GridSpec
    step: str = "all"
    fps: float = 12.0
    format: AnimationFormat = "apng"

    def __post_init__(self) -> None:
        _check_types(self)
        check_picks(self.step, "--step")
        _check_choice("--format", self.format, ANIMATION_FORMATS)
        if not 0.1 <= self.fps <= 60:
            raise SpecError(f"--fps is {self.fps:g}; it must be 0.1 to 60 frames a second")

    @property
    def kind(self) -> str:
        """What is shown of the layer."""
        return self.frame.kind

    @property
    def layer(self) -> str:
        """Which layer is shown."""
        return self.frame.layer


Spec: TypeAlias = GridSpec | HistogramSpec | CurveSpec | AnimationSpec


def checked(name: str, value: Any, kind: str) -> Any:
    """Return the value of a keyword as the plain type that its annotation names.

    Raises
    ------
    SpecError
        If it is of another type.

    Examples
    --------
    >>> import numpy as np
    >>> checked("dpi", 100, "float"), checked("columns", np.int64(3), "int | None")
    (100.0, 3)
    """
    plain = kind.removesuffix(" | None")
    if plain not in _ACCEPTED or (value is None and plain != kind):
        return value
    flag = isinstance(value, bool | np.bool_)
    try:
        if plain == "int" and not flag:
            return operator.index(value)
        if plain == "float" and not flag and not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    if (plain == "bool" and flag) or (plain == "str" and isinstance(value, str)):
        return value
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    raise SpecError(
        f"{name} is {shown}; it must be {_ACCEPTED[plain]}" + " or None" * (plain != kind)
    )


def _check_types(spec: Spec) -> None:
    """Turn what Python's functions were given into plain types; the command line has them."""
    for one in fields(spec):
        value = getattr(spec, one.name)
        plain = checked(one.name, value, str(one.type))
        if plain is not value:
            object.__setattr__(spec, one.name, plain)


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SpecError(f"{option} {value!r} is none of: {', '.join(known)}")


def _check_common(form: str, dpi: float) -> None:
    _check_choice("--format", form, FORMATS)
    if not 30 <= dpi <= 1200:
        raise SpecError(f"--dpi is {dpi:g}; it must be 30 to 1200 dots an inch")


def digest(spec: Spec, state: str) -> str:
    """Name the content of a picture.

    Parameters
    ----------
    spec : Spec
    state : str
        The run and how far it had come, in all that the picture shows.

    Returns
    -------
    str
        64 hexadecimal digits, a sha256.

    Examples
    --------
    >>> digest(GridSpec(), "a") == digest(GridSpec(padding=4), "a") != digest(GridSpec(), "b")
    True
    """
    whole = {"looks": _LOOKS, "picture": spec.picture, "spec": asdict(spec), "state": state}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _changed(spec: Spec, *, without: set[str]) -> list[tuple[str, Any]]:
    """Fields that differ from their default, in order."""
    changed = [
        (f.name, getattr(spec, f.name))
        for f in fields(spec)
        if f.name not in without and f.default is not MISSING and getattr(spec, f.name) != f.default
    ]
    if isinstance(spec, AnimationSpec):
        return _changed(spec.frame, without={*without, "step", "format"}) + changed
    return changed


def file_name(spec: Spec, versus: Sequence[str] = ()) -> str:
    """Path of a picture below the output folder; what is not the default is in it.

    Parameters
    ----------
    spec : Spec
    versus : sequence of str
        Names of the runs that the first one is compared to.

    Examples
    --------
    >>> file_name(GridSpec(layer="conv1", step=1200, sample=3, scale="each"))
    'activations/conv1/grid-00001200-sample3-each.png'
    >>> file_name(HistogramSpec(layer="conv1", view="ridge"))
    'activations/conv1/histogram-ridge.png'
    >>> file_name(CurveSpec(name="train/loss", log=True))
    'scalars/train.loss/curve-log.png'
    >>> file_name(AnimationSpec(frame=GridSpec(layer="conv1", cmap="magma"), fps=24.0))
    'activations/conv1/animation-magma-fps24.png'
    """
    words = [spec.picture]
    if isinstance(spec, GridSpec | AnimationSpec):
        folder = f"{folder_name(spec.kind)}/{folder_name(spec.layer)}"
        words += [f"{spec.step:08d}"] if isinstance(spec, GridSpec) else []
        bare = {"scale", "cmap", "downsample"}
    elif isinstance(spec, HistogramSpec):
        folder = folder_name(spec.kind)
        # Everything on one page belongs to no folder of its own.
        folder += f"/{folder_name(spec.layer)}" if not spec.page or spec.layer != "*" else ""
        words.append(spec.view)
        if spec.view == "single" and not spec.page:
            words.append(f"{int(spec.step):08d}")
        bare = {"bin_scale"}
    else:
        folder = "scalars" if spec.stat is None else folder_name(spec.kind)
        # Everything in one picture belongs to no folder of its own.
        folder += f"/{folder_name(spec.name)}" if spec.name != "*" else ""
        words += [spec.stat] if spec.stat is not None else []
        bare = {"x"}
    skipped = {"kind", "layer", "name", "stat", "view", "format"}
    if isinstance(spec, GridSpec) or (
        isinstance(spec, HistogramSpec) and spec.view == "single" and not spec.page
    ):
        skipped.add("step")
    for name, value in _changed(spec, without=skipped):
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if value is False:
            name, value = f"no-{name}", True
        words.append(name if value is True else text if name in bare else f"{name}{text}")
    words += ["vs", *versus] if versus else []
    whole = "-".join(words)
    stem = re.sub(r"[^\w.+,-]", "_", whole)
    if len(stem.encode()) > _LONGEST:
        stem = f"{_cut(stem)}~{_hashed(whole)}"
    # An animated PNG is a PNG: what knows no animation shows its first frame.
    return f"{folder}/{stem}.{'png' if spec.format == 'apng' else spec.format}"


def folder_name(name: str) -> str:
    """Turn a name, which a user may have chosen, into one folder that stays inside its parent.

    Examples
    --------
    >>> folder_name("layer1.0.conv1"), folder_name("train/loss")
    ('layer1.0.conv1', 'train.loss')
    >>> folder_name("..").startswith("~") and "/" not in folder_name("../../etc")
    True
    """
    safe = re.sub(r"[\x00-\x1f\x7f\\:*?\"<>|]", "_", name.replace("/", "."))
    long = len(safe.encode()) > _LONGEST
    if long:
        safe = _cut(safe)
    hidden = safe.startswith((".", "~")) or not safe
    if long or hidden or safe != name.replace("/", "."):
        safe = f"{'~' if hidden else ''}{safe}~{_hashed(name)}"
    return safe


def _cut(text: str) -> str:
    return text.encode()[: _LONGEST - 30].decode(errors="ignore")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def command(spec: Spec, runs: tuple[str, ...]) -> str:
    """Command that draws the picture again.

    Examples
    --------
    >>> command(GridSpec(layer="conv1", step=100, sample=2), ("run.zarr",))
    'filmstrip render grid run.zarr conv1 --step 100 --samples 2'
    """
    paired = isinstance(spec, HistogramSpec)
    words = ["filmstrip", "render", spec.picture, *(runs[:1] if paired else runs)]
    if isinstance(spec, CurveSpec):
        words += ["--name", spec.name] if spec.stat is None else []
        words += ["--stat", f"{spec.name}/{spec.stat}"] if spec.stat is not None else []
        changed = _changed(spec, without={"name", "stat"})
    elif isinstance(spec, HistogramSpec) and spec.page:
        words += [] if spec.layer == "*" else spec.layer.split(",")
        changed = _changed(spec, without={"layer"})
    else:
        plain = re.fullmatch(r"(?!re:)[^-*?\[][^*?\[]*", spec.layer)
        words.append(spec.layer if plain else f"re:{re.escape(spec.layer)}")
        changed = _changed(spec, without={"layer"})
    for name, value in changed:
        flag = "--" + {"sample": "samples"}.get(name, name).replace("_", "-")
        if value is False:
            words.append(flag.replace("--", "--no-"))
        elif value is True:
            words.append(flag)
        else:
            words += [flag, f"{value:.17g}" if isinstance(value, float) else str(value)]
    for other in runs[1:] if paired else ():
        words += ["--versus", other]
    return shlex.join(words)
