"""Guarantees 1 and 12 (docs/guarantees.md): the limits of a single endpoint hold as the pool's do; wrong ones are
refused, and a function that fails leaves the pool's in force."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
from fronts import Front

from gcp import AcquireTimeoutError, EndpointLimits, TooManyWaitersError
from gcp.testing import dead


@pytest.fixture(params=['mapping', 'function'])
def given(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Give limits as a mapping, or as a function."""
    return lambda **limits: limits if request.param == 'mapping' else limits.get


async def test_each_endpoint_has_its_own_cap(front: Front, given: Callable[..., Any]) -> None:
    manager = front.manager()
    pool = front.pool(
        manager, max_size=2, limits=given(big=EndpointLimits(max_size=4), small=EndpointLimits(max_size=1))
    )
    held = [*await front.fill(pool, 'big', 4), *await front.fill(pool, 'small', 1), *await front.fill(pool, 'other', 2)]
    for endpoint, cap in ('big', 4), ('small', 1), ('other', 2):
        with pytest.raises(AcquireTimeoutError, match=f"max_size={cap} of endpoint '{endpoint}'") as full:
            await pool.acquire(endpoint, timeout=0)
        assert (full.value.limit, full.value.blocked_by) == (cap, 'endpoint cap')
    assert [manager.peak(endpoint) for endpoint in ('big', 'small', 'other')] == [4, 1, 2]
    await front.give_back(pool, held)


async def test_the_repr_names_the_caps_that_acquires_wait_for(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=2, total_max_size=3, limits={'a': EndpointLimits(max_size=1)})
    raw = front.pools[0]
    held = [*await front.fill(pool, 'a', 1), *await front.fill(pool, 'b', 2)]
    assert 'max_size' not in repr(raw)
    waiters = await front.line_up(pool, 'a', 1)
    assert "; 'a': 1 waiting, max_size=1; closed=False>" in repr(raw)
    waiters += await front.line_up(pool, 'c', 1)
    assert "; 'a': 1 waiting, max_size=1; 'c': 1 waiting, total_max_size=3; closed=False>" in repr(raw)
    await front.give_back(pool, held)
    await front.give_back(pool, [await waiter for waiter in waiters])


async def test_effective_limits_are_in_the_statistics(front: Front, given: Callable[..., Any]) -> None:
    limits = given(db=EndpointLimits(max_size=4, min_idle=2, max_waiting=3, weight=2, floor=1))
    pool = front.pool(front.manager(), max_size=7, idle_timeout=5, max_lifetime=None, limits=limits)
    async with pool.connection('db'), pool.connection('other'):
        endpoints = pool.stats().endpoints
    assert endpoints['db'].limits == EndpointLimits(4, 2, 5.0, math.inf, 3, 2.0, 1)
    assert endpoints['other'].limits == EndpointLimits(7, 1, 5.0, math.inf, None, 1.0, 0)


async def test_each_endpoint_has_its_own_base(front: Front, given: Callable[..., Any]) -> None:
    pool = front.pool(
        front.manager(), idle_timeout=1, limits=given(a=EndpointLimits(min_idle=3), b=EndpointLimits(min_idle=0))
    )
    for endpoint in 'abc':
        await front.give_back(pool, await front.fill(pool, endpoint, 4))
    await front.sleep(1.05)
    while sum(pool.stats().closed.values()) < 8:
        await pool.release(await pool.acquire('d'), 'd')
    assert [each.idle for name, each in sorted(pool.stats().endpoints.items()) if name != 'd'] == [3, 1]
    assert pool.stats().closed['idle_timeout'] == 8


async def test_each_endpoint_has_its_own_expiry(front: Front, given: Callable[..., Any]) -> None:
    short = EndpointLimits(idle_timeout=1, min_idle=0)
    young = EndpointLimits(max_lifetime=1)
    pool = front.pool(front.manager(), background_collector=True, limits=given(short=short, young=young))
    for endpoint in 'long', 'short', 'young':
        await front.give_back(pool, await front.fill(pool, endpoint, 2))
    await front.until(lambda: set(pool.stats().endpoints) == {'long'})
    assert pool.stats().endpoints['long'].idle == 2
    assert (pool.stats().closed['idle_timeout'], pool.stats().closed['max_lifetime']) == (2, 2)


def test_a_large_entry_raises_the_default_of_the_total_cap(front: Front) -> None:
    pool = front.pool_class(front.manager(), limits={'db': EndpointLimits(max_size=300)})
    assert (pool.max_size, pool.total_max_size) == (10, 300)


@pytest.mark.parametrize(
    'own, pool, expected',
    [
        (EndpointLimits(min_idle=20), {}, (20, 20, 60.0, 3600.0)),
        (EndpointLimits(max_size=2), {'min_idle': 5, 'max_size': 9}, (2, 2, 60.0, 3600.0)),
        (EndpointLimits(max_lifetime=30), {'idle_timeout': 50}, (10, 1, 30.0, 30.0)),
        (EndpointLimits(idle_timeout=7200), {}, (10, 1, 7200.0, 7200.0)),
        (EndpointLimits(idle_timeout=math.inf), {'max_lifetime': 50}, (10, 1, math.inf, 50.0)),
    ],
    ids=str,
)
async def test_what_is_not_an_endpoints_own_adapts(
    front: Front, own: EndpointLimits, pool: dict[str, Any], expected: tuple[float, ...], given: Callable[..., Any]
) -> None:
    made = front.pool(front.manager(), limits=given(db=own), **pool)
    async with made.connection('db'):
        assert made.stats().endpoints['db'].limits[:4] == expected


WRONG: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
    ({}, EndpointLimits(max_size=0), ValueError, r"limits.'db'.\.max_size must be at least 1, not 0"),
    ({}, EndpointLimits(max_size=True), TypeError, r"limits.'db'.\.max_size .* bool: True"),
    ({}, EndpointLimits(max_size='5'), TypeError, r"limits.'db'.\.max_size .* str: '5'"),  # type: ignore[arg-type]
    ({}, EndpointLimits(min_idle=-1), ValueError, r"limits.'db'.\.min_idle must be at least 0, not -1"),
    ({}, EndpointLimits(idle_timeout=-1), ValueError, r"limits.'db'.\.idle_timeout .* -1"),
    ({}, EndpointLimits(max_lifetime=math.nan), ValueError, r"limits.'db'.\.max_lifetime .* nan"),
    ({}, EndpointLimits(max_waiting=-1), ValueError, r"limits.'db'.\.max_waiting must be at least 0, not -1"),
    ({}, EndpointLimits(weight=0), ValueError, r"limits.'db'.\.weight .* 0"),
    ({}, EndpointLimits(floor=1.5), TypeError, r"limits.'db'.\.floor .* 1\.5"),  # type: ignore[arg-type]
    ({}, EndpointLimits(max_size=2, min_idle=3), ValueError, r"limits.'db'.\.min_idle=3 contradicts .*max_size=2"),
    ({}, EndpointLimits(max_size=2, floor=3), ValueError, r"limits.'db'.\.floor=3 contradicts .*max_size=2"),
    ({}, EndpointLimits(idle_timeout=9, max_lifetime=8), ValueError, r'idle_timeout=9 contradicts .*max_lifetime=8'),
    ({'max_size': 5}, EndpointLimits(min_idle=6), ValueError, r"limits.'db'.\.min_idle=6 contradicts max_size=5"),
    ({'total_max_size': 5}, EndpointLimits(max_size=6), ValueError, r'max_size=6 contradicts total_max_size=5'),
    ({'max_lifetime': 5}, EndpointLimits(idle_timeout=6), ValueError, r'idle_timeout=6 contradicts max_lifetime=5'),
    ({}, {'max_size': 3}, TypeError, r"limits.'db'. must be a gcp\.EndpointLimits or None, not dict"),
    ({}, 3, TypeError, r"limits.'db'. must be a gcp\.EndpointLimits or None, not int: 3"),
]


@pytest.mark.parametrize('pool, own, kind, message', WRONG, ids=[f'{pool}-{own}' for pool, own, _, _ in WRONG])
def test_a_wrong_entry(front: Front, pool: dict[str, Any], own: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        front.pool_class(front.manager(), limits={'other': None, 'db': own}, **pool)


@pytest.mark.parametrize('value', [3, 'db', [EndpointLimits()], EndpointLimits()], ids=repr)
def test_limits_must_be_a_mapping_or_a_function(front: Front, value: Any) -> None:
    with pytest.raises(TypeError, match=r'limits must be a mapping .* a function of an endpoint, or None, not'):
        front.pool_class(front.manager(), limits=value)


def test_an_endpoint_with_a_password_is_not_shown(front: Front) -> None:
    with pytest.raises(ValueError) as wrong:
        front.pool_class(front.manager(), limits={'http://me:secret@host': EndpointLimits(max_size=0)})
    assert 'secret' not in str(wrong.value)


async def coroutine() -> None:
    """Serve as the result of a function that should not be async."""


@pytest.mark.parametrize(
    'answer',
    [lambda: 1 / 0, lambda: 3, coroutine, lambda: EndpointLimits(max_size=1, min_idle=2), lambda: EndpointLimits(0)],
    ids=['raises', 'a number', 'coroutine', 'contradiction', 'out of range'],
)
async def test_where_the_function_fails_the_limits_of_the_pool_hold(
    front: Front, answer: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, 'gcp')
    pool = front.pool(front.manager(), max_size=2, min_idle=0, idle_timeout=0, limits=lambda endpoint: answer())
    for _ in range(3):
        for endpoint in 'a', 'b':
            await front.give_back(pool, await front.fill(pool, endpoint, 2))
    await front.until(lambda: not pool.stats().disposing)
    held = await front.fill(pool, 'a', 2)
    assert pool.stats().endpoints['a'].limits[:2] == (2, 0)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', timeout=0)
    assert pool.stats().limits_errors >= 6
    failed = [record for record in caplog.records if 'limits failed for' in record.getMessage()]
    assert sorted(record.getMessage().split(':')[1] for record in failed) == [
        " limits failed for 'a'", " limits failed for 'b'",
    ]  # fmt: skip
    await front.give_back(pool, held)


async def test_the_function_may_use_the_pool(front: Front) -> None:
    seen: list[Any] = []

    def limits(endpoint: str) -> EndpointLimits:
        seen.append((endpoint, made[0].stats().size))
        return EndpointLimits(max_size=3)

    pool = front.pool(front.manager(), limits=limits)
    made = [pool]
    await front.give_back(pool, await front.fill(pool, 'db', 3))
    assert seen == [('db', 0)]


async def test_a_mapping_is_copied(front: Front) -> None:
    limits = {'db': EndpointLimits(max_size=1)}
    pool = front.pool(front.manager(), limits=limits)
    limits['db'] = EndpointLimits(max_size=5)
    async with pool.connection('db'):
        assert pool.stats().endpoints['db'].limits.max_size == 1


# --- max_uses, max_waiting, admission, check_interval ---


@pytest.mark.parametrize('bare', [False, True])
async def test_a_connection_is_used_so_many_times(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, max_uses=3)
    for _ in range(7):
        async with pool.connection('db'):
            pass
    await front.until(lambda: not pool.stats().disposing)
    stats = pool.stats()
    assert (stats.created, stats.closed['max_uses'], stats.idle) == (3, 2, 1)


async def test_one_waiter_too_many_gets_an_error_at_once(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, max_waiting=2, limits={'b': EndpointLimits(max_waiting=0)})
    held = [await pool.acquire('a'), await pool.acquire('b')]
    waiters = await front.line_up(pool, 'a', 2)
    for endpoint, most in ('a', 2), ('b', 0):
        with pytest.raises(TooManyWaitersError, match=f"max_waiting={most} of endpoint '{endpoint}'") as refused:
            await pool.acquire(endpoint, timeout=10)
        assert (refused.value.endpoint, refused.value.limit) == (endpoint, most)
    assert pool.stats().acquires['rejected'] == 2 and pool.stats().acquires['error'] == 0
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('b', timeout=0)
    await front.give_back(pool, held)
    for waiter in waiters:
        await pool.release(await waiter, 'a')
    await pool.release(await pool.acquire('a'), 'a')


async def test_a_wait_that_cannot_end_in_time_is_refused_at_once(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, admission='deadline')
    async with pool.connection('db'):
        await front.sleep(0.05)
    async with pool.connection('db'):
        with pytest.raises(AcquireTimeoutError, match='refused on arrival') as refused:
            await pool.acquire('db', timeout=0.01)
        assert (refused.value.phase, refused.value.blocked_by) == ('admission', 'endpoint cap')
        [waiter] = await front.line_up(pool, 'db', 1)
    await pool.release(await waiter, 'db')
    assert pool.stats().acquires['timeout'] == 1


@pytest.mark.parametrize('tracing', ['lifecycle', 'all'])
async def test_a_connection_that_was_used_lately_is_not_checked(front: Front, tracing: str) -> None:
    manager = front.manager()
    pool = front.pool(manager, check_interval=60, tracing=tracing)
    for _ in range(5):
        async with pool.connection('db'):
            pass
        await pool.release(await pool.acquire('db'), 'db')
    assert not manager.check_aliveness.calls
    assert len(manager.on_acquire.calls) == 10
    assert pool.stats().acquires['hit'] == 9


class CheckOnly:
    """A manager with a check, and no other optional hook."""

    def __init__(self, manager: Any) -> None:
        self.create, self.dispose = manager.create, manager.dispose
        self.check_aliveness = manager.check_aliveness


async def test_a_check_that_is_the_only_hook_is_skipped(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(CheckOnly(manager), check_interval=1)
    await pool.release(await pool.acquire('db'), 'db')
    async with pool.connection('db'):
        pass
    assert not manager.check_aliveness.calls
    await front.sleep(1.05)
    await pool.release(await pool.acquire('db'), 'db')
    assert len(manager.check_aliveness.calls) == 1
    manager.check_aliveness.does(dead())
    await front.sleep(1.05)
    await pool.release(await pool.acquire('db'), 'db')
    assert pool.stats().closed['dead'] == 1 and pool.stats().acquires['hit'] == 2
