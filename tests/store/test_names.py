from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.store import FrameSpec, create_run, open_run
from filmstrip.store._names import Canonical, array_name, canonical, chunk_key, chunk_position


def test_wrapper_prefixes_are_not_part_of_a_layers_name() -> None:
    names = ["module._orig_mod.conv1.weight", "_fsdp_wrapped_module.a._checkpoint_wrapped_module.b"]

    assert [canonical(name) for name in names] == ["conv1.weight", "a.b"]


def test_a_child_that_is_really_called_module_keeps_its_name() -> None:
    assert canonical("encoder.module.weight") == "encoder.module.weight"
    assert canonical(canonical("module.module.weight")) == "module.weight"


def test_a_canonical_name_stays_as_it_is_and_is_found_by_the_wrapped_one(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        spec = FrameSpec((2,), "float32")
        writer = run.writer("weights", {Canonical("module.fc"): spec, "module._orig_mod.fc": spec})
        writer.append(0, {"module.fc": np.zeros(2, "f"), "fc": np.ones(2, "f")})
    opened = open_run(tmp_path / "run.zarr")

    assert opened.layers("weights") == ["module.fc", "fc"]
    assert [opened.weights[name].layer for name in ("module/fc", "_orig_mod.module.fc", "fc")] == [
        *("module.fc", "module.fc", "fc")
    ]
    assert opened.weights["_orig_mod.fc"].frame(0).tolist() == [1, 1]


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300), unique=True
    )
)
def test_array_names_are_distinct_on_any_file_system_and_never_reserved(names: list[str]) -> None:
    taken: list[str] = []
    for name in names:
        taken.append(array_name(name, taken))

    assert len({name.casefold() for name in taken}) == len(names)
    assert not any(
        "/" in name or name in ("step", "wall_time", "samples", ".", "..", "") for name in taken
    )
    assert not any(name.startswith("_") for name in taken)
    assert all(len(name.encode()) <= 255 for name in taken)


def test_a_long_name_keeps_its_beginning_and_differs_from_its_neighbour() -> None:
    first, second = array_name("layer." * 50 + "a"), array_name("layer." * 50 + "b")

    assert first[:160] == second[:160]
    assert first != second


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_a_chunks_position_is_read_back_from_its_file_name(position: list[int]) -> None:
    assert chunk_position(chunk_key(*position)) == tuple(position)


def test_other_files_are_not_chunks() -> None:
    others = ("zarr.json", "c", "c.1.0.12.partial", "c.x", "c.01", "c.1.")
    assert [chunk_position(name) for name in others] == [None] * len(others)
