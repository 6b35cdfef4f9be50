"""GIF: the only place that writes the bytes of one.

Pillow packs the pixels of each frame; what it would do with several keeps them all in memory.
Format: https://www.w3.org/Graphics/GIF/spec-gif89a.txt
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from filmstrip.render._png import differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

__all__ = ["encode_gif"]


def encode_gif(
    frames: Iterable[npt.NDArray[np.uint8]],
    *,
    palette: npt.NDArray[np.uint8],
    fps: float,
    text: Mapping[str, str],
) -> Iterator[bytes]:
    """Encode an animation that runs for ever, one frame at a time.

    Parameters
    ----------
    frames : iterable of ndarray of uint8, shape (height, width)
        Bytes of the palette, all of one size.
    palette : ndarray of uint8, shape (256, 3)
    fps : float
        Frames a second; a frame lasts whole hundredths of one, which even out.
    text : mapping of str to str
        Stored as comments behind the frames, so that a file which was cut lacks them.

    Yields
    ------
    bytes
        The file, piece by piece.
    """
    from PIL import GifImagePlugin, Image

    for number, (pixels, x, y) in enumerate(differences(frames)):
        height, width = pixels.shape
        if number == 0:
            yield b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + palette.tobytes()
            yield b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        hundredths = round(100 * (number + 1) / fps) - round(100 * number / fps)
        # Browsers take less than two for ten.
        yield b"!\xf9\x04\x04" + struct.pack("<HBB", max(2, hundredths), 0, 0)
        image = Image.frombytes("P", (width, height), pixels.tobytes())
        blocks = GifImagePlugin.getdata(image, (x, y))
        yield from blocks
        blocks.clear()  # a class of Pillow's, one for each call, would hold them for long
    for key, value in text.items():
        yield b"!\xfe" + b"".join(_blocks(f"{key}={value}".encode())) + b"\0"
    yield b";"


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 255):
        piece = data[start : start + 255]
        yield bytes([len(piece)]) + piece
