"""A server that is down for five seconds under a hundred clients, with a breaker: one attempt at a time, clients are
told within 10 ms and served within one delay of its return, and another endpoint of the pool is not affected."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from typing import Any

import gcp.asyncio
import gcp.threading
from gcp.exceptions import EndpointUnavailableError
from gcp.limits import Retry
from gcp.testing import AsyncBareFakeManager, BareFakeManager, calling

CLIENTS = 100
AWAY = 5.0
DELAY = 0.4


class Outage:
    """What clients of an endpoint that is down see.

    :ivar told: how long each refusal took, seconds
    :ivar served: when a client was served first
    :ivar waits: how long acquires of another endpoint took, before and while the server is away
    """

    def __init__(self) -> None:
        self.begins = time.monotonic() + 1.0
        self.ends = self.begins + AWAY
        self.attempts = 0
        self.connecting = 0
        self.most = 0
        self.told: list[float] = []
        self.served: list[float] = []
        self.waits: dict[bool, list[float]] = {False: [], True: []}

    def check(self) -> None:
        assert self.most == 1
        assert self.attempts <= 3 + AWAY / (0.8 * DELAY) + 4
        assert statistics.quantiles(self.told, n=100)[98] < 0.010
        assert min(self.served) - self.ends <= DELAY + 0.1
        before, during = (statistics.quantiles(self.waits[away], n=100)[98] for away in (False, True))
        assert during < max(3 * before, before + 0.01), (before, during)

    def is_away(self) -> bool:
        return self.begins <= time.monotonic() < self.ends

    def fail(self) -> None:
        self.attempts += 1
        raise ConnectionRefusedError('down')


OPTIONS: dict[str, Any] = {
    'breaker_threshold': 3, 'connect_retry': Retry(0.1, DELAY), 'max_connecting': 1, 'acquire_timeout': 20,
    'max_size': 10, 'registry': None,
}  # fmt: skip


def test_threads() -> None:
    outage = Outage()
    manager = BareFakeManager()
    lock = threading.Lock()

    def connect(endpoint: str, conn: object) -> None:
        if endpoint == 'other':
            return
        with lock:
            outage.connecting += 1
            outage.most = max(outage.most, outage.connecting)
        time.sleep(0.002)
        with lock:
            outage.connecting -= 1
        if outage.is_away():
            outage.fail()

    manager.create.does(calling(connect))
    pool = gcp.threading.ConnectionPool(manager, **OPTIONS)

    def client() -> None:
        time.sleep(max(0.0, outage.begins - time.monotonic()))
        while True:
            began = time.monotonic()
            try:
                with pool.connection('db'):
                    outage.served.append(time.monotonic())
                    return
            except EndpointUnavailableError:
                if began > outage.begins + 1:
                    outage.told.append(time.monotonic() - began)
                time.sleep(0.1)

    def other() -> None:
        while time.monotonic() < outage.ends:
            began = time.monotonic()
            with pool.connection('other'):
                outage.waits[outage.is_away()].append(time.monotonic() - began)
            time.sleep(0.002)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)] + [threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    pool.close()
    outage.check()


def test_tasks() -> None:
    outage = Outage()
    asyncio.run(asyncio.wait_for(with_tasks(outage), 60))
    outage.check()


async def with_tasks(outage: Outage) -> None:
    manager = AsyncBareFakeManager()

    async def connect(endpoint: str, conn: object) -> None:
        if endpoint == 'other':
            return
        outage.connecting += 1
        outage.most = max(outage.most, outage.connecting)
        await asyncio.sleep(0.002)
        outage.connecting -= 1
        if outage.is_away():
            outage.fail()

    manager.create.does(calling(connect))
    pool = gcp.asyncio.ConnectionPool(manager, **OPTIONS)

    async def client() -> None:
        await asyncio.sleep(max(0.0, outage.begins - time.monotonic()))
        while True:
            began = time.monotonic()
            try:
                async with pool.connection('db'):
                    outage.served.append(time.monotonic())
                    return
            except EndpointUnavailableError:
                if began > outage.begins + 1:
                    outage.told.append(time.monotonic() - began)
                await asyncio.sleep(0.1)

    async def other() -> None:
        while time.monotonic() < outage.ends:
            began = time.monotonic()
            async with pool.connection('other'):
                outage.waits[outage.is_away()].append(time.monotonic() - began)
            await asyncio.sleep(0.002)

    await asyncio.gather(other(), *(client() for _ in range(CLIENTS)))
    await pool.close()
