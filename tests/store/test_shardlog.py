from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.store._codec import ChecksumError, Codec
from filmstrip.store._files import Descriptors
from filmstrip.store._shardlog import EMPTY, ShardLog, index_bytes, parse_index


def peek(path: Path, slots: int) -> list[bytes | None]:
    """Read a shard as the Zarr specification says, without the code under test."""
    raw = path.read_bytes()
    entries = parse_index(raw[-index_bytes(slots) :])
    return [None if start == EMPTY else raw[start : start + n - 4] for start, n in entries]


def log(
    path: Path, rows: int, blocks: int, block: int, keep: int = 0, codec: str = "none"
) -> ShardLog:
    bound = Codec(codec, 1).bound(block)  # type: ignore[arg-type]
    return ShardLog(
        path, rows=rows, blocks=blocks, bound=bound, descriptors=Descriptors(), keep=keep
    )


def block(row: int, number: int, size: int) -> np.ndarray:
    return np.random.default_rng([row, number]).integers(0, 256, size, dtype=np.uint8)


# 255 slots of 4,000 bytes is among the sizes at which an index without spare room would overlap.
@pytest.mark.parametrize(
    ("rows", "blocks", "size"), [(3, 2, 64), (255, 1, 4000), (5, 51, 1000), (1, 1, 1)]
)
def test_every_row_is_there_live_and_sealed(
    tmp_path: Path, rows: int, blocks: int, size: int
) -> None:
    path = tmp_path / "c.0"
    shard = log(path, rows, blocks, size)
    expected = [
        block(row, number, size).tobytes() for row in range(rows) for number in range(blocks)
    ]
    for row in range(rows):
        shard.put(row, [block(row, number, size) for number in range(blocks)])
        done = (row + 1) * blocks
        assert peek(path, rows * blocks) == expected[:done] + [None] * (rows * blocks - done)
    shard.seal()

    assert peek(path, rows * blocks) == expected
    padded = -(-(size + 4) // 64) * 64
    assert path.stat().st_size == rows * blocks * padded + index_bytes(rows * blocks)


def test_blocks_larger_than_a_piece_have_the_checksum_of_the_whole(tmp_path: Path) -> None:
    size = (3 << 20) + 17
    shard = log(tmp_path / "c.0", 2, 1, size)
    for row in range(2):
        shard.put(row, [block(row, 0, size)])

    codec, out = Codec("none", 1), np.empty(size, np.uint8)
    raw = (tmp_path / "c.0").read_bytes()
    for row, (start, length) in enumerate(parse_index(raw[-index_bytes(2) :])):
        codec.decode(np.frombuffer(raw[start : start + length], np.uint8), out)
        np.testing.assert_array_equal(out, block(row, 0, size))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reopening_keeps_what_was_committed_and_uses_the_rest_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("shard") / "c.0"
    rows, blocks, size = 6, 2, 100
    model: dict[int, int] = {}
    row = 0
    for attempt in range(data.draw(st.integers(1, 4))):
        row = data.draw(st.integers(0, row))
        model = {kept: value for kept, value in model.items() if kept < row}
        shard = log(path, rows, blocks, size, keep=row)
        for _ in range(data.draw(st.integers(0, rows - row))):
            if data.draw(st.booleans()):
                shard.put(row, [block(attempt, number, size) for number in range(blocks)])
                model[row] = attempt
            row += 1
        if data.draw(st.booleans()):
            shard.seal()
        expected = [
            block(model[kept], number, size).tobytes() if kept in model else None
            for kept in range(rows)
            for number in range(blocks)
        ]
        assert peek(path, rows * blocks) == expected


def test_a_live_shard_takes_little_room_on_the_disk(tmp_path: Path) -> None:
    shard = log(tmp_path / "c.0", 255, 1, 1 << 18)
    shard.put(0, [block(0, 0, 1 << 18)])

    assert (tmp_path / "c.0").stat().st_blocks * 512 < (1 << 18) + (64 << 10)


def test_a_damaged_index_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.0"
    log(path, 4, 1, 64).seal()
    with path.open("r+b") as file:
        file.seek(-6, os.SEEK_END)
        file.write(b"\x01")

    with pytest.raises(ChecksumError):
        log(path, 4, 1, 64)


@pytest.mark.parametrize("compressor", ["zstd", "lz4", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bool", "complex64"])
def test_a_block_comes_back_as_it_was(compressor: str, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, (8, 1000)).astype(dtype)
    codec = Codec(compressor, values.itemsize)  # type: ignore[arg-type]
    import google_crc32c

    data = bytes(memoryview(codec.encode(values)).cast("B"))
    stored = data + google_crc32c.value(data).to_bytes(4, "little")
    out = np.empty_like(values)
    codec.decode(np.frombuffer(stored, np.uint8), out)

    np.testing.assert_array_equal(out, values)
    assert len(stored) <= codec.bound(values.nbytes)


def test_a_flipped_bit_is_noticed() -> None:
    import google_crc32c

    values = np.arange(100, dtype=np.float32)
    stored = bytearray(values.tobytes() + google_crc32c.value(values).to_bytes(4, "little"))
    stored[13] ^= 1

    with pytest.raises(ChecksumError):
        Codec("none", 4).decode(np.frombuffer(bytes(stored), np.uint8), np.empty_like(values))


def test_only_so_many_files_are_open_at_once(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).write_bytes(b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    descriptors = Descriptors(limit=5)
    for number in [*range(20), 3]:
        assert os.pread(descriptors.get(str(tmp_path / str(number))), 1, 0) == b"x"

    assert len(list(Path("/proc/self/fd").iterdir())) == before + 5
    descriptors.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
