"""Loses connections on purpose: ends a handful of backends, evenly over the pools and endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gcp.demo.databases import ENDPOINTS, Databases, connect
from gcp.demo.work import Load
from gcp.stats import PoolStats

__all__ = ['Losses', 'noticed']

#: The parts of the run between which backends are ended: not before all connections are there, and early enough for the
#: last loss to be noticed and made good.
FROM, TO = 0.25, 0.75

END = '''
    SELECT pid, pg_terminate_backend(pid)
    FROM (SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY random() LIMIT 1) AS victim
'''


@dataclass
class Losses:
    """What was ended so far, and what is still to be.

    :param server: connect parameters of a session to end others from
    :param databases: how the server knows the pools' connections
    :param loads: whose connections
    :param seconds: how long the run takes
    :ivar ended: process ids of the backends that were ended, by load
    :ivar before: how many connections a load had to an endpoint before any of them was lost
    """

    server: Mapping[str, str]
    databases: Databases
    loads: Sequence[Load]
    seconds: float
    ended: dict[str, list[int]] = field(init=False)
    before: dict[str, Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.ended = {load.name: [] for load in self.loads}
        self.before = {load.name: Counter() for load in self.loads}
        turns = [(load, endpoint) for endpoint in ENDPOINTS for load in self.loads]
        step = (TO - FROM) / len(turns)
        self._due = [((FROM + number * step) * self.seconds, *turn) for number, turn in enumerate(turns)]
        self._session = connect(self.server)

    def inflict(self, elapsed: float) -> None:
        """End the backends whose time has come.

        :param elapsed: for how long the run has gone on
        """
        while self._due and self._due[0][0] <= elapsed:
            _, load, endpoint = self._due.pop(0)
            known = load.stats().endpoints.get(endpoint)
            self.before[load.name][endpoint] = known.size if known else 0
            with self._session.cursor() as cursor:
                cursor.execute(END, [self.databases.application_name(load.name, endpoint)])
                self.ended[load.name] += [pid for pid, done in cursor.fetchall() if done]

    def close(self) -> None:
        """End the session."""
        self._session.close()


def noticed(stats: PoolStats[str]) -> int:
    """How many connections a pool has found lost, and disposed of."""
    return sum(stats.closed.get(reason, 0) for reason in ('dead', 'discarded', 'error'))
