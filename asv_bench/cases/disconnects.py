"""A FastAPI service whose clients disconnect at random, while all cores are busy: when its places come back.

One of its endpoints streams from a generator that reads from another one. If the response waits for its client when
that disconnects, nothing closes the inner one, and here it is part of a reference cycle: its lease waits for the
garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from benchmarks import managers

import gcp.asyncio

from .rows import Row, at_most, inform, unmeasured

SIZE, CLIENTS, SECONDS = 4, 40, 2.0
ROWS = bytes(2**19)  # more than the buffers of a connection hold: a response waits for its client
PATIENCE = 60.0  # for what is to come back, seconds
FULL, LEAST = 50, 2  # runs
WITH, WITHOUT = 'reclaim_abandoned=True', 'without it'


@dataclass
class Outcome:
    """What came of some runs.

    :ivar gone: for how long each place that a task which was done had not given back was gone, seconds
    :ivar lost: places that never came back
    :ivar unnamed: places that did not come back, and that `holders()` did not name as those of a task that is done
    :ivar left: places that were still gone when all clients were
    """

    runs: int = 0
    requests: int = 0
    cut: int = 0
    gone: list[float] = field(default_factory=list)
    left: int = 0
    lost: int = 0
    unnamed: int = 0
    reclaim_runs: int = 0


def make_service(pool: Any) -> Any:
    """Make a service with a dependency that yields a connection, a middleware, and responses that stream a cursor."""
    from fastapi import Depends, FastAPI, Request
    from starlette.responses import StreamingResponse

    app = FastAPI()
    numbers = itertools.count()

    def lease() -> Any:
        return pool.connection('db', tag=str(next(numbers)))

    @app.middleware('http')
    async def named(request: Any, call_next: Callable[[Any], Any]) -> Any:
        response = await call_next(request)
        response.headers['x-served-by'] = 'gcp'
        return response

    async def connection() -> AsyncIterator[Any]:
        async with lease() as conn:
            yield conn

    connected = Depends(connection)

    async def cursor() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0.005)
            yield ROWS

    @app.get('/query')
    async def query(conn: Any = connected) -> dict[str, int]:
        await asyncio.sleep(0.005)
        return {'rows': 1}

    @app.get('/rows')
    async def rows(conn: Any = connected) -> Any:
        return StreamingResponse(cursor())

    @app.get('/export')
    async def export() -> Any:
        async def stream() -> AsyncIterator[bytes]:
            async with lease():
                async for row in cursor():
                    yield row

        return StreamingResponse(stream())

    async def report(request: Any) -> Any:
        async def read() -> AsyncIterator[bytes]:
            async with lease():
                async for row in cursor():
                    request.state.rows += 1
                    yield row

        async def stream(first: bytes) -> AsyncIterator[bytes]:
            yield first
            async for row in request.state.reader:
                yield row

        request.state.rows = 0
        request.state.reader = read()  # a cycle: the request, and the generator that counts its rows
        return StreamingResponse(stream(await anext(request.state.reader)))

    report.__annotations__['request'] = Request
    app.get('/report')(report)
    return app


async def visit(port: int, luck: random.Random, outcome: Outcome) -> None:
    """Send a request, and disconnect at a random moment, or read the answer to its end."""
    path = luck.choice(['query', 'rows', 'export', 'report'])
    try:
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(f'GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'.encode())
        outcome.requests += 1
        if luck.random() < 0.7:
            outcome.cut += 1
            if luck.random() < 0.5:
                await reader.read(1)
            await asyncio.sleep(luck.random() * 0.2)
            writer.transport.abort()
        else:
            await reader.read()
            writer.close()
    except OSError:
        pass


async def watch(pool: Any, outcome: Outcome, over: asyncio.Event) -> None:
    """Note for how long places are held by tasks that are done."""
    since: dict[Any, float] = {}
    while not over.is_set() or since:
        now = time.monotonic()
        gone = {one.tag for one in pool.holders() if not one.alive}
        for tag in since.keys() - gone:
            outcome.gone.append(now - since.pop(tag))
        for tag in gone:
            since.setdefault(tag, now)
        await asyncio.sleep(0.02)


async def run(reclaims: bool, seed: int, outcome: Outcome) -> None:
    """Serve clients for a while; see to it that all places come back, or that those that do not are told of."""
    import uvicorn

    luck = random.Random(seed)
    pool = gcp.asyncio.ConnectionPool(
        managers.asynchronous(gcp.asyncio), max_size=SIZE, min_idle=0, reclaim_abandoned=reclaims, registry=None
    )
    config = uvicorn.Config(make_service(pool), port=0, log_level='critical', lifespan='off')
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    ends = time.monotonic() + SECONDS
    over = asyncio.Event()
    watching = asyncio.ensure_future(watch(pool, outcome, over))

    async def client() -> None:
        while time.monotonic() < ends:
            await visit(port, luck, outcome)

    holding: list[int] = []

    async def hold() -> None:
        """Acquire, and keep the connection until all places are back."""
        async with pool.connection('db', timeout=PATIENCE):
            holding.append(1)
            await until(lambda: len(holding) == SIZE)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    outcome.runs += 1
    await until(lambda: all(not one.alive for one in pool.holders()))
    left = pool.holders()
    outcome.left += len(left)
    outcome.unnamed += sum(one.alive or one.stack() != 'the task is done' for one in left)
    if reclaims:
        await asyncio.gather(*(hold() for _ in range(SIZE)))
    else:
        gc.collect()
        await until(lambda: not pool.holders())
    outcome.lost += len(pool.holders())
    over.set()
    await watching
    outcome.reclaim_runs += pool.stats().reclaim_runs
    server.should_exit = True
    await serving
    await pool.close(0)


async def until(predicate: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not predicate() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep all cores busy."""
    code = 'while True: pass'
    processes = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Have the pool log no warnings of what is to be seen here."""
    logger = logging.getLogger('gcp')
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def measure(reclaims: bool, runs: int) -> Outcome:
    """Run a number of times."""
    outcome = Outcome()
    with busy_cores(), silence():
        for seed in range(runs):
            asyncio.run(run(reclaims, seed, outcome))
    return outcome


def case_disconnects(effort: float) -> Iterator[Row]:
    """A FastAPI service whose clients disconnect at random, cores busy: places of tasks that are done"""
    runs = max(LEAST, round(FULL * effort))
    what = f'{runs} runs, {WITH}: the longest time for which a place was gone'
    if find_spec('fastapi') is None or find_spec('uvicorn') is None:
        yield unmeasured(what, 10.0, ' s', 'fastapi and uvicorn are not installed')
        return
    seen = measure(True, runs)
    yield at_most(what, 10.0, max(seen.gone, default=0.0), ' s', places=len(seen.gone), reclaims=seen.reclaim_runs)
    yield at_most(f'{runs} runs, {WITH}: places that never came back', 0, seen.lost)
    seen = measure(False, runs)
    yield inform(f'{runs} runs, {WITHOUT}: places that were gone when all clients were', seen.left)
    yield at_most(f'{runs} runs, {WITHOUT}: of these, not named as those of a task that is done', 0, seen.unnamed)
