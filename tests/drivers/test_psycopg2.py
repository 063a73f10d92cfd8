"""psycopg2's manager against a real server, one that is silent, and one that says what no server would."""

from __future__ import annotations

import os
import sys
import threading
import time
import timeit
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import Proxy, await_input, await_left_behind, driver, open_descriptors, silent_server
from starvation import SOON, attempts

psycopg2 = driver('psycopg2')

from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, TRANSACTION_STATUS_IDLE  # noqa: E402

from gcp.contrib.psycopg2 import Connection, DbConnectionManager, UnknownEndpointError  # noqa: E402
from gcp.demo.server import Server  # noqa: E402
from gcp.threading import ConnectionPool  # noqa: E402

SECRET = 'hunter2'

NOTICE = b'N\0\0\0\x14SNOTICE\0Mhello\0\0'
PARAMETER_STATUS = b'S\0\0\0\x18application_name\0x\0\0'


@pytest.fixture
def manager(postgres: Server) -> DbConnectionManager:
    return DbConnectionManager({'orders': postgres.parameters})


@pytest.fixture
def conn(manager: DbConnectionManager) -> Iterator[Connection]:
    conn = manager.create('orders', 10.0)
    yield conn
    conn.close()


@pytest.fixture
def admin(postgres: Server) -> Iterator[Callable[..., Any]]:
    """Ask a question in a session of one's own."""
    conn = psycopg2.connect(**postgres.parameters)
    conn.autocommit = True

    def ask(question: str, *arguments: object) -> Any:
        return query(conn, question, *arguments)

    yield ask
    conn.close()


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


def query(conn: Connection, question: str, *arguments: object) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(question, arguments)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def kill(admin: Callable[..., Any], conn: Connection) -> None:
    """End a connection's backend, and wait until the word of it is here."""
    assert admin('SELECT pg_terminate_backend(%s)', conn.info.backend_pid)
    await_input(conn.fileno())


# ---- endpoints


def test_the_pool_serves_queries(manager: DbConnectionManager) -> None:
    pool: ConnectionPool[str, Connection] = ConnectionPool(manager)
    try:
        with pool.connection('orders') as first:
            assert query(first, 'SELECT 41 + 1') == 42
        with pool.connection('orders', timeout=5) as again:
            assert again is first
    finally:
        pool.close()
    assert first.closed


def test_an_unknown_endpoint_is_told_with_the_known_names_and_no_password() -> None:
    manager = DbConnectionManager({'orders': {'password': SECRET}, 'users': {'dsn': f'password={SECRET}'}})
    with pytest.raises(UnknownEndpointError) as caught:
        manager.create('odrers')
    assert isinstance(caught.value, KeyError)
    assert str(caught.value) == "unknown endpoint 'odrers'; known: 'orders', 'users'"
    assert repr(manager) == '<DbConnectionManager: orders, users>'
    assert SECRET not in repr(caught.value) + repr(manager) + repr(vars(manager))


def test_a_thousand_known_names_are_not_all_told() -> None:
    manager = DbConnectionManager({f'db{number}': {} for number in range(1000)})
    with pytest.raises(UnknownEndpointError, match='db49.* and 950 more$'):
        manager.create('x')


def test_a_function_is_asked_for_each_connection(postgres: Server) -> None:
    asked: list[str] = []

    def parameters(endpoint: str) -> dict[str, str]:
        asked.append(endpoint)
        return {**postgres.parameters, 'application_name': f'{endpoint} {len(asked)}'}

    manager = DbConnectionManager(parameters)
    for turn in ('orders 1', 'orders 2'):
        conn = manager.create('orders', 10.0)
        assert query(conn, 'SHOW application_name') == turn
        manager.dispose('orders', conn)
    assert asked == ['orders'] * 2


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'dsn_params': None}, TypeError, 'dsn_params: .* not an instance of NoneType'),
        ({'dsn_params': SECRET}, TypeError, 'dsn_params: .* not an instance of str'),
        ({'dsn_params': {'orders': f'password={SECRET}'}}, TypeError, "'orders': .* not an instance of str"),
        ({'dsn_params': {}, 'aliveness': 'ping'}, ValueError, "'socket' or 'query' was expected, not 'ping'"),
        ({'dsn_params': {}, 'aliveness': True}, ValueError, "'socket' or 'query' was expected, not True"),
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


def test_a_function_that_returns_no_mapping_is_told_without_its_secrets() -> None:
    manager = DbConnectionManager(lambda endpoint: f'password={SECRET}')  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="endpoint 'orders': .* not an instance of str") as caught:
        manager.create('orders')
    assert SECRET not in str(caught.value)


def test_without_the_driver_the_extra_is_named(script: Any) -> None:
    script("""
        import sys
        sys.modules['psycopg2'] = None
        try:
            import gcp.contrib.psycopg2
        except ImportError as error:
            assert 'pip install gcpool[psycopg2]' in str(error), error
        else:
            raise SystemExit('imported')
    """).quietly()


# ---- create


def test_a_silent_server_costs_the_timeout_and_no_descriptor() -> None:
    with silent_server() as port:
        manager = DbConnectionManager({'orders': {'host': '127.0.0.1', 'port': port, 'password': SECRET}})
        before = open_descriptors()
        for _ in attempts(1.9):  # libpq itself waits 2 s at least
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="connection to 'orders': not done within 0.3 s") as caught:
                manager.create('orders', 0.3)
            assert 0.3 <= time.monotonic() - started < SOON
            assert SECRET not in str(caught.value)
        await_left_behind()
        assert open_descriptors() == before


def test_a_connection_that_comes_too_late_is_closed(
    postgres: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, connect = threading.Event(), psycopg2.connect
    made: list[Connection] = []

    began: list[Any] = []

    def connect_late(**parameters: Any) -> Connection:
        began.append(parameters)
        gate.wait(60)
        made.append(connect(**parameters))
        return made[0]

    monkeypatch.setattr('psycopg2.connect', connect_late)
    while not began:  # on a busy machine the first may be given up before its thread begins
        with pytest.raises(TimeoutError):
            DbConnectionManager({'orders': postgres.parameters}).create('orders', 0.05)
    gate.set()
    await_left_behind()
    assert made[0].closed


@pytest.mark.parametrize('given', [{}, {'connect_timeout': 1}, {'connect_timeout': '60'}, {'connect_timeout': 0}])
def test_a_thread_that_was_left_behind_ends_by_itself(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def connect(**parameters: Any) -> Connection:
        seen.append(parameters['connect_timeout'])
        raise psycopg2.OperationalError('timeout expired')

    monkeypatch.setattr('psycopg2.connect', connect)
    with pytest.raises(psycopg2.OperationalError):
        DbConnectionManager({'orders': given}).create('orders', 2.5)
    assert seen == [1 if given.get('connect_timeout') == 1 else 3]


@pytest.mark.parametrize('timeout', [None, 10.0])
def test_a_refusal_reaches_the_caller_as_it_is(postgres: Server, timeout: float | None) -> None:
    manager = DbConnectionManager({'orders': {**postgres.parameters, 'dbname': 'no_such'}})
    before = open_descriptors()
    with pytest.raises(psycopg2.OperationalError, match='no_such'):
        manager.create('orders', timeout)
    assert open_descriptors() == before


# ---- aliveness


def test_a_killed_backend_is_noticed(
    manager: DbConnectionManager,
    conn: Connection,
    admin: Callable[..., Any],
) -> None:
    assert manager.check_aliveness('orders', conn)
    kill(admin, conn)
    assert not manager.check_aliveness('orders', conn)


def test_a_killed_backend_is_replaced_by_the_pool(manager: DbConnectionManager, admin: Callable[..., Any]) -> None:
    pool: ConnectionPool[str, Connection] = ConnectionPool(manager)
    try:
        with pool.connection('orders') as first:
            pass
        kill(admin, first)
        with pool.connection('orders') as other:
            assert other is not first
            assert query(other, 'SELECT 1') == 1
        assert first.closed
    finally:
        pool.close()


def test_a_closed_connection_is_dead(manager: DbConnectionManager, conn: Connection) -> None:
    conn.close()
    assert not manager.check_aliveness('orders', conn)


def test_a_notification_is_news_and_reaches_the_user(
    manager: DbConnectionManager,
    conn: Connection,
    admin: Callable[..., Any],
) -> None:
    query(conn, 'LISTEN orders')
    conn.commit()
    admin("NOTIFY orders, 'shipped'")
    await_input(conn.fileno())
    assert manager.check_aliveness('orders', conn)
    assert [notify.payload for notify in conn.notifies] == ['shipped']
    assert query(conn, 'SELECT 1') == 1


@pytest.mark.parametrize(
    ('words', 'alive'),
    [
        (NOTICE, True),
        (PARAMETER_STATUS, True),
        (NOTICE + PARAMETER_STATUS, True),
        (NOTICE[:5], True),
        (NOTICE + b'E\0\0\0\x12SFATAL\0Mgone\0\0', False),
        (b'E\0\0\0\x14SFATAL\0Mgone\0\0\0', False),
        (b'D\0\0\0\x0a\0\x01\xff\xff\xff\xff', False),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n', False),
    ],
    ids=['notice', 'parameter', 'both', 'half a notice', 'notice and error', 'error', 'row', 'another protocol'],
)
def test_what_an_idle_connection_is_told_decides(
    proxy: Proxy,
    proxied: dict[str, Any],
    words: bytes,
    alive: bool,
) -> None:
    manager = DbConnectionManager({'orders': proxied})
    conn = manager.create('orders', 10.0)
    proxy.say(words)
    await_input(conn.fileno())
    assert manager.check_aliveness('orders', conn) is alive
    assert manager.check_aliveness('orders', conn) is alive
    manager.dispose('orders', conn)


@pytest.mark.parametrize('autocommit', [False, True])
def test_a_look_at_the_socket_sends_nothing_and_a_query_takes_one_round_trip(
    proxy: Proxy,
    proxied: dict[str, Any],
    autocommit: bool,
) -> None:
    looks = DbConnectionManager({'orders': proxied})
    asks = DbConnectionManager({'orders': proxied}, aliveness='query')
    conn = looks.create('orders', 10.0)
    before = proxy.questions
    for _ in range(100):
        assert looks.check_aliveness('orders', conn, 1.0)
        looks.on_release('orders', conn)
    assert proxy.questions == before
    conn.autocommit = autocommit
    for turn in range(1, 4):
        assert asks.check_aliveness('orders', conn, 1.0 if turn % 2 else None)
        assert proxy.questions == before + turn
    assert conn.autocommit is autocommit
    assert conn.get_transaction_status() == TRANSACTION_STATUS_IDLE
    looks.dispose('orders', conn)


@pytest.mark.skipif(tracemalloc.is_tracing() or sys.gettrace() is not None, reason='everything is slower when traced')
def test_a_check_costs_less_than_five_microseconds(manager: DbConnectionManager, conn: Connection) -> None:
    assert min(timeit.repeat(lambda: manager.check_aliveness('orders', conn), number=1000, repeat=20)) < 25e-3


@pytest.mark.skipif(tracemalloc.is_tracing() or sys.gettrace() is not None, reason='everything is slower when traced')
def test_an_idle_hit_costs_microseconds_and_sends_nothing(
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    with ConnectionPool(DbConnectionManager({'orders': proxied})) as pool:
        pool.release(pool.acquire('orders'), 'orders')
        before = proxy.questions
        assert (
            min(timeit.repeat(lambda: pool.release(pool.acquire('orders'), 'orders'), number=1000, repeat=20)) < 25e-3
        )
        assert proxy.questions == before


def test_a_silent_server_is_found_out_by_a_query_within_its_timeout(proxy: Proxy, proxied: dict[str, Any]) -> None:
    manager = DbConnectionManager({'orders': proxied}, aliveness='query')
    conn = manager.create('orders', 10.0)
    proxy.silent = True
    started = time.monotonic()
    assert not manager.check_aliveness('orders', conn, 0.2)
    assert 0.2 <= time.monotonic() - started < SOON
    await_left_behind(1)
    manager.dispose('orders', conn)
    assert conn.closed


def test_a_query_to_a_connection_cut_off_says_dead(proxy: Proxy, proxied: dict[str, Any]) -> None:
    manager = DbConnectionManager({'orders': proxied}, aliveness='query')
    conn = manager.create('orders', 10.0)
    proxy.cut()
    await_input(conn.fileno())
    assert not manager.check_aliveness('orders', conn, 1.0)
    manager.dispose('orders', conn)


# ---- on_release


@pytest.mark.parametrize('autocommit', [False, True])
@pytest.mark.parametrize('failed', [False, True])
def test_what_is_left_open_is_rolled_back(
    manager: DbConnectionManager,
    conn: Connection,
    autocommit: bool,
    failed: bool,
) -> None:
    conn.autocommit = autocommit
    if autocommit:
        query(conn, 'BEGIN')
    query(conn, 'CREATE TABLE left_open (id int)')
    if failed:
        with pytest.raises(psycopg2.errors.UndefinedTable):
            query(conn, 'SELECT * FROM no_such')
    manager.on_release('orders', conn)
    assert conn.get_transaction_status() == TRANSACTION_STATUS_IDLE
    assert query(conn, "SELECT to_regclass('left_open')") is None


def test_a_clean_release_asks_nothing(proxy: Proxy, proxied: dict[str, Any]) -> None:
    manager = DbConnectionManager({'orders': proxied})
    conn = manager.create('orders', 10.0)
    query(conn, 'SELECT 1')
    conn.commit()
    before = proxy.questions
    manager.on_release('orders', conn)
    assert proxy.questions == before
    manager.dispose('orders', conn)


def test_what_cannot_be_rolled_back_is_disposed_of(manager: DbConnectionManager, admin: Callable[..., Any]) -> None:
    pool: ConnectionPool[str, Connection] = ConnectionPool(manager)
    try:
        conn = pool.acquire('orders')
        query(conn, 'SELECT 1')
        kill(admin, conn)
        pool.release(conn, 'orders')
        assert conn.closed
        assert pool.get_size() == 0
    finally:
        pool.close()


def test_a_two_phase_transaction_is_not_ours_to_end(manager: DbConnectionManager, conn: Connection) -> None:
    conn.tpc_begin(conn.xid(1, 'order', 'branch'))
    with pytest.raises(psycopg2.ProgrammingError, match='two-phase'):
        manager.on_release('orders', conn)


def test_a_release_after_the_user_closed_it_is_no_error(
    manager: DbConnectionManager,
    conn: Connection,
    admin: Callable[..., Any],
) -> None:
    kill(admin, conn)
    with pytest.raises(psycopg2.OperationalError):
        query(conn, 'SELECT 1')
    manager.on_release('orders', conn)
    conn.close()
    manager.on_release('orders', conn)


def test_a_release_in_the_middle_of_a_command_is_refused(
    manager: DbConnectionManager,
    conn: Connection,
    busy: threading.Thread,
) -> None:
    with pytest.raises(psycopg2.InterfaceError, match='in the middle of a command'):
        manager.on_release('orders', conn)


# ---- dispose


@pytest.fixture
def busy(conn: Connection, admin: Callable[..., Any]) -> Iterator[threading.Thread]:
    """A thread in the middle of a command on `conn`."""
    conn.autocommit = True
    ended = threading.Event()

    def sleep() -> None:
        with pytest.raises(psycopg2.Error):
            query(conn, 'SELECT pg_sleep(60)')
        ended.set()

    thread = threading.Thread(target=sleep)
    thread.start()
    pid = conn.info.backend_pid
    while admin('SELECT state FROM pg_stat_activity WHERE pid = %s', pid) != 'active':
        pass
    while conn.get_transaction_status() != TRANSACTION_STATUS_ACTIVE:  # libpq notes it a moment after the server has it
        pass
    yield thread
    admin('SELECT pg_terminate_backend(%s)', pid)
    thread.join(60)
    assert ended.is_set()


def test_dispose_ends_a_session(manager: DbConnectionManager, conn: Connection, admin: Callable[..., Any]) -> None:
    pid = conn.info.backend_pid
    manager.dispose('orders', conn)
    assert conn.closed
    while admin('SELECT count(*) FROM pg_stat_activity WHERE pid = %s', pid):
        pass
    manager.dispose('orders', conn)


@pytest.mark.parametrize('seen', [False, True])
def test_dispose_of_a_dead_connection_is_no_error(
    manager: DbConnectionManager,
    conn: Connection,
    admin: Callable[..., Any],
    seen: bool,
) -> None:
    kill(admin, conn)
    if seen:
        with pytest.raises(psycopg2.Error):
            query(conn, 'SELECT 1')
    manager.dispose('orders', conn)
    assert conn.closed


def test_dispose_does_not_wait_for_a_command_in_another_thread(
    manager: DbConnectionManager,
    conn: Connection,
    busy: threading.Thread,
) -> None:
    started = time.monotonic()
    manager.dispose('orders', conn)
    busy.join(60)
    assert time.monotonic() - started < SOON
    assert conn.closed


def test_dispose_does_not_wait_for_a_command_that_begins_once_it_has_looked(
    manager: DbConnectionManager,
    conn: Connection,
    busy: threading.Thread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('gcp.contrib.psycopg2._close_would_block', lambda conn: False)
    started = time.monotonic()
    manager.dispose('orders', conn)
    busy.join(60)
    assert time.monotonic() - started < SOON
    assert conn.closed


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_says_nothing_to_the_parents_server(proxy: Proxy, proxied: dict[str, Any]) -> None:
    manager = DbConnectionManager({'orders': proxied}, aliveness='query')
    conn = manager.create('orders', 10.0)
    before = proxy.questions
    child = os.fork()
    if not child:
        alive = manager.check_aliveness('orders', conn, 1.0)
        manager.dispose('orders', conn)
        os._exit(alive)
    assert os.waitpid(child, 0)[1] == 0
    assert proxy.questions == before
    assert query(conn, 'SELECT 1') == 1
    manager.dispose('orders', conn)
