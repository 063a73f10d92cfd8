"""What the PostgreSQL managers share: when an idle connection is alive, dead or to be asked, how a released one is
reset, and what the client's side of it was set to. Knows no driver."""

from __future__ import annotations

import abc
import enum
import inspect
import weakref
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from gcp.contrib._endpoints import Directory, Parameters, UnknownEndpointError
from gcp.contrib._generations import Generations
from gcp.contrib._watch import Watch, watched
from gcp.contrib._wire import Births

__all__ = [
    'CHECK_TIMEOUT', 'NEWS', 'AsyncManager', 'DbEndpoint', 'Manager', 'Parameters', 'Settings', 'SyncManager',
    'UnknownEndpointError', 'check_parameters',
]

DbEndpoint = str
ConnectionT = TypeVar('ConnectionT')

#: How long an answer to a check may take, unless the manager is told otherwise.
CHECK_TIMEOUT = 1.0

#: How long it may take to clear away what a user left behind, the end of a cancelled command included.
RESET_TIMEOUT = 5.0

#: What a server may say to a connection that asked nothing, by its first byte: NoticeResponse, NotificationResponse,
#: ParameterStatus. See "Message Formats" in the PostgreSQL documentation.
NEWS = frozenset([b'N', b'A', b'S'])


class Settings(Generic[ConnectionT]):
    """How connections were set when they were created, by attributes that only the driver knows of.

    :param names: the attributes' names; the first are set first
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.read: Callable[[ConnectionT], tuple[Any, ...]] = attrgetter(*names)
        self._usual: tuple[Any, ...] | None = None
        self._unusual: weakref.WeakKeyDictionary[ConnectionT, tuple[Any, ...]] = weakref.WeakKeyDictionary()
        self._all_are_usual = True  # to ask the dictionary whether it is empty takes longer than all the rest

    def record(self, conn: ConnectionT) -> None:
        """Take note of a new connection's. Those of the first are taken for the usual ones: to remember them costs
        nothing."""
        settings = self.read(conn)
        if self._usual is None:
            self._usual = settings
        elif settings != self._usual:
            self._unusual[conn] = settings
            self._all_are_usual = False

    def are_kept(self, conn: ConnectionT) -> bool:
        """Tell whether a connection is still set as it was."""
        return self.read(conn) == (self._usual if self._all_are_usual else self._unusual.get(conn, self._usual))

    def changed(self, conn: ConnectionT) -> list[tuple[str, Any]]:
        """Return by name what is to be set again, and to what."""
        then = self._unusual.get(conn, self._usual) or self.read(conn)
        both = zip(self._names, then, self.read(conn), strict=True)
        return [(name, value) for name, value, now in both if value != now]


class HasDescriptor(Protocol):
    """A connection that tells its socket's descriptor."""

    def fileno(self) -> int: ...


DescribedT = TypeVar('DescribedT', bound=HasDescriptor)


class Verdict(enum.Enum):
    """What is to be done with an idle connection: use it, dispose of it, or ask the server first."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    ASK = enum.auto()


class Manager(abc.ABC, Generic[ConnectionT]):
    """What the managers of all drivers share: their arguments, when a connection is alive, and how one is reset.

    The two hooks at a hit, `check_aliveness` and `on_release`, keep their fast path in the driver's class; what is left
    to decide when that does not apply is decided here.

    :param dsn_params: connect parameters by endpoint name, or a function
    :param aliveness: see `asks_server`
    :param reset: ``'rollback'``, ``'discard all'`` or a callable
    :param discard_all: what ``'discard all'`` stands for
    :param check_timeout: how long the answer to a check may take, seconds
    """

    #: What a statement raises on a connection that does not work.
    _errors: tuple[type[Exception], ...]

    def __init__(
            self,
            dsn_params: Mapping[DbEndpoint, Parameters] | Callable[[DbEndpoint], Any],
            aliveness: object,
            reset: object,
            discard_all: Callable[[ConnectionT], Any],
            check_timeout: float,
    ) -> None:
        self._directory: Directory[Any] = Directory(dsn_params, 'dsn_params')
        if isinstance(dsn_params, Mapping):
            for endpoint, parameters in dsn_params.items():
                check_parameters(endpoint, parameters)
        self._asks_server = asks_server(aliveness)
        self._reset = _checked_reset(reset, discard_all)
        self._check_timeout = _checked_limit(check_timeout)
        self._births = Births[ConnectionT]()
        self._generations = Generations[ConnectionT]()
        self._suspects = self._generations.suspects

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    @abc.abstractmethod
    def _has_ended(self, conn: ConnectionT) -> bool:
        """Tell whether a connection is closed or broken, as far as the driver knows."""

    @abc.abstractmethod
    def _is_closed_by_user(self, conn: ConnectionT) -> bool:
        """Tell whether a connection that has ended was closed on this side, which says nothing about the server."""

    @abc.abstractmethod
    def _clean(self, conn: ConnectionT) -> Any:
        """End any transaction, and restore the settings of the client's side."""

    @abc.abstractmethod
    def _ping(self, conn: ConnectionT) -> Any:
        """Make one round trip to the server."""

    def _check_not_busy(self, conn: ConnectionT) -> None:
        """Raise when a command is in progress; not needed where `_clean` raises then."""

    def _register(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        self._births.record(conn)
        self._generations.born(endpoint, conn)

    def _report_end(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Have the other connections of an endpoint checked because one has broken; not when its user closed it."""
        if not self._is_closed_by_user(conn):
            self._generations.found_dead(endpoint, conn)

    def _verdict(self, endpoint: DbEndpoint, conn: ConnectionT, looks_alive: bool) -> Verdict:
        """Decide about an idle connection.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param looks_alive: what the driver and the socket say
        """
        if not looks_alive:
            self._report_end(endpoint, conn)
            return Verdict.DEAD
        if not self._births.was_here(conn) or self._generations.is_condemned(endpoint, conn):
            return Verdict.DEAD
        if self._asks_server or self._generations.is_suspect(endpoint, conn):
            return Verdict.ASK
        return Verdict.ALIVE

    def _reset_plan(self) -> list[Callable[[ConnectionT], Any]]:
        """Return what is called with a released connection, in order."""
        # twice: the user's function may open a transaction and leave it so
        return [self._clean] if self._reset is None else [self._clean, self._reset, self._clean]


class SyncManager(Manager[DescribedT]):
    """The slow part of the hooks for threads. The same page as `AsyncManager`."""

    def _is_usable(self, endpoint: DbEndpoint, conn: DescribedT, looks_alive: bool, timeout: float | None) -> bool:
        verdict = self._verdict(endpoint, conn, looks_alive)
        return verdict is Verdict.ALIVE or (verdict is Verdict.ASK and self._answers(endpoint, conn, timeout))

    def _answers(self, endpoint: DbEndpoint, conn: DescribedT, timeout: float | None) -> bool:
        limit = self._check_timeout if timeout is None else min(timeout, self._check_timeout)
        try:
            with self._generations.proof(endpoint, conn), Watch(conn.fileno(), limit, what='query'):
                self._ping(conn)
        except self._errors:
            return False
        return True

    def _clean_up(self, endpoint: DbEndpoint, conn: DescribedT) -> None:
        if self._has_ended(conn):  # the user closed it or saw it break: not an error of the release; the check fails
            self._report_end(endpoint, conn)
            return
        self._check_not_busy(conn)
        try:
            with Watch(conn.fileno(), RESET_TIMEOUT, what='reset'):
                for act in self._reset_plan():
                    act(conn)
        except BaseException:
            if self._has_ended(conn):
                self._report_end(endpoint, conn)
            raise


class AsyncManager(Manager[ConnectionT]):
    """The slow part of the hooks for asyncio. The same page as `SyncManager`."""

    @abc.abstractmethod
    def _aborter(self, conn: ConnectionT) -> Callable[[], object]:
        """Return a function that ends the connection at once."""

    async def _is_usable(self, endpoint: DbEndpoint, conn: ConnectionT, looks_alive: bool) -> bool:
        verdict = self._verdict(endpoint, conn, looks_alive)
        return verdict is Verdict.ALIVE or (verdict is Verdict.ASK and await self._answers(endpoint, conn))

    async def _answers(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        try:
            abort = self._aborter(conn)
            with self._generations.proof(endpoint, conn):
                await watched(self._ping(conn), abort, self._check_timeout, what='query')
        except self._errors:
            return False
        return True

    async def _clean_up(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        if self._has_ended(conn):  # the user closed it or saw it break: not an error of the release; the check fails
            self._report_end(endpoint, conn)
            return
        self._check_not_busy(conn)
        try:
            abort = self._aborter(conn)
            await watched(self._follow_plan(conn), abort, RESET_TIMEOUT, what='reset')
        except BaseException:
            if self._has_ended(conn):
                self._report_end(endpoint, conn)
            raise

    async def _follow_plan(self, conn: ConnectionT) -> None:
        for act in self._reset_plan():
            done = act(conn)
            if inspect.isawaitable(done):
                await done


def check_parameters(endpoint: DbEndpoint, parameters: object) -> Parameters:
    """Return an endpoint's parameters after a check that they are a mapping.

    :param endpoint: the endpoint, for the error
    :param parameters: what the user has given for it
    :raises TypeError: when they are not; names their type, never their value
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(
            f'dsn_params of endpoint {endpoint!r}: a mapping of connect parameters was expected, '
            f'not an instance of {type(parameters).__name__}',
        )
    return parameters


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
