"""Where commands run: a backend of somebody else's, a terminal, a run that is being written."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.store import FrameSpec, create_run, open_run

COMMAND = (sys.executable, "-W", "error", "-m", "filmstrip.render.cli")
SHAPE = (1, 4, 6, 6)
BACKENDS: dict[str, dict[str, str]] = {
    "plain": {},
    "no-display": {"MPLBACKEND": "TkAgg", "DISPLAY": ":123"},
    "notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "nonsense": {"MPLBACKEND": "nonsense"},
}
WRITER = f"""
import sys, time, numpy as np
from pathlib import Path
from filmstrip.store import FrameSpec, bit_histogram, create_run, summarize

with create_run(sys.argv[1]) as run:
    spec = FrameSpec({SHAPE}, "float32", layout="NCHW")
    writer = run.writer("activations", {{"a": spec, "b": spec}})
    statistics = run.statistics_writer("activations", ["a", "b"])
    step = 0
    while not Path(sys.argv[2]).exists():
        frames = [np.random.default_rng([step, i]).normal(size=spec.shape) for i in range(2)]
        frames = [frame.astype(np.float32) for frame in frames]
        rows, bits = (np.stack([f(x) for x in frames]) for f in (summarize, bit_histogram))
        statistics.append(step, rows, bits)
        writer.append(step, dict(zip("ab", frames)))
        run.log(step, {{"loss": 1 / (step + 1)}})
        if step % 4 == 0:
            run.publish()
        if step == 20:
            print("begun", flush=True)
        step += 1
        time.sleep(0.02)
"""


def environment(**variables: str) -> dict[str, str]:
    bare = {key: value for key, value in os.environ.items() if key not in {"MPLBACKEND", "DISPLAY"}}
    return bare | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables


def render(*words: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Path of a run of one layer at eight steps."""
    path = tmp_path / "run.zarr"
    with create_run(path) as run:
        writer = run.writer("activations", {"conv": FrameSpec(SHAPE, "float32", layout="NCHW")})
        for step in range(8):
            frame = np.random.default_rng(step).normal(size=SHAPE).astype(np.float32)
            writer.append(step, {"conv": frame})
            run.log(step, {"loss": 1 / (step + 1)})
    return path


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_an_inherited_backend_changes_no_byte(form: str, small: Path, tmp_path: Path) -> None:
    drawn: dict[str, dict[str, bytes]] = {}
    for name, variables in BACKENDS.items():
        out = tmp_path / name

        render("all", small, "--format", form, "-o", out, **variables)

        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob(f"*.{form}")}
        drawn[name] = files

    assert {Path(path).stem.partition("-")[0] for path in drawn["plain"]} == {
        "grid",
        "histogram",
        "curve",
    }
    for name, files in drawn.items():
        assert files == drawn["plain"], name


def test_a_terminal_shows_a_bar_that_is_gone_at_the_end(small: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["grid", small, "--step", "all", "-o", tmp_path / "out", "-j", "1"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        env=environment(TERM="xterm-256color", COLUMNS="120", LINES="30"),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # which is how Linux tells that the other end is closed
        pass
    os.close(ours)

    assert process.wait(60) == 0
    text = said.decode()
    assert "━" in text
    assert re.search(r"8/8.*pictures", text)
    *_, last = text.split("\x1b[?25h")  # the cursor is shown again
    assert "\x1b[?25l" not in last
    assert "━" not in last
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).strip()
    assert re.fullmatch(r"drew 8 pictures, kept 0, in [\d.]+ s: \S+", visible)


def test_a_run_is_drawn_while_it_is_written(tmp_path: Path) -> None:
    path, out, stop = tmp_path / "run.zarr", tmp_path / "out", tmp_path / "stop"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(stop)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "begun\n"
        before = [int(step) for step in open_run(path).steps("activations")]
        for words in (["all"], ["grid", "--step", "all"], ["animation", "a"]):
            render(words[0], path, *words[1:], "-o", out, "--dpi", "40")
        after = {int(step) for step in open_run(path).steps("activations")}
    finally:
        stop.touch()
        writer.communicate(timeout=60)

    assert writer.returncode == 0
    grids = {file: file.read_bytes() for file in out.rglob("grid-*.png")}
    steps = {int(file.stem.split("-")[1]) for file in grids}
    assert {*before} <= steps <= after
    assert len(after) > len(before)
    with Image.open(out / "activations/a/animation-dpi40.png") as film:
        assert len(before) <= film.n_frames <= len(after)  # type: ignore[attr-defined]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["errors"] == []
    # Each step is drawn as it is drawn when all is over.
    chosen = ",".join(map(str, sorted(steps)))
    told = render("grid", path, "--step", chosen, "-o", out, "--dpi", "40", "--force")
    assert told.startswith(f"drew {2 * len(steps)} pictures")
    for file, bytes_before in grids.items():
        assert file.read_bytes() == bytes_before
    # And a picture over steps is drawn again, since there are more of them.
    assert render("animation", path, "a", "-o", out, "--dpi", "40").startswith("drew 1 picture")
