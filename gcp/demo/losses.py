"""Ends connections on purpose: terminates a few backends, spread evenly over pools and endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gcp.demo.databases import ENDPOINTS, Databases, connect
from gcp.demo.work import Load
from gcp.stats import PoolStats

__all__ = ['Losses', 'noticed']

#: the parts of the run between which backends are ended: after all connections exist, and early enough for the pool to
#: notice the last loss and replace the connection
FROM, TO = 0.25, 0.75

END = """
    SELECT pid, pg_terminate_backend(pid)
    FROM (SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY random() LIMIT 1) AS victim
"""


@dataclass
class Losses:
    """Backends that were ended, and those that will be.

    :param server: connect parameters of the session that ends the others
    :param databases: gives the application names of the pools' connections
    :param loads: the loads whose connections are ended
    :param seconds: the duration of the run, seconds
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

    def end_due(self, elapsed: float) -> None:
        """End the backends that are due. Where a load has no connection yet, its backend stays due, until it is too
        late for the pool to notice the loss.

        :param elapsed: the time since the start of the run, seconds
        """
        for due in [due for due in self._due if due[0] <= elapsed]:
            _, load, endpoint = due
            known = load.stats().endpoints.get(endpoint)
            pids = self._end_one(load, endpoint)
            if pids or elapsed > TO * self.seconds:
                self._due.remove(due)
                self.before[load.name][endpoint] = known.size if known else 0
                self.ended[load.name] += pids

    def _end_one(self, load: Load, endpoint: str) -> list[int]:
        """End a backend that a load has at an endpoint. Return its process id in a list, empty if there is none."""
        with self._session.cursor() as cursor:
            cursor.execute(END, [self.databases.application_name(load.name, endpoint)])
            return [pid for pid, done in cursor.fetchall() if done]

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def noticed(stats: PoolStats[str]) -> int:
    """Return the number of broken connections that a pool has found and closed."""
    return sum(stats.closed.get(reason, 0) for reason in ('dead', 'discarded', 'error'))
