"""What zarrita.js sees, the reader of browsers; installed from npm; skipped where that fails."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store import zoo

PACKAGES = ("zarrita@0.7.5", "@zarrita/storage@0.2.0")
SCRIPT = Path(__file__).with_name("zarrita_read.mjs")
UNKNOWN = {
    "complex64": "unsupported dataType: complex64",
    "float16": "unsupported dataType: float16",  # unless the engine has Float16Array
    ".empty": "empty iterator",  # it makes no array with an axis of length 0
}


@pytest.fixture(scope="session")
def zarrita(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reading script, beside its packages."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("zarrita")
    (folder / "package.json").write_text('{"private": true}')
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer within 120 s")
    if done.returncode:
        pytest.skip(f"npm could not install {' '.join(PACKAGES)}: {done.stderr.strip()[-300:]}")
    return Path(shutil.copy(SCRIPT, folder))


def read(script: Path, run: Path) -> list[dict[str, Any]]:
    arrays = [name for name, _ in zoo.expected()]
    # Committed rows only: an array's own zarr.json, which zarrita.js goes by, tells the capacity.
    group = json.loads((run / "activations/zarr.json").read_text())
    rows = group["consolidated_metadata"]["metadata"]["step"]["shape"][0]
    command = ["node", str(script), str(run), str(rows), *arrays]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("state", zoo.STATES)
def test_every_form_of_array_is_equal_to_the_bit(zarrita: Path, tmp_path: Path, state: str) -> None:
    with zoo.recorded(tmp_path / "run.zarr", state) as path:
        lines = read(zarrita, path)

    found = {
        line["path"]: np.frombuffer(base64.b64decode(line["raw"]), line["dtype"]).reshape(
            line["shape"]
        )
        for line in lines
        if "error" not in line
    }
    assert len(found) > 100
    assert zoo.differences(found) == []
    for line in lines:
        if "error" in line:
            assert any(a in line["path"] and b in line["error"] for a, b in UNKNOWN.items()), line
        else:
            live = state.startswith("live")
            assert line["length"] == (4096 if live else len(zoo.STEPS))
