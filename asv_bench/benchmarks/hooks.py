"""The idle hit of a manager that overrides hooks: none, each that a hit calls, all. Times are for a thousand hits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import bodies

OVERRIDDEN: dict[str, tuple[str, ...]] = {
    'none': (),
    'check_aliveness': ('check_aliveness',),
    'on_acquire': ('on_acquire',),
    'on_release': ('on_release',),
    'all': ('check_aliveness', 'on_acquire', 'on_release'),
}


class PythonCall(bodies.effort.Timed):
    """What a hook that does nothing costs in any case: a thousand calls of a function that does nothing."""

    def setup(self) -> None:
        self.function: Callable[[object, object, object], None] = bodies.managers.nothing

    def time_call(self) -> None:
        function, endpoint, conn = self.function, 'db', object()
        for _ in range(bodies.TIMES):
            function(self, endpoint, conn)


class Threads(bodies.OnThreads):
    params = [list(OVERRIDDEN)]
    param_names = ['overridden']

    def setup(self, overridden: str) -> None:
        self.open(hooks=OVERRIDDEN[overridden])

    def time_acquire_release(self, *params: Any) -> None:
        self.acquire_release()

    def time_with_connection(self, *params: Any) -> None:
        self.connection()


class Tasks(bodies.OnTasks):
    params = [list(OVERRIDDEN)]
    param_names = ['overridden']

    def setup(self, overridden: str) -> None:
        self.open(hooks=OVERRIDDEN[overridden])

    def time_acquire_release(self, *params: Any) -> None:
        self.acquire_release()

    def time_async_with_connection(self, *params: Any) -> None:
        self.connection()
