"""What psycopg2 and psycopg have in common: libpq, its connection strings, and its notion of a connect time-out.

Connection strings hold passwords, and libpq's complaints about one quote it. So nothing of them gets out of here."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gcp.contrib._endpoints import Parameters
from gcp.contrib._postgres import DbEndpoint
from gcp.contrib._wire import hang_up, socket_of, within

__all__ = ['connect_by', 'spelled_out']

ConnectionT = TypeVar('ConnectionT')

#: Values of TCP_USER_TIMEOUT (milliseconds: twelve days and more) by which a socket of libpq's is known again.
MARKS = range(1 << 30, (1 << 31) - 1)
OPTION: int | None = getattr(socket, 'TCP_USER_TIMEOUT', None)

#: How long to wait for a thread to let go of its socket, once that is broken off: in all, and each time, seconds ...
FAREWELL = 0.1
GLANCE = 0.005
#: ... and each time when nobody waits for it.
PAUSE = 0.05

_marks = itertools.cycle(MARKS)


def spelled_out(
        endpoint: DbEndpoint, parameters: Parameters, key: str, parse: Callable[[str], Parameters],
) -> dict[str, Any]:
    """Return an endpoint's connect parameters with its connection string, if it has one, taken to pieces.

    :param endpoint: the endpoint
    :param parameters: keywords, those beside a connection string having precedence over it
    :param key: the keyword of the connection string
    :param parse: the driver's parser
    :raises ValueError: when the connection string is none; does not say where, as that would quote it
    """
    conninfo = parameters.get(key)
    if conninfo is None:
        return {name: value for name, value in parameters.items() if name != key}
    try:
        pieces = parse(conninfo)
    except Exception:
        pieces = None
    if pieces is None:  # out here, where no context holds on to what the driver said
        raise ValueError(f'dsn_params of endpoint {endpoint!r}: {key!r} is no connection string that libpq understands')
    return {**pieces, **{name: value for name, value in parameters.items() if name != key}}


def connect_by(
        deadline: float,
        endpoint: DbEndpoint,
        parameters: dict[str, Any],
        connect: Callable[[dict[str, Any]], ConnectionT],
        close: Callable[[ConnectionT], object],
) -> ConnectionT:
    """Connect, but only until a deadline, in a thread that can be left behind: libpq counts in whole seconds, for each
    address anew, and does not count what the look-up of a name takes.

    A thread that was left behind has its socket broken off under it. Should it come to a result all the same, it closes
    it. What cannot be broken off, a unix socket, is ended by libpq's own limit, the first that is longer than ours.

    :param deadline: until when, by `time.monotonic`; ``inf``: there is none
    :param endpoint: the endpoint, for the error
    :param parameters: keywords
    :param connect: connects by keywords
    :param close: closes a connection; must not raise
    :raises TimeoutError: when it took longer
    """
    if deadline == math.inf:
        return connect(parameters)
    timeout = max(0, math.ceil(1000 * (deadline - time.monotonic()))) / 1000  # in whole milliseconds, for the error
    limit = math.floor(min(timeout, 1e6)) + 1
    given = _number(endpoint, parameters, 'connect_timeout')
    lasting = _number(endpoint, parameters, 'tcp_user_timeout')
    mark = next(_marks)
    marked = {**parameters, 'connect_timeout': min(given, limit) if given > 0 else limit, 'tcp_user_timeout': mark}
    ended = threading.Event()

    def work() -> ConnectionT:
        try:
            if time.monotonic() > deadline:  # a busy machine: nobody waits any more
                raise TimeoutError
            conn = connect(marked)
            _unmark(conn.fileno(), lasting)  # type: ignore[attr-defined]
            return conn
        finally:
            ended.set()

    try:
        return within(timeout, work, what=f'connection to {endpoint!r}', discard=close)
    except TimeoutError:
        _break_off(mark, ended)
        raise


def _number(endpoint: DbEndpoint, parameters: Parameters, name: str) -> int:
    value = parameters.get(name) or 0
    try:
        return int(float(value))
    except (TypeError, ValueError):
        problem = f'dsn_params of endpoint {endpoint!r}: {name}: a number was expected, not {value!r}'
    raise ValueError(problem)


def _break_off(mark: int, ended: threading.Event) -> None:
    """Break off the socket with a mark, and those that libpq goes on to, the next addresses', as long as that is quick;
    leave it to another thread when it takes longer, or when there is no socket yet.

    Nobody tells the descriptor of a connection that is not there yet. But libpq sets options on its socket before it
    connects it, and the options can be read by anybody."""
    for _ in range(round(FAREWELL / GLANCE)):
        found = _hang_up_marked(mark)
        if ended.wait(GLANCE if found else 0):
            return
        if not found:
            break
    with contextlib.suppress(RuntimeError):  # the interpreter goes down, and starts no thread any more
        threading.Thread(target=_go_on, args=(mark, ended), name='gcp-deadline', daemon=True).start()


def _go_on(mark: int, ended: threading.Event) -> None:
    while not ended.wait(PAUSE):
        _hang_up_marked(mark)


def _hang_up_marked(mark: int) -> bool:
    descriptors = [fd for fd in _sockets() if _is_marked(mark, fd)]
    for fd in descriptors:
        hang_up(fd)
    return bool(descriptors)


def _sockets() -> Iterator[int]:
    """Which of this process's descriptors are sockets; none where they cannot be listed, or not be marked."""
    if OPTION is not None and os.path.isdir('/proc/self/fd'):
        for fd in map(int, os.listdir('/proc/self/fd')):
            with contextlib.suppress(OSError):  # closed since
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    yield fd


def _is_marked(mark: int, fd: int) -> bool:
    assert OPTION is not None
    with contextlib.suppress(OSError), socket_of(fd) as sock:  # OSError: one that has no such option
        return sock.getsockopt(socket.IPPROTO_TCP, OPTION) == mark
    return False


def _unmark(fd: int, lasting: int) -> None:
    """Set TCP_USER_TIMEOUT to what the user wants."""
    if OPTION is not None:
        with contextlib.suppress(OSError), socket_of(fd) as sock:  # OSError: a unix socket has none
            sock.setsockopt(socket.IPPROTO_TCP, OPTION, lasting)
