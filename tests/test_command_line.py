from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import FrameSpec, create_run


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    path = tmp_path / "run.zarr"
    with create_run(path, metadata={"model": "[bold]CNN"}, framework="pytorch") as run:
        writer = run.writer(
            "activations", {"conv1": FrameSpec((1, 4, 8, 8), "float32", layout="NCHW")}
        )
        for step in (0, 10, 20):
            writer.append(step, {"conv1": np.ones((1, 4, 8, 8), np.float32)})
            run.log(step, {"loss": 1.0})
    return path


def filmstrip(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "filmstrip.store.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_ls_lists_strips(run_path: Path) -> None:
    assert filmstrip("ls", run_path).splitlines() == [
        "activations  conv1  float32  1 × 4 × 8 × 8  3 steps",
        "scalars      loss   float64                 3 steps",
    ]
    assert filmstrip("ls", run_path, "con*").count("\n") == 1


def test_info_shows_the_run_as_a_tree(run_path: Path) -> None:
    shown = filmstrip("info", run_path)

    for part in (
        "finished, last step 20",
        "pytorch",
        "NCHW",
        "3: 0 … 20",
        "model = [bold]CNN",
        "loss",
    ):
        assert part in shown


def test_status_is_for_people_and_for_programs(run_path: Path) -> None:
    assert "finished, last step 20" in filmstrip("status", run_path)
    told = json.loads(filmstrip("status", "--json", run_path))
    assert (told["state"], told["last_step"], told["steps"]["activations"]) == ("finished", 20, 3)


def test_status_of_a_run_whose_process_died_is_stale(run_path: Path) -> None:
    code = (
        "import os; from filmstrip.store import create_run\n"
        f"run = create_run({str(run_path)!r}, if_exists='resume'); run.log(30, {{'loss': 1}})\n"
        "run.publish(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)

    done = subprocess.run(
        [sys.executable, "-m", "filmstrip.store.cli", "status", str(run_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "stopped, last step 30" in done.stdout


def test_lost_captures_make_a_run_degraded(run_path: Path) -> None:
    with create_run(run_path, if_exists="resume") as run:
        run.log_health(40, {"dropped": 2, "errors": 0})

    done = subprocess.run(
        [sys.executable, "-m", "filmstrip.store.cli", "status", str(run_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "lost: 2 dropped" in done.stdout


@pytest.mark.parametrize("command", ["ls", "info", "status"])
def test_mistakes_are_one_line_and_exit_code_1(
    command: str, run_path: Path, tmp_path: Path
) -> None:
    missing = filmstrip(command, tmp_path / "none.zarr", code=1)
    assert missing == f"filmstrip: there is no run at {tmp_path}/none.zarr\n"
    other = filmstrip(command, tmp_path, code=1)
    assert other == f"filmstrip: {tmp_path} is not a filmstrip run: it has no zarr.json\n"


def test_a_pattern_without_a_match_names_the_nearest_layers(run_path: Path) -> None:
    told = filmstrip("ls", run_path, "cnov1", code=1)

    assert told == "filmstrip: no layer of run.zarr matches 'cnov1'; nearest: conv1\n"


def test_usage_errors_exit_with_2(run_path: Path) -> None:
    assert "No such option" in filmstrip("ls", run_path, "--colour", code=2)
    assert "No such command" in filmstrip("draw", code=2)
