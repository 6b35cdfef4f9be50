"""Ingest: each format is written by its own framework and read back equal to the bit."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tracemalloc
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
import typer

pytest.importorskip("torch", "2.6", reason="older ones may run what is in a file")

from capture.training import Batches, Trained
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from typer.testing import CliRunner, Result

from filmstrip.capture.ingest.cli import ingest
from filmstrip.capture.pytorch import Capture
from filmstrip.store import FrameSpec, bit_histogram, check, create_run, open_run, summarize

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(ingest)


def run_it(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ingested(*arguments: object) -> str:
    """Run the command, which must succeed, and return what it says."""
    done = run_it(*arguments)

    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: object) -> str:
    """Run the command, which must fail with one line and no traceback, and return the line."""
    done = run_it(*arguments)

    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.stderr.count("\n") == 1
    return done.stderr


def bits(array: npt.ArrayLike) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def holds(run: Path | str, step: int, wanted: Mapping[str, npt.ArrayLike]) -> None:
    """Assert that a run has these weights at a step, equal to the bit, and that it is sound."""
    weights = open_run(run).weights
    assert set(weights) == set(wanted)
    for layer, values in wanted.items():
        frame = weights[layer].frame(step)
        assert frame.dtype == np.asarray(values).dtype
        assert frame.shape == np.shape(values)
        assert bits(frame) == bits(values)
    assert not check(str(run))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, 10)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Net().state_dict()


@pytest.fixture
def wanted(state: dict[str, torch.Tensor]) -> dict[str, npt.ArrayLike]:
    """Return what a run must hold of `state`."""
    return {name: tensor.numpy() for name, tensor in state.items() if tensor.is_floating_point()}


ZOO: dict[str, torch.Tensor] = {
    "half": torch.tensor([[1.5, -0.0], [torch.inf, torch.nan]], dtype=torch.float16),
    "double": torch.tensor([1e300, -1e-300], dtype=torch.float64),
    "brain": torch.tensor([[1.5, -3e38, torch.inf]], dtype=torch.bfloat16),
    "eight": torch.tensor([0.5, -448.0], dtype=torch.float8_e4m3fn),
    "complex": torch.tensor([1 + 2j, -1j], dtype=torch.complex64),
    "quantized": torch.tensor([[1, -2], [3, 4]], dtype=torch.int8),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(2.5),
    "counter": torch.tensor([1, 2, 3]),
}
WIDENED = {"brain": torch.float32, "eight": torch.float16}


def zoo() -> dict[str, npt.ArrayLike]:
    """Return the zoo as the store holds it."""
    return {
        name: tensor.to(WIDENED.get(name, tensor.dtype)).numpy()
        for name, tensor in ZOO.items()
        if name != "counter"
    }


# PyTorch


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_comes_back(
    tmp_path: Path, state: dict[str, torch.Tensor], wanted: dict[str, npt.ArrayLike], new: bool
) -> None:
    path = tmp_path / "step-1200.pt"
    torch.save(state, path, _use_new_zipfile_serialization=new)

    said = ingested(tmp_path / "run.zarr", path)

    assert "step 1200 (from 'step-1200')" in said
    assert "left out 1 of integers" in said
    holds(tmp_path / "run.zarr", 1200, wanted)
    strips = open_run(tmp_path / "run.zarr").weights
    assert [strips[layer].layout for layer in ("conv.weight", "fc.weight", "fc.bias")] == [
        "OIHW",
        "OI",
        "C",
    ]


@pytest.mark.parametrize("nesting", ["model", "state_dict", "module", "own", "deep"])
def test_the_model_is_found_inside_a_checkpoint(
    tmp_path: Path, state: dict[str, torch.Tensor], wanted: dict[str, npt.ArrayLike], nesting: str
) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}}
    nested: dict[str, dict[str, Any]] = {
        "own": state,
        "deep": {"model": {"state_dict": state}},
    }
    inner = nested.get(nesting, {nesting: state})
    around = {} if nesting == "own" else {"optimizer": moments, "epoch": 3, "lr_schedulers": [{}]}
    torch.save({**inner, **around}, tmp_path / "epoch_12.pth")

    said = ingested(tmp_path / "run.zarr", tmp_path / "epoch_12.pth")

    assert ("2 outside of the model" in said) == bool(around)
    holds(tmp_path / "run.zarr", 12, wanted)


def test_harmless_things_beside_the_weights_are_no_obstacle(tmp_path: Path) -> None:
    weight = torch.randn(2, 2)
    torch.save(
        {
            "state_dict": {"module._orig_mod.fc.weight": weight},
            "best": np.float64(0.5),
            "hyper_parameters": argparse.Namespace(lr=0.1),
        },
        tmp_path / "epoch=3-step=1200.ckpt",
    )

    ingested(tmp_path / "run.zarr", tmp_path / "epoch=3-step=1200.ckpt")

    holds(tmp_path / "run.zarr", 1200, {"fc.weight": weight.numpy()})


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_paths_arrays_and_states_of_generators_are_no_obstacle(tmp_path: Path, new: bool) -> None:
    weight = torch.randn(2, 2)
    beside = {
        "args": argparse.Namespace(out=tmp_path, flags=[PureWindowsPath("C:/x")]),
        "generator": np.random.default_rng(0).bit_generator.state,
        "legacy": np.random.RandomState(0).get_state(),
        "curve": np.arange(3.0),
        "names": np.array(["a", None], dtype=object),
        "best": np.float16(0.5),
    }
    weights: defaultdict[str, Any] = defaultdict(list, {"fc.weight": weight})
    contents = {"state_dict": weights, **beside}
    torch.save(contents, tmp_path / "step-1.pt", _use_new_zipfile_serialization=new)

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.pt")

    holds(tmp_path / "run.zarr", 1, {"fc.weight": weight.numpy()})


@pytest.mark.parametrize("home", ["model_state_dict", "net"])
def test_a_tensor_beside_the_model_is_left_out(
    tmp_path: Path, state: dict[str, torch.Tensor], wanted: dict[str, npt.ArrayLike], home: str
) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}}
    beside = {"optimizer_state_dict": moments, "epoch": 1, "loss": torch.tensor(0.5)}
    torch.save({home: state, **beside}, tmp_path / "step-1.pt")

    assert "2 outside of the model" in ingested(tmp_path / "run.zarr", tmp_path / "step-1.pt")
    holds(tmp_path / "run.zarr", 1, wanted)


@pytest.mark.parametrize("optimizer", ["optimizer_{}", "optimizer{}_state_dict"])
def test_optimizers_of_several_networks_are_left_out(tmp_path: Path, optimizer: str) -> None:
    weight = torch.randn(2, 2)
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}}
    optimizers = {optimizer.format(which): moments for which in "GD"}
    contents = {"netG": {"w": weight}, "netD": {"w": weight + 1}, **optimizers}
    torch.save(contents, tmp_path / "step-1.pt")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.pt")

    both = {"netG.w": weight.numpy(), "netD.w": (weight + 1).numpy()}
    holds(tmp_path / "run.zarr", 1, both)


def test_every_dtype_of_a_pytorch_file_is_widened_as_the_store_does(tmp_path: Path) -> None:
    torch.save(ZOO, tmp_path / "step-1.bin")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.bin")

    holds(tmp_path / "run.zarr", 1, zoo())
    assert open_run(tmp_path / "run.zarr").weights["brain"].source_dtype == "bfloat16"


def test_tied_weights_come_once_with_both_names(tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    torch.save({"embed.weight": shared, "head.weight": shared}, tmp_path / "step-1.pt")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.pt")

    holds(tmp_path / "run.zarr", 1, {"embed.weight": shared.numpy()})


def test_views_of_one_memory_that_differ_are_two_weights(tmp_path: Path) -> None:
    both = torch.randn(2, 2)
    torch.save({"a": both, "b": both.T, "c": both[0], "d": both[1]}, tmp_path / "step-1.pt")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.pt")

    holds(
        tmp_path / "run.zarr",
        1,
        {"a": both.numpy(), "b": both.T.numpy(), "c": both[0].numpy(), "d": both[1].numpy()},
    )


class Evil:
    """Makes a file that says it was here when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], new: bool
) -> None:
    trace = tmp_path / "trace"
    contents = {"model": state, "x": Evil(trace)}
    torch.save(contents, tmp_path / "step-1.pt", _use_new_zipfile_serialization=new)

    line = refused(tmp_path / "run.zarr", tmp_path / "step-1.pt")

    assert "could run anything; save model.state_dict() alone" in line
    assert not trace.exists()
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (torch.ones(3), "a Tensor and no weights"),
        ({"a": 1}, "the keys 'a' and no weights"),
        ({"n": torch.tensor(3)}, "holds no weights; it holds 1 of integers"),
        ({"a/b": torch.ones(1), "a.b": torch.zeros(1)}, "'a/b' and 'a.b', which are one layer"),
    ],
)
def test_a_pytorch_file_without_usable_weights_is_told(
    tmp_path: Path, contents: object, said: str
) -> None:
    torch.save(contents, tmp_path / "step-1.pt")

    assert said in refused(tmp_path / "run.zarr", tmp_path / "step-1.pt")


def test_a_whole_model_and_a_script_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole-1.pt")
    with zipfile.ZipFile(tmp_path / "script-1.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", b"")

    assert "holds torch.nn.modules" in refused(tmp_path / "run.zarr", tmp_path / "whole-1.pt")
    assert "TorchScript" in refused(tmp_path / "run.zarr", tmp_path / "script-1.pt")


# Distributed checkpoints of PyTorch


@pytest.fixture
def sharded(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Return the folder of a distributed checkpoint, with an optimizer in it."""
    folder = tmp_path / "step-300"
    contents = {"model": {**state, **ZOO}, "optimizer": {"m": torch.ones(3)}, "epoch": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        save_distributed(contents, checkpoint_id=folder, no_dist=True)
    return folder


def test_a_distributed_checkpoint_comes_back(
    tmp_path: Path, sharded: Path, wanted: dict[str, npt.ArrayLike]
) -> None:
    said = ingested(tmp_path / "run.zarr", sharded)

    assert "1 of the optimizer" in said
    holds(tmp_path / "run.zarr", 300, {**wanted, **zoo()})


def test_the_index_of_a_distributed_checkpoint_may_not_run_code(
    tmp_path: Path, sharded: Path
) -> None:
    trace = tmp_path / "trace"
    (sharded / ".metadata").write_bytes(pickle.dumps(Evil(trace)))

    assert "could run anything" in refused(tmp_path / "run.zarr", sharded)
    assert not trace.exists()


def test_a_distributed_checkpoint_that_lacks_a_file_is_told(tmp_path: Path, sharded: Path) -> None:
    (sharded / "__0_0.distcp").unlink()

    assert "__0_0.distcp" in refused(tmp_path / "run.zarr", sharded)
    assert not (tmp_path / "run.zarr").exists()


# Safetensors


def test_safetensors_come_back_in_every_dtype(tmp_path: Path) -> None:
    save_file(ZOO, tmp_path / "step-1.safetensors")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.safetensors")

    holds(tmp_path / "run.zarr", 1, zoo())


@pytest.fixture
def face(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Return a folder as Hugging Face's trainer leaves it: shards, an index, an optimizer."""
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    names = list(state)
    for number, part in enumerate((names[:3], names[3:]), start=1):
        tensors = {name: state[name].clone() for name in part}
        save_file(tensors, folder / f"model-{number:05}-of-00002.safetensors", {"format": "pt"})
    index = {name: f"model-{1 + (name in names[3:]):05}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    torch.save({"state": {}}, folder / "optimizer.pt")
    return folder


@pytest.mark.parametrize(
    "name", ["", "model.safetensors.index.json", "model-00002-of-00002.safetensors"]
)
def test_shards_are_one_checkpoint_however_they_are_named(
    tmp_path: Path, face: Path, wanted: dict[str, npt.ArrayLike], name: str
) -> None:
    ingested(tmp_path / "run.zarr", face / name)

    holds(tmp_path / "run.zarr", 500, wanted)


def test_shards_named_singly_are_taken_once(
    tmp_path: Path, face: Path, wanted: dict[str, npt.ArrayLike]
) -> None:
    said = ingested(tmp_path / "run.zarr", *sorted(face.glob("*.safetensors")))

    assert "1 step, " in said
    holds(tmp_path / "run.zarr", 500, wanted)


def test_a_shard_that_is_missing_is_named(tmp_path: Path, face: Path) -> None:
    (face / "model-00002-of-00002.safetensors").unlink()

    assert "model-00002-of-00002.safetensors is missing" in refused(tmp_path / "run.zarr", face)


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "step-1.safetensors.index.json"
    for name, said in (("../secret.safetensors", "no file beside it"), ("", "is missing")):
        path.write_text(json.dumps({"weight_map": {"a": name}}))
        assert said in refused(tmp_path / "run.zarr", path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,99]}}', "cut short"),
        (b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "do not fit shape [3]"),
        (b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "outside of the file"),
        (b'{"w":{"shape":[2]}}', "data_offsets"),
        (b"{nonsense", "property name"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes, said: str) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    assert said in refused(tmp_path / "run.zarr", path)


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    megabytes, count = 2, 12
    tensor = torch.ones(megabytes << 19, dtype=torch.bfloat16)
    save_file({f"w{n}": tensor.clone() for n in range(count)}, tmp_path / "step-1.safetensors")
    ingested(tmp_path / "warm.zarr", tmp_path / "step-1.safetensors", "--layers", "w0")

    tracemalloc.start()
    try:
        ingested(tmp_path / "run.zarr", tmp_path / "step-1.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    widened = 2 * megabytes
    assert peak < (count / 2) * widened * 2**20


# NumPy


def test_npz_comes_back(tmp_path: Path) -> None:
    kernel = np.arange(18, dtype=np.float32).reshape(3, 3, 1, 2)
    swapped = np.array([1.5, 2.5], ">f4")
    path = tmp_path / "net_00001200.npz"
    arrays: dict[str, Any] = {"conv/kernel": kernel, "bias": swapped, "opt_state/m": kernel}
    np.savez(path, **arrays)

    said = ingested(tmp_path / "run.zarr", path)

    assert "1 of the optimizer" in said
    holds(tmp_path / "run.zarr", 1200, {"conv.kernel": kernel, "bias": swapped.astype("<f4")})
    assert open_run(tmp_path / "run.zarr").weights["conv.kernel"].layout == "HWIO"


def test_objects_in_npz_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    np.savez(tmp_path / "step-1.npz", w=np.array([Evil(trace)], object))

    assert "holds objects" in refused(tmp_path / "run.zarr", tmp_path / "step-1.npz")
    assert not trace.exists()


# Keras and TensorFlow

saving = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's


@pytest.fixture(scope="module")
def keras() -> Any:
    """Return Keras, quietly."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    pytest.importorskip("tensorflow")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def model(keras: Any) -> Any:
    """Return a model with nested and renamed layers, after one step of Adam."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(3, 3, name="stem")(image)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(2)(x)
    x = layers.Reshape((-1, 3))(x)
    x = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(2), name="both")(x)
    x = keras.Sequential([layers.Dense(12, name="in"), layers.Dense(3)], name="inner")(x)
    x = layers.LayerNormalization()(x)
    net = keras.Model(image, layers.Dense(2, name="head", use_bias=False)(x), name="net")
    net.compile("adam", "mse")
    net.train_on_batch(np.ones((2, 6, 6, 1), np.float32), np.ones((2, 2), np.float32))
    return net


def weights_of(model: Any) -> dict[str, npt.ArrayLike]:
    return {
        variable.path.replace("/", "."): variable.numpy()
        for variable in model.weights
        if "seed" not in variable.path
    }


@saving
@pytest.mark.parametrize("name", ["epoch_12.keras", "epoch_12.weights.h5", "epoch_12.h5"])
def test_keras_files_come_back_by_the_paths_of_layers(
    tmp_path: Path, model: Any, name: str
) -> None:
    path = tmp_path / name
    if name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)

    said = ingested(tmp_path / "run.zarr", path)

    assert "of the optimizer" in said
    holds(tmp_path / "run.zarr", 12, weights_of(model))
    strips = open_run(tmp_path / "run.zarr").weights
    assert strips["stem.kernel"].layout == "HWIO"
    assert strips["head.kernel"].layout == "IO"


@saving
def test_bfloat16_of_keras_is_widened(tmp_path: Path, keras: Any) -> None:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="fc", dtype="bfloat16")]
    )
    model.save_weights(tmp_path / "step-1.weights.h5")
    kernel, bias = (variable.numpy().astype(np.float32) for variable in model.weights)

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.weights.h5")

    holds(tmp_path / "run.zarr", 1, {"fc.kernel": kernel, "fc.bias": bias})


def test_hdf5_that_leads_to_other_files_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = np.ones(2, np.float32)
    with h5py.File(tmp_path / "link-1.h5", "w") as file:
        file.create_group("layers/dense/vars")["0"] = h5py.ExternalLink("other.h5", "w")
    with h5py.File(tmp_path / "old-1.h5", "w") as file:
        file.attrs["layer_names"] = ["dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = ["w"]
        group["w"] = h5py.ExternalLink("other.h5", "w")
    with h5py.File(tmp_path / "raw-1.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", (2,), "f4", external=[(str(secret), 0, 8)])

    assert "holds no weights" in refused(tmp_path / "run.zarr", tmp_path / "link-1.h5")
    assert "'w' is missing" in refused(tmp_path / "run.zarr", tmp_path / "old-1.h5")
    assert "lies in another file" in refused(tmp_path / "run.zarr", tmp_path / "raw-1.h5")


@saving
def test_the_code_of_a_keras_file_is_not_run(tmp_path: Path, keras: Any) -> None:
    dense = keras.layers.Dense(2, name="fc")
    net = keras.Sequential([keras.Input((3,)), dense, keras.layers.Lambda(abs)])
    net.save(tmp_path / "step-1.keras")
    config = zipfile.ZipFile(tmp_path / "step-1.keras").read("config.json")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.keras")

    assert b"Lambda" in config
    kernel, bias = (variable.numpy() for variable in dense.weights)
    holds(tmp_path / "run.zarr", 1, {"fc.kernel": kernel, "fc.bias": bias})


@saving
@pytest.mark.parametrize("name", ["step-1.keras", "step-1.weights.h5", "step-1.h5", "ckpt-1"])
def test_the_models_own_name_is_not_part_of_a_layers(tmp_path: Path, keras: Any, name: str) -> None:
    layers = [keras.layers.Dense(4, name="one"), keras.layers.Dense(2, name="two")]
    net = keras.Sequential([keras.Input((3,)), *layers], name="whole")
    if name == "ckpt-1":
        pytest.importorskip("tensorflow").train.Checkpoint(model=net).save(str(tmp_path / "ckpt"))
    else:
        (net.save_weights if "weights" in name else net.save)(tmp_path / name)

    ingested(tmp_path / "run.zarr", tmp_path / name)

    wanted = {f"{layer.name}.{v.name}": v.numpy() for layer in layers for v in layer.weights}
    holds(tmp_path / "run.zarr", 1, wanted)


@pytest.mark.parametrize("name", ["ckpt-1", "ckpt-1.index", "ckpt-1.data-00000-of-00001"])
def test_a_tensorflow_checkpoint_comes_back_by_the_paths_of_layers(
    tmp_path: Path, model: Any, name: str
) -> None:
    tf = pytest.importorskip("tensorflow")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "ckpt"))

    said = ingested(tmp_path / "run.zarr", tmp_path / name)

    assert "of the optimizer" in said
    holds(tmp_path / "run.zarr", 1, weights_of(model))


def test_a_saved_model_comes_back(tmp_path: Path, model: Any) -> None:
    model.export(tmp_path / "step-5", verbose=False)

    ingested(tmp_path / "run.zarr", tmp_path / "step-5")

    holds(tmp_path / "run.zarr", 5, weights_of(model))


def test_variables_without_names_go_by_the_paths_of_objects(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    root = tf.Module()
    root.first, root.second = tf.Variable([1.0, 2.0]), {"a.b/c": tf.Variable([[3.0]], tf.bfloat16)}
    root.second["a.b/c"] = tf.Variable(tf.constant([[3.0]], tf.bfloat16))
    tf.train.Checkpoint(model=root, step=tf.Variable(7)).write(str(tmp_path / "model.ckpt-3000"))

    ingested(tmp_path / "run.zarr", tmp_path / "model.ckpt-3000")

    holds(
        tmp_path / "run.zarr",
        3000,
        {"first": np.array([1, 2], "f4"), "second.a.b.c": np.array([[3]], "f4")},
    )


def test_a_checkpoint_of_tensorflow_1_leaves_out_the_slots(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        kernel = tf.get_variable("conv/weights", [3, 3, 1, 2])
        tf.get_variable("conv/weights/Adam", [3, 3, 1, 2])
        tf.get_variable("beta1_power", [])
        tf.get_variable("global_step", dtype=tf.int64, initializer=tf.constant(4, tf.int64))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), 3000, write_meta_graph=False)
        value = session.run(kernel)

    said = ingested(tmp_path / "run.zarr", tmp_path / "model.ckpt-3000")

    assert "left out 1 of integers, 2 of the optimizer" in said
    holds(tmp_path / "run.zarr", 3000, {"conv.weights": value})
    assert open_run(tmp_path / "run.zarr").weights["conv.weights"].layout == "HWIO"


# Steps, several checkpoints, runs that are there


@pytest.mark.parametrize("model", ["pytorch_model.bin", "model.safetensors"])
def test_what_a_trainer_keeps_beside_the_model_is_no_other_checkpoint(
    tmp_path: Path, model: str
) -> None:
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    weights = {"fc.weight": torch.randn(2, 3)}
    (save_file if model.endswith("safetensors") else torch.save)(weights, folder / model)
    for name in (
        *("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "scheduler_1.bin", "scaler.pt"),
        *("sampler.bin", "sampler_1.bin", "dl_state_dict.bin", "dl_state_dict_1.bin"),
        *("rng_state.pth", "rng_state_0.pth", "rng_state_11.pth", "training_args.bin"),
    ):
        torch.save({"a": torch.ones(3)}, folder / name)

    ingested(tmp_path / "run.zarr", folder)

    holds(tmp_path / "run.zarr", 500, {"fc.weight": weights["fc.weight"].numpy()})


@pytest.fixture
def series(tmp_path: Path) -> Callable[..., list[Path]]:
    """Return what writes checkpoints whose one weight is full of its step."""

    def write(*steps: int) -> list[Path]:
        paths = [tmp_path / f"step-{step}.pt" for step in steps]
        for step, path in zip(steps, paths, strict=True):
            torch.save({"fc.weight": torch.full((2, 3), float(step))}, path)
        return paths

    return write


def steps(run: Path) -> list[int]:
    return [int(step) for step in open_run(run).steps("weights")]


def test_checkpoints_are_taken_in_the_order_of_their_steps(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    ingested(tmp_path / "run.zarr", *series(100, 20, 3))

    strip = open_run(tmp_path / "run.zarr").weights["fc.weight"]
    assert [float(strip.frame(step).mean()) for step in strip.steps] == [3.0, 20.0, 100.0]


def test_steps_that_are_there_are_skipped_and_later_ones_added(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    run = tmp_path / "run.zarr"
    ingested(run, *series(1, 2))

    said = ingested(run, *series(1, 2, 3))

    assert said.count("there already, skipped") == 2
    assert steps(run) == [1, 2, 3]
    assert "1 step, 1 frame of weights" in said


def test_a_step_between_those_of_the_run_is_refused_before_anything_is_written(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    run = tmp_path / "run.zarr"
    ingested(run, *series(1, 5))

    line = refused(run, *series(3, 9))

    assert "step 3" in line
    assert "go up to step 5" in line
    assert steps(run) == [1, 5]


def test_a_shape_that_changed_ends_with_one_line_and_keeps_what_was_before(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    paths = series(1, 2)
    torch.save({"fc.weight": torch.ones(4, 3)}, tmp_path / "step-3.pt")

    line = refused(tmp_path / "run.zarr", *paths, tmp_path / "step-3.pt")

    assert "fc.weight is float32 (4, 3), and float32 (2, 3) in" in line
    assert "step-2.pt" in line
    assert steps(tmp_path / "run.zarr") == [1, 2]


def test_a_wrapper_that_came_later_does_not_make_another_layer(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    torch.save({"module.fc.weight": torch.ones(2, 3)}, tmp_path / "step-7.pt")

    ingested(tmp_path / "run.zarr", *series(1), tmp_path / "step-7.pt")

    assert open_run(tmp_path / "run.zarr").weights["fc.weight"].steps.tolist() == [1, 7]


def test_statistics_and_histograms_are_those_of_the_weights(tmp_path: Path) -> None:
    values = {
        "a": torch.tensor([[0.0, -1.5], [torch.nan, torch.inf]]),
        "b": torch.randn(1 << 21).bfloat16(),
        "c": torch.tensor([1 + 2j], dtype=torch.complex64),
    }
    torch.save(values, tmp_path / "step-1.pt")

    ingested(tmp_path / "run.zarr", tmp_path / "step-1.pt")

    statistics = open_run(tmp_path / "run.zarr").statistics("weights")
    for layer, tensor in values.items():
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        array = real.float().numpy()
        for name, value in zip(
            ("count", "nan", "posinf", "neginf", "zeros", "min", "max", "sum", "sumsq"),
            summarize(array),
            strict=True,
        ):
            assert statistics[layer, name].values[0] == pytest.approx(value, rel=1e-12)
        assert (statistics.bits(layer)[1][0] == bit_histogram(array)).all()


def test_a_run_without_the_statistics_of_its_last_step_gets_them(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    run = tmp_path / "run.zarr"
    paths = series(1, 2)
    ingested(run, paths[0])
    with create_run(run, if_exists="resume") as writer:  # as if killed between the two
        frames = {"fc.weight": np.full((2, 3), 2, np.float32)}
        writer.writer("weights", {"fc.weight": FrameSpec((2, 3), "float32")}).append(2, frames)

    ingested(run, *paths)

    assert steps(run) == [1, 2]
    assert open_run(run).statistics("weights")["fc.weight", "mean"].values.tolist() == [1, 2]
    assert not check(str(run))


def test_checkpoints_go_on_with_a_run_of_capture(
    tmp_path: Path, trained: Callable[[], Trained], batches: Batches
) -> None:
    run, this = tmp_path / "run.zarr", trained()
    with Capture(this.model, this.optimizer, str(run), every=1):
        for x, y in batches(2):
            this.optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(this.model(x), y))
            this.optimizer.step()
    torch.save(this.model.state_dict(), tmp_path / "step-2.pt")

    said = ingested(run, tmp_path / "step-2.pt")

    assert "2 layers for whose statistics the run has no room" in said  # of batch norm's buffers
    opened = open_run(run)
    for name, parameter in this.model.named_parameters():
        assert opened.weights[name].steps.tolist() == [0, 1, 2]
        assert bits(opened.weights[name].frame(2)) == bits(parameter.detach())
    assert opened.statistics("weights")["fc.weight", "l2"].values[2] == pytest.approx(
        float(this.model.fc.weight.detach().norm())
    )
    assert opened.steps("activations").tolist() == [0, 1]
    assert not check(str(run))


def test_a_run_whose_statistics_go_further_than_its_frames_takes_frames_only(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    run = tmp_path / "run.zarr"
    with create_run(run) as writer:
        statistics = writer.statistics_writer("weights", ["fc.weight"])
        statistics.append(5, np.ones((1, 9)), np.zeros((1, 4096), np.uint64))

    said = ingested(run, *series(3, 5, 8))

    assert said.count("for whose statistics the run has no room") == 2
    assert steps(run) == [3, 5, 8]
    assert open_run(run).statistics("weights").steps.tolist() == [5, 8]
    assert not check(str(run))


def test_a_run_that_is_there_is_kept_or_left_as_asked(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    run = tmp_path / "run.zarr"
    ingested(run, *series(1))

    failed = run_it(run, *series(2), "--if-exists", "fail")
    ingested(run, *series(2), "--if-exists", "new")
    before = steps(run)
    ingested(run, *series(3), "--if-exists", "overwrite")

    assert "already holds a run" in str(failed.exception)
    assert before == [1]
    assert steps(tmp_path / "run-2.zarr") == [2]
    assert steps(run) == [3]


def test_layers_are_chosen_by_their_own_path_or_their_modules(
    tmp_path: Path, state: dict[str, torch.Tensor], wanted: dict[str, npt.ArrayLike]
) -> None:
    torch.save(state, tmp_path / "step-1.pt")

    said = ingested(
        *(tmp_path / "run.zarr", tmp_path / "step-1.pt"),
        *("--layers", "conv", "--layers", "re:fc.*", "--exclude", "*.bias"),
    )

    assert "left out 6 not selected, 1 of integers" in said
    chosen = ("conv.weight", "fc.weight")
    holds(tmp_path / "run.zarr", 1, {name: wanted[name] for name in chosen})


def test_a_selector_that_matches_nothing_names_the_nearest(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    line = refused(tmp_path / "run.zarr", *series(1), "--layers", "fc.weights")

    assert "nearest: fc.weight" in line
    assert not (tmp_path / "run.zarr").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, series: Callable[..., list[Path]]) -> None:
    said = ingested(tmp_path / "run.zarr", *series(1, 2), "--dry-run")

    assert not (tmp_path / "run.zarr").exists()
    assert "would get 2 steps, 2 frames of weights, 48 B" in said
    assert "fc.weight  float32  2 × 3  OI" in said


def test_given_steps_stand_for_those_of_names(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    ingested(tmp_path / "run.zarr", *series(1, 2), "--step", 20, "--step", 10)

    assert steps(tmp_path / "run.zarr") == [10, 20]


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["last.pt"], [], "no step in this name; say it with --step"),
        (["resnet50.pt"], [], "no step in this name"),
        (["step_100k.pt"], [], "no step in this name"),
        (["iter-2M.pt"], [], "no step in this name"),
        (["a_3_7.pt"], [], "which of 3 and 7 is the step? Say it with --step"),
        (["step-1.pt", "step_1.pt"], [], "are both of step 1"),
        (["epoch-1.pt", "step-100.pt"], [], "counts epochs and"),
        (["step-1.pt", "step-2.pt"], ["--step", "3"], "1 steps were given for 2 checkpoints"),
        ([f"step-{2**63}.pt"], [], "too large"),
        (["step-1.pt"], ["--step", str(2**63)], "too large"),
    ],
)
def test_a_step_that_cannot_be_known_is_asked_for(
    tmp_path: Path, names: list[str], options: list[str], said: str
) -> None:
    for name in names:
        torch.save({"w": torch.ones(1)}, tmp_path / name)

    line = refused(tmp_path / "run.zarr", *(tmp_path / name for name in names), *options)

    assert said in line
    assert not (tmp_path / "run.zarr").exists()


# Files that are none


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("step-1.pt", b"", "is empty"),
        ("step-1.pt", b"PK\x03\x04 and nothing more", "cut short"),
        ("step-1.pt", b"\x80\x02junk", "cannot be read as a PyTorch file"),
        ("step-1.h5", b"\x89HDF\r\n\x1a\nand nothing more", "cannot be read as a Keras file"),
        ("step-1.txt", b"just words", "is no checkpoint that is known"),
        ("step-1.index", b"just words", "cannot be read as a TensorFlow checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, contents: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(contents)

    assert said in refused(tmp_path / "run.zarr", tmp_path / name)


def test_a_path_with_nothing_and_folders_with_too_little_or_too_much_are_told(
    tmp_path: Path, series: Callable[..., list[Path]]
) -> None:
    (tmp_path / "none").mkdir()

    assert "there is no checkpoint at" in refused(tmp_path / "run.zarr", tmp_path / "nowhere.pt")
    assert "holds no checkpoint" in refused(tmp_path / "run.zarr", tmp_path / "none")
    series(1, 2)
    assert "2 checkpoints; name them singly" in refused(tmp_path / "run.zarr", tmp_path)


def test_a_framework_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "step-1.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2), np.float32)
    monkeypatch.delitem(sys.modules, "filmstrip.capture.ingest._keras", raising=False)
    monkeypatch.setitem(sys.modules, "h5py", None)

    line = refused(tmp_path / "run.zarr", tmp_path / "step-1.h5")

    assert "pip install 'filmstrip[tensorflow]'" in line


def test_a_run_at_a_url_is_refused(tmp_path: Path, series: Callable[..., list[Path]]) -> None:
    assert "is a URL" in refused("s3://bucket/run.zarr", *series(1))


def test_wrong_usage_ends_with_two(tmp_path: Path) -> None:
    assert run_it(tmp_path / "run.zarr").exit_code == 2
    assert run_it(tmp_path / "run.zarr", "x.pt", "--if-exists", "maybe").exit_code == 2
