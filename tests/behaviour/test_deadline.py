"""Guarantee 6 (docs/guarantees.md): `Bounded` at the moment of its deadline."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fronts import Front

from gcp.asyncio import ConnectionPool
from gcp.exceptions import AcquireTimeoutError
from gcp.testing import AsyncFakeManager, calling, never


@pytest.mark.parametrize('answer', ['a result', 'an error', 'nothing'])
def test_a_deadline_that_comes_with_what_the_hook_waits_for_is_not_lost(answer: str) -> None:
    """There was nothing left to cancel just then, and the hook went on to wait for something else, for ever."""

    async def create(endpoint: Any, conn: Any) -> None:
        loop = asyncio.get_running_loop()
        step, never = loop.create_future(), loop.create_future()
        if answer == 'a result':
            loop.call_later(0.01, step.set_result, None)
        elif answer == 'an error':
            loop.call_later(0.01, step.set_exception, OSError())
        loop.call_soon(time.sleep, 0.1)  # when the loop looks again, both are due
        try:
            await step
        except OSError:
            pass
        await never

    async def main() -> None:
        manager = AsyncFakeManager()
        manager.create.does(calling(create))
        pool = ConnectionPool(manager)
        task = asyncio.ensure_future(pool.acquire('db', timeout=0.05))
        done, _ = await asyncio.wait([task], timeout=60)
        assert done, 'the deadline was lost'
        with pytest.raises(TimeoutError):
            await task
        assert pool.stats().size == 0
        await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire'])
async def test_a_time_out_in_a_task_that_has_swallowed_a_cancellation(asyncio_front: Front, hook: str) -> None:
    manager = asyncio_front.manager()
    pool: Any = asyncio_front.pool(manager, max_size=1)
    if hook != 'create':
        await pool.release(await pool.acquire('a'), 'a')
    getattr(manager, hook).does(never())

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            with pytest.raises(AcquireTimeoutError):
                await pool.acquire('a', timeout=0.02)

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert pool.stats().acquires['timeout'] == 1
    assert pool.stats().hook_calls[hook]['timeout'] == 1
