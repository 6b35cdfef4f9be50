"""Where batches run: processes, and what becomes of their pictures when they are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from render.killing import deadly, imported, variable
from typer.testing import CliRunner

from filmstrip.render import SpecError
from filmstrip.render._batch import Batch, Job, Part, part_of
from filmstrip.render._draw import draw_batch
from filmstrip.render._driver import drive, split
from filmstrip.render._executors import Place, processes, threads
from filmstrip.render._manifest import Report
from filmstrip.render._plan import grid_jobs
from filmstrip.render._progress import Lines
from filmstrip.render._source import RunSource
from filmstrip.render._spec import GridSpec
from filmstrip.render.cli import app
from filmstrip.store import FrameSpec, create_run, open_run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

COMMAND = (sys.executable, "-m", "filmstrip.render.cli")
LAYER = "conv1"


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a run of 200 frames."""
    path = tmp_path_factory.mktemp("long") / "run.zarr"
    frame = np.random.default_rng(0).random((1, 64, 28, 28), np.float32)
    with create_run(path) as run:
        spec = FrameSpec(frame.shape, "float32", layout="NCHW")
        writer = run.writer("activations", {LAYER: spec})
        for step in range(200):
            writer.append(step, {LAYER: frame})
    return path


def grids(path: Path, steps: str) -> list[Job]:
    source = RunSource(open_run(path))
    return grid_jobs(source, GridSpec(dpi=40), layers=[LAYER], steps=steps, samples=None)


def draw(path: Path, out: Path, place: Place, steps: str = "0:40") -> Report:
    out.mkdir(exist_ok=True)
    return drive(grids(path, steps), [], runs=(str(path),), out=out, place=place)


def steps_of(report: Report) -> list[int]:
    return sorted(int(one.job.spec.step) for one in report.drawn)  # type: ignore[union-attr]


def pictures(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("grid*") if p.is_file()}


def test_processes_draw_what_threads_draw(long_run: Path, tmp_path: Path) -> None:
    places: dict[str, AbstractContextManager[Place]] = {"a": threads(2), "b": processes(2)}
    for name, context in places.items():
        with context as place:
            report = draw(long_run, tmp_path / name, place)
        assert steps_of(report) == list(range(40))

    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_a_picture_that_kills_its_worker_is_named_and_the_others_are_drawn(
    long_run: Path, tmp_path: Path
) -> None:
    with processes(2) as place:
        report = draw(long_run, tmp_path, deadly(place, 13), "0:60")

    assert steps_of(report) == [step for step in range(60) if step != 13]
    assert [one.job.path for one in report.failed] == [
        f"activations/{LAYER}/grid-00000013-dpi40.png"
    ]
    assert "its worker was killed" in report.failed[0].error
    assert len(json.loads((tmp_path / "manifest.json").read_text())["errors"]) == 1
    for name in pictures(tmp_path):
        Image.open(tmp_path / name).verify()


def test_a_picture_is_not_blamed_for_one_worker_that_was_lost_while_it_drew_alone(
    long_run: Path, tmp_path: Path
) -> None:
    with processes(2) as place:
        report = draw(long_run, tmp_path, deadly(place, 13, times=2))

    assert report.failed == []
    assert steps_of(report) == list(range(40))


def test_workers_of_another_version_are_told_apart(long_run: Path, tmp_path: Path) -> None:
    batch = Batch((str(long_run),), str(tmp_path), tuple(grids(long_run, "0:2")), version="0.0.7")

    (drawn,) = draw_batch(batch)

    assert drawn.fatal
    assert "and the command 0.0.7; install the same" in drawn.error
    assert pictures(tmp_path) == {}


def test_pictures_that_all_kill_are_given_up(long_run: Path, tmp_path: Path) -> None:
    with processes(1) as place:
        report = draw(long_run, tmp_path, deadly(place, *range(30)), "0:30")

    tried = [one for one in report.failed if "was killed" in one.error]
    assert report.drawn == []
    assert len(tried) <= 8
    assert len(report.failed) == 30
    assert "8 workers in a row" in report.failed[-1].error


def test_workers_have_no_pyplot_whatever_the_environment(
    long_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://no_such_inline.backend_inline")
    monkeypatch.setenv("DISPLAY", ":123")

    with processes(1) as place:
        report = draw(long_run, tmp_path, place, "0:3")
        submit = place.executor.submit

        assert steps_of(report) == [0, 1, 2]
        assert submit(variable, "MPLBACKEND").result() == "agg"
        assert submit(imported, "matplotlib.figure").result()
        assert not submit(imported, "matplotlib.pyplot").result()
    assert os.environ["MPLBACKEND"] == "module://no_such_inline.backend_inline"


def start(path: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command that draws 200 pictures, and wait until it has drawn one."""
    command = [*COMMAND, "grid", str(path), "--step", "all", "-o", str(out), *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not pictures(out):
        time.sleep(0.01)
    return process


def children(pid: int) -> set[int]:
    """Return the processes that a process has started."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return set(map(int, found.stdout.split()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_driver_that_is_killed_leaves_no_worker_and_the_next_draws_the_rest(
    long_run: Path, tmp_path: Path
) -> None:
    process = start(long_run, tmp_path, "--processes", "-j", "2")
    workers = children(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert len(workers) >= 2
    assert not any(map(alive, workers))
    before = len([p for p in pictures(tmp_path) if not p.endswith("partial")])
    assert 0 < before < 200
    words = ["grid", str(long_run), "--step", "all", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.stdout.startswith(f"drew {200 - before} pictures, kept {before}"), result.output


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_group_ends_with_whole_pictures_and_no_traceback(
    sent: signal.Signals, code: int, long_run: Path, tmp_path: Path
) -> None:
    process = start(long_run, tmp_path, "--processes", "-j", "2")
    os.killpg(process.pid, sent)  # as a terminal does, and SLURM
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == code
    assert "Traceback" not in stderr
    drawn = pictures(tmp_path)
    listed = json.loads((tmp_path / "manifest.json").read_text())["pictures"]
    assert {entry["path"] for entry in listed} == set(drawn)
    assert 0 < len(drawn) < 200
    for name in drawn:
        Image.open(tmp_path / name).verify()


@st.composite
def selections(draw: st.DrawFn) -> list[Job]:
    """Jobs of several layers, each with some steps."""
    counts = draw(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    return [
        Job(GridSpec(layer=str(layer), step=step), f"{layer}/{step}.png")
        for layer, count in enumerate(counts)
        for step in range(count)
    ]


@given(jobs=selections(), count=st.integers(1, 9))
def test_parts_are_disjoint_complete_and_even(jobs: list[Job], count: int) -> None:
    parts = [part_of(jobs, Part(i, count)) for i in range(1, count + 1)]

    assert sorted(job.path for part in parts for job in part) == sorted(job.path for job in jobs)
    layers = {job.spec.layer for job in jobs}  # type: ignore[union-attr]
    for layer in layers:
        sizes = [sum(job.spec.layer == layer for job in part) for part in parts]  # type: ignore[union-attr]
        assert max(sizes) - min(sizes) <= 1


@given(jobs=selections(), count=st.integers(1, 9))
def test_a_picture_stays_in_its_part_when_the_run_goes_on(jobs: list[Job], count: int) -> None:
    layers = list(dict.fromkeys(job.spec.layer for job in jobs))  # type: ignore[union-attr]
    later = [
        job
        for layer in layers
        for job in (
            *(job for job in jobs if job.spec.layer == layer),  # type: ignore[union-attr]
            Job(GridSpec(layer=layer, step=99), f"{layer}/99.png"),
        )
    ]

    for i in range(1, count + 1):
        assert set(part_of(jobs, Part(i, count))) <= set(part_of(later, Part(i, count)))


def test_what_is_asked_for_twice_is_in_one_part(long_run: Path, tmp_path: Path) -> None:
    jobs = grids(long_run, "0:10")
    source = RunSource(open_run(long_run))

    parts = [split(jobs + jobs, [source], tmp_path, "digest", Part(i, 3))[0] for i in (1, 2, 3)]

    assert sorted(job.path for part in parts for job in part) == [job.path for job in jobs]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "", "array"])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--part"):
        Part.read(text, {})


@pytest.mark.parametrize(
    ("task", "first", "last", "count", "part"),
    [
        (0, 0, 3, 4, Part(1, 4)),
        (3, 0, 3, 4, Part(4, 4)),
        (6, 2, 6, 3, Part(3, 3)),
        (7, 7, 7, 1, Part(1, 1)),
    ],
)
def test_a_task_of_an_array_knows_its_part(
    task: int, first: int, last: int, count: int, part: Part
) -> None:
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}

    assert Part.read("array", environment) == part


def test_an_array_with_gaps_is_refused() -> None:
    values = {"ID": 2, "MIN": 1, "MAX": 9, "COUNT": 3}
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}

    with pytest.raises(SpecError, match="without gaps"):
        Part.read("array", environment)


def test_parts_that_are_drawn_separately_make_one_folder(long_run: Path, tmp_path: Path) -> None:
    for part in ("1/2", "2/2"):
        words = ["grid", str(long_run), "--step", "0:9", "-o", str(tmp_path), "--part", part]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output

    assert len(pictures(tmp_path)) == 9
    assert len(json.loads((tmp_path / "manifest.json").read_text())["pictures"]) == 9


def test_a_log_tells_the_rate_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = [0.0]
    lines = Lines(clock=lambda: seconds[-1])
    lines.start(100)
    for then, count in ((60.0, 0), (61.0, 10), (62.0, 10), (66.0, 30), (67.0, 0), (130.0, 0)):
        seconds.append(then)
        lines.advance(count)

    assert capsys.readouterr().err.splitlines() == [
        "filmstrip: 0 of 100 pictures",
        "filmstrip: 50 of 100 pictures, 8 a second, 0:06 left",
        "filmstrip: 50 of 100 pictures, 0.58 a second, 1:26 left",
    ]


def test_what_is_waited_for_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for text in ("waiting", "waiting", "", "waiting"):
        lines.note(text)

    assert capsys.readouterr().err == "filmstrip: waiting\n" * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--processes --slurm", "--processes and --slurm exclude each other"),
        ("--scheduler tcp://a:1 --slurm", "--scheduler and --slurm exclude each other"),
        ("--slurm -j 2", "--jobs is for this machine"),
        ("--workers 3", "--workers is about SLURM jobs; add --slurm"),
        ("--slurm-script", "--slurm-script is about SLURM jobs; add --slurm"),
        ("--slurm --mem lots", "--mem 'lots' is not a size"),
        ("--part 3/2", "--part '3/2' is not I/N"),
    ],
)
def test_places_that_exclude_each_other_are_a_mistake_of_usage(
    words: str, message: str, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    result = CliRunner().invoke(app, ["grid", str(run_path), *words.split()])

    assert result.exit_code == 2, result.output
    assert message in re.sub(r"\s+", " ", result.stderr)
