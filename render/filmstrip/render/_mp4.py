"""MP4: the only place that hands frames to ffmpeg, which the extra ``mp4`` brings."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

__all__ = ["encode_mp4", "find_ffmpeg"]

_PIECE: Final = 1 << 20
# What every player takes. Quality is 0 to 51, less is better: at 18 the eye sees no loss.
_OPTIONS: Final = ("-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18")


def find_ffmpeg() -> str:
    """Return the path of ffmpeg; called before anything is drawn, too.

    Raises
    ------
    SpecError
        If imageio-ffmpeg is not installed, or brings no ffmpeg for this machine.
    """
    try:
        import imageio_ffmpeg  # publishes no types

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise SpecError(
            "mp4 needs imageio-ffmpeg: pip install 'filmstrip[mp4]', or choose --format apng"
        ) from error


def encode_mp4(
    frames: Iterable[npt.NDArray[np.uint8]],
    *,
    palette: npt.NDArray[np.uint8],
    fps: float,
    text: Mapping[str, str],
) -> Iterator[bytes]:
    """Encode a film, one frame at a time, in a file of its own.

    Parameters
    ----------
    frames : iterable of ndarray of uint8, shape (height, width) or (height, width, 3)
        Bytes of the palette, or red, green and blue; all of one size. An odd side grows by a pixel.
    palette : ndarray of uint8, shape (256, 3)
    fps : float
        Frames a second.
    text : mapping of str to str
        Stored as a comment, which ffmpeg puts behind the frames.

    Yields
    ------
    bytes
        The file, piece by piece.

    Raises
    ------
    SpecError
        If there is no ffmpeg, or it fails.
    """
    program = find_ffmpeg()
    comment = " ".join(f"{key}={value}" for key, value in text.items())
    with TemporaryDirectory(prefix="filmstrip-") as folder:
        path = Path(folder) / "film.mp4"
        _feed(program, map(_even, frames), palette, fps, ("-metadata", f"comment={comment}"), path)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece


def _even(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Give a frame even sides, which the format needs."""
    height, width = frame.shape[:2]
    more = [(0, height % 2), (0, width % 2), (0, 0)][: frame.ndim]
    return np.pad(frame, more, mode="edge")


def _feed(
    program: str,
    frames: Iterator[npt.NDArray[np.uint8]],
    palette: npt.NDArray[np.uint8],
    fps: float,
    about: tuple[str, ...],
    path: Path,
) -> None:
    """Write frames to ffmpeg's input, and wait until its file is whole."""
    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:.6g}", "-i", "-")
    command = [program, "-v", "error", *raw, *_OPTIONS, *about, str(path)]
    log = path.with_suffix(".log")
    try:
        with log.open("wb") as said:
            # A group of its own, which no Ctrl-C reaches: it ends when its input does.
            process = Popen(command, stdin=PIPE, stdout=said, stderr=said, process_group=0)
    except OSError as error:
        raise _failed(str(error)) from error
    with suppress(BrokenPipeError), process:
        assert process.stdin is not None
        for frame in chain([first], frames):
            process.stdin.write((palette[frame] if frame.ndim == 2 else frame).tobytes())
    if process.returncode or not path.is_file():
        lines = log.read_text(errors="replace").split("\n")
        raise _failed(lines[0] or f"exit code {process.returncode}")


def _failed(why: str) -> SpecError:
    return SpecError(f"ffmpeg failed: {why}; choose --format apng or gif")
