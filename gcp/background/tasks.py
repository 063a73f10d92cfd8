"""The background of the asyncio pool: a task for each job, and the calls that wait for them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from contextvars import Context
from typing import Any, Literal

from gcp._core import (
    AsyncPool,
    FutureEvent,
    Job,
    Watch,
    begin_expiry,
    begin_readiness,
    begin_retirement,
    begin_suspension,
    begin_warm_up,
    next_job,
)
from gcp.background import Steering, raise_errors
from gcp.disposal import DISPOSE_GRACE, FORCE_GRACE, weakly
from gcp.disposal.deadline import wait_for
from gcp.managers import EndpointT

logger = logging.getLogger('gcp.asyncio')


class Background:
    """The tasks of a pool. They keep no event loop running."""

    def __init__(self, pool: AsyncPool[Any, Any]) -> None:
        self._pool = weakref.ref(pool)
        self.reset_after_fork()
        pool._core.wake_background = weakly(self.wake)

    def reset_after_fork(self) -> None:
        """Begin without tasks: a forked child has none."""
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps only those that are ready
        self._called = False
        self._more = False

    def wake(self) -> None:
        """Look for jobs soon, unless that was asked for already."""
        pool = self._pool()
        self._more = True
        if self._called or pool is None or pool._core.closed or pool._loop is None or pool._loop.is_closed():
            return
        pool._loop.call_soon(self._look, context=Context())
        self._called = True

    def stop(self) -> None:
        """Nothing rests here: the tasks end with their jobs."""

    def _look(self) -> None:
        """Start all jobs that are to be done at the same time."""
        pool = self._pool()
        self._more = True
        try:
            while pool is not None and self._more:
                self._more = False  # the core wakes again if there is more
                if (job := next_job(pool)) is not None:
                    self._start(pool, job)
        finally:
            self._called = False

    def _start(self, pool: AsyncPool[Any, Any], job: Job) -> None:
        loop = asyncio.get_running_loop()
        work = run(pool, job)
        try:
            task = job.context.run(loop.create_task, work, name='gcp-background')
        except Exception:  # of a task factory
            task = job.context.run(asyncio.Task, work, loop=loop)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._ended, context=Context())
            # The loop may end first, which is no error.
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.wake()


async def run(pool: AsyncPool[Any, Any], first: Job) -> None:
    """Drive a job to its end, and if it is a check, those that are due then."""
    job: Job | None = first
    while job is not None:
        try:
            await pool._drive(job)
        except BaseException as error:
            job.abandon(error)
            if not isinstance(error, Exception):
                raise
        job = next_job(pool, True) if job.is_check else None


class Operations(Steering[EndpointT]):
    """What is to be done with whole endpoints. Part of `gcp.asyncio.ConnectionPool`."""

    async def warm_up(self, *endpoints: EndpointT, size: int | None = None, timeout: float | None = None) -> None:
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
        pool._check_loop()
        watch = begin_warm_up(pool, endpoints, size, timeout, None)
        await wait(watch)
        raise_errors(watch, logger, pool.name)

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until each endpoint that was given to `warm_up` has its `min_idle` connections, idle and used ones.

        :param timeout: how long to wait at most, seconds; ``None``: no limit
        :raises PoolNotReadyError: if it took longer; its cause is the last error of `create`
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        pool: Any = self
        pool._check_loop()
        await wait_and_conclude(begin_readiness(pool, timeout, None))

    async def retire(self, endpoint: EndpointT, timeout: float | None = None) -> None:
        """Take an endpoint out of use, and return when its connections are gone. It is not kept any more; until this
        returns, it takes no new acquires. Its idle connections are disposed of now, used ones when they are released,
        or at the time-out by force; releasing those later does nothing. Then the endpoint is forgotten, and may be used
        as if it were new.

        :param endpoint: the endpoint
        :param timeout: how long to wait for used connections, seconds; ``None``: until all are released
        :raises ConnectionPoolNotFound: if the pool knows no such endpoint
        """
        pool: Any = self
        pool._check_loop()
        watch = begin_retirement(pool, endpoint, timeout, None)
        try:
            await pool._disposer.dispose_in_background(DISPOSE_GRACE)
            if not await wait_until_done(watch):
                watch.force()
                await pool._disposer.dispose_in_background(FORCE_GRACE)
        finally:
            watch.close()

    async def wait_expired(self, timeout: float | None = None) -> None:
        """Wait until the last connection is gone that `expire` has expired.

        :param timeout: how long to wait at most, seconds; ``None``: no limit
        :raises TimeoutError: if it took longer
        """
        pool: Any = self
        pool._check_loop()
        await wait_and_conclude(begin_expiry(pool, timeout, None))

    async def suspend(
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
        pool._check_loop()
        watch = begin_suspension(pool, endpoint, mode, wait or drain, timeout, None)
        if watch is not None:
            await wait_and_conclude(watch)


async def wait_and_conclude(watch: Watch) -> None:
    """Wait until there is nothing left to wait for, or time has run out, and raise what is to be raised."""
    try:
        await wait_until_done(watch)
        watch.conclude()
    finally:
        watch.close()


async def wait(watch: Watch) -> None:
    """Wait until there is nothing left to wait for, or time has run out."""
    try:
        await wait_until_done(watch)
    finally:
        watch.close()


async def wait_until_done(watch: Watch) -> bool:
    """Wait likewise. Returns whether there is nothing left to wait for."""
    while not watch.done():
        seconds = watch.time_to_wait()
        if not seconds:
            return False
        watch.event = FutureEvent(asyncio.get_running_loop().create_future())
        await wait_for(watch.event, seconds)
    return True
