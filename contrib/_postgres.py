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
from gcp.contrib._failure_detector import FailureDetector
from gcp.contrib._watchdog import Watchdog, run_with_watchdog
from gcp.contrib._wire import ForkGuard

__all__ = [
    'ASYNC_MESSAGES',
    'CHECK_TIMEOUT',
    'AsyncManager',
    'ClientSettings',
    'DbEndpoint',
    'Manager',
    'Parameters',
    'SyncManager',
    'UnknownEndpointError',
    'check_parameters',
]

DbEndpoint = str
ConnectionT = TypeVar('ConnectionT')

#: How long an answer to a check may take by default, seconds.
CHECK_TIMEOUT = 1.0

#: How long the reset of a released connection may take, seconds, including the end of a cancelled command.
RESET_TIMEOUT = 5.0

#: First bytes of the messages that a server may send to an idle connection: NoticeResponse, NotificationResponse,
#: ParameterStatus. See "Asynchronous Operations" and "Message Formats" in the PostgreSQL documentation.
ASYNC_MESSAGES = frozenset([b'N', b'A', b'S'])


class ClientSettings(Generic[ConnectionT]):
    """Settings on the client's side, such as `autocommit`, as they were when each connection was created.

    :param names: the attributes' names, in the order in which to restore them
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.read: Callable[[ConnectionT], tuple[Any, ...]] = attrgetter(*names)
        self._common: tuple[Any, ...] | None = None
        self._different: weakref.WeakKeyDictionary[ConnectionT, tuple[Any, ...]] = weakref.WeakKeyDictionary()
        self._all_are_common = True  # faster than to ask the weak dictionary whether it is empty

    def record(self, conn: ConnectionT) -> None:
        """Remember a new connection's settings. Those of the first are kept once, for all that have the same."""
        settings = self.read(conn)
        if self._common is None:
            self._common = settings
        elif settings != self._common:
            self._different[conn] = settings
            self._all_are_common = False

    def are_unchanged(self, conn: ConnectionT) -> bool:
        """Tell whether a connection's settings are still the same."""
        return self.read(conn) == (self._common if self._all_are_common else self._different.get(conn, self._common))

    def to_restore(self, conn: ConnectionT) -> list[tuple[str, Any]]:
        """Return names and original values of the settings that have changed."""
        then = self._different.get(conn, self._common) or self.read(conn)
        both = zip(self._names, then, self.read(conn), strict=True)
        return [(name, value) for name, value, now in both if value != now]


class HasDescriptor(Protocol):
    """A connection with a file descriptor."""

    def fileno(self) -> int: ...


DescribedT = TypeVar('DescribedT', bound=HasDescriptor)


class Verdict(enum.Enum):
    """What to do with an idle connection: use it, dispose of it, or ask the server first."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    ASK = enum.auto()


class Manager(abc.ABC, Generic[ConnectionT]):
    """What the managers of all drivers share: arguments, the decision about an idle connection, the plan of a reset.

    `check_aliveness` and `on_release` run at every idle hit, so each driver's class has their fast path in one frame.
    All else is here.

    :param dsn_params: connect parameters by endpoint name, or a function
    :param aliveness: see `asks_server`
    :param reset: ``'rollback'``, ``'discard all'`` or a callable
    :param discard_all: what ``'discard all'`` stands for
    :param check_timeout: how long the answer to a check may take, seconds
    """

    #: The errors of a statement that mean that the connection does not work.
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
        self._fork_guard = ForkGuard[ConnectionT]()
        self._failure_detector = FailureDetector[ConnectionT]()
        self._unverified = self._failure_detector.unverified  # looked at in every check

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    @abc.abstractmethod
    def _has_ended(self, conn: ConnectionT) -> bool:
        """Tell whether the driver considers a connection closed or broken."""

    @abc.abstractmethod
    def _is_closed_by_user(self, conn: ConnectionT) -> bool:
        """Tell whether a connection was closed on this side, which says nothing about the server."""

    @abc.abstractmethod
    def _clean(self, conn: ConnectionT) -> Any:
        """End any transaction, and restore the client's settings."""

    @abc.abstractmethod
    def _ping(self, conn: ConnectionT) -> Any:
        """Make one round trip to the server."""

    def _check_not_busy(self, conn: ConnectionT) -> None:
        """Raise when a command is in progress. Not needed where `_clean` does."""

    def _register(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        self._fork_guard.record(conn)
        self._failure_detector.add(endpoint, conn)

    def _report_end(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Have the endpoint's other connections verified, unless it was the user who closed this one."""
        if not self._is_closed_by_user(conn):
            self._failure_detector.report_dead(endpoint, conn)

    def _verdict(self, endpoint: DbEndpoint, conn: ConnectionT, looks_alive: bool) -> Verdict:
        """Decide about an idle connection, for all drivers.

        :param endpoint: its endpoint
        :param conn: the connection
        :param looks_alive: whether driver and socket show no sign of its end
        """
        if not looks_alive:
            self._report_end(endpoint, conn)
            return Verdict.DEAD
        if self._fork_guard.is_inherited(conn) or self._failure_detector.is_invalid(endpoint, conn):
            return Verdict.DEAD
        if self._asks_server or self._failure_detector.must_verify(endpoint, conn):
            return Verdict.ASK
        return Verdict.ALIVE

    def _reset_plan(self) -> list[Callable[[ConnectionT], Any]]:
        """Return the functions to call with a released connection, in order."""
        # cleaned twice: the user's function may leave a transaction open
        return [self._clean] if self._reset is None else [self._clean, self._reset, self._clean]


class SyncManager(Manager[DescribedT]):
    """The slow paths of the hooks for threads; `AsyncManager` has the same, awaiting."""

    def _is_usable(self, endpoint: DbEndpoint, conn: DescribedT, looks_alive: bool, timeout: float | None) -> bool:
        verdict = self._verdict(endpoint, conn, looks_alive)
        return verdict is Verdict.ALIVE or (verdict is Verdict.ASK and self._answers(endpoint, conn, timeout))

    def _answers(self, endpoint: DbEndpoint, conn: DescribedT, timeout: float | None) -> bool:
        limit = self._check_timeout if timeout is None else min(timeout, self._check_timeout)
        try:
            with self._failure_detector.verification(endpoint, conn), Watchdog(conn.fileno(), limit, what='query'):
                self._ping(conn)
        except self._errors:
            return False
        return True

    def _clean_up(self, endpoint: DbEndpoint, conn: DescribedT) -> None:
        if self._has_ended(conn):  # by its user or during its use: no error of the release, and the next check fails
            self._report_end(endpoint, conn)
            return
        self._check_not_busy(conn)
        try:
            with Watchdog(conn.fileno(), RESET_TIMEOUT, what='reset'):
                for action in self._reset_plan():
                    action(conn)
        except BaseException:
            if self._has_ended(conn):
                self._report_end(endpoint, conn)
            raise


class AsyncManager(Manager[ConnectionT]):
    """The slow paths of the hooks for asyncio; `SyncManager` has the same, blocking."""

    @abc.abstractmethod
    def _aborter(self, conn: ConnectionT) -> Callable[[], object]:
        """Return a function that aborts the connection."""

    async def _is_usable(self, endpoint: DbEndpoint, conn: ConnectionT, looks_alive: bool) -> bool:
        verdict = self._verdict(endpoint, conn, looks_alive)
        return verdict is Verdict.ALIVE or (verdict is Verdict.ASK and await self._answers(endpoint, conn))

    async def _answers(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        try:
            abort = self._aborter(conn)
            with self._failure_detector.verification(endpoint, conn):
                await run_with_watchdog(self._ping(conn), abort, self._check_timeout, what='query')
        except self._errors:
            return False
        return True

    async def _clean_up(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        if self._has_ended(conn):  # by its user or during its use: no error of the release, and the next check fails
            self._report_end(endpoint, conn)
            return
        self._check_not_busy(conn)
        try:
            abort = self._aborter(conn)
            await run_with_watchdog(self._follow_plan(conn), abort, RESET_TIMEOUT, what='reset')
        except BaseException:
            if self._has_ended(conn):
                self._report_end(endpoint, conn)
            raise

    async def _follow_plan(self, conn: ConnectionT) -> None:
        for action in self._reset_plan():
            result = action(conn)
            if inspect.isawaitable(result):
                await result


def check_parameters(endpoint: DbEndpoint, parameters: object) -> Parameters:
    """Return an endpoint's parameters after a check that they are a mapping.

    :param endpoint: the endpoint, for the error
    :param parameters: what the user gave for it
    :raises TypeError: when they are not a mapping; names their type, never their value
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(
            f'dsn_params of endpoint {endpoint!r}: a mapping of connect parameters was expected, '
            f'not an instance of {type(parameters).__name__}',
        )
    return parameters


def _checked_reset(reset: object, discard_all: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the function to call after the rollback, if any."""
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
    """Tell whether each check of aliveness makes a round trip.

    :param aliveness: ``'socket'``: no, only look at the socket; ``'query'``: yes
    :raises ValueError: when it is neither
    """
    if aliveness not in ('socket', 'query'):
        raise ValueError(f"aliveness: 'socket' or 'query' was expected, not {aliveness!r}")
    return aliveness == 'query'
