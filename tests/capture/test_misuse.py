from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from filmstrip.capture import AlreadyCompiledError, CaptureError, PlanError, UnsupportedModelError
from filmstrip.capture.pytorch import Capture
from filmstrip.store import RunExistsError, RunLockedError, StoreError


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("every", 0, "every=0"),
        ("every", -1, "every=-1"),
        ("kinds", ["activation"], "it may hold 'activations', 'weights', 'gradients'"),
        ("layers", "3", "no layer matches '3'; nearest: 0, 1, 2"),
        ("layers", ["0", "2.weigh"], r"no layer matches '2\.weigh'; nearest: 2\.weight"),
        ("samples", 0, "samples=0"),
        ("max_run_bytes", "64XB", "max_run_bytes='64XB' is not a size"),
        ("plan", {"ever": 1}, "did you mean 'every'"),
        ("phases", ("train", "eval"), "choose"),
        ("step", -1, "step=-1 is not a step"),
        ("step", 1.5, "step=1.5 is not a step"),
        ("step", True, "step=True is not a step"),
        ("step", lambda: None, r"step\(\)=None is not a whole number"),
        ("probe", (1, 2), "without a tensor"),
        ("exclude", "*", r"leaves no activations or weights or gradients of this Sequential"),
    ],
)
def test_a_bad_keyword_is_refused_at_attach_and_nothing_is_created(
    run: str, keyword: str, value: object, message: str
) -> None:
    model, optimizer = model_and_optimizer()
    with pytest.raises(PlanError, match=message) as caught:
        Capture(model, optimizer, run, **{keyword: value})  # type: ignore[arg-type]

    assert "\n" not in str(caught.value)
    assert not Path(run).exists()
    assert not optimizer._optimizer_step_pre_hooks


def test_an_unknown_keyword_is_a_type_error(run: str) -> None:
    with pytest.raises(TypeError, match="ever"):
        Capture(*model_and_optimizer(), run, ever=3)  # type: ignore[call-arg]


def test_a_run_that_exists_is_left_alone(run: str) -> None:
    model, optimizer = model_and_optimizer()
    Capture(model, optimizer, run).close()
    before = sorted(Path(run).rglob("*"))
    with pytest.raises(RunExistsError, match="already holds a run"):
        Capture(model, optimizer, run)

    assert sorted(Path(run).rglob("*")) == before


def test_a_second_capture_beside_an_open_one_is_refused(run: str) -> None:
    model, optimizer = model_and_optimizer()
    with Capture(model, optimizer, run):
        with pytest.raises(RunExistsError):
            Capture(model, optimizer, run)
        with pytest.raises(RunLockedError):
            Capture(model, optimizer, run, if_exists="resume")


@pytest.mark.parametrize("path", ["s3://bucket/run.zarr", "a\0b", "", None])
def test_what_is_no_local_path_is_refused(path: Any) -> None:
    with pytest.raises(PlanError, match=r"run=.* is not a (local )?path"):
        Capture(*model_and_optimizer(), path)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError) as caught:
        Capture(*model_and_optimizer(), tmp_path / "file" / "run.zarr")

    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_run_past_the_taps_are_refused_with_what_to_use(run: str) -> None:
    model, optimizer = model_and_optimizer()
    with pytest.raises(UnsupportedModelError, match="use DistributedDataParallel"):
        Capture(nn.DataParallel(model), optimizer, run)
    with pytest.raises(UnsupportedModelError, match=r"not a torch\.nn\.Module"):
        Capture(model.parameters(), optimizer, run)  # type: ignore[arg-type]

    class FullyShardedDataParallel(nn.Module):
        """Stands for the one of torch, which needs a process group."""

    with pytest.raises(UnsupportedModelError, match="use fully_shard"):
        Capture(FullyShardedDataParallel(), optimizer, run)
    assert not Path(run).exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_script_module_is_refused(run: str) -> None:
    model, optimizer = model_and_optimizer()
    with pytest.raises(UnsupportedModelError, match="ScriptModule"):
        Capture(torch.jit.script(model), optimizer, run)


def test_what_is_no_optimizer_is_refused(run: str) -> None:
    model, _ = model_and_optimizer()
    with pytest.raises(UnsupportedModelError, match=r"call cap\.step\(\)"):
        Capture(model, object(), run)  # type: ignore[arg-type]


def test_every_error_of_capture_is_a_capture_error() -> None:
    for error in (PlanError, UnsupportedModelError, AlreadyCompiledError):
        assert issubclass(error, CaptureError)


def test_disabled_does_nothing_whatever_else_is_wrong(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = model_and_optimizer()
    with Capture(model, optimizer, run, enabled=np.False_, every=0) as capture:  # type: ignore[arg-type]
        capture.log(loss=1.0)
        capture.image("x", torch.ones(2, 2))
        capture.step()
        capture.pause()
        capture.resume()
        capture.load_state_dict({"step": 4})
        assert capture.state_dict() == {"step": 4}
        assert not capture.enabled
        assert capture.path is None
    monkeypatch.setenv("FILMSTRIP", "off")
    Capture(model, optimizer, run, enabled=True).close()

    assert not Path(run).exists()
    assert not model[0]._forward_hooks  # type: ignore[index]


def test_the_environment_says_where_and_how_often(
    tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = model_and_optimizer()
    monkeypatch.setenv("FILMSTRIP_RUN", str(tmp_path / "elsewhere.zarr"))
    with Capture(model, optimizer, run) as capture:
        assert capture.path == str(tmp_path / "elsewhere.zarr")
    assert not Path(run).exists()
