"""Measure what a grid costs, store to PNG, beside other ways to draw one.

    python tests/benchmarks/render.py [--json]

CPU seconds of one process, the least of several rounds; the ways take turns, so that a busy
machine slows all of them. Start-up is left out: each way draws once before it is measured.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / portion) for portion in ("render", "store") if (ROOT / portion).is_dir()]
os.environ["MPLBACKEND"] = "agg"

import matplotlib.pyplot as plt  # noqa: E402, TID251 - the peer that is measured
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from PIL import Image  # noqa: E402

from filmstrip.render._palette import colors, quantise  # noqa: E402
from filmstrip.render._png import encode_png  # noqa: E402
from filmstrip.render._source import RunSource  # noqa: E402
from filmstrip.render._spec import GridSpec  # noqa: E402
from filmstrip.render._tiles import mosaic_of, shape_of_grid, tile_rows  # noqa: E402
from filmstrip.render.pictures.grid import draw  # noqa: E402
from filmstrip.store import FrameSpec, create_run, open_run  # noqa: E402

Frame = npt.NDArray[np.float32]
SHAPES = ((64, 28, 28), (256, 14, 14), (512, 7, 7))
STEPS = 20
ROUNDS = 5
SAMPLED = 3  # channels that the loop over channels really draws
GRIDS_A_SECOND = 90.0
TIMES_PYPLOT = 500.0


@dataclass(frozen=True)
class Way:
    """One way to draw: a name, a function of a frame, how often a round calls it, a factor.

    The factor scales what was measured to a whole grid.
    """

    name: str
    draw: Callable[[int], object]
    calls: int = 1
    factor: float = 1.0


def write(path: Path) -> None:
    """Write a run of smooth maps without negative values, as after a ReLU."""
    rng = np.random.default_rng(0)
    with create_run(path) as run:
        specs = {
            f"map{shape[0]}": FrameSpec((1, *shape), "float32", layout="NCHW") for shape in SHAPES
        }
        writer = run.writer("activations", specs)
        for step in range(STEPS):
            frames = {}
            for shape in SHAPES:
                x = rng.normal(size=(1, *shape)).astype(np.float32)
                for axis in (2, 3):
                    x = x + np.roll(x, 1, axis) + np.roll(x, -1, axis)
                frames[f"map{shape[0]}"] = np.maximum(x, 0)
            writer.append(step, frames)


def per_channel(frame: Frame, count: int) -> None:
    """Draw one figure for each channel with pyplot, as most scripts do."""
    for channel in frame[0, :count]:
        plt.matshow(channel)
        plt.title("channel")
        plt.colorbar()
        plt.savefig(io.BytesIO())
        plt.close()


def subplots(frame: Frame) -> None:
    """Draw all channels with one axes each."""
    rows, columns = shape_of_grid(frame.shape[1])
    figure, axes = plt.subplots(rows, columns, figsize=(9, 8.4))
    for axis, channel in zip(axes.ravel(), frame[0], strict=False):
        axis.matshow(channel)
        axis.axis("off")
    figure.savefig(io.BytesIO())
    plt.close(figure)


def one_axes(frame: Frame) -> None:
    """Draw a mosaic into one axes, with a colour bar and a title."""
    figure, axis = plt.subplots(figsize=(9, 8.4))
    shown = axis.imshow(mosaic_of(frame[0], columns=None, padding=1), interpolation="nearest")
    figure.colorbar(shown)
    axis.set_title("layer")
    figure.savefig(io.BytesIO())
    plt.close(figure)


def make_grid(frame: Frame) -> None:
    """Draw pixels without text, upscaled, as torchvision's make_grid and save_image do."""
    grey = mosaic_of(frame[0], columns=8, padding=2)
    grey = np.nan_to_num(grey / np.nanmax(grey) * 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    image = image.resize((image.width * 5, image.height * 5), Image.Resampling.NEAREST)
    image.save(io.BytesIO(), "PNG")


def floor(frame: Frame) -> None:
    """Encode a palette PNG of one pixel a value: nothing that shows all values costs less."""
    levels = quantise(frame[0][:, None], 0.0, float(frame.max()))
    columns = shape_of_grid(len(levels))[1]
    strips = tile_rows(levels, columns=columns, zoom=1, gap=1)
    encode_png(strips.reshape(-1, strips.shape[2]), palette=colors("viridis"))


def measure(ways: list[Way]) -> dict[str, float]:
    """Return the least CPU seconds of each way; they take turns."""
    least = {way.name: float("inf") for way in ways}
    for way in ways:
        way.draw(0)
    for round_ in range(ROUNDS):
        for way in ways:
            start = time.process_time()
            for call in range(way.calls):
                way.draw((round_ + call) % STEPS)
            spent = (time.process_time() - start) / way.calls * way.factor
            least[way.name] = min(least[way.name], spent)
    return least


def ways_of(source: RunSource, shape: tuple[int, int, int], out: Path) -> list[Way]:
    """All ways to draw a layer, each from the store."""
    layer = f"map{shape[0]}"
    strip = source.strip("activations", layer)

    def ours(step: int) -> None:
        picture = draw(source, GridSpec(layer=layer, step=step))
        (out / f"{step}.png").write_bytes(picture.encode("png"))

    def from_store(way: Callable[[Frame], None]) -> Callable[[int], None]:
        return lambda step: way(strip.frame(step))

    return [
        Way("filmstrip", ours, STEPS),
        Way("read + palette PNG, 1 pixel a value (floor)", from_store(floor), STEPS),
        Way("make_grid and Pillow, no text", from_store(make_grid), 4),
        Way("one axes, mosaic, colour bar", from_store(one_axes)),
        Way("plt.subplots", from_store(subplots)),
        Way(
            f"one pyplot figure a channel ({SAMPLED} drawn, scaled)",
            from_store(lambda frame: per_channel(frame, SAMPLED)),
            factor=shape[0] / SAMPLED,
        ),
    ]


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="leave plt.subplots out")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write(path / "run.zarr")
        source = RunSource(open_run(path / "run.zarr"))
        for shape in SHAPES:
            ways = ways_of(source, shape, path)
            if options.quick:
                ways = [way for way in ways if way.name != "plt.subplots"]
            results["×".join(map(str, shape))] = measure(ways)
    first = results["×".join(map(str, SHAPES[0]))]
    ours, pyplot = first["filmstrip"], list(first.values())[-1]
    goals = {
        "grids a second and core, 64×28×28": (1 / ours, GRIDS_A_SECOND),
        "times the per-channel pyplot loop": (pyplot / ours, TIMES_PYPLOT),
    }
    if options.json:
        print(json.dumps({"seconds": results, "goals": goals}, ensure_ascii=False, indent=1))
        return
    width = max(len(name) for name in first)
    print(f"{'CPU ms a grid (× filmstrip)':{width}}" + "".join(f"{s:>20}" for s in results))
    for name in first:
        cells = [f"{r[name] * 1e3:.1f} (×{r[name] / r['filmstrip']:.1f})" for r in results.values()]
        print(f"{name:{width}}" + "".join(f"{cell:>20}" for cell in cells))
    for name, (reached, goal) in goals.items():
        print(f"{name}: {reached:.0f}, goal {goal:.0f}: {'met' if reached >= goal else 'MISSED'}")


if __name__ == "__main__":
    main()
