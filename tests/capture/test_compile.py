"""Models that `torch.compile` compiles, and what must not be compiled twice, or not at all."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

from filmstrip.capture import AlreadyCompiledError
from filmstrip.capture.pytorch import Capture, _dynamo, _op
from filmstrip.store import open_run

Call = Callable[[torch.Tensor], torch.Tensor]
seen = pytest.mark.skipif(
    _op._OP is None, reason=f"needs torch {_op._SINCE} to see compiled layers"
)
STEPS, EVERY = 8, 2


pytestmark = [
    pytest.mark.slow,
    # What torch says to itself when it compiles, with and without capture.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(module: Any, **keywords: Any) -> Any:
    """Compile without leave to fall back on anything."""
    return torch.compile(module, **{"backend": "aot_eager", "fullgraph": True, **keywords})


def graphs() -> tuple[int, int]:
    """Return how many graphs were compiled, and how often one broke."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


class Block(nn.Module):
    """A dense layer, and a ReLU that overwrites its output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.fc(x))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Blocks; `around` may change how they are called."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.around: Callable[[nn.Module, torch.Tensor], torch.Tensor] = lambda block, x: block(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many numbers as were given."""
        for block in self.blocks:
            x = self.around(block, x)
        return x


LAYERS = ["blocks.0.fc", "blocks.0.act", "blocks.1.fc", "blocks.1.act"]


def batch(samples: int = 3) -> torch.Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(samples))


def train(
    model: nn.Module,
    call: Call,
    run: str,
    *,
    given: nn.Module | None = None,
    steps: int = STEPS,
    x: Callable[[int], torch.Tensor] = lambda step: batch(),
    **keywords: Any,
) -> list[float]:
    """Train with `call`, and capture; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with Capture(
        model if given is None else given, optimizer, run, **{"every": EVERY, **keywords}
    ) as capture:
        for step in range(steps):
            optimizer.zero_grad()
            loss = call(x(step)).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            capture.log(loss=loss)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def frames(run: str, step: int = STEPS - EVERY) -> dict[str, Any]:
    opened = open_run(run)
    return {layer: opened.activations[layer].frame(step) for layer in opened.layers("activations")}


def same(found: Mapping[str, Any], expected: Mapping[str, Any], rtol: float = 0.0) -> None:
    assert list(found) == list(expected)
    for layer, frame in expected.items():
        np.testing.assert_allclose(found[layer], frame, rtol=rtol, atol=rtol, err_msg=layer)


def given_compiled(model: nn.Module) -> tuple[nn.Module, Call]:
    given = compiled(model)
    return given, given


def compiled_after(model: nn.Module) -> tuple[nn.Module, Call]:
    return model, lambda x: compiled(model)(x)


def by_its_method(model: nn.Module) -> tuple[nn.Module, Call]:
    model.compile(backend="aot_eager", fullgraph=True)
    return model, model


def inside_a_function(model: nn.Module) -> tuple[nn.Module, Call]:
    return model, compiled(lambda x: model(x) * 1.0)


def a_submodule(model: nn.Module) -> tuple[nn.Module, Call]:
    blocks: Any = model.blocks
    blocks[0] = compiled(blocks[0])
    return model, model


def recomputed_inside_a_function(model: nn.Module) -> tuple[nn.Module, Call]:
    return model, compiled(lambda x: checkpoint(model, x, use_reentrant=False))


@seen
@pytest.mark.parametrize(
    "way",
    [
        given_compiled,
        compiled_after,
        by_its_method,
        inside_a_function,
        a_submodule,
        recomputed_inside_a_function,
    ],
)
def test_a_compiled_model_has_the_same_frames_and_losses_and_two_graphs(
    run: str, way: Callable[[nn.Module], tuple[nn.Module, Call]]
) -> None:
    plain, model = Net(), Net()
    expected = train(plain, plain, f"{run}-eager")
    given, call = way(model)
    losses = train(model, call, run, given=given)

    assert losses == expected
    same(frames(run), frames(f"{run}-eager"))
    opened = open_run(run)
    assert opened.layers("activations") == LAYERS
    assert opened.layers("weights") == open_run(f"{run}-eager").layers("weights")
    assert opened.steps("activations").tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(opened.scalars["loss"].values, losses, rtol=1e-6)
    assert opened.scalars["loss"].steps.tolist() == list(range(STEPS))
    assert graphs() == (2, 0)


@seen
def test_hundreds_of_changes_between_due_and_not_compile_nothing(run: str) -> None:
    model = Net()
    train(model, compiled(model), run, steps=300, kinds="activations", frames=False)

    assert len(open_run(run).statistics("activations").steps) == 150
    assert graphs() == (2, 0)


@seen
@pytest.mark.parametrize("before", [False, True])
def test_code_compiled_for_another_model_of_the_class_is_not_taken_for_the_watched_ones(
    run: str, before: bool
) -> None:
    other, model = Net(), Net()
    twin, call = compiled(other), compiled(model)
    if before:
        twin(batch())

    def both(x: torch.Tensor) -> torch.Tensor:
        twin(x)
        return call(x)  # type: ignore[no-any-return]

    train(model, both, run)

    assert list(frames(run)) == LAYERS
    assert open_run(run).steps("activations").tolist() == [0, 2, 4, 6]
    assert graphs() == (3 + before, 0)
    assert torch._dynamo.config.skip_nnmodule_hook_guards


@seen
def test_a_model_that_ran_compiled_before_is_captured_and_goes_on_after(run: str) -> None:
    model = Net()
    call = compiled(model)
    call(batch()).sum().backward()
    train(model, call, run)
    expected, found = copy.deepcopy(model)(batch()), call(batch())

    assert list(frames(run)) == LAYERS
    assert torch.equal(found, expected)


@seen
def test_blocks_compiled_each_by_itself_share_their_graphs(run: str) -> None:
    model = Net(12)
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    train(model, model, run)

    assert len(frames(run)) == 24
    # Of the input of the first, no gradient is needed.
    assert graphs() == ((4, 0) if _dynamo._ALIKE else (24, 0))


def test_blocks_watched_in_more_ways_than_dynamo_allows_graphs_do_not_stop_training(
    run: str,
) -> None:
    model = nn.Sequential(*(Net(3) for _ in range(5)))
    layers = [f"{i}.blocks.{j}.fc" for i in range(5) for j in range(3) if i >> j & 1]
    for block in model:
        block.compile(backend="aot_eager", fullgraph=True)
    limit = torch._dynamo.config.cache_size_limit
    train(model, model, run, layers=layers, kinds="activations", steps=3)

    assert _op._OP is None or list(frames(run, 2)) == sorted(layers)
    assert torch._dynamo.config.cache_size_limit == limit


@seen
def test_what_a_compiled_backward_pass_recomputes_is_taken_once(run: str) -> None:
    plain, model = Net(), Net()
    for one in (plain, model):
        one.around = lambda block, x: checkpoint(block, x, use_reentrant=False)
    expected = train(plain, plain, f"{run}-eager", micro_batches="all")
    losses = train(model, compiled(model), run, micro_batches="all")

    assert losses == expected
    same(frames(run), frames(f"{run}-eager"))


@dataclass
class Result:
    """What models return that give their outputs names."""

    logits: torch.Tensor
    loss: float = 0.0


class Emit(nn.Module):
    """Has tensors in a tuple, a mapping and a dataclass."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"pair": (x * 2, x * 3), "result": Result(x * 4)}


class Emitting(nn.Module):
    """Calls one layer twice, and has an output of many parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.emit = nn.Linear(4, 4), Emit()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.emit(self.fc(self.fc(x)))
        return made["pair"][1] + made["result"].logits  # type: ignore[no-any-return]


@seen
def test_calls_and_parts_of_outputs_have_the_names_that_they_have_in_eager_mode(run: str) -> None:
    plain, model = Emitting(), Emitting()
    train(plain, plain, f"{run}-eager")
    train(model, compiled(model), run)

    assert list(frames(run)) == ["fc", "fc#1", "emit.pair.0", "emit.pair.1", "emit.result.logits"]
    same(frames(run), frames(f"{run}-eager"))


class Choosing(Net):
    """Runs a block inside a graph of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.blocks
        inner: Any = second.fc
        return first(x) + torch.cond(x.sum() > 0, inner, inner, (x,))  # type: ignore[no-any-return]


@seen
def test_where_no_op_may_be_left_training_goes_on_and_the_layer_is_named(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, model = Choosing(), Choosing()
    expected = train(plain, plain, f"{run}-eager")
    capsys.readouterr()
    losses = train(model, compiled(model), run)

    assert losses == pytest.approx(expected)
    assert list(frames(run)) == LAYERS[:2]
    said = capsys.readouterr().err
    assert "nothing came from blocks.1.fc (name 'blocks.1' in layers instead)" in said


@seen
def test_a_compiled_transform_of_the_model_is_not_taken_for_its_training(run: str) -> None:
    model = Net()
    held = {name: value.detach().clone() for name, value in model.named_parameters()}
    look = compiled(lambda given, x: grad(lambda p: functional_call(model, p, (x,)).sum())(given))
    call = compiled(model)

    def both(x: torch.Tensor) -> torch.Tensor:
        look(held, batch(7))
        return call(x)  # type: ignore[no-any-return]

    train(model, both, run)

    counts = open_run(run).statistics("activations")["blocks.0.fc", "count"].values
    assert counts.tolist() == [12.0] * 4


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_model_has_nothing_of_ours_in_it(run: str, strict: bool) -> None:
    model = Net()
    calls: list[str] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        exported = torch.export.export(model, (x,), strict=strict)
        calls.extend(str(node.target) for node in exported.graph.nodes)
        return model(x)  # type: ignore[no-any-return]

    train(model, call, run, steps=2, every=2)

    assert any("relu" in name for name in calls)
    assert not any("filmstrip" in name for name in calls)
    if _dynamo._ALIKE or not strict:  # before, a strict export passes for the step's first pass
        assert list(frames(run, 0)) == LAYERS


@seen
def test_batches_of_any_size_are_captured_by_one_more_graph(run: str) -> None:
    model = Net()
    train(model, compiled(model), run, x=lambda step: batch(3 + step), samples=2)

    opened = open_run(run)
    counts = opened.statistics("activations")["blocks.0.fc", "count"].values
    assert counts.tolist() == [12.0, 20.0, 28.0, 36.0]
    assert opened.activations["blocks.0.fc"].shape == (2, 4)
    assert graphs() == (3, 0)


@seen
def test_a_probe_compiles_nothing(run: str) -> None:
    plain, model = Net(), Net()
    train(plain, plain, f"{run}-eager", probe=batch(5))
    model.compile(backend="aot_eager", fullgraph=True)
    train(model, model, run, probe=batch(5))

    same(frames(run), frames(f"{run}-eager"))
    assert graphs() == (2, 0)


def test_an_optimizer_whose_step_is_compiled_is_followed(run: str) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=EVERY):
        step = torch.compile(optimizer.step, backend="aot_eager")
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(batch()).sum().backward()
            step()

    assert open_run(run).steps("weights").tolist() == [0, 2, 4, 6]
    assert open_run(run).status().errors == 0


@seen
@pytest.mark.parametrize("hidden", [False, True])
def test_the_trainers_own_step_is_read_where_the_model_is_compiled(run: str, hidden: bool) -> None:
    model = Net()
    trainer = {"step": 10}
    call = inside_a_function(model)[1] if hidden else compiled(model)

    def counted(x: torch.Tensor) -> torch.Tensor:
        trainer["step"] += 1
        return call(x)

    train(model, counted, run, step=lambda: trainer["step"])

    assert open_run(run).steps("activations").tolist() == [12, 14, 16, 18]
    assert open_run(run).scalars["loss"].steps.tolist() == list(range(11, 19))


@seen
@pytest.mark.parametrize("which", ["first", "last", "all"])
def test_micro_batches_of_a_compiled_model_are_the_ones_of_eager_mode(run: str, which: str) -> None:
    def accumulate(call: Call) -> Call:
        def several(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                call(batch(9))
            call(batch(5)).sum().backward()  # type: ignore[no-untyped-call]
            output = call(batch(6))
            with torch.no_grad():
                call(batch(7))
            return output

        return several

    plain, model = Net(), Net()
    train(plain, accumulate(plain), f"{run}-eager", micro_batches=which)
    train(model, accumulate(compiled(model, dynamic=True)), run, micro_batches=which)

    counts = open_run(run).statistics("activations")["blocks.0.fc", "count"].values
    assert counts[-1] == {"first": 20.0, "last": 24.0, "all": 20.0}[which]
    same(frames(run), frames(f"{run}-eager"), rtol=1e-6)


def test_a_layer_that_its_module_runs_past_is_reported_with_the_one_to_name(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    train(model, model, run, x=lambda step: batch()[None])

    said = capsys.readouterr().err
    assert "0.self_attn.out_proj (name '0.self_attn' in layers instead)" in said


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no such tag")
def test_the_op_is_kept_out_of_cuda_graphs() -> None:
    assert torch.Tag.cudagraph_unsafe in torch.ops.filmstrip.tap.default.tags


def test_a_torch_without_ops_that_have_effects_trains_and_names_what_is_not_seen(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as older:
        older.setitem(sys.modules, "torch._higher_order_ops.effects", None)
        op = _op._defined()
    monkeypatch.setattr(_op, "_OP", op)
    _op._say_that_nothing_is_left.cache_clear()
    plain, model = Net(), Net()
    expected = train(plain, plain, f"{run}-eager")
    call = compiled(model)
    losses = train(model, call, run, steps=STEPS, kinds=("activations", "weights"))

    assert losses == expected
    assert open_run(run).layers("weights")
    said = capsys.readouterr().err
    assert said.count("does not show outputs of layers in compiled code") == 1
    assert "nothing came from blocks.0.fc" in said


def test_a_model_compiled_ahead_of_time_is_refused(run: str) -> None:
    model = Net()
    given = compiled(model)

    class AOTCompiledModel:
        """Stands for the one of torch, which has no public way to be made."""

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    given.forward = AOTCompiledModel()
    with pytest.raises(AlreadyCompiledError, match="ahead of time"):
        Capture(given, torch.optim.SGD(model.parameters(), lr=0.1), run)


@seen
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_trains_within_rounding_of_itself_without_capture(
    run: str, dtype: torch.dtype
) -> None:
    def learn(enabled: bool) -> tuple[list[float], nn.Module]:
        torch._dynamo.reset()
        model = Net().to(dtype)
        call = torch.compile(model, fullgraph=True)
        x = batch().to(dtype)
        return train(model, call, run, x=lambda step: x, enabled=enabled), model

    (expected, plain), (losses, model) = learn(False), learn(True)
    eager = Net().to(dtype)
    train(eager, eager, f"{run}-eager", x=lambda step: batch().to(dtype))

    rounding = 8 * torch.finfo(dtype).eps
    assert losses == pytest.approx(expected, rel=rounding)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)
    found, expected_frames = (
        {layer: np.asarray(frame, np.float32) for layer, frame in frames(each).items()}
        for each in (run, f"{run}-eager")
    )
    same(found, expected_frames, rtol=rounding)
