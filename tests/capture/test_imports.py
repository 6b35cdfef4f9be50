from __future__ import annotations

import os
import subprocess
import sys

import pytest

import filmstrip.capture
import filmstrip.capture.pytorch

HEAVY = {"torch", "zarr", "numpy", "numcodecs", "dask", "matplotlib", "typer", "tensorflow"}


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_flags_and_errors_import_nothing_heavy() -> None:
    code = """
import argparse
from filmstrip.capture import *
add_capture_arguments(argparse.ArgumentParser()).parse_args(["--capture-every", "3"])
"""

    assert not modules_after(code) & HEAVY


def test_an_inert_capture_imports_neither_zarr_nor_the_store() -> None:
    code = """
import argparse, torch
from filmstrip.capture import add_capture_arguments, capture_from_arguments
args = add_capture_arguments(argparse.ArgumentParser()).parse_args([])
model = torch.nn.Linear(2, 1)
cap = capture_from_arguments(args, model, torch.optim.SGD(model.parameters(), lr=0.1))
cap.log(loss=1.0); cap.close()
assert "filmstrip.store" not in __import__("sys").modules
"""

    assert not modules_after(code) & {"zarr", "numcodecs"}


def test_capture_at_work_never_imports_what_draws() -> None:
    code = """
import tempfile, torch
from filmstrip.capture.pytorch import Capture
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with tempfile.TemporaryDirectory() as folder, Capture(model, optimizer, folder + "/run.zarr"):
    model(torch.ones(1, 2)).sum().backward(); optimizer.step()
"""

    assert not modules_after(code) & {"dask", "matplotlib", "typer", "tensorflow", "PIL"}


@pytest.mark.parametrize("module", [filmstrip.capture, filmstrip.capture.pytorch])
def test_public_names_are_sorted_and_all_of_them_resolve(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]

    assert names == sorted(names) == dir(module)
    assert all(getattr(module, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # type: ignore[attr-defined]  # noqa: B018
