"""More threads than connections: how many are served, how evenly, how late, and what that costs. Wall time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import loads
from benchmarks.adapters import THREADS, Peer, contests

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
    """Let threads hold connections repeatedly."""
    seen = contest(
        lambda peer: contests.hold_in_threads(peer, threads, conns, hold, SECONDS, WARM_UP), repetitions(effort, 7)
    )
    what = f'{threads} threads, {conns} connections, {hold * 1e3:g} ms'
    jain = seen.jain()
    yield at_least(f"{what}: Jain's index of served counts", 0.99, jain[GCP], **jain)
    yield at_least(
        f'{what}: served a second / by {BARGING}, which barges', 97, 100 * seen.ratio(BARGING), ' %', **seen.rates()
    )
    for name in seen.others:
        if jain[name] >= FAIR:
            yield at_least(
                f'{what}: served a second / by {name}, as fair', 1, seen.ratio(name), ' x', **seen.rates((GCP, name))
            )
        elif name != BARGING:
            yield inform(
                f'{what}: served a second / by {name} (Jain {jain[name]:.2f})',
                seen.ratio(name),
                ' x',
                **seen.rates((GCP, name)),
            )
    longest, ideal = seen.longest_wait(), threads / conns * hold
    yield at_most(
        f'{what}: longest wait of all / (threads / connections x hold)',
        3,
        longest / ideal,
        ' x',
        **{'longest wait, s': longest, 'ideal, s': ideal},
    )


def case_threads(effort: float) -> Iterator[Row]:
    """32 threads on 8 connections held 1 ms, 200 on 10: fairness, throughput, longest wait; by the clock"""
    yield from wait_in_line(effort, 32, 8, 0.001)
    yield from wait_in_line(effort, 200, 10, 0.001)


def case_race(effort: float) -> Iterator[Row]:
    """8 threads on 4 connections without a hold: throughput against other pools, fairness; by the clock"""
    what = '8 threads, 4 connections, no hold'
    seen = contest(
        lambda peer: contests.race_in_threads(peer, 8, 4, SECONDS, WARM_UP),
        repetitions(effort, 9),
        GCP,
        PREDECESSOR,
        PSYCOPG,
        BARGING,
    )
    for name in (PSYCOPG, PREDECESSOR):
        told = f'{what}: served a second / by {name}'
        if name in seen.seen:
            yield at_least(told, 5, seen.ratio(name), ' x', **seen.rates((GCP, name)))
        else:
            yield unmeasured(told, 5, ' x', THREADS[name].missing, is_ceiling=False)
    yield inform(f'{what}: served a second / by {BARGING}', seen.ratio(BARGING), ' x', **seen.rates((GCP, BARGING)))
    jain = seen.jain()
    yield at_least(f"{what}: Jain's index of served counts", 0.95, jain[GCP], **jain)
