from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PORTIONS = ("capture", "render", "store")
HEAVY = {"torch", "tensorflow", "dask", "distributed", "matplotlib", "zarr", "numpy", "PIL"}


@pytest.mark.parametrize("portion", PORTIONS)
def test_no_file_lies_directly_in_a_namespace_folder(portion: str) -> None:
    children = [c for c in (ROOT / portion / "filmstrip").iterdir() if c.name != "__pycache__"]

    assert [child.name for child in children] == [portion]
    assert (children[0] / "py.typed").exists()


@pytest.mark.parametrize("portion", PORTIONS)
def test_what_a_portion_announces_is_there_and_sorted_and_complete(portion: str) -> None:
    module = importlib.import_module(f"filmstrip.{portion}")
    names = module.__all__

    assert names == sorted(
        names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert all(getattr(module, name) is not None for name in names)
    assert dir(module) == sorted(names)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense
    assert names == [
        element.value
        for node in ast.parse(Path(str(module.__file__)).read_text()).body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__all__"
        and isinstance(node.value, ast.List)
        for element in node.value.elts
        if isinstance(element, ast.Constant)
    ]


def imported(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after some code."""
    shown = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("portion", PORTIONS)
def test_importing_a_portion_imports_nothing_heavy(portion: str) -> None:
    assert not imported(f"import filmstrip.{portion}") & HEAVY


def test_help_imports_nothing_heavy() -> None:
    load = (
        "import sys; sys.argv = ['filmstrip', '--help']\n"
        "from filmstrip.store.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
    )

    assert not imported(load) & HEAVY


def test_the_wheel_holds_all_portions(tmp_path: Path) -> None:
    from zipfile import ZipFile

    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()

    for portion in PORTIONS:
        sources = {
            str(path.relative_to(ROOT / portion))
            for path in (ROOT / portion / "filmstrip").rglob("*.py")
        }
        assert sources <= set(names)
    assert not [name for name in names if name.startswith(("tests", "demo", "scripts"))]


def test_every_extra_that_an_import_error_can_name_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])

    named = {
        part.split("]")[0]
        for path in ROOT.glob("*/filmstrip/**/*.py")
        for part in path.read_text().split("filmstrip[")[1:]
        if not part.startswith("{")
    }
    assert named <= extras
