"""Images: the only place where a picture becomes a file, and where a file is found to be done."""

from __future__ import annotations

import io
import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from filmstrip.render._agg import default_settings, figure_pixels
from filmstrip.render._gif import encode_gif
from filmstrip.render._mp4 import encode_mp4
from filmstrip.render._palette import BACKGROUND, colors
from filmstrip.render._png import encode_apng, encode_png
from filmstrip.render._raster import rasterise
from filmstrip.render._spec import ANIMATION_FORMATS, FORMATS
from filmstrip.render._vector import figure_of
from filmstrip.render.errors import OutputError, RenderError, SpecError
from filmstrip.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from filmstrip.render._sheet import Sheet

__all__ = ["Frames", "Picture", "digest_of", "remove_partials", "write_atomically"]

_DIGEST: Final = re.compile(rb"filmstrip-digest[=\0]([0-9a-f]{64})")
# What XML and UTF-8 cannot hold, which names and paths of a user may.
_UNFIT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# A GIF and an MP4 carry the digest behind their frames.
_ENDS: Final = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>", ".pdf": b"%%EOF", ".gif": b"\0;"}
_LOOKED_AT: Final = 65_536
_PARTIAL: Final = re.compile(r"\.[0-9a-f]{32}\.partial")
_LONG_AGO: Final = 3600.0  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """The frames of an animation, each drawn when it is asked for and none kept.

    Attributes
    ----------
    first : Sheet
        The first frame; the others have its size and its colours.
    steps : sequence of int
        Which there are, in order.
    draw : callable
        Draws the frame of a step.
    fps : float
        Frames a second.
    """

    first: Sheet
    steps: Sequence[int]
    draw: Callable[[int], Sheet]
    fps: float

    def rasters(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the pixels of each frame; one that is smaller stands in the upper left corner."""
        width, height = self.first.chrome.width, self.first.chrome.height
        for step in self.steps:
            pixels = rasterise(self.first if step == self.steps[0] else self.draw(step))
            if pixels.shape[:2] != (height, width):
                white = BACKGROUND if pixels.ndim == 2 else 255
                canvas = np.full((height, width, *pixels.shape[2:]), white, np.uint8)
                shown = pixels[:height, :width]
                canvas[: shown.shape[0], : shown.shape[1]] = shown
                pixels = canvas
            yield pixels


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A drawn picture. Shows itself in a notebook; an animation moves there.

    Made by `filmstrip.render.grid`, `histogram`, `curve` and `animation`.

    Attributes
    ----------
    sheet : Sheet or None
        Where everything goes, for pixel-exact pictures.
    drawn : Figure or None
        The figure, for all others.
    frames : Frames or None
        Those of an animation, of which ``sheet`` is the first.
    metadata : mapping of str to str
        Written into the file: digest, run, step, the command that draws it again.
    nonfinite : (str, int or None) or None
        What of the values is no number, and at which step; None where all are, or where it is
        not known.

    Examples
    --------
    >>> import numpy as np
    >>> from filmstrip import render
    >>> picture = render.grid(np.random.default_rng(0).normal(size=(8, 5, 5)))
    >>> picture
    <Picture 746×748 pixels>
    >>> picture.to_image().size
    (746, 748)
    """

    sheet: Sheet | None = None
    drawn: Figure | None = None
    frames: Frames | None = None
    dpi: float = 200.0
    metadata: Mapping[str, str] = field(default_factory=dict)
    nonfinite: tuple[str, int | None] | None = None

    def __repr__(self) -> str:
        width, height = self.size
        moving = "" if self.frames is None else f", {len(self.frames.steps)} frames"
        return f"<Picture {width}×{height} pixels{moving}>"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if self.sheet is not None:
            return self.sheet.chrome.width, self.sheet.chrome.height
        width, height = self.figure.get_size_inches() * self.dpi
        return round(float(width)), round(float(height))

    @property
    def figure(self) -> Figure:
        """The picture as a matplotlib figure, to be changed by hand.

        A pixel-exact picture makes a new one at each access; an animation, one of its first frame.
        """
        if self.sheet is not None:
            return figure_of(self.sheet)
        if self.drawn is None:
            raise SpecError("an empty picture has no figure")
        return self.drawn

    def with_metadata(self, metadata: Mapping[str, str]) -> Picture:
        """Return the same picture with other metadata."""
        return replace(self, metadata=metadata)

    def encode(self, form: str = "png") -> bytes:
        """Return the bytes of a file.

        Parameters
        ----------
        form : {"png", "svg", "pdf", "apng", "gif", "mp4"}
            Of an animation, ``png`` is ``apng``; the last three are of animations only.

        Raises
        ------
        SpecError
            If the picture has no such format, or it needs what is not installed.
        """
        return b"".join(self.pieces(form))

    def pieces(self, form: str = "png") -> Iterator[bytes]:
        """Yield the bytes of a file piece by piece: of an animation, frame by frame.

        Raises
        ------
        SpecError
            As `encode`.
        """
        about = {key: _UNFIT.sub("\ufffd", value) for key, value in self.metadata.items()}
        form = "apng" if form == "png" and self.frames is not None else form
        known = FORMATS if self.frames is None else ANIMATION_FORMATS
        if form not in known:
            what = "picture" if self.frames is None else "animation"
            raise SpecError(f"no format {form!r} of this {what}: choose one of {', '.join(known)}")
        if self.frames is not None:
            yield from self._moving(form, self.frames, about)
        else:
            yield self._png(about) if form == "png" else self._vector(form, about)

    def _moving(self, form: str, frames: Frames, about: Mapping[str, str]) -> Iterator[bytes]:
        palette, rasters, fps = colors(frames.first.cmap), frames.rasters(), frames.fps
        if form == "gif":
            if any(patch.pixels.ndim == 3 for patch in frames.first.patches):
                raise SpecError(
                    "a GIF has 256 colours, too few for images: choose --format apng or mp4"
                )
            return encode_gif(rasters, palette=palette, fps=fps, text=about)
        if form == "mp4":
            return encode_mp4(rasters, palette=palette, fps=fps, text=about)
        count = len(frames.steps)
        return encode_apng(rasters, count, palette=palette, fps=fps, text=about, dpi=self.dpi)

    def _png(self, about: Mapping[str, str]) -> bytes:
        if self.sheet is not None:
            pixels = rasterise(self.sheet)
            return encode_png(
                pixels,
                palette=colors(self.sheet.cmap) if pixels.ndim == 2 else None,
                text=about,
                dpi=self.dpi,
            )
        figure = self.figure
        with default_settings():
            before = figure.dpi
            figure.set_dpi(self.dpi)
            drawn = figure_pixels(figure)[..., :3].copy()
            figure.set_dpi(before)
        return encode_png(drawn, text=about, dpi=self.dpi)

    def _vector(self, form: str, about: Mapping[str, str]) -> bytes:
        found = about.get("filmstrip-digest")
        step = about.get("filmstrip-step")
        mark = f"filmstrip-digest={found}" if found else "filmstrip"
        mark += f" filmstrip-step={step}" if step else ""
        names = ("Identifier", "Description", "Source", "Date")
        if form == "pdf":
            names = ("Keywords", "Subject", "Author", "CreationDate")
        values = (mark, about.get("filmstrip-command", ""), about.get("filmstrip-run", ""), None)
        metadata = dict(zip(names, values, strict=True)) | {"Title": about.get("Title", "")}
        buffer = io.BytesIO()
        with default_settings():
            self.figure.savefig(buffer, format=form, metadata=metadata)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file whole or not at all; the format is the suffix.

        Parameters
        ----------
        path : str or PathLike
            Ends in ``.png``, ``.svg`` or ``.pdf``; of an animation, in ``.png``, ``.apng``,
            ``.gif`` or ``.mp4``. Its folder is made.

        Returns
        -------
        Path
            Where the picture is.

        Raises
        ------
        SpecError
            If the suffix is none of these.
        OutputError
            If the file cannot be written.
        """
        where = Path(path)
        write_atomically(where, self.pieces(where.suffix.removeprefix(".").lower()))
        return where

    def to_image(self) -> Image:
        """Return the picture as a Pillow image."""
        from PIL import Image

        image = Image.open(io.BytesIO(self.encode("png")))
        image.load()
        return image

    def _repr_png_(self) -> bytes:
        return self.encode("png")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file under another name, then rename it: readers see it whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written; nothing is left behind then.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with _new(partial) as file:
            for piece in [data] if isinstance(data, bytes) else data:
                file.write(piece)
        partial.replace(path)
    except (RenderError, StoreError):  # of what draws the pieces
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is gone when all went well
            partial.unlink()


def _new(path: Path) -> BinaryIO:
    """Open a new file; its folder is made when it is missing."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def remove_partials(folder: Path) -> None:
    """Take away what `write_atomically` could not, because its process was killed long ago."""
    with suppress(OSError):  # no such folder, or another command was faster
        for path in folder.iterdir():
            if _PARTIAL.fullmatch(path.name) and time.time() - path.stat().st_mtime > _LONG_AGO:
                path.unlink()


def digest_of(path: Path) -> str | None:
    """Read the digest that a complete picture carries, None when there is none.

    Examples
    --------
    >>> digest_of(Path("no-such-picture.png")) is None
    True
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOOKED_AT))
            tail = file.read()
    except OSError:
        return None
    if not tail.rstrip().endswith(_ENDS.get(path.suffix, b"")):
        return None
    found = _DIGEST.search(head) or _DIGEST.search(tail)
    return found[1].decode() if found else None
