"""The fake managers of `gcp.testing`: they follow their scripts, record every call, and detect every violation.

Other test modules rely on `manager.check()`: it proves nothing if the tests here fail."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fronts import Front, drive

from gcp.testing import (
    AsyncFakeManager,
    BareFakeManager,
    FakeConnection,
    FakeManager,
    calling,
    dead,
    error,
    never,
    ok,
    slow,
)


def test_a_script_is_followed_and_its_last_behaviour_repeats() -> None:
    manager = FakeManager()
    manager.create.does(ok(), error(ConnectionRefusedError), ok())
    assert manager.create('db').name == 'db#1'
    with pytest.raises(ConnectionRefusedError):
        manager.create('db')
    assert [manager.create('db').number for _ in range(3)] == [2, 3, 4]
    assert [call.outcome for call in manager.create.calls] == ['ok', 'ConnectionRefusedError()', 'ok', 'ok', 'ok']


@pytest.mark.parametrize('has_gil', [True, False])
def test_no_two_calls_raise_one_object_without_the_gil(monkeypatch: pytest.MonkeyPatch, has_gil: bool) -> None:
    monkeypatch.setattr(sys, '_is_gil_enabled', lambda: has_gil, raising=False)
    manager, refused = FakeManager(), ConnectionRefusedError(111, 'refused')
    manager.create.does(error(refused))
    raised = []
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError) as caught:
            manager.create('db')
        raised.append(caught.value)
    assert raised[0] is refused
    assert len({id(one) for one in raised}) == (1 if has_gil else 3)
    assert {one.args for one in raised} == {(111, 'refused')}


def test_an_endpoint_has_its_own_script_until_one_for_all_is_set() -> None:
    manager = FakeManager()
    manager.create.does(error(OSError), endpoint='a')
    manager.create('b')
    with pytest.raises(OSError):
        manager.create('a')
    manager.create.does(ok())
    manager.create('a')


def test_results_of_checks_and_functions() -> None:
    manager = FakeManager()
    connection = manager.create('db')
    manager.check_aliveness.does(ok(), dead(), calling(lambda endpoint, conn: endpoint == 'db'))
    assert [manager.check_aliveness('db', connection) for _ in range(3)] == [True, False, True]
    manager.create.does(calling(lambda endpoint, conn: {'made for': endpoint}))
    made: Any = manager.create('db')
    assert made == {'made for': 'db'} and manager.created == [connection, made]


def test_slow_and_never_in_threads() -> None:
    manager = FakeManager()
    began = time.monotonic()
    manager.create.does(slow(0.05), slow(30, honours_timeout=True), never(then=error(OSError)))
    manager.create('db', timeout=0.01)
    assert time.monotonic() - began >= 0.05
    with pytest.raises(TimeoutError):
        manager.create('db', timeout=0.01)
    caught: list[BaseException] = []

    def create() -> None:
        try:
            manager.create('db')
        except OSError as e:
            caught.append(e)

    thread = threading.Thread(target=create)
    thread.start()
    while not manager.create.running:
        time.sleep(0.001)
    manager.create.unblock()
    thread.join(60)
    assert len(caught) == 1
    manager.unblock()
    with pytest.raises(OSError):
        manager.create('db')  # no hook waits any more


def test_slow_and_never_in_tasks() -> None:
    async def main() -> None:
        manager = AsyncFakeManager()
        manager.create.does(slow(0.01), never())
        await manager.create('db')
        task = asyncio.ensure_future(manager.create('db'))
        await asyncio.sleep(0.01)
        assert manager.create.running == 1
        manager.create.unblock()
        assert (await task).name == 'db#2'
        manager.unblock()
        await manager.create('db')

    asyncio.run(main())


def test_an_async_hook_awaits_what_a_function_gives() -> None:
    async def answer(endpoint: Any, connection: Any) -> bool:
        return False

    manager = AsyncFakeManager()
    manager.check_aliveness.does(calling(answer))
    assert drive(manager.check_aliveness('db', FakeConnection('db', 1))) is False


def test_it_counts() -> None:
    manager = FakeManager()
    a, b, c = manager.create('x'), manager.create('x'), manager.create('y')
    manager.dispose('x', b, timeout=3)
    assert (manager.created, manager.disposed, manager.live) == ([a, b, c], [b], [a, c])
    assert (manager.size('x'), manager.size('y'), manager.size()) == (1, 1, 2)
    assert (manager.peak('x'), manager.peak('y'), manager.peak()) == (2, 1, 3)
    assert manager.story() == ['create x#1', 'create x#2', 'create y#3', 'dispose x#2']
    assert manager.dispose.calls[0].timeout == 3
    assert a < b < c and a != b and sorted([c, a, b]) == [a, b, c]
    manager.check(max_size=2, total_max_size=3)


def test_a_connection_being_created_or_disposed_of_is_counted() -> None:
    manager = FakeManager()
    during: list[int] = []
    manager.create.does(calling(lambda endpoint, conn: during.append(manager.size())))
    connection = manager.create('db')
    manager.dispose.does(calling(lambda endpoint, conn: during.append(manager.size())))
    manager.dispose('db', connection)
    assert during == [1, 1] and manager.size() == 0


def handed_out_twice(manager: FakeManager, connection: Any) -> None:
    manager.on_acquire('db', connection)
    manager.on_acquire('db', connection)


def held_twice(manager: FakeManager, connection: Any) -> None:
    with manager.hold(connection), manager.hold(connection):
        pass


def released_twice(manager: FakeManager, connection: Any) -> None:
    manager.on_acquire('db', connection)
    manager.on_release('db', connection)
    manager.on_release('db', connection)


def checked_while_used(manager: FakeManager, connection: Any) -> None:
    manager.on_acquire('db', connection)
    manager.check_aliveness('db', connection)


def used_after_its_disposal(manager: FakeManager, connection: Any) -> None:
    manager.dispose('db', connection)
    manager.on_acquire('db', connection)


def held_after_its_disposal(manager: FakeManager, connection: Any) -> None:
    manager.dispose('db', connection)
    with manager.hold(connection):
        pass


def disposed_of_twice(manager: FakeManager, connection: Any) -> None:
    manager.dispose('db', connection)
    manager.dispose('db', connection)


def disposed_of_while_held(manager: FakeManager, connection: Any) -> None:
    with manager.hold(connection):
        manager.dispose('db', connection)


def two_hooks_at_a_time(manager: FakeManager, connection: Any) -> None:
    manager.on_release.does(calling(lambda endpoint, conn: manager.dispose('db', conn)))
    manager.on_acquire('db', connection)
    manager.on_release('db', connection)


def not_created_by_the_manager(manager: FakeManager, connection: Any) -> None:
    manager.dispose('db', FakeConnection('db', 7))


@pytest.mark.parametrize(
    'violation',
    [
        handed_out_twice,
        held_twice,
        released_twice,
        checked_while_used,
        used_after_its_disposal,
        held_after_its_disposal,
        disposed_of_twice,
        disposed_of_while_held,
        two_hooks_at_a_time,
        not_created_by_the_manager,
    ],
    ids=lambda violation: violation.__name__,
)
def test_a_violation_is_detected(violation: Callable[[FakeManager, Any], None]) -> None:
    manager = FakeManager()
    connection = manager.create('db')
    manager.check()
    violation(manager, connection)
    with pytest.raises(AssertionError, match='db#'):
        manager.check()


def test_it_notices_too_many() -> None:
    manager = BareFakeManager()
    for endpoint in 'aab':
        manager.create(endpoint)
    manager.check(max_size=2, total_max_size=3)
    with pytest.raises(AssertionError, match='a: 2 connections'):
        manager.check(max_size=1)
    with pytest.raises(AssertionError, match='all: 3 connections'):
        manager.check(total_max_size=2)


def test_a_failed_acquire_leaves_no_holder() -> None:
    manager = FakeManager()
    connection = manager.create('db')
    manager.on_acquire.does(error(OSError))
    with pytest.raises(OSError):
        manager.on_acquire('db', connection)
    manager.dispose('db', connection)
    manager.check()


def test_it_can_be_subclassed() -> None:
    class Mine(FakeManager):
        def create(self, endpoint: Any, timeout: float | None = None) -> FakeConnection:  # type: ignore[override]
            connection: FakeConnection = super().create(endpoint, timeout)
            connection.greeting = 'hello'  # type: ignore[attr-defined]
            return connection

    manager = Mine()
    assert manager.create('db').greeting == 'hello'  # type: ignore[attr-defined]
    assert manager.story() == ['create db#1']


async def test_a_bare_one_has_no_other_hooks(front: Front) -> None:
    pool = front.pool(manager := front.manager(bare=True))
    for _ in range(2):
        async with pool.connection('db'):
            pass
    await pool.close()
    assert manager.story() == ['create db#1', 'dispose db#1']


def test_it_imports_no_asyncio(script: Callable[..., Any]) -> None:
    script('import sys, gcp.testing; gcp.testing.FakeManager(); assert "asyncio" not in sys.modules').quietly()


def test_each_call_has_its_own_behaviour_in_whatever_thread() -> None:
    manager = FakeManager()
    many = 4000
    manager.create.does(*[ok(number) for number in range(many)], error(OSError))
    made: list[Any] = []
    barrier = threading.Barrier(4)

    def create() -> None:
        barrier.wait(60)
        made.extend([manager.create('db') for _ in range(many // 4)])

    threads = [threading.Thread(target=create, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == list(range(many))
    with pytest.raises(OSError):
        manager.create('db')


def test_unblock_twice_at_a_time_ends_the_wait_of_a_call_that_comes_between() -> None:
    manager = FakeManager()
    manager.create.does(never())
    callers = [threading.Thread(target=manager.create, args=('db',), daemon=True) for _ in range(3)]
    for number, caller in enumerate(callers, 1):
        caller.start()
        while manager.create.running < number:
            time.sleep(0.001)
    unblockers = [threading.Thread(target=manager.create.unblock, daemon=True) for _ in range(2)]
    for unblocker in unblockers:
        unblocker.start()
    for thread in [*unblockers, *callers]:
        thread.join(60)
        assert not thread.is_alive()
