"""Listeners: objects of a program that are told what happens in a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gcp.holders import HolderInfo

__all__ = ['PoolListener']


def listener_thread(pool: Any) -> Any:
    """Make the listener thread of a pool. Its module is imported when there is a listener."""
    from gcp.listener_thread import ListenerThread

    return ListenerThread(pool)


class PoolListener:
    """Told of what happens in a pool, once it is given to `add_listener`. Override what is of interest: the methods of
    this class do nothing, and future versions may have more of them.

    The methods are called in the order of the events, one at a time, in a thread of the pool, on asyncio as well. They
    are told afterwards: when a method runs, the state of the pool may be another one. They may raise, block and use
    the pool: no caller of the pool, and no event loop, waits for them."""

    def on_created(self, endpoint: Any) -> None:
        """A connection was created."""

    def on_closed(self, endpoint: Any, reason: str) -> None:
        """A connection was taken out of the pool; its disposal follows.

        :param endpoint: what it led to
        :param reason: why, as in `PoolStats.closed`: ``'idle_timeout'``, ``'max_lifetime'``, ``'dead'``,
                       ``'discarded'``, ``'evicted'``, ``'pool_closed'``, ``'error'``, ``'expired'``, ``'max_uses'`` or
                       ``'retired'``
        """

    def on_acquired(self, endpoint: Any) -> None:
        """A connection was acquired. A pool with a listener that overrides this has slower acquires."""

    def on_released(self, endpoint: Any) -> None:
        """A connection was released, or taken from its holder. A pool with a listener that overrides this has slower
        releases."""

    def on_timeout(self, endpoint: Any) -> None:
        """An acquire has run out of time."""

    def on_breaker(self, endpoint: Any, open: bool) -> None:
        """An endpoint has become unavailable, or available again.

        :param endpoint: the endpoint
        :param open: whether acquires that find no idle connection fail at once from now on
        """

    def on_leak(self, holder: HolderInfo) -> None:
        """A connection is held for longer than the pool's ``leak_threshold``.

        :param holder: who holds it
        """
