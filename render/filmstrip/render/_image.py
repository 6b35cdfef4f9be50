"""Images: the only place where a picture becomes a file, and where a file is found to be done."""

from __future__ import annotations

import io
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filmstrip.render._agg import default_settings, figure_pixels
from filmstrip.render._palette import colors
from filmstrip.render._png import encode_png
from filmstrip.render._raster import rasterise
from filmstrip.render._spec import FORMATS
from filmstrip.render._vector import figure_of
from filmstrip.render.errors import OutputError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from PIL.Image import Image

    from filmstrip.render._sheet import Sheet

__all__ = ["Picture", "digest_of", "write_atomically"]

_DIGEST: Final = re.compile(rb"filmstrip-digest[=\0]([0-9a-f]{64})")
# What XML and UTF-8 cannot hold, which names and paths of a user may.
_UNFIT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ENDS: Final = {".png": b"IEND", ".svg": b"</svg>", ".pdf": b"%%EOF"}
_LOOKED_AT: Final = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A drawn picture. Shows itself in a notebook.

    Made by `filmstrip.render.grid`, `histogram` and `curve`.

    Attributes
    ----------
    sheet : Sheet or None
        Where everything goes, for pixel-exact pictures.
    drawn : Figure or None
        The figure, for all others.
    metadata : mapping of str to str
        Written into the file: digest, run, step, the command that draws it again.

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
    dpi: float = 200.0
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        width, height = self.size
        return f"<Picture {width}×{height} pixels>"

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

        A pixel-exact picture makes a new one at each access.
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
        form : {"png", "svg", "pdf"}

        Raises
        ------
        SpecError
            If it is none of these.
        """
        about = {key: _UNFIT.sub("\ufffd", value) for key, value in self.metadata.items()}
        if form == "png":
            return self._png(about)
        if form not in FORMATS:
            raise SpecError(f"no format {form!r}: choose one of {', '.join(FORMATS)}")
        return self._vector(form, about)

    def _png(self, about: Mapping[str, str]) -> bytes:
        if self.sheet is not None:
            return encode_png(
                rasterise(self.sheet),
                palette=colors(self.sheet.cmap),
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
        mark = f"filmstrip-digest={found}" if found else "filmstrip"
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
            Ends in ``.png``, ``.svg`` or ``.pdf``. Its folder is made.

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
        write_atomically(where, self.encode(where.suffix.removeprefix(".").lower()))
        return where

    def to_image(self) -> Image:
        """Return the picture as a Pillow image."""
        from PIL import Image

        image = Image.open(io.BytesIO(self.encode("png")))
        image.load()
        return image

    def _repr_png_(self) -> bytes:
        return self.encode("png")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under another name, then rename it: readers see it whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written; nothing is left behind then.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        try:
            partial.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is gone when all went well
            partial.unlink()


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
    if _ENDS.get(path.suffix, b"") not in tail[-64:]:
        return None
    found = _DIGEST.search(head) or _DIGEST.search(tail)
    return found[1].decode() if found else None
