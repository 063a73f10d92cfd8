"""What psycopg2 and psycopg share: libpq's connection strings, and a connect time-out that holds.

Connection strings contain passwords, and libpq's error messages quote them. So neither is passed on."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Generic, TypeVar

from gcp._core import get_option, set_option
from gcp.contrib._database import DbEndpoint
from gcp.contrib._endpoints import Parameters
from gcp.contrib._wire import shut_down, start_call, wait_for_outcome

__all__ = ['connect_with_deadline', 'expand_conninfo']

ConnectionT = TypeVar('ConnectionT')

#: Values of TCP_USER_TIMEOUT, milliseconds (twelve days and more), that mark the socket of one connect of libpq.
MARKS = range(1 << 30, (1 << 31) - 1)
OPTION: int | None = getattr(socket, 'TCP_USER_TIMEOUT', None)

#: The longest time-outs that are passed on to libpq: seconds and milliseconds (eleven days).
LONGEST = {'connect_timeout': 10**6, 'tcp_user_timeout': 10**9}

#: How long to wait for a connecting thread to end once its socket is shut down, in all and at a time, seconds.
ABORT_WAIT = 0.1
ABORT_POLL = 0.005
#: The intervals at which a background thread goes on shutting sockets down, seconds: the shortest and the longest.
BACKGROUND_POLL = 0.05
LONGEST_POLL = 1.0

_numbers = itertools.count()


def expand_conninfo(
    endpoint: DbEndpoint,
    parameters: Parameters,
    key: str,
    parse: Callable[[str], Parameters],
) -> dict[str, Any]:
    """Return an endpoint's connect parameters with the connection string, if there is one, expanded into keywords.

    :param endpoint: the endpoint, for the error
    :param parameters: keywords; they override the connection string's
    :param key: the keyword that holds the connection string
    :param parse: the driver's parser
    :raises ValueError: when it cannot be parsed; does not quote it
    """
    conninfo = parameters.get(key)
    if conninfo is None:
        return _clamp({name: value for name, value in parameters.items() if name != key})
    try:
        pieces = parse(conninfo)
    except Exception:
        pieces = None
    if pieces is None:  # raised outside the except block, or its context would be the driver's error, with the quote
        raise ValueError(f'dsn_params of endpoint {endpoint!r}: {key!r} is no connection string that libpq understands')
    return _clamp({**pieces, **{name: value for name, value in parameters.items() if name != key}})


def _clamp(parameters: dict[str, Any]) -> dict[str, Any]:
    """Replace time-outs that are too long for libpq's integers. Changes the dictionary, and returns it."""
    for name, longest in LONGEST.items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # libpq says what is wrong
            if float(parameters.get(name) or 0) > longest:
                parameters[name] = longest
    return parameters


def connect_with_deadline(
    deadline: float,
    endpoint: DbEndpoint,
    parameters: dict[str, Any],
    connect: Callable[[dict[str, Any]], ConnectionT],
    close: Callable[[ConnectionT], object],
    resolve: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> ConnectionT:
    """Connect within a deadline, in a thread: libpq's own limit is in whole seconds, starts anew for each address, and
    does not include the name's look-up.

    At the deadline the thread's socket is shut down; if it connects nevertheless, it closes the connection. A unix
    socket cannot be found and shut down: libpq's own limit ends that attempt, a second or two later. An attempt that
    cannot be ended, since it looks up a name, is taken over by the next connect with the same parameters: the threads
    of a resolver that does not answer do not add up. Where no thread can be started, libpq's own limit is the only one.

    :param deadline: when to give up, on `time.monotonic`; ``inf``: never
    :param endpoint: the endpoint, for the error
    :param parameters: keywords
    :param connect: connects with keywords
    :param close: closes a connection; must not raise
    :param resolve: returns all parameters that libpq uses, those of a service included, without connecting to a server
    :raises TimeoutError: when it took longer
    """
    if deadline == math.inf:
        return connect(parameters)
    key = (connect, endpoint, *sorted(parameters.items(), key=itemgetter(0)))
    while True:
        timeout = max(0, math.ceil(1000 * (deadline - time.monotonic()))) / 1000  # in whole milliseconds, for the error
        attempt = _Attempt(deadline, endpoint, parameters, timeout, connect, resolve)
        outcome, running = start_call(attempt, close, key)
        _aborter.remove(running)
        try:
            conn: ConnectionT = wait_for_outcome(outcome, timeout, what=f'connection to {endpoint!r}', discard=close)
            return conn
        except BaseException as error:
            if outcome.cancelled():
                _aborter.abort(running, ABORT_WAIT if isinstance(error, TimeoutError) else 0)
            elif running is not attempt and isinstance(error, Exception):  # taken over from a caller that gave it up
                if time.monotonic() < deadline:
                    continue
                if not isinstance(error, TimeoutError):  # it was aborted, and there is no time for another
                    raise TimeoutError(f'connection to {endpoint!r}: not done within {timeout:g} s') from error
            raise
        finally:
            del outcome  # else the error, its traceback and this frame form a reference cycle


class _Attempt(Generic[ConnectionT]):
    """One attempt to connect, called in a thread.

    :ivar mark: the value of TCP_USER_TIMEOUT that its sockets have until it has ended
    :ivar ended: set when it has ended
    """

    def __init__(
        self,
        deadline: float,
        endpoint: DbEndpoint,
        parameters: dict[str, Any],
        timeout: float,
        connect: Callable[[dict[str, Any]], ConnectionT],
        resolve: Callable[[dict[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._deadline = deadline
        self._endpoint = endpoint
        self._parameters = parameters
        self._limit = math.floor(min(timeout, LONGEST['connect_timeout'])) + 1
        self._connect = connect
        self._resolve = resolve
        self.mark = MARKS[next(_numbers) % len(MARKS)]  # no `cycle`: without the GIL it gives one twice
        self.ended = threading.Event()

    def __call__(self) -> ConnectionT:
        try:
            if time.monotonic() > self._deadline:  # a busy machine: the caller has given up
                raise TimeoutError
            resolved = {**_resolved(self._parameters, self._resolve), **self._parameters}
            given = _number(self._endpoint, resolved, 'connect_timeout')
            user_timeout = _number(self._endpoint, resolved, 'tcp_user_timeout')
            shorter = min(given, self._limit) if given > 0 else self._limit
            conn = self._connect({**self._parameters, 'connect_timeout': shorter, 'tcp_user_timeout': self.mark})
            _restore_user_timeout(conn.fileno(), user_timeout)  # type: ignore[attr-defined]
            return conn
        finally:
            self.ended.set()


def _resolved(parameters: Parameters, resolve: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what libpq takes from elsewhere for the parameters that a time-out replaces. ``PGCONNECT_TIMEOUT`` is the
    only variable of the environment for them; only libpq knows where the file of services is."""
    if parameters.get('service') or os.environ.get('PGSERVICE'):
        try:
            return resolve({name: parameters[name] for name in ('service', 'servicefile') if parameters.get(name)})
        except Exception:  # the connect raises it, too
            return {}
    return {'connect_timeout': os.environ.get('PGCONNECT_TIMEOUT')}


def _number(endpoint: DbEndpoint, parameters: Parameters, name: str) -> int:
    value = parameters.get(name) or 0
    try:
        return int(min(float(value), LONGEST[name]))
    except (TypeError, ValueError, OverflowError):
        problem = f'dsn_params of endpoint {endpoint!r}: {name}: a number was expected, not {value!r}'
    raise ValueError(problem)


class _Aborter:
    """Shuts down the sockets of attempts that were given up: libpq's first, then those for the next addresses.

    libpq does not tell the descriptor before it is connected. But it sets TCP_USER_TIMEOUT on the socket before that,
    which can be read from any descriptor of the process. One thread looks for the sockets of all attempts, while there
    are any: every 50 ms when it has found one, up to every second while there is none, because names are looked up."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start empty: a forked child has no threads, and inherits a lock that may be held."""
        self._lock = threading.RLock()
        self._attempts: dict[int, _Attempt[Any]] = {}
        self._changed = threading.Event()
        self._runs = False

    def abort(self, attempt: _Attempt[Any], seconds: float) -> None:
        """End an attempt. What takes longer, or has no socket yet, is left to the thread.

        :param attempt: the attempt
        :param seconds: how long to wait for the end of one that has a socket
        """
        for _ in range(round(seconds / ABORT_POLL)):
            found = _shut_down_marked({attempt.mark})
            if attempt.ended.wait(ABORT_POLL if found else 0):
                return
            if not found:
                break
        with self._lock:
            self._attempts[attempt.mark] = attempt
            self._changed.set()
            if not self._runs:
                self._changed = threading.Event()  # made here: gevent may have patched it meanwhile
                with contextlib.suppress(RuntimeError):  # there are too many, or the interpreter is exiting
                    threading.Thread(target=self._run, name='gcp-deadline', daemon=True).start()
                    self._runs = True

    def remove(self, attempt: _Attempt[Any]) -> None:
        """Leave an attempt alone: a caller has taken it over."""
        with self._lock:
            self._attempts.pop(attempt.mark, None)

    def _run(self) -> None:
        pause = BACKGROUND_POLL
        while self._has_work():
            if self._changed.wait(pause):
                self._changed.clear()
                pause = BACKGROUND_POLL
            with self._lock:
                found = _shut_down_marked(self._attempts.keys())
            pause = BACKGROUND_POLL if found else min(2 * pause, LONGEST_POLL)

    def _has_work(self) -> bool:
        with self._lock:
            for attempt in [attempt for attempt in self._attempts.values() if attempt.ended.is_set()]:
                del self._attempts[attempt.mark]
            self._runs = bool(self._attempts)
            return self._runs


_aborter = _Aborter()

if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_aborter.reset_after_fork)


def _shut_down_marked(marks: Collection[int]) -> bool:
    descriptors = [fd for fd in _sockets() if _mark(fd) in marks]
    for fd in descriptors:
        shut_down(fd)
    return bool(descriptors)


def _sockets() -> Iterator[int]:
    """Return the process's descriptors that are sockets; none where they cannot be listed or marked."""
    if OPTION is not None and os.path.isdir('/proc/self/fd'):
        for fd in _descriptors():
            with contextlib.suppress(OSError):  # closed meanwhile
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    yield fd


def _descriptors() -> Iterable[int]:
    """Return the process's descriptors. To list them takes one more: if there is none left, return all numbers."""
    try:
        return map(int, os.listdir('/proc/self/fd'))
    except OSError:
        return range(os.sysconf('SC_OPEN_MAX'))


def _mark(fd: int) -> int | None:
    """Return the value of a socket's TCP_USER_TIMEOUT; ``None``: it has none."""
    assert OPTION is not None
    try:
        return get_option(fd, socket.IPPROTO_TCP, OPTION)
    except OSError:
        return None


def _restore_user_timeout(fd: int, user_timeout: int) -> None:
    """Set TCP_USER_TIMEOUT to the user's value."""
    if OPTION is not None:
        with contextlib.suppress(OSError):  # a unix socket has none
            set_option(fd, socket.IPPROTO_TCP, OPTION, user_timeout)
