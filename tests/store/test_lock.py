"""Who may write: locks, take-overs, writers that wake up, files that somebody else changed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import (
    FrameSpec,
    RunLockedError,
    StoreError,
    _files,
    _lock,
    _publish,
    create_run,
    open_run,
)
from filmstrip.store._lock import WriterLock

SPEC = {"fc": FrameSpec((1000,), "float32")}

# A process that appends whenever it is told to, and says what came of it.
_WRITER = """
import sys, logging
import numpy as np
from filmstrip.store import FrameSpec, StoreError, _files, _lock, create_run
logging.basicConfig(stream=sys.stdout, format="logged %(message)s", level=logging.ERROR)
_lock.PATIENCE = 1.5
if sys.argv[2] == "unsupported":
    _files.lock = lambda fd: False
def say(*words): print(*words, flush=True)
try:
    run = create_run(sys.argv[1], if_exists="resume" if len(sys.argv) > 3 else "auto")
    writer = run.writer("weights", {"fc": FrameSpec((1000,), "float32")})
    say("open")
except StoreError as error:
    say("refused", error)
    sys.exit()
for line in sys.stdin:
    try:
        if line.strip() == "close": run.close()
        else: writer.append(int(line), {"fc": np.full(1000, int(line), np.float32)})
        say("done")
    except StoreError as error:
        say(type(error).__name__, error)
"""


class Writer:
    """Another process that writes."""

    def __init__(self, path: Path, locks: str = "supported", *more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), locks, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.said()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Writer]]:
    started: list[Writer] = []

    def start(*arguments: object) -> Writer:
        started.append(Writer(*arguments))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for writer in started:
        writer.end()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks, and people with little patience."""
    monkeypatch.setattr(_files, "lock", lambda fd: False)
    monkeypatch.setattr(_lock, "PATIENCE", 0.6)


def everything(path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(f.relative_to(path)): (f.stat().st_mtime_ns, f.read_bytes())
        for f in path.rglob("*")
        if f.is_file() and f.name != "_lock"
    }


def test_a_writer_that_slept_while_another_took_over_writes_nothing_more(
    tmp_path: Path, start: Callable[..., Writer]
) -> None:
    path = tmp_path / "run.zarr"
    old = start(path, "unsupported")
    assert [old.said(), old.ask("0"), old.ask("1")] == ["open", "done", "done"]
    old.signal(signal.SIGSTOP)
    new = start(path, "unsupported", "resume")
    assert [new.said(), new.ask("2"), new.ask("3"), new.ask("close")] == ["open"] + 3 * ["done"]
    before = everything(path)
    old.signal(signal.SIGCONT)

    logged, answer = old.ask("4"), old.said()
    assert logged.startswith(f"logged {path} is being written by process {new.process.pid} on ")
    assert answer.startswith("RunLockedError")
    assert "which took it over from this process" in answer
    assert old.ask("5").startswith("RunLockedError")
    old.ask("close")
    assert everything(path) == before
    assert open_run(path).weights["fc"].read()[:, 7].tolist() == [0, 1, 2, 3]


def test_a_stopped_writer_still_holds_a_lock_of_the_kernel(
    tmp_path: Path, start: Callable[..., Writer]
) -> None:
    path = tmp_path / "run.zarr"
    old = start(path)
    assert old.said() == "open"
    old.signal(signal.SIGSTOP)

    refused = start(path, "supported", "resume").said()
    assert refused.startswith("refused")
    assert f"process {old.process.pid} on" in refused
    old.signal(signal.SIGCONT)
    assert old.ask("0") == "done"


def test_a_living_writer_is_not_taken_over_where_there_are_no_locks(
    tmp_path: Path, start: Callable[..., Writer]
) -> None:
    old = start(tmp_path / "run.zarr", "unsupported")
    assert old.said() == "open"

    refused = start(tmp_path / "run.zarr", "unsupported", "resume").said()
    assert f"is being written by process {old.process.pid} on" in refused
    assert old.ask("0") == "done"


def test_a_process_that_is_gone_is_not_waited_for(
    tmp_path: Path, start: Callable[..., Writer]
) -> None:
    path = tmp_path / "run.zarr"
    old = start(path, "unsupported")
    assert [old.said(), old.ask("0")] == ["open", "done"]
    old.end()

    new = start(path, "unsupported", "resume")
    assert [new.said(), new.ask("1"), new.ask("close")] == ["open", "done", "done"]
    assert open_run(path).weights["fc"].steps.tolist() == [0, 1]


@pytest.mark.usefixtures("without_locks")
def test_a_run_that_was_closed_is_open_to_all_at_once(tmp_path: Path) -> None:
    for attempt in range(3):
        began = time.monotonic()
        with create_run(tmp_path / "run.zarr", if_exists="resume" if attempt else "auto") as run:
            run.log(attempt, {"loss": 1.0})
        assert time.monotonic() - began < _lock.PATIENCE


@pytest.mark.usefixtures("without_locks")
def test_another_host_is_waited_for_until_its_counter_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = _lock._here()
    monkeypatch.setattr(_lock, "_here", lambda: {**here, "host": "far", "boot": "another"})
    lock = WriterLock(tmp_path)
    monkeypatch.setattr(_lock, "_here", lambda: here)
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on far"):
        WriterLock(tmp_path)
    lock.forget()  # it dies

    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        other = WriterLock(tmp_path)
    assert time.monotonic() - began >= _lock.PATIENCE
    assert "on far, which gave none" in caplog.text
    assert other.held()
    other.release()


@pytest.mark.usefixtures("without_locks")
def test_of_many_who_come_at_once_one_gets_the_lock(tmp_path: Path) -> None:
    got: list[WriterLock] = []
    refused: list[str] = []
    gate = threading.Barrier(6)

    def come() -> None:
        gate.wait()
        try:
            got.append(WriterLock(tmp_path))
        except RunLockedError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [lock.held() for lock in got].count(True) == 1
    assert len(got) + len(refused) == 6
    assert list(tmp_path.iterdir()) == [tmp_path / "_lock"]
    for lock in got:
        lock.release()


def test_a_lock_tells_who_holds_it_and_counts(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        first = json.loads((run.path / "_lock").read_bytes())
        run.log(0, {"loss": 1.0})
        run.publish()
        then = json.loads((run.path / "_lock").read_bytes())

    assert first["pid"] == os.getpid()
    assert set(first) >= {"nonce", "host", "boot", "pid", "start", "counter"}
    assert then["counter"] > first["counter"]
    assert json.loads((run.path / "_lock").read_bytes())["released"]


def record(path: Path) -> Callable[[int], None]:
    run = create_run(path)
    writer = run.writer("weights", SPEC)
    writer.append(0, {"fc": np.zeros(1000, np.float32)})
    run.publish()

    def again(step: int) -> None:
        writer.append(step, {"fc": np.full(1000, step, np.float32)})
        run.publish()

    return again


@pytest.mark.parametrize(
    "name", ["zarr.json", "weights/zarr.json", "weights/fc/c.0.0", "weights/step/c.0"]
)
@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_writer_stops_when_somebody_changes_its_files(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.zarr"
    again = record(path)
    if how == "replaced":
        shutil.copy(path / name, tmp_path / "copy")
        (tmp_path / "copy").rename(path / name)
    else:
        (path / name).unlink()

    with pytest.raises(StoreError, match=rf"{name} was replaced or removed while .* was being"):
        again(1)
    before = everything(path)
    with pytest.raises(StoreError, match="was replaced or removed"):
        again(2)
    assert everything(path) == before
    assert caplog.text.count("nothing more is written") == 1


def test_a_file_closed_to_spare_descriptors_is_known_again(tmp_path: Path) -> None:
    descriptors = _files.Descriptors(limit=1)
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
        descriptors.get(str(tmp_path / name))
    (tmp_path / "c").write_bytes(b"y")
    (tmp_path / "c").rename(tmp_path / "a")

    with pytest.raises(OSError, match=str(tmp_path / "a")):
        descriptors.get(str(tmp_path / "a"))
    assert descriptors.replaced() == str(tmp_path / "a")


def test_a_run_that_was_moved_away_is_written_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = record(tmp_path / "run.zarr")
    (tmp_path / "run.zarr").rename(tmp_path / "moved.zarr")
    monkeypatch.setattr(_publish, "LOOKS", 0.0)

    with pytest.raises(StoreError, match="was moved or removed while it was being written"):
        again(1)
    assert open_run(tmp_path / "moved.zarr").weights["fc"].steps.tolist() == [0]


def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run.zarr")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

    assert "released" not in json.loads((run.path / "_lock").read_bytes())
    with pytest.raises(RunLockedError):
        create_run(run.path, if_exists="resume")
    run.close()


def test_a_local_disk_is_told_from_a_network(tmp_path: Path) -> None:
    assert not _files.on_network(tmp_path)
    with pytest.raises(FileNotFoundError):
        _files.on_network(tmp_path / "nothing")


def test_a_row_in_a_signal_handler_does_not_disturb_the_row_it_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", SPEC)
        write = _files.pwrite

        def interrupted(*arguments: object) -> None:
            monkeypatch.setattr(_files, "pwrite", write)
            try:
                writer.append(0, {"fc": np.full(1000, 9, np.float32)})
            except StoreError as error:
                refused.append(str(error))
            write(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(_files, "pwrite", interrupted)
        writer.append(0, {"fc": np.zeros(1000, np.float32)})

    assert "in the middle of a row" in refused[0]
    assert open_run(run.path).weights["fc"].frame(0).max() == 0


def test_rows_written_while_the_interpreter_shuts_down_are_published(tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "def late():\n"
        "    run.log(5, {'loss': 5.0})\n"
        "    run.log(6, {'loss': 6.0})\n"
        "import filmstrip.store as store\n"
        "run = store.create_run(sys.argv[1])\n"
        "run.log(0, {'loss': 0.0}); run.publish()\n"
        "atexit.register(late)\n"
    )
    arguments = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "run.zarr")]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr

    assert told == ""
    scalars = open_run(tmp_path / "run.zarr").scalars["loss"]
    assert scalars.steps.tolist() == [0, 5, 6]
    assert open_run(tmp_path / "run.zarr").status().state == "finished"


def test_a_worker_of_multiprocessing_that_does_not_close_its_run_leaves_it_closed(
    tmp_path: Path,
) -> None:
    code = (
        "import multiprocessing, sys\n"
        "def work(path):\n"
        "    from filmstrip.store import create_run\n"
        "    create_run(path).log(3, {'loss': 1.0})\n"
        "worker = multiprocessing.get_context('fork').Process(target=work, args=sys.argv[1:])\n"
        "worker.start(); worker.join(); sys.exit(worker.exitcode)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.zarr")], check=True)

    assert open_run(tmp_path / "run.zarr").status().state == "finished"


def test_what_killed_processes_left_half_made_is_swept_at_the_next_attach(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as run:
        run.log(0, {"loss": 1.0})
    for name in (
        "zarr.json.9.partial",
        "scalars/zarr.json.9.partial",
        "scalars/step/c.0.9.partial",
    ):
        (path / name).touch()

    create_run(path, if_exists="resume").close()
    assert list(path.rglob("*.partial")) == []
