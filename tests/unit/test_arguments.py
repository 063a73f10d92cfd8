"""Guarantee 12 (docs/guarantees.md): a wrong argument raises an error with its name, its value and what is accepted.

Also under ``python -O``, which removes `assert`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from fronts import Front

from gcp.hints import HINTS, hint, snake_case
from gcp.options import NAMES, OPTIONAL

NAN = math.nan
SIZES = ['max_size', 'total_max_size', 'min_idle', 'dispose_batch_size']
TIMES = ['acquire_timeout', 'dispose_timeout', 'idle_timeout', 'max_lifetime']

NO_NUMBERS: list[Any] = ['3', True, False, [], 1 + 2j, b'2']
NO_FLAGS: list[Any] = ['yes', None, 1, 0, []]
NO_NAMES: list[Any] = [7, b'orders', ['orders'], True]
COUNTS = ['max_uses', 'max_connecting', 'max_connecting_total', 'breaker_threshold']
INTERVALS = ['keepalive_interval', 'check_interval', 'connect_timeout']
EVERY_TIME_BUT_ACQUIRE = TIMES[1:]  # an acquire_timeout of 0 or less tries once


def wrong() -> Iterator[tuple[str, Any, type[Exception]]]:
    for name in SIZES:
        yield from ((name, value, TypeError) for value in [*NO_NUMBERS, 2.0, None])
        yield from ((name, value, ValueError) for value in (-1, -100))
    for name in TIMES:
        yield from ((name, value, TypeError) for value in NO_NUMBERS)
        yield from ((name, value, ValueError) for value in (NAN, -NAN))
    for name in EVERY_TIME_BUT_ACQUIRE:
        yield from ((name, value, ValueError) for value in (-1, -math.inf))
    yield from ((name, 0, ValueError) for name in ('max_size', 'total_max_size'))
    yield from (('lifetime_jitter', value, TypeError) for value in [*NO_NUMBERS, None])
    yield from (('lifetime_jitter', value, ValueError) for value in (-0.1, 1.1, NAN, math.inf, -math.inf))
    yield from (('background_collector', value, TypeError) for value in NO_FLAGS)
    yield from (('name', value, TypeError) for value in NO_NAMES)
    yield from wrong_operations()


def wrong_operations() -> Iterator[tuple[str, Any, type[Exception]]]:
    """Yield what is refused of connecting, of limits, and of what is done in the background."""
    for name in COUNTS:
        yield from ((name, value, TypeError) for value in [*NO_NUMBERS, 2.0])
        yield from ((name, value, ValueError) for value in (-1, 0))
    for name in 'max_waiting', 'connect_workers':
        yield from ((name, value, TypeError) for value in [*NO_NUMBERS, 2.0])
        yield (name, -1, ValueError)
    yield ('connect_workers', None, TypeError)
    for name in INTERVALS:
        yield from ((name, value, TypeError) for value in NO_NUMBERS)
        yield from ((name, value, ValueError) for value in (NAN, -1, -math.inf))
    yield from ((name, 0, ValueError) for name in ('keepalive_interval', 'connect_timeout'))
    yield from (('refill', value, TypeError) for value in NO_FLAGS)
    yield from (('admission', value, TypeError) for value in (5, True, b'deadline', []))
    yield from (('admission', value, ValueError) for value in ('', 'dead-line', 'always'))
    yield from (('connect_retry', value, TypeError) for value in (True, 3, 0.5, (0.1, 5.0, 2.0, 0.2), 'always'))
    yield from (('limits', value, TypeError) for value in (3, 'db', True, [('db', None)]))


def shown(value: Any) -> str:
    return str(getattr(value, '__name__', repr(value)))


@pytest.mark.parametrize('name, value, kind', list(wrong()), ids=shown)
def test_a_wrong_argument(front: Front, name: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        front.pool_class(front.manager(), **{name: value})
    assert type(caught.value) is kind
    message = str(caught.value)
    assert name in message
    assert repr(value) in message or str(value) in message, message


@pytest.mark.parametrize(
    'given',
    [
        {'min_idle': 5, 'max_size': 4},
        {'max_size': 11, 'total_max_size': 10},
        {'min_idle': 11, 'total_max_size': 10},
        {'idle_timeout': 61, 'max_lifetime': 60},
        {'max_connecting': 3, 'max_connecting_total': 2},
        {'background_collector': False, 'refill': True},
        {'background_collector': False, 'keepalive_interval': 30},
    ],
    ids=str,
)
def test_explicit_contradictions(front: Front, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        front.pool_class(front.manager(), **given)
    for name, value in given.items():
        assert name in str(caught.value) and str(value) in str(caught.value)


def limits(pool: Any) -> tuple[Any, ...]:
    return pool.min_idle, pool.max_size, pool.total_max_size, pool.idle_timeout, pool.max_lifetime


@pytest.mark.parametrize(
    'given, expected',
    [
        ({}, (1, 10, 100, 60.0, 3600.0)),
        ({'max_size': 200}, (1, 200, 200, 60.0, 3600.0)),
        ({'min_idle': 20}, (20, 20, 100, 60.0, 3600.0)),
        ({'min_idle': 200}, (200, 200, 200, 60.0, 3600.0)),
        ({'max_lifetime': 30}, (1, 10, 100, 30.0, 30.0)),
        ({'idle_timeout': 7200}, (1, 10, 100, 7200.0, 7200.0)),
        ({'total_max_size': 4}, (1, 4, 4, 60.0, 3600.0)),
        ({'total_max_size': 100}, (1, 10, 100, 60.0, 3600.0)),
        ({'min_idle': 0}, (0, 10, 100, 60.0, 3600.0)),
        ({'min_idle': 4, 'max_size': 4, 'total_max_size': 4}, (4, 4, 4, 60.0, 3600.0)),
        ({'idle_timeout': 0}, (1, 10, 100, 0.0, 3600.0)),
        ({'idle_timeout': math.inf, 'max_lifetime': math.inf}, (1, 10, 100, math.inf, math.inf)),
    ],
    ids=str,
)
def test_defaults_adapt(front: Front, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert limits(front.pool_class(front.manager(), **given)) == expected


@pytest.mark.parametrize('given', [{'idle_timeout': None}, {'idle_timeout': math.inf}], ids=str)
def test_an_infinite_idle_timeout_is_no_contradiction(front: Front, given: dict[str, Any]) -> None:
    front.pool_class(front.manager(), **given, max_lifetime=30)
    front.pool_class(front.manager(), **given)


@pytest.mark.parametrize('value', [Fraction(1, 2), Decimal('0.5')])
async def test_numbers_of_other_kinds_are_numbers(front: Front, value: Any) -> None:
    pool = front.pool(front.manager(), idle_timeout=value, max_lifetime=value, acquire_timeout=value)
    async with pool.connection('db', timeout=value):
        pass


class Index:
    def __index__(self) -> int:
        return 2


def test_sizes_may_be_any_integer(front: Front) -> None:
    assert front.pool_class(front.manager(), max_size=Index()).max_size == 2


@pytest.mark.parametrize(
    'unknown, expected',
    [
        ('max_sizes', 'max_size'),
        ('idle_time', 'idle_timeout'),
        ('acquire_timout', 'acquire_timeout'),
        ('background_colector', 'background_collector'),
        ('total_maxsize', 'total_max_size'),
        ('maxSize', 'max_size'),
        ('maxLifetime', 'max_lifetime'),
        ('idleTimeout', 'idle_timeout'),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest_name(front: Front, unknown: str, expected: str) -> None:
    with pytest.raises(TypeError) as caught:
        front.pool_class(front.manager(), **{unknown: 1})
    assert str(caught.value) == f'ConnectionPool got an unexpected argument {unknown!r}; did you mean {expected!r}?'


def test_an_unknown_argument_far_from_all(front: Front) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'xyzzy'; valid ones are acquire_timeout, .*max_size"):
        front.pool_class(front.manager(), xyzzy=1)


def camel_case(name: str) -> str:
    first, *others = name.split('_')
    return first + ''.join(word.capitalize() for word in others)


@pytest.mark.parametrize('name', sorted(HINTS))
def test_an_option_of_another_pool_is_answered_with_what_to_use_instead(front: Front, name: str) -> None:
    for spelling in {name, camel_case(name)}:
        with pytest.raises(TypeError) as caught:
            front.pool_class(front.manager(), **{spelling: 'secret'})
        message = str(caught.value)
        assert message == f'ConnectionPool got an unexpected argument {spelling!r}: {HINTS[name]}'
        assert 'secret' not in message, 'the value may be a password'


@pytest.mark.parametrize('name', sorted(HINTS))
def test_a_hint_names_what_exists(name: str) -> None:
    assert name not in NAMES
    hooks = ['create', 'dispose', *OPTIONAL]
    known = [*NAMES, *hooks, 'connection manager', 'acquire', 'release', 'close()', 'asyncio pool', 'gcp.threading']
    assert any(re.search(rf'(?<!\w){re.escape(word)}(?!\w)', HINTS[name]) for word in known), HINTS[name]
    for word in re.findall(r'\b[a-z]+(?:_[a-z]+)+\b', HINTS[name]):
        assert word in [*NAMES, *hooks, 'warm_up'] or word in HINTS, f'{word} does not exist'


OTHER_POOLS = {
    'psycopg_pool': 'conninfo connection_class kwargs min_size max_size open configure check reset name close_returns '
    'timeout max_waiting max_lifetime max_idle reconnect_timeout reconnect_failed num_workers',
    'SQLAlchemy': 'creator pool_size max_overflow pool_timeout pool_recycle pool_pre_ping pool_use_lifo '
    'pool_reset_on_return pool_logging_name pool_events poolclass timeout recycle pre_ping use_lifo '
    'reset_on_return logging_name echo echo_pool events dialect url connect_args isolation_level',
    'asyncpg': 'dsn init_size min_size max_size max_queries max_inactive_connection_lifetime connect setup init reset '
    'loop connection_class record_class host port user password passfile database timeout command_timeout ssl '
    'statement_cache_size max_cached_statement_lifetime max_cacheable_statement_size server_settings',
    'HikariCP': 'maximumPoolSize minimumIdle idleTimeout maxLifetime connectionTimeout validationTimeout keepaliveTime '
    'leakDetectionThreshold poolName initializationFailTimeout connectionTestQuery connectionInitSql autoCommit '
    'readOnly transactionIsolation catalog schema isolateInternalQueries allowPoolSuspension registerMbeans '
    'metricRegistry healthCheckRegistry dataSource dataSourceClassName driverClassName jdbcUrl username password '
    'threadFactory scheduledExecutor exceptionOverrideClassName',
    'redis-py': 'max_connections timeout connection_class queue_class health_check_interval socket_timeout '
    'socket_connect_timeout socket_keepalive retry retry_on_timeout retry_on_error decode_responses client_name '
    'credential_provider protocol db cache_factory maint_notifications_config redis_connect_func',
    'DBUtils': 'creator mincached maxcached maxshared maxconnections blocking maxusage setsession reset failures ping '
    'isfatal',
    'urllib3': 'num_pools maxsize block retries headers timeout',
    'psycopg2': 'minconn maxconn',
    'aiohttp': 'limit limit_per_host keepalive_timeout force_close',
    'httpx': 'max_connections max_keepalive_connections keepalive_expiry',
    'PyMongo': 'maxPoolSize minPoolSize maxIdleTimeMS waitQueueTimeoutMS',
}


@pytest.mark.parametrize('library', OTHER_POOLS)
def test_every_option_of_another_pool_is_known(library: str) -> None:
    names = OTHER_POOLS[library].split()
    assert [name for name in names if hint(name) is None and snake_case(name) not in NAMES] == []


@pytest.mark.parametrize(
    'name, expected',
    [
        ('timeout', 'use acquire_timeout, in seconds'),
        ('connectionTimeout', 'use acquire_timeout, in seconds'),
        ('min_size', 'use min_idle, and call warm_up to open them in advance'),
        ('max_idle', 'use idle_timeout, in seconds'),
        ('pool_recycle', 'use max_lifetime, in seconds'),
        ('pool_pre_ping', 'check_aliveness of the connection manager is called before each reuse'),
        ('leakDetectionThreshold', 'use leak_threshold, in seconds'),
        ('max_queries', 'use max_uses'),
        ('maxWaitQueueSize', 'use max_waiting'),
        ('waitQueueTimeoutMS', 'use acquire_timeout, in seconds'),
    ],
)
def test_hints_for_well_known_options(name: str, expected: str) -> None:
    assert hint(name) == expected


def test_options_are_keywords(front: Front) -> None:
    with pytest.raises(TypeError):
        front.pool_class(front.manager(), 5)


@pytest.mark.parametrize(
    'value, kind',
    [
        ('3', TypeError),
        (True, TypeError),
        ([], TypeError),
        (1j, TypeError),
        (b'1', TypeError),
        (NAN, ValueError),
    ],
    ids=repr,
)
async def test_a_wrong_timeout(front: Front, value: Any, kind: type[Exception]) -> None:
    pool = front.pool(front.manager(), max_size=1)
    with pytest.raises(kind, match='timeout'):
        await pool.acquire('db', timeout=value)
    with pytest.raises(kind, match='timeout'):
        async with pool.connection('db', timeout=value):
            pass
    with pytest.raises(kind, match='timeout'):
        await pool.close(timeout=value)
    assert pool.get_size() == 0 and not pool.closed
    async with pool.connection('db'):
        with pytest.raises(kind, match='timeout'):
            await pool.acquire('db', timeout=value)
    with pytest.raises(kind, match='timeout'):  # also if there is an idle connection
        await pool.acquire('db', timeout=value)
    assert pool.stats().idle == 1


@pytest.mark.parametrize('value', [1, 0, 'yes', object()], ids=['1', '0', 'yes', 'object'])
async def test_acquired_is_none_or_a_bool(front: Front, value: Any) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('db'):
        with pytest.raises((TypeError, ValueError), match='acquired'):
            await pool.get_endpoint_pool_size('db', acquired=value)


async def test_too_many_and_too_few(front: Front) -> None:
    pool: Any = front.pool(front.manager())
    raw = front.pools[0]
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (raw.acquire, (), {}),
        (raw.acquire, ('db', 1, 2), {}),
        (raw.acquire, (), {'db': 'db'}),
        (raw.release, ('db',), {}),
        (raw.release, (), {}),
        (raw.connection, (), {}),
        (raw.connection, ('db', 1, 2), {}),
    ]
    for call, args, kwargs in calls:
        with pytest.raises(TypeError):
            call(*args, **kwargs)
    assert pool.get_size() == 0


async def test_keywords(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=1)
    connection = await pool.acquire(endpoint='db', timeout=1)
    await pool.release(conn=connection, endpoint='db')
    async with pool.connection(endpoint='db', timeout=1):
        assert await pool.get_endpoint_pool_size(endpoint='db', acquired=True) == 1
    await pool.close(timeout=1)


def test_the_manager_may_be_named(front: Front) -> None:
    front.pool_class(connection_manager=front.manager())


def test_properties_are_read_only(front: Front) -> None:
    pool = front.pool_class(front.manager(), name='orders')
    for name in ('name', 'idle_timeout', 'max_lifetime', 'min_idle', 'max_size', 'total_max_size', 'is_full', 'closed'):
        getattr(pool, name)
        with pytest.raises(AttributeError):
            setattr(pool, name, 1)


def test_under_python_o(script: Callable[..., Any]) -> None:
    """No check depends on `assert`."""
    out = script(
        """
        assert False, 'this is not python -O'
        import asyncio, gcp.asyncio, gcp.threading
        from gcp.exceptions import ConnectionNotAcquiredError
        from gcp.testing import *

        def raises(kind, act):
            try:
                act()
            except kind as e:
                return
            raise SystemExit(f'{kind.__name__} was not raised by {act}')

        for pool_class, manager, other in (
            (gcp.threading.ConnectionPool, FakeManager, AsyncFakeManager),
            (gcp.asyncio.ConnectionPool, AsyncFakeManager, FakeManager),
        ):
            for kind, arguments in (
                (ValueError, dict(max_size=0)), (ValueError, dict(min_idle=-1)), (TypeError, dict(max_size=True)),
                (ValueError, dict(min_idle=5, max_size=4)), (ValueError, dict(max_size=11, total_max_size=10)),
                (ValueError, dict(idle_timeout=61, max_lifetime=60)), (ValueError, dict(lifetime_jitter=2)),
                (ValueError, dict(acquire_timeout=float('nan'))), (TypeError, dict(max_sizes=1)),
            ):
                raises(kind, lambda: pool_class(manager(), **arguments))
            raises(TypeError, lambda: pool_class(manager))
            raises(TypeError, lambda: pool_class(other()))

        pool = gcp.threading.ConnectionPool(FakeManager())
        with pool.connection('db') as connection:
            raises(TypeError, lambda: pool.acquire([]))
            raises(ValueError, lambda: pool.acquire('db', timeout=float('nan')))
            raises(ConnectionNotAcquiredError, lambda: pool.release(object(), 'db'))
            raises(ConnectionNotAcquiredError, lambda: pool.release(connection, 'other'))
        raises(ConnectionNotAcquiredError, lambda: pool.release(connection, 'db'))
        assert False

        async def main():
            pool = gcp.asyncio.ConnectionPool(AsyncFakeManager())
            async with pool.connection('db') as connection:
                for endpoint, what in (('db', object()), ('other', connection)):
                    try:
                        await pool.release(what, endpoint)
                    except ConnectionNotAcquiredError:
                        pass
                    else:
                        raise SystemExit('no error')
        asyncio.run(main())
        print('all raised')
    """,
        '-O',
    ).quietly()
    assert out == 'all raised\n'
