"""More threads than connections: who is served, how evenly, how late, and how much that costs. Wall time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import loads
from benchmarks.adapters import THREADS, Peer

from .contest import GCP, PREDECESSOR, PSYCOPG, Contest, interleave, repetitions
from .rows import Row, at_least, at_most, inform, unmeasured

BARGING = 'queue.SimpleQueue'
SECONDS, WARM_UP = 0.6, 0.15
FAIR = 0.95
"""Jain's index from which on a peer counts as fair."""


def contest(run: Callable[[Peer], loads.Seen], times: int, *names: str) -> Contest:
    """Let the peers that are installed take turns: all, or these."""
    peers = [peer for name, peer in THREADS.items() if not peer.missing and (not names or name in names)]
    return Contest(interleave({peer.name: lambda peer=peer: run(peer) for peer in peers}, times))


def wait_in_line(effort: float, threads: int, conns: int, hold: float) -> Iterator[Row]:
    """Let threads hold connections, again and again."""
    def load(peer: Peer) -> loads.Seen:
        with peer.open(conns) as pool:
            return loads.in_threads([peer.worker(pool)] * threads, hold, SECONDS, WARM_UP)

    seen = contest(load, repetitions(effort, 7))
    what = f'{threads} threads, {conns} connections, {hold * 1e3:g} ms'
    jain = seen.jain()
    yield at_least(f"{what}: Jain's index of served counts", 0.99, jain[GCP], **jain)
    yield at_least(
        f'{what}: served a second / by {BARGING}, which barges', 97, 100 * seen.ratio(BARGING), ' %', **seen.rates())
    for name in seen.others:
        if jain[name] >= FAIR:
            yield at_least(
                f'{what}: served a second / by {name}, as fair', 1, seen.ratio(name), ' x', **seen.rates((GCP, name)))
        elif name != BARGING:
            yield inform(
                f'{what}: served a second / by {name} (Jain {jain[name]:.2f})', seen.ratio(name), ' x',
                **seen.rates((GCP, name)))
    longest, ideal = seen.longest_wait(), threads / conns * hold
    yield at_most(
        f'{what}: longest wait of all / (threads / connections x hold)', 3, longest / ideal, ' x',
        **{'longest wait, s': longest, 'ideal, s': ideal})


def case_threads(effort: float) -> Iterator[Row]:
    """32 threads on 8 connections held 1 ms, 200 on 10: fairness, throughput, longest wait"""
    yield from wait_in_line(effort, 32, 8, 0.001)
    yield from wait_in_line(effort, 200, 10, 0.001)


# --- no hold: nothing but taking and giving back ---

def race(peer: Peer, threads: int, conns: int) -> loads.Seen:
    """Let threads do nothing but take and give back. They count by the batch, so that a pool is all that it costs."""
    batch = 20
    with peer.open(conns) as pool:
        served = [0] * threads
        stop = threading.Event()

        def work(number: int, run: Callable[[int], float]) -> None:
            while not stop.is_set():
                run(batch)
                served[number] += batch

        workers = [threading.Thread(target=work, args=(number, peer.pair(pool))) for number in range(threads)]
        for worker in workers:
            worker.start()
        time.sleep(WARM_UP)
        before, start = served.copy(), time.monotonic()
        time.sleep(SECONDS)
        after, seconds = served.copy(), time.monotonic() - start
        stop.set()
        for worker in workers:
            worker.join()
    return loads.Seen([late - early for early, late in zip(before, after, strict=True)], seconds)


def case_race(effort: float) -> Iterator[Row]:
    """8 threads on 4 connections, not held at all: throughput against psycopg_pool and the predecessor, fairness"""
    what = '8 threads, 4 connections, no hold'
    seen = contest(
        lambda peer: race(peer, 8, 4), repetitions(effort, 9), GCP, PREDECESSOR, PSYCOPG, BARGING)
    for name in (PSYCOPG, PREDECESSOR):
        told = f'{what}: served a second / by {name}'
        if name in seen.seen:
            yield at_least(told, 5, seen.ratio(name), ' x', **seen.rates((GCP, name)))
        else:
            yield unmeasured(told, 5, ' x', THREADS[name].missing)
    yield inform(f'{what}: served a second / by {BARGING}', seen.ratio(BARGING), ' x', **seen.rates((GCP, BARGING)))
    jain = seen.jain()
    yield at_least(f"{what}: Jain's index of served counts", 0.95, jain[GCP], **jain)
