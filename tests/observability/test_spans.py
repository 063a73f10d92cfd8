"""Guarantee 15 (docs/guarantees.md): spans with a real SDK: names, kinds, parents, links, attributes and status, of
each hook call and each wait."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import time
import tracemalloc
from typing import Any

import pytest
from fronts import AsyncioFront, Front, ThreadsFront
from opentelemetry import context as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, get_current_span
from traces import Traces, attributes_of, errors_of, id_of, links_of, parent_of, scope_of, status_of, trace_of

import gcp
from gcp import AcquireTimeoutError, ConnectionPoolClosedError, EndpointUnavailableError, PoolSuspendedError, Retry
from gcp.observe.names import SCHEMA_URL
from gcp.observe.spans import address_of
from gcp.testing import FakeManager, calling, dead, error, never, ok, slow
from gcp.threading import ConnectionPool

DB = ('db.example.org', 5432)
WHERE = {
    'db.client.connection.pool.name': 'orders',
    'gcpool.endpoint': 'db.example.org:5432',
    'server.address': 'db.example.org',
    'server.port': 5432,
}
WAIT = 'wait_for_connection orders'


class Odd(Exception):
    """What a hook raises."""


ODD = f'{Odd.__module__}.Odd'


@pytest.fixture
def traces() -> Traces:
    return Traces()


def pool_of(front: Front, manager: Any, traces: Traces, **arguments: Any) -> Any:
    return front.pool(
        manager,
        name='orders',
        **{'tracer_provider': traces.provider, 'registry': None, 'meter_provider': None} | arguments,
    )


# --- what each looks like ---


async def test_acquire_that_creates(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces)
    with traces.caller() as caller:
        conn = await pool.acquire(DB)
    await pool.release(conn, DB)

    assert traces.names == ['create orders', WAIT]
    create, wait = traces.ended
    for span in create, wait:
        assert span.kind is SpanKind.INTERNAL
        assert parent_of(span) == id_of(caller)
        assert status_of(span) == ('UNSET', None)
        assert (scope_of(span).name, scope_of(span).version, scope_of(span).schema_url) == (
            'gcpool',
            gcp.__version__,
            SCHEMA_URL,
        )
    assert attributes_of(create) == WHERE
    assert attributes_of(wait) == {**WHERE, 'gcpool.result': 'created', 'gcpool.waiters_ahead': 0}
    assert links_of(create) == {}
    assert links_of(wait) == {'created_by': id_of(create)}
    # retroactive: it began before what happened within
    assert wait.start_time <= create.start_time + 1_000_000 and wait.end_time >= create.end_time  # type: ignore[operator]


async def test_wait_begins_no_later_than_what_happened_within(front: Front, traces: Traces) -> None:
    seen: list[int] = []

    def label(endpoint: Any) -> str:
        if seen:  # the span of the wait is being made
            time.sleep(0.05)
        return 'orders'

    manager = front.manager()
    manager.create.does(calling(lambda endpoint, conn: seen.append(time.time_ns())))
    pool = pool_of(front, manager, traces, endpoint_label=label)
    await pool.release(await pool.acquire(DB), DB)
    assert traces.one(WAIT).start_time <= seen[0] + 1_000_000


@pytest.mark.parametrize('bare', [True, False])
@pytest.mark.parametrize('background', [True, False])
async def test_no_span_for_idle_hits(front: Front, traces: Traces, bare: bool, background: bool) -> None:
    pool = pool_of(front, front.manager(bare=bare), traces, background_collector=background)
    async with pool.connection(DB):
        pass
    traces.clear()

    with traces.caller():
        for _ in range(3):
            async with pool.connection(DB):
                pass
            await pool.release(await pool.acquire(DB), DB)
        await pool.release(await pool.acquire(DB, timeout=0), DB)
    assert pool.stats().acquires['hit'] == 7
    assert traces.names == []


async def test_root_without_a_caller(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces)
    async with pool.connection(DB):
        pass
    assert [parent_of(span) for span in traces.ended] == [None, None]


async def test_wait_is_linked_to_who_released_and_who_created(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, max_size=1)

    async def use(name: str, leave: Any) -> int:
        with traces.caller(name) as caller:
            conn = await pool.acquire(DB)
            await leave.passed()
            await pool.release(conn, DB)
            return id_of(caller)

    leave = [front.gate() for _ in range(3)]
    users = []
    for position, gate in enumerate(leave):
        users.append(front.spawn(use(f'caller {position}', gate)))
        await front.until(lambda: pool.stats().used == 1)
        await front.waiting(pool, position)
    for gate in leave:
        gate.open()
    first, second, third = [await user for user in users]

    created = id_of(traces.one('create orders'))
    waits = {parent_of(span): span for span in traces.named(WAIT)}
    assert links_of(waits[second]) == {'released_by': first, 'created_by': created}
    assert links_of(waits[third]) == {'released_by': second, 'created_by': created}
    assert [attributes_of(waits[each])['gcpool.waiters_ahead'] for each in (second, third)] == [0, 1]
    assert {attributes_of(waits[each])['gcpool.result'] for each in (second, third)} == {'waited'}


async def test_evicted_is_disposed_of_in_a_trace_of_its_own(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, total_max_size=1)
    async with pool.connection('db1:1'):
        pass
    with traces.caller() as caller:
        async with pool.connection('db2:2'):
            pass
    dispose = traces.one('dispose orders')
    assert parent_of(dispose) is None
    assert trace_of(dispose) != trace_of(caller)
    assert links_of(dispose) == {'caller': id_of(caller)}
    assert attributes_of(dispose) == {**WHERE, 'gcpool.endpoint': 'db1:1', 'server.address': 'db1', 'server.port': 1}
    assert status_of(dispose) == ('UNSET', None)


async def test_disposal_on_release(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces)
    manager.on_release.does(error(Odd))
    with traces.caller() as caller, pytest.raises(Odd):
        await pool.release(await pool.acquire(DB), DB)
    dispose = traces.one('dispose orders')
    if isinstance(front, ThreadsFront):  # in the caller's own thread
        assert (parent_of(dispose), links_of(dispose)) == (id_of(caller), {})
    else:  # in a task, that goes on if the caller is cancelled
        assert (parent_of(dispose), links_of(dispose)) == (None, {'caller': id_of(caller)})


async def test_disposal_by_the_collector_has_no_caller_to_link_to(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, background_collector=True, max_lifetime=0.01, idle_timeout=0.01)
    async with pool.connection(DB):
        pass
    await front.until(lambda: pool.stats().size == 0)
    await front.until(lambda: traces.named('dispose orders'))
    dispose = traces.one('dispose orders')
    assert (parent_of(dispose), links_of(dispose)) == (None, {})


async def test_dead_connection_is_no_error_of_the_check(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces)
    async with pool.connection(DB):
        pass
    traces.clear()
    manager.check_aliveness.does(slow(0.02, dead()))
    with traces.caller() as caller:
        async with pool.connection(DB):
            pass

    check, told = traces.one('check_aliveness orders'), traces.one('on_connection_dead orders')
    assert status_of(check) == status_of(told) == ('UNSET', None)
    assert attributes_of(check) == {**WHERE, 'gcpool.outcome': 'dead'}
    assert attributes_of(told) == WHERE
    assert parent_of(check) == parent_of(told) == parent_of(traces.one('create orders')) == id_of(caller)
    assert check.end_time - check.start_time >= 19_000_000  # type: ignore[operator]  # though it was started afterwards
    assert attributes_of(traces.one(WAIT))['gcpool.result'] == 'created'


@pytest.mark.parametrize('tracing', ['lifecycle', 'all'])
async def test_healthy_check_after_a_wait_has_a_span_with_all_only(front: Front, traces: Traces, tracing: str) -> None:
    """Under contention each acquire would have two."""
    pool = pool_of(front, front.manager(), traces, max_size=1, tracing=tracing)
    conn = await pool.acquire(DB)
    waiter = (await front.line_up(pool, DB, 1))[0]
    await pool.release(conn, DB)
    await pool.release(await waiter, DB)
    assert traces.names == ['create orders', WAIT, *['check_aliveness orders'] * (tracing == 'all'), WAIT]


async def test_dead_connection_found_after_a_wait(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, max_size=1)
    conn = await pool.acquire(DB)
    waiter = (await front.line_up(pool, DB, 1))[0]
    traces.clear()
    manager.check_aliveness.does(dead())
    await pool.release(conn, DB)
    await pool.release(await waiter, DB)
    check = traces.one('check_aliveness orders')
    assert attributes_of(check) == {**WHERE, 'gcpool.outcome': 'dead'}
    assert status_of(check) == ('UNSET', None)
    assert traces.names.count('check_aliveness orders') == 1


@pytest.mark.parametrize(
    'arguments, label',
    [
        ({'endpoint_label': lambda endpoint: f'shard of {endpoint[1]}'}, 'shard of 5432'),
        ({'endpoint_labels': 0}, '_other'),
        ({'endpoint_labels': 1}, 'db.example.org:5432'),
    ],
    ids=['function', 'no labels', 'default'],
)
async def test_label_of_the_endpoint(front: Front, traces: Traces, arguments: dict[str, Any], label: str) -> None:
    pool = pool_of(front, front.manager(), traces, **arguments)
    async with pool.connection(('db.example.org', 5432)):
        pass
    for span in traces.ended:
        assert attributes_of(span)['gcpool.endpoint'] == label
        assert attributes_of(span)['server.address'] == 'db.example.org'


async def test_label_function_that_raises(front: Front, traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    def label(endpoint: object) -> str:
        raise Odd(f'secret {endpoint}')

    pool = pool_of(front, front.manager(), traces, endpoint_label=label)
    async with pool.connection(DB):
        pass
    expected = {key: value for key, value in WHERE.items() if key != 'gcpool.endpoint'}
    assert attributes_of(traces.one('create orders')) == expected
    (record,) = caplog.records
    assert 'secret' not in record.getMessage()


async def test_endpoint_with_credentials_is_shown_by_its_kind(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces)
    async with pool.connection('password=secret dbname=orders'):
        pass
    assert 'secret' not in str([attributes_of(span) for span in traces.ended])
    assert 'gcpool.endpoint' in attributes_of(traces.one(WAIT))


# --- how each can fail ---


@pytest.mark.parametrize(
    'hook, names',
    [
        ('create', ['create orders', WAIT]),
        ('check_aliveness', ['check_aliveness orders', WAIT]),
        ('on_acquire', ['on_acquire orders', WAIT]),
        ('on_release', ['on_release orders']),
        ('on_connection_dead', ['on_connection_dead orders']),
        ('dispose', ['dispose orders']),
    ],
)
@pytest.mark.parametrize('fresh', [True, False])
async def test_hook_that_raises(front: Front, traces: Traces, hook: str, names: list[str], fresh: bool) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces)
    if hook != 'create' and not (fresh and hook in ('on_acquire', 'on_release')):
        async with pool.connection(DB):
            pass
        traces.clear()
    if hook == 'on_connection_dead':
        manager.check_aliveness.does(dead())
    elif hook == 'dispose':
        manager.on_release.does(error(ValueError))
    getattr(manager, hook).does(error(Odd))

    with traces.caller() as caller:
        try:
            async with pool.connection(DB):
                pass
        except (Odd, ValueError):
            pass
    failed = [span for span in traces.ended if status_of(span) == ('ERROR', ODD)]
    assert [span.name for span in failed] == names
    for span in failed:
        if hook != 'dispose':
            assert parent_of(span) == id_of(caller)


async def test_hook_that_raises_has_no_span_without_a_callers(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces)
    manager.on_release.does(error(Odd))
    with pytest.raises(Odd):
        await pool.release(await pool.acquire(DB), DB)
    assert not traces.named('on_release orders')


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire'])
async def test_hook_that_takes_too_long(front: Front, traces: Traces, hook: str) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces)
    if hook != 'create':
        async with pool.connection(DB):
            pass
        traces.clear()
    getattr(manager, hook).does(slow(0.05, honours_timeout=True))
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire(DB, timeout=0.02)
    assert status_of(traces.one(WAIT)) == ('ERROR', 'timeout')
    assert attributes_of(traces.one(WAIT))['gcpool.result'] == 'timeout'
    if hook != 'on_acquire':
        assert status_of(traces.one(f'{hook} orders')) == ('ERROR', 'timeout')


async def test_endpoint_that_is_unavailable(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, breaker_threshold=1, connect_retry=Retry(60, 60))
    manager.create.does(error(OSError()))
    with pytest.raises(OSError):
        await pool.acquire(DB, timeout=0)  # without another try
    traces.clear()
    with pytest.raises(EndpointUnavailableError):
        await pool.acquire(DB)
    wait = traces.one(WAIT)
    assert status_of(wait) == ('ERROR', 'gcp.exceptions.EndpointUnavailableError')
    assert attributes_of(wait)['gcpool.result'] == 'rejected'
    assert attributes_of(wait)['gcpool.blocked_by'] == 'breaker'


async def test_endpoint_that_is_suspended(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces)
    await pool.suspend(DB)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire(DB, timeout=0.01)
    assert attributes_of(traces.one(WAIT))['gcpool.blocked_by'] == 'suspended'
    traces.clear()
    await pool.suspend(DB, mode='raise')
    with pytest.raises(PoolSuspendedError):
        await pool.acquire(DB)
    wait = attributes_of(traces.one(WAIT))
    assert (wait['gcpool.result'], wait['gcpool.blocked_by']) == ('rejected', 'suspended')
    pool.resume(DB)


@pytest.mark.parametrize(
    ('limits', 'held', 'block'),
    [
        ({'max_size': 1}, [DB], 'endpoint cap'),
        ({'max_size': 1, 'total_max_size': 1}, [('other', 1)], 'total cap'),
    ],
)
async def test_wait_says_which_cap_it_waited_for(
    front: Front, traces: Traces, limits: dict[str, Any], held: list[Any], block: str
) -> None:
    pool = pool_of(front, front.manager(), traces, **limits)
    conns = [await pool.acquire(endpoint) for endpoint in held]
    traces.clear()
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire(DB, timeout=0.02)
    assert attributes_of(traces.one(WAIT))['gcpool.blocked_by'] == block
    for conn, endpoint in zip(conns, held, strict=True):
        await pool.release(conn, endpoint)


async def test_wait_says_that_a_retry_was_not_yet_due(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, connect_retry=Retry(initial=30.0, maximum=60.0))
    manager.create.does(error(OSError()))
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire(DB, timeout=0.05)
    assert attributes_of(traces.one(WAIT))['gcpool.blocked_by'] == 'retry delay'


async def test_wait_that_ends_well_says_what_held_it_up(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, max_size=1)
    held = await pool.acquire(DB)
    assert 'gcpool.blocked_by' not in attributes_of(traces.one(WAIT))
    traces.clear()
    (waiter,) = await front.line_up(pool, DB, 1)
    await pool.release(held, DB)
    await pool.release(await waiter, DB)
    wait = attributes_of(traces.one(WAIT))
    assert (wait['gcpool.result'], wait['gcpool.blocked_by']) == ('waited', 'endpoint cap')


async def test_wait_for_a_limit_of_connects(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, max_size=2, max_connecting=1)
    manager.create.does(never(ok()))
    first = front.spawn(pool.acquire(DB))
    await front.until(lambda: manager.create.running)
    (second,) = await front.line_up(pool, DB, 1)
    manager.unblock()
    manager.create.does(ok())
    for actor in (first, second):
        await pool.release(await actor, DB)
    assert [attributes_of(span).get('gcpool.blocked_by') for span in traces.named(WAIT)] == [None, 'connect limit']


async def test_acquire_that_was_served_after_a_retry(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, connect_retry=Retry(initial=0.01, maximum=0.01))
    manager.create.does(error(OSError()), ok())
    async with pool.connection(DB):
        pass
    wait = attributes_of(traces.one(WAIT))
    assert (wait['gcpool.result'], wait['gcpool.blocked_by']) == ('waited', 'retry delay')


async def test_wait_that_times_out(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, max_size=1)
    async with pool.connection(DB):
        traces.clear()
        with traces.caller() as caller, pytest.raises(AcquireTimeoutError):
            await pool.acquire(DB, timeout=0.02)
    wait = traces.one(WAIT)
    assert status_of(wait) == ('ERROR', 'timeout')
    assert attributes_of(wait) == {
        **WHERE,
        'gcpool.result': 'timeout',
        'gcpool.waiters_ahead': 0,
        'gcpool.blocked_by': 'endpoint cap',
        'error.type': 'timeout',
    }
    assert (parent_of(wait), links_of(wait)) == (id_of(caller), {})
    assert wait.end_time - wait.start_time >= 19_000_000  # type: ignore[operator]


async def test_pool_that_is_closed_meanwhile(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, max_size=1)
    manager.create.does(never())
    creator = front.spawn(pool.acquire(DB))
    await front.until(lambda: manager.create.running)
    waiter = (await front.line_up(pool, DB, 1))[0]
    await pool.close(timeout=0)
    with pytest.raises(ConnectionPoolClosedError):
        await waiter
    assert status_of(traces.one(WAIT)) == ('ERROR', 'pool_closed')
    assert attributes_of(traces.one(WAIT))['gcpool.result'] == 'error'
    traces.clear()

    manager.unblock()
    with pytest.raises(ConnectionPoolClosedError):
        await creator
    assert status_of(traces.one('create orders')) == ('UNSET', None)
    assert status_of(traces.one(WAIT)) == ('ERROR', 'pool_closed')


async def test_signal_in_a_hook_is_a_cancellation(front: Front, traces: Traces) -> None:
    class Signal(BaseException):
        pass

    manager = front.manager()
    pool = pool_of(front, manager, traces)
    manager.create.does(error(Signal))
    with pytest.raises(Signal):
        await pool.acquire(DB)
    assert [status_of(span) for span in traces.ended] == [('ERROR', 'cancelled')] * 2


# --- 'all' ---


@pytest.mark.parametrize('recording', [True, False])
async def test_all_has_spans_of_the_hooks_at_hits(front: Front, traces: Traces, recording: bool) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, tracing='all')
    async with pool.connection(DB):
        pass
    assert traces.names == ['create orders', WAIT]  # no caller's span

    traces.clear()
    if recording:
        with traces.caller() as caller:
            async with pool.connection(DB):
                pass
        assert traces.names == ['check_aliveness orders', 'on_acquire orders', 'on_release orders']
        assert {parent_of(span) for span in traces.ended} == {id_of(caller)}
        assert [attributes_of(span) for span in traces.ended] == [WHERE] * 3
    else:
        await pool.release(await pool.acquire(DB), DB)
        assert traces.names == ['check_aliveness orders']
    assert pool.stats().acquires['hit'] == 1


async def test_all_has_no_span_where_no_hook_is(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(bare=True), traces, tracing='all')
    async with pool.connection(DB):
        pass
    traces.clear()
    with traces.caller():
        async with pool.connection(DB):
            pass
    assert traces.names == []


@pytest.mark.parametrize('hook', ['on_acquire', 'on_release'])
async def test_all_shows_hooks_that_raise(front: Front, traces: Traces, hook: str) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, tracing='all')
    async with pool.connection(DB):
        pass
    getattr(manager, hook).does(error(Odd))
    traces.clear()
    with traces.caller(), pytest.raises(Odd):
        async with pool.connection(DB):
            pass
    assert status_of(traces.one(f'{hook} orders')) == ('ERROR', ODD)


# --- contexts ---


@pytest.mark.parametrize('tracing', ['lifecycle', 'all'])
async def test_span_is_current_within_its_hook_and_only_there(front: Front, traces: Traces, tracing: str) -> None:
    manager = front.manager()
    seen: dict[str, list[Any]] = {}

    def look(hook: str, result: Any) -> Any:
        def see(endpoint: Any, connection: Any) -> Any:
            seen.setdefault(hook, []).append(get_current_span())
            return result

        return calling(see)

    for hook in ('create', 'dispose', 'on_acquire', 'on_release', 'on_connection_dead'):
        getattr(manager, hook).does(look(hook, None))
    pool = pool_of(front, manager, traces, max_size=1, tracing=tracing)
    with traces.caller() as caller:

        async def use() -> None:
            before, raw = otel.get_current(), dict(contextvars.copy_context())
            async with pool.connection(DB):
                assert otel.get_current() is before
            assert otel.get_current() is before
            assert dict(contextvars.copy_context()) == raw

        await use()
        manager.check_aliveness.does(look('check_aliveness', True))
        await use()
        manager.check_aliveness.does(look('check_aliveness', False))
        await use()
    await pool.close()

    for hook, spans in seen.items():
        made = {id_of(span) for span in traces.named(f'{hook} orders')}
        if tracing == 'all' or hook in ('create', 'dispose', 'on_connection_dead'):
            assert {id_of(span) for span in spans} == made, hook
        else:
            assert {id_of(span) for span in spans} == {id_of(caller)}, hook
            assert len(made) == (hook == 'check_aliveness'), hook  # the one that found it dead, afterwards


async def test_context_is_restored_after_failures(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, tracing='all')
    with traces.caller():
        before = otel.get_current()
        for hook in ('create', 'check_aliveness', 'on_acquire', 'on_release'):
            await pool.release(await pool.acquire(DB), DB)
            if hook == 'create':
                manager.check_aliveness.does(dead())
            getattr(manager, hook).does(error(Odd))
            with pytest.raises(Odd):
                await pool.release(await pool.acquire(DB), DB)
            assert otel.get_current() is before
            for each in (manager.create, manager.check_aliveness, manager.on_acquire, manager.on_release):
                each.does(calling(lambda endpoint, connection: None if connection is None else True))


async def test_baggage_that_a_hook_leaves_behind_is_not_the_callers(front: Front, traces: Traces) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces)

    def attach(endpoint: Any, connection: Any) -> None:
        otel.attach(otel.set_value('key', 'value'))

    manager.create.does(calling(attach))
    before = otel.get_current()
    async with pool.connection(DB):
        assert otel.get_current() is before


async def test_exporter_that_uses_a_pool_is_not_traced(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, tracing='all', max_size=1, total_max_size=1)
    token = otel.attach(otel.set_value(otel._SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        async with pool.connection('a'):
            pass
        async with pool.connection('b'):
            pass
    finally:
        otel.detach(token)
    assert pool.stats().closed['evicted'] == 1
    assert traces.names == []


def test_watchdog_ends_the_span_of_a_disposal_that_hangs(threads_front: ThreadsFront, traces: Traces) -> None:
    async def body() -> None:
        manager = threads_front.manager()
        pool = pool_of(threads_front, manager, traces, dispose_timeout=0.06, max_size=1, total_max_size=1)
        spans: list[Any] = []
        async with pool.connection('a'):
            pass
        manager.dispose.does(never())
        async with pool.connection('b'):
            await threads_front.until(lambda: traces.named('dispose orders'))
            assert status_of(traces.one('dispose orders')) == ('ERROR', 'timeout')
            manager.dispose.does(calling(lambda endpoint, connection: spans.append(get_current_span())))
            manager.dispose.unblock()
        async with pool.connection('c'):
            pass
        await threads_front.until(lambda: len(traces.named('dispose orders')) >= 2)
        hung, other = traces.named('dispose orders')  # not once more when it came back after all
        assert [id_of(span) for span in spans] == [id_of(other)]

    threads_front.run(body())


# --- asyncio ---


def test_tasks(asyncio_front: AsyncioFront, traces: Traces) -> None:
    async def body() -> None:
        pool = pool_of(asyncio_front, asyncio_front.manager(), traces, max_size=1)

        async def use() -> None:
            async with pool.connection(DB):
                await asyncio.sleep(0)

        with traces.caller() as caller:
            before = otel.get_current()
            await asyncio.gather(*(use() for _ in range(4)))
            task = asyncio.create_task(pool.acquire(DB))
            await pool.release(await task, DB)
            assert otel.get_current() is before
        waits = traces.named(WAIT)
        assert len(waits) == 4 and {parent_of(span) for span in waits} == {id_of(caller)}
        assert [links_of(span).get('released_by') for span in waits] == [None] + [id_of(caller)] * 3

    asyncio_front.run(body())


@pytest.mark.parametrize('phase', ['create', 'waiting', 'check_aliveness'])
def test_cancelled_task(
    asyncio_front: AsyncioFront,
    traces: Traces,
    phase: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> None:
        manager = asyncio_front.manager()
        pool = pool_of(asyncio_front, manager, traces, max_size=1)
        held = None
        if phase == 'waiting':
            held = await pool.acquire(DB)
        elif phase == 'check_aliveness':
            await pool.release(await pool.acquire(DB), DB)
            manager.check_aliveness.does(never())
        else:
            manager.create.does(never())
        traces.clear()
        with traces.caller() as caller:
            task = asyncio.create_task(pool.acquire(DB))
        await asyncio_front.until(
            lambda: pool.stats().waiting if phase == 'waiting' else getattr(manager, phase).running
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert status_of(traces.one(WAIT)) == ('ERROR', 'cancelled')
        assert attributes_of(traces.one(WAIT))['gcpool.result'] == 'cancelled'
        if phase != 'waiting':
            assert status_of(traces.one(f'{phase} orders')) == ('ERROR', 'cancelled')
        assert {parent_of(span) for span in traces.ended if 'dispose' not in span.name} == {id_of(caller)}
        if held is not None:
            await pool.release(held, DB)

    asyncio_front.run(body())
    assert not [record for record in caplog.records if record.name.startswith('opentelemetry')]


def test_acquire_that_is_closed_from_another_context(
    asyncio_front: AsyncioFront,
    traces: Traces,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its spans are still its caller's, and no error about tokens is logged."""

    async def body() -> None:
        manager = asyncio_front.manager()
        pool = pool_of(asyncio_front, manager, traces, max_size=1)
        manager.create.does(never())
        with traces.caller() as caller:
            acquire = pool.acquire(DB)
            mine = contextvars.copy_context()
            mine.run(acquire.send, None)
        with traces.caller('another caller'):
            before = otel.get_current()
            acquire.close()
            assert otel.get_current() is before
        assert {parent_of(span) for span in traces.ended} == {id_of(caller)}
        assert {status_of(span) for span in traces.ended} == {('ERROR', 'cancelled')}
        assert pool.stats().size == 0

    asyncio_front.run(body())
    assert not [record for record in caplog.records if record.name.startswith('opentelemetry')]


def test_dropped_acquire_is_silent(asyncio_front: AsyncioFront, traces: Traces, caplog: Any) -> None:
    async def body() -> None:
        manager = asyncio_front.manager()
        pool = pool_of(asyncio_front, manager, traces, max_size=1)
        held = await pool.acquire(DB)

        acquire = pool.acquire(DB)
        acquire.send(None)
        assert pool.stats().waiting == 1
        del acquire
        gc.collect()
        await asyncio_front.waiting(pool, 0)
        await pool.release(held, DB)

    asyncio_front.run(body())
    assert not [record for record in caplog.records if record.name.startswith('opentelemetry')]


# --- tracers in trouble ---


class Broken:
    """A tracer provider whose tracer raises, from a given moment on."""

    def __init__(self, traces: Traces, *broken: str) -> None:
        self._traces = traces
        self.broken = broken

    def get_tracer(self, *args: Any) -> Any:
        self._tracer = self._traces.provider.get_tracer('gcpool')
        return self

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        if 'start_span' in self.broken:
            raise Odd('no span today')
        span = self._tracer.start_span(*args, **kwargs)
        for name in self.broken:
            setattr(span, name, self.fail)
        return span

    def fail(self, *args: Any, **kwargs: Any) -> Any:
        raise Odd('no span today')


@pytest.mark.parametrize('broken', ['start_span', 'end', 'set_attribute', 'get_span_context', 'is_recording'])
async def test_tracer_that_raises_changes_nothing(
    front: Front,
    traces: Traces,
    broken: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = front.manager()
    pool = pool_of(front, manager, traces, tracer_provider=Broken(traces, broken), max_size=1, tracing='all')
    before = otel.get_current()
    with traces.caller():
        for _ in range(3):
            async with pool.connection(DB):
                pass
        manager.check_aliveness.does(dead())
        async with pool.connection(DB):
            manager.check_aliveness.does(ok())
            waiter = (await front.line_up(pool, DB, 1))[0]
        await pool.release(await waiter, DB)
        manager.check_aliveness.does(error(ValueError))
        with pytest.raises(ValueError):
            await pool.acquire(DB)
    assert otel.get_current() is before
    acquires = {result: count for result, count in pool.stats().acquires.items() if count}
    assert acquires == {'hit': 2, 'created': 2, 'waited': 1, 'error': 1}
    assert errors_of(pool.raw if isinstance(front, ThreadsFront) else pool).count >= 3
    told = [record.getMessage() for record in caplog.records if record.name == 'gcp.observe']
    assert len(told) == 1 and told[0].startswith('orders: spans failed: Odd')


async def test_endpoint_that_raises_is_nowhere(
    front: Front,
    traces: Traces,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Riddle:
        @property
        def host(self) -> str:
            raise Odd('secret')

    pool = pool_of(front, front.manager(), traces)
    async with pool.connection(Riddle()):
        pass
    assert attributes_of(traces.one('create orders')) == {'db.client.connection.pool.name': 'orders'}
    assert len(traces.ended) == 2
    (record,) = caplog.records
    assert 'secret' not in record.getMessage()


async def test_context_key_of_suppression_may_go(front: Front, traces: Traces, monkeypatch: Any) -> None:
    monkeypatch.setattr('gcp.observe.spans.SUPPRESS_KEY', None)
    pool = pool_of(front, front.manager(), traces)
    async with pool.connection(DB):
        pass
    assert traces.names == ['create orders', WAIT]


async def test_failures_are_told_within_their_spans(
    front: Front,
    traces: Traces,
    caplog: pytest.LogCaptureFixture,
) -> None:
    current: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            current.append(id_of(get_current_span()))

    handler = Handler()
    logging.getLogger('gcp').addHandler(handler)
    try:
        manager = front.manager()
        pool = pool_of(front, manager, traces)
        manager.create.does(error(Odd('refused')))
        with caplog.at_level(logging.INFO, 'gcp'), pytest.raises(Odd):
            await pool.acquire(('db', 1))
    finally:
        logging.getLogger('gcp').removeHandler(handler)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ('gcp', "orders: create of a connection to ('db', 1): Odd('refused')")
    ]
    assert current == [id_of(traces.one('create orders'))]


@pytest.mark.parametrize('hook', ['dispose', 'on_connection_dead', 'on_release'])
async def test_failures_that_reach_no_caller_are_logged_with_pool_and_endpoint(
    front: Front,
    hook: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = front.manager()
    pool = front.pool(manager, name='orders', tracer_provider=None)
    async with pool.connection('db'):
        pass
    if hook == 'on_release':
        with pytest.raises(KeyError):
            async with pool.connection('db'):
                manager.on_release.does(error(Odd), ok())
                raise KeyError
    else:
        getattr(manager, hook).does(error(Odd), ok())
        manager.check_aliveness.does(dead())
        async with pool.connection('db'):
            pass
    await front.until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.name in ('gcp.threading', 'gcp.asyncio') and record.levelno == logging.ERROR
    assert record.getMessage().startswith('orders: ') and "'db'" in record.getMessage()
    assert '\n' not in record.getMessage()


# --- addresses ---


class LabelEntry:
    host = 'db'
    port = 5432


@pytest.mark.parametrize(
    'endpoint, address',
    [
        (('db', 5432), ('db', 5432)),
        (['::1', 5432], ('::1', 5432)),
        (('db', 5432, 'user', 'secret'), ('db', 5432)),
        ('db:5432', ('db', 5432)),
        ('[::1]:5432', ('::1', 5432)),
        ('::1', ('::1', None)),
        ('localhost', ('localhost', None)),
        ('db.example.org', ('db.example.org', None)),
        ('https://example.org', ('example.org', 443)),
        ('http://example.org:8080/', ('example.org', 8080)),
        ('http://[fe80::1%25eth0]', ('fe80::1%eth0', 80)),
        ('http://[fe80::1%eth0]', ('fe80::1%eth0', 80)),
        ('/run/db.sock', ('/run/db.sock', None)),
        (LabelEntry(), ('db', 5432)),
        ('orders', (None, None)),
        ('user:secret@db', (None, None)),
        ('postgresql://user:secret@db/orders', (None, None)),
        ('https://user:secret@example.org', (None, None)),
        ('host=db password=secret', (None, None)),
        ('/db?password=secret', (None, None)),
        ('user:secret', (None, None)),
        ('db:99999', (None, None)),
        (('user@db', 5432), (None, None)),
        (('db', True), (None, None)),
        (('db', 0), (None, None)),
        (('db',), (None, None)),
        (7, (None, None)),
        (None, (None, None)),
    ],
)
def test_address_of_an_endpoint(endpoint: Any, address: Any) -> None:
    assert address_of(endpoint) == address


# --- leaks ---


def test_no_growth() -> None:
    manager = FakeManager()
    provider = TracerProvider(shutdown_on_exit=False)
    pool = ConnectionPool(manager, name='orders', tracer_provider=provider, tracing='all', registry=None)

    def churn(times: int) -> None:
        for number in range(times):
            manager.on_release.does(error(Odd) if number % 2 else calling(lambda endpoint, connection: None))
            try:
                with pool.connection((f'db{number % 7}', 1 + number)):
                    pass
            except Odd:
                pass
            manager._log.clear()

    churn(300)
    gc.collect()
    tracemalloc.start()
    try:
        churn(1000)  # until all that the pool keeps was allocated while this counts
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        churn(1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    pool.close()
    assert grown < 20_000, grown


async def test_a_connect_in_the_background_belongs_to_the_trace_of_its_acquire(front: Front, traces: Traces) -> None:
    pool = pool_of(front, front.manager(), traces, connect_workers=1)
    with traces.caller() as caller:
        async with pool.connection(DB):
            pass
    assert parent_of(traces.one('create orders')) == parent_of(traces.one(WAIT)) == id_of(caller)
    assert attributes_of(traces.one(WAIT))['gcpool.result'] == 'created'


async def test_a_check_in_the_background_that_finds_a_connection_dead_is_a_trace_of_its_own(
    front: Front,
    traces: Traces,
) -> None:
    manager = front.manager()
    manager.keepalive.does(dead())
    pool = pool_of(front, manager, traces, keepalive_interval=0.02)
    with traces.caller():
        async with pool.connection(DB):
            pass
    await front.until(lambda: traces.named('keepalive orders'))
    assert parent_of(traces.one('keepalive orders')) is None
