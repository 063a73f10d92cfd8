"""What is logged of holders and of waits: one message each, with all that is needed to find the code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic

from gcp._core import describe
from gcp.holders import HolderInfo

__all__ = ['Messages']

Find = Callable[[], Sequence[HolderInfo]]

WARNING_INTERVAL = 60.0
"""Long waits, and acquires that wait for their own caller, are told at most so often, seconds."""


class Messages:
    """Logs for one pool."""

    def __init__(self, logger: logging.Logger, pool: str) -> None:
        self._logger = logger
        self._pool = pool
        self._told: dict[str, float] = {}
        self._turns: dict[tuple[str, float, int], object] = {}

    def _is_time_to(self, tell: str) -> bool:
        """Whether to tell something now: of threads that ask at the same time, one is to. If a signal keeps that one
        from it, another one is to after the next interval."""
        now = monotonic()
        last = self._told.get(tell, -WARNING_INTERVAL)
        if now - last < WARNING_INTERVAL:
            return False
        mine, turn = object(), (tell, last, int((now - last) // WARNING_INTERVAL))
        if self._turns.setdefault(turn, mine) is not mine:
            return False
        self._told[tell] = now
        for other in list(self._turns):
            if other[0] == tell and other != turn:
                self._turns.pop(other, None)
        return True

    def _log(self, level: int, message: str, *args: object) -> None:
        try:
            self._logger.log(level, '%s: ' + message, self._pool, *args)
        except Exception:  # of a handler: it changes nothing
            pass

    def long_wait(self, waiter: HolderInfo, block: str, holds_one: bool, find: Find) -> None:
        """An acquire without a time limit has waited for long.

        :param find: finds the holders to show, if it is time to
        """
        if not self._is_time_to('long wait'):
            return
        itself = f'; this {waiter.kind} itself holds one of them' if holds_one else ''
        self._log(
            logging.WARNING,
            'an acquire of endpoint %s by %s at %s has waited for %.0f s, and has no time limit (acquire_timeout): '
            'blocked by %s%s%s',
            describe(waiter.endpoint), waiter.who, waiter.site, waiter.age, block, itself, listed(find()),
        )  # fmt: skip

    def nested(self, endpoint: object, find: Find) -> None:
        """An acquire waits for a connection of an endpoint although its caller holds one.

        :param find: finds the holders to show, if it is time to: this is called at each such wait
        """
        if self._is_time_to('nested'):
            self._log(
                logging.WARNING,
                'an acquire waits for a connection to endpoint %s, of which all are in use, while its own thread or '
                'task holds one: if all holders do so, they wait for each other%s',
                describe(endpoint), listed(find()),
            )  # fmt: skip

    def leak(self, holder: HolderInfo, threshold: float) -> None:
        """A connection is held for longer than the leak threshold."""
        self._log(
            logging.WARNING,
            'a connection to endpoint %s is held for longer than leak_threshold=%g s: %s\n%s',
            describe(holder.endpoint), threshold, holder, holder.stack(),
        )  # fmt: skip

    def came_back(self, holder: HolderInfo, seconds: float) -> None:
        """A connection that counted as leaked was released."""
        self._log(
            logging.INFO,
            'a connection to endpoint %s that counted as leaked came back after %.3g s: it was acquired by %s at %s',
            describe(holder.endpoint), seconds, holder.who, holder.site,
        )  # fmt: skip

    def abandoned(self, holder: HolderInfo) -> None:
        """A lease was garbage-collected before it was released."""
        self._log(
            logging.WARNING,
            'a connection to endpoint %s was never released: its lease was garbage-collected after %.3g s; it was '
            'acquired by %s at %s, and is disposed of',
            describe(holder.endpoint), holder.age, holder.who, holder.site,
        )  # fmt: skip

    def reclaimed(self, holders: Sequence[HolderInfo], objects: int) -> None:
        """The garbage collector was run for holders that are gone."""
        self._log(
            logging.WARNING,
            'an acquire waits while %d connections are held by tasks that are done or threads that have ended; the '
            'garbage collector was run for them and found %d objects (reclaim_abandoned)%s',
            len(holders), objects, listed(holders),
        )  # fmt: skip


def listed(holders: Sequence[HolderInfo]) -> str:
    """Return holders as lines below a message."""
    return ''.join(f'\n  {one}' for one in holders)
