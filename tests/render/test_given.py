"""What Python's functions take, and what their pictures say of where they come from."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from filmstrip import render
from filmstrip.render import SourceError, SpecError
from filmstrip.render.cli import app
from filmstrip.store import FrameSpec, Run, create_run, open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def runs(write_run: Callable[..., None], tmp_path: Path) -> list[Run]:
    """Return two runs, the second one shorter."""
    write_run(tmp_path / "a.zarr")
    write_run(tmp_path / "b.zarr", (0, 10, 20))
    return [open_run(tmp_path / name) for name in ("a.zarr", "b.zarr")]


def words_of(picture: render.Picture) -> set[str]:
    figure = picture.figure
    return {text.get_text() for text in figure.texts + [t for a in figure.axes for t in a.texts]}


def test_statistics_of_several_strips_are_one_picture(runs: list[Run]) -> None:
    a, b = (run.activations["relu1"] for run in runs)

    picture = render.curve({"a": a, "b": b}, stat="dead")

    lines = picture.figure.axes[0].lines
    for line, run in zip(lines, runs, strict=True):
        expected = run.statistics("activations")["relu1", "dead"].values
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), expected)
    assert words_of(picture) >= {"relu1 · dead", "a", "b"}
    both = render.curve({"w": runs[0].weights["fc.weight"], "x": a}, stat="rms")
    assert "filmstrip-command" not in both.metadata
    assert any("weights and activations" in word for word in words_of(both))


def test_several_runs_are_one_picture(runs: list[Run]) -> None:
    given = dict(zip("ab", runs, strict=True))

    loss = render.curve(given, "train/loss")
    norm = render.curve(given, stat="fc*/l2", kind="weights")

    assert words_of(loss) >= {"train/loss", "a", "b"}
    assert [np.size(line.get_xdata()) for line in loss.figure.axes[0].lines] == [5, 3]
    assert words_of(norm) >= {"fc* · l2", "a fc.weight", "a fc.bias", "b fc.weight", "b fc.bias"}
    assert render.curve(given, "accuracy", axis="time").figure.axes[0].get_xlabel() != "step"


def test_a_run_that_lacks_what_is_compared_is_named(runs: list[Run], tmp_path: Path) -> None:
    with create_run(tmp_path / "bare.zarr") as bare:
        bare.log(0, {"other": 1.0})
    given = {"a": runs[0], "bare": open_run(tmp_path / "bare.zarr")}

    picture = render.curve(given, "accuracy")

    assert any("none in bare" in word for word in words_of(picture))
    with pytest.raises(SourceError, match="no scalar 'none'"):
        render.curve(given, "none")


@pytest.mark.parametrize(
    "draw",
    [
        lambda a, b: render.curve({"a": a.activations["fc"], "b": b.activations["fc"]}, stat="std"),
        lambda a, b: render.curve({"a": a, "b": b}, "accuracy"),
        lambda a, b: render.curve(a.activations, stat="mean"),
        lambda a, b: render.curve(a.scalars["train/loss"], log=True),
        lambda a, b: render.curve({"a": a.scalars["accuracy"], "b": b.scalars["accuracy"]}),
        lambda a, b: render.curve(dict(a.scalars)),
        lambda a, b: render.histogram(a.activations, view="heatmap"),
        lambda a, b: render.histogram({"a": a.weights["fc.bias"], "b": b.weights["fc.bias"]}),
    ],
    ids=range(8),
)
def test_what_comes_from_runs_says_so_and_its_command_draws_it(
    draw: Callable[[Run, Run], render.Picture], runs: list[Run], tmp_path: Path
) -> None:
    about = draw(*runs).metadata

    assert runs[0].attributes["run_id"] in about["filmstrip-run"]
    assert about["filmstrip-step"] == "all"
    result = CliRunner().invoke(
        app, [*shlex.split(about["filmstrip-command"])[2:], "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "out").rglob("*.png")
    assert about["filmstrip-digest"].encode() in path.read_bytes()


def test_of_what_no_command_draws_the_runs_are_known(runs: list[Run]) -> None:
    a, b = runs
    pictures = [
        render.histogram({"a": a.weights["fc.bias"], "b": b.weights["fc.weight"]}),
        render.curve({"a": a.scalars["accuracy"], "b": b.scalars["train/loss"]}),
    ]

    for picture in pictures:
        assert picture.metadata == {
            "Software": "filmstrip",
            "filmstrip-run": " ".join(run.attributes["run_id"] for run in runs),
        }
    assert render.curve([1.0, 2.0]).metadata == {"Software": "filmstrip"}


def test_columns_of_pandas_are_curves_over_their_index() -> None:
    pd = pytest.importorskip("pandas")
    column = pd.Series([1.0, 2.0, 3.0], index=[10, 20, 40], name="loss")
    named = pd.Series([1.0, 2.0], index=["a", "b"])

    (line,) = render.curve(column).figure.axes[0].lines
    (other,) = render.curve(named).figure.axes[0].lines
    table = render.curve(pd.DataFrame({"x": column, "y": column * 2}))

    np.testing.assert_array_equal(line.get_xdata(), [10, 20, 40])
    np.testing.assert_array_equal(other.get_xdata(), [0, 1])
    assert "loss" in words_of(render.curve(column))
    assert words_of(table) >= {"x", "y"}


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "c8"])
def test_what_is_masked_is_not_shown(dtype: str) -> None:
    values = np.arange(1, 13).reshape(3, 4).astype(dtype)
    mask = values == 12
    masked = np.ma.masked_array(values, mask)

    shown = render.mosaic(masked)

    np.testing.assert_array_equal(np.isnan(shown), mask)
    np.testing.assert_array_equal(shown[~mask], np.abs(values[~mask]))
    assert any("NaN ×1" in label.text for label in _labels(render.grid(masked)))
    assert render.mosaic(np.ma.masked_array(values)).shape == (3, 4)


def _labels(picture: render.Picture) -> list[Any]:
    assert picture.sheet is not None
    return list(picture.sheet.labels)


@pytest.mark.parametrize(
    ("function", "words", "message"),
    [
        ("grid", {"step": 0.5}, "step is 0.5; it must be a whole number"),
        ("grid", {"step": "1"}, "step is '1'; it must be a whole number"),
        ("grid", {"sample": 1.0}, "sample is 1.0; it must be a whole number or None"),
        ("grid", {"dpi": "200"}, "dpi is '200'; it must be a number"),
        ("grid", {"vmin": "a"}, "vmin is 'a'; it must be a number or None"),
        ("grid", {"vmax": True}, "vmax is True; it must be a number or None"),
        ("grid", {"cmap": 1}, "cmap is 1; it must be a string or None"),
        ("grid", {"columns": 2.5}, "columns is 2.5; it must be a whole number or None"),
        ("grid", {"padding": 1.5}, "padding is 1.5; it must be a whole number"),
        ("grid", {"layout": 4}, "layout is 4; it must be a string or None"),
        ("grid", {"rgb": "yes"}, "rgb is 'yes'; it must be True or False or None"),
        ("grid", {"title": 1}, "title is 1; it must be a string or None"),
        ("grid", {"channels": 2.5}, "channels is 2.5; it must be a whole number, several"),
        ("grid", {"scale": 1}, "--scale 1 is none of: shared"),
        ("animation", {"fps": "a"}, "fps is 'a'; it must be a number"),
        ("animation", {"step": 0.5}, "step is 0.5; it must be a whole number, several"),
        ("histogram", {"bins": 2.5}, "bins is 2.5; it must be a whole number or None"),
        ("histogram", {"step": [0.5]}, r"step is \[0.5\]; it must be a whole number, several"),
        ("curve", {"smoothing": "a"}, "smoothing is 'a'; it must be a number"),
        ("curve", {"stat": 1}, "stat is 1; it must be a string or None"),
        ("mosaic", {"sample": 1.0}, "sample is 1.0; it must be a whole number"),
        ("mosaic", {"columns": 2.5}, "columns is 2.5; it must be a whole number or None"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    function: str, words: dict[str, Any], message: str, run: Run
) -> None:
    with pytest.raises(SpecError, match=message):
        getattr(render, function)(run.activations["relu1"], **words)


def test_a_statistic_is_of_layers(run: Run) -> None:
    with pytest.raises(SpecError, match="stat is 'l2'; of a run it must be LAYER/STAT"):
        render.curve(run, stat="l2")
    with pytest.raises(SpecError, match="band is around a mean"):
        render.curve(run, band=True)
    with pytest.raises(SpecError, match="--stat is of layers"):
        render.curve(run, stat="accuracy/mean", kind="scalars")
    with pytest.raises(SpecError, match="stat and band are of strips and runs"):
        render.curve([1.0], stat="l2")


def test_numbers_of_numpy_are_numbers(run: Run) -> None:
    strip = run.activations["relu1"]

    given: dict[str, Any] = {"step": np.int64(20), "columns": np.int8(3), "vmax": np.float32(2)}
    picture = render.grid(strip, **given, dpi=100)

    assert picture.metadata == render.grid(strip, 20, columns=3, vmax=2.0, dpi=100.0).metadata


def test_an_empty_strip_says_so_whatever_is_drawn(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as writer:
        spec = FrameSpec((1, 2, 3, 3), "float32", layout="NCHW")
        writer.writer("activations", {"late": spec})
        writer.statistics_writer("activations", ["late"])
    strip = open_run(tmp_path / "run.zarr").activations["late"]

    for draw in (render.grid, render.mosaic, render.histogram, render.animation, render.curve):
        with pytest.raises(SourceError, match="late has no committed steps yet"):
            draw(strip)
