"""A real SLURM: `scripts/slurm test` starts one of a single node and runs these."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from filmstrip.render._image import digest_of
from filmstrip.store import FrameSpec, create_run

LAYER = "conv1"
STEPS = 200
COMMAND = (sys.executable, "-m", "filmstrip.render.cli", "grid")


def _why_not() -> str:
    whose = "" if os.geteuid() == 0 else ", and this is not root, as which scripts/slurm starts one"
    if shutil.which("sbatch") is None:
        return f"there is no SLURM here (scripts/slurm says which packages it needs){whose}"
    answer = subprocess.run(["sinfo"], capture_output=True, text=True, check=False)
    if answer.returncode:
        return f"no SLURM answers{whose or '; scripts/slurm test starts one'}"
    return ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "SLURM is here")


@pytest.fixture(autouse=True)
def _jobs_find_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a run of 200 frames."""
    path = tmp_path_factory.mktemp("long") / "run.zarr"
    frame = np.random.default_rng(0).random((1, 64, 28, 28), np.float32)
    with create_run(path) as run:
        spec = FrameSpec(frame.shape, "float32", layout="NCHW")
        writer = run.writer("activations", {LAYER: spec})
        for step in range(STEPS):
            writer.append(step, {LAYER: frame})
    return path


def start(path: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command that draws 200 slow pictures in two jobs."""
    return subprocess.Popen(
        [*COMMAND, str(path), "--step", "all", "-o", str(out), "--slurm", "--workers", "2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def drawn(out: Path, form: str) -> list[Path]:
    return list(out.rglob(f"grid*.{form}"))


def running() -> list[str]:
    """Return the jobs that have not ended."""
    words = ["squeue", "--noheader", "--format=%i", "--name=filmstrip", "--states=PD,R"]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    return sorted(answer.stdout.split(), key=int)


def none_are_left() -> bool:
    deadline = time.monotonic() + 90
    while running() and time.monotonic() < deadline:
        time.sleep(0.5)
    return not running()


def wait_for(process: subprocess.Popen[str], out: Path, form: str) -> None:
    while process.poll() is None and not drawn(out, form):
        time.sleep(0.05)


def test_200_grids_over_two_jobs(long_run: Path, tmp_path: Path) -> None:
    process = start(long_run, tmp_path)
    stdout, stderr = process.communicate(timeout=200)

    assert process.returncode == 0, stderr
    assert stdout.startswith(f"drew {STEPS} pictures"), stdout
    assert len(list((tmp_path / "slurm").iterdir())) == 2
    assert all(map(digest_of, drawn(tmp_path, "png")))
    assert len(drawn(tmp_path, "png")) == STEPS
    assert none_are_left()


def test_a_job_that_is_cancelled_costs_nothing(long_run: Path, tmp_path: Path) -> None:
    process = start(long_run, tmp_path, "--format", "svg")
    wait_for(process, tmp_path, "svg")
    subprocess.run(["scancel", running()[0]], check=True)
    stdout, stderr = process.communicate(timeout=280)

    assert process.returncode == 0, stderr
    assert stdout.startswith(f"drew {STEPS} pictures"), stdout
    assert len(drawn(tmp_path, "svg")) == STEPS
    assert all(map(digest_of, drawn(tmp_path, "svg")))
    assert none_are_left()


def test_jobs_of_a_driver_that_was_killed_end_and_the_next_draws_the_rest(
    long_run: Path, tmp_path: Path
) -> None:
    process = start(long_run, tmp_path, "--format", "svg")
    wait_for(process, tmp_path, "svg")
    process.kill()
    process.communicate()

    assert none_are_left()
    before = sum(bool(digest_of(path)) for path in drawn(tmp_path, "svg"))
    assert 0 < before < STEPS
    again = start(long_run, tmp_path, "--format", "svg")
    stdout, stderr = again.communicate(timeout=280)
    assert stdout.startswith(f"drew {STEPS - before} pictures, kept {before}"), stderr


def test_ctrl_c_cancels_the_jobs(long_run: Path, tmp_path: Path) -> None:
    process = start(long_run, tmp_path, "--format", "svg")
    wait_for(process, tmp_path, "svg")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "Traceback" not in stderr
    assert none_are_left()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "none"], "SLURM refuses the job"),
        (["--setup", "exit 3"], "all jobs ended before they drew anything"),
    ],
)
def test_jobs_that_cannot_run_are_one_line(
    words: list[str], message: str, long_run: Path, tmp_path: Path
) -> None:
    process = start(long_run, tmp_path, "--quiet", *words)
    stdout, stderr = process.communicate(timeout=100)

    assert process.returncode == 1
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert message in stderr
    assert none_are_left()


def test_an_array_draws_a_part_each(long_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*COMMAND, str(long_run), "--step", "all", "-o", str(out), "--part", "array", "-j", "1"]
    script = tmp_path / "array.sh"
    script.write_text("#!/bin/sh\n" + " ".join(f"'{word}'" for word in words) + "\n")
    log = tmp_path / "%a.log"
    submit = ["sbatch", "--wait", "--array=0-3", f"--output={log}", str(script)]
    subprocess.run(submit, check=True, capture_output=True, timeout=200)

    for task in range(4):
        assert (tmp_path / f"{task}.log").read_text().startswith("drew 50 pictures, kept 0")
    assert len(drawn(out, "png")) == STEPS
    assert all(map(digest_of, drawn(out, "png")))
    assert len(json.loads((out / "manifest.json").read_text())["pictures"]) == STEPS
