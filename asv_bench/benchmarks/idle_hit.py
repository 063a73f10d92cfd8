"""The idle hit: acquire an idle connection and release it. Times are for a thousand: in ms, or in us for one."""

from __future__ import annotations

from collections import deque

from . import bodies


class Deque(bodies.effort.Timed):
    """The minimum that a pool of one endpoint has to do."""

    def setup(self) -> None:
        self.line = deque([object()])

    def time_pop_append(self) -> None:
        line = self.line
        for _ in range(bodies.TIMES):
            conn = line.pop()
            line.append(conn)


class Threads(bodies.OnThreads):
    """Metrics are on, as always."""

    def setup(self) -> None:
        self.open()

    def time_acquire_release(self) -> None:
        self.acquire_release()

    def time_with_connection(self) -> None:
        self.connection()


class Tasks(bodies.OnTasks):
    """The same for asyncio."""

    def setup(self) -> None:
        self.open()

    def time_acquire_release(self) -> None:
        self.acquire_release()

    def time_async_with_connection(self) -> None:
        self.connection()
