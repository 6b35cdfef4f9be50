"""Draw every kind of picture into a folder, to be looked at.

Three runs are made first, unless they are there: a convolutional network on handwritten digits, a
small transformer on the help pages of Python, and a run without any network that holds what goes
wrong. Try::

    python demo/gallery.py gallery
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_sample_images

from filmstrip.render.cli import app
from filmstrip.store import FrameSpec, bit_histogram, create_run, summarize

FORMATS = ("png", "svg", "pdf", "gif", "mp4")
HERE = Path(__file__).parent
Frames = dict[str, npt.NDArray[np.float32]]
LAYOUTS = {
    "nan": "NCHW",
    "dead": "NCHW",
    "pixels": "NCHW",
    "many": "NCHW",
    "nhwc": "NHWC",
    "line": "NCL",
    "volume": "NCDHW",
    "constant": "NCHW",
    "one": "OIHW",
    "hwio": "HWIO",
    "three": "OIHW",
    "conv1d": "OIL",
    "conv3d": "OIDHW",
    "matrix": "OI",
    "io": "IO",
    "bias": "C",
    "long": "C",
}


def odd_activations(step: int) -> Frames:
    """Return maps of which some hold what no map should."""
    rng = np.random.default_rng(step)
    smooth = rng.normal(size=(4, 24, 16, 16))
    for axis in (2, 3):
        smooth = smooth + np.roll(smooth, 1, axis) + np.roll(smooth, 2, axis)
    relu = np.maximum(smooth, 0)
    dead = relu.copy()
    dead[:, [3, 11]] = 0
    dead[0, 7] = 0  # of the first sample only
    bad = relu.copy()
    bad[0, 2, 3:6, 3:6], bad[0, 9, 8, 2:7], bad[0, 20, 1, 1] = np.nan, np.inf, -np.inf
    pixels = np.maximum(rng.normal(size=(2, 512, 1, 1)), 0)
    many = np.maximum(rng.normal(size=(2, 2048, 7, 7)), 0) * rng.random((1, 2048, 1, 1))
    wave = np.sin(np.linspace(0, 40, 200) * (1 + np.arange(32)[:, None] / 16) + step)
    frames = {
        "nan": bad,
        "dead": dead,
        "pixels": pixels,
        "many": many,
        "nhwc": smooth.transpose(0, 2, 3, 1),
        "line": wave[None],
        "volume": relu.reshape(4, 4, 6, 16, 16),
        "constant": np.full((1, 4, 5, 5), 3.5),
    }
    return {layer: frame.astype(np.float32) for layer, frame in frames.items()}


def odd_weights(step: int) -> Frames:
    """Return kernels and matrices of every rank."""
    rng = np.random.default_rng(step)
    matrix = rng.normal(size=(4096, 4096)) * np.exp(rng.normal(size=(4096, 1)) / 3)
    matrix[1000:1040] = 0
    matrix[2222, 3333] = 40
    y, x = np.mgrid[-1:1:7j, -1:1:7j]
    angles = np.linspace(0, np.pi, 32)[:, None, None, None]
    phases = np.array([0.0, 0.5, 1.0])[None, :, None, None]
    gabor = np.cos(5 * (x * np.cos(angles) + y * np.sin(angles)) + phases * 2)
    frames = {
        "one": rng.normal(size=(96, 48, 1, 1)),
        "hwio": rng.normal(size=(3, 3, 16, 24)),
        "three": gabor * np.exp(-2 * (x**2 + y**2)),
        "conv1d": rng.normal(size=(64, 32, 5)),
        "conv3d": rng.normal(size=(8, 4, 3, 3, 3)),
        "matrix": matrix,
        "io": rng.normal(size=(300, 40)),
        "bias": rng.normal(size=48),
        "long": rng.normal(size=3000),
    }
    return {layer: frame.astype(np.float32) for layer, frame in frames.items()}


def write_odd(path: Path) -> None:
    """Write a run by hand; the steps of ``late`` never come."""
    with create_run(path) as run:
        for kind, make in (("activations", odd_activations), ("weights", odd_weights)):
            steps = range(0, 50, 10) if kind == "activations" else range(1)
            first = make(0)
            specs = {a: FrameSpec(x.shape, "float32", layout=LAYOUTS[a]) for a, x in first.items()}
            if kind == "activations":
                specs["late"] = FrameSpec((2, 3), "float32", layout="NC")
                shape = first["many"][:, ::2].shape
                cut = "every 2nd index of axis 1, half precision"
                specs["cut"] = FrameSpec(
                    shape, "float32", layout="NCHW", take="first 2 samples", degraded=cut
                )
            writer = run.writer(kind, specs)
            statistics = run.statistics_writer(kind, list(first))
            for step in steps:
                frames = make(step)
                rows = [summarize(frame) for frame in frames.values()]
                bits = [bit_histogram(frame) for frame in frames.values()]
                statistics.append(step, np.stack(rows), np.stack(bits))
                if kind == "activations":
                    frames["cut"] = frames["many"][:, ::2]
                writer.append(step, frames)
        photos = [image[y : y + 256 : 2, x : x + 256 : 2] for image, y, x in crops()]
        spec = {"photo": FrameSpec((4, 128, 128, 3), "uint8", layout="NHWC")}
        run.writer("images", spec).append(0, {"photo": np.stack(photos)})
        for step in range(0, 400, 10):
            run.log(step, {"loss": 2.3 * 0.99**step if step % 130 else np.nan, "far": 1e9 + step})


def crops() -> Iterator[tuple[npt.NDArray[np.uint8], int, int]]:
    """Yield two photographs, and two places in each."""
    for image in load_sample_images().images:
        yield image, 0, 0
        yield image, 100, 200


def trained(folder: Path) -> None:
    """Train what is not there yet."""
    for name, script, options in (
        ("digits", "train.py", ["--epochs", "6", "--capture-every", "5"]),
        ("faster", "train.py", ["--epochs", "6", "--capture-every", "5", "--lr", "0.02"]),
        ("text", "text.py", ["--steps", "160", "--capture-every", "10"]),
    ):
        path = folder / f"{name}.zarr"
        if not path.exists():
            partial = folder / f"{name}.partial.zarr"
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, HERE / script, "--capture", partial, *options]
            subprocess.run([*map(str, command)], check=True)
            partial.rename(path)
    if not (folder / "odd.zarr").exists():
        write_odd(folder / "odd.zarr")


PICTURES = {
    "digits": """
        grid relu1 --step 0,100
        grid relu1 --samples 3 --scale each
        grid conv2 relu3 --scale run
        grid conv1.weight conv2.weight fc1.weight fc2.weight conv1.bias --kind weights
        grid conv1.weight --kind weights --rgb
        grid conv3.weight --kind gradients
        grid fc1 fc2
        grid input --kind inputs
        grid relu2 --format svg
        grid relu2 --format pdf
        histogram conv2 --view single
        histogram conv2 relu1
        histogram conv2 relu1 --view overlay
        histogram conv2 relu1 --view heatmap
        histogram conv2 --view distribution
        histogram conv1.weight --kind gradients --view heatmap --bin-scale symlog
        histogram conv1.weight --kind gradients --view single --bin-scale tensorboard
        histogram --page
        histogram --page --view heatmap --kind gradients *.weight
        histogram --page --view single --kind weights
        histogram conv2 --view overlay --versus FOLDER/faster.zarr
        histogram conv2 --view ridge --versus FOLDER/faster.zarr
        curve --name train/loss --smoothing 0.6
        curve --name train/loss,lr --log --x time
        curve --stat conv2/mean --band
        curve --stat relu*/dead
        curve --stat *.weight/l2 --kind gradients --log
        curve --stat */norm --kind gradients --log
        curve FOLDER/faster.zarr --name train/loss --smoothing 0.8
        animation relu2 --step 0:100:10
        animation relu2 --step 0:100:10 --format gif
        animation relu2 --step 0:100:10 --format mp4
        all conv1 relu1 fc2 --step 0:140:45
        """,
    "text": """
        grid blocks.*.attention.weights --layout NHQK
        grid blocks.1.attention.weights --layout NHQK --samples 1 --scale each
        grid blocks.0.up blocks.1.act head letter
        grid blocks.0.attention.qkv.weight letter.weight norm.bias --kind weights
        grid input --kind inputs
        histogram --page --view heatmap
        histogram --page --kind gradients *.weight --view distribution --bin-scale symlog
        curve --name train/loss --smoothing 0.6
        curve --stat *.weight/rms --kind gradients --log
        """,
    "odd": """
        grid nan dead pixels many nhwc line volume constant cut
        grid nan --scale each
        grid many --channels 0:64 --columns 16
        grid --kind weights
        grid three --kind weights --rgb
        grid matrix --kind weights --downsample mean
        grid photo --kind images
        histogram nan many constant
        histogram cut --view heatmap
        histogram --page
        curve
        all
        """,
}


def main() -> None:
    """Draw, and say what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="gallery", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    trained(folder)
    failed = []
    for name, lines in PICTURES.items():
        run, out = folder / f"{name}.zarr", folder / name
        for line in filter(None, map(str.strip, lines.splitlines())):
            picture, *words = line.replace("FOLDER", str(folder)).split()
            if "mp4" in words and find_spec("imageio_ffmpeg") is None:
                print(f"not drawn without imageio-ffmpeg: {line}")
                continue
            command = [picture, str(run), *words, "-o", str(out), "--quiet", "--force"]
            failed += [line] if app(command, standalone_mode=False) else []
    drawn = [path for form in FORMATS for path in folder.rglob(f"*.{form}")]
    print(f"{len(drawn)} pictures in {folder}")
    for line in failed:
        print(f"not drawn: {line}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
