"""What the managers of databases share: when an idle connection is alive, dead or to be asked, how a released one is
reset, and what the client's side of it was set to. Knows no server and no driver."""

from __future__ import annotations

import abc
import asyncio
import contextvars
import enum
import functools
import inspect
import math
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from gcp.contrib._endpoints import Directory, Parameters, UnknownEndpointError
from gcp.contrib._errors import classify_error
from gcp.contrib._failure_detector import FailureDetector
from gcp.contrib._watchdog import Watchdog, run_with_watchdog
from gcp.contrib._wire import ForkGuard, run_in_thread, time_left, within
from gcp.exceptions import DiscardConnection, ErrorClass

__all__ = [
    'CHECK_TIMEOUT',
    'AsyncManager',
    'ClientSettings',
    'DbEndpoint',
    'Manager',
    'Parameters',
    'SyncManager',
    'UnknownEndpointError',
    'Verdict',
    'call_user',
    'clamped',
    'is_coroutine_function',
]

DbEndpoint = str
ConnectionT = TypeVar('ConnectionT')

#: Names of parameters by which to see that those of one endpoint were given instead of a mapping of endpoints.
PARAMETER_NAMES = frozenset(
    [
        'conninfo',
        'database',
        'dbname',
        'dsn',
        'host',
        'hostaddr',
        'password',
        'port',
        'service',
        'ssl',
        'sslmode',
        'user',
    ]
)

#: How long an answer to a check may take by default, seconds.
CHECK_TIMEOUT = 1.0

#: The longest time-out, seconds (31 years); a longer one is as good as none, and overflows what system calls take.
LONGEST = 1e9

#: How long the reset of a released connection may take, seconds, including the end of a cancelled command.
RESET_TIMEOUT = 5.0


class ClientSettings(Generic[ConnectionT]):
    """Settings on the client's side, such as `autocommit`, as they were when each connection was created.

    :param names: the attributes' names, in the order in which to restore them
    :param reported: reads what is no attribute, such as the encoding that the server reports; compared, not restored
    """

    def __init__(self, *names: str, reported: Callable[[ConnectionT], tuple[Any, ...]]) -> None:
        self._names = names
        self._attributes: Callable[[ConnectionT], tuple[Any, ...]] = attrgetter(*names)
        self._reported = reported
        self._common: tuple[Any, ...] | None = None
        self._first: list[tuple[Any, ...]] = []
        self._different: weakref.WeakKeyDictionary[ConnectionT, tuple[Any, ...]] = weakref.WeakKeyDictionary()
        self._all_are_common = True  # faster than to ask the weak dictionary whether it is empty

    def read(self, conn: ConnectionT) -> tuple[Any, ...]:
        """Return a connection's settings: the attributes, then what is reported."""
        return self._attributes(conn) + self._reported(conn)

    def record(self, conn: ConnectionT) -> None:
        """Remember a new connection's settings. Those of the first are kept once, for all that have the same."""
        settings = tuple(map(_copied, self.read(conn)))
        if self._common is None:
            self._first.append(settings)
            self._common = self._first[0]  # of several threads that come here, all take those of one
        if settings != self._common or not self._all_are_common:
            self._different[conn] = settings
            self._all_are_common = False

    def original(self, conn: ConnectionT) -> tuple[Any, ...]:
        """Return a connection's settings as they were when it was created; as they are for an unknown connection."""
        return self._different.get(conn, self._common) or self.read(conn)

    def are_unchanged(self, conn: ConnectionT) -> bool:
        """Tell whether a connection's settings are still the same."""
        return self.read(conn) == (self._common if self._all_are_common else self._different.get(conn, self._common))

    def to_restore(self, conn: ConnectionT) -> list[tuple[str, Any]]:
        """Return names and original values of the settings that have changed; not of what is reported."""
        both = zip(self._names, self.original(conn), self.read(conn), strict=False)
        return [(name, _copied(value)) for name, value, now in both if value != now]


def _copied(value: Any) -> Any:
    """Copy a list, set or dictionary, since users change it in place."""
    if type(value) is dict:
        return {key: set(each) if type(each) is set else each for key, each in value.items()}
    return value.copy() if type(value) in (list, set, deque) else value


class HasDescriptor(Protocol):
    """A connection with a file descriptor."""

    def fileno(self) -> int: ...


DescribedT = TypeVar('DescribedT', bound=HasDescriptor)


class Verdict(enum.Enum):
    """What to do with an idle connection: use it, dispose of it, or make a round trip to the server first."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    ASK = enum.auto()


class Manager(abc.ABC, Generic[ConnectionT]):
    """What the managers of all drivers share: arguments, the decision about an idle connection, the plan of a reset.

    `check_aliveness` and `on_release` run at every idle hit, so each driver's class has their fast path in one frame.
    All else is here.

    :param dsn_params: connect parameters by endpoint name, or a function
    :param aliveness: see `asks_server`
    :param reset: the name of one of `resets`, or a callable
    :param resets: what to call after the rollback, by name; ``None``: nothing
    :param check_timeout: how long the answer to a check may take, seconds
    """

    #: The driver's keyword for a connection string.
    _dsn_key = 'dsn'
    #: Keywords of other drivers, and what this one calls them.
    _misnomers: ClassVar[Mapping[str, str]] = {}
    #: The errors of a statement that mean that the connection does not work.
    _errors: tuple[type[Exception], ...]

    def __init__(
        self,
        dsn_params: Mapping[DbEndpoint, Parameters] | Callable[[DbEndpoint], Any],
        aliveness: object,
        reset: object,
        resets: Mapping[str, Callable[[ConnectionT], Any] | None],
        check_timeout: float,
    ) -> None:
        _check_shape(dsn_params, self._dsn_key)
        self._directory: Directory[Any] = Directory(dsn_params, 'dsn_params')
        self._calls_user = type(dsn_params) is not dict  # else there is no user's code to wait for
        self._is_coroutine_function = is_coroutine_function(dsn_params)
        if isinstance(dsn_params, Mapping):
            for endpoint, parameters in dsn_params.items():
                self._checked(endpoint, parameters)
        self._asks_server = asks_server(aliveness)
        self._reset = _checked_reset(reset, resets)
        self._check_timeout = _checked_limit(check_timeout)
        self._fork_guard = ForkGuard[ConnectionT]()
        self._failure_detector = FailureDetector[ConnectionT]()
        self._unverified = self._failure_detector.unverified  # looked at in every check

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if 'create' in vars(cls) and not cls.__module__.startswith('gcp.contrib.'):
            # what a subclass sets in its create belongs to the connection, too
            cls.create = _recording(vars(cls)['create'])  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    def clean_after_error(self, endpoint: DbEndpoint, conn: ConnectionT, error: BaseException) -> bool:
        """Tell whether a connection can be reused after an error left the body that used it. Only looks.

        It can when it is not broken, no command is in progress (also not one that is being cancelled, a ``COPY`` or a
        pipeline), and its transaction, if there is one, is such that the rollback at release ends it.

        :param endpoint: its endpoint
        :param conn: the connection
        :param error: the error
        """
        if self._fork_guard.is_inherited(conn):
            return False
        if self._has_ended(conn):
            self._report_end(endpoint, conn)
            return False
        try:
            return not self._ends_session(error) and self._is_between_commands(conn)
        except self._errors:
            return False

    def classify(self, endpoint: DbEndpoint, error: BaseException) -> ErrorClass:
        """Say what an error means, by its code or text and those that caused it. It only looks.

        :param endpoint: the endpoint
        :param error: the error of a create, or one that leaves the block of a connection's holder
        """
        return classify_error(error, self._look_at_error)

    @abc.abstractmethod
    def _look_at_error(self, error: BaseException) -> ErrorClass | None:
        """Say what a single error means, or None, where its cause may say it."""

    def _ends_session(self, error: BaseException) -> bool:
        """Tell whether an error of the server is one after which it ends the session."""
        return False

    def _checked(self, endpoint: DbEndpoint, parameters: object) -> Parameters:
        """Return an endpoint's parameters after a check of their type and names, which quotes no value.

        :raises TypeError: says what to write instead
        """
        if not isinstance(parameters, Mapping):
            hint = f'; write {{{self._dsn_key!r}: ...}} for it' if isinstance(parameters, (str, bytes)) else ''
            raise TypeError(
                f'dsn_params of endpoint {endpoint!r}: a mapping of connect parameters was expected, '
                f'not an instance of {type(parameters).__name__}{hint}'
            )
        for name, better in self._misnomers.items():
            if name in parameters:
                raise TypeError(f'dsn_params of endpoint {endpoint!r}: this driver knows no {name!r}; write {better!r}')
        return parameters

    @abc.abstractmethod
    def _record(self, conn: ConnectionT) -> None:
        """Remember a new connection's settings on the client's side."""

    @abc.abstractmethod
    def _is_between_commands(self, conn: ConnectionT) -> bool:
        """Tell whether no command is in progress, and a rollback would end the transaction. Sends nothing."""

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

    def _last_words(self, conn: ConnectionT) -> str | None:
        """Return what the server said when it ended the session, where the driver does not raise it."""
        return None

    def _is_cut_off(self, conn: ConnectionT) -> bool:
        """Tell whether a connection that has ended was in a transaction, without an error for its user."""
        return False

    def _check_not_busy(self, conn: ConnectionT) -> None:
        """Raise when a command is in progress. Not needed where `_clean` does."""

    def _register(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        self._fork_guard.record(conn)
        self._failure_detector.add(endpoint, conn)

    def _report_end(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Have the endpoint's other connections verified, unless it was the user who closed this one."""
        if not self._is_closed_by_user(conn):
            self._failure_detector.report_dead(endpoint, conn)

    def _end_before_reset(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        """Report a connection that ended during its use.

        :raises DiscardConnection: when it was in a transaction; else the release is no error, and the next check fails
        """
        self._report_end(endpoint, conn)
        if self._is_cut_off(conn):
            raise DiscardConnection(f'the connection broke in a transaction: {self._last_words(conn) or "EOF"}')

    def _end_in_reset(self, endpoint: DbEndpoint, conn: ConnectionT, error: BaseException) -> None:
        """Report a connection that ended during its reset.

        :raises DiscardConnection: when the driver's error says so; the caller raises any other error itself
        """
        self._report_end(endpoint, conn)
        is_ours = isinstance(error, TimeoutError) and error.errno is None  # of the watchdog, not ETIMEDOUT
        if isinstance(error, self._errors) and not is_ours:
            words = self._last_words(conn) or str(error) or type(error).__name__
            raise DiscardConnection(f'the connection broke before its reset: {" ".join(words.split())}') from error

    def _verdict(self, endpoint: DbEndpoint, conn: ConnectionT, look: Verdict) -> Verdict:
        """Decide about an idle connection, for all drivers.

        :param endpoint: its endpoint
        :param conn: the connection
        :param look: what driver and socket show
        """
        if look is Verdict.DEAD:
            self._report_end(endpoint, conn)
            return Verdict.DEAD
        if self._fork_guard.is_inherited(conn) or self._failure_detector.is_invalid(endpoint, conn):
            return Verdict.DEAD
        if look is Verdict.ASK or self._asks_server or self._failure_detector.must_verify(endpoint, conn):
            return Verdict.ASK
        return Verdict.ALIVE

    def _reset_plan(self) -> list[Callable[[ConnectionT], Any]]:
        """Return the functions to call with a released connection, in order."""
        # cleaned twice: the user's function may leave a transaction open
        return [self._clean] if self._reset is None else [self._clean, self._reset, self._clean]


class SyncManager(Manager[DescribedT]):
    """The slow paths of the hooks for threads; `AsyncManager` has the same, awaiting."""

    def _find(self, endpoint: DbEndpoint, deadline: float) -> Parameters:
        """Return an endpoint's parameters. A user's function runs in a thread, and is abandoned at the deadline.

        :param endpoint: the endpoint
        :param deadline: on `time.monotonic`; ``inf``: never
        :raises TimeoutError: when it took longer
        """
        if not self._calls_user or deadline == math.inf:
            return self._checked(endpoint, self._directory.find(endpoint))
        find = functools.partial(contextvars.copy_context().run, self._directory.find, endpoint)
        what = f'dsn_params of endpoint {endpoint!r}'
        return self._checked(endpoint, within(time_left(deadline, what), find, what=what))

    def _is_usable(self, endpoint: DbEndpoint, conn: DescribedT, look: Verdict, timeout: float | None) -> bool:
        verdict = self._verdict(endpoint, conn, look)
        return verdict is Verdict.ALIVE or (verdict is Verdict.ASK and self._answers(endpoint, conn, timeout))

    def _keep_alive(self, endpoint: DbEndpoint, conn: DescribedT, look: Verdict, timeout: float | None) -> bool:
        verdict = self._verdict(endpoint, conn, look)
        return verdict is not Verdict.DEAD and self._answers(endpoint, conn, timeout)

    def _answers(self, endpoint: DbEndpoint, conn: DescribedT, timeout: float | None) -> bool:
        limit = self._check_timeout if timeout is None else min(timeout, self._check_timeout)
        try:
            with self._failure_detector.verification(endpoint, conn), Watchdog(conn.fileno(), limit, what='query'):
                self._ping(conn)
        except self._errors:
            return False
        return True

    def _clean_up(self, endpoint: DbEndpoint, conn: DescribedT) -> None:
        if self._has_ended(conn):  # closed by its user, or broken during its use
            self._end_before_reset(endpoint, conn)
            return
        self._check_not_busy(conn)
        try:
            with Watchdog(conn.fileno(), RESET_TIMEOUT, what='reset'):
                for action in self._reset_plan():
                    action(conn)
        except BaseException as error:
            if self._has_ended(conn):
                self._end_in_reset(endpoint, conn, error)
            raise


class AsyncManager(Manager[ConnectionT]):
    """The slow paths of the hooks for asyncio; `SyncManager` has the same, blocking."""

    @abc.abstractmethod
    def _aborter(self, conn: ConnectionT) -> Callable[[], object]:
        """Return a function that aborts the connection."""

    async def _find(self, endpoint: DbEndpoint) -> Parameters:
        """Return an endpoint's parameters. A user's plain function runs in a thread, so that a cancellation ends the
        wait for it."""
        if self._calls_user and not self._is_coroutine_function:
            found = await call_user(self._directory.find, endpoint)
        else:
            found = self._directory.find(endpoint)
            if inspect.isawaitable(found):
                found = await found
        return self._checked(endpoint, found)

    async def _is_usable(self, endpoint: DbEndpoint, conn: ConnectionT, look: Verdict) -> bool:
        verdict = self._verdict(endpoint, conn, look)
        return verdict is Verdict.ALIVE or (verdict is Verdict.ASK and await self._answers(endpoint, conn))

    async def _keep_alive(self, endpoint: DbEndpoint, conn: ConnectionT, look: Verdict) -> bool:
        verdict = self._verdict(endpoint, conn, look)
        return verdict is not Verdict.DEAD and await self._answers(endpoint, conn)

    async def _answers(self, endpoint: DbEndpoint, conn: ConnectionT) -> bool:
        try:
            abort = self._aborter(conn)
            with self._failure_detector.verification(endpoint, conn):
                await run_with_watchdog(self._ping(conn), abort, self._check_timeout, what='query')
        except self._errors:
            return False
        return True

    async def _clean_up(self, endpoint: DbEndpoint, conn: ConnectionT) -> None:
        if self._has_ended(conn):  # closed by its user, or broken during its use
            self._end_before_reset(endpoint, conn)
            return
        self._check_not_busy(conn)
        try:
            abort = self._aborter(conn)
            await run_with_watchdog(self._follow_plan(conn), abort, RESET_TIMEOUT, what='reset')
        except BaseException as error:
            if self._has_ended(conn):
                self._end_in_reset(endpoint, conn, error)
            raise

    async def _follow_plan(self, conn: ConnectionT) -> None:
        for action in self._reset_plan():
            result = action(conn)
            if inspect.isawaitable(result):
                await result


def clamped(timeout: float) -> float:
    """Return a time-out, seconds, or the longest one when it is longer."""
    return min(timeout, LONGEST)


def is_coroutine_function(function: object) -> bool:
    """Tell whether a function, or an object with `__call__`, is a coroutine function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, '__call__', None))  # noqa: B004


async def call_user(function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's plain function in a thread, in the caller's context, and return its result; await an awaitable.

    The event loop goes on meanwhile. When the caller is cancelled, the thread goes on by itself.

    :param function: the function. One that needs a running event loop is called again, within it
    :param args: its arguments
    """
    work = functools.partial(contextvars.copy_context().run, function, *args)
    try:
        result = await asyncio.wrap_future(run_in_thread(work))
    except RuntimeError as error:
        if 'event loop' not in str(error):
            raise
        result = function(*args)
    return await result if inspect.isawaitable(result) else result


def _check_shape(dsn_params: object, key: str) -> None:
    """Check that the parameters are by endpoint. Quotes no value.

    :raises TypeError: says what to write instead
    """
    if isinstance(dsn_params, (str, bytes)):
        raise TypeError(
            f'dsn_params: a mapping of endpoint names to connect parameters was expected, not an instance of '
            f"{type(dsn_params).__name__}; write {{'orders': {{{key!r}: ...}}}} for an endpoint 'orders'"
        )
    if isinstance(dsn_params, Mapping):
        flat = [name for name in PARAMETER_NAMES & set(dsn_params) if not isinstance(dsn_params[name], Mapping)]
        if flat:
            shown = ', '.join(f'{name!r}: ...' for name in sorted(flat))
            raise TypeError(
                'dsn_params: a mapping of endpoint names to connect parameters was expected, not the parameters of one '
                f"endpoint; write {{'orders': {{{shown}}}}} for an endpoint 'orders'"
            )


def _recording(create: Callable[..., Any]) -> Callable[..., Any]:
    """Have a subclass's `create` remember the settings of the connection that it returns."""
    if inspect.iscoroutinefunction(create):

        @functools.wraps(create)
        async def create_async(self: Any, *args: Any, **keywords: Any) -> Any:
            conn = await create(self, *args, **keywords)
            if conn is not None:
                self._record(conn)
            return conn

        return create_async

    @functools.wraps(create)
    def create_sync(self: Any, *args: Any, **keywords: Any) -> Any:
        conn = create(self, *args, **keywords)
        if conn is not None and not inspect.isawaitable(conn):
            self._record(conn)
        return conn

    return create_sync


def _checked_reset(reset: object, resets: Mapping[str, Callable[..., Any] | None]) -> Callable[..., Any] | None:
    """Return the function to call after the rollback, if any."""
    if isinstance(reset, str) and reset in resets:
        return resets[reset]
    if not callable(reset):
        default = "; the default is 'reset'" if 'reset' in resets else ''
        names = ', '.join(repr(name) for name in resets if name != 'reset')
        raise ValueError(f'reset: {names} or a function was expected, not {reset!r}{default}')
    if inspect.iscoroutinefunction(reset) and not any(map(inspect.iscoroutinefunction, resets.values())):
        raise TypeError('reset: a plain function was expected, not a coroutine function: this manager is for threads')
    return reset


def _checked_limit(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f'check_timeout: a number of seconds was expected, not {seconds!r}')
    if not seconds > 0:
        raise ValueError(f'check_timeout: more than 0 seconds was expected, not {seconds!r}')
    return clamped(seconds)


def asks_server(aliveness: object) -> bool:
    """Tell whether each check of aliveness makes a round trip.

    :param aliveness: ``'socket'``: no, only look at the socket; ``'query'``: yes
    :raises ValueError: when it is neither
    """
    if aliveness not in ('socket', 'query'):
        raise ValueError(f"aliveness: 'socket' or 'query' was expected, not {aliveness!r}")
    return aliveness == 'query'
