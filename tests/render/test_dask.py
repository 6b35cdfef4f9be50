"""Workers of a Dask scheduler, and what becomes of pictures when they are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from render.killing import deadly, imported, variable

from filmstrip.render import ExecutorError
from filmstrip.render._batch import Batch, Job
from filmstrip.render._dask import scheduler
from filmstrip.render._driver import drive
from filmstrip.render._executors import Place, threads
from filmstrip.render._manifest import Report
from filmstrip.render._plan import grid_jobs
from filmstrip.render._source import RunSource
from filmstrip.render._spec import GridSpec
from filmstrip.render._task import run
from filmstrip.store import FrameSpec, create_run, open_run

LAYER = "conv1"
STEPS = 120
LOCAL = ("--host", "127.0.0.1", "--no-dashboard")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a run of 120 frames."""
    path = tmp_path_factory.mktemp("long") / "run.zarr"
    frame = np.random.default_rng(0).random((1, 64, 28, 28), np.float32)
    with create_run(path) as run:
        spec = FrameSpec(frame.shape, "float32", layout="NCHW")
        writer = run.writer("activations", {LAYER: spec})
        for step in range(STEPS):
            writer.append(step, {LAYER: frame})
    return path


class Cluster:
    """A ``dask scheduler`` process and ``dask worker`` processes, in a folder of their own.

    Parameters
    ----------
    folder : Path
        Where they run and log.
    workers : int
    preload : str
        A script that each worker runs first; none when empty.
    """

    def __init__(self, folder: Path, workers: int, preload: str = "") -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MPLBACKEND": "module://no_such_inline.backend_inline",
            "DISPLAY": ":123",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }
        self.scheduler = self._start("scheduler", "scheduler", *LOCAL, "--port", "0")
        self.address = self._address()
        first = ("--preload", preload) if preload else ()
        self.workers = [
            self._start(f"worker{i}", "worker", self.address, *LOCAL, "--nthreads", "1", *first)
            for i in range(workers)
        ]

    def _start(self, log: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def _address(self) -> str:
        while self.scheduler.poll() is None:
            found = re.search(r"tcp://[\d.]+:\d+", (self.folder / "scheduler.log").read_text())
            if found:
                return found[0]
            time.sleep(0.05)
        raise RuntimeError((self.folder / "scheduler.log").read_text())

    def stop(self) -> None:
        """End all of them."""
        for process in (*self.workers, self.scheduler):
            process.terminate()
        for process in (*self.workers, self.scheduler):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # a nanny that starts a worker anew hears nothing
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def cluster_in(folder: Path, workers: int = 2, preload: str = "") -> Iterator[Cluster]:
    cluster = Cluster(folder, workers, preload)
    try:
        yield cluster
    finally:
        cluster.stop()


def draw(path: Path, out: Path, place: Place, form: str = "png") -> Report:
    source = RunSource(open_run(path))
    spec = GridSpec(dpi=40, format=form)  # type: ignore[arg-type]
    jobs: list[Job] = grid_jobs(source, spec, layers=[LAYER], steps="all", samples=None)
    out.mkdir(exist_ok=True)
    return drive(jobs, [], runs=(str(path),), out=out, place=place)


def steps_of(report: Report) -> list[int]:
    return sorted(int(one.job.spec.step) for one in report.drawn)  # type: ignore[union-attr]


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("grid*.png")}


def test_workers_of_a_scheduler_draw_what_threads_draw(
    long_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with threads(2) as place:
        draw(long_run, tmp_path / "threads", place)
    monkeypatch.chdir(tmp_path)  # where workers are not
    (tmp_path / "elsewhere").mkdir()

    with cluster_in(tmp_path / "elsewhere") as cluster, scheduler(cluster.address) as place:
        report = draw(long_run, Path("dask"), place)
        submit = place.executor.submit

        assert steps_of(report) == list(range(STEPS))
        assert submit(variable, "MPLBACKEND").result() == "agg"
        assert submit(imported, "matplotlib.figure").result()
        assert not submit(imported, "matplotlib.pyplot").result()
    assert pictures(tmp_path / "dask") == pictures(tmp_path / "threads")


def test_a_local_cluster_draws_and_loses_only_the_picture_that_kills(
    long_run: Path, tmp_path: Path
) -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as local,
        scheduler(local.scheduler_address) as place,
    ):
        report = draw(long_run, tmp_path, deadly(place, 50))

    assert steps_of(report) == [step for step in range(STEPS) if step != 50]
    assert [one.job.spec.step for one in report.failed] == [50]  # type: ignore[union-attr]
    assert "its worker was killed (KilledWorker)" in report.failed[0].error


def test_a_worker_that_is_killed_costs_nothing(long_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "filmstrip.render.cli", "grid", str(long_run)]
    with cluster_in(tmp_path) as cluster:
        process = subprocess.Popen(
            [*command, "--step", "all", "-o", str(out), "--scheduler", cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not pictures(out):
            time.sleep(0.01)
        cluster.workers[0].kill()
        stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    assert stdout.startswith(f"drew {STEPS} pictures"), stdout
    assert "Traceback" not in stderr
    assert len(pictures(out)) == STEPS
    for path in out.rglob("*.png"):
        Image.open(path).verify()


def test_a_picture_that_kills_every_worker_is_named_and_costs_no_other(
    long_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "deadly.py").write_text(
        "from filmstrip.render import _task\n"
        "from render.killing import draw_or_die\n"
        "_task.run = lambda batch: draw_or_die(batch, {50})\n"
    )
    command = [sys.executable, "-m", "filmstrip.render.cli", "grid", str(long_run)]
    with cluster_in(tmp_path, preload="deadly.py") as cluster:
        done = subprocess.run(
            [*command, "--step", "all", "-o", str(out), "--scheduler", cluster.address],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(f"drew {STEPS - 1} pictures, kept 0")
    path = f"activations/{LAYER}/grid-00000050.png"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"filmstrip: {path}: its worker was killed (KilledWorker)")
    assert {*pictures(out)} == {f"grid-{i:08d}.png" for i in range(STEPS) if i != 50}
    (error,) = json.loads((out / "manifest.json").read_text())["errors"]
    assert error["path"] == path


def test_a_scheduler_that_is_killed_is_one_line(long_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "filmstrip.render.cli", "grid", str(long_run)]
    words = ["--step", "all", "--format", "svg", "-o", str(out)]
    with cluster_in(tmp_path) as cluster:
        process = subprocess.Popen(
            [*command, *words, "--scheduler", cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not list(out.rglob("grid*.svg")):
            time.sleep(0.01)
        cluster.scheduler.kill()
        _, stderr = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "the Dask scheduler is gone; what was drawn stays" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_workers_that_see_another_file_system_are_refused(long_run: Path, tmp_path: Path) -> None:
    jobs = (
        Job(GridSpec(layer=LAYER, step=0), "a.png"),
        Job(GridSpec(layer=LAYER, step=1), "b.png"),
    )

    (drawn,) = run(Batch((str(long_run),), str(tmp_path / "not-mounted"), jobs))

    assert drawn.fatal
    assert "does not see the output folder" in drawn.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [("tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127"), ("nonsense:/", "no address")],
)
def test_an_address_at_which_nothing_answers_is_one_line(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmstrip.render._dask._ANSWER_WITHIN", 1)

    with pytest.raises(ExecutorError, match=message) as caught, scheduler(address):
        pass
    assert "\n" not in str(caught.value)
