"""HikariCP's spike: how long the slowest request took, and whether one created while a connection was idle.

Without `connect_workers`, creation is inline: a request that has begun to create waits for its own connection. From the
log of when each request asked, began to create, got and released: an idle connection was passed over when it certainly
was idle from before a request asked until that request began to create. With `connect_workers`, which psycopg_pool has
always (as `num_workers`), requests take what is released first."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import spike
from benchmarks.adapters import TASKS, THREADS

from .contest import GCP, PSYCOPG, interleave, repetitions
from .rows import Row, at_most, inform, unmeasured


def case_spike(effort: float) -> Iterator[Row]:
    """5 idle connections, 50 requests at once, connect 150 ms, use 2 ms: the slowest; none passed over; by the clock"""
    seen: dict[str, list[spike.Spike]] = interleave(spike.FRONTS, repetitions(effort, 11))
    what = f'{spike.REQUESTS} requests at once, {spike.IDLE} idle connections, connect {spike.CONNECT * 1e3:g} ms'
    for front, spikes in seen.items():
        slowest = statistics.median(one.slowest for one in spikes) * 1e3
        created = statistics.median(one.created for one in spikes)
        yield at_most(
            f'{what}, {front}: the slowest, from asking to having given back',
            165,
            slowest,
            ' ms',
            **{'slowest, ms': slowest, 'created': created},
        )
        passed_over = sum(one.passed_over for one in spikes)
        yield at_most(f'{what}, {front}: idle connections passed over, in all {len(spikes)} spikes', 0, passed_over)
    for front in spike.FRONTS:
        yield from with_workers(front, f'{what}, {spike.WORKERS} workers, {front}', repetitions(effort, 11))


def with_workers(front: str, what: str, times: int) -> Iterator[Row]:
    """gcp and psycopg_pool, in turn."""
    missing = {'threads': THREADS, 'asyncio': TASKS}[front][PSYCOPG].missing
    run = {GCP: spike.WITH_WORKERS[front]} | ({} if missing else {PSYCOPG: spike.OF_PSYCOPG_POOL[front]})
    seen: dict[str, list[spike.Spike]] = interleave(run, times)
    slowest = {name: statistics.median(one.slowest for one in spikes) * 1e3 for name, spikes in seen.items()}
    created = {name: max(one.created for one in spikes) for name, spikes in seen.items()}
    yield at_most(f'{what}, {GCP}: the slowest', 60, slowest[GCP], ' ms')
    yield at_most(f'{what}, {GCP}: connections created, at most', 12, created[GCP])
    if missing:
        yield unmeasured(f'{what}, {PSYCOPG}: the slowest', 60, ' ms', missing)
        return
    yield inform(f'{what}, {PSYCOPG}: the slowest', slowest[PSYCOPG], ' ms')
    yield inform(f'{what}, {PSYCOPG}: connections created, at most', created[PSYCOPG])
