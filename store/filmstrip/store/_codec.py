"""Codecs: the only place that turns one block into bytes and back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from filmstrip.store._frame import FrameSpec

Compression = Literal["zstd", "lz4", "none"]
COMPRESSIONS: tuple[Compression, ...] = ("zstd", "lz4", "none")

_SMALLEST_COMPRESSED = 16 << 10  # below, blosc would triple the cost of an append
_BLOSC_OVERHEAD = 16
_RAW_KINDS = frozenset({"weights", "gradients"})
_CHECKSUM = struct.Struct("<I")
_BLOSC_SIZES = struct.Struct("<III")
"""At byte 4 of what blosc wrote: bytes of the data, of its own blocks, of all that it wrote."""

Bytes = npt.NDArray[np.uint8]
Encoded = Any
"""A block's bytes, as anything that has the buffer protocol."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How the blocks of one array become bytes.

    Attributes
    ----------
    compressor : {"zstd", "lz4", "none"}
        Compressor inside blosc, level 1, bytes shuffled.
    typesize : int
        Bytes of one value.
    """

    compressor: Compression
    typesize: int

    def metadata(self) -> list[dict[str, Any]]:
        """Return the codecs as Zarr names them."""
        codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if self.compressor != "none":
            configuration = {
                "typesize": self.typesize,
                "cname": self.compressor,
                "clevel": 1,
                "shuffle": "shuffle",
                "blocksize": 0,
            }
            codecs.append({"name": "blosc", "configuration": configuration})
        return [*codecs, {"name": "crc32c"}]

    def bound(self, block_bytes: int) -> int:
        """Return the most bytes that a block can take in a shard, a multiple of 64."""
        overhead = _CHECKSUM.size + (_BLOSC_OVERHEAD if self.compressor != "none" else 0)
        return -(-(block_bytes + overhead) // 64) * 64

    def encode(self, block: npt.NDArray[Any]) -> Encoded:
        """Return the bytes of a C-contiguous block; a raw one is not copied."""
        if self.compressor == "none":
            return block
        return blosc.compress(block, self.compressor.encode(), 1, blosc.SHUFFLE, 0)

    def decode(self, stored: Bytes, out: npt.NDArray[Any]) -> None:
        """Fill a C-contiguous block from its stored bytes.

        Raises
        ------
        ChecksumError
            If the bytes are not those that were written.
        """
        if stored.nbytes < _CHECKSUM.size:
            raise ChecksumError
        body = stored[: -_CHECKSUM.size]
        if google_crc32c.value(body) != _CHECKSUM.unpack(stored[-_CHECKSUM.size :].data)[0]:
            raise ChecksumError
        if self.compressor != "none":
            _decompress(body, out)
        elif body.nbytes != out.nbytes:
            raise ChecksumError
        else:
            out.reshape(-1).view(np.uint8)[:] = body


def _decompress(body: Bytes, out: npt.NDArray[Any]) -> None:
    """Fill a block from blosc's bytes, which must say that they are all of it, and no more."""
    if body.nbytes < _BLOSC_OVERHEAD:
        raise ChecksumError
    claimed, _, stored = _BLOSC_SIZES.unpack(body[4:_BLOSC_OVERHEAD].data)
    if (claimed, stored) != (out.nbytes, body.nbytes):
        raise ChecksumError
    try:
        blosc.decompress(body, out)
    except (RuntimeError, ValueError) as error:
        raise ChecksumError from error


class ChecksumError(ValueError):
    """Raised when bytes differ from what was written: a torn read, or damage."""


def codec_for(
    kind: str, spec: FrameSpec, block_bytes: int, compression: Compression | None
) -> Codec:
    """Return the codec of a layer's blocks."""
    typesize = spec.stored_dtype.itemsize
    if block_bytes < _SMALLEST_COMPRESSED:
        return Codec("none", typesize)
    if compression is not None:
        return Codec(compression, typesize)
    # Widened values hold zero bytes that shuffling gathers: compressed, they cost no more.
    return Codec("none" if kind in _RAW_KINDS and not spec.widened else "zstd", typesize)


def codec_from(codecs: list[dict[str, Any]], typesize: int) -> Codec:
    """Return the codec that an array's metadata names."""
    for codec in codecs:
        if codec["name"] == "blosc":
            return Codec(codec["configuration"]["cname"], typesize)
    return Codec("none", typesize)
