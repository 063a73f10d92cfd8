"""What the PostgreSQL managers share: endpoint names and their connect parameters, and what is known of each
connection: where it was born, when it was last seen alive, how its user found it. Knows no driver.

Parameters hold passwords, so nothing here puts them, or a part of them, into an error or a repr."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import TracebackType
from typing import Any, Generic, TypeVar

from gcp.contrib._wire import Births

__all__ = [
    'CHECK_TIMEOUT', 'NEWS', 'RESET_TIMEOUT', 'Births', 'DbEndpoint', 'Directory', 'Generations', 'Manager',
    'Parameters', 'Settings', 'UnknownEndpointError', 'asks_server',
]

DbEndpoint = str
Parameters = Mapping[str, Any]
ConnectionT = TypeVar('ConnectionT')
FoundT = TypeVar('FoundT')

NAMES_SHOWN = 50

#: How long an answer to a check may take, unless the manager is told otherwise.
CHECK_TIMEOUT = 1.0

#: How long it may take to clear away what a user left behind, the end of a cancelled command included.
RESET_TIMEOUT = 5.0

#: A silence shorter than this (its caller had no more time) says nothing about other connections.
SILENCE = 0.1

#: What a server may say to a connection that asked nothing, by its first byte: NoticeResponse, NotificationResponse,
#: ParameterStatus. See "Message Formats" in the PostgreSQL documentation.
NEWS = frozenset([b'N', b'A', b'S'])


class UnknownEndpointError(KeyError):
    """No connect parameters are known for an endpoint.

    :ivar endpoint: what was asked for
    :ivar known: the names that are known
    """

    def __init__(self, endpoint: object, known: Iterable[DbEndpoint]) -> None:
        self.endpoint = endpoint
        self.known = tuple(known)
        super().__init__(endpoint, self.known)

    def __str__(self) -> str:
        shown = ', '.join(map(repr, self.known[:NAMES_SHOWN])) or 'none'
        more = len(self.known) - NAMES_SHOWN
        return f'unknown endpoint {self.endpoint!r}; known: {shown}' + (f' and {more} more' if more > 0 else '')


class Directory(Generic[FoundT]):
    """The user's connect parameters by endpoint: a mapping, or a function that is asked anew for each connection.

    :param dsn_params: the one or the other
    :raises TypeError: when it is neither
    """

    def __init__(self, dsn_params: Mapping[DbEndpoint, Parameters] | Callable[[DbEndpoint], FoundT]) -> None:
        if not isinstance(dsn_params, Mapping) and not callable(dsn_params):
            raise TypeError(
                'dsn_params: a mapping of endpoint names to connect parameters, or a function from a name to its '
                f'parameters was expected, not an instance of {type(dsn_params).__name__}',
            )
        self._dsn_params = dsn_params
        if isinstance(dsn_params, Mapping):
            for endpoint, parameters in dsn_params.items():
                self.check(endpoint, parameters)

    def __str__(self) -> str:
        return ', '.join(map(str, self._dsn_params)) if isinstance(self._dsn_params, Mapping) else 'named by a function'

    def find(self, endpoint: DbEndpoint) -> Parameters | FoundT:
        """Return what the user has for an endpoint, as it is.

        :param endpoint: the endpoint
        :raises UnknownEndpointError: when the mapping has nothing
        :raises TypeError: when it is no string
        """
        if not isinstance(endpoint, str):
            raise TypeError(f'endpoint: the name of a database was expected, not an instance of '
                            f'{type(endpoint).__name__}')
        if not isinstance(self._dsn_params, Mapping):
            return self._dsn_params(endpoint)
        try:
            return self._dsn_params[endpoint]
        except KeyError:
            raise UnknownEndpointError(endpoint, self._dsn_params) from None

    @staticmethod
    def check(endpoint: DbEndpoint, parameters: object) -> Parameters:
        """Return an endpoint's parameters after a check that they are a mapping.

        :param endpoint: the endpoint
        :param parameters: what the user has for it
        :raises TypeError: when they are something else; tells their type, never their value
        """
        if not isinstance(parameters, Mapping):
            raise TypeError(
                f'dsn_params of endpoint {endpoint!r}: a mapping of connect parameters was expected, '
                f'not an instance of {type(parameters).__name__}',
            )
        return parameters


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
        self.suspects: dict[DbEndpoint, _Members[ConnectionT]] = {}
        self._start_anew()

    def _start_anew(self) -> None:
        self.suspects.clear()
        self._members: dict[DbEndpoint, _Members[ConnectionT]] = {}
        self._moments = itertools.count(1)  # a clock that never shows the same time twice
        self._lock = threading.RLock()  # a signal handler may use the pool, too
        self._pid = os.getpid()

    def born(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Take note of a new connection."""
        if self._pid != os.getpid():  # the parent's, and who knows who held the lock
            self._start_anew()
        with self._lock:
            members = self._members.setdefault(endpoint, _Members())
            members.sweep()
            members.seen[weakref.ref(conn)] = next(self._moments)

    def gone(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Take note that a connection was disposed of."""
        with self._lock:
            if members := self._members.get(endpoint):
                members.seen.pop(weakref.ref(conn), None)
                self._settle(endpoint, members)

    def found_dead(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Take note of a sign of death. Of a connection that was under suspicion, it is no news."""
        with self._lock:
            members = self._members.get(endpoint)
            if members and (seen := members.seen.pop(weakref.ref(conn), 0)):
                if seen > members.suspected_until:
                    members.suspected_until = next(self._moments)
                    self.suspects[endpoint] = members
                self._settle(endpoint, members)

    def is_suspect(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        """Tell whether a connection is to be proved before its use."""
        members = self.suspects.get(endpoint)
        return members is not None and members.seen.get(weakref.ref(conn), 0) <= members.suspected_until

    def is_condemned(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        """Tell whether a connection is dead without asking."""
        members = self.suspects.get(endpoint)
        return members is not None and members.seen.get(weakref.ref(conn), 0) <= members.condemned_until

    def proof(self, endpoint: DbEndpoint, conn: ConnectionT) -> Proof[ConnectionT]:
        """Return what the question and its answer are to be put in: ``with generations.proof(...): ask()``."""
        return Proof(self, endpoint, conn, next(self._moments))

    def proved(self, endpoint: DbEndpoint, conn: ConnectionT, since: int) -> None:
        """Take note that a connection was alive at a moment."""
        with self._lock:
            if members := self._members.get(endpoint):
                members.seen[weakref.ref(conn)] = since
                self._settle(endpoint, members)

    def fell_silent(self, endpoint: DbEndpoint, conn: ConnectionT, since: int) -> None:
        """Take note that a connection has not answered what it was asked at a moment."""
        with self._lock:
            if members := self._members.get(endpoint):
                old = members.suspected_until if self.is_suspect(endpoint, conn) else since
                members.condemned_until = max(members.condemned_until, old)
                self.found_dead(endpoint, conn)

    def _settle(self, endpoint: DbEndpoint, members: _Members[ConnectionT]) -> None:
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
            self, generations: Generations[ConnectionT], endpoint: DbEndpoint, conn: ConnectionT, since: int,
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


class Settings(Generic[ConnectionT]):
    """How connections were set when they were created, by attributes that only the driver knows of.

    :param names: the attributes' names; the first are set first
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.read: Callable[[ConnectionT], tuple[Any, ...]] = attrgetter(*names)
        self._usual: tuple[Any, ...] | None = None
        self._unusual: weakref.WeakKeyDictionary[ConnectionT, tuple[Any, ...]] = weakref.WeakKeyDictionary()

    def record(self, conn: ConnectionT) -> None:
        """Take note of a new connection's. Those of the first are taken for the usual ones: to remember them costs
        nothing."""
        settings = self.read(conn)
        if self._usual is None:
            self._usual = settings
        elif settings != self._usual:
            self._unusual[conn] = settings

    def are_kept(self, conn: ConnectionT) -> bool:
        """Tell whether a connection is still set as it was."""
        return self.read(conn) == (self._unusual.get(conn, self._usual) if self._unusual else self._usual)

    def changed(self, conn: ConnectionT) -> list[tuple[str, Any]]:
        """Return by name what is to be set again, and to what."""
        then = self._unusual.get(conn, self._usual) or self.read(conn)
        both = zip(self._names, then, self.read(conn), strict=True)
        return [(name, value) for name, value, now in both if value != now]


class Manager(Generic[ConnectionT]):
    """What the managers of all drivers have in common, the sync and the asyncio ones.

    :param dsn_params: connect parameters by endpoint name, or a function
    :param aliveness: see `asks_server`
    :param reset: ``'rollback'``, ``'discard all'`` or a callable
    :param discard_all: what ``'discard all'`` stands for
    :param check_timeout: how long the answer to a check may take, seconds
    """

    def __init__(
            self,
            dsn_params: Mapping[DbEndpoint, Parameters] | Callable[[DbEndpoint], Any],
            aliveness: object,
            reset: object,
            discard_all: Callable[[ConnectionT], Any],
            check_timeout: float,
    ) -> None:
        self._directory: Directory[Any] = Directory(dsn_params)
        self._asks_server = asks_server(aliveness)
        self._reset = _checked_reset(reset, discard_all)
        self._check_timeout = _checked_limit(check_timeout)
        self._births = Births[ConnectionT]()
        self._generations = Generations[ConnectionT]()
        self._suspects = self._generations.suspects

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    def _welcome(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        self._births.record(conn)
        self._generations.born(endpoint, conn)

    def _is_doomed(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        """Tell whether a connection that looks alive must not be used, nor asked anything."""
        return not self._births.was_here(conn) or self._generations.is_condemned(endpoint, conn)

    def _is_doubted(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        """Tell whether a connection that looks alive is to be asked."""
        return self._asks_server or self._generations.is_suspect(endpoint, conn)


def _checked_reset(reset: object, discard_all: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return what is to be called after the rollback, if anything."""
    if reset == 'rollback':
        return None
    if reset == 'discard all':
        return discard_all
    if not callable(reset):
        raise ValueError(f"reset: 'rollback', 'discard all' or a function was expected, not {reset!r}")
    if inspect.iscoroutinefunction(reset) and not inspect.iscoroutinefunction(discard_all):
        raise TypeError('reset: a plain function was expected, not a coroutine function: this manager is for threads')
    return reset


def _checked_limit(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f'check_timeout: a number of seconds was expected, not {seconds!r}')
    if not seconds > 0:
        raise ValueError(f'check_timeout: more than 0 seconds was expected, not {seconds!r}')
    return seconds


def asks_server(aliveness: object) -> bool:
    """Tell whether a check of aliveness is to cost a round trip.

    :param aliveness: ``'socket'``: no, look at the socket; ``'query'``: yes
    :raises ValueError: when it is neither
    """
    if aliveness not in ('socket', 'query'):
        raise ValueError(f"aliveness: 'socket' or 'query' was expected, not {aliveness!r}")
    return aliveness == 'query'
