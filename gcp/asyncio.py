"""The asyncio connection pool, the base class of its connection managers, and its leases."""

# It drives the machines in gcp._core. They decide what is to be done. Here it is done: awaiting, disposing, calling
# hooks. Read it beside gcp.threading, which differs in the awaiting. Idle hits do not come here: compiled code serves
# them.

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from gcp import observe, options
from gcp._core import TODO_DISPOSE, TODO_DONE, TODO_WAIT, Acquire, AsyncPool, FutureEvent, Job, Release, check_timeout
from gcp._core import AsyncLease as Lease
from gcp.background.tasks import Background, Operations
from gcp.connection import async_connection_of
from gcp.disposal import FORCE_GRACE, report, weakly
from gcp.disposal.deadline import Bounded, Started, wait_for, without_limit
from gcp.disposal.tasks import Collector, Disposer, DrainRequest, TimedOut, release_later
from gcp.holders.monitor import MonitoredPool
from gcp.inspection import Inspection
from gcp.limits import Limits, Retry
from gcp.listener import listener_thread
from gcp.managers import AsyncConnectionManager as BaseConnectionManager
from gcp.managers import ConnectionT, EndpointT, SyncConnectionManager

if TYPE_CHECKING:
    from gcp.protocols import MeterProvider, Registry, TracerProvider
    from gcp.stats import PoolStats

__all__ = ['BaseConnectionManager', 'ConnectionPool', 'ConnectionT', 'EndpointT', 'Lease']

logger = logging.getLogger(__name__)


class ConnectionPool(AsyncPool[EndpointT, ConnectionT], Operations[EndpointT], Inspection[EndpointT]):
    """A pool of connections to many endpoints, for tasks. It belongs to the event loop in which it is first used.

    :param connection_manager: creates, disposes of and checks connections
    :param acquire_timeout: how long an acquire without a time-out of its own may take, seconds; ``None``: no limit
    :param background_collector: dispose of expired connections in the background, not on each release
    :param dispose_batch_size: how many expired connections a release disposes of, at most; 0: about log2 of the pool's
                               size; of a large pool, as many as take a tenth of a millisecond
    :param dispose_timeout: how long a disposal may take, seconds; ``None``: no limit
    :param min_idle: idle connections of an endpoint that are kept for their whole life (its base)
    :param max_size: connections of one endpoint, at most
    :param idle_timeout: seconds after which an idle connection beyond the base is disposed of; ``None`` or ``inf``:
                         never
    :param max_lifetime: seconds after which any connection is disposed of; ``None`` or ``inf``: never
    :param total_max_size: connections of all endpoints together, at most
    :param lifetime_jitter: the largest part of a lifetime that is taken off at random when a connection is created, 0
                            to 1: connections that were created together do not expire together
    :param name: the pool's name; by default the manager's class and a number
    :param leak_threshold: seconds after which a connection that is still held counts as leaked; ``None`` or ``inf``:
                           never
    :param registry: the Prometheus registry that shows the pool; by default the global one; ``None``: none
    :param meter_provider: the OpenTelemetry meter provider; by default the global one; ``None``: none
    :param tracer_provider: the OpenTelemetry tracer provider; by default the global one, once it is set; ``None``: none
    :param tracing: what has spans: ``'lifecycle'``: waits, and hook calls of a connection's life; ``'all'``: also
                    `on_acquire` and `on_release`; ``'off'``: nothing
    :param endpoint_labels: how many endpoints have their own label in metrics; the others share ``_other``
    :param endpoint_label: makes an endpoint's label; by default it shows nothing that can carry credentials
    :param max_uses: how often a connection is used before it is disposed of; ``None``: without a limit
    :param keepalive_interval: seconds after which an idle connection that was neither used nor checked is checked in
                               the background; ``None``: never
    :param check_interval: `check_aliveness` is not called for a connection that was used or checked less than so many
                           seconds ago; ``None``: it is called at each acquire
    :param limits: the limits of single endpoints: a mapping from endpoints to `EndpointLimits`, or a function of an
                   endpoint that returns them, or ``None`` for the pool's
    :param refill: bring endpoints that were given to `warm_up` back to `min_idle` connections in the background
    :param connect_workers: how many connections are created at a time in the background; 0: callers of `acquire`
                            create them
    :param connect_timeout: how long one connect may take, seconds; ``None``: as long as its acquire, and in the
                            background without a limit
    :param max_connecting: connections of one endpoint that are created at a time, at most; ``None``: no limit
    :param max_connecting_total: connections of all endpoints that are created at a time, at most; ``None``: no limit
    :param connect_retry: try a failed connect again, with these delays, within the time-out of its acquire; ``None``:
                          a failed connect is the error of its acquire
    :param breaker_threshold: after so many failed connects of an endpoint in a row, acquires of it that find no idle
                              connection fail at once, until one connect succeeds; ``None``: never
    :param max_waiting: acquires of one endpoint that may wait at a time; one more fails at once; ``None``: no limit
    :param admission: ``'deadline'``: an acquire whose wait is expected to outlast its time-out fails at once
    :param track_holders: note at each acquire where it was called, for `holders`
    :param warn_after: log a warning when an acquire without a time limit has waited for so many seconds; ``None``: do
                       not
    :param reclaim_abandoned: have Python's garbage collector run when an acquire waits while the task of a holder is
                              done, or its thread has ended, at most every 9 s
    :param reserve: places of each endpoint that are only for acquires with a priority above 0
    :param reserve_timeout: an acquire without a priority that has waited for so many seconds may take one of those
                            places; ``None``: never
    :raises TypeError: for an argument that is unknown or has a wrong type
    :raises ValueError: for an argument out of range, or two that contradict each other
    """

    @options.declared
    def __init__(
        self,
        connection_manager: BaseConnectionManager[EndpointT, ConnectionT],
        *,
        acquire_timeout: float | None = None,
        background_collector: bool = False,
        dispose_batch_size: int = 0,
        dispose_timeout: float | None = None,
        min_idle: int = 1,
        max_size: int = 10,
        idle_timeout: float | None = 60.0,
        max_lifetime: float | None = 3600.0,
        total_max_size: int = 100,
        lifetime_jitter: float = 0.05,
        name: str | None = None,
        leak_threshold: float | None = None,
        registry: Registry | None = options.DEFAULT,
        meter_provider: MeterProvider | None = options.DEFAULT,
        tracer_provider: TracerProvider | None = options.DEFAULT,
        tracing: Literal['off', 'lifecycle', 'all'] = 'lifecycle',
        endpoint_labels: int = 20,
        endpoint_label: Callable[[EndpointT], str] | None = None,
        max_uses: int | None = None,
        keepalive_interval: float | None = None,
        check_interval: float | None = None,
        limits: Limits[EndpointT] | None = None,
        refill: bool = False,
        connect_workers: int = 0,
        connect_timeout: float | None = None,
        max_connecting: int | None = None,
        max_connecting_total: int | None = None,
        connect_retry: Retry | None = None,
        breaker_threshold: int | None = None,
        max_waiting: int | None = None,
        admission: Literal['deadline'] | None = None,
        track_holders: bool = True,
        warn_after: float | None = 30.0,
        reclaim_abandoned: bool = False,
        reserve: int = 0,
        reserve_timeout: float | None = 5.0,
    ) -> None:
        from gcp.stats import snapshot  # its dataclasses take as long to import as all the rest

        given = options.resolve({key: value for key, value in locals().items() if key in options.NAMES})
        manager = connection_manager
        options.check_manager(
            manager, base=BaseConnectionManager, other=SyncConnectionManager, wrong='threading', right='asyncio'
        )
        self._set_up(manager, given, options.hooks(manager, BaseConnectionManager))
        self._bind(asyncio.get_running_loop, without_limit, Started, DrainRequest, asyncio.tasks)
        self._timeout_error = TimedOut
        self._release_later = release_later
        self._report = self._core.report = partial(report, logger, self.name)
        self._disposer = Disposer(self.name, self._core, manager.dispose, given.dispose_timeout)
        self._closers: list[FutureEvent] = []
        self._core.on_drained = weakly(self._wake_closers)
        self._core.on_fork = weakly(self._reset_after_fork)
        self._make_collector = Collector
        self._collector = Collector(self, self._disposer) if given.background_collector else None
        self._background = Background(self)
        self._monitored = MonitoredPool(self, given)
        self._make_listener_thread = listener_thread
        self._snapshot = snapshot
        self._telemetry = observe.attach(self, self._core, given, 'asyncio')

    def __init_subclass__(cls, **given: Any) -> None:
        """Have `connection` use an `acquire` or a `release` that a subclass overrides: the compiled one does not."""
        super().__init_subclass__(**given)
        own = ConnectionPool
        if cls.connection is own.connection and (cls.acquire is not own.acquire or cls.release is not own.release):
            cls.connection = async_connection_of  # type: ignore[assignment, method-assign]

    async def _drive(self, operation: Acquire | Job | Release) -> None:
        """Do what an acquire, a release or a job asks for, until it is done. Raises what ends it."""
        while (todo := operation.next()) != TODO_DONE:
            if todo == TODO_WAIT:
                event = operation.event  # type: ignore[union-attr]  # only an acquire waits
                operation.completed(await wait_for(event, operation.time_to_wait()))
            elif todo == TODO_DISPOSE:
                operation.completed(await self._disposer.dispose(operation.own, operation.time_to_wait()))
            else:
                try:
                    result = await Bounded(operation.begin_call(), operation.remaining())
                except BaseException as error:
                    operation.failed(error)
                else:
                    operation.completed(result)

    async def discard(self, conn: ConnectionT, endpoint: EndpointT) -> None:
        """Release a connection that is not to be used again: it is disposed of.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :raises ConnectionNotAcquiredError: if it is not held; nothing has changed then
        """
        self._check_loop()
        release = self.open_release(conn, endpoint)
        if release is not None:
            release.discard('discarded')
            await self._drive_release(release)

    def _check_loop(self) -> None:
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._attach_loop(loop)

    # --- close ---

    async def close(self, timeout: float | None = None) -> None:
        """Close the pool. Waiting acquires fail at once, idle connections are disposed of at once, used ones when they
        are released, or at the time-out by force; releasing those later does nothing. May be called again, also after
        it was interrupted.

        What was not disposed of at the time-out is disposed of in the background, unless the process or its event loop
        ends first.

        :param timeout: how long to wait for used connections, and for disposals, seconds; ``None``: until all are
                        released and disposed of
        """
        deadline = inf if (allowed := check_timeout(timeout)) is None else monotonic() + max(0.0, allowed)
        self._check_loop()
        drained = FutureEvent(self._loop.create_future())
        self._closers.append(drained)
        try:
            self._core.close()
            if self._collector is not None:
                self._collector.stop()
            self._background.stop()
            self._monitored.end()
            await self._disposer.dispose_all(max(0.0, deadline - monotonic()))
            if self._core.size:
                await wait_for(drained, deadline - monotonic())
            if self._core.size:
                self._core.force()
                await self._disposer.dispose_in_background(FORCE_GRACE)
        finally:
            self._closers.remove(drained)

    def _wake_closers(self) -> None:
        for drained in list(self._closers):
            drained()

    async def __aenter__(self) -> ConnectionPool[EndpointT, ConnectionT]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- looking ---

    async def get_endpoint_pool_size(self, endpoint: EndpointT, acquired: bool | None = None) -> int:
        """Return the number of an endpoint's connections.

        :param endpoint: the endpoint
        :param acquired: ``True``: those in use; ``False``: the idle ones; ``None``: all places taken
        """
        return self._core.endpoint_size(endpoint, acquired)

    def stats(self) -> PoolStats[EndpointT]:
        """Return one consistent snapshot of the pool."""
        return self._snapshot(self.name, self._core.closed, *self._core.snapshot())

    def _reset_after_fork(self) -> None:
        """Forget what a forked child does not have: its parent's event loop and tasks."""
        self._closers.clear()
        self._loop = None
        self._core.on_abandoned = None
        self._disposer.reset_after_fork()
        self._background.reset_after_fork()
        if self._collector is not None:
            self._collector.reset_after_fork()
