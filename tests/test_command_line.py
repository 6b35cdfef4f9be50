from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import FrameSpec, create_run, open_run, summarize


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


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "filmstrip.store.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def filmstrip(*arguments: object, code: int = 0) -> str:
    done = run(*arguments)
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

    done = run("status", run_path)
    assert done.returncode == 4
    assert "stopped, last step 30" in done.stdout


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "running"),
        ({"start": "1"}, "stopped"),  # another process has its number
        ({"boot": "another"}, "stopped"),  # and that was before the machine was started again
        ({"pid": 1}, "stopped"),  # another one has the store
        ({"released": True}, "stopped"),
        ({"pid_namespace": "pid:[1]", "start": "1"}, "running"),  # its number means nothing here
    ],
)
def test_status_tells_a_writer_from_a_later_process_with_its_number(
    run_path: Path, changed: dict[str, object], state: str
) -> None:
    with create_run(run_path, if_exists="resume"):
        copied = shutil.copytree(run_path, run_path.with_name("copy.zarr"))
        lock = copied / "_lock"
        lock.write_text(json.dumps(json.loads(lock.read_bytes()) | changed))

        assert open_run(copied).status().state == state
        for spoil in (lambda: lock.write_text("{"), lock.unlink, lambda: lock.symlink_to(copied)):
            spoil()
            assert open_run(copied).status().state == "running"


def test_names_cannot_steer_a_terminal_nor_make_a_second_line(run_path: Path) -> None:
    with create_run(run_path, if_exists="resume", metadata={"\x1b[2J": "a\nb"}) as writer:
        writer.log(30, {"\x1b]0;mine\x07\n": 1.0})
        spec = {"fc\x1b[31m\nrm": FrameSpec((1,), "float32")}
        writer.writer("weights", spec).append(0, {next(iter(spec)): np.ones(1, np.float32)})
    os.close(os.open(os.fsencode(run_path) + b"/strange\xff\n", os.O_CREAT))

    for command in ("ls", "info", "status", "du"):
        shown = filmstrip(command, run_path)
        assert all(sign.isprintable() for line in shown.split("\n") for sign in line)
    assert r"fc\x1b[31m\nrm" in filmstrip("ls", run_path)
    shown = run("check", run_path).stdout
    assert shown == "warning: strange\\udcff\\n: it belongs to nothing\n"
    shown = filmstrip("info", f"{run_path}\n.zarr", code=1)
    assert shown == f"filmstrip: there is no run at {run_path}\\n.zarr\n"


def test_lost_captures_make_a_run_degraded(run_path: Path) -> None:
    with create_run(run_path, if_exists="resume") as writer:
        writer.log_health(40, {"dropped": 2, "errors": 1, "failed": 3})

    done = run("status", run_path)
    assert done.returncode == 3
    assert "lost: 2 dropped, 4 errors" in done.stdout


@pytest.mark.parametrize("command", ["ls", "info", "status", "du", "check", "repair"])
def test_mistakes_are_one_line_and_exit_code_1(
    command: str, run_path: Path, tmp_path: Path
) -> None:
    missing = filmstrip(command, tmp_path / "none.zarr", code=1)
    assert missing == f"filmstrip: there is no run at {tmp_path}/none.zarr\n"
    other = filmstrip(command, tmp_path, code=1)
    assert other == f"filmstrip: {tmp_path} is not a filmstrip run: it has no zarr.json\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("info",), ("ls",), ("render", "grid", "--json", "-o", "{out}")])
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(
    words: tuple[str, ...], unbuffered: str, run_path: Path, tmp_path: Path
) -> None:
    command = [word.format(out=tmp_path / "out") for word in words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "filmstrip.store.cli", *command, str(run_path)],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "filmstrip: cannot write the output: No space left on device\n"


def test_signs_that_the_output_cannot_hold_are_replaced(run_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "filmstrip.store.cli", "info", str(run_path)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert b"3: 0 ? 20" in done.stdout


def test_pictures_are_drawn_where_there_is_no_standard_error(
    run_path: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "filmstrip.store.cli", "render", "all", str(run_path)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command, "--json", "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        check=False,
    )

    assert done.returncode == 0
    assert {entry["state"] for entry in json.loads(done.stdout)["pictures"]} == {"redrawn"}


@pytest.mark.parametrize("command", ["info", "ls", "status"])
def test_looking_without_a_standard_output_is_no_error(run_path: Path, command: str) -> None:
    told = [sys.executable, "-m", "filmstrip.store.cli", command, str(run_path)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *told], stderr=subprocess.PIPE, check=False
    )

    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("part", ["activations", "activations/conv1", "scalars"])
def test_a_part_of_a_run_is_told_with_the_run_to_open(part: str, run_path: Path) -> None:
    told = filmstrip("info", run_path / part, code=1)

    where = run_path / part
    assert told == (
        f"filmstrip: {where} is not a filmstrip run: it is a part of one; open {run_path}\n"
    )


def test_a_pattern_without_a_match_names_the_nearest_layers(run_path: Path) -> None:
    told = filmstrip("ls", run_path, "cnov1", code=1)

    assert told == "filmstrip: no layer of run.zarr matches 'cnov1'; nearest: conv1\n"


def test_a_layer_is_listed_and_drawn_by_another_of_its_names(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as writer:
        spec = FrameSpec((2, 3), "float32", aliases=("head",))
        writer.writer("weights", {"embed": spec}).append(0, {"embed": np.ones((2, 3), "f")})

    assert filmstrip("ls", path, "head") == "weights  embed  float32  2 × 3  1 steps\n"
    filmstrip("render", "grid", path, "head", "--kind", "weights", "-o", tmp_path / "out")
    assert [png.parent.name for png in (tmp_path / "out").rglob("*.png")] == ["embed"]


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "{run}", "type:Conv2d"),
        ("copy", "{run}", "{run}-copy", "--layers", "type:Conv2d"),
        ("prune", "{run}", "--kind", "activations", "--layers", "type:Conv2d", "--keep-last", "1"),
        ("render", "grid", "{run}", "type:Conv2d"),
    ],
    ids=lambda words: words[0],
)
def test_types_are_said_to_be_known_only_when_capturing(
    words: tuple[str, ...], run_path: Path
) -> None:
    told = filmstrip(*(word.format(run=run_path) for word in words), code=1)

    assert told.count("\n") == 1
    assert "'type:Conv2d' asks for a type of modules, and types are known only when" in told


def test_usage_errors_exit_with_2(run_path: Path) -> None:
    assert "No such option" in filmstrip("ls", run_path, "--colour", code=2)
    assert "No such command" in filmstrip("draw", code=2)


def test_ls_lists_where_numbers_stopped_being_finite(run_path: Path) -> None:
    with create_run(run_path, if_exists="resume") as writer:
        writer.log(30, {"loss": float("nan")})
        statistics = writer.statistics_writer("activations", ["conv1", "fc"])
        for step in (0, 10, 20):
            bad = [1.0, np.inf, np.nan, np.nan] if step else [1.0, 0.0, 0.0, 0.0]
            frames = [np.ones(4), np.array(bad)]
            statistics.append(step, np.stack([summarize(frame) for frame in frames]))

    lines = filmstrip("ls", "--nonfinite", run_path).splitlines()

    assert [line.split() for line in lines] == [
        [
            "activations",
            "fc",
            "from",
            "step",
            "10",
            "2",
            "NaN",
            "1",
            "infinite",
            "2",
            "of",
            "3",
            "steps",
        ],
        ["scalars", "loss", "from", "step", "30", "NaN", "1", "of", "4", "steps"],
    ]
    assert filmstrip("ls", "--nonfinite", run_path, "conv1") == ""


def test_du_tells_what_takes_the_room(run_path: Path) -> None:
    lines = [line.split() for line in filmstrip("du", run_path).splitlines()]

    assert lines[0] == ["on", "disk", "raw", "ratio", "kind", "layer"]
    assert lines[-1][-1] == "all"
    named = {tuple(line[5:]): line[2:4] for line in lines[1:]}
    assert named["activations", "conv1"] == ["3.1", "kB"]


def test_check_and_repair_say_what_is_wrong_and_what_was_done(run_path: Path) -> None:
    assert filmstrip("check", run_path) == f"{run_path}: nothing is wrong\n"
    assert filmstrip("repair", run_path) == f"{run_path}: nothing to do\n"
    (run_path / "activations" / "zarr.json").unlink()

    done = run("check", run_path)
    assert done.returncode == 1
    assert done.stdout.startswith("error: activations/zarr.json: it is missing or damaged (repair ")

    assert filmstrip("repair", run_path) == "activations/zarr.json: written anew\n"
    assert filmstrip("check", run_path) == f"{run_path}: nothing is wrong\n"
    (run_path / "zarr.json").write_text("{")
    done = run("repair", run_path)
    assert done.returncode == 1  # something could not be brought back
    assert "left: zarr.json: its run id" in done.stdout


def test_copy_copies_a_part_and_goes_on_with_it(run_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.zarr"
    part = ("--kind", "activations", "--layers", "con*", "--layers", "fc", "--steps", "10:")

    told = filmstrip("copy", run_path, target, *part)

    assert told == f"{target}: 2 frames, 2.2 kB; 2.2 kB written now\n"
    assert filmstrip("copy", run_path, target, *part).endswith("; 0 B written now\n")
    assert open_run(target).activations["conv1"].steps.tolist() == [10, 20]
    assert "another selection" in filmstrip("copy", run_path, target, code=1)
    assert "is not START:STOP" in filmstrip("copy", run_path, target, "--steps", "ten", code=2)


def test_prune_tries_out_and_takes_away(run_path: Path) -> None:
    what = ("--kind", "activations", "--keep-last", "1")
    told = filmstrip("prune", run_path, *what, "--dry-run")
    assert told == f"{run_path}: would take away 2 frames of activations, 2.2 kB; 1 stay\n"
    assert open_run(run_path).activations["conv1"].steps.tolist() == [0, 10, 20]

    assert " took away 2 frames" in filmstrip("prune", run_path, *what)

    assert open_run(run_path).activations["conv1"].steps.tolist() == [20]
    assert "Missing option '--kind'" in filmstrip("prune", run_path, code=2)
    assert "say what to keep" in filmstrip("prune", run_path, "--kind", "activations", code=2)
    with create_run(run_path, if_exists="resume"):
        assert "is being written by process" in filmstrip("prune", run_path, *what, code=1)
        assert "is being written by process" in filmstrip("repair", run_path, code=1)


@pytest.mark.parametrize(
    "command", ["ls", "info", "status", "du", "check", "repair", "copy", "prune"]
)
def test_every_command_and_option_has_help(command: str) -> None:
    shown = filmstrip(command, "--help")
    options = [line for line in shown.splitlines() if re.match(r"[│|]\s+\*?\s*--", line)]
    assert len(options) >= 1
    assert all(re.search(r"[a-z]{2,} [a-zA-Z]+", line) for line in options), options
