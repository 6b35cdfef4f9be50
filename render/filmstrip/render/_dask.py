"""Dask: the only place that knows how to reach workers through a Dask scheduler."""

# Most of Dask's functions have no types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from filmstrip.render._executors import Place
from filmstrip.render.errors import ExecutorError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["place_of", "quiet", "scheduler", "threads_of"]

_ADDRESS: Final = r"([a-z]+://)?[^/\s]+:[0-9]+"
_ANSWER_WITHIN: Final = 10  # seconds
_IN_FLIGHT: Final = 1024  # tasks for a scheduler to balance among workers that come and go
_RETRIES: Final = 2  # of a task that raised; the scheduler itself repeats one whose worker died


@contextmanager
def scheduler(address: str) -> Iterator[Place]:
    """Run on the workers of a scheduler that is there already.

    Parameters
    ----------
    address : str
        As ``tcp://host:8786``.

    Raises
    ------
    ExecutorError
        If nothing answers there.
    """
    from distributed import Client

    if not re.fullmatch(_ADDRESS, address):
        raise ExecutorError(f"--scheduler {address!r} is no address, such as tcp://host:8786")
    with quiet():
        try:
            client = Client(address, timeout=_ANSWER_WITHIN, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ExecutorError(
                f"no Dask scheduler answers at {address}; start one with `dask scheduler`, "
                "and give the address that it prints"
            ) from error
        try:
            yield place_of(client)
        finally:
            client.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Dask's client from logging what the driver says in one line."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def place_of(client: Client, workers: int = 0) -> Place:
    """Return where a client's tasks run.

    Parameters
    ----------
    client : distributed.Client
    workers : int
        Tasks at a time; 0: as many as its workers have threads now, at least 1.
    """
    address = client.scheduler_info()["address"]

    def check(_: int) -> str:
        return "" if threads_of(client) else f"waiting for workers at {address}"

    return Place(
        client.get_executor(pure=False, retries=_RETRIES),
        workers or max(1, threads_of(client)),
        in_flight=_IN_FLIGHT,
        check=check,
    )


def threads_of(client: Client) -> int:
    """Tasks that the workers of a client run at a time.

    Raises
    ------
    ExecutorError
        If the scheduler is gone.
    """
    try:
        if client.status == "running":
            return sum(client.nthreads().values())
    except OSError:  # of which distributed's own are
        pass
    raise ExecutorError(
        "the Dask scheduler is gone; what was drawn stays, and the same command draws the rest"
    )
