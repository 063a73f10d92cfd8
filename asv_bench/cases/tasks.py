"""More tasks than connections: how many are served, how evenly, how late, and what that costs. Wall time."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.adapters import TASKS, contests

from .contest import GCP, PREDECESSOR, Contest, interleave, repetitions
from .rows import Row, at_least, inform, unmeasured

COUNT, CONNS, HOLD = 1000, 10, 0.001
SECONDS, WARM_UP = 2.0, 0.3  # about a dozen turns for each: one turn more or less is not unfair
BARE = 'asyncio.Queue'


def case_tasks(effort: float) -> Iterator[Row]:
    """1000 asyncio tasks on 10 connections held 1 ms: against asyncio.Queue and the predecessor; by the clock"""
    peers = [peer for name in (GCP, BARE, PREDECESSOR) if not (peer := TASKS[name]).missing]
    run = {
        peer.name: lambda peer=peer: contests.hold_in_tasks(peer, COUNT, CONNS, HOLD, SECONDS, WARM_UP)
        for peer in peers
    }
    seen = Contest(interleave(run, repetitions(effort, 7)))
    what = f'{COUNT} tasks, {CONNS} connections, {HOLD * 1e3:g} ms'
    jain = seen.jain()
    yield at_least(f"{what}: Jain's index of served counts", 0.99, jain[GCP], **jain)
    yield at_least(f'{what}: served a second / by {BARE}', 97, 100 * seen.ratio(BARE), ' %', **seen.rates())
    told = f'{what}: served a second / by {PREDECESSOR}'
    if PREDECESSOR in seen.seen:
        yield at_least(told, 2, seen.ratio(PREDECESSOR), ' x', **seen.rates((GCP, PREDECESSOR)))
    else:
        yield unmeasured(told, 2, ' x', TASKS[PREDECESSOR].missing, is_ceiling=False)
    longest, ideal = seen.longest_wait(), COUNT / CONNS * HOLD
    yield inform(
        f'{what}: longest wait of all / (tasks / connections x hold)',
        longest / ideal,
        ' x',
        **{'longest wait, s': longest, 'ideal, s': ideal},
    )
