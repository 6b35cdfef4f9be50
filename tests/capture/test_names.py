from __future__ import annotations

import copy
import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from filmstrip.capture import PlanError
from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


def train(
    model: nn.Module, *inputs: torch.Tensor, run: str, steps: int = 2, **keywords: object
) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with Capture(model, optimizer, run, every=1, **keywords):  # type: ignore[arg-type]
        for _ in range(steps):
            optimizer.zero_grad()
            output = model(*inputs)
            output.sum().backward()
            optimizer.step()


class Twice(nn.Module):
    """Calls one module twice, and has an LSTM and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(self.shared(self.shared(x)))
        return output  # type: ignore[no-any-return]


def test_further_calls_and_parts_of_outputs_have_names_of_their_own(run: str) -> None:
    torch.manual_seed(0)
    train(Twice(), torch.ones(2, 3, 4), run=run)

    opened = open_run(run)
    assert opened.layers("activations") == ["shared", "shared#1", "lstm.0", "lstm.1.0", "lstm.1.1"]
    weight, bias = (opened.weights[f"shared.{name}"].frame(1) for name in ("weight", "bias"))
    first, second = (opened.activations[name].frame(1) for name in ("shared", "shared#1"))
    np.testing.assert_allclose(second, first @ weight.T + bias, rtol=1e-5)


def test_a_wildcard_takes_leaves_and_a_container_only_by_its_exact_name(run: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 1))
    train(model, torch.ones(2, 3), run=run, layers=["0", "0.*"], kinds=["activations", "weights"])

    opened = open_run(run)
    assert set(opened.layers("activations")) == {"0", "0.0", "0.1"}
    assert opened.layers("weights") == ["0.0.weight", "0.0.bias"]


def test_a_pattern_matches_a_parameter_by_its_path_or_its_modules(run: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    train(model, torch.ones(2, 3), run=run, layers=["*.bias", "1"], exclude="1.bias")

    opened = open_run(run)
    assert opened.layers("weights") == ["0.bias", "1.weight"]
    assert opened.layers("activations") == ["1"]


def test_a_regular_expression_selects_layers(run: str) -> None:
    train(
        nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)]),
        torch.ones(2, 3),
        run=run,
        layers="re:[13]",
    )

    assert open_run(run).layers("activations") == ["1", "3"]


class Padded(nn.Conv2d):
    """A convolution of somebody's own."""


class Typed(nn.Module):
    """Has layers of several types, some inside of a container that has a type of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.own = nn.Conv2d(1, 2, 3), Padded(2, 2, 3)
        self.act, self.fc = nn.ReLU(), nn.Linear(16, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.act(self.own(self.conv(x))).flatten(2)
        return self.block(self.fc(tokens))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layers", "outputs", "holders"),
    [
        ("type:Conv2d", ["conv", "own"], ["conv", "own"]),
        ([nn.Conv2d], ["conv", "own"], ["conv", "own"]),
        (Padded, ["own"], ["own"]),
        ("type:Pad*,type:ReLU", ["own", "act"], ["own"]),
        ([nn.ReLU, "fc*", "re:block.norm[1]"], ["act", "fc", "block.norm1"], ["fc", "block.norm1"]),
        ("type:TransformerEncoderLayer", ["block"], []),
        ("type:*Norm", ["block.norm1", "block.norm2"], ["block.norm1", "block.norm2"]),
        ("type:MultiheadAttention", ["block.self_attn.0"], ["block.self_attn"]),
    ],
)
def test_layers_are_selected_by_their_types(
    run: str, layers: Any, outputs: list[str], holders: list[str]
) -> None:
    train(Typed(), torch.ones(2, 1, 8, 8), run=run, layers=layers)

    opened = open_run(run)
    assert opened.layers("activations") == outputs
    found = [name.rpartition(".")[0] for name in opened.weights]
    assert list(dict.fromkeys(found)) == holders


def test_layers_are_left_out_by_their_types(run: str) -> None:
    exclude = ["type:Linear", Padded, "block*"]
    train(Typed(), torch.ones(2, 1, 8, 8), run=run, exclude=exclude)

    opened = open_run(run)
    assert opened.layers("activations") == ["conv", "act"]
    assert opened.layers("weights") == ["conv.weight", "conv.bias"]
    assert opened.attributes["plan"]["exclude"] == ["type:Linear", "type:Padded", "block*"]


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("type:Conv3d", "types of this Typed: Conv2d, Padded, ReLU, Linear, "),
        (nn.Module, "types of this Typed: Conv2d, "),
        ("type:Transformer*", "wildcards take no container, as 'type:TransformerEncoderLayer'"),
    ],
)
def test_a_type_that_takes_nothing_is_named_with_those_that_there_are(
    run: str, selector: Any, hint: str
) -> None:
    with pytest.raises(PlanError, match=rf"no layer matches 'type:.*'; {hint}"):
        train(Typed(), torch.ones(2, 1, 8, 8), run=run, layers=["fc", selector])

    assert not Path(run).exists()


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_module_with_two_names_is_selected_by_either(run: str, name: str) -> None:
    model = nn.Sequential()
    model.first = nn.Linear(3, 3)
    model.second = model.first
    train(model, torch.ones(2, 3), run=run, layers=name)

    opened = open_run(run)
    assert opened.layers("activations") == ["first", "first#1"]
    assert opened.layers("weights") == ["first.weight", "first.bias"]


class Tied(nn.Module):
    """Shares one matrix between an embedding and the output, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))  # type: ignore[no-any-return]


def test_tied_weights_are_kept_once_with_the_other_name_beside_it(run: str) -> None:
    train(Tied(), torch.tensor([[0, 1], [2, 3]]), run=run)

    opened = open_run(run)
    assert opened.layers("weights") == ["embed.weight"]
    assert opened.weights["embed.weight"].attributes["aliases"] == ["head.weight"]
    assert opened.layers("gradients", "head.weight") == ["embed.weight"]
    for step in (0, 1):
        np.testing.assert_array_equal(
            opened.weights["head.weight"].frame(step), opened.weights["embed.weight"].frame(step)
        )


def test_a_frozen_parameter_has_weights_and_no_gradients(run: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    train(model, torch.ones(2, 3), run=run)

    opened = open_run(run)
    assert "0.weight" in opened.layers("weights")
    assert "0.weight" not in opened.layers("gradients")


def test_a_parameter_without_a_gradient_has_no_frame_in_that_row(run: str) -> None:
    used, unused = nn.Linear(3, 1), nn.Linear(3, 1)
    model = nn.ModuleList([used, unused])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1):
        for step in range(3):
            optimizer.zero_grad()
            (used if step != 1 else unused)(torch.ones(2, 3)).sum().backward()
            optimizer.step()

    opened = open_run(run)
    assert opened.gradients["0.weight"].steps.tolist() == [0, 2]
    assert opened.gradients["1.weight"].steps.tolist() == [1]
    assert opened.weights["1.weight"].steps.tolist() == [0, 1, 2]
    assert np.isnan(opened.statistics("gradients")["1.weight", "l2"].values).tolist() in (
        [True, False, True],
        [False],
    )


@pytest.mark.parametrize("budget", ["1MB", "400B"])
def test_sparse_gradients_are_captured_as_dense_ones_are(tmp_path: Path, budget: str) -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Embedding(50, 4, sparse=sparse)
        run = str(tmp_path / f"{sparse}.zarr")
        train(model, torch.tensor([0, 1, 48, 0]), run=run, steps=3, max_capture_bytes=budget)
        gradients = open_run(run).gradients["weight"]
        statistics = open_run(run).statistics("gradients")
        found.append(
            [
                gradients.read(slice(0, 3)),
                gradients.histogram(2, bins=10)[0],
                *(statistics["weight", name].values for name in ("count", "zeros", "l2", "min")),
            ]
        )

    for left, right in zip(*found, strict=True):
        np.testing.assert_array_equal(left, right)
    assert found[0][0].shape == ((3, 50, 4) if budget == "1MB" else (3, 7, 4))
    assert found[0][0].any()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_tensors_of_compressed_sparse_rows_are_skipped_with_one_line(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Graph(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to_sparse_csr()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph, self.fc = Graph(), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.graph(x).to_dense())  # type: ignore[no-any-return]

    train(Net(), torch.eye(3), run=run, steps=3)

    assert caplog.text.count("torch.sparse_csr") == 1
    assert open_run(run).layers("activations") == ["fc"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_under_checkpointing_is_not_taken_again(run: str, reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.block, x, use_reentrant=reentrant)  # type: ignore[no-any-return]

    train(Checkpointed(), torch.ones(2, 3, requires_grad=True), run=run)

    assert open_run(run).layers("activations") == ["block.0", "block.1"]


def test_a_wrapper_that_checkpoints_is_no_part_of_a_name(run: str) -> None:
    wrapped = checkpoint_wrapper(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    model = nn.Sequential(wrapped, nn.Linear(3, 1))
    train(model, torch.ones(2, 3, requires_grad=True), run=run)

    opened = open_run(run)
    assert opened.layers("activations") == ["0.0", "0.1", "1"]
    assert opened.layers("weights") == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 runs past hooks there")
def test_an_encoder_that_has_a_fast_path_in_eval_mode_is_seen_in_both_modes(run: str) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        fast = model.eval()(x)
    seen = {}
    for phase in ("train", "eval"):
        with Capture(model, optimizer, f"{run}-{phase}", every=1, phases=phase):
            for _ in range(2):
                model.train()(x).sum().backward()
                with torch.no_grad():
                    slow = model.eval()(x)
                torch.testing.assert_close(slow, fast)
                optimizer.zero_grad()  # gradients of None leave the weights as they are
                optimizer.step()
        seen[phase] = set(open_run(f"{run}-{phase}").layers("activations"))

    assert {"linear1", "linear2", "norm1", "norm2"} <= seen["train"] & seen["eval"]
    assert "self_attn.out_proj" not in seen["train"] | seen["eval"]  # its module runs past it


def test_an_evaluation_between_steps_is_not_taken(run: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1):
        for step in range(3):
            model.eval()
            model(torch.full((7, 3), 9.0))
            model.train()
            model(torch.full((2, 3), float(step))).sum().backward()
            optimizer.step()

    counts = open_run(run).statistics("activations")
    assert counts[counts.layers[0], "count"].values.tolist() == [2.0, 2.0, 2.0]


def test_the_first_micro_batch_is_kept_or_the_last_or_all_of_them(run: str) -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    weight = float(model.weight.detach())
    for which, layers, kept in (("first", 1, 0), ("last", 1, 2), ("all", 3, 0)):
        with Capture(model, optimizer, f"{run}-{which}", every=1, micro_batches=which):
            for _ in range(2):
                optimizer.zero_grad()
                for micro in range(3):
                    model(torch.full((2, 1), float(micro))).sum().backward()
                optimizer.step()
        opened = open_run(f"{run}-{which}")
        assert len(opened.layers("activations")) == layers
        assert opened.statistics("gradients")["weight", "sum"].values.tolist() == [6.0, 6.0]
        first = opened.activations[opened.layers("activations")[0]]
        assert first.frame(1).tolist() == [[weight * kept]]
        last = opened.statistics("activations")[opened.layers("activations")[-1], "sum"]
        assert last.values == pytest.approx([2 * weight * (0 if which == "first" else 2)] * 2)


def test_distributed_data_parallel_is_looked_through(run: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1
    )
    try:
        inner = nn.Sequential()
        inner.module = nn.Linear(3, 2)  # a name of the user's own
        model = nn.parallel.DistributedDataParallel(inner)
        train(model, torch.ones(4, 3), run=run)
    finally:
        torch.distributed.destroy_process_group()

    opened = open_run(run)
    assert opened.layers("weights") == ["module.weight", "module.bias"]
    assert opened.layers("activations") == ["module"]
    assert opened.weights["module.module.weight"].layer == "module.weight"


def test_a_copy_of_the_model_is_not_taken_for_it_and_a_watched_model_can_be_saved(run: str) -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1):
        for _ in range(2):
            average = copy.deepcopy(model)
            average(torch.full((7, 3), 9.0))
            model(torch.ones(2, 3)).sum().backward()
            average(torch.full((7, 3), 9.0))
            optimizer.step()
        saved = io.BytesIO()
        torch.save(model, saved)

    assert open_run(run).layers("activations") == ["0"]
    assert open_run(run).statistics("activations")["0", "count"].values.tolist() == [2.0, 2.0]
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    assert torch.equal(loaded(torch.ones(2, 3)), model(torch.ones(2, 3)))


def test_hooks_are_gone_after_close(run: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Capture(model, optimizer, run).close()

    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
