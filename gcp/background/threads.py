"""The background of the threading pool: daemon threads that do one job at a time, and the calls that wait for them."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from functools import partial
from math import inf
from typing import Any, Literal

from gcp._core import (
    Core,
    Job,
    SyncPool,
    Watch,
    begin_expiry,
    begin_readiness,
    begin_retirement,
    begin_suspension,
    begin_warm_up,
    end_rest,
    next_job,
    rest,
)
from gcp.background import Steering, raise_errors
from gcp.disposal import DISPOSE_GRACE, FORCE_GRACE, SHORTEST_SLEEP, WORKER_IDLE_TIME, weakly
from gcp.disposal.threads import start_daemon
from gcp.managers import EndpointT
from gcp.waiting import AnyEvent, event_class, serving, wait_for

logger = logging.getLogger('gcp.threading')


class Background:
    """The workers of a pool. Each looks for jobs until there is none, and ends when it has had none for a while."""

    def __init__(self, pool: SyncPool[Any, Any]) -> None:
        self._core = pool._core
        self._resting: deque[AnyEvent] = deque()
        self.reset_after_fork()
        self._pool = weakref.ref(pool, partial(wake_all, self._resting))
        self._core.wake_background = weakly(self.wake)
        self._core.workers_rest = True

    def reset_after_fork(self) -> None:
        """Begin without workers: a forked child has none."""
        serving.clear()
        self._resting.clear()
        self._called = False

    def wake(self) -> None:
        """Have a worker look for jobs, unless one that was told to has not looked yet."""
        if self._called or self._core.closed:
            return
        try:
            self._called = True
            self._call_worker()
        except BaseException:  # a signal came: the next call tells one
            self._called = False
            raise

    def _call_worker(self) -> None:
        """Wake a worker that rests, or start one."""
        try:
            event = self._resting.pop()
        except IndexError:
            event = event_class()()
            serving.add(event)
            if not start_daemon(partial(self._work, event), 'gcp-background'):
                self._work(event, idle_time=0)
        else:
            serving.add(event)
            event.set()

    def stop(self) -> None:
        """Have the workers that rest end: the pool is closed, or gone."""
        wake_all(self._resting)

    # --- in the workers ---

    def _work(self, event: AnyEvent, idle_time: float = WORKER_IDLE_TIME) -> None:
        try:
            while True:
                while self._do_next():
                    pass
                if self._core.closed or self._pool() is None or not self._rest(event, idle_time):
                    break
        finally:
            serving.discard(event)

    def _do_next(self) -> bool:
        """Do the next job. Returns whether there was one."""
        self._called = False
        pool = self._pool()
        job = None if pool is None else next_job(pool)
        if pool is None or job is None:
            return False
        run(pool, job)
        return True

    def _rest(self, event: AnyEvent, idle_time: float) -> bool:
        """Wait until there may be something to do. Returns whether there may be.

        :param idle_time: how long to wait at most, seconds
        """
        until = rest(self._core, idle_time)  # idle connections are to be checked then
        seconds = min(idle_time, max(until - self._core.time(), SHORTEST_SLEEP))
        serving.discard(event)
        try:
            return idle_time > 0 and (self._wait(event, seconds) or until < inf)
        finally:
            if until < inf:
                end_rest(self._core)

    def _wait(self, event: AnyEvent, seconds: float) -> bool:
        """Wait for the event of a worker that rests. Returns whether it was set."""
        self._resting.append(event)
        if wait_for(event, seconds):
            return True
        try:
            self._resting.remove(event)
        except ValueError:
            return True  # it was woken just now
        return False


def wake_all(resting: deque[AnyEvent], _: object = None) -> None:
    """Wake all workers that rest."""
    while resting:
        try:
            resting.pop().set()
        except IndexError:
            break


def run(pool: SyncPool[Any, Any], job: Job) -> None:
    """Drive a job to its end, with the context variables of the acquire on whose behalf it is done."""
    try:
        job.context.run(pool._drive, job)
    except BaseException as error:  # of a tracer or a logging handler: a worker has no caller
        job.abandon(error)


class Operations(Steering[EndpointT]):
    """What is to be done with whole endpoints. Part of `gcp.threading.ConnectionPool`."""

    def warm_up(self, *endpoints: EndpointT, size: int | None = None, timeout: float | None = None) -> None:
        """Open connections of endpoints, in parallel, and return when they are open. The endpoints are *kept* from now
        on: `wait_ready` waits for them, and with ``refill=True`` the pool brings them back to `min_idle` connections
        whenever they have less, until `retire`. Warming up evicts no connection of another endpoint, and does not call
        `on_acquire`.

        :param endpoints: what to connect to
        :param size: how many connections each is to have, with those that it has already; ``None``: `min_idle`
        :param timeout: how long to wait at most, seconds; ``None``: no limit
        :raises ValueError: if `size` is above a cap
        :raises ExceptionGroup: if `create` has failed for several endpoints: with one error each. That of a single one
                                is raised itself; so is the first before Python 3.11, where the others are logged
        :raises PoolNotReadyError: if it took longer; connects in progress go on
        :raises EndpointRetiredError: if an endpoint is being retired
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        pool: Any = self
        watch = begin_warm_up(pool, endpoints, size, timeout, event_class()())
        wait(watch)
        raise_errors(watch, logger, pool.name)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until each endpoint that was given to `warm_up` has its `min_idle` connections, idle and used ones.

        :param timeout: how long to wait at most, seconds; ``None``: no limit
        :raises PoolNotReadyError: if it took longer; its cause is the last error of `create`
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        pool: Any = self
        watch = begin_readiness(pool, timeout, event_class()())
        wait(watch)
        watch.conclude()

    def retire(self, endpoint: EndpointT, timeout: float | None = None) -> None:
        """Take an endpoint out of use, and return when its connections are gone. It is not kept any more; until this
        returns, it takes no new acquires. Its idle connections are disposed of now, used ones when they are released,
        or at the time-out by force; releasing those later does nothing. Then the endpoint is forgotten, and may be used
        as if it were new.

        :param endpoint: the endpoint
        :param timeout: how long to wait for used connections, seconds; ``None``: until all are released
        :raises ConnectionPoolNotFound: if the pool knows no such endpoint
        """
        pool: Any = self
        watch = begin_retirement(pool, endpoint, timeout, event_class()())
        try:
            pool._disposer.dispose_in_background(DISPOSE_GRACE)
            while not wait_until_done(watch, pool._core):  # a finalizer has left a lease
                pool._disposer.dispose_in_background(DISPOSE_GRACE)
            if not watch.done():
                watch.force()
                pool._disposer.dispose_in_background(FORCE_GRACE)
        finally:
            watch.close()

    def wait_expired(self, timeout: float | None = None) -> None:
        """Wait until the last connection is gone that `expire` has expired.

        :param timeout: how long to wait at most, seconds; ``None``: no limit
        :raises TimeoutError: if it took longer
        """
        pool: Any = self
        wait_and_dispose(pool, begin_expiry(pool, timeout, event_class()()))

    def suspend(
        self,
        endpoint: EndpointT | None = None,
        mode: Literal['wait', 'raise'] = 'wait',
        *,
        wait: bool = False,
        drain: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Hand out no connection until `resume`, and neither open nor check any meanwhile. Connections that are held
        stay so, and a connect that has begun goes on. A forked child starts with nothing suspended.

        :param endpoint: the endpoint, whether the pool knows it or not; ``None``: all
        :param mode: ``'wait'``: acquires wait, within their time-outs; ``'raise'``: they raise `PoolSuspendedError`,
                     and so do those that wait already
        :param wait: return when no connection is held or being created
        :param drain: the same as `wait`
        :param timeout: how long to wait for that, seconds; ``None``: no limit
        :raises TimeoutError: if it took longer; it is suspended all the same
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        pool: Any = self
        watch = begin_suspension(pool, endpoint, mode, wait or drain, timeout, event_class()())
        if watch is not None:
            wait_and_dispose(pool, watch)


def wait_and_dispose(pool: Any, watch: Watch) -> None:
    """Wait until there is nothing left to wait for, and raise what is to be raised. What finalizers leave meanwhile is
    disposed of."""
    try:
        while not wait_until_done(watch, pool._core):
            pool._disposer.dispose_in_background(DISPOSE_GRACE)
        watch.conclude()
    finally:
        watch.close()
        if pool._core.has_victims:
            pool._disposer.dispose_soon(DISPOSE_GRACE)


def wait(watch: Watch) -> None:
    """Wait until there is nothing left to wait for, or time has run out."""
    try:
        wait_until_done(watch)
    finally:
        watch.close()


def wait_until_done(watch: Watch, core: Core | None = None) -> bool:
    """Wait likewise.

    :param core: return when it has victims: a finalizer has left a lease
    :return: whether the wait is over; otherwise there are victims
    """
    while not watch.done() and (seconds := watch.time_to_wait()):
        if core is not None and core.has_victims:
            return False
        wait_for(watch.event, seconds)
    return True
