"""TensorFlow: the only place that reads its checkpoints, and the variables of SavedModels.

The graph of a SavedModel is not loaded, so that nothing in it is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from filmstrip.capture.ingest._checkpoint import HOMES, Checkpoint, of_trainer

# Or what it says when it starts fills the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
tf: Any = import_module("tensorflow")
protobuf: Any = import_module("tensorflow.core.protobuf.trackable_object_graph_pb2")

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE, _SLOT = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/"
_SLOTS = re.compile(
    r"(Adam|AdaMax|Adagrad|Adadelta|Ftrl|RMSProp|Momentum|m|v|ExponentialMovingAverage)(_\d+)?"
)
_POWERS = re.compile(r"beta\d_power(_\d+)?")
_OPTIMIZED, _COPIES = "_trainable_variables", "_all_variables"


def read(parts: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Read the files behind a prefix."""
    checkpoint.framework = "tensorflow"
    for prefix in parts:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        dtypes = reader.get_variable_to_dtype_map()
        graph = _GRAPH in shapes
        names = _full_names(reader, shapes) if graph else {key: key for key in sorted(shapes)}
        kept, everyone = {}, set(names.values())
        for key, name in names.items():
            if _of_optimizer(key, name, everyone):
                checkpoint.left_out["of the optimizer"] += 1
            elif key.startswith(f"{_COPIES}/"):
                checkpoint.left_out["second copies"] += 1
            elif dtypes[key].is_integer or dtypes[key].is_bool:
                checkpoint.left_out["of integers"] += 1
            else:
                kept[key] = name
        for key, name in (_readable(kept) if graph else kept).items():
            read_it = partial(reader.get_tensor, key)
            checkpoint.add(name, shapes[key], dtypes[key].name, read_it)


def _full_names(reader: Any, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Return the full name of every variable of an object graph, in the order of its nodes."""
    graph = protobuf.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    return {
        attribute.checkpoint_key: attribute.full_name
        for node in graph.nodes
        for attribute in node.attributes
        if attribute.checkpoint_key in shapes and attribute.checkpoint_key.endswith(_VALUE)
    }


def _of_optimizer(key: str, name: str, everyone: set[str]) -> bool:
    parts = key.split("/")
    if _SLOT in key or (any(map(of_trainer, parts)) and _OPTIMIZED not in parts):
        return True
    owner, _, last = name.rpartition("/")
    return bool(_POWERS.fullmatch(last) or (owner in everyone and _SLOTS.fullmatch(last)))


def _readable(names: Mapping[str, str]) -> dict[str, str]:
    """Return full names where they tell all variables apart, otherwise the paths of objects."""
    full = set(names.values())
    if len(full) == len(names) and not any(name.startswith("Variable") for name in full):
        return _without(names, {name.partition("/")[0] for name in full}, 3)
    paths = {key: _path(key) for key in names}
    return _without(paths, {path.partition("/")[0] for path in paths.values()} & set(HOMES), 2)


def _without(names: Mapping[str, str], owners: set[str], parts: int) -> dict[str, str]:
    """Return names without what they all begin with, when that is the model and not a layer."""
    (owner,) = owners if len(owners) == 1 else ("",)
    split = [name.split("/") for name in names.values()]
    model = all(one[0] == owner and len(one) >= parts for one in split)
    if not model or (parts > 2 and len({one[1] for one in split}) == 1):
        return dict(names)
    return {key: name.partition("/")[2] for key, name in names.items()}


def _path(key: str) -> str:
    """Return the path of an object as it was before it was escaped."""
    return key.removesuffix(_VALUE).replace("..", "\0").replace(".S", "/").replace("\0", ".")
