"""Measure what pictures cost, store to PNG, beside other ways to draw them.

    python tests/benchmarks/render.py [--json] [--quick] [--only grids|matrix|histograms]

CPU seconds of one process, the least of several rounds; the ways take turns, so that a busy
machine slows all of them. Start-up is left out: each way draws once before it is measured.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / portion) for portion in ("render", "store") if (ROOT / portion).is_dir()]
os.environ["MPLBACKEND"] = "agg"

import matplotlib.pyplot as plt  # noqa: E402, TID251 - the peer that is measured
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from histograms import figures as histograms  # noqa: E402
from measure import Figure, interleaved, report  # noqa: E402
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
    calls = itertools.count()

    def called(way: Way) -> Callable[[], float]:
        def action() -> float:
            start = time.process_time()
            for _ in range(way.calls):
                way.draw(next(calls) % STEPS)
            return (time.process_time() - start) / way.calls * way.factor

        return action

    for way in ways:
        way.draw(0)
    return interleaved({way.name: called(way) for way in ways}, ROUNDS)


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


def matrices(folder: Path) -> list[Figure]:
    """Return what a matrix of 4,096 × 4,096 costs beside matshow."""
    x = np.random.default_rng(0).normal(size=(1, 4096, 4096)).astype(np.float32)
    with create_run(folder / "matrix.zarr") as run:
        spec = FrameSpec((4096, 4096), "float32", layout="OI")
        run.writer("weights", {"fc": spec}).append(0, {"fc": x[0]})
    source = RunSource(open_run(folder / "matrix.zarr"))
    strip = source.strip("weights", "fc")

    def matshow() -> None:
        figure, axis = plt.subplots(figsize=(9, 8.4))
        figure.colorbar(axis.matshow(strip.frame(0), cmap="RdBu_r"))
        figure.savefig(io.BytesIO())
        plt.close(figure)

    def ours() -> None:
        draw(source, GridSpec(kind="weights", layer="fc", step=0)).encode("png")

    def read() -> None:
        strip.frame(0)

    ours()
    actions = {"ours": ours, "matshow": matshow, "read": read}
    least = interleaved(actions, ROUNDS, clock=time.process_time)
    return [
        Figure("matrix 4096×4096, store to PNG", least["ours"] * 1e3, unit="ms CPU"),
        Figure("matshow of it / filmstrip", least["matshow"] / least["ours"], "at least", 4.0),
        Figure("filmstrip / reading it", least["ours"] / least["read"]),
    ]


def grids(folder: Path, *, quick: bool, as_json: bool) -> list[Figure]:
    """Print what grids cost, and return the figures that have a goal."""
    write(folder / "run.zarr")
    source = RunSource(open_run(folder / "run.zarr"))
    results: dict[str, dict[str, float]] = {}
    for shape in SHAPES:
        ways = ways_of(source, shape, folder)
        if quick:
            ways = [way for way in ways if way.name != "plt.subplots"]
        results["×".join(map(str, shape))] = measure(ways)
    first = results["×".join(map(str, SHAPES[0]))]
    if as_json:
        print(json.dumps(results, ensure_ascii=False, indent=1))
    else:
        width = max(len(name) for name in first)
        print(f"{'CPU ms a grid (× filmstrip)':{width}}" + "".join(f"{s:>20}" for s in results))
        for name in first:
            costs = [(one[name], one["filmstrip"]) for one in results.values()]
            cells = [f"{cost * 1e3:.1f} (×{cost / ours:.1f})" for cost, ours in costs]
            print(f"{name:{width}}" + "".join(f"{cell:>20}" for cell in cells))
    ours, pyplot = first["filmstrip"], list(first.values())[-1]
    return [
        Figure("grids a second and core, 64×28×28", 1 / ours, "at least", GRIDS_A_SECOND, ""),
        Figure("per-channel pyplot loop / filmstrip", pyplot / ours, "at least", TIMES_PYPLOT),
    ]


def main() -> int:
    """Measure and print tables, or JSON; return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    parser.add_argument(
        "--quick", action="store_true", help="no plt.subplots, a tenth of the strip"
    )
    parser.add_argument("--only", choices=("grids", "matrix", "histograms"))
    options = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in {None, "grids"}:
            found += grids(folder, quick=options.quick, as_json=options.json)
        if options.only in {None, "matrix"}:
            found += matrices(folder)
        if options.only in {None, "histograms"}:
            found += histograms(folder, 100 if options.quick else 1000)
    if options.json:
        print(json.dumps([asdict(figure) for figure in found], ensure_ascii=False, indent=1))
        return int(not all(figure.reached for figure in found))
    return report("pictures", found)


if __name__ == "__main__":
    sys.exit(main())
