"""What exporters know of one pool, and the errors that they met. Nothing here keeps a pool alive."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any, Final

__all__ = ['Errors', 'Telemetry', 'living', 'on_new_pool', 'version']

logger: Final = logging.getLogger('gcp.observe')
numbers: Final = count()
#: all pools of this process, exported or not
pools: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
#: called with each new pool: `gcp.debug` and `gcp.pytest_plugin` add theirs
on_new_pool: Final[list[Callable[[Any], None]]] = []


def version() -> str:
    """Return the library's version. Importing the package here would be circular."""
    return str(sys.modules['gcp'].__version__)


def living() -> list[Any]:
    """Return all pools of this process, in the order in which they were made."""
    return [pool for ref in pools.valuerefs() if (pool := ref()) is not None]


class Errors:
    """Counts errors of telemetry, which never reach a pool's caller, and logs the first of each kind.

    :param name: the pool's name, or the module's, for the log
    :ivar count: how many there were
    """

    def __init__(self, name: str) -> None:
        self.count = 0
        self._name = name
        self._logged: set[str] = set()
        self._lock = threading.RLock()  # reentrant: a finalizer may run here and record an error

    def record(self, where: str, error: BaseException, *, logged: bool = False) -> None:
        """Count an error.

        :param where: what failed: an argument of the pool, or a part of its telemetry
        :param logged: whether the error was logged before
        """
        with self._lock:
            self.count += 1
            logged = logged or where in self._logged
            self._logged.add(where)
        if not logged:
            # the message of a label function's error may quote the endpoint, including credentials
            what = type(error).__name__ if where == 'endpoint_label' else repr(error)
            try:
                logger.warning('%s: %s failed: %s; further errors are only counted', self._name, where, what)
            except Exception:
                pass  # a logging handler that raises must not break the pool

    def reset_after_fork(self) -> None:
        """Restart the counts at 0 in a forked child."""
        self.count = 0
        self._lock = threading.RLock()


class Telemetry:
    """One pool as exporters know it.

    Exporters keep it after the pool is gone. So it refers to the pool weakly, and to no object that would keep an
    endpoint, a manager or a label function alive: only to the core's `final_counts`, which keep the totals.

    :ivar name: the pool's name; characters that UTF-8 cannot encode are replaced
    :ivar automatic: whether the name was generated
    :ivar frontend: ``'threading'`` or ``'asyncio'``
    :ivar endpoint_labels: how many endpoints may have labels of their own
    :ivar errors: the errors of its telemetry
    :ivar exemplars: the latest observation with a sampled span, as ``(labels, value, timestamp)``, by histogram
        (``'wait'``, ``'use'``, ``'age'``, ``'hook'``, ``'failed_hook'``), hook (or None) and bucket index. The thread
        that ends a span writes it; exporters read it in other threads
    """

    def __init__(self, pool: Any, core: Any, options: Any, frontend: str) -> None:
        self.number: Final = next(numbers)
        self.name: Final[str] = pool.name.encode('utf-8', 'replace').decode()
        self.automatic: Final[bool] = options.name is None
        self.frontend: Final = frontend
        self.endpoint_labels: Final[int] = options.endpoint_labels
        self.errors: Final = Errors(self.name)
        self.exemplars: Final[dict[tuple[str, str | None, int], tuple[dict[str, str], float, float]]] = {}
        self.pool: Final[weakref.ref[Any]] = weakref.ref(pool)
        pools[self.number] = pool
        self.final_counts: Final = core.final_counts
        for tell in on_new_pool.copy():
            try:
                tell(pool)
            except Exception as error:
                self.errors.record('a look at the new pool', error)
