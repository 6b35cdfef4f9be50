"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from filmstrip.render.cli import app
from filmstrip.store import FrameSpec, create_run


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_grids_of_all_layers_at_the_last_step_are_the_default(
    run_path: Path, tmp_path: Path
) -> None:
    result = call("grid", run_path, "-o", tmp_path)

    assert result.exit_code == 0, result.output
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert names == {f"activations/{layer}/grid-00000040.png" for layer in ("conv1", "relu1", "fc")}
    assert result.stdout.splitlines()[-1].startswith("drew 3 pictures, kept 0, in ")
    assert result.stdout.splitlines()[-1].endswith(str(tmp_path))


def test_the_pictures_lie_beside_the_run_by_default(
    tmp_path: Path, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.zarr").symlink_to(run_path)
    monkeypatch.chdir(tmp_path)

    result = call("curve", "mine.zarr")

    assert result.exit_code == 0, result.output
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*-pictures/**/*.png"))
    assert found == [
        "mine-pictures/scalars/accuracy/curve.png",
        "mine-pictures/scalars/train.loss/curve.png",
    ]


def test_every_option_of_a_grid_is_obeyed(run_path: Path, tmp_path: Path) -> None:
    words = "relu1 --step 0:30:20 --samples 1,3 --channels 0:4 --columns 2 --padding 1 --vmin 0"
    words += " --vmax 2 --cmap magma --downsample none --dpi 100 --format svg -j 1"
    result = call("grid", run_path, *words.split(), "-o", tmp_path)

    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in tmp_path.rglob("*.svg"))
    assert len(names) == 4
    assert names[0] == (
        "grid-00000000-sample1-channels0_4-columns2-padding1-vmin0-vmax2-magma-none-dpi100.svg"
    )


def test_a_layout_is_one_picture_however_it_is_written(run_path: Path, tmp_path: Path) -> None:
    first = call("grid", run_path, "relu1", "--layout", "nhwc", "-o", tmp_path)
    second = call("grid", run_path, "relu1", "--layout", "NHWC", "-o", tmp_path)

    assert "drew 1 picture" in first.stdout
    assert "drew 0 pictures, kept 1" in second.stdout
    assert [path.name for path in tmp_path.rglob("*.png")] == ["grid-00000040-layoutNHWC.png"]


def test_the_command_in_a_picture_draws_the_same_picture(run_path: Path, tmp_path: Path) -> None:
    for words in (
        "grid {} relu1 --samples 1 --scale each --step 20",
        "histogram {} relu1 --view single --step 20 --bins 30",
        "histogram {} fc --view heatmap --bin-scale symlog",
        "curve {} --stat f*/l2 --log",
    ):
        out = tmp_path / words.split()[0] / str(len(words))
        command = shlex.split(words.format(shlex.quote(str(run_path))))
        assert call(*command, "-o", out).exit_code == 0
        (path,) = out.rglob("*.png")
        before = path.read_bytes()
        again = shlex.split(Image.open(path).text["filmstrip-command"])  # type: ignore[attr-defined]
        assert again[:2] == ["filmstrip", "render"]

        result = call(*again[2:], "-o", out, "--force")

        assert result.exit_code == 0, result.output
        assert list(out.rglob("*.png")) == [path]
        assert path.read_bytes() == before


def test_a_dry_run_writes_nothing(run_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("histogram", run_path, "--dry-run", "-o", out)

    assert result.stdout.splitlines()[-1] == "would draw 3 pictures, keep 0"
    assert str(out / "activations/relu1/histogram-ridge.png") in result.stdout
    assert not out.exists()


def test_a_dry_run_can_print_json(run_path: Path, tmp_path: Path) -> None:
    call("grid", run_path, "fc", "-o", tmp_path)

    result = call("grid", run_path, "fc", "relu1", "-o", tmp_path, "--dry-run", "--json")

    states = {entry["path"]: entry["state"] for entry in json.loads(result.stdout)["pictures"]}
    assert states == {
        "activations/fc/grid-00000040.png": "kept",
        "activations/relu1/grid-00000040.png": "planned",
    }


def test_a_layer_without_frames_does_not_keep_the_others_from_being_drawn(tmp_path: Path) -> None:
    spec = FrameSpec((2, 3), "float32", layout="OI")
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", {"used": spec, "never": spec})
        writer.append(0, {"used": np.ones((2, 3), np.float32)})
    command = ("grid", tmp_path / "run.zarr", "--kind", "weights", "-o", tmp_path / "out")

    result, named = call(*command), call(*command, "never")

    assert result.exit_code == 0, result.output
    assert [p.parent.name for p in (tmp_path / "out").rglob("*.png")] == ["used"]
    assert named.exit_code == 1
    assert "never has no committed steps yet" in named.stderr


def test_names_that_look_like_options_or_patterns_are_drawn_again_by_their_command(
    tmp_path: Path,
) -> None:
    names = ("-dash", "a*b", "axb", "x[1]")
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", dict.fromkeys(names, FrameSpec((2, 3), "float32")))
        writer.append(0, {name: np.full((2, 3), len(name), np.float32) for name in names})
    call("grid", tmp_path / "run.zarr", "-o", tmp_path / "out")

    for path in (tmp_path / "out").rglob("*.png"):
        again = shlex.split(Image.open(path).text["filmstrip-command"])[2:]  # type: ignore[attr-defined]
        result = call(*again, "-o", tmp_path / "again" / path.parent.name)
        assert result.exit_code == 0, result.output
        (drawn,) = (tmp_path / "again" / path.parent.name).rglob("*.png")
        assert drawn.read_bytes() == path.read_bytes()


def test_a_long_choice_of_channels_makes_a_short_file_name(run_path: Path, tmp_path: Path) -> None:
    for last in (1, 2):
        many = ",".join(["0"] * 300 + [str(last)])
        result = call("grid", run_path, "relu1", "--channels", many, "-o", tmp_path)
        assert result.exit_code == 0, result.output

    names = [path.name for path in tmp_path.rglob("*.png")]
    assert len(names) == 2
    assert all(len(name.encode()) <= 200 for name in names)


def test_a_style_sheet_of_the_user_changes_nothing(run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\npath.sketch: 1, 100, 2\nfigure.autolayout: True\naxes.grid: True\n"
        "xtick.direction: in\nxtick.top: True\nxtick.minor.visible: True\nlines.linestyle: --\n"
        "savefig.bbox: tight\nsavefig.transparent: True\ntext.hinting: none\n"
        "axes.labelpad: 30\nimage.origin: lower\n"
    )
    command = (sys.executable, "-W", "error", "-m", "filmstrip.render.cli")
    for words in ("grid {} conv1 fc", "curve {} --format svg"):
        done = subprocess.run(
            [*command, *words.format(run_path).split(), "-o", str(tmp_path / "theirs")],
            env=os.environ | {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        call(*words.format(run_path).split(), "-o", tmp_path / "ours")

    for ours in [p for p in (tmp_path / "ours").rglob("*.*g") if p.is_file()]:
        theirs = tmp_path / "theirs" / ours.relative_to(tmp_path / "ours")
        assert theirs.read_bytes() == ours.read_bytes(), ours


def test_json_is_the_only_thing_on_stdout_and_quiet_prints_nothing(
    run_path: Path, tmp_path: Path
) -> None:
    loud = call("grid", run_path, "fc", "-o", tmp_path, "--json")
    quiet = call("grid", run_path, "fc", "-o", tmp_path, "--quiet")

    assert [entry["state"] for entry in json.loads(loud.stdout)["pictures"]] == ["redrawn"]
    assert quiet.output == ""


def test_several_runs_are_compared_in_one_picture(
    run_path: Path, tmp_path: Path, write_run: object
) -> None:
    assert callable(write_run)
    other = tmp_path / "other.zarr"
    write_run(other, (0, 5, 10))

    result = call("curve", run_path, other, "--name", "train/loss", "-o", tmp_path / "out")
    alone = call("curve", run_path, "--name", "train/loss", "-o", tmp_path / "out")

    assert result.exit_code == alone.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out/scalars/train.loss").iterdir()}
    assert names == {"curve-vs-other.png", "curve.png"}


def test_a_run_without_what_is_compared_is_left_out_and_named(
    run_path: Path, tmp_path: Path
) -> None:
    with create_run(tmp_path / "bare.zarr") as run:
        run.log(0, {"accuracy": 0.5})
    words = ("--stat", "fc/l2", "--format", "svg", "-o", tmp_path / "out")

    result = call("curve", run_path, tmp_path / "bare.zarr", *words)

    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "out").rglob("*.svg")
    assert "none in bare" in path.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("grid {tmp}/none.zarr", "there is no run"),
        ("grid {tmp}", "is not a filmstrip run"),
        ("grid {run} --kind activationz", "activationz"),
        ("grid {run} --kind inputs", "inputs"),
        ("grid {run} rellu1", "relu1"),
        ("grid {run} --step 17", "nearest kept: 10 and 20"),
        ("grid {run} --step -9", "only 5 steps"),
        ("grid {run} --step 1:9", "no step in 1:9"),
        ("grid {run} relu1 --samples 4", "no sample of relu1 4"),
        ("grid {run} relu1 --channels 12", "no channel of relu1 12: there are 12 (0 to 11)"),
        ("grid {run} --kind weights fc.* --channels 15:", "no channel of fc.weight in 15:"),
        ("grid {run} relu1 --rgb", "relu1 has shape 4×12×8×8"),
        ("grid {run} relu1 --layout NC", "layout 'NC' names 2 axes, relu1 has 4 axes: 4×12×8×8"),
        ("grid {run} fc --layout NHWC", "layout 'NHWC' names 4 axes, fc has 2 axes: 4×20"),
        ("animation {run} relu1 --layout NC", "layout 'NC' names 2 axes"),
        ("animation {run} relu1 --channels 12", "no channel of relu1 12"),
        ("animation {run} relu1 --rgb", "--rgb needs images"),
        ("grid {run} -o {tmp}/file", "is a file"),
        ("grid {run} -o /proc/none", "cannot write into /proc/none"),
        (f"grid {{run}} -o {'a' * 300}", "File name too long"),
        ("curve {run} --name los", "train/loss"),
        ("curve {run} --stat relu9/l2", "relu1"),
        ("curve {run} --stat relu1/l3", "l2"),
        ("curve {run} --stat relu1/foo", "dead, norm"),
        ("curve {run} --kind scalars --stat accuracy/mean", "scalars are drawn by their --name"),
        ("curve {run} --stat fc.weight/l2 --kind gradients", "gradients"),
        (
            "histogram {run} --view single --step 7",
            "no histogram at step 7; nearest kept: 0 and 10",
        ),
        ("grid {empty}", "has no committed steps yet"),
        ("histogram {empty}", "has no committed steps yet"),
        ("curve {empty}", "has no scalars"),
    ],
)
def test_what_the_run_does_not_hold_is_one_line_and_exit_code_1(
    words: str, message: str, run_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    empty = tmp_path / "empty.zarr"
    with create_run(empty) as run:
        run.writer("activations", {"conv1": FrameSpec((1, 2, 3, 3), "float32", layout="NCHW")})
    result = call(*words.format(run=run_path, tmp=tmp_path, empty=empty).split())

    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("filmstrip: ")
    assert message in result.stderr
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("grid {run} --vmin 3 --vmax 1", "--vmin 3 must be below --vmax 1"),
        ("grid {run} --cmap viridiss", "nearest: viridis"),
        ("grid {run} --step soon", "--step 'soon' is none of"),
        ("grid {run} --step 0:10:0", "--step '0:10:0' is none of"),
        ("grid {run} --channels a:b", "--channels"),
        ("grid {run} --scale mine", "shared, each, run"),
        ("grid {run} --format gif", "png, svg, pdf"),
        ("grid {run} --dpi 5", "30 to 1200"),
        ("grid {run} -j 0", "--jobs"),
        ("grid {run} --force --keep", "exclude each other"),
        ("histogram {run} --bins 0", "--bins is 0"),
        ("histogram {run} --view 3d", "single, ridge, overlay, heatmap, distribution"),
        ("histogram {run} --bins 9 --bin-scale tensorboard", "--bins has no meaning"),
        ("curve {run} --x epoch", "step, time"),
        ("curve {run} --stat l2", "LAYER/STAT"),
        ("curve {run} --smoothing 1", "below 1"),
        ("curve", "RUN"),
    ],
)
def test_what_no_run_could_hold_is_a_mistake_of_usage(
    words: str, message: str, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    result = call(*words.format(run=run_path).split())

    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_scalar_name_from_a_user_stays_inside_the_output_folder(tmp_path: Path) -> None:
    path, out = tmp_path / "run.zarr", tmp_path / "a" / "out"
    with create_run(path) as run:
        for step in range(3):
            run.log(step, {"../../../escape": step, "..": step, "$\\alpha$ loss, *": step})

    result = call("curve", path, "-o", out)

    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "run.zarr"]
    assert len(list(out.rglob("curve.png"))) == 3


def test_names_that_share_a_folder_each_have_a_picture(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        run.log(0, {"train/loss": 1.0, "train.loss": 2.0})

    for expected in ("drew 2", "drew 0"):
        result = call("curve", tmp_path / "run.zarr", "-o", tmp_path / "out")
        assert result.stdout.startswith(expected)

    assert len(list((tmp_path / "out/scalars/train.loss").iterdir())) == 2


def test_an_inherited_backend_that_cannot_be_loaded_does_no_harm(
    run_path: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"MPLBACKEND": "module://no_such_inline.backend_inline"}
    command = [sys.executable, "-W", "error", "-m", "filmstrip.render.cli"]

    done = subprocess.run(
        [*command, "grid", str(run_path), "fc", "-o", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "activations/fc/grid-00000040.png").is_file()


def test_importing_the_commands_imports_nothing_heavy() -> None:
    script = (
        "import sys; import filmstrip.render.cli; "
        "heavy = {'matplotlib', 'numpy', 'zarr', 'dask', 'PIL', 'torch', 'tensorflow'}; "
        "assert not heavy & {name.split('.')[0] for name in sys.modules}"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_option_has_a_sentence_of_help() -> None:
    for command in ("grid", "histogram", "curve"):
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        for option in ("--out", "--format", "--dpi", "--force", "--keep", "--json", "--jobs"):
            assert option in result.output


def test_many_failures_are_told_in_a_few_lines(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        spec = FrameSpec((3, 2, 4, 4), "float32", layout="NCHW")
        writer = run.writer("activations", {"conv1": spec})
        for step in range(9):
            writer.append(step, {"conv1": np.ones((1 if step else 3, 2, 4, 4), np.float32)})

    result = call("grid", tmp_path / "run.zarr", "--step", "all", "--samples", "2")

    assert result.exit_code == 1
    assert result.stdout.startswith("drew 1 picture, kept 0")
    lines = result.stderr.splitlines()
    assert len(lines) == 6
    assert "no sample 2: the frame has 1 (0 to 0)" in lines[0]
    assert lines[5].startswith("filmstrip: 3 more not drawn: ")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_whole_pictures_and_their_manifest(
    sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        spec = FrameSpec((1, 64, 28, 28), "float32", layout="NCHW")
        writer = run.writer("activations", {"conv1": spec})
        frame = np.random.default_rng(0).random((1, 64, 28, 28), np.float32)
        for step in range(400):
            writer.append(step, {"conv1": frame})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "filmstrip.render.cli", "grid", str(tmp_path / "run.zarr")]
    process = subprocess.Popen(
        [*command, "--step", "all", "-o", str(out), "-j", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not list(out.rglob("*.png")):
        time.sleep(0.01)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)

    drawn = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert 0 < len(drawn) < 400
    assert {
        entry["path"] for entry in json.loads((out / "manifest.json").read_text())["pictures"]
    } == drawn
    assert not list(out.rglob(".*.partial"))
    for name in drawn:
        Image.open(out / name).verify()
