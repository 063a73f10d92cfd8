"""Under contention and random faults: as many spans as there were waits and steps, each with a parent that exists."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fronts import Front
from traces import Traces, errors_of, id_of, links_of, parent_of

from gcp import AcquireTimeoutError
from gcp.testing import calling, ok

SECONDS = 1.0


class Fault(Exception):
    pass


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize('tracing', ['lifecycle', 'all'])
async def test_spans_agree_with_the_books(front: Front, tracing: str) -> None:
    traces, manager, seed = Traces(), front.manager(), random.randrange(1 << 30)
    chance = random.Random(seed)

    def sometimes(result: Any, odds: float) -> Any:
        def act(endpoint: Any, connection: Any) -> Any:
            if chance.random() < odds:
                raise Fault
            return result

        return calling(act)

    for hook in (manager.create, manager.dispose, manager.on_acquire, manager.on_release, manager.on_connection_dead):
        hook.does(sometimes(None, 0.05))
    manager.check_aliveness.does(calling(lambda endpoint, connection: chance.random() > 0.1))
    pool: Any = front.pool(
        manager,
        name='orders',
        tracing=tracing,
        tracer_provider=traces.provider,
        max_size=2,
        total_max_size=4,
        registry=None,
        meter_provider=None,
    )
    end = time.monotonic() + SECONDS

    async def work(number: int) -> set[int]:
        callers, mine = set(), random.Random(seed + number)
        while time.monotonic() < end:
            with traces.caller() as caller:
                callers.add(id_of(caller))
                try:
                    async with pool.connection(mine.choice('abc'), timeout=mine.choice([None, 1, 0.001, 0])):
                        await front.sleep(0)
                except (Fault, AcquireTimeoutError):
                    pass
        return callers

    actors = [front.spawn(work(number)) for number in range(8)]
    callers: set[int] = set()
    for actor in actors:
        callers |= await actor
    for hook in (manager.dispose, manager.create):
        hook.does(ok())
    await front.until(lambda: not pool.stats().disposing)
    stats, spans = pool.stats(), Counter(span.name.split()[0] for span in traces.ended)

    assert spans['wait_for_connection'] == sum(stats.acquires.values()) - stats.acquires['hit'], seed
    for hook in ('create', 'dispose', 'on_connection_dead'):
        assert spans[hook] == sum(stats.hook_calls[hook].values()), (seed, hook)
    for hook in ('on_acquire', 'on_release', 'check_aliveness'):
        counts = stats.hook_calls[hook]
        least = sum(counts.values()) - counts['ok'] if tracing == 'lifecycle' else sum(counts.values())
        assert least <= spans[hook] <= sum(counts.values()), (seed, hook)
    released = 0
    known = callers | {id_of(span) for span in traces.ended}
    for span in traces.ended:
        assert parent_of(span) in callers or span.name == 'dispose orders', seed
        assert set(links_of(span).values()) <= known, seed
        released += 'released_by' in links_of(span)
    assert released, seed
    assert errors_of(pool).count == 0
