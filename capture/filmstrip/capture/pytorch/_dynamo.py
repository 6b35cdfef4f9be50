"""Dynamo: the only place that changes how models are compiled while one of them is watched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import nn

_LOOKING = "skip_nnmodule_hook_guards"
_LIMITS = (
    "recompile_limit",
    "accumulated_recompile_limit",
    "cache_size_limit",  # the names before torch 2.7
    "accumulated_cache_size_limit",
)
_ALIKE = torch.__version__ >= "2.9"  # torch 2.7 tells every hook from others of its class
_FORMER: list[Mapping[str, Any]] = []  # settings as each model that is watched found them


class Apart:
    """Makes Dynamo tell a watched model from others of its class, until it is removed.

    By default compiled code does not look whether modules have hooks: what was compiled for a model
    without any would run in place of a watched one. What is compiled from now on looks, and what
    was compiled before is compiled again. Taps make two graphs out of one, and blocks of one class
    that are compiled each by itself share a graph only where they have the same taps: as many more
    are allowed before Dynamo gives up.

    Parameters
    ----------
    root : torch.nn.Module
        The model.
    watched : iterable of str
        Names of its modules that have hooks.
    hooks : sequence of code
        Of the hooks; Dynamo need not compile them where it meets them outside of a graph.
    """

    def __init__(self, root: nn.Module, watched: Iterable[str], hooks: Sequence[CodeType]) -> None:
        import torch._dynamo as dynamo

        config = dynamo.config
        former = {
            name: getattr(config, name) for name in (_LOOKING, *_LIMITS) if hasattr(config, name)
        }
        _FORMER.append(former)
        if _LOOKING in former:
            setattr(config, _LOOKING, False)
        more = 2 * _patterns(root, watched)
        for name in former.keys() & set(_LIMITS):
            setattr(config, name, former[name] * more)
        getattr(dynamo, "reset_code_caches", dynamo.reset)()
        try:
            from torch._C._dynamo.eval_frame import (
                _FrameAction,
                _FrameExecStrategy,
                set_code_exec_strategy,
            )
        except ImportError:  # before torch 2.7
            from torch._dynamo.eval_frame import skip_code

            for hook in hooks:
                skip_code(hook)
            return
        for hook in hooks:
            set_code_exec_strategy(hook, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))

    def remove(self) -> None:
        """Put back, once no model is watched, what the first one changed."""
        import torch._dynamo as dynamo

        former = _FORMER.pop()
        if not _FORMER:
            for name, value in former.items():
                setattr(dynamo.config, name, value)


def _patterns(root: nn.Module, watched: Iterable[str]) -> int:
    """Return in how many ways modules of one class are watched inside, or not at all.

    Where Dynamo tells hooks apart that do the same, each of the modules is watched in its own way.

    Examples
    --------
    >>> _patterns(nn.ModuleList(nn.Sequential(nn.ReLU(), nn.ReLU()) for _ in range(9)), ["0.1"])
    2
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for name in watched:
        parts = name.split(".")
        for depth in range(len(parts) + 1):
            inside[".".join(parts[:depth])].add(".".join(parts[depth:]))
    patterns: dict[type, set[object]] = defaultdict(set)
    modules = dict(root.named_modules(remove_duplicate=False))
    for name, names in inside.items():
        if name in modules:  # Keras keeps layers where torch does not see them
            patterns[type(modules[name])].add(frozenset(names) if _ALIKE else name)
    return 1 + max(map(len, patterns.values()), default=0)
