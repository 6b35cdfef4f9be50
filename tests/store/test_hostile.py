"""Stores from strangers: one clear error each, nothing read outside, no room made for lies."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from filmstrip.store import (
    FormatError,
    FrameSpec,
    StoreError,
    bit_histogram,
    check,
    copy,
    create_run,
    open_run,
    prune,
    repair,
    summarize,
    usage,
)
from filmstrip.store import _layout as layout
from filmstrip.store.cli import app

STEPS = (0, 1, 2, 5)
SHAPE = (7, 40, 40)
Damage = Callable[[Path], object]


def conv(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks; frames of three blocks, compressed and raw; statistics; scalars."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", 24 << 10)
        for rank in range(2):
            spec = {
                "conv": FrameSpec(SHAPE, "float32", layout="NHW"),
                "loss": FrameSpec((), "float64"),
            }
            half = FrameSpec((3,), "int16", global_shape=(6,), offset=(3 * rank,))
            with create_run(folder / "run.zarr", rank=rank, world_size=2) as run:
                activations = run.writer("activations", spec)
                weights = run.writer("weights", {"conv": spec["conv"], "half": half})
                statistics = run.statistics_writer("activations", ["conv"])
                for step in STEPS:
                    activations.append(step, {"conv": conv(step), "loss": np.float64(step)})
                    pieces = {"conv": conv(step), "half": np.arange(3, dtype=np.int16)}
                    weights.append(step, pieces)
                    counts = bit_histogram(conv(step))[None]
                    statistics.append(step, summarize(conv(step))[None], counts)
                    run.log(step, {"loss": step})
    (folder / "outside").mkdir()
    shutil.copytree(folder / "run.zarr", folder / "outside/run.zarr")
    return folder / "run.zarr"


@pytest.fixture
def stranger(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine.parent / "outside", tmp_path / "outside")
    return Path(shutil.copytree(pristine, tmp_path / "run.zarr"))


def everything(path: Path) -> dict[Any, np.ndarray]:
    """Ask a run all there is to ask, and return the numbers."""
    run = open_run(path)
    repr(run), run._repr_html_(), run.metadata, run.id, run.status()
    found: dict[Any, np.ndarray] = {}
    for kind in run.kinds:
        if kind == "scalars":
            found |= {name: series.values for name, series in run.scalars.items()}
            continue
        for layer in run.layers(kind):
            strip = run.strip(kind, layer)
            repr(strip), strip.attributes, strip.source_dtype
            found[kind, layer] = strip.read()
            for step in strip.steps.tolist():
                strip.frame(step)
    for group in run.groups():
        if group.startswith("statistics/"):
            statistics = run.statistics(group.partition("/")[2])
            found[group] = statistics.table()[1]
            for layer in statistics.layers:
                found[group, layer] = statistics.bits(layer)[1]
                statistics.histogram(layer)
    run.nonfinite()
    return found


def one_line(error: StoreError) -> None:
    assert "\n" not in str(error)


def change(file: str, *keys: Any, to: Any) -> Damage:
    """Return what sets one value of a zarr.json; the last key may be new."""

    def damage(run: Path) -> None:
        document = json.loads((run / file).read_text())
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (run / file).write_text(json.dumps(document))

    return damage


def array(name: str, *keys: Any, to: Any) -> Damage:
    return change("activations/zarr.json", "consolidated_metadata", "metadata", name, *keys, to=to)


def root(key: str, to: Any) -> Damage:
    return change("zarr.json", "attributes", "filmstrip", key, to=to)


def sizes(frame: list[int], shard: list[int], block: list[int]) -> Damage:
    def damage(run: Path) -> None:
        array("conv", "shape", to=[4, *frame])(run)
        array("conv", "chunk_grid", "configuration", "chunk_shape", to=shard)(run)
        codec = ("conv", "codecs", 0, "configuration")
        array(*codec, "chunk_shape", to=block)(run)
        array(*codec, "codecs", to=[*codecs[:1], *codecs[2:]])(run)

    codecs: list[Any] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        None,
        {"name": "crc32c"},
    ]
    return damage


def file(name: str, raw: bytes) -> Damage:
    return lambda run: (run / name).write_bytes(raw)


def named(name: str) -> Damage:
    """Return what gives an array another name, under which the same array is outside the run."""

    def damage(run: Path) -> None:
        document = json.loads((run / "activations/zarr.json").read_text())
        members = document["consolidated_metadata"]["metadata"]
        members[name] = members.pop("conv")
        (run / "activations/zarr.json").write_text(json.dumps(document))

    return damage


def linked(name: str) -> Damage:
    def damage(run: Path) -> None:
        inside, outside = run / name, run.parent / "outside/run.zarr" / name
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        inside.symlink_to(outside)

    return damage


def fifo(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return damage


def folder(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return damage


def cut(name: str, length: int) -> Damage:
    return lambda run: os.truncate(run / name, length)


CONV = "activations/conv/c.0.0.0.0"
RAW = "weights/conv/c.0.0.0.0"
STEP = "activations/step/c.0"


def entry(offset: int, length: int) -> Damage:
    """Return what points the first slot of a shard elsewhere, with a checksum that fits."""

    def damage(run: Path) -> None:
        raw = bytearray((run / CONV).read_bytes())
        start = len(raw) - (85 * 3 * 16 + 4)
        raw[start : start + 16] = struct.pack("<QQ", offset, length)
        raw[-4:] = struct.pack("<I", google_crc32c.value(bytes(raw[start:-4])))
        (run / CONV).write_bytes(raw)

    return damage


def block(make: Callable[[bytes], bytes]) -> Damage:
    """Return what replaces the first compressed block, with a checksum that fits."""

    def damage(run: Path) -> None:
        raw = bytearray((run / CONV).read_bytes())
        offset, length = struct.unpack_from("<QQ", raw, len(raw) - (85 * 3 * 16 + 4))
        made = make(bytes(raw[offset : offset + length - 4]))[: length - 4]
        made += struct.pack("<I", google_crc32c.value(made))
        raw[offset : offset + len(made)] = made
        (run / CONV).write_bytes(raw)
        entry(offset, len(made))(run)

    return damage


def claims(at: int, value: int) -> Damage:
    return block(lambda raw: raw[:at] + struct.pack("<I", value) + raw[at + 4 :])


def smaller(_: bytes) -> bytes:
    return bytes(blosc.compress(b"x" * 100, b"zstd", 1, blosc.SHUFFLE, 0))


def bomb(_: bytes) -> bytes:
    zeros = np.zeros(200 << 20, np.uint8)
    return bytes(blosc.compress(zeros, b"zstd", 1, blosc.SHUFFLE, 0))


def steps(*values: int) -> Damage:
    return lambda run: (run / STEP).write_bytes(np.array(values, "<i8").tobytes())


def holes(run: Path) -> None:
    array("step", "chunk_grid", "configuration", "chunk_shape", to=[1 << 40])(run)
    os.truncate(run / STEP, 1 << 40)


HALF = ("consolidated_metadata", "metadata", "half", "attributes", "filmstrip")
TOTAL = ("weights/zarr.json", *HALF)
DAMAGES: dict[str, Damage] = {
    "name up": named("../../outside/run.zarr/activations/conv"),
    "name below": named("conv/../conv"),
    "name dots": named(".."),
    "name backslash": named("..\\conv"),
    "name empty": named(""),
    "name zero": named("co\0nv"),
    "name long": named("x" * 300),
    "name half a character": named("x\ud800"),
    "group up": root("groups", ["../outside/run.zarr/activations"]),
    "group absolute": root("groups", ["/etc"]),
    "group no text": root("groups", [3]),
    "groups no list": root("groups", "activations"),
    "link group": linked("activations"),
    "link array": linked("activations/conv"),
    "link steps": linked("activations/step"),
    "link file": linked(CONV),
    "link metadata": linked("activations/zarr.json"),
    "link rank": linked("ranks/0001"),
    "link root": linked("zarr.json"),
    "shape 2^60": array("conv", "shape", to=[4, 1 << 60, 40, 40]),
    "shape 2^47": array("conv", "shape", to=[4, 1 << 47, 1 << 47, 40]),
    "shape negative": array("conv", "shape", to=[4, -7, 40, 40]),
    "shape true": array("conv", "shape", to=[4, True, 40, 40]),
    "shape float": array("conv", "shape", to=[4, 7.0, 40, 40]),
    "shape beyond its blocks": array("conv", "shape", to=[4, 8, 4000, 40]),
    "shape empty": array("conv", "shape", to=[]),
    "consistent 2^60": sizes([1 << 60], [1, 1 << 60], [1, 1 << 60]),
    "consistent 2^40": sizes([1 << 40], [1, 1 << 40], [1, 1 << 30]),
    "consistent 200 GiB": sizes([200, 1 << 28], [1, 200, 1 << 28], [1, 1, 1 << 28]),
    "blocks of 0": sizes([7], [1, 7], [1, 0]),
    "blocks that do not fit": sizes([7], [1, 7], [1, 3]),
    "slots": sizes([7], [1 << 20, 7], [1, 7]),
    "column rows": array("loss", "chunk_grid", "configuration", "chunk_shape", to=[1 << 40]),
    "dtype wide": array("conv", "data_type", to="complex128"),
    "dtype object": array("conv", "data_type", to="object"),
    "dtype text": array("conv", "data_type", to="<U5"),
    "dtype record": array("conv", "data_type", to=[["a", "<i4"]]),
    "dtype of steps": array("step", "data_type", to="float64"),
    "big endian": array("loss", "codecs", 0, "configuration", "endian", to="big"),
    "gzip": array("loss", "codecs", to=[{"name": "gzip", "configuration": {}}]),
    "index at the start": array("conv", "codecs", 0, "configuration", "index_location", to="start"),
    "attributes list": array("conv", "attributes", to=[]),
    "attributes text": array("conv", "attributes", "filmstrip", to="conv"),
    "order": array("conv", "attributes", "filmstrip", "order", to=["a"]),
    "layer": array("conv", "attributes", "filmstrip", "layer", to=7),
    "array is none": array("conv", to=None),
    "no steps": array("step", to={}),
    "statistics": change("statistics/activations/zarr.json", "attributes", "filmstrip", to=[]),
    "layers none": change(
        "statistics/activations/zarr.json", "attributes", "filmstrip", "layers", to=None
    ),
    "layers text": change(
        "statistics/activations/zarr.json", "attributes", "filmstrip", "layers", to="conv"
    ),
    "layers numbers": change(
        "statistics/activations/zarr.json", "attributes", "filmstrip", "layers", to=[1]
    ),
    "layers many": change(
        "statistics/activations/zarr.json", "attributes", "filmstrip", "layers", to=["a", "b", "c"]
    ),
    "format": root("format", 2),
    "format text": root("format", "1"),
    "world of 10^9": root("world_size", 10**9),
    "world of none": root("world_size", 0),
    "rank": root("rank", "first"),
    "created": root("created", 1e300),
    "attempts": root("attempts", [[]]),
    "attempt": root("attempts", [{"host": 1, "pid": "x"}]),
    "metadata": root("metadata", "seed"),
    "offset": change(*TOTAL, "offset", to=[5]),
    "offset axes": change(*TOTAL, "offset", to=[0, 0]),
    "offset text": change(*TOTAL, "offset", to="ab"),
    "offset float": change(*TOTAL, "offset", to=[0.5]),
    "global shape": change(*TOTAL, "global_shape", to=[1 << 70]),
    "global shape 2^60": change(*TOTAL, "global_shape", to=[1 << 60]),
    "global shape of all": lambda run: [
        change(rank + TOTAL[0], *HALF, "global_shape", to=[1 << 40])(run)
        for rank in ("", "ranks/0001/")
    ],
    "steps fall": steps(0, 2, 1, 5),
    "steps repeat": steps(0, 1, 1, 5),
    "steps of holes": holes,
    "root empty": file("zarr.json", b""),
    "root half": cut("zarr.json", 700),
    "root list": file("zarr.json", b"[]"),
    "root number": file("zarr.json", b"1" * 5000),
    "root latin": file("zarr.json", b'{"attributes": "\xff\xfe"}'),
    "root deep": file("zarr.json", b"[" * 1_000_000),
    "root deep objects": file("zarr.json", b'{"a":' * 1_000_000),
    "root of 1 TB": cut("zarr.json", 1 << 40),
    "group empty": file("activations/zarr.json", b"{}"),
    "group half": cut("activations/zarr.json", 700),
    "group deep": file("activations/zarr.json", b'{"attributes":' + b"[" * 1_000_000),
    "group of 1 TB": cut("activations/zarr.json", 1 << 40),
    "shard empty": cut(CONV, 0),
    "shard of 10 bytes": cut(CONV, 10),
    "shard half": cut(RAW, 60_000),
    "shard of 1 TB": cut(CONV, 1 << 40),
    "column half": cut("activations/loss/c.0", 20),
    "index outside": entry(1 << 40, 1000),
    "index length": entry(0, 1 << 60),
    "index wraps": entry((1 << 64) - 100, 200),
    "index tiny": entry(0, 3),
    "index nothing": entry(0, 0),
    "blosc claims more": claims(4, 1 << 30),
    "blosc claims less": claims(4, 100),
    "blosc claims to be longer": claims(12, 1 << 30),
    "blosc blocks": claims(8, 1 << 31),
    "blosc smaller": block(smaller),
    "blosc bomb": block(bomb),
    "blosc noise": block(lambda raw: raw[:16] + bytes(range(256)) * (len(raw) // 256 - 1)),
    "fifo root": fifo("zarr.json"),
    "fifo group": fifo("activations/zarr.json"),
    "fifo steps": fifo(STEP),
    "fifo shard": fifo(CONV),
    "folder for a file": folder(CONV),
}


def command(*arguments: object) -> str:
    """Run a command; return what it complains of. Anything but a StoreError is a traceback."""
    try:
        app([str(argument) for argument in arguments])
    except StoreError as error:
        return str(error)
    except SystemExit as end:
        return "" if end.code in (0, None) else f"exit\n{end.code}"
    return ""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_lie_is_one_clear_error(stranger: Path, damage: Damage) -> None:
    damage(stranger)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError) as caught:
            everything(stranger)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = str(caught.value)

    assert "\n" not in said
    assert len(said) < 500
    assert "zarr" in said
    assert peak < 64 << 20
    for name in ("ls", "info", "status"):
        assert "\n" not in command(name, stranger)


def test_a_device_is_not_read(stranger: Path) -> None:
    (stranger / CONV).unlink()
    try:
        os.mknod(stranger / CONV, 0o020666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("devices can only be made by root")

    with pytest.raises(FormatError, match="not a file"):
        everything(stranger)


def test_the_run_itself_may_be_a_link(stranger: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(stranger)

    assert everything(tmp_path / "latest").keys() == everything(stranger).keys()


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 255, 2**31, 2**60, 2**64, 10**400, 1.5, 1e308]),
    st.sampled_from(["", "..", "a/b", "1", "x" * 300, "float64", "\ud800", [], {}, [1], [[]]]),
    st.floats(),
    st.lists(st.integers(-2, 5), max_size=3),
    st.dictionaries(st.sampled_from(["name", "layer", "a"]), st.integers(), max_size=2),
)
DOCUMENTS = (
    "zarr.json",
    "activations/zarr.json",
    "weights/zarr.json",
    "scalars/zarr.json",
    "statistics/activations/zarr.json",
    "ranks/0001/zarr.json",
    "ranks/0001/weights/zarr.json",
)


def paths(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value."""
    found = [above] if above else []
    items: Iterable[tuple[Any, Any]] = document.items() if isinstance(document, dict) else ()
    items = enumerate(document) if isinstance(document, list) else items
    for key, value in items:
        found += paths(value, (*above, key))
    return found


quick = settings(
    max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(data=st.data())
def test_metadata_with_anything_in_any_place_is_an_error_or_a_run(
    pristine: Path, data: st.DataObject
) -> None:
    target = pristine / data.draw(st.sampled_from(DOCUMENTS))
    text = target.read_text()
    document = json.loads(text)
    if target == pristine / "zarr.json":
        del document["consolidated_metadata"]  # not ours to read
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(paths(document)))
        inner = document
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = data.draw(ODD)
        elif isinstance(inner, dict) and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(["a", "..", "step", "conv"]))] = inner.pop(last)
        else:
            del inner[last]
    target.write_text(json.dumps(document))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about numbers that were lied about
            everything(pristine)
    except StoreError as error:
        one_line(error)
    finally:
        target.write_text(text)


@quick
@given(data=st.data())
def test_bytes_of_metadata_may_be_anything(pristine: Path, data: st.DataObject) -> None:
    target = pristine / data.draw(st.sampled_from(DOCUMENTS))
    text = target.read_bytes()
    raw = bytearray(text)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    target.write_bytes(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            everything(pristine)
    except StoreError as error:
        one_line(error)
    finally:
        target.write_bytes(text)


@quick
@given(data=st.data())
def test_damage_in_shards_is_found_or_does_no_harm(pristine: Path, data: st.DataObject) -> None:
    # Statistics are a column, and columns have no checksums.
    shards = sorted(path for path in pristine.rglob("c.0.0*") if path.parent.name != "values")
    target = data.draw(st.sampled_from(shards))
    before = target.read_bytes()
    raw = bytearray(before)
    index = 255 * 16 + 4
    for _ in range(data.draw(st.integers(1, 3))):
        low = data.draw(st.sampled_from([0, max(0, len(raw) - index)]))
        at = data.draw(st.integers(low, max(low, len(raw) - 1)))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    expected = everything(pristine)
    target.write_bytes(raw)
    try:
        np.testing.assert_equal(everything(pristine), expected)
    except StoreError as error:
        one_line(error)
    finally:
        target.write_bytes(before)


def shadow(path: Path) -> dict[str, Any]:
    """Return all that is in a folder, and when it was changed."""
    return {
        str(file.relative_to(path)): (
            file.lstat().st_mtime_ns,
            file.is_file() and not file.is_symlink() and file.read_bytes(),
        )
        for file in sorted(path.rglob("*"))
    }


def chunks(run: Path) -> set[str]:
    """Return the files of rows that a run has, also those that were set aside."""
    there = (file for file in run.rglob("c.*") if not file.is_symlink() and file.is_file())
    return {str(file.relative_to(run)).removesuffix(".damaged") for file in there}


def kept(run: Path) -> list[str]:
    """Do to a run all that keeps it, in an order that leaves it; return what was complained of."""
    acts: dict[str, Callable[[], object]] = {
        "du": lambda: usage(run),
        "check": lambda: check(run),
        "copy": lambda: copy(run, run.parent / "copy.zarr"),
        "prune --dry-run": lambda: prune(run, kind="activations", keep_last=1, dry_run=True),
        "repair": lambda: repair(run),
        "repair --set-aside": lambda: repair(run, set_aside=True),
        "prune": lambda: prune(run, kind="weights", layers="conv"),
        "check again": lambda: check(run),
    }
    before, said = chunks(run), list[str]()
    for name, act in acts.items():
        try:
            told = act()
        except StoreError as error:
            told = [error]
        if isinstance(told, list):
            said += [f"{name}: {line}" for line in told]
        if name == "repair --set-aside":
            assert before == chunks(run)  # all rows are committed: nothing may go
    return said


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_keeping_a_liar_takes_no_room_touches_nothing_outside_and_loses_nothing(
    stranger: Path, damage: Damage
) -> None:
    damage(stranger)
    before = shadow(stranger.parent / "outside")
    tracemalloc.start()
    try:
        said = kept(stranger)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert any(line.startswith("check: ") for line in said)
    assert all("\n" not in line and len(line) < 500 for line in said)
    assert peak < 64 << 20
    assert shadow(stranger.parent / "outside") == before


def outside_array(run: Path) -> None:
    """Link an array whose own zarr.json is gone, so that somebody may want to write one."""
    linked("activations/conv")(run)
    (run.parent / "outside/run.zarr/activations/conv/zarr.json").unlink()


def looped(name: str) -> Damage:
    def damage(run: Path) -> None:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        (run / name).symlink_to(run / name)

    return damage


def pointed(name: str, target: str) -> Damage:
    """Return what makes a file a link, to a path beside the run."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(run.parent / target)

    return damage


def file_for_folder(run: Path) -> None:
    shutil.rmtree(run / "activations/conv")
    (run / "activations/conv").write_bytes(b"mine")


def folder_of(name: str) -> Damage:
    """Return what puts a folder, with something in it, where a file belongs."""

    def damage(run: Path) -> None:
        folder(name)(run)
        (run / name / "mine").write_bytes(b"mine")

    return damage


TRAPS: dict[str, Damage] = {
    "lock link": pointed("_lock", "outside/run.zarr/zarr.json"),
    "lock dangling": pointed("_lock", "outside/made"),
    "lock fifo": fifo("_lock"),
    "lock folder": folder_of("_lock"),
    "array link": outside_array,
    "loop group": looped("activations"),
    "loop array": looped("activations/conv"),
    "loop file": looped(CONV),
    "loop ranks": looped("ranks"),
    "loop metadata": looped("activations/zarr.json"),
    "loop steps": looped(STEP),
    "link own metadata": linked("activations/conv/zarr.json"),
    "link column": linked("scalars/loss/c.0"),
    "link ranks": linked("ranks"),
    "folder root": folder_of("zarr.json"),
    "folder group": folder_of("activations/zarr.json"),
    "folder own": folder_of("activations/conv/zarr.json"),
    "folder steps": folder_of(STEP),
    "folder column": folder_of("scalars/loss/c.0"),
    "file array": file_for_folder,
    "name of metadata": named("zarr.json"),
    "name half": lambda run: (run / "activations/zarr.json").write_bytes(
        (run / "activations/zarr.json").read_bytes().replace(b'"conv"', b'"co\xed\xa0\x80v"')
    ),
    "ranks many": lambda run: [
        shutil.copytree(run / "ranks/0001", run / "ranks" / name)
        for name in ("00001", "99999999999", "٠٠٠٢")
    ],
}


@pytest.mark.parametrize("damage", TRAPS.values(), ids=TRAPS)
def test_keeping_walks_into_no_trap(stranger: Path, damage: Damage) -> None:
    damage(stranger)
    outside, mine = shadow(stranger.parent / "outside"), set(stranger.rglob("mine"))
    if (stranger / "activations/conv").is_file():
        mine.add(stranger / "activations/conv")

    said = kept(stranger)

    assert said
    assert all("\n" not in line and len(line) < 500 for line in said)
    assert shadow(stranger.parent / "outside") == outside
    assert all(file.read_bytes() == b"mine" for file in mine)


def test_nothing_is_thrown_away_that_is_not_known_to_be_uncommitted(stranger: Path) -> None:
    for name in ("zarr.json", "activations/zarr.json"):  # how many rows there are is nowhere now
        (stranger / name).unlink()
    os.truncate(stranger / STEP, 16)
    notes = ("data.partial", "activations/notes.partial", "activations/conv/c.0.0.0.0.old.partial")
    for name in notes:
        (stranger / name).write_bytes(b"mine")
    (stranger / "gradients/step").mkdir(parents=True)
    (stranger / "gradients/conv").mkdir()
    shutil.copy(stranger / CONV, stranger / "gradients/conv/c.0.0.0.0")
    before = {name: (stranger / name).read_bytes() for name in chunks(stranger)}

    for set_aside in (False, True):
        said = [str(line) for line in repair(stranger, set_aside=set_aside)]
        assert any("how many rows are committed is lost" in line for line in said)
        assert {name: (stranger / name).read_bytes() for name in chunks(stranger)} == before
    with pytest.raises(FormatError, match="see `filmstrip check`"):
        prune(stranger, kind="activations", layers="conv")
    assert {name: (stranger / name).read_bytes() for name in chunks(stranger)} == before
    assert all((stranger / name).read_bytes() == b"mine" for name in notes)


def test_a_link_in_place_of_a_group_stays_named(stranger: Path) -> None:
    (stranger / "weights").rename(stranger.parent / "weights")
    (stranger / "weights").symlink_to(stranger.parent / "weights")
    repair(stranger)
    (stranger / "weights").unlink()
    (stranger.parent / "weights").rename(stranger / "weights")

    assert all(line.done for line in repair(stranger))
    assert open_run(stranger).weights["conv"].steps.tolist() == list(STEPS)


def test_of_a_damaged_root_what_can_be_true_is_kept(stranger: Path) -> None:
    root("attempts", [[]])(stranger)
    before = open_run(stranger / "ranks/0001").id
    identity = json.loads((stranger / "zarr.json").read_text())["attributes"]["filmstrip"]

    left = [str(line) for line in repair(stranger) if not line.done]

    assert left == ["left: zarr.json: its attempts are lost"]
    assert open_run(stranger).id == identity["run_id"] != before


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become nobody")
@pytest.mark.parametrize("name", ["", "zarr.json", "activations", "activations/zarr.json", CONV])
def test_what_may_not_be_read_is_one_line(stranger: Path, name: str) -> None:
    for file in [*stranger.rglob("*"), stranger, *stranger.parents[:3]]:
        file.chmod(0o777)
    (stranger / name).chmod(0)
    before = shadow(stranger)
    os.seteuid(65534)
    try:
        said = kept(stranger)
    finally:
        os.seteuid(0)

    assert any(line.startswith("check: ") for line in said)
    assert all("\n" not in line for line in said)
    if name in ("", "zarr.json"):
        assert shadow(stranger) == before


def test_a_run_that_is_being_deleted_is_one_line(
    stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, looks = stranger.parent / "whole.zarr", (os.scandir, os.listdir, os.open, os.stat)
    shutil.copytree(stranger, whole)
    count, at = 0, 0

    def deleting(look: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                monkeypatch.undo()
                shutil.rmtree(stranger)
            return look(*args, **kwargs)

        return looking

    acts: list[Callable[[], object]] = [
        lambda: check(stranger),
        lambda: usage(stranger),
        lambda: repair(stranger),
        lambda: copy(stranger, stranger.parent / "copy.zarr"),
        lambda: prune(stranger, kind="weights", keep_last=1),
    ]
    for act in acts:
        for at in (2, 9, 30, 90, 200):  # noqa: B007 — read by `looking`
            shutil.rmtree(stranger, ignore_errors=True)
            shutil.rmtree(stranger.parent / "copy.zarr", ignore_errors=True)
            shutil.copytree(whole, stranger)
            count = 0
            for look in looks:
                monkeypatch.setattr(os, look.__name__, deleting(look))
            try:
                act()
            except StoreError as error:
                one_line(error)
            finally:
                monkeypatch.undo()


@settings(quick, phases=(Phase.reuse, Phase.generate))  # a smaller example takes minutes to find
@given(data=st.data())
def test_keeping_survives_anything_in_any_place(pristine: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(pristine, Path(folder) / "run.zarr"))
        shutil.copytree(run / "weights", Path(folder) / "outside")
        names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        for target in (run / name for name in chosen):
            raw = target.read_bytes()
            if target.name == "zarr.json" and data.draw(st.integers(0, 3)):
                document = json.loads(raw)
                *way, last = data.draw(st.sampled_from(paths(document)))
                inner = document
                for key in way:
                    inner = inner[key]
                inner[last] = data.draw(ODD)
                target.write_text(json.dumps(document))
            elif data.draw(st.booleans()):
                target.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
            else:
                damaged = bytearray(raw)
                low = data.draw(st.sampled_from([0, max(0, len(raw) - 255 * 16)]))
                at = data.draw(st.integers(min(low, max(0, len(raw) - 1)), max(0, len(raw) - 1)))
                damaged[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
                target.write_bytes(damaged)
        before = shadow(Path(folder) / "outside")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = kept(run)
        assert all("\n" not in line for line in said)
        assert shadow(Path(folder) / "outside") == before
