"""Evaluates a run: the figures, and whether the pools served every acquire and replaced every connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gcp.demo.losses import Losses, noticed
from gcp.demo.tally import Reading, milliseconds
from gcp.demo.work import Load

__all__ = ['Outcome', 'evaluate']


@dataclass
class Outcome:
    """The result of a run.

    :ivar figures: lines of figures
    :ivar faults: failures of the pools, a line each
    """

    figures: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = self.faults or ['every acquire was served, every lost connection was replaced']
        return '\n'.join([*self.figures, *verdict])


def evaluate(loads: Sequence[Load], losses: Losses, seconds: float) -> Outcome:
    """Check the connections of all pools, and compare the counts of the pools with those of the loads.

    :param loads: the loads, finished
    :param losses: the backends that were ended
    :param seconds: the duration of the load, seconds
    """
    outcome = Outcome()
    for load in loads:
        expected, present = _count_backends(load, losses, outcome)
        ended = losses.ended[load.name]
        seen, missed = load.tally.read(), len(ended) - noticed(load.stats())
        outcome.figures += _figures(load, seen, len(ended), missed, seconds)
        faults = [f'{what} ({count} times)' for what, count in seen.failures.items()]
        if seen.served != seen.asked:
            faults.append(f'{seen.asked - seen.served} of {seen.asked} acquires were not served')
        if missed > 0:
            faults.append(f'{missed} of {len(ended)} lost connections were not noticed')
        if len(present - set(ended)) != expected:
            faults.append(f'{expected} connections were expected at the end, {len(present - set(ended))} were there')
        outcome.faults += [f'{load.name}: {fault}' for fault in faults]
    return outcome


def _count_backends(load: Load, losses: Losses, outcome: Outcome) -> tuple[int, set[int]]:
    """Acquire as many connections as the pool has, or had before the losses, all at once. Return that number, and the
    process ids of the backends. A connection that was ended and not replaced is missing there."""
    sizes = {endpoint: counts.size for endpoint, counts in load.stats().endpoints.items()}
    expected = losses.before[load.name] | Counter(sizes)
    try:
        return expected.total(), set(load.backend_pids(list(expected.elements())))
    except Exception as error:
        outcome.faults.append(f'{load.name}: connections could not be checked: {type(error).__name__}: {error}')
        return expected.total(), set()


def _figures(load: Load, seen: Reading, ended: int, missed: int, seconds: float) -> list[str]:
    return [
        f'{load.workers} {load.name} on {load.stats().size} connections: '
        f'{seen.served:,} of {seen.asked:,} acquires served, {seen.served / seconds:,.0f} per second, '
        f'wait {milliseconds(seen.waits, 0.5)} p50, {milliseconds(seen.waits, 0.99)} p99',
        f'    backends ended: {ended}, noticed: {ended - missed}, queries tried again: {seen.retried}',
    ]
