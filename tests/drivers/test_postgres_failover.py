"""A failover: all connections of an endpoint die at once, perhaps without a word, and that must not cost one time-out
for each of them."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from typing import Any

import pytest
from peers import Proxy, await_input
from pg_drivers import Driver, done, each_driver, run
from starvation import SOON

from gcp.contrib import _failure_detector
from gcp.contrib._failure_detector import FailureDetector
from gcp.contrib._wire import shut_down
from gcp.demo.server import Server

N = 10


class Conn:
    """Stands for a connection."""


@pytest.fixture
def detector() -> FailureDetector[Conn]:
    return FailureDetector()


def added(detector: FailureDetector[Conn], count: int, endpoint: str = 'orders') -> list[Conn]:
    conns = [Conn() for _ in range(count)]
    for conn in conns:
        detector.add(endpoint, conn)
    return conns


def states(detector: FailureDetector[Conn], conns: list[Conn], endpoint: str = 'orders') -> str:
    """The state of each: f(ine), s(uspected: must be verified), i(nvalid)."""
    return ''.join(
        'i' if detector.is_invalid(endpoint, conn) else 's' if detector.must_verify(endpoint, conn) else 'f'
        for conn in conns
    )


def silence(detector: FailureDetector[Conn], conn: Conn, error: type[BaseException] = TimeoutError) -> None:
    with pytest.raises(error), detector.verification('orders', conn):
        raise error


# ---- the book-keeping


def test_no_connection_needs_verification_at_first(detector: FailureDetector[Conn]) -> None:
    assert states(detector, added(detector, 3)) == 'fff'
    assert not detector.unverified


def test_a_dead_connection_has_the_older_of_its_endpoint_verified(detector: FailureDetector[Conn]) -> None:
    others = added(detector, 1, 'users')
    first, *rest = added(detector, 3)
    detector.report_dead('orders', first)
    assert states(detector, rest + added(detector, 1)) == 'ssf'
    assert states(detector, others, 'users') == 'f'
    assert list(detector.unverified) == ['orders']


def test_a_round_trip_verifies_one_and_the_last_ends_the_verification(detector: FailureDetector[Conn]) -> None:
    first, second, third = added(detector, 3)
    detector.report_dead('orders', first)
    with detector.verification('orders', second):
        pass
    assert states(detector, [second, third]) == 'fs'
    detector.remove('orders', third)
    assert not detector.unverified


def test_an_unverified_dead_connection_changes_nothing_and_a_verified_one_does(detector: FailureDetector[Conn]) -> None:
    first, second, third = added(detector, 3)
    detector.report_dead('orders', first)
    new = added(detector, 1)
    detector.report_dead('orders', second)
    assert states(detector, [third, *new]) == 'sf'
    detector.report_dead('orders', new[0])
    new = added(detector, 1)
    with detector.verification('orders', third):
        pass
    assert not detector.unverified
    detector.report_dead('orders', third)
    assert states(detector, new) == 's'


def test_the_same_death_is_noted_once(detector: FailureDetector[Conn]) -> None:
    first, second = added(detector, 2)
    detector.report_dead('orders', first)
    with detector.verification('orders', second):
        pass
    detector.report_dead('orders', first)
    assert states(detector, [second]) == 'f'


def test_a_timeout_invalidates_those_not_verified_since(
    detector: FailureDetector[Conn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_failure_detector, 'MIN_SILENCE', 0.0)
    first, second, third, fourth = added(detector, 4)
    detector.report_dead('orders', first)
    with detector.verification('orders', second):
        pass
    silence(detector, third)
    assert states(detector, [second, fourth, *added(detector, 1)]) == 'fif'
    detector.remove('orders', fourth)
    assert not detector.unverified


def test_a_timeout_without_a_dead_connection_invalidates_the_older(
    detector: FailureDetector[Conn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with aliveness='query', which always makes a round trip."""
    monkeypatch.setattr(_failure_detector, 'MIN_SILENCE', 0.0)
    first, second = added(detector, 2)
    with pytest.raises(TimeoutError), detector.verification('orders', first):
        later = added(detector, 1)
        raise TimeoutError
    assert states(detector, [second, *later, *added(detector, 1)]) == 'isf'


def test_a_short_silence_says_nothing_of_others(detector: FailureDetector[Conn]) -> None:
    first, second = added(detector, 2)
    silence(detector, first)
    assert states(detector, [second]) == 'f'


def test_an_error_has_the_others_verified_and_an_interrupt_does_not(detector: FailureDetector[Conn]) -> None:
    first, second, third = added(detector, 3)
    silence(detector, first, KeyboardInterrupt)
    assert states(detector, [second, third]) == 'ff'
    silence(detector, second, OSError)
    assert states(detector, [third]) == 's'


def test_a_hundred_thousand_endpoints_leave_nothing(detector: FailureDetector[Conn]) -> None:
    for number in range(100_000):
        first, second = added(detector, 2, f'db{number}')
        detector.report_dead(f'db{number}', first)
        detector.remove(f'db{number}', first)
        detector.remove(f'db{number}', second)
    assert not detector.unverified
    assert not detector._connections


def test_collected_connections_do_not_prolong_the_verification(detector: FailureDetector[Conn]) -> None:
    first, second, third = added(detector, 3)
    detector.report_dead('orders', first)
    del second
    gc.collect()
    with detector.verification('orders', third):
        pass
    assert not detector.unverified


def test_collected_connections_are_forgotten(detector: FailureDetector[Conn]) -> None:
    """A pool that is dropped without being closed drops its connections, too; its manager may go on."""
    for _ in range(10):
        added(detector, 3)
    gc.collect()
    kept = added(detector, 1)
    assert [ref() for ref in detector._connections['orders'].seen] == kept


def test_unknown_connections_change_nothing(detector: FailureDetector[Conn]) -> None:
    stranger = Conn()
    detector.report_dead('orders', stranger)
    detector.remove('orders', stranger)
    with detector.verification('orders', stranger):
        pass
    assert not detector.unverified
    assert states(detector, [stranger]) == 'f'


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_starts_anew(detector: FailureDetector[Conn]) -> None:
    first, second = added(detector, 2)
    detector.report_dead('orders', first)
    unverified = detector.unverified
    with detector._lock:
        child = os.fork()
        if not child:
            thread = threading.Thread(target=added, args=(detector, 1), daemon=True)
            thread.start()
            thread.join(60)
            os._exit(thread.is_alive() or bool(unverified) or detector.unverified is not unverified)
    assert os.waitpid(child, 0)[1] == 0
    assert states(detector, [second]) == 's'


def test_threads_do_not_lose_track_of_each_other(detector: FailureDetector[Conn]) -> None:
    def work(seed: int) -> None:
        chance = random.Random(seed)
        mine: list[Conn] = []
        for _ in range(2000):
            if len(mine) < 5:
                mine += added(detector, 1)
            conn = chance.choice(mine)
            act = chance.choice([detector.report_dead, detector.remove, None])
            if act is None:
                with detector.verification('orders', conn):
                    pass
            else:
                act('orders', conn)
                detector.remove('orders', conn)
                mine.remove(conn)
        for conn in mine:
            detector.remove('orders', conn)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not detector.unverified
    assert not detector._connections


# ---- the managers


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


async def hand_back(pg: Driver, manager: Any, conns: list[Any]) -> None:
    for conn in conns:
        await pg.release(manager, conn)


@each_driver
def test_ten_unresponsive_connections_cost_one_check_timeout(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
    postgres: Server,
) -> None:
    """One user meets the silence, and its connection breaks; the others go through the pool."""

    async def body() -> None:
        pg = make()
        where = [pg.keywords(proxied)]
        manager = pg.make(lambda endpoint: where[0], check_timeout=2)
        pool = pg.pools.ConnectionPool(manager, min_idle=N)
        conns = [await done(pool.acquire('orders')) for _ in range(N)]
        for conn in conns[1:]:
            await done(pool.release(conn, 'orders'))
        proxy.silent = True
        where[0] = pg.keywords(postgres.parameters)  # the name now leads to the new server
        shut_down(pg.descriptor(conns[0]))
        with pytest.raises(pg.errors):
            await pg.ask(conns[0], 'SELECT 1')
        await done(pool.release(conns[0], 'orders'))
        started = time.monotonic()
        new = [await done(pool.acquire('orders', 60)) for _ in range(N)]
        took = time.monotonic() - started
        assert 2 <= took < 15  # ten times 2 s are 20 s
        assert not set(map(id, new)) & set(map(id, conns))
        for conn in new:
            assert await pg.ask(conn, 'SELECT 1') == 1
            await done(conn.rollback() if hasattr(conn, 'rollback') else None)
            await done(pool.release(conn, 'orders'))
        assert not manager._unverified
        await done(pool.close())

    run(body())


@each_driver
def test_a_query_that_times_out_invalidates_the_rest(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.manager(proxied, aliveness='query', check_timeout=2)
        conns = [await pg.create(manager) for _ in range(N)]
        await hand_back(pg, manager, conns)
        proxy.silent = True
        started = time.monotonic()
        for conn in conns:
            assert not await pg.check(manager, conn)
        assert 2 <= time.monotonic() - started < 15  # ten times 2 s are 20 s
        for conn in conns:
            await pg.dispose(manager, conn)

    run(body())


@each_driver
def test_after_a_first_death_each_is_asked_once(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.manager(proxied)
        conns = [await pg.create(manager) for _ in range(4)]
        await hand_back(pg, manager, conns)
        proxy.cut()
        dead = conns.pop()
        await gone(pg, dead)
        assert not await pg.check(manager, dead)
        new = await pg.create(manager)
        for conn, costs in [(new, 0), *((conn, 1) for conn in conns), *((conn, 0) for conn in conns)]:
            before = proxy.questions
            assert await pg.check(manager, conn)
            assert proxy.questions == before + costs
        assert not manager._unverified
        for conn in (dead, new, *conns):
            await pg.dispose(manager, conn)

    run(body())


@each_driver
def test_a_connection_closed_by_its_user_has_no_others_verified(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            other = await pg.create(manager)
            await done(conn.close())
            await pg.release(manager, conn)
            assert not await pg.check(manager, conn)
            assert not manager._unverified
            await pg.dispose(manager, other)

    run(body())


@each_driver
def test_a_connection_killed_in_use_has_the_others_verified(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            other = await pg.create(manager)
            await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)})')
            await done(other.rollback() if hasattr(other, 'rollback') else None)
            with pytest.raises(pg.errors):
                await pg.ask(conn, 'SELECT pg_sleep(10)')
            await pg.release(manager, conn)
            assert manager._failure_detector.must_verify('orders', other)
            assert await pg.check(manager, other)
            assert not manager._unverified
            await pg.dispose(manager, other)

    run(body())


@each_driver
def test_a_check_takes_no_longer_than_the_acquire_that_wants_it(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(proxied, aliveness='query', check_timeout=60))
        conn = await done(pool.acquire('orders'))
        await done(pool.release(conn, 'orders'))
        proxy.silent = True
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await done(pool.acquire('orders', 0.2))
        assert 0.2 <= time.monotonic() - started < SOON
        await done(pool.close())

    run(body())


async def gone(pg: Driver, conn: Any) -> None:
    """Wait until the word of a connection's end is here."""
    if pg.name == 'asyncpg':
        import asyncio

        heard = asyncio.Event()
        conn.add_termination_listener(lambda conn: heard.set())
        await heard.wait()
    else:
        await_input(conn.fileno())
