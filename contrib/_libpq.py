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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from gcp.contrib._endpoints import Parameters
from gcp.contrib._postgres import DbEndpoint
from gcp.contrib._wire import shut_down, socket_of, within

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
#: The interval at which a background thread goes on shutting sockets down, seconds.
BACKGROUND_POLL = 0.05

_marks = itertools.cycle(MARKS)


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
    socket cannot be found and shut down: libpq's own limit ends that attempt, a second or two later.

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
    timeout = max(0, math.ceil(1000 * (deadline - time.monotonic()))) / 1000  # in whole milliseconds, for the error
    limit = math.floor(min(timeout, LONGEST['connect_timeout'])) + 1
    mark = next(_marks)
    ended = threading.Event()

    def work() -> ConnectionT:
        try:
            if time.monotonic() > deadline:  # a busy machine: the caller has given up
                raise TimeoutError
            resolved = {**_resolved(parameters, resolve), **parameters}
            given = _number(endpoint, resolved, 'connect_timeout')
            user_timeout = _number(endpoint, resolved, 'tcp_user_timeout')
            shorter = min(given, limit) if given > 0 else limit
            conn = connect({**parameters, 'connect_timeout': shorter, 'tcp_user_timeout': mark})
            _restore_user_timeout(conn.fileno(), user_timeout)  # type: ignore[attr-defined]
            return conn
        finally:
            ended.set()

    try:
        return within(timeout, work, what=f'connection to {endpoint!r}', discard=close)
    except TimeoutError:
        _abort(mark, ended)
        raise


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


def _abort(mark: int, ended: threading.Event) -> None:
    """Shut down the sockets with a mark: libpq's first, then those for the next addresses. What takes longer, or has
    no socket yet, is left to a background thread.

    libpq does not tell the descriptor before it is connected. But it sets TCP_USER_TIMEOUT on the socket before that,
    which can be read from any descriptor of the process."""
    for _ in range(round(ABORT_WAIT / ABORT_POLL)):
        found = _shut_down_marked(mark)
        if ended.wait(ABORT_POLL if found else 0):
            return
        if not found:
            break
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down and starts no threads
        threading.Thread(target=_keep_aborting, args=(mark, ended), name='gcp-deadline', daemon=True).start()


def _keep_aborting(mark: int, ended: threading.Event) -> None:
    while not ended.wait(BACKGROUND_POLL):
        _shut_down_marked(mark)


def _shut_down_marked(mark: int) -> bool:
    descriptors = [fd for fd in _sockets() if _is_marked(mark, fd)]
    for fd in descriptors:
        shut_down(fd)
    return bool(descriptors)


def _sockets() -> Iterator[int]:
    """Return the process's descriptors that are sockets; none where they cannot be listed or marked."""
    if OPTION is not None and os.path.isdir('/proc/self/fd'):
        for fd in map(int, os.listdir('/proc/self/fd')):
            with contextlib.suppress(OSError):  # closed meanwhile
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    yield fd


def _is_marked(mark: int, fd: int) -> bool:
    assert OPTION is not None
    with contextlib.suppress(OSError), socket_of(fd) as sock:  # OSError: one that has no such option
        return sock.getsockopt(socket.IPPROTO_TCP, OPTION) == mark
    return False


def _restore_user_timeout(fd: int, user_timeout: int) -> None:
    """Set TCP_USER_TIMEOUT to the user's value."""
    if OPTION is not None:
        with contextlib.suppress(OSError), socket_of(fd) as sock:  # OSError: a unix socket has none
            sock.setsockopt(socket.IPPROTO_TCP, OPTION, user_timeout)
