"""Measure how drawing scales from one worker to two, and what memory 20,000 grids take.

    python tests/benchmarks/places.py

Wall time, since that is what workers are for, as ratios of one place to itself. Workers are warm:
each has drawn before it is measured. A machine with fewer than two free CPUs shows nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / portion) for portion in ("render", "store") if (ROOT / portion).is_dir()]
os.environ["MPLBACKEND"] = "agg"

import numpy as np  # noqa: E402
from measure import Figure, interleaved, report  # noqa: E402

from filmstrip.render._dask import scheduler  # noqa: E402
from filmstrip.render._driver import drive  # noqa: E402
from filmstrip.render._executors import Place, processes, threads  # noqa: E402
from filmstrip.render._plan import grid_jobs  # noqa: E402
from filmstrip.render._source import RunSource  # noqa: E402
from filmstrip.render._spec import GridSpec  # noqa: E402
from filmstrip.store import FrameSpec, create_run, open_run  # noqa: E402

GRIDS, MANY = 2_000, 20_000
ROUNDS = 2
GROWTH = 1.15  # of a worker's memory, in the last four fifths of 20,000 grids
PAGE = os.sysconf("SC_PAGE_SIZE")


def write(path: Path, steps: int, shape: tuple[int, ...]) -> None:
    """Write a run of one layer."""
    frame = np.random.default_rng(0).random((1, *shape), np.float32)
    with create_run(path) as run:
        writer = run.writer(
            "activations", {"conv1": FrameSpec(frame.shape, "float32", layout="NCHW")}
        )
        for step in range(steps):
            writer.append(step, {"conv1": frame})


def draw(path: Path, out: Path, place: Place, steps: str) -> float:
    """Draw grids; return the seconds."""
    source = RunSource(open_run(path))
    jobs = grid_jobs(source, GridSpec(), layers=(), steps=steps, samples=None)
    return drive(jobs, [], runs=(str(path),), out=out, place=place).seconds


@contextmanager
def local_cluster(workers: int) -> Iterator[Place]:
    """Start Dask's own cluster on this machine, a process a worker."""
    from distributed import LocalCluster

    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        scheduler(cluster.scheduler_address) as place,
    ):
        yield place


PLACES: dict[str, Callable[[int], AbstractContextManager[Place]]] = {
    "threads": threads,
    "processes": processes,
    "LocalCluster": local_cluster,
}


def scaling(folder: Path) -> list[Figure]:
    """Time every place with one worker and with two."""
    path, out = folder / "run.zarr", folder / "out"
    out.mkdir()
    write(path, GRIDS, (64, 28, 28))

    def timed(name: str, workers: int) -> Callable[[], float]:
        def action() -> float:
            with PLACES[name](workers) as place:
                draw(path, out, place, "0:64")
                return draw(path, out, place, "all")

        return action

    seconds = interleaved(
        {f"{name} {workers}": timed(name, workers) for name in PLACES for workers in (1, 2)}, ROUNDS
    )
    figures = []
    for name in PLACES:
        one, two = seconds[f"{name} 1"], seconds[f"{name} 2"]
        figures.append(Figure(f"{name}, 2 workers for 1", one / two))
        figures.append(Figure(f"{name}, 2 workers", GRIDS / two, unit="grids/s"))
        figures.append(Figure(f"{name}, 2 workers, beside 2 threads", seconds["threads 2"] / two))
    return figures


def memory(folder: Path) -> list[Figure]:
    """Draw many grids in two processes, watching them."""
    path = folder / "long.zarr"
    write(path, MANY, (16, 7, 7))
    command = [sys.executable, "-m", "filmstrip.render.cli", "grid", str(path), "--step", "all"]
    command += ["-o", str(folder / "many"), "--dpi", "60", "--processes", "-j", "2", "--quiet"]
    process = subprocess.Popen(command)
    start, seen = time.monotonic(), []
    while process.poll() is None:
        time.sleep(0.5)
        resident = max(map(megabytes, children(process.pid)), default=0.0)
        seen.append((time.monotonic() - start, resident, megabytes(process.pid)))
    assert process.returncode == 0
    end = seen[-1][0]
    early = max(worker for at, worker, _ in seen if at <= end * 0.2)
    late = max(worker for at, worker, _ in seen if at > end * 0.2)
    return [
        Figure(f"a worker's memory, the rest of {MANY:,} for the first", late / early, goal=GROWTH),
        Figure("a worker's memory", max(early, late), unit="MB"),
        Figure("the driver's memory", max(driver for _, _, driver in seen), unit="MB"),
    ]


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    words = ["ps", "-o", "pid=", "--ppid", str(pid)]
    return [int(word) for word in subprocess.run(words, capture_output=True).stdout.split()]


def megabytes(pid: int) -> float:
    """Return the resident memory of a process, 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6
    except (OSError, IndexError):
        return 0.0


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        figures = scaling(Path(folder)) + memory(Path(folder))
    return report("Where pictures are drawn", figures)


if __name__ == "__main__":
    sys.exit(main())
