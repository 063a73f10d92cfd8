"""asyncpg's manager against a real server, one that is silent, and one that says what no server would. The same page as
test_psycopg2.py, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from peers import Proxy, driver, open_descriptors, silent_server
from starvation import SOON

asyncpg = driver('asyncpg')

from gcp.asyncio import ConnectionPool  # noqa: E402
from gcp.contrib.asyncpg import DbConnectionManager, UnknownEndpointError  # noqa: E402
from gcp.demo.server import Server  # noqa: E402

SECRET = 'hunter2'
STATE = 'SELECT state FROM pg_stat_activity WHERE pid = $1'

Manager = DbConnectionManager[Any]


@pytest.fixture
def parameters(postgres: Server) -> dict[str, Any]:
    return {'host': str(postgres.directory), 'user': 'postgres', 'database': 'postgres'}


@pytest.fixture
def proxied(proxy: Proxy, parameters: dict[str, Any]) -> dict[str, Any]:
    return {**parameters, 'host': '127.0.0.1', 'port': proxy.port, 'ssl': False}


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 120))


@contextlib.asynccontextmanager
async def connected(parameters: dict[str, Any], **options: Any) -> AsyncIterator[tuple[Manager, Any]]:
    """A manager and a connection of its own."""
    manager: Manager = DbConnectionManager({'orders': parameters}, **options)
    conn = await manager.create('orders')
    try:
        yield manager, conn
    finally:
        conn.terminate()


@contextlib.asynccontextmanager
async def session(parameters: dict[str, Any]) -> AsyncIterator[Any]:
    conn = await asyncpg.connect(**parameters)
    try:
        yield conn
    finally:
        await conn.close()


async def sleeping(admin: Any, conn: Any) -> asyncio.Future[Any]:
    """Have a connection's backend sleep for a minute. It has begun to: a server cancels nothing that it has not."""
    busy = asyncio.ensure_future(conn.execute('SELECT pg_sleep(60)'))
    while await admin.fetchval(STATE, conn.get_server_pid()) != 'active':
        pass
    return busy


async def kill(parameters: dict[str, Any], conn: Any) -> None:
    """End a connection's backend, and wait until the word of it is here."""
    gone = asyncio.Event()
    conn.add_termination_listener(lambda conn: gone.set())
    async with session(parameters) as admin:
        assert await admin.fetchval('SELECT pg_terminate_backend($1)', conn.get_server_pid())
        await gone.wait()


# ---- endpoints


def test_the_pool_serves_queries(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        pool: ConnectionPool[str, Any] = ConnectionPool(DbConnectionManager[Any]({'orders': parameters}))
        try:
            async with pool.connection('orders') as first:
                assert await first.fetchval('SELECT 41 + 1') == 42
            async with pool.connection('orders', timeout=5) as again:
                assert again is first
        finally:
            await pool.close()
        assert first.is_closed()

    run(body())


def test_an_unknown_endpoint_is_told_with_the_known_names_and_no_password() -> None:
    manager: Manager = DbConnectionManager({'orders': {'password': SECRET}, 'users': {'dsn': SECRET}})

    async def body() -> None:
        with pytest.raises(UnknownEndpointError) as caught:
            await manager.create('odrers')
        assert isinstance(caught.value, KeyError)
        assert str(caught.value) == "unknown endpoint 'odrers'; known: 'orders', 'users'"
        assert SECRET not in repr(caught.value) + repr(manager) + repr(vars(manager))

    run(body())
    assert repr(manager) == '<DbConnectionManager: orders, users>'


@pytest.mark.parametrize('kind', ['plain', 'async'])
def test_a_function_is_asked_for_each_connection(parameters: dict[str, Any], kind: str) -> None:
    asked: list[str] = []

    def find(endpoint: str) -> dict[str, Any]:
        asked.append(endpoint)
        return {**parameters, 'server_settings': {'application_name': f'{endpoint} {len(asked)}'}}

    async def find_later(endpoint: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return find(endpoint)

    async def body() -> None:
        manager: Manager = DbConnectionManager(find if kind == 'plain' else find_later)
        for turn in ('orders 1', 'orders 2'):
            conn = await manager.create('orders')
            assert await conn.fetchval('SHOW application_name') == turn
            await manager.dispose('orders', conn)

    run(body())
    assert asked == ['orders'] * 2


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'dsn_params': None}, TypeError, 'dsn_params: .* not an instance of NoneType'),
        ({'dsn_params': SECRET}, TypeError, 'dsn_params: .* not an instance of str'),
        ({'dsn_params': {'orders': f'password={SECRET}'}}, TypeError, "endpoint 'orders': .* not an instance of str"),
        ({'dsn_params': {}, 'aliveness': 'ping'}, ValueError, "'socket' or 'query' was expected, not 'ping'"),
    ],
)
def test_a_bad_option_is_told_without_its_secrets(
    arguments: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words) as caught:
        DbConnectionManager(**arguments)
    assert SECRET not in str(caught.value)


def test_without_the_driver_the_extra_is_named(script: Any) -> None:
    script("""
        import sys
        sys.modules['asyncpg'] = None
        try:
            import gcp.contrib.asyncpg
        except ImportError as error:
            assert 'pip install gcpool[asyncpg]' in str(error), error
        else:
            raise SystemExit('imported')
    """).quietly()


# ---- create


def test_a_silent_server_costs_the_timeout_and_no_descriptor() -> None:
    async def body(port: int) -> None:
        manager: Manager = DbConnectionManager({'orders': {'host': '127.0.0.1', 'port': port, 'ssl': False}})
        pool: ConnectionPool[str, Any] = ConnectionPool(manager)
        try:
            before = open_descriptors()
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(TimeoutError):
                    await pool.acquire('orders', timeout=0.3)
                assert 0.3 <= time.monotonic() - started < SOON
            await asyncio.sleep(0)  # a transport closes its socket one turn of the loop after its close
            assert open_descriptors() == before
        finally:
            await pool.close()

    with silent_server() as port:
        run(body(port))


def test_a_refusal_reaches_the_caller_as_it_is(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        manager: Manager = DbConnectionManager({'orders': {**parameters, 'database': 'no_such'}})
        with pytest.raises(asyncpg.InvalidCatalogNameError, match='no_such'):
            await manager.create('orders')

    run(body())


# ---- aliveness


def test_a_killed_backend_is_noticed(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            assert await manager.check_aliveness('orders', conn)
            await kill(parameters, conn)
            assert not await manager.check_aliveness('orders', conn)

    run(body())


def test_two_managers_may_know_the_same_connection(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            other: Manager = DbConnectionManager({'orders': parameters})
            for each in (manager, other):
                await each.on_release('orders', conn)
                assert await each.check_aliveness('orders', conn)
            assert await conn.fetchval('SELECT 1') == 1
            await kill(parameters, conn)
            for each in (manager, other):
                assert not await each.check_aliveness('orders', conn)

    run(body())


def test_a_killed_backend_is_replaced_by_the_pool(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        pool: ConnectionPool[str, Any] = ConnectionPool(DbConnectionManager[Any]({'orders': parameters}))
        try:
            async with pool.connection('orders') as first:
                pass
            await kill(parameters, first)
            async with pool.connection('orders') as other:
                assert other is not first
                assert await other.fetchval('SELECT 1') == 1
        finally:
            await pool.close()

    run(body())


def test_eof_that_the_loop_has_just_read_means_dead(proxy: Proxy, proxied: dict[str, Any]) -> None:
    """The transport is closing, and asyncpg has not been told yet."""

    async def body() -> None:
        async with connected(proxied) as (manager, conn):
            conn._transport.close()
            assert not conn.is_closed()
            assert not await manager.check_aliveness('orders', conn)

    run(body())


def test_a_notification_is_news_and_reaches_its_listener(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()
        async with connected(parameters) as (manager, conn), session(parameters) as admin:
            await conn.add_listener('orders', lambda conn, pid, channel, payload: heard.put_nowait(payload))
            await admin.execute("NOTIFY orders, 'shipped'")
            assert await heard.get() == 'shipped'
            assert await manager.check_aliveness('orders', conn)
            assert await conn.fetchval('SELECT 1') == 1

    run(body())


def test_a_notification_that_a_busy_loop_has_not_read_is_news_too(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        heard: list[str] = []
        async with connected(parameters) as (manager, conn), session(parameters) as admin:
            await conn.add_listener('orders', lambda conn, pid, channel, payload: heard.append(payload))
            sock = conn._transport.get_extra_info('socket')
            sending = asyncio.ensure_future(admin.execute("NOTIFY orders, 'shipped'"))
            await asyncio.sleep(0)  # it is sent
            assert select.select([sock], [], [], 60)[0]
            assert await manager.check_aliveness('orders', conn)
            assert heard == ['shipped']
            assert await conn.fetchval('SELECT 1') == 1
            await sending

    run(body())


def test_a_check_of_a_quiet_connection_does_not_wait_for_the_loop(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            looking = manager.check_aliveness('orders', conn)
            with pytest.raises(StopIteration) as ended:
                looking.send(None)
            assert ended.value.value is True

    run(body())


NOTICE = b'N\0\0\0\x15SNOTICE\0Mhello\0\0\0'
PARAMETER_STATUS = b'S\0\0\0\x18application_name\0x\0\0'
FATAL = b'E\0\0\0\x14SFATAL\0Mgone\0\0\0'


@pytest.mark.parametrize(
    ('words', 'alive'),
    [
        (NOTICE, True),
        (PARAMETER_STATUS, True),
        (NOTICE + PARAMETER_STATUS, True),
        (FATAL, False),
        (b'D\0\0\0\x0a\0\x01\xff\xff\xff\xff', False),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n', False),
    ],
    ids=['notice', 'parameter', 'both', 'error', 'row', 'another protocol'],
)
def test_what_an_idle_connection_is_told_decides(
    proxy: Proxy,
    proxied: dict[str, Any],
    words: bytes,
    alive: bool,
) -> None:
    async def body() -> None:
        async with connected(proxied) as (manager, conn):
            await manager.on_release('orders', conn)
            await told(proxy, conn, words)
            assert await manager.check_aliveness('orders', conn) is alive
            if alive:
                assert await conn.fetchval('SELECT 1') == 1
                assert await manager.check_aliveness('orders', conn)

    run(body())


def test_a_fatal_error_while_idle_is_noticed_before_the_next_use(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(proxied) as (manager, conn):
            await told(proxy, conn, FATAL)
            await manager.on_release('orders', conn)
            assert not conn.is_closed()
            assert not await manager.check_aliveness('orders', conn)

    run(body())


async def told(proxy: Proxy, conn: Any, words: bytes) -> None:
    """Have a connection hear words, and wait until it has."""
    heard, protocol = asyncio.Event(), conn._transport.get_protocol()
    receive = protocol.data_received

    def listen(data: bytes) -> None:
        receive(data)
        heard.set()

    protocol.data_received = listen
    proxy.say(words)
    await heard.wait()
    del protocol.data_received


def test_a_look_at_the_transport_sends_nothing_and_a_query_takes_one_round_trip(
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    async def body() -> None:
        looks: Manager = DbConnectionManager({'orders': proxied}, reset='rollback')
        asks: Manager = DbConnectionManager({'orders': proxied}, aliveness='query')
        async with connected(proxied) as (_, conn):
            before = proxy.questions
            for _ in range(100):
                assert await looks.check_aliveness('orders', conn)
                await looks.on_release('orders', conn)
            assert proxy.questions == before
            for turn in range(1, 4):
                assert await asks.check_aliveness('orders', conn)
                assert proxy.questions == before + turn

    run(body())


def test_a_silent_server_is_found_out_by_a_query_within_its_timeout(
    proxy: Proxy,
    proxied: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('gcp.contrib.asyncpg.CLOSE_TIMEOUT', 0.2)

    async def body() -> None:
        manager: Manager = DbConnectionManager({'orders': proxied}, aliveness='query')
        pool: ConnectionPool[str, Any] = ConnectionPool(manager)
        try:
            async with pool.connection('orders'):
                pass
            proxy.silent = True
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                await pool.acquire('orders', timeout=0.2)
            assert 0.2 <= time.monotonic() - started < SOON
        finally:
            await pool.close()

    run(body())


def test_a_query_to_a_connection_cut_off_says_dead(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(proxied, aliveness='query') as (manager, conn):
            proxy.cut()
            assert not await manager.check_aliveness('orders', conn)

    run(body())


# ---- on_release


@pytest.mark.parametrize('failed', [False, True])
@pytest.mark.parametrize('how', ['BEGIN', 'transaction'])
def test_what_is_left_open_is_rolled_back(parameters: dict[str, Any], failed: bool, how: str) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            await (conn.execute('BEGIN') if how == 'BEGIN' else conn.transaction().start())
            await conn.execute('CREATE TABLE left_open (id int)')
            if failed:
                with pytest.raises(asyncpg.UndefinedTableError):
                    await conn.execute('SELECT * FROM no_such')
            await manager.on_release('orders', conn)
            assert not conn.is_in_transaction()
            assert await conn.fetchval("SELECT to_regclass('left_open')") is None
            async with conn.transaction():  # the next user's: no savepoint in a transaction that is over
                assert await conn.fetchval('SELECT 1') == 1

    run(body())


def test_a_transaction_that_was_ended_by_hand_is_forgotten(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            await conn.transaction().start()
            await conn.execute('COMMIT')
            await manager.on_release('orders', conn)
            async with conn.transaction():
                assert conn.is_in_transaction()

    run(body())


def test_a_cancelled_command_is_over_before_the_next_user_comes(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn), session(parameters) as admin:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(await sleeping(admin, conn), 0.05)
            await manager.on_release('orders', conn)
            assert await admin.fetchval(STATE, conn.get_server_pid()) == 'idle'

    run(body())


def test_what_cannot_be_rolled_back_is_disposed_of(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        pool: ConnectionPool[str, Any] = ConnectionPool(DbConnectionManager[Any]({'orders': proxied}))
        try:
            conn = await pool.acquire('orders')
            await conn.execute('BEGIN')
            proxy.cut()
            await pool.release(conn, 'orders')
            assert conn.is_closed()
            assert pool.get_size() == 0
        finally:
            await pool.close()

    run(body())


def test_a_release_in_the_middle_of_a_command_is_refused(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            await conn.execute('BEGIN')
            busy = asyncio.ensure_future(conn.execute('SELECT pg_sleep(60)'))
            await asyncio.sleep(0)
            with pytest.raises(asyncpg.InterfaceError, match='in progress'):
                await manager.on_release('orders', conn)
            await manager.dispose('orders', conn)
            with pytest.raises(asyncpg.PostgresError):
                await busy

    run(body())


def test_a_release_after_the_user_closed_it_is_no_error(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            await kill(parameters, conn)
            await manager.on_release('orders', conn)
            await conn.close()
            await manager.on_release('orders', conn)
            assert not await manager.check_aliveness('orders', conn)

    run(body())


# ---- dispose


def test_dispose_ends_a_session_also_in_the_middle_of_a_command(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn), session(parameters) as admin:
            pid = conn.get_server_pid()
            busy = await sleeping(admin, conn)
            await manager.dispose('orders', conn)
            assert conn.is_closed()
            with pytest.raises(asyncpg.PostgresError):
                await busy
            while await admin.fetchval('SELECT count(*) FROM pg_stat_activity WHERE pid = $1', pid):
                pass
            await manager.dispose('orders', conn)

    run(body())


def test_dispose_of_a_dead_connection_is_no_error(parameters: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(parameters) as (manager, conn):
            await kill(parameters, conn)
            await manager.dispose('orders', conn)
            assert conn.is_closed()

    run(body())


def test_dispose_does_not_wait_for_a_silent_server_for_ever(
    proxy: Proxy,
    proxied: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('gcp.contrib.asyncpg.CLOSE_TIMEOUT', 0.2)

    async def body() -> None:
        async with connected(proxied) as (manager, conn):
            proxy.silent = True
            started = time.monotonic()
            await manager.dispose('orders', conn)
            assert time.monotonic() - started < SOON
            assert conn.is_closed()

    run(body())


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_says_nothing_to_the_parents_server(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        async with connected(proxied, aliveness='query') as (manager, conn):
            before = proxy.questions
            child = os.fork()
            if not child:
                # a loop is not to be run in two processes; what these coroutines do, they do before they wait
                alive = True
                try:
                    manager.check_aliveness('orders', conn).send(None)
                except StopIteration as done:
                    alive = done.value
                with contextlib.suppress(StopIteration):
                    manager.dispose('orders', conn).send(None)
                os._exit(alive)
            assert os.waitpid(child, 0)[1] == 0
            assert proxy.questions == before
            assert await conn.fetchval('SELECT 1') == 1

    run(body())
