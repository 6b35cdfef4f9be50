"""What Python runs when it starts: the only place that stands in for another ``sitecustomize``.

`filmstrip capture` puts this folder, and nothing else, in front of ``PYTHONPATH``. A script does
not see it: the folder leaves ``sys.path`` at once, and a ``sitecustomize`` of the user's own runs
as it would have done. Nothing here may raise, write or import more than it must: every Python that
the training command starts runs it.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _leave() -> None:
    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120  # pathlib is slow to import
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != here]


def _chain() -> None:
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _start() -> None:
    try:
        from filmstrip.capture._launched import start
    except ImportError:
        return  # this Python has no filmstrip
    start()


if "FILMSTRIP_LAUNCH" in os.environ:
    _leave()
    try:
        _start()
    finally:
        _chain()
