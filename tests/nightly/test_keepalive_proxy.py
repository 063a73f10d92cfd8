"""Guarantee 21 (docs/guarantees.md): a thousand idle connections behind a proxy that drops what was idle for a second.
With `keepalive_interval`, none is lost, no more than `max_connecting` are checked at once, and the workers of the pool
take little time between one check and the next."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from idle_proxy import idle_proxy, raise_limit

import gcp.asyncio
import gcp.threading
from gcp.contrib.socket import TcpSocketConnectionManager
from gcp.contrib.socket_async import TcpStreamConnectionManager

DROPS_AFTER = 1.0
INTERVAL = 0.5
SECONDS = 10.0
TRIED = 200
MOST = 4


def options(count: int) -> dict[str, Any]:
    return {
        'max_size': count, 'total_max_size': count, 'min_idle': count, 'max_connecting': MOST,
        'keepalive_interval': INTERVAL, 'refill': True, 'registry': None,
    }  # fmt: skip


def how_many(took: float) -> int:
    """Return how many connections there can be: the proxy needs three descriptors for each, and all their checks are to
    take a fifth of the interval on this machine, as busy as it is, at most.

    :param took: how long TRIED checks took, one after the other, seconds
    """
    return min(1000, (raise_limit() - 100) // 3, int(INTERVAL / 5 / (took / TRIED)))


class Checks:
    """What checks there were.

    :ivar most: how many at once
    :ivar count: how many
    :ivar between: the processor time of the threads that make them between one and the next, seconds
    """

    def __init__(self) -> None:
        self.running = self.most = self.count = 0
        self.between = 0.0
        self.mine = threading.local()
        self.lock = threading.Lock()

    def begin(self) -> None:
        now = time.thread_time()
        with self.lock:
            self.between += now - getattr(self.mine, 'ended', now)
            self.count += 1
            self.running += 1
            self.most = max(self.most, self.running)

    def end(self) -> None:
        with self.lock:
            self.running -= 1
        self.mine.ended = time.thread_time()


class Manager(TcpSocketConnectionManager):
    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self.checks = checks

    def keepalive(self, endpoint: Any, conn: Any, timeout: float | None) -> bool:
        self.checks.begin()
        conn.settimeout(timeout)
        try:
            conn.sendall(b'?')
            return bool(conn.recv(1) == b'?')
        finally:
            conn.settimeout(None)
            self.checks.end()


def test_threads(capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checks()
    manager = Manager(checks)
    with idle_proxy(DROPS_AFTER) as proxy:
        conn = manager.create(proxy.endpoint, 10.0)
        began = time.monotonic()
        assert all(manager.keepalive(proxy.endpoint, conn, 10.0) for _ in range(TRIED))
        count = how_many(time.monotonic() - began)
        conn.close()
        pool = gcp.threading.ConnectionPool(manager, **options(count))
        pool.warm_up(proxy.endpoint)
        pause = threading.Event()
        pause.wait(2 * DROPS_AFTER)
        began, before = time.monotonic(), checks.between
        pause.wait(SECONDS)
        share = (checks.between - before) / (time.monotonic() - began)
        stats = pool.stats()
        pool.close()
    verify(stats, checks, proxy.dropped, count)
    with capsys.disabled():
        print(f'\n{count} connections, {checks.count} checks: the workers used {share:.2%} of a core between them')
    assert share < 0.2


def test_tasks() -> None:
    asyncio.run(asyncio.wait_for(with_tasks(), 120))


async def with_tasks() -> None:
    checks = Checks()

    class AsyncManager(TcpStreamConnectionManager):
        async def keepalive(self, endpoint: Any, conn: Any) -> bool:
            checks.begin()
            try:
                reader, writer = conn
                writer.write(b'?')
                return bool(await reader.read(1) == b'?')
            finally:
                checks.end()

    with idle_proxy(DROPS_AFTER) as proxy:
        manager = AsyncManager()
        conn = await manager.create(proxy.endpoint)
        began = time.monotonic()
        for _ in range(TRIED):
            assert await manager.keepalive(proxy.endpoint, conn)
        count = how_many(time.monotonic() - began)
        conn[1].close()
        pool = gcp.asyncio.ConnectionPool(manager, **options(count))
        await pool.warm_up(proxy.endpoint)
        await asyncio.sleep(SECONDS)
        stats = pool.stats()
        await pool.close()
    verify(stats, checks, proxy.dropped, count)


def verify(stats: Any, checks: Checks, dropped: int, count: int) -> None:
    assert (dropped, sum(stats.closed.values()), stats.created) == (0, 0, count)
    assert stats.idle == count
    assert checks.most <= MOST
    assert checks.count >= 10 * count
