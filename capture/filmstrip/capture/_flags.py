"""Flags: the only place that knows how capture is asked for on a command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from filmstrip.capture._keywords import READERS, read_step
from filmstrip.capture._settings import said_by_code
from filmstrip.capture.errors import PlanError, UnsupportedModelError

if TYPE_CHECKING:
    from filmstrip.capture.pytorch import Capture

SWITCHES = ("statistics", "histograms", "frames", "fsync")
LISTS = ("steps", "kinds", "layers", "exclude", "phases")
WORDS: Mapping[str, tuple[str, str]] = {
    "every": ("N", "steps between captures, or statistics=10,histograms=100,frames=1000"),
    "start": ("STEP", "first step of the window"),
    "stop": ("STEP", "end of the window, not included"),
    "steps": ("STEP,…", "exactly these steps; may be repeated"),
    "step": ("STEP", "step at which this training starts"),
    "kinds": ("KIND,…", "of activations, weights, gradients, inputs; may be repeated"),
    "layers": ("NAME,…", "globs, re:…, type:… or exact names; may be repeated"),
    "exclude": ("NAME,…", "layers to leave out; may be repeated"),
    "statistics": ("", "statistics of every tensor"),
    "histograms": ("", "bit histograms of every tensor"),
    "frames": ("", "the tensors themselves"),
    "samples": ("N", "leading samples of the batch kept in a frame"),
    "micro_batches": ("WHICH", "first, last or all forward passes of a step"),
    "phases": ("PHASE", "mode of the model in which outputs are taken: train or eval"),
    "replicas": ("WHICH", "first or all ranks"),
    "max_capture_bytes": ("SIZE", "most bytes of frames a capture, such as 64MB"),
    "max_run_bytes": ("SIZE", "most bytes of the run, such as 20GB"),
    "min_free": ("SIZE", "what stays free on the disk, such as 5%% or 2GB"),
    "max_overhead": ("SHARE", "most of the training time, such as 0.02"),
    "on_pressure": ("HOW", "when writing is slower than training: drop, block or auto"),
    "if_exists": (
        "HOW",
        "what to do with a run that is there: auto, resume, fail, new or overwrite",
    ),
    "dtype": ("DTYPE", "of floating frames: float16, bfloat16 or float32"),
    "compression": ("CODEC", "of what is written: zstd, lz4 or none"),
    "fsync": ("", "commits that survive a loss of power"),
}
"""Of every keyword that a command line may say: what stands for its value, and a few words."""


def add_capture_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a parser the flag ``--capture RUN``, and ``--capture-<keyword>`` for every keyword.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of the training script.

    Returns
    -------
    argparse.ArgumentParser
        The same parser.

    Examples
    --------
    >>> parser = add_capture_arguments(argparse.ArgumentParser())
    >>> parser.parse_args(["--capture", "run.zarr", "--capture-every", "50"]).capture
    'run.zarr'
    """
    group = parser.add_argument_group(
        "capture", "record activations, weights and gradients (filmstrip)"
    )
    group.add_argument(
        "--capture", metavar="RUN", help="write a run here; nothing is recorded without it"
    )
    for keyword, (metavar, words) in WORDS.items():
        flag, name = f"--capture-{keyword.replace('_', '-')}", f"capture_{keyword}"
        if keyword in SWITCHES:
            group.add_argument(
                flag,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=words,
            )
        else:
            group.add_argument(
                flag,
                dest=name,
                metavar=metavar,
                type=reader(keyword),
                action=_Extend if keyword in LISTS else "store",
                default=argparse.SUPPRESS,
                help=words,
            )
    group.add_argument(
        "--capture-metadata",
        dest="capture_metadata",
        metavar="NAME=VALUE",
        type=read_pair,
        action="append",
        default=argparse.SUPPRESS,
        help="kept with the run; may be repeated",
    )
    group.add_argument(
        "--capture-plan",
        dest="capture_plan",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a TOML file that holds keywords; flags beat it",
    )
    group.add_argument(
        "--capture-dry-run",
        dest="capture_dry_run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print what would be kept, and write nothing",
    )
    return parser


class _Extend(argparse.Action):
    """Joins what a flag brings each time that it is given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, ())
        setattr(namespace, self.dest, tuple(dict.fromkeys((*before, *listed(values)))))


def listed(values: Any) -> tuple[Any, ...]:
    """Return values as a tuple, in an order that does not change."""
    return tuple(sorted(values)) if isinstance(values, frozenset) else values


def reader(keyword: str) -> Callable[[str], object]:
    """Return what reads a keyword's text, with errors as argparse wants them."""
    read = READERS.get(keyword, read_step)

    def convert(text: str) -> object:
        try:
            return read(keyword, text)
        except PlanError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def read_pair(text: str) -> tuple[str, str]:
    """Read one entry of the metadata."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def capture_from_arguments(
    args: argparse.Namespace, model: Any, optimizer: Any = None, **code_defaults: Any
) -> Capture:
    """Return the capture that a command line asks for.

    Without ``--capture`` (and ``FILMSTRIP_RUN``) it is an inert one, which costs nothing and
    imports neither zarr nor the store.

    Parameters
    ----------
    args : argparse.Namespace
        From a parser that went through `add_capture_arguments`.
    model, optimizer
        As for ``Capture``.
    **code_defaults
        Keywords of ``Capture``, such as ``probe``; flags, environment and plan beat them.

    Returns
    -------
    Capture
        Of the framework that the model belongs to.

    Raises
    ------
    TypeError
        If a keyword is unknown.
    CaptureError, StoreError
        As ``Capture``.

    Examples
    --------
    >>> import torch
    >>> parser = add_capture_arguments(argparse.ArgumentParser())
    >>> capture_from_arguments(parser.parse_args([]), torch.nn.Linear(2, 1)).enabled
    False
    """
    kind = _capture_for(model)
    said = {
        keyword: getattr(args, f"capture_{keyword}")
        for keyword in (*WORDS, "metadata", "plan", "dry_run")
        if hasattr(args, f"capture_{keyword}")
    }
    code: dict[str, Any] = dict(code_defaults)
    probe, step, plan = code.pop("probe", None), code.pop("step", None), code.pop("plan", None)
    code = said_by_code("capture_from_arguments", code)
    run = getattr(args, "capture", None)
    if run is not None:
        said["run"] = run
    if "metadata" in said:
        said["metadata"] = {**(code_defaults.get("metadata") or {}), **dict(said["metadata"])}
    asked = run is not None or bool(os.environ.get("FILMSTRIP_RUN", "").strip())
    if not asked:
        code["enabled"] = False
    capture: Capture = kind._from_command(
        model,
        optimizer,
        code,
        plan=said.pop("plan", plan),
        command={name: value for name, value in said.items() if name != "step"},
        step=said.get("step", step),
        probe=probe,
    )
    return capture


def _capture_for(model: object) -> Any:
    """Return the class of captures for a model; its framework is loaded, since the model is there.

    Raises
    ------
    UnsupportedModelError
        If it is a model of no framework that capture knows.
    """
    torch, keras, tensorflow = map(sys.modules.get, ("torch", "keras", "tensorflow"))
    home = None
    if keras is not None and isinstance(model, keras.Model):
        home = "keras"
    elif torch is not None and isinstance(model, torch.nn.Module):
        home = "pytorch"
    elif tensorflow is not None and isinstance(model, tensorflow.Module):
        home = "tensorflow"
    if home is None:
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, not a torch.nn.Module, a keras.Model or a "
            "tf.Module; give what is trained"
        )
    return import_module(f"filmstrip.capture.{home}").Capture
