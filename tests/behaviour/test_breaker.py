"""Guarantee 18 (docs/guarantees.md): after so many failed connects in a row, acquires of the endpoint fail at once."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from fronts import Front
from gil import is_same

from gcp.exceptions import EndpointUnavailableError
from gcp.limits import Retry
from gcp.testing import error as raises
from gcp.testing import never, ok


def down() -> ConnectionRefusedError:
    return ConnectionRefusedError('connection refused')


async def test_after_so_many_failures_acquires_fail_at_once(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, breaker_threshold=3, connect_retry=None, acquire_timeout=20)
    boom = down()
    manager.create.does(raises(boom))
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire('db')
    refusal, before = await refused(pool)
    assert re.search("'db' is unavailable.*connection refused", str(refusal))
    assert is_same(refusal.__cause__, boom)
    assert refusal.endpoint == 'db'
    assert before < refusal.retry_at <= time.monotonic() + 5.0
    shown = pool.stats().endpoints['db']
    assert shown.breaker == 'open'
    assert shown.failures == len(manager.create.calls) >= 3
    assert shown.retry_delay <= 5.0
    assert "'db': breaker open" in repr(front.pools[0])


async def refused(pool: Any) -> tuple[EndpointUnavailableError, float]:
    """Acquire until it is refused on arrival. Returns the error, and when that acquire began. On a slow machine a retry
    delay may be over before, so that the acquire is a probe; the delays grow with each."""
    while True:
        began = time.monotonic()
        try:
            await pool.acquire('db')
        except ConnectionRefusedError:
            continue
        except EndpointUnavailableError as error:
            if error.phase == 'admission':
                return error, began


@pytest.mark.parametrize('workers', [0, 3])
async def test_waiters_are_told_at_once(front: Front, workers: int) -> None:
    manager = front.manager()
    pool = front.pool(manager, breaker_threshold=1, max_connecting=1, acquire_timeout=20, connect_workers=workers)
    manager.create.does(never(raises(down())))
    first = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.create.running == 1)
    waiters = await front.line_up(pool, 'db', 5)
    manager.unblock()
    with pytest.raises(ConnectionRefusedError):
        await first
    for waiter in waiters:
        with pytest.raises(EndpointUnavailableError) as caught:
            await waiter
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert caught.value.phase == 'waiting'
    assert len(manager.create.calls) == 1
    assert pool.stats().acquires['rejected'] == 5


async def test_idle_connections_that_still_work_are_handed_out(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, breaker_threshold=1, connect_retry=Retry(60, 60))
    held = await front.fill(pool, 'db', 2)
    manager.create.does(raises(down()))
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire('db', timeout=0)
    await front.give_back(pool, held)
    again = await front.fill(pool, 'db', 2)
    assert set(again) == set(held)
    with pytest.raises(EndpointUnavailableError):
        await pool.acquire('db')
    await front.give_back(pool, again)


async def test_other_endpoints_are_untouched(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, breaker_threshold=1, connect_retry=Retry(60, 60))
    manager.create.does(raises(down()), endpoint='down')
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire('down', timeout=0)
    for _ in range(5):
        async with pool.connection('up'):
            pass
    with pytest.raises(EndpointUnavailableError):
        await pool.acquire('down')


async def test_one_probe_at_a_time_and_the_first_success_closes_it(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, breaker_threshold=1, connect_retry=Retry(0.02, 0.02), acquire_timeout=20)
    manager.create.does(raises(down()))
    with pytest.raises(EndpointUnavailableError):
        await pool.acquire('db')
    manager.create.does(never())
    await front.sleep(0.03)
    probe = front.spawn(pool.acquire('db'))
    await front.until(lambda: pool.stats().endpoints['db'].breaker == 'half_open')
    for _ in range(3):
        with pytest.raises(EndpointUnavailableError):
            await pool.acquire('db')
    manager.create.does(ok())
    manager.unblock()
    conns = [await probe, *await front.fill(pool, 'db', 3)]
    assert pool.stats().endpoints['db'].breaker == 'closed'
    assert len(manager.create.calls) == 5
    await front.give_back(pool, conns)


async def test_a_server_that_is_down_for_a_while(front: Front) -> None:
    """One attempt at a time, clients are told at once, and served within one probe's delay of the return."""
    manager = front.manager(bare=True)
    pool = front.pool(manager, breaker_threshold=3, connect_retry=Retry(0.02, 0.1), max_connecting=1)
    manager.create.does(raises(down()), endpoint='db')
    times: list[float] = []
    returned = time.monotonic() + 0.5

    async def client() -> float:
        while True:
            began = time.monotonic()
            try:
                async with pool.connection('db', timeout=20):
                    return time.monotonic()
            except EndpointUnavailableError:
                times.append(time.monotonic() - began)
                await front.sleep(0.005)

    clients = [front.spawn(client()) for _ in range(10)]
    while time.monotonic() < returned:
        async with pool.connection('other'):
            await front.sleep(0.01)
    attempts = len([call for call in manager.create.calls if call.endpoint == 'db'])
    manager.create.does(ok(), endpoint='db')
    served = [await each for each in clients]
    assert times
    assert 3 <= attempts <= 25
    assert max(served) - returned < 2
