"""Listens to all pools of the process for the page, from when the first one is mounted: also to those made later."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gcp._core import BaseConnectionPool, explain_endpoint
from gcp.debug.events import Events
from gcp.debug.plain import endpoint_id, shown, shown_error, text
from gcp.listener import PoolListener
from gcp.observe import telemetry

if TYPE_CHECKING:
    from gcp.holders import HolderInfo

__all__ = ['listen']


class PageListener(PoolListener):
    """Tells the page of what happens in one pool. It listens to what is rare only: acquires, connects and disposals are
    counted, and cost no more than without a page.

    :param events: where the page has them from
    :param key: returns what ids of endpoints are made with
    """

    def __init__(self, pool: Any, events: Events, key: Callable[[], bytes]) -> None:
        self._pool = weakref.ref(pool)
        self._number, self._name = id(pool), text(pool.name)
        self._events = events
        self._key = key

    def on_timeout(self, endpoint: Any) -> None:
        self._events.heard(self._number, self._name, 'acquires timeout', shown(endpoint, self._key()))

    def on_leak(self, holder: HolderInfo) -> None:
        site = text(f'acquired at {holder.site}', 300)
        self._events.heard(self._number, self._name, 'leaks', shown(holder.endpoint, self._key()), site)

    def on_breaker(self, endpoint: Any, open: bool) -> None:
        pool, secret = self._pool(), self._key()
        found = explain_endpoint(pool._core, endpoint) if open and pool is not None else None
        error = None if found is None else shown_error(found['last_error'])
        name = shown(endpoint, secret)
        self._events.breaker(
            self._number, self._name, endpoint_id(endpoint, secret), name, 'open' if open else 'closed', error
        )


def listen(events: Events, key: Callable[[], bytes]) -> None:
    """Listen to all pools, those that are made later included. Asked again, it does nothing.

    :param events: where to tell of what happens
    :param key: returns what ids of endpoints are made with
    """

    def begin(pool: Any) -> None:
        if isinstance(pool, BaseConnectionPool) and events.begin(id(pool)):
            weakref.finalize(pool, events.forget, id(pool)).atexit = False
            pool.add_listener(PageListener(pool, events, key))

    if not events.watch(begin):
        return
    telemetry.on_new_pool.append(begin)
    for pool in telemetry.living():
        begin(pool)
