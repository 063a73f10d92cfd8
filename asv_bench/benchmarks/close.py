"""Closing a pool of many idle connections."""

from __future__ import annotations

from . import bodies

IDLE = bodies.effort.choose([100], [1000], [1000, 20_000])


def limits(idle: int) -> dict[str, int]:
    return {'min_idle': 1, 'max_size': idle, 'total_max_size': idle}


class Threads(bodies.OnThreads):
    """Each sample closes a pool of its own."""

    params = [IDLE]
    param_names = ['idle']

    def setup(self, idle: int) -> None:
        self.open(**limits(idle))
        for conn in [self.pool.acquire('db') for _ in range(idle)]:
            self.pool.release(conn, 'db')
        assert self.pool.get_size() == idle

    def time_close(self, idle: int) -> None:
        self.pool.close()


class Tasks(bodies.OnTasks):
    """The same for asyncio."""

    params = [IDLE]
    param_names = ['idle']

    def setup(self, idle: int) -> None:
        self.open(**limits(idle))
        self.run(self.fill(idle))
        assert self.pool.get_size() == idle

    async def fill(self, idle: int) -> None:
        for conn in [await self.pool.acquire('db') for _ in range(idle)]:
            await self.pool.release(conn, 'db')

    def time_close(self, idle: int) -> None:
        self.run(self.pool.close())
