"""What an overridden hook that does nothing costs: the pool counts it, times it and calls it.

How much longer an acquire+release takes with the hook, compared with a call of the same method with the same
arguments in a bare loop, less the loop. Processor time of the one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from benchmarks import managers
from benchmarks.adapters import TASKS, THREADS
from benchmarks.turns import AsyncContender, Contender, clock, in_loop, take_turns

import gcp.asyncio
import gcp.threading

from .contest import repetitions
from .rows import Row, at_most

HOOKS = 'check_aliveness', 'on_acquire', 'on_release'


def empty(number: int) -> float:
    start = clock()
    for _ in range(number):
        pass
    return clock() - start


def call(hook: Callable[[object, object], object]) -> Contender:
    """Make a loop of bare calls, as the pool makes them: by position."""
    endpoint, conn = 'a', object()

    def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            hook(endpoint, conn)
        return clock() - start

    return run


def call_checking(hook: Callable[[object, object, float | None], object]) -> Contender:
    """The same for a blocking `check_aliveness`, which is told a timeout."""
    endpoint, conn, timeout = 'a', object(), None

    def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            hook(endpoint, conn, timeout)
        return clock() - start

    return run


def call_awaited(hook: Callable[[object, object], Awaitable[object]]) -> AsyncContender:
    """The same for asyncio: bare awaits."""
    endpoint, conn = 'a', object()

    async def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            await hook(endpoint, conn)
        return clock() - start

    return run


async def empty_coroutine(number: int) -> float:
    return empty(number)


def in_threads() -> dict[str, Contender]:
    """Make the contenders: pools with one hook, with none, bare calls, an empty loop."""
    peer = THREADS['gcp']

    def pair(*hooks: str) -> Contender:
        return peer.pair(gcp.threading.ConnectionPool(managers.blocking(gcp.threading, hooks=hooks)))

    run = {'empty': empty, 'plain': pair()}
    for name in HOOKS:
        run[name] = pair(name)
        hook = getattr(managers.blocking(gcp.threading, hooks=[name]), name)
        run[f'bare {name}'] = call_checking(hook) if name == 'check_aliveness' else call(hook)
    return run


def in_tasks(loop: asyncio.AbstractEventLoop) -> dict[str, Contender]:
    """As `in_threads`."""
    peer = TASKS['gcp']

    def pair(*hooks: str) -> Contender:
        pool = gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio, hooks=hooks))
        return in_loop(loop, peer.pair(pool))

    run = {'empty': in_loop(loop, empty_coroutine), 'plain': pair()}
    for name in HOOKS:
        run[name] = pair(name)
        hook = getattr(managers.asynchronous(gcp.asyncio, hooks=[name]), name)
        run[f'bare {name}'] = in_loop(loop, call_awaited(hook))
    return run


def compare(what: str, run: dict[str, Contender], effort: float) -> Iterator[Row]:
    ns = take_turns(run, repetitions(effort, 200))
    for name in HOOKS:
        extra, bare = ns[name] - ns['plain'], ns[f'bare {name}'] - ns['empty']
        yield at_most(
            f'{what}: what a no-op {name} adds to acquire+release / a bare call of it',
            1.3,
            extra / bare,
            ' x',
            **{'added, ns': extra, 'bare call, ns': bare, 'acquire+release without hooks, ns': ns['plain']},
        )


def case_hooks(effort: float) -> Iterator[Row]:
    """a hook that does nothing: what it adds, against a bare call (asyncio: a bare await); processor time"""
    yield from compare('threads', in_threads(), effort)
    loop = asyncio.new_event_loop()
    try:
        yield from compare('asyncio', in_tasks(loop), effort)
    finally:
        loop.close()
