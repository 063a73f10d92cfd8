"""The workers' queries, and the interface of a load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from gcp.demo.databases import ENDPOINTS, ROWS
from gcp.demo.tally import Tally
from gcp.stats import PoolStats

__all__ = ['ACQUIRE_TIMEOUT', 'ATTEMPTS', 'CLOSE_TIMEOUT', 'PID_QUERY', 'PID_TIMEOUT', 'GaveUpError', 'Load', 'Work']

ACQUIRE_TIMEOUT = 10.0
CLOSE_TIMEOUT = 3.0  # what an event loop has not closed when it ends stays open
PID_TIMEOUT = 5.0
ATTEMPTS = 5

WEIGHTS = (2, 1, 1)  # half of the queries write to the primary
WRITE = 'UPDATE {table} SET balance = balance + 1 WHERE id = {id} RETURNING balance, pg_sleep(0.003)'
READ = 'SELECT sum(balance), pg_sleep(0.003) FROM {table} WHERE id BETWEEN {id} AND {id} + 100'
PID_QUERY = 'SELECT pg_backend_pid()'


class GaveUpError(Exception):
    """A query has failed at each of its attempts."""


class Work:
    """Random queries.

    :param table: the table to query
    :param seed: the seed of the random numbers
    """

    def __init__(self, table: str, seed: int) -> None:
        self._table = table
        self._random = random.Random(seed)

    def pick(self) -> tuple[str, str]:
        """Return an endpoint and a query."""
        [endpoint] = self._random.choices(ENDPOINTS, WEIGHTS)
        query = WRITE if endpoint == ENDPOINTS[0] else READ
        return endpoint, query.format(table=self._table, id=self._random.randint(1, ROWS))


class Load(Protocol):
    """Workers that share a pool.

    :ivar name: the name of the load
    :ivar workers: the number of workers
    :ivar tally: their counts
    """

    name: str
    workers: int
    tally: Tally

    def stats(self) -> PoolStats[str]:
        """Return the statistics of the pool."""

    def start(self) -> None:
        """Start the workers. They run until the event given at construction is set."""

    def wait_finished(self, timeout: float) -> bool:
        """Wait until all workers have finished.

        :param timeout: how long to wait, seconds
        :return: whether they have finished
        """

    def backend_pids(self, endpoints: Sequence[str]) -> list[int]:
        """Hold connections to several endpoints at once, and return the process ids of their backends.

        :param endpoints: the endpoints, each as often as connections to it are wanted
        :return: the process ids
        """

    def close(self) -> None:
        """Close the pool."""
