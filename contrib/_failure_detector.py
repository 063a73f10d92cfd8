"""Which connections need a check because another one of their endpoint is dead. Decides; never asks a server itself."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
import weakref
from collections.abc import Hashable
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ['FailureDetector', 'Verification']

ConnectionT = TypeVar('ConnectionT')

#: A time-out shorter than this, seconds, says nothing about other connections: the caller just had no more time.
MIN_SILENCE = 0.1


class FailureDetector(Generic[ConnectionT]):
    """Which connections must be verified, or are invalid, because another one of their endpoint was found dead.

    A failover ends all connections of an endpoint at once, often without sending anything. So when one is found dead,
    those that were created or last seen alive before that moment must be *verified*, by a round trip, before their next
    use. When a verification times out, those that were not verified since are *invalid*: disposed of without a round
    trip. SQLAlchemy ("invalidate since") and HikariCP (`softEvictConnections`) do the same, but discard connections
    that still work.

    :ivar unverified: endpoints with connections to verify; for any other endpoint there is nothing to look up
    """

    def __init__(self) -> None:
        self.unverified: dict[Hashable, _Connections[ConnectionT]] = {}
        self._reset_after_fork()

    def _reset_after_fork(self) -> None:
        self.unverified.clear()
        self._connections: dict[Hashable, _Connections[ConnectionT]] = {}
        self._clock = itertools.count(1)  # logical time: never the same value twice
        self._lock = threading.RLock()  # reentrant: a signal handler may use the pool
        self._pid = os.getpid()

    def add(self, endpoint: Hashable, conn: ConnectionT) -> None:
        """Track a new connection."""
        if self._pid != os.getpid():  # forked: the lock may be held by a thread that does not exist here
            self._reset_after_fork()
        with self._lock:
            connections = self._connections.setdefault(endpoint, _Connections())
            connections.forget_collected()
            connections.seen[weakref.ref(conn)] = next(self._clock)

    def remove(self, endpoint: Hashable, conn: ConnectionT) -> None:
        """Stop tracking a connection: it is disposed of."""
        with self._lock:
            if connections := self._connections.get(endpoint):
                connections.seen.pop(weakref.ref(conn), None)
                self._drop_if_settled(endpoint, connections)

    def report_dead(self, endpoint: Hashable, conn: ConnectionT) -> None:
        """Have the endpoint's others verified, unless this one had to be verified itself: then they must be already."""
        with self._lock:
            connections = self._connections.get(endpoint)
            if connections and (seen := connections.seen.pop(weakref.ref(conn), 0)):
                if seen > connections.unverified_until:
                    connections.unverified_until = next(self._clock)
                    self.unverified[endpoint] = connections
                self._drop_if_settled(endpoint, connections)

    def must_verify(self, endpoint: Hashable, conn: ConnectionT) -> bool:
        """Tell whether a connection needs a round trip before its use."""
        connections = self.unverified.get(endpoint)
        return connections is not None and connections.seen.get(weakref.ref(conn), 0) <= connections.unverified_until

    def is_invalid(self, endpoint: Hashable, conn: ConnectionT) -> bool:
        """Tell whether a connection counts as dead without a round trip."""
        connections = self.unverified.get(endpoint)
        return connections is not None and connections.seen.get(weakref.ref(conn), 0) <= connections.invalid_until

    def verification(self, endpoint: Hashable, conn: ConnectionT) -> Verification[ConnectionT]:
        """Return a context manager for a round trip, which reports how that ended."""
        with self._lock:
            now = next(self._clock)
        return Verification(self, endpoint, conn, now)

    def report_alive(self, endpoint: Hashable, conn: ConnectionT, since: int) -> None:
        """Record that a connection was alive at a moment of the logical clock."""
        with self._lock:
            if connections := self._connections.get(endpoint):
                connections.seen[weakref.ref(conn)] = since
                self._drop_if_settled(endpoint, connections)

    def report_silence(self, endpoint: Hashable, conn: ConnectionT, since: int) -> None:
        """Record that a connection did not answer a round trip that began at a moment of the logical clock."""
        with self._lock:
            if connections := self._connections.get(endpoint):
                old = connections.unverified_until if self.must_verify(endpoint, conn) else since
                connections.invalid_until = max(connections.invalid_until, old)
                self.report_dead(endpoint, conn)

    def _drop_if_settled(self, endpoint: Hashable, connections: _Connections[ConnectionT]) -> None:
        """Drop an endpoint that has no connections, or none left to verify."""
        if endpoint in self.unverified:
            connections.forget_collected()
            if all(seen > connections.unverified_until for seen in list(connections.seen.values())):
                self.unverified.pop(endpoint, None)
        if not connections.seen:
            self._connections.pop(endpoint, None)


class _Connections(Generic[ConnectionT]):
    """The connections of an endpoint.

    :ivar seen: when each was last seen alive
    :ivar unverified_until: those last seen at this moment or before must be verified
    :ivar invalid_until: those last seen at this moment or before are invalid
    """

    __slots__ = ('invalid_until', 'seen', 'unverified_until')

    def __init__(self) -> None:
        self.seen: dict[weakref.ref[ConnectionT], int] = {}
        self.unverified_until = 0
        self.invalid_until = 0

    def forget_collected(self) -> None:
        """Forget connections that were garbage-collected without being disposed of."""
        for ref in list(self.seen):  # a copy: a signal handler or a finalizer may use the pool meanwhile
            if ref() is None:
                self.seen.pop(ref, None)


class Verification(Generic[ConnectionT]):
    """One round trip to verify a connection: ``with detector.verification(...): ping()``. Propagates errors."""

    __slots__ = ('_began', '_conn', '_detector', '_endpoint', '_since')

    def __init__(
        self,
        detector: FailureDetector[ConnectionT],
        endpoint: Hashable,
        conn: ConnectionT,
        since: int,
    ) -> None:
        self._detector = detector
        self._endpoint = endpoint
        self._conn = conn
        self._since = since

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._detector.report_alive(self._endpoint, self._conn, self._since)
        elif isinstance(error, (TimeoutError, asyncio.TimeoutError, asyncio.CancelledError)):
            # the asyncio pool cancels a check when its caller's time is up
            if time.monotonic() - self._began >= MIN_SILENCE:
                self._detector.report_silence(self._endpoint, self._conn, self._since)
        elif isinstance(error, Exception):
            self._detector.report_dead(self._endpoint, self._conn)
