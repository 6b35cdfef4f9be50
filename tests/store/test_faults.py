"""Disks that refuse, cut short, or die with their machine. ``scripts/kill --faults`` tries all."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from store.faults import SCENARIOS, Disk, Fault, Faults, KeepingFaults

from filmstrip.store import (
    FrameSpec,
    KindWriter,
    StoreError,
    StoreWriteError,
    _files,
    create_run,
    open_run,
)

# Of each scenario, how far into its changes something goes wrong, and what.
POINTS: dict[str, list[tuple[float, Fault]]] = {
    "mixed": [(0.2, "full"), (0.45, "kill"), (0.72, "cut"), (0.85, "kill")],
    "mixed-fsync": [(0.6, "kill")],
    "zstd": [(0.8, "kill")],
    "lz4": [(0.5, "quota")],
    "raw": [(0.7, "cut")],
    "parts": [(0.4, "kill"), (0.5, "full"), (0.75, "cut")],
    "full-shard": [(0.3, "kill"), (0.6, "full")],
}


@pytest.mark.parametrize("scenario", POINTS)
def test_whatever_change_goes_wrong_no_row_is_lost_or_torn(tmp_path: Path, scenario: str) -> None:
    faults = Faults(SCENARIOS[scenario], tmp_path)

    for part, fault in POINTS[scenario]:
        at = int(part * len(faults.seen))
        while fault == "cut" and faults.seen[at - 1] != "pwrite":
            at += 1
        faults.try_one(at, fault)
    assert {"pwrite", "truncate", "rename", "unlink"} <= set(faults.seen)


KEPT: dict[str, list[tuple[float, Fault]]] = {
    "repair": [(0.1, "kill"), (0.5, "full"), (0.9, "cut")],
    "set-aside": [(0.2, "cut"), (0.3, "kill"), (0.8, "quota")],
    "copy": [(0.3, "kill"), (0.7, "cut")],
    "copy-part": [(0.5, "full"), (0.9, "kill")],
    "prune": [(0.2, "kill"), (0.5, "cut"), (0.8, "full")],
    "prune-layers": [(0.3, "full"), (0.6, "kill"), (1.0, "kill")],
}


@pytest.mark.parametrize("act", KEPT)
def test_whatever_change_goes_wrong_while_a_run_is_kept_a_second_try_ends_as_the_first_would(
    tmp_path: Path, act: str
) -> None:
    faults = KeepingFaults(act, tmp_path)

    for part, fault in KEPT[act]:
        at = max(1, int(part * len(faults.seen)))
        while fault == "cut" and faults.seen[at - 1] != "pwrite":
            at += 1
        faults.try_one(at, fault)
    assert {"pwrite", "rename"} <= set(faults.seen)


def refusing(disk: Disk, run_it: object, fault: Fault = "full") -> None:
    """Let every change of an act fail, one after the other, until it goes through."""
    assert callable(run_it)
    for at in range(1, 200):
        disk.arm(at, fault)
        try:
            run_it()
        except StoreWriteError:
            continue
        disk.arm(0, "full")
        return
    raise AssertionError("it never goes through")


def test_a_number_that_could_not_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    with Disk() as disk, create_run(tmp_path / "run.zarr") as run:
        run.log(0, {"loss": 1.0, "other": 2.0})
        disk.arm(2, "cut")  # the first change is that of the loss, and goes through
        with pytest.raises(StoreWriteError):
            run.log(0, {"loss": 5.0, "other": 6.0})
        disk.arm(0, "full")

    scalars = open_run(run.path).scalars
    assert [scalars[name].values.tolist() for name in ("loss", "other")] == [[1.0], [2.0]]


def test_a_group_that_could_not_be_made_is_made_by_a_later_call(tmp_path: Path) -> None:
    spec = {"fc": FrameSpec((3,), "float32")}
    with Disk() as disk, create_run(tmp_path / "run.zarr") as run:
        run.log(0, {"loss": 1.0})
        refusing(disk, lambda: run.writer("weights", spec))
        run.writer("weights", spec).append(3, {"fc": np.ones(3, np.float32)})
        assert open_run(run.path).weights["fc"].steps.tolist() == [3]
        run._abandon_after_fork()  # killed before anything was published in time

    create_run(run.path, if_exists="resume").close()
    assert open_run(run.path).weights["fc"].steps.tolist() == [3]


def test_no_row_is_acknowledged_whose_layer_is_described_nowhere(tmp_path: Path) -> None:
    late = {"late": FrameSpec((3,), "float32")}
    frame = {"late": np.ones(3, np.float32)}
    with Disk() as disk, create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", {"fc": FrameSpec((3,), "float32")})
        disk.arm(1, "full")
        for _ in range(8):  # the array is made, and its description is refused
            with pytest.raises(StoreWriteError):
                run.writer("weights", late)
            disk.arm(disk.count + 1, "full")
            if (run.path / "weights" / "late" / "zarr.json").exists():
                break
        disk.arm(0, "full")
        run.writer("weights", late)
        writer.append(0, frame)
        assert open_run(run.path).weights["late"].frame(0).tolist() == [1, 1, 1]
        run._abandon_after_fork()


def test_closing_seals_what_it_can_when_one_file_is_refused(tmp_path: Path) -> None:
    specs = {name: FrameSpec((1000,), "float32") for name in "abcd"}
    with Disk() as disk:
        run = create_run(tmp_path / "run.zarr")
        run.writer("weights", specs).append(0, {n: np.ones(1000, np.float32) for n in specs})
        run.publish()
        disk.arm(7, "full")  # behind two zarr.json: the first shard
        with pytest.raises(StoreWriteError):
            run.close()

    sizes = [(run.path / "weights" / name / "c.0.0").stat().st_size for name in specs]
    assert sum(size < 10_000 for size in sizes) == 3


def test_closing_tries_again_to_publish_when_sealing_gave_room_back(tmp_path: Path) -> None:
    with Disk() as disk:
        run = create_run(tmp_path / "run.zarr")
        run.log(0, {"loss": 1.0})
        disk.arm(2, "full")
        run.close()

    assert open_run(run.path).status().state == "finished"


def test_a_file_system_that_gives_back_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = _files.pwrite
    monkeypatch.setattr(_files, "pwrite", lambda fd, data, at: write(fd, data, at & ~4095))

    with pytest.raises(StoreError, match="does not give back what is written in the middle"):
        create_run(tmp_path / "run.zarr")
    monkeypatch.undo()
    with create_run(tmp_path / "run.zarr") as run:
        run.log(0, {"loss": 1.0})


def test_on_a_network_data_reach_the_server_before_anything_refers_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().parent.name)

    monkeypatch.setattr(_files, "sync", sync)
    spec = {"fc": FrameSpec((3,), "float32")}
    frame = {"fc": np.ones(3, np.float32)}
    for name, network, expected in (
        ("local", False, []),
        ("far", True, ["fc", "samples", "wall_time", "step"]),
    ):
        monkeypatch.setattr(_files, "on_network", lambda path, network=network: network)
        with create_run(tmp_path / name) as run:
            writer = run.writer("weights", spec)
            synced.clear()
            writer.append(0, frame)
            assert synced == expected


def fits(writer: KindWriter, step: int) -> bool:
    try:
        writer.append(step, {"a": np.full(250_000, step, np.float32)})
    except StoreWriteError as error:
        return error.errno != errno.ENOSPC
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full_loses_no_committed_row(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], check=False
    )
    if made.returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        spec = {"a": FrameSpec((250_000,), "float32")}
        ballast = mount / "ballast"
        ballast.write_bytes(b"x" * (2 << 20))
        run = create_run(mount / "run.zarr")
        writer = run.writer("weights", spec)
        done = []
        for step in range(10):
            if step == 9 or not fits(writer, step):
                break
            done.append(step)
        assert 1 <= len(done) < 9
        assert open_run(mount / "run.zarr").weights["a"].steps.tolist() == done
        ballast.unlink()
        writer.append(50, {"a": np.full(250_000, 50, np.float32)})
        run.close()
        strip = open_run(mount / "run.zarr").weights["a"]
        assert strip.steps.tolist() == [*done, 50]
        np.testing.assert_array_equal(strip.read()[:, 7], [*done, 50])
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
