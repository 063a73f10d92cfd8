"""Guarantee 18 (docs/guarantees.md): what the managers of Redis say of an error, of a connect that failed and of one in
the block of a holder; what their keepalive finds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from error_cases import BROKEN, PERMANENT, STALE, TRANSIENT, UNKNOWN, check_permanent, failure, refused, tls_server
from peers import client_context, driver, server_context
from pg_drivers import done, run
from redis_peers import PASSWORD, Misbehaving, RedisServer, redis_server

from gcp import ErrorClass

MANAGERS = ('RedisConnectionManager', 'AsyncRedisConnectionManager')


@pytest.fixture(scope='module')
def redis_peer() -> Iterator[RedisServer]:
    driver('redis')
    with redis_server() as server:
        yield server


@pytest.fixture(params=MANAGERS)
def make_redis(request: pytest.FixtureRequest) -> Callable[..., Any]:
    driver('redis')
    import gcp.contrib.redis

    made: Callable[..., Any] = getattr(gcp.contrib.redis, request.param)
    return made


async def call(conn: Any, *words: Any) -> Any:
    from gcp.contrib.redis import client

    return await done(client(conn).execute_command(*words))


@contextlib.asynccontextmanager
async def connected(manager: Any, endpoint: Any) -> AsyncIterator[Any]:
    conn = await done(manager.create(endpoint))
    try:
        yield conn
    finally:
        await done(manager.dispose(endpoint, conn))


REDIS_CONNECTS = {
    'wrong password': ({'password': 'wrong'}, PERMANENT),
    'unknown user': ({'username': 'unknown', 'password': 'wrong'}, PERMANENT),
    'no password with RESP 3': ({'protocol': 3}, PERMANENT),
    'wrong password with RESP 3': ({'protocol': 3, 'password': 'wrong'}, PERMANENT),
    'unknown database': ({'password': PASSWORD, 'db': 77}, PERMANENT),
}


@pytest.mark.parametrize('case', REDIS_CONNECTS)
def test_a_connect_to_redis(make_redis: Callable[..., Any], redis_peer: RedisServer, case: str) -> None:
    options, expected = REDIS_CONNECTS[case]
    assert asyncio.run(failure(make_redis(**options), ('127.0.0.1', redis_peer.port))) is expected


@pytest.mark.parametrize('password', [None, 'Error', '-2'])
def test_a_redis_host_that_is_not_known_is_permanent(make_redis: Callable[..., Any], password: str | None) -> None:
    """Also where a password that the text contains was taken out of it."""
    assert asyncio.run(failure(make_redis(password=password), (UNKNOWN, 6379))) is PERMANENT


def test_a_redis_that_is_down_is_transient(make_redis: Callable[..., Any]) -> None:
    assert asyncio.run(failure(make_redis(), refused())) is TRANSIENT
    assert asyncio.run(failure(make_redis(), '/var/empty/redis.sock')) is TRANSIENT


def test_an_endpoint_that_redis_does_not_have_is_permanent(make_redis: Callable[..., Any]) -> None:
    assert asyncio.run(failure(make_redis(), 'unknown')) is PERMANENT


def test_a_redis_with_an_expired_certificate_is_permanent(make_redis: Callable[..., Any]) -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        manager = make_redis(ssl=client_context(), password='Error')
        assert asyncio.run(failure(manager, ('localhost', port))) is PERMANENT


REDIS_ANSWERS = {
    '-LOADING Redis is loading the dataset in memory': TRANSIENT,
    '-MASTERDOWN Link with MASTER is down': TRANSIENT,
    '-CLUSTERDOWN Hash slot not served': TRANSIENT,
    '-BUSY Redis is busy running a script': TRANSIENT,
    '-TRYAGAIN Multiple keys request during rehashing of slot': TRANSIENT,
    '-ERR max number of clients reached': TRANSIENT,
    '-DENIED Redis is running in protected mode': PERMANENT,
    '-NOPERM this user has no permissions to run the select command': PERMANENT,
    '-ERR invalid DB index': PERMANENT,
}


@pytest.mark.parametrize('answer', REDIS_ANSWERS)
def test_what_redis_answers_to_a_connect(make_redis: Callable[..., Any], answer: str) -> None:
    with Misbehaving('SELECT', answer.encode() + b'\r\n') as server:
        assert asyncio.run(failure(make_redis(db=1), ('127.0.0.1', server.port))) is REDIS_ANSWERS[answer]


@pytest.mark.parametrize('lapse', ['close', 'reset'])
def test_a_connect_to_redis_that_is_cut_is_transient(make_redis: Callable[..., Any], lapse: str) -> None:
    with Misbehaving('SELECT', lapse) as server:
        assert asyncio.run(failure(make_redis(db=1), ('127.0.0.1', server.port))) is TRANSIENT


def test_errors_of_redis_in_a_block(make_redis: Callable[..., Any]) -> None:
    async def body() -> None:
        driver('redis')
        import redis

        with redis_server() as server:
            manager, endpoint = make_redis(password=PASSWORD), ('127.0.0.1', server.port)

            async def seen(*words: Any) -> ErrorClass:
                async with connected(manager, endpoint) as conn:
                    with pytest.raises(redis.RedisError) as caught:
                        await call(conn, *words)
                    found: ErrorClass = manager.classify(endpoint, caught.value)
                    return found

            assert await seen('INCRBY', 'x', 'y') is TRANSIENT
            async with connected(manager, endpoint) as conn, connected(manager, endpoint) as admin:
                await call(admin, 'ACL', 'SETUSER', 'default', '-get')
                with pytest.raises(redis.exceptions.NoPermissionError) as denied:
                    await call(conn, 'GET', 'x')
                assert manager.classify(endpoint, denied.value) is PERMANENT
                assert manager.clean_after_error(endpoint, conn, denied.value) is True

                await call(admin, 'REPLICAOF', *refused())
                assert await seen('SET', 'x', 1) is STALE
                from gcp.contrib.redis import client

                for transaction in (True, False):
                    pipeline = client(conn).pipeline(transaction=transaction)
                    pipeline.set('x', 1)
                    with pytest.raises(redis.RedisError) as caught:
                        await done(pipeline.execute())
                    assert manager.classify(endpoint, caught.value) is STALE

                await call(admin, 'CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
                for _ in range(2):
                    with pytest.raises(redis.ConnectionError) as caught:
                        await call(conn, 'PING')
                    assert manager.classify(endpoint, caught.value) is BROKEN

    run(body())


def test_a_redis_that_is_demoted_while_a_command_is_blocked(make_redis: Callable[..., Any]) -> None:
    driver('redis')
    import redis

    text = 'UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)'
    assert make_redis().classify('cache', redis.ResponseError(text)) is STALE


@pytest.mark.parametrize('case', ['wrong password', 'unknown database', 'unknown host', 'expired certificate'])
def test_a_permanent_error_of_redis_takes_one_attempt(
    make_redis: Callable[..., Any], redis_peer: RedisServer, case: str
) -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        options: dict[str, Any]
        options, endpoint = {
            'wrong password': ({'password': 'wrong'}, ('127.0.0.1', redis_peer.port)),
            'unknown database': ({'password': PASSWORD, 'db': 77}, ('127.0.0.1', redis_peer.port)),
            'unknown host': ({}, (UNKNOWN, 6379)),
            'expired certificate': ({'ssl': client_context()}, ('localhost', port)),
        }[case]
        check_permanent(make_redis(**options), endpoint)


# ---- keepalive


def test_a_keepalive_of_redis(make_redis: Callable[..., Any], redis_peer: RedisServer) -> None:
    async def body() -> None:
        manager, endpoint = make_redis(password=PASSWORD), ('127.0.0.1', redis_peer.port)
        async with connected(manager, endpoint) as conn, connected(manager, endpoint) as admin:
            await call(admin, 'CONFIG', 'RESETSTAT')
            await done(manager.on_release(endpoint, conn))
            assert await done(manager.keepalive(endpoint, conn)) is True
            assert (await call(admin, 'INFO', 'commandstats'))['cmdstat_ping']['calls'] == 1
            await done(manager.on_acquire(endpoint, conn))
            assert await call(conn, 'ECHO', 'x') == b'x'
            await call(admin, 'CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
            assert await done(manager.keepalive(endpoint, conn)) is False

    run(body())


def test_a_keepalive_of_redis_does_not_wait_for_ever(
    make_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcp.contrib.redis

    monkeypatch.setattr(gcp.contrib.redis, 'KEEPALIVE_TIMEOUT', 0.05)

    async def body() -> None:
        with Misbehaving('PING', 'stall') as server:
            manager, endpoint = make_redis(), ('127.0.0.1', server.port)
            async with connected(manager, endpoint) as conn:
                assert await done(manager.keepalive(endpoint, conn)) is False
                assert await done(manager.check_aliveness(endpoint, conn)) is False

    run(body())
