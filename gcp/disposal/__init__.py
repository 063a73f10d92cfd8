"""Disposal: how victims leave without hurting anybody.

The core names the victims; here they are disposed of, in the colour of the front: `gcp.disposal.threads`,
`gcp.disposal.tasks`. Whatever a `dispose` does, raise or hang, it is logged, its place is freed when it ends (or when
``dispose_timeout`` has passed), and nobody else waits for it: not the collector, not another endpoint, and no caller
longer than its own deadline, ``dispose_timeout`` or a short grace."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

from gcp._core import Core

DISPOSE_GRACE = 0.05
"""For how long a caller waits for a disposal that is not its own business, in seconds. Enough for a well-behaved one,
so that what an acquire or a release set off has usually happened when it returns."""

FORCE_GRACE = 0.25
"""For how long a close waits for the disposal of what it took by force, in seconds."""

COLLECT_BATCH = 256
"""How many expired connections a collector takes at a time."""

SHORTEST_SLEEP = 0.001
"""The shortest sleep of a collector, in seconds."""

NO_ORIGIN = object()
"""The origin of what is done in the background, and in the interest of nobody whose span records."""

WORKER_IDLE_TIME = 1.0
"""For how long a worker thread waits for more, in seconds, before it ends."""


def tell(logger: logging.Logger, level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log. Whatever a logging handler does, the pool goes on."""
    try:
        logger.log(level, message, *args, exc_info=error)
    except Exception:
        pass


def origin_of(core: Core) -> object:
    """Say in whose interest a disposal in the background is, for its span."""
    return None if core.tracer is None else core.tracer.current() or NO_ORIGIN


def weakly(method: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls a method as long as its object lives: the core must not keep its pool alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        alive = ref()
        if alive is not None:
            alive()

    return call
