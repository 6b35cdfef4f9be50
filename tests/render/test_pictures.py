"""What pictures show: pixels against the data behind them."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from filmstrip import render
from filmstrip.render import SourceError, SpecError
from filmstrip.render._spec import BinScale, View
from filmstrip.store import create_run, open_run

if TYPE_CHECKING:
    from pathlib import Path

    from filmstrip.store import Run


VIEWS: Final = get_args(View)
BIN_SCALES: Final = get_args(BinScale)


def bytes_of(picture: render.Picture) -> npt.NDArray[np.uint8]:
    image = Image.open(io.BytesIO(picture.encode("png")))
    assert image.mode == "P"
    return np.asarray(image)


def tile(picture: render.Picture, row: int, x: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    assert picture.sheet is not None
    patch = picture.sheet.patches[row]
    h, w = size
    return bytes_of(picture)[patch.y : patch.y + h, patch.x + x : patch.x + x + w]


def test_each_tile_of_a_png_is_its_quantised_values_byte_for_byte(run: Run) -> None:
    strip = run.activations["relu1"]
    picture = render.grid(strip, 20, sample=2)

    values = strip.frame(20)[2]
    levels = np.clip(values * (228 / values.max()), 0, 227).astype(np.uint8)
    zoom = 20
    for channel in range(12):
        row, column = divmod(channel, 4)
        seen = tile(picture, row, column * (8 * zoom + 4), (8 * zoom, 8 * zoom))
        expected = np.kron(levels[channel], np.ones((zoom, zoom), np.uint8))
        assert np.abs(seen.astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(seen, np.kron(seen[::zoom, ::zoom], np.ones((zoom, zoom))))


def test_a_dead_channel_is_marked_red_and_counted(run: Run) -> None:
    picture = render.grid(run.activations["relu1"], 0)

    assert picture.sheet is not None
    marked = [label.text for label in picture.sheet.labels if label.tone == "red"]
    assert marked == ["5 dead"]
    assert any("1 dead" in label.text for label in picture.sheet.labels)
    red = Image.open(io.BytesIO(picture.encode())).convert("RGB")
    assert (np.asarray(red) == [200, 30, 30]).all(axis=2).any()


def test_values_that_are_no_numbers_have_their_colours_and_their_counts() -> None:
    x = np.abs(np.random.default_rng(0).normal(size=(4, 6, 6)))
    x[0, 0, :3] = np.nan
    x[1, 2, 2] = np.inf
    x[2, 3, :2] = -np.inf
    picture = render.grid(x)

    colors = np.asarray(picture.to_image().convert("RGB")).reshape(-1, 3)
    found = {tuple(color) for color in np.unique(colors, axis=0).tolist()}
    assert {(255, 0, 255), (255, 106, 0), (0, 200, 255)} <= found
    assert picture.sheet is not None
    texts = [label.text for label in picture.sheet.labels]
    assert {"NaN ×3", "+inf ×1", "−inf ×2"} <= set(texts)


def test_another_range_at_every_step_draws_the_chrome_once(run: Run) -> None:
    drawn = [render.grid(run.activations["relu1"], step).sheet for step in (0, 10, 20, 30)]

    assert len({sheet.chrome for sheet in drawn if sheet is not None}) == 1
    assert len({sheet.labels for sheet in drawn if sheet is not None}) == 4


def test_the_bar_says_which_value_has_which_colour() -> None:
    x = np.linspace(-3, 3, 64).reshape(1, 8, 8)
    picture = render.grid(x)

    assert picture.sheet is not None
    bar = picture.sheet.chrome.bar
    pixels = bytes_of(picture)
    marks = dict(
        zip([t.text for t in picture.sheet.labels[-7:]], picture.sheet.marks, strict=False)
    )
    zero = marks["0"]
    assert abs(int(pixels[zero, bar.x + 3]) - 114) <= 1
    assert pixels[bar.y, bar.x + 3] == 227
    assert pixels[bar.y + bar.height - 1, bar.x + 3] == 0


def test_kernels_have_their_input_channels_in_a_row() -> None:
    x = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    picture = render.grid(x, layout="OIHW", padding=2)

    assert picture.sheet is not None
    words = picture.sheet.labels[1].text
    assert "16 filters × 3×3" in words
    assert "3 input channels" in words


def test_what_does_not_fit_is_left_out_and_said() -> None:
    x = np.random.default_rng(0).normal(size=(256, 128, 3, 3)).astype(np.float32)

    picture = render.grid(x, layout="OIHW")

    assert picture.sheet is not None
    words = " ".join(label.text for label in picture.sheet.labels)
    assert "64 of 256 filters" in words
    assert "64 of 128 input channels" in words
    assert "left out" in words


def test_small_tiles_are_numbered_at_the_margins() -> None:
    picture = render.grid(np.random.default_rng(0).random((2048, 7, 7)))

    assert picture.sheet is not None
    texts = [label.text for label in picture.sheet.chrome.labels]
    columns = int(texts[1])
    assert texts[:3] == ["0", str(columns), str(2 * columns)]
    assert {"+0", "+2"} <= set(texts)
    assert "2048 channels" in picture.sheet.labels[1].text


def test_a_huge_matrix_is_pooled_so_that_an_outlier_stays() -> None:
    x = np.random.default_rng(0).normal(size=(3000, 2500)).astype(np.float32)
    x[1234, 567] = -50
    picture = render.grid(x, layout="OI")

    assert picture.sheet is not None
    block = picture.sheet.patches[0].pixels
    words = " ".join(label.text for label in picture.sheet.labels)
    assert "1 cell = 3×3 values (signed abs-max)" in words
    assert block[1234 // 3, 567 // 3] == 0
    assert max(picture.size) < 1800


def test_a_vector_is_one_row_and_a_long_one_is_wrapped() -> None:
    short, long = render.grid(np.arange(30.0)), render.grid(np.arange(3000.0))

    assert short.sheet is not None
    assert long.sheet is not None
    assert short.sheet.chrome.axes is not None
    assert short.sheet.chrome.axes.rows == 1
    assert "in rows of 256" in long.sheet.labels[1].text


def test_picked_channels_keep_their_numbers(run: Run) -> None:
    picture = render.grid(run.activations["relu1"], 0, channels=[3, 7])

    assert picture.sheet is not None
    assert [label.text for label in picture.sheet.chrome.labels] == ["3", "7"]


def test_the_scale_of_the_run_is_the_same_at_all_steps(run: Run) -> None:
    strip = run.activations["relu1"]
    top = max(float(strip.frame(step).max()) for step in strip.steps)

    words = [render.grid(strip, step, scale="run").sheet for step in (0, 40)]

    bars = [sheet.marks for sheet in words if sheet is not None]
    assert bars[0] == bars[1]
    low, high = run.statistics("activations").range("relu1")
    assert low == 0
    assert high == pytest.approx(top)


@pytest.mark.parametrize("make", ["grid", "histogram", "curve"])
@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_picture_has_the_same_bytes(run: Run, make: str, form: str) -> None:
    def draw() -> bytes:
        strip = run.activations["conv1"]
        picture: render.Picture = getattr(render, make)(strip)
        return picture.encode(form)

    assert draw() == draw()


def test_threads_draw_what_one_draws_alone(run: Run) -> None:
    work = [
        (layer, step) for layer in ("conv1", "relu1", "fc") for step in run.steps("activations")
    ]

    def draw(job: tuple[str, int]) -> bytes:
        layer, step = job
        return render.grid(run.activations[layer], step).encode()

    alone = [draw(job) for job in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, work * 2))

    assert together == alone * 2


def test_svg_and_pdf_hold_the_cells_and_the_title(run: Run, tmp_path: Path) -> None:
    picture = render.grid(run.weights["fc.weight"], title="price $5 and $6")
    root = ElementTree.fromstring(picture.encode("svg"))

    images = root.findall(".//{http://www.w3.org/2000/svg}image")
    assert len(images) == 4
    assert picture.save(tmp_path / "sub" / "fc.pdf").read_bytes().startswith(b"%PDF")


def test_a_dollar_is_a_dollar() -> None:
    x = np.ones((4, 5, 5))

    plain, dollars = render.grid(x, title="a x b"), render.grid(x, title=r"a $\frac{ b")

    assert dollars.encode("svg") != plain.encode("svg")
    assert bytes_of(dollars).shape == bytes_of(plain).shape


def test_a_name_that_the_font_cannot_show_is_drawn_without_a_warning() -> None:
    render.grid(np.ones((2, 3, 3)), title="層\n🙂\x00 conv").encode("svg")
    render.histogram(np.arange(9.0), title="層").encode("png")


def test_tensors_of_any_precision_are_drawn_like_their_arrays() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)

    brain = render.grid(x.bfloat16())

    assert brain.encode() == render.grid(x.bfloat16().float(), title="Tensor").encode()
    assert render.grid(x).encode() == render.grid(x.detach().numpy(), title="Tensor").encode()


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 4)),
        np.array(["a", "b"]),
        [[1, 2], [3]],
        np.zeros((1, 2, 3, 4, 5, 6)),
        object(),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(x: object) -> None:
    with pytest.raises(SpecError) as caught:
        render.grid(x)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vmin": 3.0, "vmax": 1.0}, "must be below"),
        ({"cmap": "viridiss"}, "viridis"),
        ({"columns": 0}, "1 or more"),
        ({"padding": -1}, "0 to 200"),
        ({"scale": "all"}, "shared"),
        ({"channels": "a"}, "0:5000:100"),
        ({"dpi": 0}, "30 to 1200"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_the_way_out(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        render.grid(np.ones((3, 4, 4)), **options)  # type: ignore[arg-type]


def test_a_channel_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SourceError, match=r"no channel 9: there are 3 \(0 to 2\)"):
        render.grid(np.ones((3, 4, 4)), channels=[9])


@pytest.mark.parametrize("fill", [0.0, 3.5, np.nan, np.inf, 1e-40, 3e38])
@pytest.mark.parametrize("shape", [(1, 1), (7,), (3, 5, 5), (2, 3, 3, 3)])
def test_any_constant_is_drawn(fill: float, shape: tuple[int, ...]) -> None:
    x = np.full(shape, fill, np.float32)

    for scale in ("shared", "each"):
        render.grid(x, scale=scale).encode()


def test_every_view_of_a_histogram_is_drawn_from_bits_and_from_frames(run: Run) -> None:
    stored, counted = run.activations["relu1"], run.gradients["fc.weight"]
    for view, scale in product(VIEWS, BIN_SCALES):
        strip = counted if scale == "symlog" else stored
        assert render.histogram(strip, view=view, bin_scale=scale).to_image().width == 1400


def test_a_histogram_of_nothing_finite_is_refused() -> None:
    with pytest.raises(SourceError, match="no finite"):
        render.histogram(np.full(5, np.nan))


def test_a_heat_map_of_one_step_and_of_one_value_is_drawn() -> None:
    for view, scale in zip(VIEWS, cycle(BIN_SCALES), strict=False):
        render.histogram(np.ones((1, 30)), view=view, bin_scale=scale).encode()
        render.histogram(np.zeros((3, 30)), view=view, bin_scale=scale).encode()


@pytest.mark.parametrize("size", [1e-320, 3e38, 1e300])
def test_values_of_any_size_have_histograms_and_grids(size: float) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, size=(3, 12, 12)) * size

    render.grid(x).encode()
    for view, scale in zip(VIEWS, cycle(BIN_SCALES), strict=False):
        render.histogram(x, view=view, bin_scale=scale).encode()


def test_a_distribution_shows_the_nine_quantiles_of_the_values() -> None:
    x = np.random.default_rng(0).normal(size=(4, 20_000))

    axes = render.histogram(x, view="distribution").figure.axes[0]

    (median,) = (line.get_ydata() for line in axes.lines)
    np.testing.assert_allclose(np.asarray(median, float), np.median(x, axis=1), atol=0.01)
    band = axes.collections[2].get_paths()[0].vertices  # between one standard deviation
    assert np.asarray(band)[:, 1].min() == pytest.approx(-1, abs=0.05)
    assert np.asarray(band)[:, 1].max() == pytest.approx(1, abs=0.05)


def test_an_overlay_has_a_density_a_step_that_integrates_to_one() -> None:
    x = np.random.default_rng(0).normal(size=(20, 5000))

    axes = render.histogram(x, view="overlay").figure.axes[0]

    curves = [line for line in axes.lines if np.size(line.get_xdata()) > 100]
    assert len(curves) == 8
    for line in curves:
        area = np.trapezoid(np.asarray(line.get_ydata()), np.asarray(line.get_xdata()))
        assert area == pytest.approx(1, abs=0.03)
    assert {"step 0", "step 19"} <= {text.get_text() for text in axes.texts}


def test_steps_are_chosen_in_python_as_channels_are(run: Run) -> None:
    strip = run.activations["relu1"]

    wanted = render.histogram(strip, "0,20", view="ridge").encode()

    assert render.histogram(strip, [0, 20], view="ridge").encode() == wanted
    assert render.grid(strip, channels=3).encode() == render.grid(strip, channels="3").encode()


def test_ticks_over_steps_are_steps_that_there_are(run: Run) -> None:
    for steps in ("0", "0,10", "all"):
        axes = render.histogram(run.activations["fc"], steps, view="heatmap").figure.axes[0]
        assert all(0 <= tick <= 40 for tick in axes.get_xticks())


def test_smoothing_is_the_debiased_average() -> None:
    from filmstrip.render.pictures.curve import smooth

    x = np.array([1.0, np.nan, 2.0, 5.0])

    weights = np.array([0.6**2, 0.6, 1.0])
    expected = (weights * [1.0, 2.0, 5.0]).sum() / weights.sum()
    assert smooth(x, 0.6)[-1] == pytest.approx(expected)
    assert np.isnan(smooth(x, 0.6)[1])


def test_a_curve_of_a_runs_numbers_has_their_name(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        for step in range(3):
            run.log(step, {"train/loss": 1 / (step + 1)})

    scalars = open_run(tmp_path / "run.zarr").scalars
    assert scalars["train/loss"].name == scalars["train.loss"].name == "train/loss"
    figure = render.curve(scalars["train/loss"]).figure
    assert "train/loss" in {text.get_text() for text in figure.texts + figure.axes[0].texts}


def test_a_curve_that_has_nothing_to_show_is_refused() -> None:
    with pytest.raises(SourceError, match="no finite"):
        render.curve([np.nan, np.inf])
    with pytest.raises(SourceError, match="above 0"):
        render.curve([-1.0, 0.0], log=True)
    with pytest.raises(SpecError, match="smoothing"):
        render.curve([1.0], smoothing=1.0)


def test_points_that_no_line_would_show_have_marks() -> None:
    y = np.arange(100.0)
    y[[40, 42, 43]] = np.nan

    (line,) = render.curve(y).figure.axes[0].lines

    assert line.get_markevery() == [41]


def test_curves_run_over_time_too(run: Run) -> None:
    view = run.view("scalars")
    rows = np.arange(len(view.steps()))
    seconds = view.wall_times(rows) - view.wall_times(rows[:1])

    axes = render.curve(run, "accuracy", axis="time").figure.axes[0]

    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xdata(), float), seconds)
    assert axes.get_xlabel().startswith("time (")
    assert render.curve(run.activations["fc"], axis="time").figure.axes[0].get_xlabel()
    with pytest.raises(SpecError, match="only a run knows"):
        render.curve([1.0, 2.0], axis="time")


def test_steps_between_whole_numbers_are_kept() -> None:
    axes = render.curve(([0.0, 0.25, 0.5], [1.0, 2.0, 3.0])).figure.axes[0]

    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0.0, 0.25, 0.5]


def test_labels_far_from_zero_say_how_far_they_are_from_the_first() -> None:
    axes = render.curve(np.arange(5) + 1e9).figure.axes[0]

    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["0", "1", "2", "3", "4"]
    assert axes.get_ylabel() == "+ 1000000000"


def test_a_logarithmic_axis_within_a_power_of_ten_has_ticks() -> None:
    axes = render.curve([1.01, 1.02, 1.03], log=True).figure.axes[0]

    assert len(axes.get_yticks()) >= 3


def test_long_names_of_curves_differ_where_the_layers_do() -> None:
    names = [f"encoder.layers.{i}.attention.output.dense.weight.and.more" for i in range(3)]

    axes = render.curve({name: np.arange(3.0) + i for i, name in enumerate(names)}).figure.axes[0]

    assert sorted(text.get_text() for text in axes.texts) == ["…0…", "…1…", "…2…"]


def test_a_very_long_name_is_cut_at_once() -> None:
    drawn = render.grid(np.ones((2, 3, 3)), title="n" * 300)

    assert drawn.sheet is not None
    assert "…" in drawn.sheet.labels[0].text


def test_pictures_of_a_run_say_so_in_their_metadata(run: Run) -> None:
    for picture in (render.curve(run), render.curve(run.activations["fc"])):
        assert picture.metadata["filmstrip-run"] == run.id


def test_names_with_control_characters_make_whole_files(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as writer:
        writer.log(0, {"a\x01b\x1f": 1.0})

    picture = render.curve(open_run(tmp_path / "run.zarr"))

    ElementTree.fromstring(picture.with_metadata({"Title": "a\x01\udc80"}).encode("svg"))
    picture.with_metadata({"Title": "a\x01\udc80"}).to_image()
    assert picture.encode("pdf").startswith(b"%PDF")


def test_a_style_of_the_user_does_not_change_a_picture() -> None:
    import matplotlib

    x = np.random.default_rng(0).normal(size=(5, 40))
    theirs: dict[Any, Any] = {
        "text.usetex": True,
        "path.sketch": (1, 100, 2),
        "axes.grid": True,
        "figure.autolayout": True,
        "text.hinting": "none",
    }

    def draw() -> list[bytes]:
        pictures = (render.curve(x[0]), render.histogram(x, view="heatmap"), render.grid(x))
        return [one.encode(form) for one in pictures for form in ("png", "svg")]

    plain = draw()
    with matplotlib.rc_context(theirs):
        assert draw() == plain
        assert matplotlib.rcParams["text.usetex"]


def test_picked_rows_and_units_keep_their_numbers_on_the_axes() -> None:
    x = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)

    rows = render.grid(x, layout="OI", channels="20:30").figure.axes[-1]
    units = render.grid(x, layout="NC", channels=[7]).figure.axes[-1]

    assert next(label.get_text() for label in rows.get_yticklabels()) == "20"
    assert [label.get_text() for label in units.get_xticklabels()] == ["7"]


def test_a_picture_that_is_too_large_is_refused_before_it_takes_memory() -> None:
    x = np.broadcast_to(np.float32(1), (4096, 300, 300))

    tracemalloc.start()
    try:
        with pytest.raises(SpecError, match="the picture would have"):
            render.grid(x[:300], columns=1, downsample="none")
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_complex_curves_and_tensors_without_data_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))

    plain = render.grid(x.abs(), title="Tensor").to_image().size

    assert render.grid(x.conj()).to_image().size == plain
    with pytest.raises(SpecError, match="cannot be read"):
        render.grid(torch.empty(3, 3, device="meta"))
    with pytest.raises(SpecError, match="real values"):
        render.curve([1j, 2.0])
    with pytest.raises(SpecError, match="finite steps"):
        render.curve(([0.0, np.nan], [1.0, 2.0]))


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_complex_tensors_of_half_precision_keep_their_imaginary_part() -> None:
    torch = pytest.importorskip("torch")
    x = torch.complex(torch.zeros(3, 4), torch.arange(12.0).reshape(3, 4))

    assert render.grid(x.to(torch.complex32)).encode() == render.grid(x).encode()


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support:UserWarning")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc"])
def test_sparse_tensors_are_drawn_like_dense_ones(layout: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.eye(4)

    picture = render.grid(x.to_sparse(layout=getattr(torch, layout)))

    assert picture.encode() == render.grid(x).encode()


def test_forty_curves_are_drawn_and_told_apart() -> None:
    lines = {f"layer{i}.weight": np.arange(20.0) * i for i in range(1, 41)}

    picture = render.curve(lines, log=True, smoothing=0.5)

    colors = {line.get_color() for line in picture.figure.axes[0].lines}
    assert len(colors) == 40


def test_pyplot_is_never_imported(run_path: Path) -> None:
    script = f"""
import sys
from filmstrip import render
from filmstrip.store import open_run
assert "matplotlib" not in sys.modules
run = open_run({str(run_path)!r})
strip = run.activations["relu1"]
for picture in (render.grid(strip), render.grid(run.weights["fc.weight"]), render.curve(run)):
    for form in ("png", "svg", "pdf"):
        picture.encode(form)
for view in ("single", "ridge", "overlay", "heatmap", "distribution"):
    render.histogram(strip, view=view).encode()
assert "matplotlib.pyplot" not in sys.modules
assert not any(name.split(".")[0] in {{"torch", "dask", "tkinter"}} for name in sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
