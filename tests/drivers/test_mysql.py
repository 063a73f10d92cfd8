"""The managers of MySQL and MariaDB, PyMySQL's and aiomysql's, against a real MariaDB. One body serves both. What they
do in trouble is in `test_matrix.py`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from http_peers import contexts
from matrix_kinds import GREETING
from mysql_peers import MariaDb
from peers import Service, driver, open_sockets

import gcp.asyncio
import gcp.threading
from gcp.exceptions import ErrorClass


class Face:
    """One of the two: what it awaits, and what is done already."""

    def __init__(self, name: str, server: MariaDb) -> None:
        self.is_async = name == 'aiomysql'
        self.driver = driver(name)
        driver('pymysql')
        if self.is_async:
            from gcp.contrib import mysql_async as module
        else:
            from gcp.contrib import mysql as module  # type: ignore[no-redef]
        self.module: Any = module
        self.server = server

    def manager(self, changes: dict[str, Any] | None = None, **options: Any) -> Any:
        parameters = {**self.server.parameters, **(changes or {})}
        if not self.is_async:
            parameters['database'] = parameters.pop('db')
        return self.module.DbConnectionManager({'gcp': parameters}, **options)

    def pool(self, changes: dict[str, Any] | None = None, **options: Any) -> Any:
        pools: Any = gcp.asyncio if self.is_async else gcp.threading
        return pools.ConnectionPool(self.manager(changes, **options), max_size=2)

    async def ask(self, conn: Any, statement: str, *values: Any) -> Any:
        """The first column of the answer's first row; None without one."""
        if self.is_async:
            async with conn.cursor() as cursor:
                await cursor.execute(statement, values)
                row = await cursor.fetchone() if cursor.description else None
        else:
            with conn.cursor() as cursor:
                cursor.execute(statement, values)
                row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def chain(error: BaseException | None) -> Iterator[str]:
    """The texts of an error and of what caused it."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


async def done(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


Body = Callable[[Face], Coroutine[Any, Any, None]]


@pytest.fixture(params=['pymysql', 'aiomysql'])
def face(request: pytest.FixtureRequest, mariadb: MariaDb) -> Iterator[Face]:
    yield Face(request.param, mariadb)


def test_connections_are_reused_and_replaced_when_killed(face: Face) -> None:
    async def body() -> None:
        pool = face.pool()
        first = await done(pool.acquire('gcp', 30))
        number = await face.ask(first, 'SELECT CONNECTION_ID()')
        await done(pool.release(first, 'gcp'))
        again = await done(pool.acquire('gcp', 30))
        assert again is first
        await done(pool.release(again, 'gcp'))
        other = face.pool()
        admin = await done(other.acquire('gcp', 30))
        await face.ask(admin, f'KILL CONNECTION {number}')
        while await face.ask(admin, f'SELECT COUNT(*) FROM information_schema.processlist WHERE id = {number}'):
            pass
        await done(other.release(admin, 'gcp'))
        conn = await done(pool.acquire('gcp', 30))
        assert await face.ask(conn, 'SELECT CONNECTION_ID()') != number
        await done(pool.release(conn, 'gcp'))
        await done(pool.close())
        await done(other.close())

    asyncio.run(body())


def test_what_a_user_leaves_is_rolled_back_and_restored(face: Face) -> None:
    async def body() -> None:
        pool = face.pool({'charset': 'utf8mb4'})
        conn = await done(pool.acquire('gcp', 30))
        await face.ask(conn, 'CREATE OR REPLACE TABLE gcp.left_behind (id INT) ENGINE=InnoDB')
        await face.ask(conn, 'INSERT INTO gcp.left_behind VALUES (1)')
        await done(pool.release(conn, 'gcp'))
        assert await done(pool.acquire('gcp', 30)) is conn
        assert await face.ask(conn, 'SELECT COUNT(*) FROM gcp.left_behind') == 0
        await done(conn.begin())  # a transaction without a statement
        await done(conn.autocommit(True))
        await done(conn.set_charset('latin1') if face.is_async else conn.set_character_set('latin1'))
        from pymysql.cursors import DictCursor

        kept, conn.cursorclass = conn.cursorclass, DictCursor
        await done(pool.release(conn, 'gcp'))
        assert await done(pool.acquire('gcp', 30)) is conn
        assert not conn.get_autocommit()
        assert conn.cursorclass is kept
        assert await face.ask(conn, 'SELECT @@character_set_client') == 'utf8mb4'
        assert await face.ask(conn, 'SELECT @@in_transaction') == 0
        await done(pool.release(conn, 'gcp'))
        await done(pool.close())

    asyncio.run(body())


def test_reset_connection_leaves_nothing_of_the_session(face: Face) -> None:
    async def body() -> None:
        for reset, left in (('rollback', 1), ('reset connection', None)):
            pool = face.pool({'charset': 'utf8mb4', 'autocommit': True}, reset=reset)
            conn = await done(pool.acquire('gcp', 30))
            await face.ask(conn, 'SET @mine = 1')
            await done(pool.release(conn, 'gcp'))
            assert await done(pool.acquire('gcp', 30)) is conn
            assert await face.ask(conn, 'SELECT @mine') == left
            assert await face.ask(conn, 'SELECT @@autocommit') == 1
            assert await face.ask(conn, 'SELECT @@character_set_client') == 'utf8mb4'
            assert await face.ask(conn, 'SELECT DATABASE()') == 'gcp'
            await done(pool.release(conn, 'gcp'))
            await done(pool.close())

    asyncio.run(body())


def test_an_unread_result_costs_the_connection(face: Face) -> None:
    async def body() -> None:
        import pymysql

        pool = face.pool()
        conn = await done(pool.acquire('gcp', 30))
        kind = face.driver.cursors.SSCursor
        cursor = await done(conn.cursor(kind))
        await done(cursor.execute('SELECT seq FROM seq_1_to_10000'))
        with pytest.raises(pymysql.err.InterfaceError, match='before its result was read'):
            await done(pool.release(conn, 'gcp'))
        assert await done(pool.acquire('gcp', 30)) is not conn
        await done(pool.close(timeout=0))

    asyncio.run(body())


def test_an_idle_server_is_asked_when_it_is_to_be(face: Face) -> None:
    async def body() -> None:
        pool = face.pool(aliveness='query')
        for _ in range(3):
            conn = await done(pool.acquire('gcp', 30))
            await done(pool.release(conn, 'gcp'))
        manager = face.manager()
        assert await done(manager.keepalive('gcp', conn))
        assert pool.stats().created == 1
        await done(pool.close())

    asyncio.run(body())


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'password': 'wrong'}, ErrorClass.PERMANENT),
        ({'user': 'nobody-known'}, ErrorClass.PERMANENT),
        ({'db': 'nowhere'}, ErrorClass.PERMANENT),
        ({'port': 1}, ErrorClass.TRANSIENT),
        ({'host': 'no-such-host.invalid'}, None),  # by what the resolver says
    ],
)
def test_errors_of_a_connect_are_classified(face: Face, changes: dict[str, Any], expected: ErrorClass | None) -> None:
    async def body() -> None:
        manager = face.manager(changes)
        with pytest.raises(Exception) as caught:
            await done(manager.create('gcp') if face.is_async else manager.create('gcp', 30))
        found = manager.classify('gcp', caught.value)
        assert found is expected or expected is None and found in (ErrorClass.PERMANENT, ErrorClass.TRANSIENT)
        assert 'hunter2' not in str(caught.value)

    asyncio.run(body())


@pytest.mark.parametrize(
    ('number', 'expected'),
    [
        (1062, ErrorClass.TRANSIENT),
        (1213, ErrorClass.TRANSIENT),
        (1290, ErrorClass.STALE),
        (1836, ErrorClass.STALE),
        (1927, ErrorClass.BROKEN),
        (2006, ErrorClass.BROKEN),
        (2013, ErrorClass.BROKEN),
        (4031, ErrorClass.BROKEN),
        (1040, ErrorClass.TRANSIENT),
        (0, ErrorClass.BROKEN),
    ],
)
def test_errors_of_a_block_are_classified(face: Face, number: int, expected: ErrorClass) -> None:
    import pymysql

    assert face.manager().classify('gcp', pymysql.err.OperationalError(number, 'words')) is expected


def test_after_an_error_a_clean_connection_is_kept(face: Face) -> None:
    async def body() -> None:
        pool = face.pool()
        conn = await done(pool.acquire('gcp', 30))
        try:
            await face.ask(conn, 'SELECT nonsense')
        except Exception as error:
            await done(pool.release(conn, 'gcp', error=error))
        assert pool.stats().idle == 1
        await done(pool.close())

    asyncio.run(body())


def test_a_unix_socket_and_tls_serve_as_well(face: Face) -> None:
    import ssl

    async def body() -> None:
        trusting = ssl.create_default_context(cafile=str(face.server.authority))
        for changes in ({'unix_socket': str(face.server.path), 'host': 'localhost'}, {'ssl': trusting}):
            pool = face.pool(changes)
            for _ in range(3):
                conn = await done(pool.acquire('gcp', 30))
                assert await face.ask(conn, 'SELECT 41 + 1') == 42
                if 'ssl' in changes:
                    assert await face.ask(conn, "SHOW STATUS LIKE 'Ssl_cipher'")
                await done(pool.release(conn, 'gcp'))
            assert pool.stats().created == 1
            await done(pool.close())

    asyncio.run(body())


@pytest.mark.parametrize('trouble', ['hangs at TLS', 'handshake fails', 'wrong certificate'])
def test_trouble_with_tls_is_an_error_in_time_and_leaks_nothing(face: Face, trouble: str) -> None:
    wrong, _ = contexts('localhost')
    _, trusting = contexts('localhost')

    def prepare(sock: socket.socket) -> socket.socket | None:
        sock.sendall(GREETING)
        sock.recv(36)  # no more than the request for TLS: the handshake follows at once
        if trouble == 'handshake fails':
            sock.sendall(b'\x07garbage\r\n\r\n' * 3)
        elif trouble == 'wrong certificate':
            with contextlib.suppress(OSError):
                return wrong.wrap_socket(sock, server_side=True)
        return sock

    async def body() -> None:
        pool = face.pool({'host': 'localhost', 'port': service.port, 'ssl': trusting})
        before = open_sockets(tidy=True)
        for _ in range(3):
            with pytest.raises(Exception) as caught:
                await done(pool.acquire('gcp', 0.2 if trouble == 'hangs at TLS' else 60))
            assert isinstance(caught.value, TimeoutError) is (trouble == 'hangs at TLS'), repr(caught.value)
            if trouble == 'wrong certificate':  # which opens the breaker: the next errors have it as their cause
                assert 'certificate verify failed' in ' '.join(chain(caught.value))
        service.shut_down()
        for _ in range(5):
            await asyncio.sleep(0)
        until = time.monotonic() + 30
        while open_sockets(tidy=True) > before and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert open_sockets(tidy=True) <= before
        await done(pool.close())

    with Service(prepare) as service:
        asyncio.run(body())


@pytest.mark.parametrize(('name', 'package'), [('mysql', 'pymysql'), ('mysql_async', 'aiomysql')])
def test_without_the_driver_the_extra_is_named(script: Any, name: str, package: str) -> None:
    script(f"""
        import sys
        sys.modules[{package!r}] = None
        try:
            import gcp.contrib.{name}
        except ImportError as error:
            assert 'pip install gcpool[mysql]' in str(error), error
            assert error.name == {package!r}
        else:
            raise SystemExit('imported')
    """).quietly()


def test_the_page_shows_the_table_of_errors() -> None:
    from gcp.contrib._mysql import ERRORS

    page = Path(__file__).resolve().parents[2] / 'docs' / 'mysql.md'
    if not page.exists():
        pytest.skip('no docs beside the tests')
    shown: dict[int, str] = {}
    for numbers, name in re.findall(r'^\| ([^|]*\d{4}[^|]*) \| `(\w+)` \|$', page.read_text(), flags=re.MULTILINE):
        shown |= dict.fromkeys(map(int, re.findall(r'\d{4}', numbers)), name)
    assert shown == {number: found.name for number, found in ERRORS.items()}


def test_a_reset_that_cannot_be_is_told(face: Face) -> None:
    with pytest.raises(ValueError, match="reset: 'rollback', 'reset connection' or a function was expected, not 'all'"):
        face.manager(reset='all')
    if not face.is_async:
        with pytest.raises(TypeError, match='reset: a plain function was expected, not a coroutine function'):
            face.manager(reset=done)
    else:
        face.manager(reset=done)
