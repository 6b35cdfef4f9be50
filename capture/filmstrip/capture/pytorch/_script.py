"""Scripts: the only place that hides hooks from `torch.jit.script`, which cannot compile them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_installed = False


def hide_hooks(hidden: Callable[[object], bool]) -> None:
    """Let TorchScript compile a module without the hooks that are to be hidden.

    It stays so as long as the process lives, since copies of a model keep what stands for hooks.
    Where torch has no such function any more, TorchScript refuses a watched model in its own words.
    """
    global _installed
    recursive = getattr(torch.jit, "_recursive", None)
    stubs = getattr(recursive, "get_hook_stubs", None)
    if stubs is None or _installed:
        return

    def without(module: nn.Module) -> Any:
        own = {name: vars(module)[name] for name in _HOOKS if name in vars(module)}
        try:
            for name, hooks in own.items():
                kept = ((key, hook) for key, hook in hooks.items() if not hidden(hook))
                vars(module)[name] = type(hooks)(kept)
            return stubs(module)
        finally:
            vars(module).update(own)

    recursive.get_hook_stubs = without  # type: ignore[union-attr]
    _installed = True
