"""The asyncio connection pool: waits, and calls the manager's hooks. What to do when is decided in `gcp._core`.

Read it beside `gcp.threading`: the same page in the other colour. Idle hits never come here: the compiled half serves
them."""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from gcp import observe, options
from gcp._core import (
    VERDICT_CREATE,
    VERDICT_SHUT,
    VERDICT_WAIT,
    AsyncioPool,
    Checkout,
    HookCall,
    Ticket,
    chain,
    check_timeout,
    describe,
)
from gcp.disposal import COLLECT_BATCH, DISPOSE_GRACE, FORCE_GRACE, SHORTEST_SLEEP, tell, weakly
from gcp.disposal.deadline import Bounded, HookTimeoutError, Started, without_limit
from gcp.disposal.tasks import Disposer
from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError
from gcp.managers import AsyncConnectionManager as BaseConnectionManager
from gcp.managers import ConnectionT, EndpointT, SyncConnectionManager

if TYPE_CHECKING:
    from gcp.stats import PoolStats

__all__ = ['BaseConnectionManager', 'ConnectionPool', 'ConnectionT', 'EndpointT']

logger = logging.getLogger(__name__)

if sys.version_info < (3, 11):
    class TimedOut(AcquireTimeoutError, asyncio.TimeoutError):
        """The same, and an `asyncio.TimeoutError`, which is a class of its own here."""

    TimedOut.__name__ = TimedOut.__qualname__ = AcquireTimeoutError.__name__
else:
    TimedOut = AcquireTimeoutError


class ConnectionPool(AsyncioPool[EndpointT, ConnectionT]):
    """A pool of connections to many endpoints, for asyncio. Belongs to the event loop in which it is first used.

    :param connection_manager: creates, disposes of and checks connections
    :param acquire_timeout: what an acquire may take when it does not say, seconds; ``None``: no limit
    :param background_collector: dispose of expired connections in the background, not on each release
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
            manager, base=BaseConnectionManager, other=SyncConnectionManager, wrong='threading', right='asyncio')
        self._set_up(manager, given, options.hooks(manager, BaseConnectionManager))
        self._bind(asyncio.get_running_loop, without_limit, Started)
        self._disposer = Disposer(self.name, self._core, manager.dispose, given.dispose_timeout)
        self._closers: list[asyncio.Future[None]] = []
        self._core.on_drained = weakly(self._wake_closers)
        self._core.on_fork = weakly(self._reset_after_fork)
        self._collector = Collector(self) if given.background_collector else None
        self._snapshot = snapshot
        self._telemetry = observe.attach(self, self._core, given, 'asyncio')

    def _enter_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the first event loop for the pool's own; refuse any other."""
        if self._loop is not None and self._loop is not loop:
            owner = 'an event loop that is closed' if self._loop.is_closed() else 'another event loop'
            raise RuntimeError(
                f'{self.name} belongs to {owner}, in which it was first used; its connections are of no use here: '
                f'make one pool for each event loop')
        self._loop = loop
        self._core.on_abandoned = DrainRequest(self)
        if self._collector is not None:
            self._core.wake_collector = self._collector.look

    def __init_subclass__(cls, **given: Any) -> None:
        """See to it that `connection` uses an `acquire` or a `release` that a subclass overrides: the compiled one goes
        past them."""
        super().__init_subclass__(**given)
        own = ConnectionPool
        if cls.connection is own.connection and (cls.acquire is not own.acquire or cls.release is not own.release):
            cls.connection = by_hand  # type: ignore[assignment, method-assign]

    # --- acquire ---

    async def _go_on(self, ticket: Ticket, name: str, hook: Awaitable[Any], step: HookCall) -> None:
        """Go on from an idle hit of which a hook has something to wait for.

        :param hook: the rest of it
        :param step: begun when it was
        """
        if name == 'check_aliveness':
            if not await self._call(ticket, name, lambda *_: hook, false='dead', step=step):
                return await self._replace(ticket)
            await self._greet(ticket)
        else:
            await self._call(ticket, name, lambda *_: hook, step=step)
            ticket.hook = None

    async def _recover(self, ticket: Ticket, dead: bool, error: BaseException | None) -> None:
        """Go on from an idle hit of which a hook raised an error, or found it dead, or took too long."""
        if dead:
            await self._replace(ticket)
        elif error is not None:
            self._blame(ticket, ticket.hook, error)
        elif ticket.hook is not None:
            self._check_deadline(ticket, ticket.hook)

    async def _replace(self, ticket: Ticket) -> None:
        """Go on from an idle hit that was found dead."""
        await self._mourn(ticket)
        await self._serve(ticket, self._retry(ticket))

    async def _serve(self, ticket: Ticket, verdict: int) -> None:
        """Serve an acquire that is no idle hit: do as the core says, until there is a connection that the hooks find in
        order. The caller undoes whatever an error leaves half-done."""
        core = self._core
        while True:
            if core.has_victims:
                wait = 0 if verdict == VERDICT_WAIT else ticket.patience(DISPOSE_GRACE)
                await self._disposer.dispose_in_background(wait)
            if verdict == VERDICT_WAIT:
                verdict = await self._wait(ticket)
            if verdict == VERDICT_SHUT:
                raise ConnectionPoolClosedError(f'{self.name} is closed')
            if verdict == VERDICT_CREATE:
                await self._create(ticket)
                break
            if await self._is_alive(ticket):
                break
            verdict = self._retry(ticket)
        await self._greet(ticket)

    async def _wait(self, ticket: Ticket) -> int:
        """Wait in line until there is a verdict."""
        core = self._core
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        verdict = core.arm(ticket, lambda: None if future.done() else future.set_result(None))
        patience = ticket.patience(DISPOSE_GRACE if ticket.nowait else inf)
        if verdict == VERDICT_WAIT and patience > 0:
            timer = loop.call_later(patience, expire, future) if patience < inf else None
            try:
                await future
            finally:
                if timer is not None:
                    timer.cancel()
            verdict = core.poll(ticket)
        if verdict == VERDICT_WAIT:
            verdict = core.expire(ticket)
            if verdict == VERDICT_WAIT:
                raise self._timed_out(ticket, 'waiting', TimedOut) from ticket.last_error
        return verdict

    async def _create(self, ticket: Ticket) -> None:
        """Create a connection."""
        self._check_deadline(ticket, 'creation')
        if self._collector is not None:
            self._collector.ensure()
        with self._core.hook_call('create', ticket.endpoint):
            try:
                conn = await Bounded(self._manager.create(ticket.endpoint), ticket.remaining())
            except BaseException as error:
                self._core.failed(ticket, error)
                if isinstance(error, Exception):
                    self._check_deadline(ticket, 'creation', error)
                raise
            verdict = self._core.created(ticket, conn)
        if verdict == VERDICT_SHUT:
            self._tidy_aside(ticket)
            raise ConnectionPoolClosedError(f'{self.name} was closed while a connection was being created')

    async def _is_alive(self, ticket: Ticket) -> bool:
        """Check an idle connection before its reuse. The manager is told of a dead one."""
        if self._check_aliveness is None:
            return True
        if await self._call(ticket, 'check_aliveness', self._check_aliveness, false='dead'):
            ticket.hook = None
            return True
        await self._mourn(ticket)
        return False

    async def _mourn(self, ticket: Ticket) -> None:
        """Tell the manager of a dead connection."""
        if self._on_connection_dead is not None:
            try:
                with self._core.hook_call('on_connection_dead', ticket.endpoint):
                    await Bounded(self._on_connection_dead(ticket.endpoint, ticket.conn), ticket.remaining())
            except Exception as error:
                where = describe(ticket.endpoint)
                tell(logger, logging.ERROR, '%s: on_connection_dead failed for %s: %r', self.name, where, error)

    async def _greet(self, ticket: Ticket) -> None:
        """Tell the manager of a connection that is about to be lent."""
        if self._on_acquire is not None:
            await self._call(ticket, 'on_acquire', self._on_acquire)
        ticket.hook = None

    def _retry(self, ticket: Ticket) -> int:
        """Ask again, after a connection that was dead."""
        verdict = self._core.retry(ticket)
        ticket.hook = None
        return verdict

    async def _call(
            self, ticket: Ticket, name: str, hook: Callable[..., Any], *, false: str = 'ok',
            step: HookCall | None = None,
    ) -> Any:
        """Call a hook on the ticket's connection. While `ticket.hook` is set, an error costs the connection.

        :param false: what a result that is false means
        :param step: where it was begun already
        """
        ticket.hook = name
        try:
            with step or self._core.hook_call(name, ticket.endpoint, quiet=ticket.is_hit) as step:
                result = await Bounded(hook(ticket.endpoint, ticket.conn), ticket.remaining())
                step.end('ok' if result else false)
        except BaseException as error:
            self._blame(ticket, name, error)
        return result

    def _blame(self, ticket: Ticket, name: str | None, error: BaseException) -> NoReturn:
        """Raise a hook's error, or, where it took too long, that."""
        if name is not None and isinstance(error, Exception):
            self._check_deadline(ticket, name, error)
        raise error

    def _check_deadline(self, ticket: Ticket, phase: str, cause: BaseException | None = None) -> None:
        if ticket.overran():
            if cause is None or isinstance(cause, HookTimeoutError):
                cause = ticket.last_error or cause
            raise self._timed_out(ticket, phase, TimedOut) from cause

    # --- release ---

    async def _release(
            self, checkout: Checkout, body: BaseException | None, hook: Awaitable[Any] | None = None,
            step: HookCall | None = None,
    ) -> None:
        """Release by way of `on_release`.

        :param body: the error that leaves the block
        :param hook: what is left of the hook, and
        :param step: its step, where it was begun already
        """
        endpoint = checkout.endpoint
        try:
            if self._on_release is not None:
                checkout.hook = 'on_release'
                with step or self._core.hook_call('on_release', endpoint, quiet=True):
                    await Bounded(hook or self._on_release(endpoint, checkout.conn), None)
                checkout.hook = None
        except BaseException as error:
            await self._spoil(checkout, error, body)
        else:
            self._core.give_back(checkout)
            await self._tidy(endpoint)

    async def _spoil(self, checkout: Checkout, error: BaseException, body: BaseException | None) -> None:
        """End a release whose `on_release` raised: that costs the connection, but never hides the error of the body."""
        endpoint = checkout.endpoint
        self._core.discard(checkout, 'error')
        if not isinstance(error, Exception):
            self._disposer.dispose_soon()
            raise error
        await self._tidy(endpoint)
        if body is None:
            raise error
        chain(body, error)
        tell(logger, logging.ERROR, '%s: on_release failed for %s: %r', self.name, describe(endpoint), error)

    async def _tidy(self, endpoint: object) -> None:
        """After a release: dispose of what it left, and of a few that have expired."""
        if self._collector is None:
            self._core.collect(self._batch_size())
        if self._core.has_victims:
            await self._disposer.dispose(endpoint, DISPOSE_GRACE)

    def _tidy_aside(self, ticket: Ticket) -> None:
        """Within an acquire: have victims disposed of, on others' time."""
        if self._core.has_victims:
            self._disposer.dispose_soon()

    async def _fail(self, error: Exception) -> None:
        """Raise, when awaited."""
        raise error

    # --- close ---

    async def close(self, timeout: float | None = None) -> None:
        """Close the pool. Waiting acquires fail at once, idle connections are disposed of at once, used ones when they
        are released, or at the time-out by force; releasing those later does nothing. May be called again, also after
        it was cancelled.

        :param timeout: how long to wait for used connections, seconds; ``None``: until all are released
        """
        loop = asyncio.get_running_loop()
        deadline = inf if (allowed := check_timeout(timeout)) is None else loop.time() + max(0.0, allowed)
        if self._loop is not loop:
            self._enter_loop(loop)
        quiet = loop.create_future()
        self._closers.append(quiet)
        try:
            self._core.close()
            if self._collector is not None:
                self._collector.stop()
            await self._disposer.dispose_in_background(None if deadline == inf else max(0.0, deadline - loop.time()))
            if self._core.size:
                await asyncio.wait([quiet], timeout=None if deadline == inf else max(0.0, deadline - loop.time()))
            if self._core.size:
                self._core.force()
                await self._disposer.dispose_in_background(FORCE_GRACE)
        finally:
            self._closers.remove(quiet)

    def _wake_closers(self) -> None:
        for quiet in list(self._closers):
            expire(quiet)

    async def __aenter__(self) -> ConnectionPool[EndpointT, ConnectionT]:
        return self

    async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- looking ---

    async def get_endpoint_pool_size(self, endpoint: EndpointT, acquired: bool | None = None) -> int:
        """Return the number of an endpoint's connections.

        :param endpoint: the endpoint
        :param acquired: ``True``: those checked out; ``False``: the idle ones; ``None``: all places taken
        """
        return self._core.endpoint_size(endpoint, acquired)

    def stats(self) -> PoolStats[EndpointT]:
        """Return one consistent snapshot of the pool."""
        return self._snapshot(self.name, self._core.closed, *self._core.snapshot())

    def _reset_after_fork(self) -> None:
        """In a forked child there is no event loop, and none of its tasks."""
        self._closers.clear()
        self._loop = None
        self._core.on_abandoned = None
        self._disposer.reset_after_fork()
        if self._collector is not None:
            self._collector.reset_after_fork()

    def _drain(self) -> None:
        """Take back what finalizers left."""
        self._core.drain()
        self._disposer.dispose_soon()


@asynccontextmanager
async def by_hand(
        self: ConnectionPool[EndpointT, ConnectionT], endpoint: EndpointT, timeout: float | None = None,
) -> AsyncIterator[ConnectionT]:
    """`connection`, for pools that acquire or release in a way of their own."""
    conn = await self.acquire(endpoint, timeout=timeout)
    try:
        yield conn
    except BaseException as body:
        try:
            await self.release(conn, endpoint)
        except Exception as error:
            chain(body, error)
        raise
    else:
        await self.release(conn, endpoint)


class Collector:
    """A timer that disposes of what has expired. It does not keep its pool alive, and keeps no event loop running."""

    def __init__(self, pool: ConnectionPool[Any, Any]) -> None:
        self._pool = weakref.ref(pool)
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Begin without a timer: a forked child has none."""
        self._timer: asyncio.TimerHandle | None = None

    def ensure(self) -> None:
        """Set the timer, unless it is set."""
        if self._timer is None:
            self.look()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Dispose of what has expired, and look again when more will have."""
        pool = self._pool()
        if pool is None or pool._core.closed:
            return
        self.stop()
        core = pool._core
        while core.collect(COLLECT_BATCH):
            pass
        if core.has_victims:
            pool._disposer.dispose_soon()
        # Not sooner than in a tick: on a coarse clock, what is due in no time at all is not due yet.
        wait = max(core.next_expiry() - core.time(), SHORTEST_SLEEP)
        if wait < inf:
            self._timer = pool._loop.call_later(wait, self.look)


class DrainRequest:
    """Called by finalizers, in any thread: have the pool's event loop take back what they left."""

    def __init__(self, pool: ConnectionPool[Any, Any]) -> None:
        self._pool = weakref.ref(pool)
        self._loop = pool._loop

    def __call__(self) -> None:
        # no method of its own: the garbage collector may clear this one before the loop gets to it
        self._loop.call_soon_threadsafe(drain, self._pool)


def drain(ref: weakref.ref[ConnectionPool[Any, Any]]) -> None:
    """Have a pool take back what finalizers left, if there still is one."""
    pool = ref()
    if pool is not None:
        pool._drain()


def expire(future: asyncio.Future[None]) -> None:
    """Wake whoever waits."""
    if not future.done():
        future.set_result(None)
