"""The gallery: what it draws by hand is drawn, and it shows every kind of picture."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from filmstrip import render
from filmstrip.render._spec import ANIMATION_FORMATS, BIN_SCALES, FORMATS, VIEWS
from filmstrip.render.cli import app
from filmstrip.render.pictures import PICTURES
from filmstrip.store import open_run

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "demo" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(gallery: ModuleType) -> list[str]:
    return [line.strip() for block in gallery.PICTURES.values() for line in block.splitlines()]


def test_it_shows_every_picture_view_and_scale(gallery: ModuleType) -> None:
    drawn = lines(gallery)

    assert {line.split()[0] for line in drawn if line} == {*PICTURES, "all"}
    words = " ".join(drawn)
    assert all(f"--view {view}" in words for view in VIEWS if view != "ridge")  # the default
    assert all(scale in words for scale in BIN_SCALES if scale != "linear")
    forms = {*FORMATS, *ANIMATION_FORMATS} - {"png", "apng"}  # the defaults
    assert all(f"--format {form}" in words for form in forms)


def test_what_goes_wrong_in_a_network_is_drawn(gallery: ModuleType, tmp_path: Path) -> None:
    gallery.write_odd(tmp_path / "odd.zarr")

    for line in filter(None, map(str.strip, gallery.PICTURES["odd"].splitlines())):
        words = line.split()
        command = [words[0], str(tmp_path / "odd.zarr"), *words[1:], "-o", str(tmp_path), "--quiet"]
        assert not app(command, standalone_mode=False), line

    assert (tmp_path / "index.html").is_file()
    run = open_run(tmp_path / "odd.zarr")
    for kind in ("weights", "images"):
        for layer in run.layers(kind):
            assert list((tmp_path / kind / layer).glob("grid-*.png"))


def test_the_transformer_learns_and_its_heads_are_drawn(tmp_path: Path) -> None:
    run = tmp_path / "text.zarr"
    options = ["--steps", "3", "--batch-size", "4", "--capture", str(run), "--capture-every", "2"]
    subprocess.run([sys.executable, ROOT / "demo" / "text.py", *options], check=True)

    strip = open_run(run).activations["blocks.1.attention.weights"]
    loss = open_run(run).scalars["train/loss"].values
    picture = render.grid(strip, layout="NHQK")

    assert loss[-1] < loss[0]
    np.testing.assert_allclose(strip.frame().sum(axis=-1), 1, rtol=1e-5)
    assert picture.sheet is not None
    assert "4 heads × 48×48" in picture.sheet.labels[1].text
