"""Runs that are checked, repaired, copied and pruned, also by processes that die at any write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmstrip.store import (
    FormatError,
    FrameSpec,
    KindNotFoundError,
    LayerNotFoundError,
    NotARunError,
    RunLockedError,
    RunNotFoundError,
    SelectionError,
    StoreError,
    StoreWriteError,
    _files,
    check,
    copy,
    create_run,
    open_run,
    prune,
    repair,
    usage,
)

LONG = "FILMSTRIP_TORTURE" in os.environ
"""Whether to die at every write and damage more files, which takes minutes."""

WRITES = ("pwrite", "truncate", "rename", "unlink", "remove_tree")
SPECS = {
    "conv": FrameSpec((3, 4, 5), "float32", layout="CHW", framework="pytorch"),
    "packed": FrameSpec((64, 96), "float32"),
    "cut": FrameSpec((6, 40), "int16"),
    "gain": FrameSpec((), "float32"),
    "rare": FrameSpec((7,), "uint8"),
}


def frame(layer: str, step: int) -> np.ndarray:
    spec = SPECS[layer]
    rng = np.random.default_rng([step, len(layer)])
    return np.asarray(rng.integers(-50, 50, spec.shape)).astype(spec.dtype)


def write(run: Any, steps: Any) -> None:
    writer = run.writer("activations", SPECS)
    statistics = run.statistics_writer("activations", ["conv", "packed"])
    for step in steps:
        layers = [layer for layer in SPECS if layer != "rare" or step % 30 == 0]
        writer.append(step, {layer: frame(layer, step) for layer in layers}, wall_time=1e9 + step)
        statistics.append(step, np.full((2, 9), step, np.float64), wall_time=1e9 + step)
        if step % 20 == 0:
            run.log(step, {"train/loss": step / 7})
            run.log_health(step, {"dropped": 0})


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several blocks from small frames; frames of 24 kB are compressed."""
    from filmstrip.store import _layout

    monkeypatch.setattr(_layout, "SHARD_BYTES", 4 * 64 * 96 * 4)
    monkeypatch.setattr(_layout, "BLOCK_BYTES", 32 << 10)
    monkeypatch.setattr(_layout, "COLUMN_ROWS", 8)
    monkeypatch.setattr(_layout, "SLOTS", 6)


@pytest.fixture
def run_path(tmp_path: Path, small_shards: None) -> Path:
    path = tmp_path / "run.zarr"
    with create_run(path, metadata={"seed": 3}, framework="pytorch") as run:
        write(run, range(0, 110, 10))
    return path


@pytest.fixture
def killed_path(tmp_path: Path, run_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose process died: live shards, rows that nobody committed, a half made file."""
    path = tmp_path / "killed.zarr"
    monkeypatch.setattr("filmstrip.store._publish.SECONDS", 3600)
    run = create_run(path, metadata={"seed": 3}, framework="pytorch")
    write(run, range(0, 50, 10))
    run.publish()
    write(run, range(50, 110, 10))
    run._abandon_after_fork()  # nothing is published, nothing sealed
    attributes = path / "zarr.json"
    text = attributes.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305')
    attributes.write_text(text)
    (path / "activations" / "conv" / "c.9.0.0.0.77.partial").write_bytes(b"half")
    return path


def contents(path: Path) -> dict[str, tuple[list[int], bytes]]:
    """Return all that a run tells its readers: steps and bytes of everything."""
    run = open_run(path)
    told = {
        f"{kind}/{layer}": (strip.steps.tolist(), strip.read().tobytes())
        for kind in run.kinds
        if kind != "scalars"
        for layer, strip in getattr(run, kind).items()
    }
    for name, series in run.scalars.items():
        told[f"scalars/{name}"] = (series.steps.tolist(), series.values.tobytes())
    for kind in run.kinds:
        with contextlib.suppress(KindNotFoundError):
            steps, values = run.statistics(kind).table()
            told[f"statistics/{kind}"] = (steps.tolist(), values.tobytes())
    return told


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "_lock"
    }


def done(path: Path) -> list[str]:
    return [line.what for line in repair(path) if line.done]


def wrong(path: Path) -> list[str]:
    return [str(finding) for finding in check(path) if finding.severity != "note"]


class Killed(BaseException):
    """The process is gone."""


class Death:
    """Ends the process at its n-th write, perhaps halfway through it; nothing is written after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> None:
        self.count, self.at, self.halfway, self.error = 0, -1, False, error
        for name in WRITES:
            monkeypatch.setattr(_files, name, self._wrapped(name, getattr(_files, name)))

    def _wrapped(self, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at and name == "pwrite" and self.halfway:
                data = b"".join(memoryview(part).cast("B") for part in args[1])
                os.pwrite(args[0], data[: len(data) // 2], args[2])
            if self.error is not None and self.count == self.at:
                raise self.error  # once; the process goes on
            if self.error is None and 0 < self.at <= self.count:
                raise Killed
            return write(*args, **kwargs)

        return wrapped

    def everywhere(self, act: Callable[[], object]) -> Iterator[int]:
        """Run an act again and again, each time dying at a later write, until it lives."""
        at = 0
        while True:
            at += 1
            self.count, self.at, self.halfway = 0, at, at % 2 == 0
            try:
                act()
            except Killed:
                self.at = -1
                yield at
                continue
            self.at = -1
            return


def test_a_finished_run_is_well_and_needs_no_repair(run_path: Path) -> None:
    before = files(run_path)

    assert check(run_path) == []
    assert repair(run_path) == []
    assert files(run_path) == before


def test_a_killed_run_is_sealed_and_all_its_complete_rows_are_committed(
    killed_path: Path, run_path: Path
) -> None:
    import zarr

    told = wrong(killed_path)
    for part in ("is not sealed", "6 complete rows are not committed", "half made", "length is"):
        assert any(part in line for line in told), (part, told)
    assert not any(line.startswith("error") for line in told)

    assert any("committed 6 complete rows" in line for line in done(killed_path))

    assert repair(killed_path) == []
    assert check(killed_path) == []
    assert contents(killed_path) == contents(run_path)
    assert len(zarr.open_group(killed_path, mode="r")["activations/conv"][:]) == 11  # type: ignore[index,arg-type]
    for name in ("conv", "packed", "cut", "gain", "step"):
        assert zarr.open_array(killed_path / "activations" / name, mode="r").shape[0] == 11
    with create_run(killed_path, if_exists="resume") as run:
        write(run, [200])
    assert open_run(killed_path).activations["conv"].steps[-1] == 200


def test_a_repair_killed_at_any_write_is_finished_by_the_next(
    killed_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.zarr"
    shutil.copytree(killed_path, whole)
    repair(whole)
    expected, told = files(whole), contents(whole)
    death, path = Death(monkeypatch), tmp_path / "again.zarr"
    shutil.copytree(killed_path, path)
    # One that dies at its first write, then at its second of what is left, and so on.
    for _ in death.everywhere(lambda: repair(path)):
        assert all(
            told[name][0][: len(steps)] == steps for name, (steps, _) in contents(path).items()
        )
    assert death.count > 1
    assert files(path) == expected
    deaths = 0
    while True:  # and one that dies at any write of the first try
        shutil.rmtree(path)
        shutil.copytree(killed_path, path)
        deaths += 1 if LONG else 3
        death.count, death.at, death.halfway = 0, deaths, deaths % 2 == 0
        try:
            repair(path)
        except Killed:
            death.at = -1
            repair(path)
            assert files(path) == expected
        else:
            break
    assert deaths > 40


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x41
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("hurt", [_cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize(
    "name",
    [
        "activations/zarr.json",
        "scalars/zarr.json",
        "statistics/zarr.json",
        "statistics/activations/zarr.json",
        "activations/conv/zarr.json",
        "activations/step/zarr.json",
        "statistics/activations/values/zarr.json",
        "scalars/train.loss/zarr.json",
    ],
)
def test_metadata_that_are_lost_once_are_found_elsewhere(
    run_path: Path, name: str, hurt: Callable[[Path], Any]
) -> None:
    before, told = files(run_path), contents(run_path)
    hurt(run_path / name)

    assert any(name in line for line in wrong(run_path))
    assert done(run_path)

    assert files(run_path) == before
    assert contents(run_path) == told
    assert check(run_path) == []


def test_a_lost_root_is_rebuilt_and_what_cannot_be_is_said(run_path: Path) -> None:
    told = contents(run_path)
    for name in ("zarr.json", "statistics/zarr.json"):
        (run_path / name).unlink()

    report = repair(run_path)

    left = [str(line) for line in report if not line.done]
    assert len(left) == 1
    assert "attempts, plan and metadata are lost" in left[0]
    assert contents(run_path) == told
    assert check(run_path) == []
    assert repair(run_path) == []
    assert open_run(run_path).attributes["framework"] == "pytorch"
    assert open_run(run_path).attributes["created"] == 1e9


def test_all_metadata_but_the_arrays_own_are_rebuilt(run_path: Path) -> None:
    told = contents(run_path)
    for name in ("", "activations", "scalars", "health", "statistics", "statistics/activations"):
        (run_path / name / "zarr.json").write_bytes(b"{")

    left = [str(line) for line in repair(run_path) if not line.done]

    assert any("names of its 2 layers are lost" in line for line in left)
    assert contents(run_path) == told


@pytest.mark.parametrize("layer", ["conv", "packed", "cut"])
@pytest.mark.parametrize("lost", ["one byte", "everything"])
def test_the_index_of_a_sealed_shard_is_rebuilt_from_its_blocks(
    run_path: Path, layer: str, lost: str
) -> None:
    before = files(run_path)
    shards = sorted((run_path / "activations" / layer).glob("c.*"))
    assert len(shards) > 1
    slots = 6 if layer in ("conv", "cut") else 4
    _overwrite_index(shards[0], slots, lost)
    assert any("its index is damaged (repair rebuilds" in line for line in wrong(run_path))
    with pytest.raises(FormatError):
        open_run(run_path).activations[layer].read()

    assert any("rebuilt its index" in line for line in done(run_path))

    assert files(run_path) == before
    assert check(run_path) == []


def _overwrite_index(path: Path, slots: int, lost: str) -> None:
    raw, length = bytearray(path.read_bytes()), 16 * slots + 4
    if lost == "one byte":
        raw[-length + 21] ^= 0x10
    else:
        raw[-length:] = bytes(length)
    path.write_bytes(bytes(raw))


def test_an_index_that_cannot_be_proved_is_left_alone(run_path: Path) -> None:
    shard = min((run_path / "activations" / "rare").glob("c.*"))
    _overwrite_index(shard, 6, "everything")  # which of its rows had a frame, nobody knows now
    before = shard.read_bytes()

    assert any("their steps are not certain" in line for line in wrong(run_path))
    left = [str(line) for line in repair(run_path) if not line.done]

    assert len(left) == 1
    assert "2 frames are whole" in left[0]
    assert shard.read_bytes() == before

    assert [line.done for line in repair(run_path, set_aside=True)] == [True]
    assert shard.with_name(f"{shard.name}.damaged").read_bytes() == before
    assert wrong(run_path) == []
    assert open_run(run_path).activations["rare"].steps.tolist() == [60, 90]
    with create_run(run_path, if_exists="resume") as run:
        write(run, [120])
    assert open_run(run_path).activations["rare"].steps.tolist() == [60, 90, 120]
    shard.write_bytes(b"damaged once more, and longer than any index" * 9)
    repair(run_path, set_aside=True)
    assert shard.with_name(f"{shard.name}.damaged").read_bytes() == before
    assert shard.with_name(f"{shard.name}.2.damaged").read_bytes().startswith(b"damaged once")


def test_a_damaged_index_costs_its_shard_and_nothing_else(run_path: Path) -> None:
    shards = sorted((run_path / "activations" / "conv").glob("c.*"))
    told, nonfinite = contents(run_path), open_run(run_path).nonfinite()
    for layer in ("conv", "rare"):
        _overwrite_index(min((run_path / "activations" / layer).glob("c.*")), 6, "everything")
    run = open_run(run_path)
    strip = run.activations["conv"]

    assert strip.steps.tolist() == list(range(0, 110, 10))
    np.testing.assert_array_equal(strip.frame(-1), frame("conv", 100))
    np.testing.assert_array_equal(strip.read(slice(60, None))[0], frame("conv", 60))
    for step in (0, 50):
        with pytest.raises(FormatError, match=r"c\.0\.0\.0\.0 cannot .*index.*repair --set-aside"):
            strip.frame(step)
    with pytest.raises(FormatError, match=shards[0].name):
        strip.read()
    assert run.activations["rare"].steps.tolist() == [0, 10, 20, 30, 40, 50, 60, 90]
    assert (run.status().last_step, run.nonfinite()) == (100, nonfinite)
    steps, values = run.statistics("activations").table()
    assert (steps.tolist(), values.tobytes()) == told["statistics/activations"]

    with create_run(run_path, if_exists="resume", first_step=100) as writer:
        write(writer, [100, 110])
    assert open_run(run_path).activations["conv"].frame(110).tobytes() == (
        frame("conv", 110).tobytes()
    )


def test_a_full_shard_that_is_damaged_does_not_stop_a_run_and_an_open_one_says_what_does(
    tmp_path: Path, small_shards: None
) -> None:
    path = tmp_path / "run.zarr"
    run = create_run(path)
    write(run, range(0, 60, 10))
    run._abandon_after_fork()
    shard = path / "activations" / "conv" / "c.0.0.0.0"
    _overwrite_index(shard, 6, "everything")
    before = shard.read_bytes()

    with create_run(path, if_exists="resume") as run:
        write(run, [60, 70])
    assert shard.read_bytes() == before
    assert open_run(path).activations["conv"].frame(70).tobytes() == frame("conv", 70).tobytes()

    for first_step in (30, 50):
        with pytest.raises(FormatError, match=f"{shard.name} .*`filmstrip repair --set-aside` go"):
            create_run(path, if_exists="resume", first_step=first_step)
    repair(path, set_aside=True)
    with create_run(path, if_exists="resume", first_step=30) as run:
        write(run, [30, 40])
    assert open_run(path).activations["conv"].steps.tolist() == [30, 40]


def test_of_an_index_that_lost_one_entry_the_rows_without_a_frame_are_known(
    run_path: Path,
) -> None:
    before = files(run_path)
    _overwrite_index(min((run_path / "activations" / "rare").glob("c.*")), 6, "one byte")

    assert any("rebuilt its index" in line for line in done(run_path))
    assert files(run_path) == before


@pytest.mark.parametrize("layer", ["conv", "packed", "cut"])
def test_the_index_of_a_live_shard_is_rebuilt_where_other_entries_prove_it(
    killed_path: Path, run_path: Path, layer: str
) -> None:
    shard = max((killed_path / "activations" / layer).glob("c.*[0-9]"))
    slots = 6 if layer in ("conv", "cut") else 4
    _overwrite_index(shard, slots, "one byte")

    assert any("rebuilt its index" in line for line in done(killed_path))
    assert contents(killed_path) == contents(run_path)
    assert check(killed_path) == []


def test_nothing_is_guessed_of_a_live_shard_whose_index_is_gone(killed_path: Path) -> None:
    shard = max((killed_path / "activations" / "conv").glob("c.*[0-9]"))
    _overwrite_index(shard, 6, "everything")  # blocks at its end may have been taken back
    before = shard.read_bytes()

    left = [str(line) for line in repair(killed_path) if not line.done]

    assert len(left) == 1
    assert "5 frames are whole, but of which steps is not certain" in left[0]
    assert shard.read_bytes() == before
    assert open_run(killed_path).activations["packed"].steps.tolist() == list(range(0, 110, 10))


def test_a_damaged_frame_is_named_by_its_step_and_left(run_path: Path) -> None:
    _flip(sorted((run_path / "activations" / "conv").glob("c.*"))[1], 300)
    before = files(run_path)

    assert any("the frame of step 70 is damaged" in line for line in wrong(run_path))
    assert [line.done for line in repair(run_path)] == [False]
    assert files(run_path) == before
    with pytest.raises(FormatError, match="damaged"):
        copy(run_path, run_path.parent / "copy.zarr")


def test_columns_that_were_cut_are_filled_up(run_path: Path) -> None:
    loss = run_path / "scalars" / "train.loss" / "c.0"
    loss.write_bytes(loss.read_bytes()[:19])
    assert any("train.loss/c.0: it has 19 bytes" in line for line in wrong(run_path))

    assert len(done(run_path)) == 1

    series = open_run(run_path).scalars["train/loss"]
    assert series.steps.tolist() == [0, 20]
    assert check(run_path) == []


@pytest.mark.parametrize("steps", [[0, 10, 10], [5, 3], None])
def test_where_steps_are_damaged_nothing_is_cut(run_path: Path, steps: list[int] | None) -> None:
    column = run_path / "activations" / "step" / "c.0"
    if steps is None:
        column.unlink()
    else:
        raw = np.frombuffer(column.read_bytes(), "<i8").copy()
        raw[: len(steps)] = steps
        column.write_bytes(raw.tobytes())
    before = files(run_path)

    assert any(line.startswith("error: activations") for line in wrong(run_path))
    for _ in range(2):
        assert not [line for line in repair(run_path) if line.done]
        assert files(run_path) == before


def test_files_that_belong_to_nothing_are_named_and_left(run_path: Path, tmp_path: Path) -> None:
    strangers = ("notes.txt", "activations/notes.txt", "activations/conv/notes.txt", "extra/x")
    for name in strangers:
        (run_path / name).parent.mkdir(exist_ok=True)
        (run_path / name).write_text("mine")
    (run_path / "activations" / "elsewhere").symlink_to(tmp_path)

    told = wrong(run_path)

    assert sum("it belongs to nothing" in line for line in told) == 4
    assert sum("it is a link" in line for line in told) == 1
    assert repair(run_path) == []
    assert all((run_path / name).read_text() == "mine" for name in strangers)


def test_a_group_and_an_array_that_were_never_finished_are_removed(run_path: Path) -> None:
    before = files(run_path)
    shutil.copytree(run_path / "activations" / "step", run_path / "weights" / "step")
    shutil.rmtree(run_path / "weights" / "step")
    (run_path / "weights" / "step").mkdir()
    (run_path / "activations" / "late").mkdir()
    own = (run_path / "activations" / "conv" / "zarr.json").read_text()
    (run_path / "activations" / "late" / "zarr.json").write_text(own)

    assert len(wrong(run_path)) >= 2
    assert sum("never finished" in line for line in done(run_path)) == 2
    assert files(run_path) == before
    assert not (run_path / "weights").exists()


@pytest.mark.parametrize("seed", range(1000 if LONG else 30))
def test_check_and_repair_survive_any_damage_to_any_file(run_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    several = [file for file in sorted(run_path.rglob("*")) if file.is_file()]
    for file in rng.choice(np.array(several, object), 2, replace=False):
        raw = bytearray(file.read_bytes())
        if rng.integers(2) and len(raw):
            for at in rng.integers(0, len(raw), 3):
                raw[at] = rng.integers(256)
        else:
            raw = raw[: rng.integers(0, len(raw) + 1)]
        file.write_bytes(bytes(raw))

    try:
        check(run_path)
    except (NotARunError, FormatError):  # the root says that it is something else
        return
    repair(run_path)
    again = repair(run_path)
    assert not [str(line) for line in again if line.done]
    assert not [f for f in check(run_path) if "repair" in str(f).rpartition("(")[2]]


def test_documents_that_lie_are_findings_and_no_errors(run_path: Path) -> None:
    group = run_path / "activations" / "zarr.json"
    lies: list[dict[str, Any]] = [
        {"chunk_grid": {"configuration": {"chunk_shape": [2**60, 1, 1, 1]}}},
        {"shape": [11, -4, 2**70, "x"]},
        {"codecs": [[]]},
        {"attributes": 7},
        {"data_type": "object"},
    ]
    for lie in lies:
        document = json.loads(group.read_text())
        members = document["consolidated_metadata"]["metadata"]
        whole = dict(members["conv"])
        members["conv"].update(lie)
        members["../../escape"] = whole
        before = group.read_text()
        group.write_text(json.dumps(document))
        assert wrong(run_path)
        repair(run_path)
        group.write_text(before)
    assert not (run_path.parent / "escape").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    for act in (check, repair, usage, lambda path: prune(path, kind="weights", before=1)):
        with pytest.raises(RunNotFoundError):
            act(tmp_path / "none")
        for name in ("empty", "other"):
            with pytest.raises(NotARunError):
                act(tmp_path / name)
        assert not list((tmp_path / "empty").iterdir())


def test_a_live_run_is_checked_and_neither_repaired_nor_pruned(
    tmp_path: Path, small_shards: None
) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        write(run, range(0, 110, 10))
        before = files(tmp_path / "run.zarr")

        found = check(tmp_path / "run.zarr")

        assert [finding.severity for finding in found] == ["note"], found
        assert "it is live" in found[0].what
        with pytest.raises(RunLockedError, match="this process"):
            repair(tmp_path / "run.zarr")
        with pytest.raises(RunLockedError):
            prune(tmp_path / "run.zarr", kind="activations", keep_every=20)
        assert prune(tmp_path / "run.zarr", kind="activations", keep_every=20, dry_run=True).frames
        assert {**files(tmp_path / "run.zarr")}.keys() == before.keys()
    assert check(tmp_path / "run.zarr") == []


def test_checking_a_run_while_it_is_written_finds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from filmstrip.store import FrameSpec, create_run\n"
        f"run = create_run({str(tmp_path / 'run.zarr')!r})\n"
        "spec = {'a': FrameSpec((40, 50), 'float32'), 'b': FrameSpec((900,), 'float32')}\n"
        "writer = run.writer('weights', spec)\n"
        "for step in range(10**9):\n"
        "    frames = {'a': np.full((40, 50), step, 'f4'), 'b': np.full(900, step, 'f4')}\n"
        "    writer.append(step, frames); run.log(step, {'loss': step})\n"
        "    if step == 0: print('go', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(3):
                assert wrong(tmp_path / "run.zarr") == []
        finally:
            process.kill()
    repair(tmp_path / "run.zarr")
    assert check(tmp_path / "run.zarr") == []
    strip = open_run(tmp_path / "run.zarr").weights["a"]
    assert strip.frame(-1)[3, 3] == strip.steps[-1]


def test_a_copy_is_equal_to_the_bit_and_sealed(run_path: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    copied = copy(run_path, tmp_path / "copy.zarr", progress=lambda *now: seen.append(now))

    assert contents(tmp_path / "copy.zarr") == contents(run_path)
    assert check(tmp_path / "copy.zarr") == []
    assert (seen[-1][0], copied.written) == (copied.bytes, copied.bytes)
    assert seen[-1][0] == seen[-1][1]
    old, new = open_run(run_path), open_run(tmp_path / "copy.zarr")
    assert (new.id, new.metadata) == (old.id, old.metadata)
    assert new.attributes["attempts"][-1]["copied"]["from"] == str(run_path)
    assert new.status().state == "finished"
    strips = {k: v for k, v in files(run_path).items() if "/conv/c." in k}
    assert {k: v for k, v in files(tmp_path / "copy.zarr").items() if "/conv/c." in k} == strips


def test_a_copy_of_a_part_holds_just_that(run_path: Path, tmp_path: Path) -> None:
    with create_run(run_path, if_exists="resume") as writer:
        writer.writer("weights", {"w": FrameSpec((2,), "float32")}).append(
            40, {"w": np.ones(2, np.float32)}
        )
    copied = copy(
        run_path,
        tmp_path / "copy.zarr",
        kinds="activations",
        layers=["c*", "gain", "rare"],
        steps=slice(20, 90, 20),
    )

    assert check(tmp_path / "copy.zarr") == []
    run, source = open_run(tmp_path / "copy.zarr"), open_run(run_path)
    assert run.kinds == ("activations", "scalars")
    assert list(run.activations) == ["conv", "cut", "gain", "rare"]
    assert run.steps("activations").tolist() == [20, 40, 60, 80]
    for layer, strip in run.activations.items():
        wanted = [step for step in strip.steps if layer != "rare" or step % 30 == 0]
        assert strip.steps.tolist() == wanted
        for step in wanted:
            assert strip.frame(step).tobytes() == source.activations[layer].frame(step).tobytes()
    assert run.activations["rare"].steps.tolist() == [60]
    assert run.scalars["train/loss"].steps.tolist() == [20, 40, 60, 80]
    assert run.statistics("activations").steps.tolist() == [20, 40, 60, 80]
    assert copied.frames == 4 * 3 + 1


def test_a_live_run_can_be_copied_and_the_copy_brought_up_to_date(
    tmp_path: Path, small_shards: None
) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        write(run, range(0, 70, 10))
        first = copy(tmp_path / "run.zarr", tmp_path / "copy.zarr")
        assert contents(tmp_path / "copy.zarr") == contents(tmp_path / "run.zarr")
        write(run, range(70, 110, 10))
    second = copy(tmp_path / "run.zarr", tmp_path / "copy.zarr")
    assert contents(tmp_path / "copy.zarr") == contents(tmp_path / "run.zarr")
    assert check(tmp_path / "copy.zarr") == []
    assert 0 < second.written < second.bytes
    assert first.written == first.bytes
    assert copy(tmp_path / "run.zarr", tmp_path / "copy.zarr").written == 0


def test_a_copy_killed_at_any_write_is_a_run_and_is_finished_by_the_next(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    death, target = Death(monkeypatch), tmp_path / "copy.zarr"
    told = contents(run_path)
    for _ in death.everywhere(lambda: copy(run_path, target)):
        if (target / "zarr.json").exists():
            assert all(told[name] == there for name, there in contents(target).items())
    assert contents(target) == told
    assert check(target) == []


def test_a_copy_never_touches_what_is_another_run(run_path: Path, tmp_path: Path) -> None:
    other, copied = tmp_path / "other.zarr", tmp_path / "copy.zarr"
    create_run(other).close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").write_text("mine")
    copy(run_path, copied, layers="conv")
    before = files(tmp_path)

    with pytest.raises(StoreError, match="already holds another run, and nothing was touched"):
        copy(run_path, other)
    with pytest.raises(StoreError, match="a copy of another selection"):
        copy(run_path, copied)
    with pytest.raises(NotARunError):
        copy(run_path, tmp_path / "full")
    with pytest.raises(StoreError, match="into itself"):
        copy(run_path, run_path / "below")
    with pytest.raises(LayerNotFoundError, match="nearest: conv"):
        copy(run_path, tmp_path / "new.zarr", layers="cnov")
    with pytest.raises(KindNotFoundError):
        copy(run_path, tmp_path / "new.zarr", kinds=["gradients"])
    with pytest.raises(SelectionError):
        copy(run_path, tmp_path / "new.zarr", steps=slice(0, 9, -1))
    assert files(tmp_path) == before
    with create_run(run_path, if_exists="resume", first_step=50) as run:
        write(run, [50])
    with pytest.raises(StoreError, match="resumed from an earlier step"):
        copy(run_path, copied, layers="conv")
    with create_run(copied, if_exists="resume") as run:
        run.log(999, {"loss": 1})
    with pytest.raises(StoreError, match="already holds another run"):
        copy(run_path, copied, layers="conv")


def test_pruning_takes_frames_away_and_frees_their_space(run_path: Path) -> None:
    from filmstrip.store._place import LocalPlace
    from filmstrip.store._status import disk_bytes

    before, room = files(run_path), disk_bytes(LocalPlace(run_path / "activations" / "packed"))
    expected = contents(run_path)
    dry = prune(run_path, kind="activations", keep_every=50, keep_last=2, dry_run=True)
    assert files(run_path) == before

    pruned = prune(run_path, kind="activations", keep_every=50, keep_last=2)

    assert pruned == dry
    run = open_run(run_path)
    assert run.steps("activations").tolist() == list(range(0, 110, 10))
    for layer in ("conv", "packed", "cut", "gain"):
        strip = run.activations[layer]
        assert strip.steps.tolist() == [0, 50, 90, 100]
        for step in strip.steps.tolist():
            np.testing.assert_array_equal(strip.frame(step), frame(layer, step))
    assert run.activations["rare"].steps.tolist() == [0, 60, 90]
    assert pruned.frames == 4 * 7 + 1
    assert pruned.kept == 4 * 4 + 3
    assert check(run_path) == []
    assert room is not None
    assert (disk_bytes(LocalPlace(run_path / "activations" / "packed")) or 0) < room / 2
    others = {k: v for k, v in contents(run_path).items() if not k.startswith("activations")}
    assert others == {k: v for k, v in expected.items() if not k.startswith("activations")}
    assert prune(run_path, kind="activations", keep_every=50, keep_last=2).frames == 0
    with create_run(run_path, if_exists="resume") as resumed:
        write(resumed, [110, 120])
    assert open_run(run_path).activations["conv"].steps.tolist() == [0, 50, 90, 100, 110, 120]
    np.testing.assert_array_equal(open_run(run_path).activations["cut"].frame(50), frame("cut", 50))


def test_frames_before_a_step_and_whole_layers_can_be_pruned(run_path: Path) -> None:
    assert prune(run_path, kind="activations", layers="conv", before=70).frames == 7
    assert open_run(run_path).activations["conv"].steps.tolist() == [70, 80, 90, 100]

    pruned = prune(run_path, kind="activations", layers=["conv", "g*"])

    assert (pruned.frames, pruned.layers) == (4 + 11, ("conv", "gain"))
    assert list(open_run(run_path).activations) == ["packed", "cut", "rare"]
    assert not (run_path / "activations" / "conv").exists()
    assert check(run_path) == []
    assert repair(run_path) == []
    with create_run(run_path, if_exists="resume") as run:  # it may come back
        write(run, [110])
    assert open_run(run_path).activations["conv"].steps.tolist() == [110]


@pytest.mark.parametrize(
    "rule", [{"keep_every": 40}, {"layers": ["conv", "gain"]}, {"layers": "*"}]
)
def test_a_run_is_valid_wherever_pruning_was_killed(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    whole, path = tmp_path / "whole.zarr", tmp_path / "again.zarr"
    shutil.copytree(run_path, whole)
    told = contents(run_path)
    prune(whole, kind="activations", **rule)
    death, at = Death(monkeypatch), 0
    while True:
        at += 1 if LONG or "layers" in rule else 4
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(run_path, path)
        death.count, death.at, death.halfway = 0, at, at % 2 == 0
        try:
            prune(path, kind="activations", **rule)
            break
        except Killed:
            death.at = -1
        for layer, strip in open_run(path).activations.items():
            assert set(strip.steps.tolist()) <= set(told[f"activations/{layer}"][0])
            for step in strip.steps.tolist():
                np.testing.assert_array_equal(strip.frame(step), frame(layer, step))
        assert not any(line.startswith("error") for line in wrong(path)), (at, wrong(path))
        with contextlib.suppress(LayerNotFoundError, KindNotFoundError):
            prune(path, kind="activations", **rule)
        repair(path)
        assert check(path) == []
        assert contents(path) == contents(whole)
    death.at = -1
    assert at > 5


@pytest.mark.parametrize("what", ["repair", "copy", "prune"])
def test_a_disk_that_refuses_once_costs_nothing(
    killed_path: Path, run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    start, path, target = killed_path, tmp_path / "again.zarr", tmp_path / "target.zarr"
    acts: dict[str, tuple[Path, Callable[[], object]]] = {
        "repair": (path, lambda: repair(path)),
        "copy": (target, lambda: copy(path, target)),
        "prune": (path, lambda: prune(path, kind="activations", keep_every=20)),
    }
    result, act = acts[what]
    shutil.copytree(start, path)
    act()
    expected = contents(result)
    death, at = Death(monkeypatch, OSError(28, "No space left on device")), 0
    while True:
        at += 1 if LONG else 5
        for old in (path, target):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(start, path)
        death.count, death.at = 0, at
        try:
            act()
        except StoreWriteError:
            death.at = -1
            assert set(contents(path)) == set(contents(start))
            act()
        reached, death.at = death.count, -1
        assert contents(result) == expected
        if reached < at:
            break
    assert at > 30


def test_a_killed_run_can_be_copied_and_pruned_as_it_is(
    killed_path: Path, run_path: Path, tmp_path: Path
) -> None:
    copy(killed_path, tmp_path / "copy.zarr")
    assert contents(tmp_path / "copy.zarr") == contents(run_path)
    assert check(tmp_path / "copy.zarr") == []

    for path in (killed_path, run_path):
        prune(path, kind="activations", keep_every=30)
        prune(path, kind="activations", layers="packed")

    assert contents(killed_path) == contents(run_path)
    repair(killed_path)
    assert check(killed_path) == []
    assert contents(killed_path) == contents(run_path)


def test_links_are_named_and_never_followed(run_path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 4096)
    shard = min((run_path / "activations" / "conv").glob("c.*"))
    for file in (shard, run_path / "scalars" / "train.loss" / "c.0"):
        file.unlink()
        file.symlink_to(secret)
    os.mkfifo(run_path / "activations" / "cut" / "c.77.0.0")

    assert sum("it is a link" in line for line in wrong(run_path)) == 2
    repair(run_path)
    copy(run_path, tmp_path / "copy.zarr")

    assert secret.read_bytes() == b"s" * 4096
    assert not any(b"ssss" in raw for raw in files(tmp_path / "copy.zarr").values())


def test_pruning_wants_to_be_told_what(run_path: Path) -> None:
    before = files(run_path)
    with pytest.raises(ValueError, match="needs to know what to keep"):
        prune(run_path, kind="activations")
    with pytest.raises(ValueError, match="keep_every=0 has no meaning"):
        prune(run_path, kind="activations", keep_every=0)
    with pytest.raises(KindNotFoundError, match="activations"):
        prune(run_path, kind="weights", before=3)
    with pytest.raises(LayerNotFoundError):
        prune(run_path, kind="activations", layers="nothing")
    assert files(run_path) == before


@pytest.fixture
def ranks_path(tmp_path: Path, small_shards: None) -> Path:
    path = tmp_path / "ranks.zarr"
    for rank in (0, 1, 12):
        with create_run(path, rank=rank, world_size=13) as run:
            write(run, range(0, 60, 10))
    return path


def test_every_ranks_store_is_checked_and_repaired(ranks_path: Path) -> None:
    assert wrong(ranks_path) == []
    before = files(ranks_path)
    (ranks_path / "ranks" / "0012" / "activations" / "zarr.json").unlink()
    (ranks_path / "ranks" / "0001" / "zarr.json").write_text("{")
    told = wrong(ranks_path)
    assert any("ranks/0012/activations/zarr.json" in line for line in told)
    assert any("ranks/0001/zarr.json" in line for line in told)

    assert done(ranks_path)

    assert wrong(ranks_path) == []
    after = files(ranks_path)
    assert {k for k in before if before[k] != after.get(k)} == {"ranks/0001/zarr.json"}
    identity = json.loads(after["ranks/0001/zarr.json"])["attributes"]["filmstrip"]
    assert identity["rank"] == 1
    assert identity["world_size"] == 13


def test_every_ranks_store_is_copied_and_pruned(ranks_path: Path, tmp_path: Path) -> None:
    copied = copy(ranks_path, tmp_path / "copy.zarr", layers="conv", steps=slice(20, 60))
    assert copied.frames == 3 * 4
    for name in ("", "ranks/0001", "ranks/0012"):
        strip = open_run(tmp_path / "copy.zarr" / name).activations["conv"]
        assert strip.steps.tolist() == [20, 30, 40, 50]

    pruned = prune(tmp_path / "copy.zarr", kind="activations", keep_last=1)

    assert (pruned.frames, pruned.kept) == (9, 3)
    assert wrong(tmp_path / "copy.zarr") == []
    room = {(one.kind, one.layer): one.raw for one in usage(ranks_path)}
    assert room["activations", "conv"] == 3 * 6 * 60 * 4


def test_usage_tells_what_takes_the_room(run_path: Path) -> None:
    found = usage(run_path)

    assert [one.disk for one in found] == sorted((one.disk for one in found), reverse=True)
    raw = {(one.kind, one.layer): one.raw for one in found}
    assert raw["activations", "packed"] == 11 * 64 * 96 * 4
    assert raw["activations", "rare"] == 4 * 7
    assert ("statistics/activations", "") in raw
