from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.store import SelectionError, select
from filmstrip.store._select import nearest_names, nearest_steps, slice_steps

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.bn1", "fc", "weird[0]"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("*", LAYERS),
        ("layer1.*", LAYERS[1:3]),
        ("*conv1", LAYERS[:2]),
        ("re:.*conv[12]", LAYERS[:2]),
        (["fc", "conv1"], ["conv1", "fc"]),
        ("weird[0]", ["weird[0]"]),
        ("CONV1", []),
    ],
)
def test_selectors_pick_layers_in_forward_order(
    selector: str | list[str], expected: list[str]
) -> None:
    assert select(selector, LAYERS) == expected


def test_a_parameter_is_matched_by_its_module_too() -> None:
    names = ["conv1.weight", "conv1.bias", "fc.weight"]

    assert select("conv1", names, owner=lambda name: name.rpartition(".")[0]) == names[:2]


def test_an_alias_is_matched_only_by_its_whole_name() -> None:
    aliases = {"head": "fc", "tail*": "bn"}

    assert select("head", ["conv", "fc"], aliases=aliases) == ["fc"]
    assert select("hea*", ["conv", "fc"], aliases=aliases) == []
    assert select(["*", "head"], ["conv", "fc"], aliases=aliases) == ["conv", "fc"]


def test_types_are_said_to_be_known_only_when_capturing() -> None:
    with pytest.raises(SelectionError, match=r"'type:Conv2d' .* known only when capturing"):
        select(["fc", "type:Conv2d"], LAYERS)


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(SelectionError, match=r"'re:\(' is not a regular expression"):
        select("re:(", LAYERS)


def test_the_nearest_name_to_a_misspelt_one_comes_first() -> None:
    assert nearest_names("cnv1", LAYERS)[0] == "conv1"


def test_the_nearest_steps_are_those_on_either_side() -> None:
    steps = np.array([0, 100, 200])

    assert nearest_steps(steps, 150) == [100, 200]
    assert nearest_steps(steps, 900) == [200]


@given(
    st.lists(st.integers(0, 200), unique=True).map(sorted),
    st.none() | st.integers(0, 220),
    st.none() | st.integers(0, 220),
    st.none() | st.integers(1, 50),
)
def test_slices_of_steps_are_those_of_a_range(
    steps: list[int], start: int | None, stop: int | None, stride: int | None
) -> None:
    wanted = range(start or 0, 1000 if stop is None else stop, stride or 1)

    chosen = slice_steps(np.array(steps, np.int64), slice(start, stop, stride))

    assert chosen.tolist() == [step for step in steps if step in wanted]
