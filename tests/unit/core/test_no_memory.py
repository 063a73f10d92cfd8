"""Memory runs out, at each allocation in turn: no connection is lost, and none is held by nobody."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

import gcp.asyncio
import gcp.threading

_testcapi = pytest.importorskip('_testcapi')
if not hasattr(_testcapi, 'set_nomemory'):
    pytest.skip('this Python cannot make allocations fail', allow_module_level=True)

# A task that gets no memory for what would await a hook leaves that hook's coroutine alone.
pytestmark = pytest.mark.filterwarnings('ignore:coroutine', 'ignore::pytest.PytestUnraisableExceptionWarning')

HOOKS = ['create', 'check_aliveness', 'on_acquire', 'on_release']
MOST = 60  # allocations after a hook; later ones are not the pool's


class Connection:
    """A connection that the manager made before memory ran out."""

    open = False


class Hooks:
    """What managers of both fronts do: at the end of one hook, the allocation with a certain number begins to fail."""

    def __init__(self, hook: str, number: int) -> None:
        self.hook = hook
        self.number = number
        self.armed = False
        self.made = [Connection() for _ in range(4)]
        self.all = list(self.made)

    def end_of(self, hook: str) -> None:
        if self.armed and self.hook == hook:
            self.armed = False
            _testcapi.set_nomemory(self.number, self.number + 1)

    def opened(self) -> Connection:
        conn = self.made.pop()
        conn.open = True
        self.end_of('create')
        return conn

    def audit(self, pool: Any) -> None:
        """Each connection that is open is idle in the pool, or else it was disposed of."""
        gc.collect()
        pool._core.drain()
        stats = pool.stats()
        assert (stats.used, stats.creating, stats.waiting) == (0, 0, 0), self.number
        lost = sum(conn.open for conn in self.all) - stats.idle - stats.disposing
        assert lost == 0, f'allocation {self.number} after {self.hook} loses a connection'


class Sync(gcp.threading.BaseConnectionManager[str, Connection], Hooks):  # type: ignore[misc]
    def create(self, endpoint: str, timeout: float | None = None) -> Connection:
        return self.opened()

    def dispose(self, endpoint: str, conn: Connection, timeout: float | None = None) -> None:
        conn.open = False

    def check_aliveness(self, endpoint: str, conn: Connection, timeout: float | None = None) -> bool:
        self.end_of('check_aliveness')
        return True

    def on_acquire(self, endpoint: str, conn: Connection) -> None:
        self.end_of('on_acquire')

    def on_release(self, endpoint: str, conn: Connection) -> None:
        self.end_of('on_release')


class Async(gcp.asyncio.BaseConnectionManager[str, Connection], Hooks):  # type: ignore[misc]
    pause = False

    async def create(self, endpoint: str) -> Connection:
        if self.pause:
            await asyncio.sleep(0)
        return self.opened()

    async def dispose(self, endpoint: str, conn: Connection) -> None:
        conn.open = False

    async def check_aliveness(self, endpoint: str, conn: Connection) -> bool:
        self.end_of('check_aliveness')
        return True

    async def on_acquire(self, endpoint: str, conn: Connection) -> None:
        self.end_of('on_acquire')

    async def on_release(self, endpoint: str, conn: Connection) -> None:
        self.end_of('on_release')


def use(pool: Any) -> None:
    with pool.connection('db'):
        pass


def use_by_name(pool: Any) -> None:
    pool.release(pool.acquire('db'), 'db')


@pytest.mark.parametrize('uses', [use, use_by_name])
@pytest.mark.parametrize('hook', HOOKS)
def test_threads(hook: str, uses: Callable[[Any], None]) -> None:
    for number in range(MOST):
        manager = Sync(hook, number)
        pool = gcp.threading.ConnectionPool(manager, registry=None, meter_provider=None, tracer_provider=None)
        for armed in (hook == 'create', True):
            manager.armed = armed
            try:
                uses(pool)
            except MemoryError:
                pass
            finally:
                _testcapi.remove_mem_hooks()
        manager.armed = False
        manager.audit(pool)
        uses(pool)
        pool.close()


@pytest.mark.parametrize('pause', [False, True])
@pytest.mark.parametrize('timeout', [None, 30.0])
@pytest.mark.parametrize('hook', HOOKS)
def test_tasks(hook: str, timeout: float | None, pause: bool) -> None:
    async def body(number: int) -> None:
        manager = Async(hook, number)
        manager.pause = pause
        pool = gcp.asyncio.ConnectionPool(manager, registry=None, meter_provider=None, tracer_provider=None)
        for armed in (hook == 'create', True):
            manager.armed = armed
            try:
                async with pool.connection('db', timeout):
                    pass
            except MemoryError:
                pass
            finally:
                _testcapi.remove_mem_hooks()
        manager.armed = False
        manager.audit(pool)
        async with pool.connection('db'):
            pass
        await pool.close()

    for number in range(MOST):
        asyncio.run(body(number))
