"""`gcp.contrib.sqlalchemy` as the pool of engines: psycopg2, psycopg and asyncpg, against a real server.

One body serves all: on asyncio it runs in a greenlet of SQLAlchemy's. SQLAlchemy's own tests run in
`tests/nightly/test_sqlalchemy_suite.py`."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import driver

from gcp.demo.server import Server

Body = Callable[[Any], None]
Run = Callable[..., None]

DRIVERS = {'psycopg2': 'psycopg2', 'psycopg': 'psycopg', 'psycopg_async': 'psycopg', 'asyncpg': 'asyncpg'}


def address(server: Server, name: str) -> Any:
    from sqlalchemy import URL

    parameters = server.parameters
    return URL.create(
        f'postgresql+{name}',
        username=parameters['user'],
        database=parameters['dbname'],
        query={'host': str(parameters['host'])},
    )


@pytest.fixture(params=DRIVERS)
def run(request: pytest.FixtureRequest, postgres: Server) -> Run:
    """Run a body with an engine that has our pool, and close it."""
    driver('sqlalchemy')
    driver(DRIVERS[request.param])
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.util import greenlet_spawn

    from gcp.contrib.sqlalchemy import Pool

    url = address(postgres, request.param)

    def in_threads(body: Body, database: str = 'postgres', **options: Any) -> None:
        engine = create_engine(url.set(database=database), poolclass=Pool, **options)
        try:
            body(engine)
        finally:
            engine.dispose()

    def in_a_task(body: Body, database: str = 'postgres', **options: Any) -> None:
        async def main() -> None:
            engine = create_async_engine(url.set(database=database), poolclass=Pool, **options)
            try:
                await greenlet_spawn(body, engine.sync_engine)
            finally:
                await engine.dispose()

        asyncio.run(main())

    return in_a_task if request.param in ('psycopg_async', 'asyncpg') else in_threads


@pytest.fixture
def mocked() -> Iterator[Callable[..., Any]]:
    """Make pools of connections that are mere objects."""
    driver('sqlalchemy')
    from gcp.contrib.sqlalchemy import Pool

    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(Pool(Connection, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.dispose()


class Connection:
    """A DBAPI connection that does nothing."""

    closed = False

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def pid_of(conn: Any) -> int:
    from sqlalchemy import text

    pid: int = conn.execute(text('SELECT pg_backend_pid()')).scalar_one()
    return pid


@pytest.fixture
def admin(postgres: Server) -> Iterator[Callable[..., Any]]:
    """Execute a statement in a session of its own."""
    with driver('psycopg').connect(**postgres.parameters, autocommit=True) as conn:

        def execute(statement: str, *values: Any) -> Any:
            return conn.execute(statement, values).fetchall()

        yield execute


def terminate(admin: Any, *pids: int) -> None:
    """End sessions, and wait until the server has ended them."""
    for pid in pids:
        assert admin('SELECT pg_terminate_backend(%s, 60000)', pid) == [(True,)]


def await_end(admin: Any, *pids: int) -> None:
    """Wait until the server has ended sessions that were closed."""
    until(lambda: admin('SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)', list(pids)) == [(0,)])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, 'it does not come true'
        pause()


def pause() -> None:
    """Let others go on, among them the tasks of an event loop in whose thread this is."""
    from sqlalchemy.util import await_only

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        time.sleep(0.005)
    else:
        await_only(asyncio.sleep(0.005))


# ---- checkout and checkin


def test_checkout_and_checkin_are_acquire_and_release(run: Run) -> None:
    def body(engine: Any) -> None:
        pool = engine.pool.pool
        for _ in range(5):
            with engine.connect() as conn:
                pid_of(conn)
                assert (pool.stats().used, engine.pool.checkedout()) == (1, 1)
        stats = pool.stats()
        assert (stats.created, stats.idle, stats.used) == (1, 1, 0)
        assert dict(stats.acquires)['hit'] == 4 and dict(stats.acquires)['created'] == 1
        assert sum(stats.releases.values()) == 5
        assert engine.pool.checkedin() == 1

    run(body, pool_size=2, max_overflow=0)


def test_orm_sessions_leave_nothing(run: Run) -> None:
    from sqlalchemy import text
    from sqlalchemy.orm import Session

    def body(engine: Any) -> None:
        for number in range(10):
            with Session(engine) as session:
                assert session.execute(text('SELECT 1')).scalar_one() == 1
                if number % 2:
                    session.commit()
        stats = engine.pool.pool.stats()
        assert (stats.created, stats.idle, stats.used) == (1, 1, 0)
        with engine.connect() as conn:  # what a session left open is rolled back
            state = conn.execute(text('SELECT count(*) FROM pg_stat_activity WHERE state LIKE :it'), {'it': 'idle in%'})
            assert state.scalar_one() == 0

    run(body, pool_size=1, max_overflow=0)


def test_events_are_those_of_sqlalchemy(run: Run) -> None:
    from sqlalchemy import event

    seen: list[str] = []

    def body(engine: Any) -> None:
        for name in (
            'first_connect',
            'connect',
            'checkout',
            'reset',
            'checkin',
            'invalidate',
            'soft_invalidate',
            'close',
        ):
            event.listen(engine.pool, name, lambda *args, name=name: seen.append(name), named=False)
        with engine.connect() as conn:
            pid_of(conn)
        assert seen == ['first_connect', 'connect', 'checkout', 'reset', 'checkin']
        seen.clear()
        with engine.connect() as conn:
            conn.invalidate()
        assert seen == ['checkout', 'invalidate', 'close', 'checkin']
        seen.clear()
        with engine.connect() as conn:
            conn.connection.invalidate(soft=True)
        assert seen == ['connect', 'checkout', 'soft_invalidate', 'reset', 'checkin']
        seen.clear()
        with engine.connect() as conn:
            pid_of(conn)
        assert seen == ['close', 'connect', 'checkout', 'reset', 'checkin']

    run(body, pool_size=1, max_overflow=0)


# ---- connections that end
def test_pre_ping_replaces_what_the_server_has_ended(run: Run, admin: Any) -> None:
    def body(engine: Any) -> None:
        first, second, third = (engine.connect() for _ in range(3))
        pids = [pid_of(conn) for conn in (first, second, third)]
        for conn in (first, second, third):
            conn.close()
        terminate(admin, pids[0])
        with engine.connect() as conn, engine.connect() as other:  # the other two were made before it was lost
            assert not {pid_of(conn), pid_of(other)} & set(pids)
        stats = engine.pool.pool.stats()
        assert (stats.created, stats.closed['dead'], stats.idle) == (5, 3, 2)
        await_end(admin, *pids)

    run(body, pool_size=3, max_overflow=0, pool_pre_ping=True)


def test_without_a_ping_the_first_error_invalidates_all(run: Run, admin: Any) -> None:
    from sqlalchemy import exc, text

    def body(engine: Any) -> None:
        first, second = engine.connect(), engine.connect()
        pids = [pid_of(first), pid_of(second)]
        first.close()
        second.close()
        terminate(admin, *pids)
        with engine.connect() as conn:
            with pytest.raises(exc.DBAPIError) as caught:
                conn.execute(text('SELECT 1'))
            assert caught.value.connection_invalidated
        with engine.connect() as conn, engine.connect() as other:
            assert not {pid_of(conn), pid_of(other)} & set(pids)
        stats = engine.pool.pool.stats()
        assert (stats.created, sum(stats.closed.values()), stats.idle) == (4, 2, 2)

    run(body, pool_size=2, max_overflow=0)


def test_a_hard_invalidation_closes_at_once_and_a_soft_one_later(run: Run, admin: Any) -> None:
    def body(engine: Any) -> None:
        with engine.connect() as conn:
            hard = pid_of(conn)
            conn.invalidate()
            await_end(admin, hard)
            assert engine.pool.pool.stats().closed['discarded'] == 1
        with engine.connect() as conn:
            soft = pid_of(conn)
            assert soft != hard
            conn.connection.invalidate(soft=True)
            assert pid_of(conn) == soft
        assert engine.pool.pool.stats().idle == 1
        with engine.connect() as conn:
            assert pid_of(conn) not in (hard, soft)
        await_end(admin, soft)
        stats = engine.pool.pool.stats()
        assert (stats.created, sum(stats.closed.values()), stats.idle) == (3, 2, 1)

    run(body, pool_size=1, max_overflow=0)


def test_dispose_closes_idle_connections_now_and_others_when_they_return(run: Run, admin: Any) -> None:
    def body(engine: Any) -> None:
        idle, used = engine.connect(), engine.connect()
        pids = pid_of(idle), pid_of(used)
        idle.close()
        old = engine.pool
        engine.dispose()
        assert engine.pool is not old
        assert (engine.pool.size(), engine.pool._max_overflow) == (old.size(), old._max_overflow)
        assert pid_of(used) == pids[1]
        used.close()
        await_end(admin, *pids)
        assert (old.pool.stats().closed['expired'], old.pool.get_size()) == (2, 0)
        with engine.connect() as conn:
            assert pid_of(conn) not in pids

    run(body, pool_size=2, max_overflow=0)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # SQLAlchemy drops psycopg's unclosed
def test_a_detached_connection_is_its_users(run: Run) -> None:
    def body(engine: Any) -> None:
        conn = engine.connect()
        pid = pid_of(conn)
        conn.detach()
        assert engine.pool.pool.stats().used == 0
        with engine.connect() as other:
            assert pid_of(other) != pid
        assert pid_of(conn) == pid
        conn.close()

    run(body, pool_size=1, max_overflow=0)
    gc.collect()


def test_a_forked_child_has_a_pool_of_its_own(script: Any, postgres: Server) -> None:
    driver('sqlalchemy')
    driver('psycopg2')
    script(
        f"""
        import os
        from sqlalchemy import create_engine, text
        from gcp.contrib.sqlalchemy import Pool
        engine = create_engine({str(address(postgres, 'psycopg2'))!r}, poolclass=Pool, pool_size=2, max_overflow=0)
        ask = text('SELECT pg_backend_pid()')
        held, idle = engine.connect(), engine.connect()
        pids = {{held.execute(ask).scalar_one(), idle.execute(ask).scalar_one()}}
        idle.close()
        child = os.fork()
        if not child:
            with engine.connect() as conn, engine.connect() as other:
                assert not {{conn.execute(ask).scalar_one(), other.execute(ask).scalar_one()}} & pids
            assert engine.pool.pool.stats().created == 2
            engine.dispose()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert held.execute(ask).scalar_one() in pids
        with engine.connect() as conn:
            assert conn.execute(ask).scalar_one() in pids
        held.close()
        engine.dispose()
        """,
        '-W',
        'ignore::DeprecationWarning',
    ).quietly()


def test_an_error_of_a_connect_is_classified(run: Run, postgres: Server) -> None:
    from gcp.exceptions import EndpointUnavailableError

    def body(engine: Any) -> None:
        with pytest.raises(Exception, match='does not exist'):  # of asyncpg, SQLAlchemy 2.0 shows its own
            engine.connect()
        with pytest.raises(EndpointUnavailableError):  # no database comes into being by asking for it again
            engine.connect()
        assert engine.pool.pool.stats().connect_failures['permanent'] == 1

    run(body, database='nowhere', gcp_options={'breaker_threshold': 5})


# ---- sizes and times


def test_the_limit_is_size_and_overflow_and_the_error_is_that_of_sqlalchemy(run: Run) -> None:
    from sqlalchemy import exc

    from gcp.exceptions import AcquireTimeoutError

    def body(engine: Any) -> None:
        conns = [engine.connect() for _ in range(3)]
        assert engine.pool.overflow() == 1
        with pytest.raises(exc.TimeoutError, match=r'size 2 overflow 1 .*timeout 0') as caught:
            engine.connect()
        assert caught.value.code == '3o7r'
        assert isinstance(caught.value.__cause__, AcquireTimeoutError)
        for conn in conns:
            conn.close()
        assert (engine.pool.checkedin(), engine.pool.overflow(), engine.pool.pool.stats().idle) == (2, 0, 2)

    run(body, pool_size=2, max_overflow=1, pool_timeout=0)


@pytest.mark.parametrize('lifo', [False, True])
def test_the_order_of_reuse(mocked: Any, lifo: bool) -> None:
    pool = mocked(pool_size=3, max_overflow=2, use_lifo=lifo)
    for _ in range(3):
        fairies = [pool.connect() for _ in range(3)]
        raw = [fairy.dbapi_connection for fairy in fairies]
        for fairy in fairies:
            fairy.close()
        again = [pool.connect() for _ in range(3)]
        assert [fairy.dbapi_connection for fairy in again] == (raw[::-1] if lifo else raw)
        for fairy in again:
            fairy.close()


def test_what_exceeds_the_size_is_closed_also_when_all_return_at_once(mocked: Any) -> None:
    pool = mocked(pool_size=2, max_overflow=30)
    barrier = threading.Barrier(16)
    seen: list[int] = []

    def use() -> None:
        for _ in range(20):
            fairy = pool.connect()
            barrier.wait(60)
            fairy.close()
            barrier.wait(60)
            seen.append(pool.checkedin())
            barrier.wait(60)

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(seen) == {2} and len(seen) == 320
    stats = pool.pool.stats()
    assert (stats.idle, stats.used, stats.created - sum(stats.closed.values())) == (2, 0, 2)


def test_a_connection_is_recycled_by_its_age(mocked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mocked(pool_size=1, max_overflow=0, recycle=3000)
    now = time.time()
    with pool.connect() as fairy:
        first = fairy.dbapi_connection
    with monkeypatch.context() as patch:
        patch.setattr(time, 'time', lambda: now + 2000)
        with pool.connect() as fairy:
            assert fairy.dbapi_connection is first
        patch.setattr(time, 'time', lambda: now + 4000)
        with pool.connect() as fairy:
            assert fairy.dbapi_connection is not first
    assert first.closed
    assert pool.pool.stats().created == 2


def test_an_entry_keeps_its_information_when_it_connects_again(mocked: Any) -> None:
    pool = mocked(pool_size=1, max_overflow=0)
    fairy = pool.connect()
    fairy.info['of'] = fairy.record_info['of'] = 'the first'
    fairy.invalidate()
    assert (pool.checkedin(), pool.pool.stats().idle) == (1, 0)
    with pool.connect() as fairy:
        assert (fairy.info, fairy.record_info) == ({}, {'of': 'the first'})


def test_a_place_is_not_lost_when_connecting_fails(mocked: Any) -> None:
    pool = mocked(pool_size=1, max_overflow=1)
    creator = pool._creator
    for _ in range(2):
        pool._creator = lambda: 1 / 0
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                pool.connect()
        pool._creator = creator
        with pool.connect(), pool.connect():
            assert (pool.checkedout(), pool.overflow()) == (2, 1)
        pool.connect().invalidate()
        assert pool.pool.get_size() == 0


def test_waiters_are_served_in_the_order_of_their_arrival(mocked: Any) -> None:
    pool = mocked(pool_size=1, max_overflow=0, timeout=60)
    served: list[int] = []

    def use(number: int) -> None:
        with pool.connect():
            served.append(number)

    held = pool.connect()
    threads: list[threading.Thread] = []
    for number in range(8):
        threads.append(threading.Thread(target=use, args=(number,)))
        threads[-1].start()
        until(lambda: pool.pool.stats().waiting == len(threads))
    held.close()
    for thread in threads:
        thread.join(60)
    assert served == list(range(8))


def test_what_was_not_returned_comes_back_with_the_garbage_collector(mocked: Any) -> None:
    pool = mocked(pool_size=1, max_overflow=0)
    fairy = pool.connect()
    fairy.itself = fairy
    del fairy
    gc.collect()
    assert (pool.checkedout(), pool.checkedin()) == (0, 1)


def test_on_asyncio_what_was_not_returned_is_given_up(postgres: Server) -> None:
    driver('sqlalchemy')
    driver('asyncpg')
    from sqlalchemy import exc
    from sqlalchemy.ext.asyncio import create_async_engine

    from gcp.contrib.sqlalchemy import Pool

    async def main() -> None:
        url = address(postgres, 'asyncpg')
        engine = create_async_engine(url, poolclass=Pool, pool_size=1, max_overflow=0, pool_timeout=60)
        pool: Any = engine.pool
        conn: Any = await engine.connect()
        held = [conn]
        held.append(held)
        del conn, held
        with pytest.warns(exc.SAWarning, match='garbage collector is trying to clean up'):
            gc.collect()
        async with engine.connect():
            assert pool.pool.stats().used == 1
        await engine.dispose()

    asyncio.run(main())


def test_a_cancelled_task_leaves_no_place_behind(postgres: Server) -> None:
    driver('sqlalchemy')
    driver('asyncpg')
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    from gcp.contrib.sqlalchemy import Pool

    async def main() -> None:
        url = address(postgres, 'asyncpg')
        engine = create_async_engine(url, poolclass=Pool, pool_size=2, max_overflow=0)
        pool: Any = engine.pool

        async def use(seconds: float) -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text('SELECT pg_sleep(:s)'), {'s': seconds})

        tasks = [asyncio.create_task(use(60)) for _ in range(6)]
        while pool.pool.stats().waiting != 4 or pool.checkedout() != 2:
            await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        stats = pool.pool.stats()
        assert (stats.used, stats.waiting) == (0, 0)
        await asyncio.gather(*(use(0) for _ in range(6)))
        await engine.dispose()
        assert pool.pool.get_size() == 0

    asyncio.run(main())


# ---- arguments


def test_recreate_keeps_the_arguments(mocked: Any) -> None:
    options = {'name': 'orders', 'leak_threshold': 30.0}
    pool = mocked(
        pool_size=3, max_overflow=-1, timeout=7, use_lifo=True, recycle=60, pre_ping=True, gcp_options=options
    )
    again = pool.recreate()
    assert type(again) is type(pool)
    assert (again.size(), again._max_overflow, again.timeout()) == (3, -1, 7)
    assert again.pool.name == 'orders'
    assert again.pool is not pool.pool
    assert again._pings and again._recycle == 60 and again._use_lifo


@pytest.mark.parametrize(
    ('name', 'value', 'where'),
    [
        ('max_size', 5, 'pool_size and max_overflow'),
        ('total_max_size', 5, 'pool_size and max_overflow'),
        ('min_idle', 5, 'pool_size'),
        ('idle_timeout', 5, 'pool_size'),
        ('max_lifetime', 5, 'pool_recycle'),
        ('acquire_timeout', 5, 'pool_timeout'),
        ('limits', {}, 'pool_size'),
    ],
)
def test_a_contradiction_says_which_argument_wins(postgres: Server, name: str, value: Any, where: str) -> None:
    driver('sqlalchemy')
    driver('psycopg2')
    from sqlalchemy import create_engine

    from gcp.contrib.sqlalchemy import Pool

    with pytest.raises(ValueError, match=rf'gcp_options: {name} is set by .* which win.* set {where}'):
        create_engine(address(postgres, 'psycopg2'), poolclass=Pool, pool_size=10, gcp_options={name: value})


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        ({'pool_size': -1}, ValueError, 'pool_size'),
        ({'pool_size': 'ten'}, TypeError, 'pool_size'),
        ({'max_overflow': -2}, ValueError, 'max_overflow'),
        ({'max_overflow': 1.5}, TypeError, 'max_overflow'),
        ({'gcp_options': {'max_sise': 3}}, TypeError, 'max_sise'),
        ({'gcp_options': {'keepalive_interval': -1}}, ValueError, 'keepalive_interval'),
    ],
)
def test_a_bad_argument_is_named(mocked: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        mocked(**options)


def test_without_a_limit_all_are_kept(mocked: Any) -> None:
    pool = mocked(pool_size=0, max_overflow=3)
    fairies = [pool.connect() for _ in range(20)]
    for fairy in fairies:
        fairy.close()
    assert (pool.checkedin(), pool.overflow()) == (20, 0)


def test_without_the_package_the_extra_is_named(script: Any) -> None:
    script("""
        import sys
        sys.modules['sqlalchemy'] = None
        try:
            import gcp.contrib.sqlalchemy
        except ImportError as error:
            assert 'pip install gcpool[sqlalchemy]' in str(error), error
            assert error.name == 'sqlalchemy'
        else:
            raise SystemExit('imported')
    """).quietly()


def test_neither_front_is_imported(script: Any) -> None:
    driver('sqlalchemy')
    script("""
        import sys
        import gcp.contrib.sqlalchemy
        assert not {'gcp.threading', 'gcp.asyncio'} & set(sys.modules)
    """).quietly()
