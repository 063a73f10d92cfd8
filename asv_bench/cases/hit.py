"""Acquiring and releasing an idle connection, on both fronts: beside a bare deque, and beside other pools.

Processor time of the one thread, in slices of a few milliseconds; medians of a hundred."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable, Iterator

from benchmarks import managers
from benchmarks.adapters import TASKS, THREADS, UNIT
from benchmarks.turns import Contender, clock, in_loop, take_turns

import gcp.threading

from .contest import GCP, PREDECESSOR, PSYCOPG, repetitions
from .rows import Row, at_least, at_most, inform, unmeasured


@contextlib.contextmanager
def everybody() -> Iterator[dict[str, Contender]]:
    """Open gcp and the installed peers; return their loops by the names of the peer and of the way to acquire."""
    loop = asyncio.new_event_loop()
    astage = contextlib.AsyncExitStack()
    with contextlib.ExitStack() as stage:
        stage.callback(loop.close)
        stage.callback(lambda: loop.run_until_complete(astage.aclose()))
        run = {UNIT.name: UNIT.pair(stage.enter_context(UNIT.open(1)))}
        for name in (GCP, PREDECESSOR, PSYCOPG):
            if (peer := THREADS[name]).missing:
                continue
            pool = stage.enter_context(peer.open(1))
            run[f'{name}: pair'] = peer.pair(pool)
            run[f'{name}: with'] = peer.with_(pool)
        for name in (GCP, PREDECESSOR):
            if (peer := TASKS[name]).missing:
                continue
            pool = loop.run_until_complete(astage.enter_async_context(peer.open(1)))
            run[f'{name}: await pair'] = in_loop(loop, peer.pair(pool))
            run[f'{name}: async with'] = in_loop(loop, peer.with_(pool))
        yield run


def case_hit(effort: float) -> Iterator[Row]:
    """acquire+release, with, async with: against a deque, the predecessor and psycopg_pool; processor time"""
    with everybody() as run:
        ns = take_turns(run, repetitions(effort, 100))

    def against(name: str, way: str, what: str, bound: float) -> Row:
        told = f'{what}: {name} / gcp'
        if name not in ns and f'{name}: {way}' not in ns:
            return unmeasured(told, bound, ' x', THREADS[name].missing, is_ceiling=False)
        theirs, ours = ns[f'{name}: {way}'], ns[f'gcp: {way}']
        return at_least(told, bound, theirs / ours, ' x', **{f'{name}, ns': theirs, 'gcp, ns': ours})

    def of_deque(way: str, what: str, bound: float | None) -> Row:
        ours, unit = ns[f'gcp: {way}'], ns[UNIT.name]
        return Row(f'{what} / deque pop+append', ours / unit, ' x', bound, True, {'gcp, ns': ours, 'deque, ns': unit})

    yield of_deque('pair', 'acquire+release', 3)
    yield against(PREDECESSOR, 'pair', 'acquire+release', 120)
    yield against(PSYCOPG, 'pair', 'acquire+release', 20)
    yield of_deque('with', 'with pool.connection()', 5)
    yield against(PREDECESSOR, 'with', 'with pool.connection()', 75)
    yield of_deque('async with', 'async with pool.connection()', 7)
    yield against(PREDECESSOR, 'async with', 'async with pool.connection()', 250)
    yield of_deque('await pair', 'await acquire + await release', None)
    by_hand, managed = ns['gcp: await pair'], ns['gcp: async with']
    yield at_most(
        'await acquire + await release / async with pool.connection()',
        1,
        by_hand / managed,
        ' x',
        **{'await pair, ns': by_hand, 'async with, ns': managed},
    )


# --- keys ---


def pair_of(key: Hashable) -> Contender:
    pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading))

    def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            conn = pool.acquire(key)
            pool.release(conn, key)
        return clock() - start

    return run


def pair_of_new_tuples() -> Contender:
    pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading))
    host, port = 'db-1.internal', 5432

    def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            key = (host, port)
            conn = pool.acquire(key)
            pool.release(conn, key)
        return clock() - start

    return run


def case_keys(effort: float) -> Iterator[Row]:
    """acquire+release with a tuple as the endpoint, against a str; processor time"""
    ns = take_turns(
        {
            'str': pair_of('db-1.internal'),
            'tuple': pair_of(('db-1.internal', 5432)),
            'new tuple': pair_of_new_tuples(),
            'int': pair_of(5432),
        },
        repetitions(effort, 100),
    )
    medians = {f'{name}, ns': value for name, value in ns.items()}
    yield at_most('acquire+release: tuple key / str key', 1.25, ns['tuple'] / ns['str'], ' x', **medians)
    yield inform('acquire+release: equal tuple made anew each time / str key', ns['new tuple'] / ns['str'], ' x')
    yield inform('acquire+release: int key / str key', ns['int'] / ns['str'], ' x')
