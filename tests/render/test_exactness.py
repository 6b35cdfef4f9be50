"""The bytes of a picture are the quantised data, in every format, from arrays of any library."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filmstrip import render
from filmstrip.render._palette import BACKGROUND, LEVELS, NAN, NEGINF, POSINF, colors

if TYPE_CHECKING:
    from pathlib import Path

    from filmstrip.render._sheet import Patch

Bytes = npt.NDArray[np.uint8]


def pixels_of(picture: render.Picture) -> Bytes:
    return np.asarray(Image.open(io.BytesIO(picture.encode("png"))))


def level_of(x: float, low: float, high: float) -> int:
    """Quantise one value with Python's own numbers."""
    if x != x:
        return NAN
    if x in {float("inf"), -float("inf")}:
        return POSINF if x > 0 else NEGINF
    return min(LEVELS - 1, max(0, int((x - low) * LEVELS / (high - low))))


def patches_of(picture: render.Picture) -> tuple[Patch, ...]:
    assert picture.sheet is not None
    return picture.sheet.patches


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 9),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.integers(0, 8),
    dpi=st.sampled_from([100.0, 150.0, 200.0]),
    seed=st.integers(0, 2**16),
)
def test_the_block_of_tiles_is_the_quantised_data_byte_for_byte(
    count: int, size: tuple[int, int], padding: int, dpi: float, seed: int
) -> None:
    x = np.random.default_rng(seed).uniform(-1, 1, (count, *size))
    x.flat[0], x.flat[-1] = np.nan, np.inf
    picture = render.grid(x, layout="CHW", vmin=-1, vmax=1, columns=3, padding=padding, dpi=dpi)

    found = pixels_of(picture)
    h, w = size
    across = min(3, count)
    first = patches_of(picture)[0]
    # One row of tiles: h values down, and as many columns with their gaps across.
    zoom = first.pixels.shape[0] // h
    gap = (first.pixels.shape[1] - across * w * zoom) // max(1, across - 1)
    for i, tile in enumerate(x):
        row = patches_of(picture)[i // 3]
        left = row.x + i % 3 * (w * zoom + gap)
        seen = found[row.y : row.y + h * zoom, left : left + w * zoom]
        levels = [[level_of(float(v), -1, 1) for v in line] for line in tile]
        expected = np.kron(np.array(levels), np.ones((zoom, zoom), int))
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("scale", ["shared", "each"])
def test_a_matrix_is_its_quantised_values_and_its_bar_reads_them_back(scale: str) -> None:
    x = np.random.default_rng(0).normal(size=(40, 60))
    picture = render.grid(x, layout="OI", scale=scale)  # type: ignore[arg-type]

    found = pixels_of(picture)
    assert picture.sheet is not None
    box, bar = picture.sheet.chrome.axes, picture.sheet.chrome.bar
    assert box is not None
    zoom = box.width // 60
    top = np.abs(x).max()
    cells = found[box.y : box.y + box.height : zoom, box.x : box.x + box.width : zoom]
    column = found[slice(*bar.inside), bar.x + bar.width // 2]
    assert (np.diff(column.astype(int)) <= 0).all()
    values = np.linspace(top, -top, len(column))  # from the upper end of the bar to the lower
    step = 2 * top / LEVELS
    for byte, value in zip(cells.ravel(), x.ravel(), strict=True):
        read = values[column == byte]
        assert read.min() - step <= value <= read.max() + step


def svg_images(picture: render.Picture) -> list[Bytes]:
    root = ElementTree.fromstring(picture.encode("svg"))
    images = root.findall(".//{http://www.w3.org/2000/svg}image")
    encoded = [image.attrib["{http://www.w3.org/1999/xlink}href"] for image in images]
    opened = [Image.open(io.BytesIO(base64.b64decode(one.split(",", 1)[1]))) for one in encoded]
    return [np.asarray(one.convert("RGBA")) for one in opened]


@pytest.mark.parametrize("rgb", [False, True])
def test_the_cells_of_an_svg_are_those_of_the_png(rgb: bool) -> None:
    x = np.random.default_rng(0).uniform(size=(5, 3, 6, 7))
    picture = render.grid(x, layout="OIHW", rgb=rgb)

    images = svg_images(picture)

    assert picture.sheet is not None
    table = colors(picture.sheet.cmap)
    for patch, image in zip(patches_of(picture), images, strict=False):
        expected = patch.pixels if rgb else table[patch.pixels]
        shown = image[..., 3] > 0
        np.testing.assert_array_equal(image[shown][:, :3], expected[shown])
        assert rgb or (patch.pixels[~shown] == BACKGROUND).all()


def test_tiles_of_colour_are_red_green_and_blue_of_the_data() -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    picture = render.grid(x, layout="NHWC", rgb=True, columns=2)

    found = pixels_of(picture)
    table = colors("gray")[:, 0].astype(int)
    first = patches_of(picture)[0]
    zoom = first.pixels.shape[0] // 8
    seen = found[first.y : first.y + 8 * zoom : zoom, first.x : first.x + 8 * zoom : zoom]
    levels = np.minimum(x[0].astype(float) / 255 * LEVELS, LEVELS - 1).astype(int)

    np.testing.assert_array_equal(seen, table[levels])
    assert np.abs(seen.astype(int) - x[0]).max() <= 255 / LEVELS + 1


def test_a_pixel_of_colour_is_magenta_where_one_channel_is_no_number() -> None:
    x = np.random.default_rng(0).uniform(size=(2, 3, 4, 4))
    x[0, 1, 2, 3] = np.nan
    picture = render.grid(x, layout="NCHW", rgb=True)

    first = patches_of(picture)[0]
    zoom = first.pixels.shape[0] // 4

    assert first.pixels[2 * zoom, 3 * zoom].tolist() == [255, 0, 255]
    assert picture.sheet is not None
    assert "NaN ×1" in {label.text for label in picture.sheet.labels}


def test_an_image_has_256_colours_or_its_own() -> None:
    x = np.random.default_rng(0).uniform(size=(2, 3, 4, 4))

    modes = [
        Image.open(io.BytesIO(render.grid(x, layout="NCHW", rgb=rgb).encode())).mode
        for rgb in (None, False, True)
    ]

    assert modes == ["P", "P", "RGB"]


@pytest.mark.parametrize("library", ["torch", "tensorflow", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_arrays_of_every_library_are_drawn_like_numpy_s(library: str, dtype: str) -> None:
    module = pytest.importorskip({"jax": "jax.numpy"}.get(library, library))
    whole = np.random.default_rng(0).integers(-8, 8, (6, 5, 5))
    make = {"torch": "tensor", "tensorflow": "constant", "jax": "asarray"}[library]
    tensor = getattr(module, make)(whole.astype(np.float64), dtype=getattr(module, dtype))

    wanted = render.grid(whole, title="x")

    assert render.grid(tensor, title="x").encode() == wanted.encode()
    np.testing.assert_array_equal(render.mosaic(tensor), render.mosaic(whole))
    assert render.histogram(tensor, title="x").encode() == (
        render.histogram(whole, title="x").encode()
    )


def test_a_notebook_keeps_its_backend(tmp_path: Path) -> None:
    script = """
import os, sys
import matplotlib
before = dict(dict.items(matplotlib.rcParams))
import numpy as np
from filmstrip import render
x = np.random.default_rng(0).normal(size=(4, 6, 6))
for picture in (render.grid(x), render.histogram(x), render.curve(x[0, 0])):
    assert picture._repr_png_().startswith(bytes([137]) + b"PNG")
    picture.encode("svg"), picture.encode("pdf")
assert dict(dict.items(matplotlib.rcParams)) == before
assert before["backend"] == "svg" and os.environ["MPLBACKEND"] == "svg"
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {"MPLBACKEND": "svg", "PATH": "", "HOME": str(tmp_path)}

    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment)
