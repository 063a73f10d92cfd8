"""Which connections are to be doubted because another one was found dead. Decides; never asks a server itself."""

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

__all__ = ['Generations', 'Proof']

ConnectionT = TypeVar('ConnectionT')

#: A silence shorter than this (its caller had no more time) says nothing about other connections.
SILENCE = 0.1


class Generations(Generic[ConnectionT]):
    """Which connections are under suspicion because another of their endpoint was found dead.

    A failover kills all connections of an endpoint at once, and often without a word. So the first that is found dead
    opens a new generation: those that were created, or last seen alive, before that moment are to be *proved* by a
    round trip before their next use. When such a proof ends in silence, those of the old generation that have not been
    proved since are *condemned*: dead without asking. The idea is that of the pools of SQLAlchemy ("invalidate since")
    and HikariCP (`softEvictConnections`), but no connection that is still good is lost.

    :ivar suspects: the endpoints under suspicion; while an endpoint is not in here, nothing else need be asked
    """

    def __init__(self) -> None:
        self.suspects: dict[Hashable, _Members[ConnectionT]] = {}
        self._start_anew()

    def _start_anew(self) -> None:
        self.suspects.clear()
        self._members: dict[Hashable, _Members[ConnectionT]] = {}
        self._moments = itertools.count(1)  # a clock that never shows the same time twice
        self._lock = threading.RLock()  # a signal handler may use the pool, too
        self._pid = os.getpid()

    def born(self, endpoint: Hashable, conn: ConnectionT) -> None:
        """Take note of a new connection."""
        if self._pid != os.getpid():  # the parent's, and who knows who held the lock
            self._start_anew()
        with self._lock:
            members = self._members.setdefault(endpoint, _Members())
            members.sweep()
            members.seen[weakref.ref(conn)] = next(self._moments)

    def gone(self, endpoint: Hashable, conn: ConnectionT) -> None:
        """Take note that a connection was disposed of."""
        with self._lock:
            if members := self._members.get(endpoint):
                members.seen.pop(weakref.ref(conn), None)
                self._settle(endpoint, members)

    def found_dead(self, endpoint: Hashable, conn: ConnectionT) -> None:
        """Take note of a sign of death. Of a connection that was under suspicion, it is no news."""
        with self._lock:
            members = self._members.get(endpoint)
            if members and (seen := members.seen.pop(weakref.ref(conn), 0)):
                if seen > members.suspected_until:
                    members.suspected_until = next(self._moments)
                    self.suspects[endpoint] = members
                self._settle(endpoint, members)

    def is_suspect(self, endpoint: Hashable, conn: ConnectionT) -> bool:
        """Tell whether a connection is to be proved before its use."""
        members = self.suspects.get(endpoint)
        return members is not None and members.seen.get(weakref.ref(conn), 0) <= members.suspected_until

    def is_condemned(self, endpoint: Hashable, conn: ConnectionT) -> bool:
        """Tell whether a connection is dead without asking."""
        members = self.suspects.get(endpoint)
        return members is not None and members.seen.get(weakref.ref(conn), 0) <= members.condemned_until

    def proof(self, endpoint: Hashable, conn: ConnectionT) -> Proof[ConnectionT]:
        """Return what the question and its answer are to be put in: ``with generations.proof(...): ask()``."""
        return Proof(self, endpoint, conn, next(self._moments))

    def proved(self, endpoint: Hashable, conn: ConnectionT, since: int) -> None:
        """Take note that a connection was alive at a moment."""
        with self._lock:
            if members := self._members.get(endpoint):
                members.seen[weakref.ref(conn)] = since
                self._settle(endpoint, members)

    def fell_silent(self, endpoint: Hashable, conn: ConnectionT, since: int) -> None:
        """Take note that a connection has not answered what it was asked at a moment."""
        with self._lock:
            if members := self._members.get(endpoint):
                old = members.suspected_until if self.is_suspect(endpoint, conn) else since
                members.condemned_until = max(members.condemned_until, old)
                self.found_dead(endpoint, conn)

    def _settle(self, endpoint: Hashable, members: _Members[ConnectionT]) -> None:
        """Forget an endpoint without connections, and a suspicion that no connection is under any more."""
        if endpoint in self.suspects:
            members.sweep()
            if all(seen > members.suspected_until for seen in list(members.seen.values())):
                self.suspects.pop(endpoint, None)
        if not members.seen:
            self._members.pop(endpoint, None)


class _Members(Generic[ConnectionT]):
    """An endpoint's connections.

    :ivar seen: when each was last seen alive
    :ivar suspected_until: those seen last at this moment or before are suspected
    :ivar condemned_until: ... or condemned
    """

    __slots__ = ('condemned_until', 'seen', 'suspected_until')

    def __init__(self) -> None:
        self.seen: dict[weakref.ref[ConnectionT], int] = {}
        self.suspected_until = 0
        self.condemned_until = 0

    def sweep(self) -> None:
        """Forget connections that were dropped instead of disposed of."""
        for ref in list(self.seen):  # a signal handler or a finalizer may come in between, and use the pool
            if ref() is None:
                self.seen.pop(ref, None)


class Proof(Generic[ConnectionT]):
    """One round trip to see whether a connection is alive; reports how it ended, and lets errors through."""

    __slots__ = ('_began', '_conn', '_endpoint', '_generations', '_since')

    def __init__(
            self, generations: Generations[ConnectionT], endpoint: Hashable, conn: ConnectionT, since: int,
    ) -> None:
        self._generations = generations
        self._endpoint = endpoint
        self._conn = conn
        self._since = since

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._generations.proved(self._endpoint, self._conn, self._since)
        elif isinstance(error, (TimeoutError, asyncio.TimeoutError, asyncio.CancelledError)):
            # cancelled: the asyncio pool does that when its caller's time is up
            if time.monotonic() - self._began >= SILENCE:
                self._generations.fell_silent(self._endpoint, self._conn, self._since)
        elif isinstance(error, Exception):
            self._generations.found_dead(self._endpoint, self._conn)
