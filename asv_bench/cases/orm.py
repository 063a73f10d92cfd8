"""A thousand sessions of SQLAlchemy's ORM, in threads and in tasks, that share ten connections to PostgreSQL.

The engine's pool is that of gcp, and SQLAlchemy's own. Each session reads a row and commits. On a busy machine, a
thread that does not get the processor while it holds a connection has fewer sessions than others, though it waits no
longer for a connection: so the waits are compared, too."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.adapters.peer import is_installed
from benchmarks.loads import jain

from gcp.demo.server import Server, ServerError, serve

from .contest import GCP, interleave, repetitions
from .rows import Row, at_least, at_most, inform, unmeasured

OWN = 'SQLAlchemy'
WHAT = f'a thousand ORM sessions: time / by {OWN}'
SESSIONS, SIZE, WARM_UP = 1000, 10, 0.3
KINDS = {'32 threads': ('psycopg', 32), '200 tasks': ('asyncpg', 200)}


@dataclass
class Seen:
    """What was seen of a thousand sessions.

    :ivar served: how many each worker had
    :ivar waits: how long each worker waited for a connection, on average, seconds
    :ivar seconds: how long all took
    :ivar is_exact: whether the pool's counts are those of the program; those of SQLAlchemy's pool are not looked at
    """

    served: list[int]
    waits: list[float]
    seconds: float
    is_exact: bool


class Tally:
    """Counts sessions: a thousand, once the warm-up is over. Threads that have just started are not served evenly by
    the system: some are in the queue before others run at all.

    :ivar counts: whether the warm-up is over
    :ivar served: how many of the thousand each worker had
    """

    def __init__(self, workers: int) -> None:
        self.counts = False
        self.served = [0] * workers
        self.waited = [0.0] * workers
        self._warm = [0] * workers
        self._budget = itertools.count()

    def goes_on(self, worker: int) -> bool:
        """Count a session that a worker is about to begin. Returns False when there were enough."""
        if not self.counts:
            self._warm[worker] += 1
            return True
        if next(self._budget) >= SESSIONS:
            return False
        self.served[worker] += 1
        return True

    def mean_waits(self) -> list[float]:
        """Return how long each worker waited for a connection, on average, seconds, the warm-up included."""
        begun = map(sum, zip(self.served, self._warm, strict=True))
        return [waited / count for waited, count in zip(self.waited, begun, strict=True) if count]

    @property
    def begun(self) -> int:
        """All sessions, those of the warm-up included."""
        return sum(self.served) + sum(self._warm)


def case_orm(effort: float) -> Iterator[Row]:
    """a thousand ORM sessions in 32 threads and 200 tasks on 10 connections, by SQLAlchemy; by the clock"""
    missing = [name for name in ('sqlalchemy', 'psycopg', 'asyncpg', 'greenlet') if not is_installed(name)]
    if missing:
        yield unmeasured(WHAT, 1.05, '', f'{missing[0]} is not installed')
        return
    logging.getLogger('gcp').setLevel(logging.ERROR)
    try:
        with serve(max_connections=50) as server:
            for what in KINDS:
                yield from rows(server, what, effort)
    except ServerError as error:
        yield unmeasured(WHAT, 1.05, '', str(error))


def rows(server: Server, what: str, effort: float) -> Iterator[Row]:
    """Measure both pools in turn."""
    run = {name: lambda name=name: one_round(server, what, name) for name in (GCP, OWN)}
    seen = interleave(run, repetitions(effort, 15))
    seconds = {name: statistics.median(one.seconds for one in all_of) for name, all_of in seen.items()}
    ratio = statistics.median(ours.seconds / theirs.seconds for ours, theirs in zip(seen[GCP], seen[OWN], strict=True))
    fair = {name: statistics.median(jain(one.served) for one in all_of) for name, all_of in seen.items()}
    yield at_most(f'{what}: time / by {OWN}', 1.05, ratio, **{f'{name}, s': took for name, took in seconds.items()})
    yield at_least(f"{what}: Jain's index of sessions", 0.99, fair[GCP], **fair)
    waits = {name: statistics.median(jain(one.waits) for one in all_of) for name, all_of in seen.items()}
    yield inform(f"{what}: Jain's index of the workers' mean waits", waits[GCP], **waits)
    yield at_least(
        f'{what}: part of rounds with exact metrics', 1.0, statistics.mean(one.is_exact for one in seen[GCP])
    )


def one_round(server: Server, what: str, name: str) -> Seen:
    """Run a thousand sessions, after a warm-up that opens the connections."""
    from sqlalchemy import URL
    from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

    from gcp.contrib.sqlalchemy import Pool

    driver, workers = KINDS[what]
    parameters = server.parameters
    url = URL.create(
        f'postgresql+{driver}',
        username=parameters['user'],
        database=parameters['dbname'],
        query={'host': str(parameters['host'])},
    )
    own = QueuePool if driver == 'psycopg' else AsyncAdaptedQueuePool
    options = {'poolclass': Pool if name == GCP else own, 'pool_size': SIZE, 'max_overflow': 0}
    return in_threads(url, options, workers) if driver == 'psycopg' else asyncio.run(in_tasks(url, options, workers))


def in_threads(url: Any, options: dict[str, Any], workers: int) -> Seen:
    """Run sessions in threads that begin together."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session

    engine = create_engine(url, **options)
    ask = text('SELECT 1')
    with contextlib.ExitStack() as stack:
        for _ in range(SIZE):
            stack.enter_context(engine.connect())
    before = counts(engine.pool)
    tally = Tally(workers)

    def work(number: int) -> None:
        while tally.goes_on(number):
            with Session(engine) as session:
                asked = time.perf_counter()
                session.connection()
                tally.waited[number] += time.perf_counter() - asked
                session.execute(ask).scalar_one()
                session.commit()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(workers)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP)
    tally.counts = True
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    exact = is_exact(engine.pool, before, tally)
    engine.dispose()
    return Seen(tally.served, tally.mean_waits(), took, exact)


async def in_tasks(url: Any, options: dict[str, Any], workers: int) -> Seen:
    """Run sessions in tasks that begin together."""
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(url, **options)
    ask = text('SELECT 1')
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(SIZE):
            await stack.enter_async_context(engine.connect())
    before = counts(engine.pool)
    tally = Tally(workers)

    async def work(number: int) -> None:
        while tally.goes_on(number):
            async with AsyncSession(engine) as session:
                asked = time.perf_counter()
                await session.connection()
                tally.waited[number] += time.perf_counter() - asked
                (await session.execute(ask)).scalar_one()
                await session.commit()

    tasks = [asyncio.create_task(work(number)) for number in range(workers)]
    await asyncio.sleep(WARM_UP)
    tally.counts = True
    began = time.perf_counter()
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    exact = is_exact(engine.pool, before, tally)
    await engine.dispose()
    return Seen(tally.served, tally.mean_waits(), took, exact)


def counts(pool: Any) -> tuple[int, int, int]:
    """Return how many acquires and releases there were, and how many connections were made."""
    if not hasattr(pool, 'pool'):
        return 0, 0, 0
    stats = pool.pool.stats()
    return sum(stats.acquires.values()), sum(stats.releases.values()), stats.created


def is_exact(pool: Any, before: tuple[int, int, int], tally: Tally) -> bool:
    """Tell whether the pool has counted the sessions, no more and no less."""
    if not hasattr(pool, 'pool'):
        return True
    stats = pool.pool.stats()
    acquires, releases, created = (now - then for now, then in zip(counts(pool), before, strict=True))
    return (acquires, releases, created, stats.idle, stats.used) == (tally.begun, tally.begun, 0, SIZE, 0)
