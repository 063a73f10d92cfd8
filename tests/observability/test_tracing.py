"""Guarantee 15 (docs/guarantees.md): which provider records spans: an injected one, the global one once it is set,
or none, at no cost."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fronts import Front
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from traces import Traces, errors_of, forget_tracer_provider, globals_of_our_own, id_of, parent_of

from gcp import AcquireTimeoutError
from gcp.testing import BareFakeManager, FakeManager, calling, error, ok
from gcp.threading import ConnectionPool

NAMES = ['create orders', 'wait_for_connection orders']


@pytest.fixture(autouse=True)
def own_globals() -> Iterator[None]:
    with globals_of_our_own():
        yield


def pool_of(front: Front, **arguments: Any) -> Any:
    return front.pool(front.manager(bare=True), name='orders', registry=None, meter_provider=None, **arguments)


async def use(pool: Any, endpoint: str = 'db') -> None:
    async with pool.connection(endpoint):
        pass


# --- who ---


async def test_injected_provider_records_from_the_first_acquire(front: Front) -> None:
    traces = Traces()
    await use(pool_of(front, tracer_provider=traces.provider))
    assert traces.names == NAMES


async def test_global_provider_that_is_set_later(front: Front) -> None:
    pool = pool_of(front)
    await use(pool, 'a')
    assert pool._core.tracer is None

    traces = Traces()
    trace.set_tracer_provider(traces.provider)
    await use(pool, 'a')  # a hit looks at nothing
    assert pool._core.tracer is None
    await use(pool, 'b')
    assert traces.names == NAMES


async def test_global_provider_that_was_there_before(front: Front) -> None:
    traces = Traces()
    trace.set_tracer_provider(traces.provider)
    await use(pool_of(front))
    assert traces.names == NAMES


async def test_global_provider_that_is_replaced(front: Front) -> None:
    pool = pool_of(front)
    for number in range(3):
        traces = Traces()
        trace.set_tracer_provider(traces.provider)
        await use(pool, f'db{number}')
        assert traces.names == NAMES
        forget_tracer_provider()
    await use(pool, 'no provider')
    assert pool._core.tracer is None and traces.names == NAMES


async def test_provider_that_goes_in_the_middle_of_a_step(front: Front) -> None:
    traces = Traces()
    trace.set_tracer_provider(traces.provider)
    manager = front.manager(bare=True)
    pool = front.pool(manager, name='orders', registry=None)
    gate = front.gate()

    async def create(endpoint: Any, connection: Any) -> None:
        await gate.passed()

    manager.create.does(calling(front.hook(create)))
    actor = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    forget_tracer_provider()
    other = front.spawn(pool.acquire('b'))
    await front.until(lambda: manager.create.running == 2)
    assert pool._core.tracer is None
    gate.open()
    for endpoint, each in (('a', actor), ('b', other)):
        await pool.release(await each, endpoint)
    assert traces.names == ['create orders']


async def test_stand_in_given_as_a_provider_is_the_global_one(front: Front) -> None:
    pool = pool_of(front, tracer_provider=trace.get_tracer_provider())
    await use(pool, 'a')
    traces = Traces()
    trace.set_tracer_provider(traces.provider)
    await use(pool, 'b')
    assert traces.names == NAMES


@pytest.mark.parametrize('provider', [None, trace.NoOpTracerProvider()])
async def test_without_a_provider_no_span_is_made(front: Front, provider: Any) -> None:
    traces = Traces()
    trace.set_tracer_provider(traces.provider)
    pool = pool_of(front, tracer_provider=provider)
    await use(pool)
    assert pool._core.tracer is None and traces.names == []


async def test_sdk_that_is_disabled(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('OTEL_SDK_DISABLED', 'true')
    pool = pool_of(front, tracer_provider=TracerProvider(shutdown_on_exit=False))
    await use(pool)
    assert pool._core.tracer is None


async def test_three_providers(front: Front) -> None:
    one, two, ours = Traces(), Traces(), Traces()
    trace.set_tracer_provider(ours.provider)
    pools = [pool_of(front, tracer_provider=each.provider) for each in (one, two)] + [pool_of(front)]
    with ours.caller() as caller:
        for pool in pools:
            await use(pool)
    for each in one, two, ours:
        assert each.names == NAMES
        assert {parent_of(span) for span in each.ended} == {id_of(caller)}  # a trace may cross providers


async def test_two_pools_of_one_provider(front: Front) -> None:
    traces = Traces()
    one = front.pool(front.manager(), name='one', tracer_provider=traces.provider, registry=None)
    two = front.pool(front.manager(), name='two', tracer_provider=traces.provider, registry=None)
    await use(one)
    await use(two)
    assert traces.names == ['create one', 'wait_for_connection one', 'create two', 'wait_for_connection two']


async def test_provider_that_raises(front: Front) -> None:
    class Broken:
        def get_tracer(self, *args: Any) -> Any:
            raise RuntimeError('no tracer today')

    pool = pool_of(front, tracer_provider=Broken())
    await use(pool)
    assert errors_of(pool).count == 1


async def test_provider_that_cannot_be_loaded_is_asked_for_once(
    front: Front,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv('OTEL_PYTHON_TRACER_PROVIDER', 'no such provider')
    pool = pool_of(front)
    for number in range(5):
        await use(pool, f'db{number}')
    assert errors_of(pool).count == 1
    assert len(caplog.records) == 2  # the API's word, and ours


def test_hand_off_while_the_tracer_is_asked() -> None:
    """Seen in the stress with spans: a waiter that was served while its tracer looked at its context was told to take a
    connection that it had not received, and took the pool for closed."""
    waits = []

    class Tracer:
        def caller(self) -> object:
            pool.release(conn, 'db')
            return self

        def current(self) -> object:
            return 'current'

        def start(self, hook: str, endpoint: object, origin: object) -> None:
            """Make no span."""

        def waited(self, acquire: Any, result: str, seconds: float, error: Any) -> None:
            waits.append((result, acquire.released_by, error))

    with ConnectionPool(FakeManager(), max_size=1, registry=None, tracer_provider=None) as pool:
        conn = pool.acquire('db')
        pool._core.tracer = Tracer()
        assert pool.acquire('db', timeout=5) is conn
        assert waits == [('waited', 'current', None)]
        pool._core.tracer = None
        pool.release(conn, 'db')


@pytest.mark.parametrize('where', ['current', 'caller', 'start', 'end', 'detach', 'waited', 'record_failed'])
@pytest.mark.parametrize('hook', ['on_release', 'create', 'nothing'])
def test_signal_within_the_tracer_costs_no_slot(where: str, hook: str) -> None:
    class Struck(BaseException):
        pass

    armed = [False]

    class Tracer:
        def __getattr__(self, name: str) -> Any:
            def called(*args: Any) -> object:
                if name == where and armed[0]:
                    armed[0] = False
                    raise Struck
                return name

            return called

    manager = FakeManager()
    with ConnectionPool(manager, max_size=1, total_max_size=1, registry=None, tracer_provider=None) as pool:
        pool._core.tracer = Tracer()
        for endpoint in 'ab' * 3:
            if hook != 'nothing':
                getattr(manager, hook).does(error(ValueError), ok())
            armed[0] = True
            try:
                with pool.connection(endpoint):
                    pass
            except (Struck, ValueError):
                pass
        armed[0] = False
        for each in manager.on_release, manager.create:
            each.does(ok())
        with pool.connection('c', timeout=5), pytest.raises(AcquireTimeoutError):
            pool.acquire('c', timeout=0)
        stats = pool.stats()
        assert stats.size == 1 and stats.used == 0
    assert len(manager.disposed) == len(manager.created)
    manager.check(total_max_size=1)


# --- the cost without a provider ---


def test_off_imports_nothing(script: Callable[..., Any]) -> None:
    script("""
        import sys
        from gcp.testing import FakeManager
        from gcp.threading import ConnectionPool

        for arguments in ({'tracing': 'off'}, {'tracer_provider': None}):
            pool = ConnectionPool(FakeManager(), meter_provider=None, registry=None, **arguments)
            with pool.connection('db'):
                pass
            assert pool._core.tracer is None
            pool.close()
        assert not [name for name in sys.modules if name.startswith('opentelemetry')]
    """).quietly()


@pytest.mark.parametrize('tracing', ['off', 'lifecycle'])
@pytest.mark.parametrize('bare', [True, False])
async def test_idle_hit_calls_nothing_of_opentelemetry(
    front: Front,
    tracing: str,
    bare: bool,
) -> None:
    pool = front.pool(
        front.manager(bare=bare), name='orders', tracing=tracing, registry=None, tracer_provider=Traces().provider
    )
    await use(pool)
    called: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if event == 'call' and ('/opentelemetry/' in path or path.endswith('spans.py')):
            called.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        await use(pool)
    finally:
        sys.setprofile(None)
    assert called == []


def test_tracer_keeps_no_pool_alive() -> None:
    traces = Traces()
    pool = ConnectionPool(BareFakeManager(), tracer_provider=traces.provider, registry=None, meter_provider=None)
    with pool.connection('db'):
        pass
    died = weakref.ref(pool)
    del pool
    gc.collect()
    assert died() is None


def best_of(times: int, work: Callable[[], None]) -> float:
    best = float('inf')
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def test_idle_hit_costs_no_more_with_a_provider() -> None:
    """The figure itself is a matter for quiet machines; here: that nothing was added that can be noticed."""
    traces = Traces()
    pools = [
        ConnectionPool(BareFakeManager(), tracer_provider=provider, registry=None, meter_provider=None)
        for provider in (None, traces.provider)
    ]

    def hits(pool: Any) -> None:
        for _ in range(2000):
            pool.release(pool.acquire('db'), 'db')

    ratios = []
    for pool in pools:
        hits(pool)
    for _ in range(5):
        plain, traced = (best_of(7, lambda pool=pool: hits(pool)) for pool in pools)  # type: ignore[misc]
        ratios.append(traced / plain)
    for pool in pools:
        pool.close()
    assert min(ratios) < 1.1, ratios
