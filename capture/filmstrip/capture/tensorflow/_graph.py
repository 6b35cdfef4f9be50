"""Graphs of TensorFlow 1: the only place that finds layers, variables and gradients in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from filmstrip.capture._selection import choose
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError
from filmstrip.store._names import dotted

_OUTPUTS = frozenset(
    {
        *("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MatMul"),
        *("BiasAdd", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"),
        *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "Softmax"),
        *("MaxPool", "AvgPool"),
    }
)


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor of a graph that is taken."""

    kind: str
    name: str
    original: str
    tensor: Any
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nodes:
    """What of a graph is watched, and the operations that change its variables."""

    weights: tuple[Node, ...]
    others: tuple[Node, ...]
    updates: frozenset[str]

    def trains(self, fetches: Any) -> bool:
        """Return whether to compute something changes a variable."""
        if not self.updates:
            return True
        return any(operation.name in self.updates for operation in _computed(fetches))

    def reached(self, fetches: Any, feeds: Iterable[Any]) -> list[Node]:
        """Return of what is not a weight the nodes that a run needs in any case.

        Parameters
        ----------
        fetches : nested structure
            What the run computes.
        feeds : iterable
            What it is given; what would compute that is not run.
        """
        graph = tf.compat.v1.get_default_graph()
        flat = tf.nest.flatten(list(feeds), expand_composites=True)
        fed = frozenset(graph.as_graph_element(feed).name for feed in flat)
        names: set[str] = set()
        for operation in _computed(fetches, fed):
            names.update(tensor.name for tensor in (*operation.inputs, *operation.outputs))
        return [node for node in self.others if node.tensor.name in names]


def nodes_of(graph: Any, settings: Settings) -> Nodes:
    """Return what the settings pick of a graph.

    Wildcards take operations that compute what layers do (convolutions, products, biases,
    activations); any other by its exact name, as ``layer1.Relu``. Gradients are what optimizers'
    operations are given.

    Raises
    ------
    PlanError
        If a selector matches nothing, and then it names the nearest operations, or asks for a type
        of layers, of which a graph knows nothing.
    """
    variables = graph.get_collection(tf.compat.v1.GraphKeys.TRAINABLE_VARIABLES)
    updates = dict(_updates(graph))
    forward = [node for node in _outputs(graph) if not node.original.startswith("gradients")]
    leaves = [node for node in forward if node.tensor.op.type in _OUTPUTS]
    others = [node for node in forward if node.tensor.op.type not in _OUTPUTS]
    if not variables and not leaves:
        raise PlanError(
            "the graph has neither variables nor layers; create the hook after the model"
        )
    weights = [_node("weights", variable.op.name, variable) for variable in variables]
    picked, kept = choose(leaves, others, weights, settings, model="graph")
    gradients = [
        _node(
            "gradients",
            node.original,
            updates[node.original].inputs[_gradient_of(updates[node.original])],
        )
        for node in kept
        if node.original in updates
    ]
    return Nodes(
        weights=kept if "weights" in settings.kinds else (),
        others=(*picked, *(gradients if "gradients" in settings.kinds else ())),
        updates=frozenset(operation.name for operation in updates.values()),
    )


def _node(kind: str, name: str, tensor: Any) -> Node:
    return Node(kind, dotted(name), name, tensor)


def _outputs(graph: Any) -> Iterator[Node]:
    """Yield the first outputs, of floating numbers, that can be fetched."""
    for operation in graph.get_operations():
        for output in operation.outputs[:1]:
            if output.dtype.base_dtype.is_floating and graph.is_fetchable(output):
                yield _node("activations", operation.name, output)


def _updates(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield the operations that apply a dense gradient, with the name of its variable."""
    for operation in graph.get_operations():
        dense = "Apply" in operation.type and "Sparse" not in operation.type
        if dense and _gradient_of(operation) is not None:
            yield operation.inputs[0].op.name, operation


def _gradient_of(operation: Any) -> int | None:
    names = [argument.name for argument in operation.op_def.input_arg]
    for name in ("grad", "delta"):
        if name in names:
            return names.index(name)
    return None


def _computed(fetches: Any, fed: frozenset[str] = frozenset()) -> Iterator[Any]:
    """Yield the operations that a run needs, given tensors of these names."""
    waiting = [_operation(fetch) for fetch in tf.nest.flatten(fetches)]
    seen: set[str] = set()
    while waiting:
        operation = waiting.pop()
        if operation is None or operation.name in seen:
            continue
        seen.add(operation.name)
        yield operation
        waiting += [tensor.op for tensor in operation.inputs if tensor.name not in fed]
        waiting += operation.control_inputs


def _operation(fetch: Any) -> Any:
    if isinstance(fetch, str):
        graph = tf.compat.v1.get_default_graph()
        fetch = graph.as_graph_element(fetch)
    return fetch if isinstance(fetch, tf.Operation) else getattr(fetch, "op", None)
