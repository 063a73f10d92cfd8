"""Workers that compete for the connections of a peer: more of them than there are connections."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from .. import loads
from .peer import Peer

BATCH = 20
"""How often a racer takes and gives back before it counts and looks whether it is over: that must not cost more than
the pool."""


def hold_in_threads(
    peer: Peer,
    threads: int,
    connections: int,
    hold: float,
    seconds: float,
    warm_up: float = 0.0,
) -> loads.Seen:
    """Let threads acquire a connection, hold it for some time, and release it.

    :param hold: for how long, seconds
    :param seconds: for how long to measure
    :param warm_up: for how long to let them run before that, seconds
    """
    with peer.open(connections) as pool:
        return loads.in_threads([peer.worker(pool)] * threads, hold, seconds, warm_up)


def hold_in_tasks(
    peer: Peer,
    tasks: int,
    connections: int,
    hold: float,
    seconds: float,
    warm_up: float = 0.0,
) -> loads.Seen:
    """The same with tasks of asyncio, in a loop of their own."""

    async def run() -> loads.Seen:
        async with peer.open(connections) as pool:
            return await loads.in_tasks([peer.worker(pool)] * tasks, hold, seconds, warm_up)

    return asyncio.run(run())


def race_in_threads(peer: Peer, threads: int, connections: int, seconds: float, warm_up: float = 0.0) -> loads.Seen:
    """Let threads do nothing but acquire and release. Their waits are not measured."""
    served = [0] * threads
    over = threading.Event()

    def work(number: int, run: Callable[[int], float]) -> None:
        while not over.is_set():
            run(BATCH)
            served[number] += BATCH

    with peer.open(connections) as pool:
        workers = [threading.Thread(target=work, args=(number, peer.pair(pool))) for number in range(threads)]
        for worker in workers:
            worker.start()
        try:
            time.sleep(warm_up)
            before, start = served.copy(), time.monotonic()
            time.sleep(seconds)
            after, took = served.copy(), time.monotonic() - start
        finally:
            over.set()
            for worker in workers:
                worker.join()
    return loads.Seen([late - early for early, late in zip(before, after, strict=True)], took)
