"""Idle hits of every kind, each in stretches of a known length: what `instructions.py` runs under valgrind.

A stretch begins and ends with a call of getppid(), a function of libc that nothing else here calls. At each call,
callgrind ends one part of its output and begins the next."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a clone, built in place but not installed

import gcp.asyncio
import gcp.threading

WARM = 200
"""How often before the first stretch: what the interpreter specializes after some runs, it has specialized then."""

Stretch = Callable[[int], None]

HOOKS = ('check_aliveness', 'on_acquire', 'on_release')


# --- managers: with no hook, or one that does nothing ---


class Blocking(gcp.threading.BaseConnectionManager[Any, object]):
    def create(self, endpoint: object, timeout: float | None = None) -> object:
        return object()

    def dispose(self, endpoint: object, conn: object, timeout: float | None = None) -> None:
        pass


class Asynchronous(gcp.asyncio.BaseConnectionManager[Any, object]):
    async def create(self, endpoint: object) -> object:
        return object()

    async def dispose(self, endpoint: object, conn: object) -> None:
        pass


def check(self: object, endpoint: object, conn: object, timeout: float | None = None) -> bool:
    return True


def notice(self: object, endpoint: object, conn: object) -> None:
    pass


async def check_later(self: object, endpoint: object, conn: object) -> bool:
    return True


async def notice_later(self: object, endpoint: object, conn: object) -> None:
    pass


def hooked(base: type, hook: str) -> Any:
    """Make a manager that overrides one hook."""
    if base is Blocking:
        return type('Hooked', (base,), {hook: check if hook == 'check_aliveness' else notice})()
    return type('Hooked', (base,), {hook: check_later if hook == 'check_aliveness' else notice_later})()


# --- stretches ---


def deque_pair(times: int) -> None:
    bare = deque([object()])
    for _ in range(times):
        conn = bare.pop()
        bare.append(conn)


def blocking_pair(endpoint: object, manager: Any) -> Stretch:
    pool = gcp.threading.ConnectionPool(manager)

    def run(times: int) -> None:
        for _ in range(times):
            conn = pool.acquire(endpoint)
            pool.release(conn, endpoint)

    return run


def blocking_with(endpoint: object, manager: Any) -> Stretch:
    pool = gcp.threading.ConnectionPool(manager)

    def run(times: int) -> None:
        for _ in range(times):
            with pool.connection(endpoint):
                pass

    return run


def await_pair(endpoint: object, manager: Any) -> Callable[[int], Awaitable[None]]:
    pool = gcp.asyncio.ConnectionPool(manager)

    async def run(times: int) -> None:
        for _ in range(times):
            conn = await pool.acquire(endpoint)
            await pool.release(conn, endpoint)

    return run


def async_with(endpoint: object, manager: Any) -> Callable[[int], Awaitable[None]]:
    pool = gcp.asyncio.ConnectionPool(manager)

    async def run(times: int) -> None:
        for _ in range(times):
            async with pool.connection(endpoint):
                pass

    return run


def scenarios(in_loop: Callable[[Callable[[int], Awaitable[None]]], Stretch]) -> Iterator[tuple[str, Stretch]]:
    """What is counted, by name."""
    address = ('db-1.internal', 5432)
    yield 'deque: pop, append', deque_pair
    yield 'threads: acquire, release', blocking_pair('db', Blocking())
    yield 'threads: acquire, release, tuple key', blocking_pair(address, Blocking())
    yield 'threads: with connection', blocking_with('db', Blocking())
    for hook in HOOKS:
        yield f'threads: acquire, release, {hook}', blocking_pair('db', hooked(Blocking, hook))
    yield 'asyncio: acquire, release', in_loop(await_pair('db', Asynchronous()))
    yield 'asyncio: acquire, release, tuple key', in_loop(await_pair(address, Asynchronous()))
    yield 'asyncio: async with connection', in_loop(async_with('db', Asynchronous()))
    for hook in HOOKS:
        yield f'asyncio: acquire, release, {hook}', in_loop(await_pair('db', hooked(Asynchronous, hook)))


def main() -> None:
    """Run all stretches, of the lengths in the arguments. Prints the core's path, and the names of the stretches."""
    lengths = [int(argument) for argument in sys.argv[1:]]
    loop = asyncio.new_event_loop()

    def in_loop(run: Callable[[int], Awaitable[None]]) -> Stretch:
        async def body(times: int) -> None:
            await run(times)

        return lambda times: loop.run_until_complete(body(times))

    print(os.path.realpath(gcp._core.__file__))
    gc.disable()
    for name, run in scenarios(in_loop):
        print(name)
        run(WARM)
        for times in lengths:
            os.getppid()
            run(times)
        os.getppid()
    loop.close()


if __name__ == '__main__':
    main()
