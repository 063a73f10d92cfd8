"""Other pools and queues: the same measurements for each. One that is not installed is n/a.

bench_peers.py measures them side by side in one run, and makes the tables of docs/performance.md."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from . import adapters, effort, loads, tracks
from .adapters import contests

TIMES = 1000
SIZE = 10
SECONDS = effort.choose(0.2, 0.5, 3.0)
WARM_UP = effort.choose(0.0, 0.1, 0.5)
PAIR, WITH = BODIES = 'acquire+release', 'with'

Seen = dict[str, loads.Seen]


def loop_of(peer: adapters.Peer, body: str, pool: Any) -> Callable[[int], Any]:
    return peer.pair(pool) if body == PAIR else peer.with_(pool)


def can(peer: adapters.Peer, body: str = PAIR) -> adapters.Peer:
    """Return a peer that can be measured.

    :raises NotImplementedError: when it is not: asv's n/a
    """
    if peer.missing:
        raise NotImplementedError(peer.missing)
    if body == WITH and not peer.context:
        raise NotImplementedError(f'{peer.name} has no context manager')
    return peer


class HitThreads(effort.Timed):
    """A thousand idle hits: in ms, or in us for one."""

    params = [list(adapters.THREADS), list(BODIES)]
    param_names = ['pool', 'body']
    stack: contextlib.ExitStack | None = None  # asv tears down what it skips, too

    def setup(self, name: str, body: str) -> None:
        peer = can(adapters.THREADS[name], body)
        self.stack = contextlib.ExitStack()
        self.hit = loop_of(peer, body, self.stack.enter_context(peer.open(SIZE)))

    def teardown(self, name: str, body: str) -> None:
        if self.stack is not None:
            self.stack.close()

    def time_idle_hit(self, name: str, body: str) -> None:
        self.hit(TIMES)


class HitTasks(effort.Timed):
    """The same for asyncio. asyncpg's server starts anew for each sample: there are few."""

    params = [list(adapters.TASKS), list(BODIES)]
    param_names = ['pool', 'body']
    repeat = effort.choose((1, 1, 1.0), (3, 5, 0.5), (5, 50, 5.0))
    loop: asyncio.AbstractEventLoop | None = None

    def setup(self, name: str, body: str) -> None:
        peer = can(adapters.TASKS[name], body)
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        pool = self.loop.run_until_complete(self.stack.enter_async_context(peer.open(SIZE)))
        self.hit = loop_of(peer, body, pool)

    def teardown(self, name: str, body: str) -> None:
        if self.loop is not None:
            self.loop.run_until_complete(self.stack.aclose())
            self.loop.close()
            adapters.stop_servers()

    def time_idle_hit(self, name: str, body: str) -> None:
        self.loop.run_until_complete(self.hit(TIMES))


class _Load:
    """Those that can be measured run once; each benchmark returns one of the values."""

    param_names = ['pool']
    timeout = 300

    def setup(self, seen: Seen, name: str) -> None:
        if name not in seen:
            raise NotImplementedError((adapters.THREADS | adapters.TASKS)[name].missing)

    @tracks.more('Jain index')
    def track_fairness(self, seen: Seen, name: str) -> float:
        return seen[name].fairness

    @tracks.more('1/s')
    def track_served_per_second(self, seen: Seen, name: str) -> float:
        return seen[name].rate

    @tracks.less('ms')
    def track_longest_wait(self, seen: Seen, name: str) -> float:
        return 1000 * seen[name].longest_wait


def installed(peers: dict[str, adapters.Peer]) -> Iterable[adapters.Peer]:
    return (peer for peer in peers.values() if not peer.missing)


class LoadThreads(_Load):
    """32 threads share 8 connections, each held for a millisecond."""

    params = list(adapters.THREADS)

    def setup_cache(self) -> Seen:
        return {
            peer.name: contests.hold_in_threads(peer, 32, 8, 0.001, SECONDS, WARM_UP)
            for peer in installed(adapters.THREADS)
        }


class LoadTasks(_Load):
    """1000 tasks share 10 connections, each held for a millisecond."""

    params = list(adapters.TASKS)

    def setup_cache(self) -> Seen:
        try:
            return {
                peer.name: contests.hold_in_tasks(peer, 1000, 10, 0.001, SECONDS, WARM_UP)
                for peer in installed(adapters.TASKS)
            }
        finally:
            adapters.stop_servers()
