"""Guarantee 13 (docs/guarantees.md): a forked child starts with an empty, working pool, and does not use its
parent's connections.

Each case is a script in its own interpreter. `in_child` runs a function in a forked child and checks that it
succeeded; the child is killed after 10 s, so that a lock that was held at the fork is a failure and not a hang."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from gil import needs_gil

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')

PRELUDE = '''
import asyncio, gc, os, signal, sys, threading, time, traceback, weakref
import gcp.asyncio, gcp.threading
from gcp.exceptions import *
from gcp.testing import *

def in_child(function):
    """Run the function in a child; fail unless it returns there within 10 s."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f'the child ended with {status}'
        return
    status = 1
    try:
        signal.alarm(10)
        function()
        gc.collect()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)

def until(predicate):
    deadline = time.monotonic() + 60
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.001)
'''


@pytest.fixture
def story(script: Callable[..., Any]) -> Callable[[str], str]:
    def run(source: str) -> str:
        import textwrap

        ended = script(PRELUDE + textwrap.dedent(source), '-W', 'ignore::DeprecationWarning', timeout=30)
        out: str = ended.quietly()
        return out

    return run


def test_the_child_starts_with_an_empty_working_pool(story: Callable[[str], str]) -> None:
    assert (
        story("""
        manager = FakeManager()
        pool = gcp.threading.ConnectionPool(manager, max_size=2, total_max_size=2, name='inherited')
        idle, used = pool.acquire('db'), pool.acquire('db')
        pool.release(idle, 'db')

        def child():
            assert pool.get_size() == 0 and pool.get_endpoint_pool_size('db') == 0 and not pool.closed
            assert pool.stats().idle == pool.stats().used == 0 and not pool.stats().endpoints
            connections = [pool.acquire('db', timeout=1) for _ in range(2)]
            assert not {idle, used} & set(connections)
            for connection in connections:
                pool.release(connection, 'db')
            with pool.connection('db', timeout=0) as connection:
                assert connection in connections
            pool.close(timeout=5)
            assert not {idle, used} & set(manager.disposed)
            assert sorted(manager.disposed) == connections
            print('child done')

        in_child(child)
        assert pool.get_size() == 2 and not manager.disposed and not pool.closed
        pool.release(used, 'db')
        with pool.connection('db', timeout=0) as connection:
            assert connection in (idle, used)
        pool.close(timeout=5)
        assert sorted(manager.disposed) == [idle, used]
    """)
        == 'child done\n'
    )


def test_a_lease_held_across_the_fork_is_inert_in_the_child(story: Callable[[str], str]) -> None:
    story("""
        manager = FakeManager()
        pool = gcp.threading.ConnectionPool(manager)
        lease = pool.connection('db')
        connection = lease.__enter__()
        raw = pool.acquire('db')

        def child():
            before = len(manager.calls)
            lease.__exit__(None, None, None)
            pool.release(raw, 'db')
            assert len(manager.calls) == before, manager.story()
            assert pool.get_size() == 0
            with pool.connection('db', timeout=1):
                pass

        in_child(child)
        lease.__exit__(None, None, None)
        pool.release(raw, 'db')
        assert pool.stats().idle == 2
    """)


def test_a_fork_inside_a_with_block(story: Callable[[str], str]) -> None:
    story("""
        manager = FakeManager()
        pool = gcp.threading.ConnectionPool(manager)

        def child():
            pass

        with pool.connection('db') as connection:
            pid = os.fork()
        if pid == 0:
            os._exit(0 if pool.get_size() == 0 and manager.story('on_release', 'dispose') == [] else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert pool.stats().idle == 1 and manager.story('on_release') == ['on_release db#1']
    """)


def test_a_dropped_lease_is_inert_in_the_child(story: Callable[[str], str]) -> None:
    story("""
        manager = FakeManager()
        pool = gcp.threading.ConnectionPool(manager)
        leases = [pool.connection('db')]
        leases[0].__enter__()

        def child():
            leases.clear()
            gc.collect()
            with pool.connection('db', timeout=1):
                pass
            assert manager.created[0] not in manager.disposed

        in_child(child)
        leases.pop().__exit__(None, None, None)
        assert pool.stats().idle == 1
    """)


def test_connections_are_not_finalised_in_the_child(story: Callable[[str], str]) -> None:
    """A finaliser could say goodbye over a socket that the parent still uses."""
    assert story("""
        class Connection:
            def __del__(self):
                print('finalised in', 'the parent' if os.getpid() == parent else 'the child')
                finals.append(self.__class__)

        class Manager:
            def create(self, endpoint, timeout=None):
                return Connection()
            def dispose(self, endpoint, conn, timeout=None):
                print('disposed of in', 'the parent' if os.getpid() == parent else 'the child')

        finals = []
        parent = os.getpid()
        pool = gcp.threading.ConnectionPool(Manager(), max_size=2)
        used, idle = pool.acquire('db'), pool.acquire('db')
        pool.release(idle, 'db')
        del idle

        def child():
            assert pool.get_size() == 0
            gc.collect()
            pool.stats()

        in_child(child)
        pool.release(used, 'db')
        del used
        pool.close(timeout=5)
        pool = None
        until(lambda: gc.collect() or len(finals) == 2)
    """).splitlines() in (
        ['disposed of in the parent', 'finalised in the parent'] * 2,
        ['disposed of in the parent'] * 2 + ['finalised in the parent'] * 2,
    )


@needs_gil("locks of the interpreter's own dicts may stay locked in a child")
@pytest.mark.parametrize('collector', [True, False])
def test_a_fork_while_other_threads_use_the_pool(
    story: Callable[[str], str],
    collector: bool,
    thorough: bool,
) -> None:
    story(f"""
        class Manager:
            def create(self, endpoint, timeout=None):
                return object()
            def dispose(self, endpoint, conn, timeout=None):
                pass

        sys.setswitchinterval(1e-6)
        pool = gcp.threading.ConnectionPool(Manager(), max_size=2, total_max_size=3, idle_timeout=0.001,
                                            background_collector={collector})
        runs = True

        def work(number):
            while runs:
                with pool.connection('abc'[number % 3]):
                    pass

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
        for thread in threads:
            thread.start()

        def child():
            assert pool.get_size() == 0
            held = [pool.acquire('a', timeout=5) for _ in range(2)]
            assert pool.stats().used == 2 and pool.stats().waiting == 0
            for connection in held:
                pool.release(connection, 'a')
            for endpoint in 'abcabc':
                with pool.connection(endpoint, timeout=5):
                    pass
            pool.close(timeout=5)
            assert pool.get_size() == 0

        for _ in range({30 if thorough else 10}):
            in_child(child)
        runs = False
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        pool.close(timeout=5)
    """)


def test_a_fork_with_waiters_and_a_creation_in_flight(story: Callable[[str], str]) -> None:
    story("""
        manager = FakeManager()
        pool = gcp.threading.ConnectionPool(manager, max_size=1)
        held = pool.acquire('db')
        waiter = threading.Thread(target=lambda: pool.release(pool.acquire('db'), 'db'), daemon=True)
        waiter.start()
        until(lambda: pool.stats().waiting == 1)
        manager.create.does(never(), endpoint='slow')
        creator = threading.Thread(target=lambda: pool.release(pool.acquire('slow'), 'slow'), daemon=True)
        creator.start()
        until(lambda: manager.create.running == 1)

        def child():
            assert pool.get_size() == 0 and pool.stats().waiting == 0
            with pool.connection('db', timeout=1):
                pass
            pool.close(timeout=5)

        in_child(child)
        manager.unblock()
        pool.release(held, 'db')
        waiter.join(60)
        creator.join(60)
        assert pool.stats().idle == 2
    """)


def test_the_child_has_a_collector_of_its_own(story: Callable[[str], str]) -> None:
    story("""
        manager = BareFakeManager()
        pool = gcp.threading.ConnectionPool(manager, min_idle=0, idle_timeout=0.05, background_collector=True)
        with pool.connection('db'):
            pass

        def child():
            with pool.connection('db', timeout=1) as connection:
                pass
            until(lambda: pool.get_size() == 0)
            assert manager.disposed == [connection]
            pool.close(timeout=5)

        in_child(child)
        until(lambda: pool.get_size() == 0)
    """)


def test_a_pool_that_was_closed_before_the_fork_stays_closed(story: Callable[[str], str]) -> None:
    story("""
        pool = gcp.threading.ConnectionPool(BareFakeManager())
        pool.close()

        def child():
            try:
                pool.acquire('db')
            except ConnectionPoolClosedError:
                return
            raise AssertionError('a closed pool was opened by a fork')

        in_child(child)
    """)


def test_a_grandchild(story: Callable[[str], str]) -> None:
    story("""
        pool = gcp.threading.ConnectionPool(BareFakeManager(), max_size=1)
        pool.acquire('db')

        def child():
            pool.acquire('db', timeout=1)
            in_child(grandchild)
            assert pool.stats().used == 1

        def grandchild():
            pool.acquire('db', timeout=1)
            assert pool.stats().used == 1

        in_child(child)
    """)


def test_an_asyncio_pool_works_in_the_child_s_own_loop(story: Callable[[str], str]) -> None:
    story("""
        manager = AsyncFakeManager()
        pool = None

        async def parent():
            global pool
            pool = gcp.asyncio.ConnectionPool(manager, max_size=1, background_collector=True)
            held = await pool.acquire('db')
            await asyncio.to_thread(lambda: None)
            return held

        async def use():
            async with pool.connection('db', timeout=1):
                assert pool.stats().used == 1
            await pool.close()

        held = asyncio.run(parent())

        def child():
            assert pool.get_size() == 0
            assert pool._core.wake_collector is None  # what finalizers would call is the parent's loop's
            asyncio.run(use())
            assert held not in manager.disposed

        in_child(child)
    """)


@pytest.mark.skipif(sys.platform == 'darwin', reason='fork is not the default there')
def test_multiprocessing_workers(story: Callable[[str], str]) -> None:
    story("""
        import multiprocessing

        pool = gcp.threading.ConnectionPool(BareFakeManager(), max_size=2)
        held = pool.acquire('db')

        def work(number):
            for _ in range(10):
                with pool.connection('db', timeout=1):
                    pass
            return pool.stats().created

        with multiprocessing.get_context('fork').Pool(2) as workers:
            assert set(workers.map(work, range(8))) == {1}
        pool.release(held, 'db')
    """)


def test_a_fork_while_a_batch_is_being_disposed_of(story: Callable[[str], str]) -> None:
    assert (
        story("""
        manager = FakeManager()
        manager.dispose.does(ok(), never())
        pool = gcp.threading.ConnectionPool(
            manager, min_idle=0, max_size=8, idle_timeout=0.01, dispose_batch_size=10, name='inherited')
        mine = [pool.acquire('db') for _ in range(4)]
        held = pool.acquire('other')
        for connection in mine:
            pool.release(connection, 'db')
        time.sleep(0.02)
        releasing = threading.Thread(target=pool.release, args=(held, 'other'))
        releasing.start()
        until(lambda: manager.dispose.running)
        said = len(manager.dispose.calls)

        def child():
            manager.dispose.does(ok())
            assert pool.get_size() == 0
            connections = [pool.acquire('db', timeout=1) for _ in range(2)]
            held = pool.acquire('other', timeout=1)
            for connection in connections:
                pool.release(connection, 'db')
            time.sleep(0.02)
            pool.release(held, 'other')
            pool.close(timeout=5)
            assert {call.connection for call in manager.dispose.calls[said:]} == {*connections, held}

        in_child(child)
        manager.dispose.does(ok())
        manager.unblock()
        releasing.join(60)
        pool.close(timeout=5)
        assert sorted(map(str, manager.disposed)) == sorted(map(str, [*mine, held])), manager.disposed
        print('done')
    """)
        == 'done\n'
    )


def test_a_dispose_that_forks_in_the_middle_of_a_batch(story: Callable[[str], str]) -> None:
    assert (
        story("""
        children = []

        class Manager(gcp.threading.BaseConnectionManager):
            said = 0

            def create(self, endpoint, timeout=None):
                return object()

            def dispose(self, endpoint, conn, timeout=None):
                self.said += 1
                if self.said == 2:
                    children.append(os.fork())

        parent = os.getpid()
        manager = Manager()
        pool = gcp.threading.ConnectionPool(
            manager, min_idle=0, max_size=8, idle_timeout=0.01, dispose_batch_size=10)
        mine = [pool.acquire('db') for _ in range(5)]
        for connection in mine[:-1]:
            pool.release(connection, 'db')
        time.sleep(0.02)
        pool.release(mine[-1], 'db')
        if os.getpid() != parent:
            os._exit(manager.said != 2 or pool.get_size() != 0)
        _, status = os.waitpid(children[0], 0)
        assert status == 0, 'the child has disposed of the connections of its parent'
        until(lambda: manager.said >= 4)
        pool.close()
        assert manager.said == 5
        print('done')
    """)
        == 'done\n'
    )
