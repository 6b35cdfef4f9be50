"""Animations: their frames, their one range of colours, and their files."""

from __future__ import annotations

import io
import json
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from filmstrip import render
from filmstrip.render._image import Picture, digest_of
from filmstrip.render._mp4 import find_ffmpeg
from filmstrip.render._palette import colors, quantise
from filmstrip.render._png import encode_apng
from filmstrip.render._raster import rasterise
from filmstrip.render.cli import app
from filmstrip.store import FrameSpec, Run, bit_histogram, create_run, open_run, summarize

STEPS = (0, 10, 20, 30, 40)  # of the run in conftest.py


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def frames_of(data: bytes | Path) -> list[npt.NDArray[np.uint8]]:
    """Colours of all frames of a file, as Pillow reads it."""
    read = data if isinstance(data, bytes) else data.read_bytes()
    image = Image.open(io.BytesIO(read))
    shown = []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        shown.append(np.asarray(image.convert("RGB")).copy())
    return shown


def write(path: Path, frames: npt.NDArray[np.float32], *, statistics: bool = True) -> Run:
    """Write the entries of the first axis as steps 0, 10, 20, …"""
    with create_run(path) as run:
        writer = run.writer("activations", {"a": FrameSpec(frames.shape[1:], "float32")})
        summaries = run.statistics_writer("activations", ["a"]) if statistics else None
        for i, frame in enumerate(frames):
            writer.append(10 * i, {"a": frame})
            if summaries is not None:
                summaries.append(10 * i, summarize(frame)[None], bit_histogram(frame)[None])
    return open_run(path)


def drawn(picture: Picture) -> list[npt.NDArray[np.uint8]]:
    assert picture.frames is not None
    return list(picture.frames.rasters())


@pytest.mark.parametrize("form", ["png", "gif"])
def test_every_frame_comes_back_exactly_from_a_file(run: Run, form: str) -> None:
    picture = render.animation(run.activations["relu1"])

    shown = frames_of(picture.encode(form))

    assert picture.frames is not None
    table = colors(picture.frames.first.cmap)
    assert len(shown) == len(STEPS)
    for read, pixels in zip(shown, drawn(picture), strict=True):
        np.testing.assert_array_equal(read, table[pixels])


def test_an_mp4_has_all_frames_and_their_colours(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    picture = render.animation(run.activations["relu1"], fps=5)

    path = picture.save(tmp_path / "a.mp4")

    words = (find_ffmpeg(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    done = subprocess.run(words, capture_output=True, check=True)
    width, height = (side + side % 2 for side in picture.size)
    shown = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    assert b" 5 fps" in done.stderr
    assert len(shown) == len(STEPS)
    assert picture.frames is not None
    for read, pixels in zip(shown, drawn(picture), strict=True):
        exact = colors(picture.frames.first.cmap)[pixels].astype(int)
        cut = read[: exact.shape[0], : exact.shape[1]]
        assert np.abs(cut - exact).mean() < 3


def test_what_differs_is_all_that_a_later_frame_stores() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (60, 80)).astype(np.uint8)
    after = before.copy()
    after[10:20, 30:50] += 1
    palette = np.arange(768).astype(np.uint8).reshape(256, 3)

    data = b"".join(encode_apng([before, after, after], 3, palette=palette, fps=10))

    controls = [
        struct.unpack(">IIIIIHHBB", data[at + 4 : at + 30])
        for at in range(len(data))
        if data[at : at + 4] == b"fcTL"
    ]
    assert [one[1:5] for one in controls] == [(80, 60, 0, 0), (20, 10, 30, 10), (1, 1, 0, 0)]
    assert [one[0] for one in controls] == [0, 1, 3]
    assert all(one[5] / one[6] == 0.1 for one in controls)
    np.testing.assert_array_equal(frames_of(data)[2], palette[after])


def test_every_chunk_of_an_animated_png_is_checked(run: Run) -> None:
    data = render.animation(run.activations["conv1"]).encode("apng")

    at, numbers, names = 8, [], []
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            name + body
        )
        names.append(name)
        if name in {b"fcTL", b"fdAT"}:
            numbers.append(struct.unpack(">I", body[:4])[0])
        at += 12 + size

    assert numbers == list(range(2 * len(STEPS) - 1))
    assert names[-1] == b"IEND"
    assert names.index(b"acTL") < names.index(b"IDAT")


@pytest.mark.parametrize("statistics", [True, False])
def test_all_frames_have_one_range_of_colours(tmp_path: Path, statistics: bool) -> None:
    values = np.zeros((3, 1, 4, 6, 6), np.float32)
    values[:] = np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1, 1, 1)
    run = write(tmp_path / "run.zarr", values, statistics=statistics)

    picture = render.animation(run.activations["a"])

    assert picture.frames is not None
    sheets = [picture.frames.draw(step) for step in picture.frames.steps]
    levels = [int(sheet.patches[0].pixels[0, 0]) for sheet in sheets]
    assert levels == quantise(np.array([1.0, 2.0, 4.0]), 0.0, 4.0).tolist()
    assert len({(sheet.chrome, sheet.marks, sheet.cmap) for sheet in sheets}) == 1


def test_stored_bits_and_frames_agree_on_where_signed_values_are_clipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 1, 16, 30, 30)).astype(np.float32)
    values[1, 0, 0, 0, 0] = 1000.0
    exact = float(np.quantile(np.abs(values), 0.999))

    tops = []
    for statistics in (True, False):
        run = write(tmp_path / f"{statistics}.zarr", values, statistics=statistics)
        picture = render.animation(run.activations["a"])
        assert picture.sheet is not None
        texts = " ".join(label.text for label in picture.sheet.labels)
        assert "scale ± q99.9 of |x| over all steps" in texts
        assert picture.sheet.chrome.bar.upper
        tops.append([label.text for label in picture.sheet.labels if label.text in {"3", "−3"}])
    assert tops[0] == tops[1] == ["−3", "3"]
    assert 3 < exact < 4


def test_a_step_without_negative_values_has_the_colours_of_the_others(tmp_path: Path) -> None:
    values = np.ones((2, 1, 4, 6, 6), np.float32)
    values[1, 0, 0] = -1
    run = write(tmp_path / "run.zarr", values)

    picture = render.animation(run.activations["a"])

    assert picture.frames is not None
    assert {picture.frames.draw(step).cmap for step in (0, 10)} == {"RdBu_r"}


def test_each_tile_keeps_its_own_range_over_all_frames() -> None:
    values = np.zeros((3, 2, 5, 5))
    values[:, 0], values[:, 1] = np.array([[1.0, 100.0], [2.0, 50.0], [4.0, 200.0]]).T[
        ..., None, None
    ]

    picture = render.animation(values, scale="each")

    assert picture.frames is not None
    found = []
    for step in range(3):
        row = picture.frames.draw(step).patches[0].pixels
        found.append([int(row[0, 0]), int(row[0, -1])])
    wanted = quantise(np.array([[0, 1 / 3], [1 / 3, 0], [1, 1]]), 0.0, 1.0)
    np.testing.assert_allclose(found, wanted, atol=1)


def test_frames_from_a_probe_are_not_coloured_by_statistics_of_training(tmp_path: Path) -> None:
    frame = np.full((1, 4, 6, 6), 2.0, np.float32)
    frame[0, 3] = 0
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", {"a": FrameSpec(frame.shape, "float32")})
        run.writer("inputs", {"input": FrameSpec((1, 1, 6, 6), "float32")}).append(
            0, {"input": frame[:, :1]}
        )
        statistics = run.statistics_writer("activations", ["a"])
        for step in (0, 10):
            writer.append(step, {"a": frame})
            statistics.append(step, summarize(100 * frame)[None], bit_histogram(frame)[None])

    picture = render.animation(open_run(tmp_path / "run.zarr").activations["a"])

    assert picture.sheet is not None
    assert int(picture.sheet.patches[0].pixels[0, 0]) == 227


def test_the_range_comes_from_statistics_without_reading_frames_twice(tmp_path: Path) -> None:
    frame = np.full((1, 4, 6, 6), 2.0, np.float32)
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", {"a": FrameSpec(frame.shape, "float32")})
        statistics = run.statistics_writer("activations", ["a"])
        for step in (0, 10):
            writer.append(step, {"a": frame})
            whole_batch = np.concatenate([0 * frame, 4 * frame])
            statistics.append(step, summarize(whole_batch)[None], bit_histogram(whole_batch)[None])

    picture = render.animation(open_run(tmp_path / "run.zarr").activations["a"])

    assert picture.sheet is not None
    assert int(picture.sheet.patches[0].pixels[0, 0]) == quantise(np.array([2.0]), 0.0, 8.0)[0]


def test_images_keep_their_colours() -> None:
    values = np.random.default_rng(0).random((3, 2, 3, 8, 8)).astype(np.float32)
    picture = render.animation(values, layout="NCHW", rgb=True)

    shown = frames_of(picture.encode())

    assert [pixels.shape[2] for pixels in drawn(picture)] == [3, 3, 3]
    for read, pixels in zip(shown, drawn(picture), strict=True):
        np.testing.assert_array_equal(read, pixels)
    with pytest.raises(render.SpecError, match="apng or mp4"):
        picture.encode("gif")


def test_the_room_for_what_is_no_number_is_kept_in_all_frames(tmp_path: Path) -> None:
    values = np.ones((3, 1, 4, 6, 6), np.float32)
    values[1, 0, 0, 0, :2] = np.nan, np.inf
    for statistics in (True, False):
        run = write(tmp_path / f"{statistics}.zarr", values, statistics=statistics)
        picture = render.animation(run.activations["a"])

        shapes = {raster.shape for raster in drawn(picture)}
        assert picture.frames is not None
        texts = [
            [label.text for label in picture.frames.draw(step).labels if "×1" in label.text]
            for step in (0, 10)
        ]
        assert len(shapes) == 1
        assert texts == [[], ["NaN ×1", "+inf ×1"]]


def test_values_that_are_never_finite_are_drawn_too(tmp_path: Path) -> None:
    picture = render.animation(np.full((2, 3, 4, 4), np.nan))

    assert len({raster.shape for raster in drawn(picture)}) == 1


def test_the_step_is_in_every_frame_and_nothing_else_moves(run: Run) -> None:
    picture = render.animation(run.activations["relu1"])

    assert picture.frames is not None
    sheets = [picture.frames.draw(step) for step in STEPS]
    texts = [{(label.x, label.y, label.text) for label in sheet.labels} for sheet in sheets]
    assert [{t for _, _, t in one if t.startswith("step ")} for one in texts] == [
        {f"step {step}"} for step in STEPS
    ]
    changing = {label[2] for one in texts for label in one ^ texts[0]}
    assert all(t.startswith(("step ", "activations ·")) or "dead" in t for t in changing)


def test_a_title_leaves_room_for_the_step() -> None:
    picture = render.animation(np.ones((2, 3, 4, 4)), title="a.very.long.name." * 9)

    assert picture.sheet is not None
    title, *_ = picture.sheet.labels
    step = picture.sheet.labels[-1]
    plain = render.animation(np.ones((2, 3, 4, 4)), title="")
    assert plain.sheet is not None
    inked = rasterise(picture.sheet) != rasterise(plain.sheet)
    columns = np.flatnonzero(inked[: step.y + 20].any(axis=0))
    assert "…" in title.text
    assert columns.max() < picture.sheet.chrome.width - 250


def test_arrays_have_steps_as_their_first_axis() -> None:
    values = np.random.default_rng(0).random((5, 2, 3, 8, 8))

    picture = render.animation(values, slice(0, 5, 2), layout="NCHW", sample=1, title="mine")

    assert repr(picture).endswith("pixels, 3 frames>")
    assert len(frames_of(picture._repr_png_())) == 3
    with pytest.raises(render.SpecError, match="steps as the first of two or more axes"):
        render.animation(np.zeros(4))
    with pytest.raises(render.SourceError, match="no frame at step 7; nearest kept: 4"):
        render.animation(values, 7)


def test_frames_that_shrink_are_padded_and_those_that_grow_are_refused(tmp_path: Path) -> None:
    spec = FrameSpec((4, 5), "float32", layout="NC")
    for name, sizes in (("shrink", (4, 2)), ("grow", (2, 4))):
        with create_run(tmp_path / f"{name}.zarr") as run:
            writer = run.writer("activations", {"fc": spec})
            for step, size in enumerate(sizes):
                writer.append(step, {"fc": np.ones((size, 5), np.float32)})

    short = render.animation(open_run(tmp_path / "shrink.zarr").activations["fc"])
    assert len({raster.shape for raster in drawn(short)}) == 1
    longer = render.animation(open_run(tmp_path / "grow.zarr").activations["fc"])
    with pytest.raises(render.SourceError, match="step 1 is larger than that of step 0"):
        longer.encode()
    with pytest.raises(render.SourceError):
        longer.save(tmp_path / "grown.png")
    assert not list(tmp_path.glob("*.png"))
    assert not list(tmp_path.glob(".*.partial"))


def test_an_animation_has_no_vector_format_and_a_grid_does_not_move(
    run: Run, tmp_path: Path
) -> None:
    with pytest.raises(render.SpecError, match="apng, gif, mp4"):
        render.animation(run.activations["fc"]).save(tmp_path / "a.svg")
    with pytest.raises(render.SpecError, match="png, svg, pdf"):
        render.grid(run.activations["fc"]).save(tmp_path / "a.gif")


def test_memory_is_that_of_a_few_frames(tmp_path: Path) -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    run = write(tmp_path / "run.zarr", rng.random((60, 1, 16, 14, 14)).astype(np.float32))
    peaks = []
    for last in (50, 600):
        picture = render.animation(run.activations["a"], slice(0, last))
        width, height = picture.size
        picture.save(tmp_path / "a.png")
        tracemalloc.start()
        for form in ("png", "gif"):
            picture.save(tmp_path / f"a.{form}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < peaks[0] + width * height


@pytest.mark.parametrize("form", ["apng", "gif", "mp4"])
def test_a_file_says_what_it_is_and_is_kept_until_it_is_cut_or_the_run_goes_on(
    form: str, tmp_path: Path, write_run: Callable[..., None]
) -> None:
    if form == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    path, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(path, (0, 10))
    words = ("animation", path, "relu1", "--format", form, "-o", out)

    first = call(*words)
    assert first.exit_code == 0, first.output
    (file,) = out.glob("activations/relu1/animation.*")
    data = file.read_bytes()
    command = f"filmstrip render animation {path} relu1"
    command += f" --format {form}" if form != "apng" else ""
    assert command.encode() in data
    assert open_run(path).id.encode() in data
    assert digest_of(file) is not None
    assert call(*words).stdout.startswith("drew 0 pictures, kept 1")

    for cut in (1, 40, len(data) // 2):
        file.write_bytes(data[:-cut])
        assert call(*words).stdout.startswith("drew 1 picture"), cut
        assert digest_of(file) is not None
    write_run(path, (20,), 20)
    assert call(*words).stdout.startswith("drew 1 picture")


def test_the_command_in_an_animation_draws_it_again(run_path: Path, tmp_path: Path) -> None:
    words = "relu1 --step 0:40:20 --fps 7.5 --samples 1 --channels 0:4 --cmap magma --vmax 2"
    call("animation", run_path, *words.split(), "-o", tmp_path / "first")
    (path,) = (tmp_path / "first").rglob("*.png")
    with Image.open(path) as image:
        again = shlex.split(image.text["filmstrip-command"])  # type: ignore[attr-defined]

    result = call(*again[2:], "-o", tmp_path / "second")

    assert result.exit_code == 0, result.output
    assert len(frames_of(path)) == 2
    assert path.name == ("animation-sample1-channels0_4-vmax2-magma-step0_40_20-fps7.5.png")
    assert (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes() == (
        path.read_bytes()
    )


def test_several_layers_and_samples_are_a_film_each(run_path: Path, tmp_path: Path) -> None:
    result = call("animation", run_path, "*1", "--samples", "0,1", "-o", tmp_path, "--json")

    paths = {entry["path"] for entry in json.loads(result.stdout)["pictures"]}
    assert paths == {
        f"activations/{layer}/animation-sample{sample}.png"
        for layer in ("conv1", "relu1")
        for sample in (0, 1)
    }


def test_without_ffmpeg_one_line_says_what_to_install(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)

    result = call("animation", run_path, "relu1", "--format", "mp4", "-o", tmp_path)

    assert result.exit_code == 1
    assert result.stderr == (
        "filmstrip: mp4 needs imageio-ffmpeg: pip install 'filmstrip[mp4]', "
        "or choose --format apng\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["/bin/false", "/no/such/ffmpeg"])
def test_an_ffmpeg_that_fails_is_one_line(
    run_path: Path, tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)

    result = call("animation", run_path, "relu1", "--format", "mp4", "-o", tmp_path)

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "ffmpeg failed: " in result.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


def test_a_gif_lasts_as_long_as_it_should(run: Run) -> None:
    data = render.animation(run.activations["fc"], fps=7).encode("gif")

    image = Image.open(io.BytesIO(data))
    lasting = []
    for i in range(len(STEPS)):
        image.seek(i)
        lasting.append(image.info["duration"])
    assert sum(lasting) == round(1000 * len(STEPS) / 7, -1)
    assert set(lasting) == {140, 150}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--fps 0", "0.1 to 60 frames a second"),
        ("--format svg", "apng, gif, mp4"),
        ("--step soon", "--step"),
    ],
)
def test_an_option_that_cannot_be_is_a_mistake_of_usage(
    words: str, message: str, run_path: Path, tmp_path: Path
) -> None:
    result = call("animation", run_path, "relu1", *words.split(), "-o", tmp_path)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
