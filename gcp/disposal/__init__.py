"""Disposal: how victims are disposed of without delaying other users of the pool.

The core names the victims; here they are disposed of, by threads (`gcp.disposal.threads`) or tasks
(`gcp.disposal.tasks`). Whether a `dispose` raises or hangs, it is logged, its place is freed when it ends (or when
``dispose_timeout`` has passed), and no one else waits for it: not the collector, not another endpoint, and no caller
longer than its own deadline, ``dispose_timeout`` or `DISPOSE_GRACE`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

from gcp._core import DISPOSE_GRACE, describe
from gcp.exceptions import DiscardConnection

__all__ = ['COLLECT_BATCH', 'DISPOSE_GRACE', 'FORCE_GRACE', 'SHORTEST_SLEEP', 'WORKER_IDLE_TIME']

FORCE_GRACE = 0.25
"""How long a close waits for the disposal of what it took by force, seconds."""

COLLECT_BATCH = 256
"""How many expired connections a collector takes at a time."""

SHORTEST_SLEEP = 0.001
"""The shortest sleep of a collector, seconds: on a coarse clock, what is due at once would not be due yet."""

WORKER_IDLE_TIME = 1.0
"""How long a worker thread waits for more work before it ends, seconds."""


def log(logger: logging.Logger, message: str, *args: object, level: int = logging.ERROR) -> None:
    """Log an error. A logging handler that raises changes nothing."""
    try:
        logger.log(level, message, *args)
    except Exception:
        pass


def report(logger: logging.Logger, pool: str, message: str, endpoint: object, error: BaseException) -> None:
    """Log an error of a hook that is not raised."""
    if isinstance(error, DiscardConnection):
        log(logger, '%s: discarded a connection to %s: %s', pool, describe(endpoint), error, level=logging.WARNING)
    else:
        log(logger, '%s: %s %s: %r', pool, message, describe(endpoint), error)


def report_disposal(logger: logging.Logger, pool: str, endpoint: object, error: BaseException | None) -> None:
    """Log a disposal that went wrong.

    :param error: what it raised; ``None``: it timed out
    """
    if error is None:
        log(logger, '%s: disposal of a connection to %s timed out', pool, describe(endpoint))
    else:
        log(logger, '%s: disposal of a connection to %s failed: %r', pool, describe(endpoint), error)


def weakly(method: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls a method as long as its object lives: the core must not keep its pool alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        alive = ref()
        if alive is not None:
            alive()

    return call
