"""Launched: the only place that starts capture in a training script which knows nothing of it.

`filmstrip capture` hands its wishes down in one environment variable. Every Python that inherits it
waits for a framework to be imported, and imports nothing for it. What became of the wishes is noted
in a folder, from which `filmstrip capture` tells people, when the command has ended, whether
anything was captured: processes that do not train have nothing to say.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

VARIABLE = "FILMSTRIP_LAUNCH"
WATCHES = {
    "torch": "filmstrip.capture.pytorch._watch",
    "keras": "filmstrip.capture.keras._watch",
}
"""Framework, and the module whose ``watch(wishes)`` is called when it has been imported."""


class Wishes:
    """What `filmstrip capture` was asked for, as the processes of the training command see it.

    Parameters
    ----------
    command : mapping
        Keywords of capture, as the command line says them.
    plan : str or None
        Path of a TOML file.
    step : int or None
        First step, if it was said.
    folder : str
        Where notes are left.
    """

    __slots__ = ("command", "folder", "plan", "step")

    def __init__(
        self, *, command: Mapping[str, object], plan: str | None, step: int | None, folder: str
    ) -> None:
        self.command, self.plan, self.step, self.folder = command, plan, step, folder

    def text(self) -> str:
        """Return the wishes as the value of the environment variable."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, default=sorted)

    @classmethod
    def read(cls, text: str) -> Wishes:
        """Return the wishes that an environment variable holds.

        Examples
        --------
        >>> said = Wishes(command={"every": 3}, plan=None, step=None, folder="/tmp").text()
        >>> Wishes.read(said).command
        {'every': 3}
        """
        return cls(**json.loads(text))

    def note(self, name: str, text: str = "") -> None:
        """Leave a note; of several with one name, the last counts."""
        try:
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:  # noqa: PTH118, PTH123
                file.write(text)
        except OSError:
            pass  # the command that waits for it is gone

    def notes(self) -> dict[str, str]:
        """Return all notes by name."""
        found = {}
        for entry in os.scandir(self.folder):
            with open(entry.path, encoding="utf-8") as file:  # noqa: PTH123
                found[entry.name] = file.read()
        return found

    def claim(self, rank: int) -> bool:
        """Return whether this process may capture: one of each rank, as long as it lives."""
        path = os.path.join(self.folder, f"rank-{rank}")  # noqa: PTH118
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                other = int(file.read())
        except (OSError, ValueError):
            other = 0
        if other and other != os.getpid() and _alive(other):
            return False
        self.note(f"rank-{rank}", str(os.getpid()))
        return True


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def start() -> None:
    """Wait for a framework, if the environment says so; never raise."""
    try:
        wishes = Wishes.read(os.environ[VARIABLE])
    except (KeyError, ValueError, TypeError):
        return
    wishes.note("started")
    waiting: dict[str, Callable[[], None]] = {}
    for framework, watch in WATCHES.items():
        if framework in sys.modules:
            _watch(wishes, framework, watch)
        else:
            waiting[framework] = lambda args=(wishes, framework, watch): _watch(*args)  # type: ignore[misc]
    if waiting:
        sys.meta_path.insert(0, _Importing(waiting))


def _watch(wishes: Wishes, framework: str, watch: str) -> None:
    try:
        wishes.note("imported", f"{framework} was imported, but no optimizer was made")
        import_module(watch).watch(wishes)
    except Exception as error:
        wishes.note("refused", str(error) or type(error).__name__)


class _Importing:
    """A finder that finds nothing by itself, and acts when certain modules have been imported."""

    def __init__(self, acts: dict[str, Callable[[], None]]) -> None:
        self._acts = acts

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find, with an act behind its execution."""
        if name not in self._acts:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None
            if finder is not self and find is not None:
                spec = find(name, path, target)
            if spec is not None:
                self._follow(name, spec)
                return spec
        return None

    def _follow(self, name: str, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None or not hasattr(loader, "exec_module") or not hasattr(loader, "__dict__"):
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # the loader is as it was
            execute(module)
            act = self._acts.pop(name, None)
            if not self._acts and self in sys.meta_path:
                sys.meta_path.remove(self)
            if act is not None:
                act()

        loader.exec_module = exec_module  # type: ignore[method-assign]
