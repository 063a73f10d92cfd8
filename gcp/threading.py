"""The blocking connection pool: waits, and calls the manager's hooks. What to do when is decided in `gcp._core`.

Read it beside `gcp.asyncio`: the same page in the other colour. Idle hits never come here: the compiled half serves
them."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from gcp import observe, options
from gcp._core import (
    VERDICT_CREATE,
    VERDICT_SHUT,
    VERDICT_WAIT,
    Checkout,
    Core,
    Event,
    ThreadingPool,
    Ticket,
    chain,
    check_timeout,
    describe,
)
from gcp.disposal import COLLECT_BATCH, DISPOSE_GRACE, FORCE_GRACE, SHORTEST_SLEEP, tell, weakly
from gcp.disposal.threads import Disposer, start_daemon
from gcp.exceptions import ConnectionPoolClosedError
from gcp.managers import AsyncConnectionManager, ConnectionT, EndpointT
from gcp.managers import SyncConnectionManager as BaseConnectionManager
from gcp.waiting import acquire_within, set_event

if TYPE_CHECKING:
    from gcp.stats import PoolStats

__all__ = ['BaseConnectionManager', 'ConnectionPool', 'ConnectionT', 'EndpointT']

logger = logging.getLogger(__name__)


class ConnectionPool(ThreadingPool[EndpointT, ConnectionT]):
    """A pool of connections to many endpoints, for threads.

    :param connection_manager: creates, disposes of and checks connections
    :param acquire_timeout: what an acquire may take when it does not say, seconds; ``None``: no limit
    :param background_collector: dispose of expired connections in a background thread, not on each release
    :param dispose_batch_size: how many expired connections a release disposes of, at most; 0: about log2 of the pool's
                               size; of a large pool, as many as are gone in a tenth of a millisecond
    :param dispose_timeout: what a disposal may take, seconds; ``None``: no limit
    :param min_idle: idle connections of an endpoint that are kept for their whole life (its base)
    :param max_size: connections of one endpoint, at most
    :param idle_timeout: seconds after which an idle connection beyond the base is disposed of; ``None`` or ``inf``:
                         never
    :param max_lifetime: seconds after which any connection is disposed of; ``None`` or ``inf``: never
    :param total_max_size: connections of all endpoints together, at most
    :param lifetime_jitter: by what part of itself each lifetime may be shortened, at random, once, 0 to 1: connections
                            that were born together then do not die together
    :param name: the pool's name; by default the manager's class and a number
    :param leak_threshold: seconds after which a connection that is still held counts as leaked; ``None`` or ``inf``:
                           never
    :param registry: the Prometheus registry in which the pool is seen; by default the global one; ``None``: in none
    :param meter_provider: the OpenTelemetry meter provider; by default the global one; ``None``: none
    :param tracer_provider: the OpenTelemetry tracer provider; by default the global one, once there is one; ``None``:
                            none
    :param tracing: what has spans: ``'lifecycle'``: waits, and steps of a connection's life; ``'all'``: also
                    `on_acquire` and `on_release`; ``'off'``: nothing
    :param endpoint_labels: how many endpoints have labels of their own in metrics, first come; the others share
                            ``_other``
    :param endpoint_label: makes an endpoint's label; by default from what can carry no credentials
    :raises TypeError: for an argument that is unknown or of a wrong type
    :raises ValueError: for one out of range, or two that contradict each other
    """

    def __init__(
            self,
            connection_manager: BaseConnectionManager[EndpointT, ConnectionT],
            *,
            acquire_timeout: float | None = None,
            background_collector: bool = False,
            dispose_batch_size: int = 0,
            dispose_timeout: float | None = None,
            min_idle: int = options.MIN_IDLE,
            max_size: int = options.MAX_SIZE,
            idle_timeout: float | None = options.IDLE_TIMEOUT,
            max_lifetime: float | None = options.MAX_LIFETIME,
            total_max_size: int = options.TOTAL_MAX_SIZE,
            lifetime_jitter: float = 0.0,
            name: str | None = None,
            leak_threshold: float | None = None,
            registry: Any = options.DEFAULT,
            meter_provider: Any = options.DEFAULT,
            tracer_provider: Any = options.DEFAULT,
            tracing: Literal['off', 'lifecycle', 'all'] = 'lifecycle',
            endpoint_labels: int = 20,
            endpoint_label: Callable[[EndpointT], str] | None = None,
            **unknown: NoReturn,
    ) -> None:
        from gcp.stats import snapshot  # its dataclasses take as long to import as all the rest

        given = options.resolve({key: value for key, value in locals().items() if key in options.NAMES}, unknown)
        manager = connection_manager
        options.check_manager(
            manager, base=BaseConnectionManager, other=AsyncConnectionManager, wrong='asyncio', right='threading')
        self._set_up(manager, given, options.hooks(manager, BaseConnectionManager))
        self._disposer = Disposer(self.name, self._core, manager.dispose, given.dispose_timeout)
        self._dispose = None if given.dispose_timeout is not None else manager.dispose
        self._report = self._disposer.report
        self._closers: list[threading.Lock] = []
        self._core.on_drained = weakly(self._wake_closers)
        self._core.on_fork = weakly(self._reset_after_fork)
        self._collector = Collector(self, self._core, self._disposer) if given.background_collector else None
        self._snapshot = snapshot
        self._telemetry = observe.attach(self, self._core, given, 'threading')

    def __init_subclass__(cls, **given: Any) -> None:
        """See to it that `connection` uses an `acquire` or a `release` that a subclass overrides: the compiled one goes
        past them."""
        super().__init_subclass__(**given)
        own = ConnectionPool
        if cls.connection is own.connection and (cls.acquire is not own.acquire or cls.release is not own.release):
            cls.connection = by_hand  # type: ignore[assignment, method-assign]

    # --- acquire ---

    _new_event = Event
    _sleep = staticmethod(acquire_within)

    def _replace(self, ticket: Ticket) -> None:
        """Go on from an idle hit that was found dead."""
        self._mourn(ticket)
        self._serve(ticket, self._retry(ticket))

    def _serve(self, ticket: Ticket, verdict: int) -> None:
        """Serve an acquire that is no idle hit: do as the core says, until there is a connection that the hooks find in
        order. The caller undoes whatever an error leaves half-done."""
        core = self._core
        while True:
            if core.has_victims:
                self._tidy_aside(ticket, verdict)
            if verdict == VERDICT_WAIT:
                verdict = self._wait(ticket)
            if verdict == VERDICT_SHUT:
                raise ConnectionPoolClosedError(f'{self.name} is closed')
            if verdict == VERDICT_CREATE:
                self._create(ticket)
                break
            if self._is_alive(ticket):
                break
            verdict = self._retry(ticket)
        if self._on_acquire is not None:
            self._call(ticket, 'on_acquire', self._on_acquire)
            ticket.hook = None

    def _wait(self, ticket: Ticket) -> int:
        """Wait in line until there is a verdict."""
        core = self._core
        event = self._new_event()
        verdict = core.arm(ticket, event)
        if core.has_victims:            # `arm` may have taken back what a finalizer left
            self._disposer.dispose_in_background(0)
        while verdict == VERDICT_WAIT:
            woken = bool(core.disposing) and acquire_within(event, ticket.patience(DISPOSE_GRACE))
            if not woken:
                if core.disposing and self._disposer.is_busy:   # a disposal takes long: does this one wait for it?
                    self._disposer.watch()
                woken = acquire_within(event, ticket.patience(DISPOSE_GRACE if ticket.nowait else inf))
            verdict = core.poll(ticket) if woken else core.expire(ticket)
            if core.has_victims:    # a finalizer left something, and woke this waiter to see to it
                self._disposer.dispose_in_background(0)
            if verdict == VERDICT_WAIT and not woken:
                raise self._timed_out(ticket, 'waiting') from ticket.last_error
        return verdict

    def _create(self, ticket: Ticket) -> None:
        """Create a connection. One that comes too late is kept for others."""
        self._check_deadline(ticket, 'creation')
        if self._collector is not None:
            self._collector.ensure()
        try:
            with self._core.hook_call('create', ticket.endpoint):
                verdict = ticket.create(self._manager.create, ticket.remaining())
        except Exception as error:
            self._check_deadline(ticket, 'creation', error)
            raise
        if verdict == VERDICT_SHUT:
            self._tidy_aside(ticket)
            raise ConnectionPoolClosedError(f'{self.name} was closed while a connection was being created')
        self._check_deadline(ticket, 'creation')

    def _is_alive(self, ticket: Ticket) -> bool:
        """Check an idle connection before its reuse. The manager is told of a dead one."""
        if self._check_aliveness is None:
            return True
        if self._call(ticket, 'check_aliveness', self._check_aliveness, ticket.remaining(), false='dead'):
            ticket.hook = None
            return True
        self._mourn(ticket)
        return False

    def _mourn(self, ticket: Ticket) -> None:
        """Tell the manager of a dead connection."""
        if self._on_connection_dead is not None:
            try:
                with self._core.hook_call('on_connection_dead', ticket.endpoint):
                    self._on_connection_dead(ticket.endpoint, ticket.conn)
            except Exception as error:
                where = describe(ticket.endpoint)
                tell(logger, logging.ERROR, '%s: on_connection_dead failed for %s: %r', self.name, where, error)

    def _retry(self, ticket: Ticket) -> int:
        """Ask again, after a connection that was dead."""
        verdict = self._core.retry(ticket)
        ticket.hook = None
        return verdict

    def _call(self, ticket: Ticket, name: str, hook: Callable[..., Any], *args: Any, false: str = 'ok') -> Any:
        """Call a hook on the ticket's connection. While `ticket.hook` is set, an error costs the connection.

        :param false: what a result that is false means
        """
        ticket.hook = name
        try:
            with self._core.hook_call(name, ticket.endpoint, quiet=ticket.is_hit) as step:
                result = hook(ticket.endpoint, ticket.conn, *args)
                step.end('ok' if result else false)
        except BaseException as error:
            self._blame(ticket, name, error)
        self._check_deadline(ticket, name)
        return result

    def _blame(self, ticket: Ticket, name: str, error: BaseException) -> NoReturn:
        """Raise a hook's error, or, where it took too long, that."""
        if isinstance(error, Exception):
            self._check_deadline(ticket, name, error)
        raise error

    def _check_deadline(self, ticket: Ticket, phase: str, cause: BaseException | None = None) -> None:
        if ticket.overran():
            raise self._timed_out(ticket, phase) from cause or ticket.last_error

    # --- release ---

    def _spoil(self, checkout: Checkout, error: BaseException, body: BaseException | None) -> None:
        """End a release whose `on_release` raised: that costs the connection, but never hides the error of the body."""
        endpoint = checkout.endpoint
        self._core.discard(checkout, 'error')
        self._tidy(endpoint)
        if body is None or not isinstance(error, Exception):
            raise error
        chain(body, error)
        tell(logger, logging.ERROR, '%s: on_release failed for %s: %r', self.name, describe(endpoint), error)

    def _tidy(self, endpoint: object) -> None:
        """After a release: dispose of what it left, and of a few that have expired."""
        if self._collector is None:
            self._core.collect(self._batch_size())
        if self._core.has_victims:
            self._dispose_victims(endpoint)

    def _dispose_victims(self, endpoint: object) -> None:
        """Have the victims disposed of that a release of an endpoint's connection finds."""
        self._disposer.dispose(endpoint, DISPOSE_GRACE)

    def _tidy_aside(self, ticket: Ticket, verdict: int | None = None) -> None:
        """Within an acquire: have victims disposed of, on others' time. One that waits in line will wait there."""
        if self._core.has_victims:
            self._disposer.dispose_in_background(0 if verdict == VERDICT_WAIT else ticket.patience(DISPOSE_GRACE))

    # --- close ---

    def close(self, timeout: float | None = None) -> None:
        """Close the pool. Waiting acquires fail at once, idle connections are disposed of at once, used ones when they
        are released, or at the time-out by force; releasing those later does nothing. May be called again.

        :param timeout: how long to wait for used connections, seconds; ``None``: until all are released
        """
        deadline = inf if (allowed := check_timeout(timeout)) is None else monotonic() + max(0.0, allowed)
        quiet = threading.Lock()
        quiet.acquire()
        self._closers.append(quiet)
        try:
            self._core.close()
            if self._collector is not None:
                self._collector.wake()
            if deadline == inf:
                self._disposer.dispose_all()
            else:
                self._disposer.dispose_in_background(max(0.0, deadline - monotonic()))
            while self._core.size and acquire_within(quiet, deadline - monotonic()):
                self._core.drain()      # a finalizer may have left a lease, and is_set
                self._disposer.dispose_in_background(DISPOSE_GRACE)
            if self._core.size:
                self._core.force()
                self._disposer.dispose_in_background(FORCE_GRACE)
        finally:
            self._closers.remove(quiet)

    def _wake_closers(self) -> None:
        for quiet in list(self._closers):
            set_event(quiet)

    def __enter__(self) -> ConnectionPool[EndpointT, ConnectionT]:
        return self

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- looking ---

    def get_endpoint_pool_size(self, endpoint: EndpointT, acquired: bool | None = None) -> int:
        """Return the number of an endpoint's connections.

        :param endpoint: the endpoint
        :param acquired: ``True``: those checked out; ``False``: the idle ones; ``None``: all places taken
        """
        return self._core.endpoint_size(endpoint, acquired)

    def stats(self) -> PoolStats[EndpointT]:
        """Return one consistent snapshot of the pool."""
        return self._snapshot(self.name, self._core.closed, *self._core.snapshot())

    def _reset_after_fork(self) -> None:
        """In a forked child there are no threads but this one."""
        self._closers.clear()
        self._disposer.reset_after_fork()
        if self._collector is not None:
            self._collector.reset_after_fork()


@contextmanager
def by_hand(
        self: ConnectionPool[EndpointT, ConnectionT], endpoint: EndpointT, timeout: float | None = None,
) -> Iterator[ConnectionT]:
    """`connection`, for pools that acquire or release in a way of their own."""
    conn = self.acquire(endpoint, timeout=timeout)
    try:
        yield conn
    except BaseException as body:
        try:
            self.release(conn, endpoint)
        except Exception as error:
            chain(body, error)
        raise
    else:
        self.release(conn, endpoint)


class Collector:
    """A daemon thread that disposes of what has expired. It does not keep its pool alive, and ends with it."""

    def __init__(self, pool: ConnectionPool[Any, Any], core: Core, disposer: Disposer) -> None:
        self._core = core
        self._disposer = disposer
        self.reset_after_fork()
        self._pool = weakref.ref(pool, lambda _: self.wake())
        core.wake_collector = self.wake
        self.ensure()

    def reset_after_fork(self) -> None:
        """Begin without a thread: a forked child has none."""
        self._bell = threading.Lock()
        self._runs = False

    def ensure(self) -> None:
        """Start the thread, unless it runs."""
        if not self._runs and not self._core.closed:
            self._runs = start_daemon(self._run, 'gcp-collector')   # if that cannot be, the next acquire tries again

    def wake(self) -> None:
        """Have it look again."""
        set_event(self._bell)

    def _run(self) -> None:
        core, disposer, event = self._core, self._disposer, self._bell
        while not core.closed and self._pool() is not None:
            core.collect(COLLECT_BATCH)
            if core.has_victims:
                disposer.dispose_in_background(DISPOSE_GRACE)
            else:
                # Not shorter than a tick: on a coarse clock, what is due in no time at all is not due yet.
                acquire_within(event, max(core.next_expiry() - core.time(), SHORTEST_SLEEP))
