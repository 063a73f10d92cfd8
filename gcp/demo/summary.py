"""What came of it: the figures, and whether the pools kept their word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gcp.demo.losses import Losses, noticed
from gcp.demo.tally import Reading, milliseconds
from gcp.demo.work import Load

__all__ = ['Outcome', 'judge']


@dataclass
class Outcome:
    """How it ended.

    :ivar figures: what there is to tell, a line each
    :ivar faults: where the pools did not keep their word, a line each
    """

    figures: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = self.faults or ['every acquire was served, every lost connection was replaced']
        return '\n'.join([*self.figures, *verdict])


def judge(loads: Sequence[Load], losses: Losses, seconds: float) -> Outcome:
    """Call the rolls, and judge what the pools did.

    :param loads: the loads, at rest
    :param losses: what they lost
    :param seconds: for how long they worked
    """
    outcome = Outcome()
    for load in loads:
        expected, present = _roll(load, losses, outcome)
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


def _roll(load: Load, losses: Losses, outcome: Outcome) -> tuple[int, set[int]]:
    """Have all connections answer that there are, or were before the losses. Those that were lost and not replaced
    cannot. Return how many were expected, and the backends that answered."""
    sizes = {endpoint: counts.size for endpoint, counts in load.stats().endpoints.items()}
    expected = losses.before[load.name] | Counter(sizes)
    try:
        return expected.total(), set(load.call_roll(list(expected.elements())))
    except Exception as error:
        outcome.faults.append(f'{load.name}: roll-call: {type(error).__name__}: {error}')
        return expected.total(), set()


def _figures(load: Load, seen: Reading, ended: int, missed: int, seconds: float) -> list[str]:
    return [
        f'{load.workers} {load.name} on {load.stats().size} connections: '
        f'{seen.served:,} of {seen.asked:,} acquires served, {seen.served / seconds:,.0f} per second, '
        f'wait {milliseconds(seen.waits, 0.5)} p50, {milliseconds(seen.waits, 0.99)} p99',
        f'    backends ended: {ended}, noticed: {ended - missed}, queries tried again: {seen.lost}',
    ]
