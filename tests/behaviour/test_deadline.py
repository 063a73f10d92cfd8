"""Guarantee 6 (docs/guarantees.md): `Bounded` at the moment of its deadline."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gcp.asyncio import ConnectionPool
from gcp.testing import AsyncFakeManager, calling


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
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, 'the deadline was lost'
        with pytest.raises(TimeoutError):
            await task
        assert pool.stats().size == 0
        await pool.close()

    asyncio.run(main())
