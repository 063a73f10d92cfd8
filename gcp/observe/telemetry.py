"""One pool's part in what is exported, and what went wrong there. Keeps no pool alive."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from itertools import count
from typing import Any, Final

__all__ = ['Errors', 'Telemetry', 'version']

logger: Final = logging.getLogger('gcp.observe')
numbers: Final = count()


def version() -> str:
    """Return the library's version. The package itself stands above this layer: it is not imported."""
    return str(sys.modules['gcp'].__version__)


class Errors:
    """What went wrong in exporting. It never reaches those who use the pool: counted, and logged once for each place.

    :ivar count: how many so far
    """

    def __init__(self, name: str) -> None:
        self.count = 0
        self._name = name
        self._told: set[str] = set()
        self._lock = threading.RLock()      # a finalizer may come in between

    def note(self, where: str, error: BaseException, *, told: bool = False) -> None:
        """Count an error.

        :param where: what failed: an argument of the pool, or a part of its telemetry
        :param told: whether it is in the log already
        """
        with self._lock:
            self.count += 1
            told = told or where in self._told
            self._told.add(where)
        if not told:
            # a label function that chokes on an endpoint tends to quote it, credentials and all
            what = type(error).__name__ if where == 'endpoint_label' else repr(error)
            try:
                logger.warning('%s: %s failed: %s; from now on counted only', self._name, where, what)
            except Exception:
                pass    # a handler that raises: the log is not what the pool is for

    def start_anew(self) -> None:
        """In a forked child, the counts begin at 0."""
        self.count = 0
        self._lock = threading.RLock()


class Telemetry:
    """One pool as exporters know it. They hold it for longer than its owner holds the pool, so it refers to the pool
    weakly, and to nothing through which an endpoint, a manager or a label function would stay alive: only to the core's
    final_counts, which remembers the totals.

    :ivar name: the pool's name, such that it can be encoded
    :ivar automatic: whether the pool was given none
    :ivar frontend: ``'threading'`` or ``'asyncio'``
    :ivar limits: connections of all endpoints, and of one, at most; idle connections that each endpoint keeps
    :ivar endpoint_labels: how many endpoints have labels of their own, at most
    :ivar errors: what went wrong
    :ivar exemplars: the latest observation that has a sampled span, as ``(labels, value, timestamp)``, by histogram
        (``'wait'``, ``'use'``, ``'age'``, ``'hook'``), hook (or None) and the bucket's index. Written by who records
        spans, and read by who exports histograms, in other threads
    """

    def __init__(self, pool: Any, core: Any, options: Any, frontend: str) -> None:
        self.number: Final = next(numbers)
        self.name: Final[str] = pool.name.encode('utf-8', 'replace').decode()
        self.automatic: Final[bool] = options.name is None
        self.frontend: Final = frontend
        self.limits: Final[tuple[int, int, int]] = (options.total_max_size, options.max_size, options.min_idle)
        self.endpoint_labels: Final[int] = options.endpoint_labels
        self.errors: Final = Errors(self.name)
        self.exemplars: Final[dict[tuple[str, str | None, int], tuple[dict[str, str], float, float]]] = {}
        self.pool: Final[weakref.ref[Any]] = weakref.ref(pool)
        self.final_counts: Final = core.final_counts
