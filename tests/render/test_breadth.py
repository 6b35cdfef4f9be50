"""Frames of every shape, what a picture says of them, and several in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from filmstrip import render
from filmstrip.render import SourceError, SpecError
from filmstrip.render._array_source import ArraySource, StepsSource
from filmstrip.render._counting import counts_of_frames
from filmstrip.render._layout import arrange, arrange_images
from filmstrip.render._source import RunSource
from filmstrip.render._spec import (
    AnimationSpec,
    CurveSpec,
    GridSpec,
    HistogramSpec,
    command,
    file_name,
)
from filmstrip.render._thumbnail import SIDE
from filmstrip.render.cli import app
from filmstrip.render.pictures import PICTURES
from filmstrip.store import FrameSpec, bit_histogram, create_run, open_run, summarize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from filmstrip.store import Run


def words_of(picture: render.Picture) -> str:
    assert picture.sheet is not None
    return " · ".join(label.text for label in picture.sheet.labels)


def names_of(picture: render.Picture) -> list[str]:
    assert picture.sheet is not None
    return [label.text for label in picture.sheet.chrome.labels]


@pytest.mark.parametrize(
    ("shape", "layout", "said"),
    [
        ((2, 12, 8, 8), "NCHW", "sample 0 · 12 channels × 8×8"),
        ((2, 8, 8, 12), "NHWC", "sample 0 · 12 channels × 8×8"),
        ((2, 3, 4, 8, 8), "NCDHW", "3 channels × 8×8 · 4 depths"),
        ((2, 4, 8, 8, 3), "NDHWC", "3 channels × 8×8 · 4 depths"),
        ((2, 5, 30), "NCL", "5 units × 30 positions"),
        ((2, 30, 5), "NLC", "30 positions × 5 units"),
        ((2, 4, 9, 9), "NHQK", "4 heads × 9×9 · query down, key across"),
        ((2, 4, 9, 7), "NHLS", "4 heads × 9×7 · position down, source position across"),
        ((2, 9, 4, 6), "NLHD", "4 heads × 9×6 · position down, unit across"),
        ((6, 2, 3, 3), "OIHW", "6 filters × 3×3 · 2 input channels"),
        ((3, 3, 2, 6), "HWIO", "6 filters × 3×3 · 2 input channels"),
        ((6, 4, 3), "OIL", "6 filters × 4 input channels × 3"),
        ((3, 4, 6), "WIO", "6 filters × 4 input channels × 3"),
        ((6, 4, 2, 3, 3), "OIDHW", "6 filters × 3×3 · 4 input channels × 2 depths"),
        ((6, 4, 1, 1), "OIHW", "6 out × 4 in"),
        ((4, 6), "IO", "6 out × 4 in"),
        ((7,), "C", "7 values"),
        ((), "", "1 value"),
    ],
)
def test_a_frame_of_any_shape_is_drawn_and_its_size_said(
    shape: tuple[int, ...], layout: str, said: str
) -> None:
    x = np.random.default_rng(0).normal(size=shape)

    picture = render.grid(x, layout=layout or None)

    assert said in words_of(picture)
    picture.encode()


def test_kernels_over_one_axis_are_a_tile_of_inputs_by_positions() -> None:
    x = np.arange(24.0).reshape(2, 4, 3)

    np.testing.assert_array_equal(arrange(x, "OIL").values, x[:, None])
    np.testing.assert_array_equal(arrange(x.transpose(2, 1, 0), "LIO").values, x[:, None])


def test_heads_come_first_wherever_they_stand() -> None:
    x = np.random.default_rng(0).normal(size=(1, 5, 3, 4))

    np.testing.assert_array_equal(arrange(x, "NLHD").values, x[0].transpose(1, 0, 2)[:, None])


def test_without_a_layout_a_matrix_has_rows_and_columns() -> None:
    for kind in ("weights", "activations", ""):
        arranged = arrange(np.zeros((3, 4)), None, kind=kind)
        assert (arranged.row_name, arranged.column_name) == ("row", "column")


def test_long_kernels_have_more_than_a_pixel_a_value() -> None:
    picture = render.grid(np.random.default_rng(0).normal(size=(256, 128, 3)), layout="OIL")

    assert picture.sheet is not None
    assert picture.sheet.patches[0].pixels.shape[0] >= 2 * 128
    assert max(picture.size) < 1600


def test_channels_are_dead_when_all_samples_say_so() -> None:
    x = np.ones((3, 4, 5, 5))
    x[:, 1] = 0
    x[0, 2] = 0
    picture = PICTURES["grid"]([ArraySource(x, "NCHW")], GridSpec(kind="activations"))

    assert picture.sheet is not None
    red = [label.text for label in picture.sheet.labels if label.tone == "red"]
    assert red == ["1 dead"]
    assert "1 dead in all 3 samples" in words_of(picture)


def test_dead_tiles_without_a_label_are_named_below_the_title() -> None:
    x = np.ones((1, 2048, 2, 2))
    x[:, [3, 1900]] = 0

    picture = PICTURES["grid"]([ArraySource(x, "NCHW")], GridSpec(kind="activations"))

    assert "2 dead in the only sample: 3, 1900" in words_of(picture)


@pytest.fixture
def odd_run(tmp_path: Path) -> Run:
    """Return a run with a probe, a frame that lacks channels, and one whose length varies."""
    rng = np.random.default_rng(0)
    maps = np.abs(rng.normal(size=(4, 6, 5, 5))).astype(np.float32)
    degraded = "every 2nd index of axis 1, half precision"
    with create_run(tmp_path / "run.zarr") as run:
        specs = {
            "cut": FrameSpec(
                maps.shape, "float32", layout="NCHW", take="first 4 samples", degraded=degraded
            ),
            "words": FrameSpec((4, 7, 3), "float32", layout="NLC"),
        }
        writer = run.writer("activations", specs)
        writer.append(0, {"cut": maps, "words": maps[:, 0, :1].repeat(7, 1)[..., :3]})
        writer.append(1, {"cut": maps, "words": maps[:, 0, :1].repeat(5, 1)[..., :3]})
        image = np.zeros((4, 1, 10, 10), np.float32)
        image[2, 0, 3, 4] = 1
        spec = FrameSpec(image.shape, "float32", layout="NCHW")
        run.writer("inputs", {"input": spec}).append(0, {"input": image})
    return open_run(tmp_path / "run.zarr")


def test_what_a_frame_lacks_is_said_and_tiles_keep_the_numbers_of_the_network(
    odd_run: Run,
) -> None:
    picture = render.grid(odd_run.activations["cut"], 1)

    assert names_of(picture) == ["0", "2", "4", "6", "8", "10"]
    words = words_of(picture)
    assert "first 4 samples kept" in words
    assert "degraded: every 2nd index of axis 1, half precision" in words
    assert names_of(render.grid(odd_run.activations["cut"], channels=[4, 5])) == ["4"]
    with pytest.raises(SourceError, match="channel 5 was not kept: one of 2 was"):
        render.grid(odd_run.activations["cut"], channels=5)
    assert "axis 1 varies over steps" in words_of(render.grid(odd_run.activations["words"], 0))


def test_the_input_of_the_sample_stands_beside_its_maps(odd_run: Run) -> None:
    with_input = render.grid(odd_run.activations["cut"], sample=2)
    blank = render.grid(odd_run.activations["cut"], sample=1)

    assert with_input.sheet is not None
    assert blank.sheet is not None
    shown, empty = (
        next(p.pixels for p in sheet.patches if p.pixels.shape == (110, 110))
        for sheet in (with_input.sheet, blank.sheet)
    )
    assert max(shown.shape) <= SIDE
    zoom = len(shown) // 10
    expected = np.zeros((10, 10), bool)
    expected[3, 4] = True
    lit = shown[::zoom, ::zoom] == shown[3 * zoom, 4 * zoom]
    np.testing.assert_array_equal(lit, expected)
    assert len(np.unique(empty)) == 1
    assert "input" in words_of(with_input)


def test_inputs_of_a_training_batch_stand_beside_the_maps_of_their_step_alone(
    tmp_path: Path,
) -> None:
    maps, image = np.ones((1, 2, 4, 4), np.float32), np.zeros((1, 1, 4, 4), np.float32)
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", {"a": FrameSpec(maps.shape, "float32", layout="NCHW")})
        spec = FrameSpec(image.shape, "float32", layout="NCHW", take="first 1 samples")
        inputs = run.writer("inputs", {"input": spec})
        for step in range(3):
            writer.append(step, {"a": maps})
            if step < 2:
                image[0, 0, step, step] = 1
                inputs.append(step, {"input": image})
    source = RunSource(open_run(tmp_path / "run.zarr"))

    shown = [source.input(GridSpec(layer="a", step=step)) for step in range(3)]

    assert [None if one is None else one.values.sum() for one in shown] == [1, 2, None]
    assert "input" in words_of(render.grid(source.run.activations["a"], 1))
    assert "input" not in words_of(render.grid(source.run.activations["a"], 2))


def test_inputs_are_images_side_by_side_and_one_when_asked_for(odd_run: Run) -> None:
    strip = odd_run.inputs["input"]

    assert "4 images × 10×10" in words_of(render.grid(strip))
    assert names_of(render.grid(strip, sample=2)) == ["2"]
    assert "1 channel" in words_of(render.grid(strip, rgb=False))


def test_colours_are_refused_of_what_has_none() -> None:
    x = np.zeros((2, 5, 4, 4))

    with pytest.raises(SpecError, match=r"--rgb needs images.*2×5×4×4"):
        render.grid(x, layout="NCHW", rgb=True)
    with pytest.raises(SpecError, match="leave --cmap out"):
        render.grid(x[:, :3], layout="NCHW", rgb=True, cmap="magma")
    assert arrange_images(x, "NCHW") is None


def test_means_have_a_scale_of_their_own() -> None:
    x = np.random.default_rng(0).normal(size=(2400, 2400)).astype(np.float32)

    pooled, plain = (render.grid(x, layout="OI", downsample=how) for how in ("mean", "absmax"))

    assert pooled.sheet is not None
    assert plain.sheet is not None
    spreads = [
        float(np.std(sheet.patches[0].pixels.astype(float)))
        for sheet in (pooled.sheet, plain.sheet)
    ]
    assert spreads[0] > 30


def test_one_step_that_explodes_does_not_blank_the_others_on_the_scale_of_the_run(
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 60, 60)).astype(np.float32)
    with create_run(tmp_path / "run.zarr") as run:
        spec = FrameSpec(x.shape, "float32", layout="NCHW")
        writer = run.writer("activations", {"maps": spec})
        statistics = run.statistics_writer("activations", ["maps"])
        for step in range(10):
            now = x.copy()
            now[0, 0, 0, 0] = 1e30 if step == 9 else 1
            writer.append(step, {"maps": now})
            statistics.append(step, summarize(now)[None], bit_histogram(now)[None])

    strip = open_run(tmp_path / "run.zarr").activations["maps"]
    first, last = (render.grid(strip, step, scale="run") for step in (0, 9))

    assert first.sheet is not None
    assert last.sheet is not None
    assert first.sheet.marks == last.sheet.marks
    assert np.std(first.sheet.patches[0].pixels.astype(float)) > 20
    assert "scale of the whole run without outliers" in words_of(last)


def test_margins_say_how_far_a_column_is_only_where_rows_agree() -> None:
    x = np.random.default_rng(0).random((2048, 2, 2))

    even, odd = (
        render.grid(x, channels=list(picks), columns=64)
        for picks in (range(0, 1024, 2), np.flatnonzero(x[:, 0, 0] > 0.7)[:512].tolist())
    )

    assert "+0" in names_of(even)
    assert not any(name.startswith("+") for name in names_of(odd))


def test_a_film_of_images_has_their_colours() -> None:
    x = np.random.default_rng(0).uniform(size=(3, 4, 3, 8, 8)).astype(np.float32)
    with pytest.raises(SpecError, match="256 colours"):
        _film_of_images(x).encode("gif")

    image = _film_of_images(x).to_image()

    assert (image.mode, getattr(image, "n_frames", 1)) == ("RGB", 3)


def _film_of_images(x: npt.NDArray[np.float32]) -> render.Picture:
    spec = AnimationSpec(frame=GridSpec(kind="images"))
    return PICTURES["animation"]([StepsSource(x, "NCHW")], spec)


def test_counts_of_frames_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(3, 50)).astype(np.float32) for _ in range(4)]
    frames[1][0, :5] = [0, 0, np.nan, np.inf, -np.inf]
    frames.append(np.full((3, 50), np.nan, np.float32))

    counts = counts_of_frames(frames.__getitem__, [0, 1, 2, 3, 4], available=5)

    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(counts.bits[i], bit_histogram(frame))
        finite = frame[np.isfinite(frame)]
        if finite.size:
            assert (counts.minimum[i], counts.maximum[i]) == (finite.min(), finite.max())
        assert counts.zeros[i] == (frame == 0).sum()
    assert np.isnan(counts.minimum[4])


def test_a_frame_that_cannot_be_read_ends_the_count() -> None:
    def read(step: int) -> npt.NDArray[np.float32]:
        if step:
            raise SourceError("gone")
        return np.ones(3, np.float32)

    with pytest.raises(SourceError, match="gone"):
        counts_of_frames(read, range(9), available=9)


def test_a_histogram_is_no_finer_than_what_was_counted(run: Run) -> None:
    x = np.random.default_rng(0).uniform(1.0, 1.1, size=1000)

    axes = render.histogram(x).figure.axes[0]

    (outline, _) = axes.patches
    assert len(outline.get_data().values) == 4  # type: ignore[attr-defined]


def test_several_histograms_stand_side_by_side_or_in_one(run: Run) -> None:
    strips = {layer: run.activations[layer] for layer in run.layers("activations")}

    page = render.histogram(strips, view="heatmap").figure
    one = render.histogram(strips, view="overlay").figure

    assert len(page.axes) == 3
    assert {text.get_text() for text in page.texts} >= set(strips)
    assert len(one.axes) == 1
    lines = [line for line in one.axes[0].lines if np.size(line.get_xdata()) > 100]
    for line, strip in zip(lines, strips.values(), strict=True):
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        zeros = float((strip.frame() == 0).mean())  # left out where they are many
        assert y.sum() * (x[1] - x[0]) == pytest.approx(1 - zeros, abs=0.02)
    with pytest.raises(SpecError, match="empty"):
        render.histogram({})
    with pytest.raises(SourceError, match="no finite"):
        render.histogram({"a": np.full(5, np.nan)})


def test_arrays_stand_side_by_side_as_well() -> None:
    rng = np.random.default_rng(0)

    page = render.histogram({f"{i}": rng.normal(size=50) for i in range(40)}).figure

    assert len(page.axes) == 30
    assert any("30 of 40" in text.get_text() for text in page.texts)


def test_pages_and_comparisons_are_drawn_from_the_command_line(
    run_path: Path, tmp_path: Path, write_run: Callable[..., None]
) -> None:
    write_run(tmp_path / "other.zarr", (0, 10))
    common = [str(run_path), "-o", str(tmp_path / "out"), "--quiet"]

    def draw(*words: str) -> None:
        done = CliRunner().invoke(app, ["histogram", *common, *words])
        assert done.exit_code == 0, done.output

    draw("--page", "--view", "ridge")
    draw("relu*", "fc", "--page", "--view", "single", "--step", "20")
    draw("fc", "--view", "overlay", "--versus", str(tmp_path / "other.zarr"))
    draw("--page", "--view", "heatmap", "--versus", str(tmp_path / "other.zarr"))

    drawn = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.png")}
    assert "activations/histogram-ridge-page.png" in drawn
    assert "activations/fc/histogram-overlay-vs-other.png" in drawn
    assert len(drawn) == 4


def test_a_layer_that_one_run_lacks_is_said(run: Run, tmp_path: Path) -> None:
    with create_run(tmp_path / "bare.zarr") as bare:
        spec = FrameSpec((2, 3), "float32", layout="NC")
        x = np.ones((2, 3), np.float32)
        bare.writer("activations", {"other": spec}).append(0, {"other": x})
    sources = [RunSource(run), RunSource(open_run(tmp_path / "bare.zarr"))]

    for view in ("ridge", "overlay"):
        step = "all" if view == "ridge" else "20"
        wanted = HistogramSpec(layer="fc", view=view, step=step)
        words = " ".join(
            text.get_text() for text in PICTURES["histogram"](sources, wanted).figure.texts
        )
        assert "nothing in bare" in words
        assert not any(word in words for word in ("1 lines", "side by side", "each with its own"))
    with pytest.raises(Exception, match="none"):
        PICTURES["histogram"](sources, HistogramSpec(layer="none", view="ridge"))


def test_a_band_reaches_a_standard_deviation_to_both_sides(run: Run) -> None:
    strip = run.activations["fc"]

    axes = render.curve(strip, stat="mean", band=True).figure.axes[0]

    frames = np.stack([strip.frame(step) for step in strip.steps]).reshape(len(strip.steps), -1)
    mean, std = frames.mean(axis=1), frames.std(axis=1)
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
    for x, low, high in zip(strip.steps, mean - std, mean + std, strict=True):
        there = corners[corners[:, 0] == x, 1]
        assert (there.min(), there.max()) == pytest.approx((low, high), rel=1e-4)
    with pytest.raises(SpecError, match="around a mean"):
        CurveSpec(stat="l2", band=True)


def test_the_norm_is_that_of_all_layers_as_one_vector(run: Run) -> None:
    strips = [run.weights[layer] for layer in run.layers("weights")]

    (line,) = RunSource(run).series(CurveSpec(name="*", stat="norm", kind="weights"))

    for step, value in zip(line.x, line.values, strict=True):
        whole = np.concatenate([strip.frame(int(step)).ravel() for strip in strips])
        assert value == pytest.approx(np.linalg.norm(whole), rel=1e-5)
    assert line.label == "norm of 3 layers"


def test_new_options_are_in_names_and_commands() -> None:
    grid = GridSpec(layer="a", kind="weights", step=3, rgb=True, layout="HWIO")
    plain = GridSpec(layer="a", kind="inputs", step=3, rgb=False)
    page = HistogramSpec(layer="a*,b", page=True)

    assert file_name(grid) == "weights/a/grid-00000003-layoutHWIO-rgb.png"
    assert file_name(plain) == "inputs/a/grid-00000003-no-rgb.png"
    assert command(plain, ("r",)).endswith("a --kind inputs --step 3 --no-rgb")
    assert command(page, ("r", "s")) == ("filmstrip render histogram r 'a*' b --page --versus s")


def test_statistics_of_a_frame_agree_with_what_is_said(run: Run) -> None:
    values = summarize(run.activations["relu1"].frame(0))

    figure = render.histogram(run.activations["relu1"], 0, view="single").figure

    total = f"{int(values[0]):,} values".replace(",", "\u202f")
    assert any(total in text.get_text() for text in figure.texts)
