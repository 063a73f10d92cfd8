"""What the workers do, and what the conductor may ask of a crowd of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from gcp.demo.databases import ENDPOINTS, ROWS
from gcp.demo.tally import Tally
from gcp.stats import PoolStats

__all__ = ['ACQUIRE_TIMEOUT', 'ATTEMPTS', 'CLOSE_TIMEOUT', 'ROLL', 'ROLL_TIMEOUT', 'GaveUpError', 'Load', 'Work']

ACQUIRE_TIMEOUT = 10.0
CLOSE_TIMEOUT = 0.5
ROLL_TIMEOUT = 5.0
ATTEMPTS = 5

WEIGHTS = (2, 1, 1)  # half of the work is to write to the primary
WRITE = 'UPDATE {table} SET balance = balance + 1 WHERE id = {id} RETURNING balance, pg_sleep(0.003)'
READ = 'SELECT sum(balance), pg_sleep(0.003) FROM {table} WHERE id BETWEEN {id} AND {id} + 100'
ROLL = 'SELECT pg_backend_pid()'


class GaveUpError(Exception):
    """A piece of work failed as often as it may be tried."""


class Work:
    """What there is to do, at random.

    :param table: on what
    :param seed: tells the workers' dice apart
    """

    def __init__(self, table: str, seed: int) -> None:
        self._table = table
        self._dice = random.Random(seed)

    def pick(self) -> tuple[str, str]:
        """Return an endpoint, and what to ask it."""
        [endpoint] = self._dice.choices(ENDPOINTS, WEIGHTS)
        question = WRITE if endpoint == ENDPOINTS[0] else READ
        return endpoint, question.format(table=self._table, id=self._dice.randint(1, ROWS))


class Load(Protocol):
    """A crowd of workers that share a pool.

    :ivar name: its name
    :ivar workers: how many there are
    :ivar tally: what they see
    """

    name: str
    workers: int
    tally: Tally

    def stats(self) -> PoolStats[str]:
        """Return what the pool says of itself."""

    def start(self) -> None:
        """Put the workers to work, until they are told that it is over."""

    def rest(self, timeout: float) -> bool:
        """Wait until the workers have done what they had begun.

        :param timeout: how long it may take
        :return: whether they have
        """

    def call_roll(self, endpoints: Sequence[str]) -> list[int]:
        """Hold a connection to each of the endpoints, all at once, and ask each for its backend.

        :param endpoints: the endpoints, each as often as it shall have connections
        :return: the backends' process ids
        """

    def close(self) -> None:
        """Close the pool."""
