"""The op: the only place that takes part in compiled code.

A hook that `torch.compile` traces runs once, without values. It leaves an op with effects in the
graph, which the compiler neither drops, reorders nor runs twice; whenever the compiled code comes
by, the op hands the values to the hook. The hook is found by a number that is a tensor, an input of
the graph: an `int` would be a constant of it, and each of 48 equal blocks be compiled by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from filmstrip.capture import _report
from filmstrip.capture.pytorch._probe import named_leaves

_NAME = "filmstrip::tap"
_SINCE = "2.7"  # before, torch changed gradients (2.4), or lost the op (2.5, 2.6), and said nothing
_NUMBERS = count()
_OUTERMOST, _RECOMPUTED, _ELSEWHERE = range(3)
_CHECKPOINTS = frozenset({"TagActivationCheckpoint", "WrapActivationCheckpoint"})
_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


class Hearer(Protocol):
    """A hook that can be reached from compiled code."""

    def hear(self, leaves: Sequence[str], tensors: Sequence[torch.Tensor], learns: bool) -> None:
        """Take what a module gave; must not raise.

        Parameters
        ----------
        leaves : sequence of str
            What follows the module's name in the names of the tensors, as `named_leaves` has it.
        tensors : sequence of Tensor
            Detached; they must not be kept.
        learns : bool
            Whether gradients were enabled around the compiled code, inside which they never are.
        """


_HEARERS: WeakValueDictionary[int, Hearer] = WeakValueDictionary()


def number(hearer: Hearer) -> torch.Tensor:
    """Return the number of a hook, by which compiled code finds it as long as it lives."""
    one = next(_NUMBERS)
    _HEARERS[one] = hearer
    with torch.inference_mode(False):
        return torch.tensor(one, device="cpu")


def leave(key: torch.Tensor, output: object) -> None:
    """Leave the op in the code that is traced, unless `lasting` says that nothing may be left.

    Tensors of classes that dispatch by themselves are left out: an op needs a rule for each.
    """
    assert _OP is not None
    leaves, tensors = [], []
    for leaf, tensor in named_leaves("", output):
        if type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
            leaves.append(leaf)
            tensors.append(tensor.detach())
    _OP(key, tensors, leaves, torch.is_grad_enabled())


def lasting() -> bool:
    """Return whether an op may be left in the code that is traced.

    Not so in what `torch.export` traces, which goes elsewhere, in what `torch.func` transforms, and
    in graphs inside of graphs, as of `torch.cond`, unless they are there to be recomputed.
    """
    return bool(_place() != _ELSEWHERE) and _OP is not None


def outermost() -> bool:
    """Return whether the code that is traced may change objects of Python, too."""
    return bool(_place() == _OUTERMOST)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _place() -> int:
    """Return in what kind of graph the code stands that is traced; called while it is."""
    around = set()
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        graph: Any = InstructionTranslator.current_tx().output
        tracer = graph.current_tracer
        while tracer.parent is not None:
            around.add(type(tracer.source_target).__name__)
            tracer = tracer.parent
    except (ImportError, AttributeError):  # traced by something other than this Dynamo
        return _ELSEWHERE
    exporting = getattr(graph, "export", False) or _exporting()
    if exporting or torch._C._functorch.peek_interpreter_stack() is not None:
        return _ELSEWHERE
    if _OP is None:
        _say_that_nothing_is_left()
    if not around:
        return _OUTERMOST
    return _RECOMPUTED if around <= _CHECKPOINTS else _ELSEWHERE


@cache
def _say_that_nothing_is_left() -> None:
    """Say once why layers inside of compiled code are not seen."""
    version = torch.__version__.partition("+")[0]
    _report.say(
        f"torch {version} does not show outputs of layers in compiled code, torch {_SINCE} and "
        "later do; weights and gradients are captured"
    )


def _heard(key: torch.Tensor, tensors: list[torch.Tensor], leaves: list[str], learns: bool) -> None:
    hearer = _HEARERS.get(int(key))
    if hearer is not None:
        hearer.hear(leaves, tensors, learns)


def _nothing(*given: Any) -> None:
    """Stand for the op where there are no values."""


def _defined() -> Callable[..., None] | None:
    """Define the op; None where this torch has no ops with effects, or none that work."""
    if torch.__version__ < _SINCE:
        return None
    try:
        from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
    except ImportError:
        return None
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    torch.library.define(
        _NAME,
        "(Tensor key, Tensor[] tensors, str[] leaves, bool learns) -> ()",
        tags=() if unsafe is None else (unsafe,),
    )
    heard = torch.compiler.disable(_heard)  # type: ignore[no-untyped-call]
    torch.library.impl(_NAME, "CompositeExplicitAutograd", heard)
    torch.library.register_fake(_NAME, _nothing)
    op = torch.ops.filmstrip.tap.default
    try:
        _register_effectful_op(op, _EffectType.ORDERED)
    except (AttributeError, TypeError):  # it is private, and may change
        return None
    return op


_OP = _defined()
