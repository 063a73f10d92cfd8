"""TLS over blocking sockets: handshakes with a deadline, idle connections, goodbyes, sessions to resume.

Each step here runs on a socket in non-blocking mode: a time-out of a socket's own counts for each packet anew, and a
peer that drips them makes a handshake last for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import select
from collections.abc import Sequence
from ssl import (
    PROTOCOL_TLS_SERVER,
    SSLContext,
    SSLError,
    SSLSession,
    SSLSocket,
    SSLWantReadError,
    SSLWantWriteError,
    create_default_context,
)

from gcp.contrib._tcp import Port, is_address
from gcp.contrib._wire import await_io, peek

__all__ = [
    'Sessions',
    'Standing',
    'check_context',
    'check_server_hostname',
    'heard_no_data',
    'name_of',
    'say_goodbye',
    'shake_hands',
]

#: Sessions kept by one manager, at most; some kilobytes each.
MAX_SESSIONS = 1024

#: More than a server has to say to an idle connection by itself: two tickets make 600 bytes.
MOST_TALK = 65536

HEADER = 5  # of a TLS record: type, version, version, length, length


class Sessions:
    """The last TLS session with each endpoint, to be resumed by its next connection. Keeps the latest of them.

    A ticket serves several connections, though RFC 8446 (C.4) would have each used once: what that hides, that they
    come from one client, the connections of one pool show anyway.

    No lock: each step is one operation on a dict, so a fork in the middle of one does no harm."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, Port], SSLSession] = {}

    def find(self, endpoint: tuple[str, Port]) -> SSLSession | None:
        """Return the session to offer to an endpoint."""
        return self._sessions.get(endpoint)

    def forget(self, endpoint: tuple[str, Port]) -> None:
        """Offer an endpoint nothing any more: it may be that which made a handshake fail."""
        self._sessions.pop(endpoint, None)

    def keep(self, endpoint: tuple[str, Port], conn: SSLSocket) -> None:
        """Keep a connection's session, if it can be resumed: with TLS 1.3 not until the server's tickets were read."""
        session = conn.session
        if session is None or (conn.version() == 'TLSv1.3' and not session.has_ticket):
            return
        self._sessions.pop(endpoint, None)  # the latest come last
        self._sessions[endpoint] = session
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread is at it too
            while len(self._sessions) > MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]


@dataclasses.dataclass(slots=True)
class Standing:
    """What a manager remembers of a connection.

    :ivar endpoint: what it is connected to
    :ivar in_use: whether somebody holds it. Noted by two hooks, for a subclass may override one and not call it
    :ivar session_seen: whether its session was looked at after its first use
    """

    endpoint: tuple[str, Port]
    in_use: bool = False
    session_seen: bool = False


def check_context(context: SSLContext | None, alpn_protocols: Sequence[str]) -> SSLContext:
    """Return a context for clients, after a check.

    :param context: ``None``: a new one, which verifies peers
    :param alpn_protocols: protocols to offer, set on it; none: what it has
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for a server's context, or a protocol that cannot be
    """
    if context is not None and not isinstance(context, SSLContext):
        raise TypeError(f'ssl: an ssl.SSLContext, or None for one that verifies, was expected, not {context!r}')
    if context is not None and context.protocol == PROTOCOL_TLS_SERVER:
        raise ValueError("ssl: a client's context was expected, not one of PROTOCOL_TLS_SERVER")
    if isinstance(alpn_protocols, (str, bytes)) or not all(isinstance(name, str) for name in alpn_protocols):
        raise TypeError(f'alpn_protocols: a sequence of names was expected, not {alpn_protocols!r}')
    context = context or create_default_context()
    if alpn_protocols:
        try:
            context.set_alpn_protocols(list(alpn_protocols))
        except (SSLError, UnicodeError):
            raise ValueError(
                f'alpn_protocols: names of 1 to 255 ASCII characters were expected, not {alpn_protocols!r}') from None
    return context


def check_server_hostname(name: str | None) -> str | None:
    """Return the name to ask a server for, after a check.

    :param name: ``None``: that of the endpoint
    :raises TypeError: when it is neither
    :raises ValueError: when it cannot be a name
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f'server_hostname: a host name, or None for that of the endpoint, was expected, not {name!r}')
    try:
        # what the ssl module would object to only when it has taken over a socket, which would leak
        if not name or name[0] == '.' or '\0' in name:
            raise ValueError
        name.encode('idna')
    except ValueError:
        raise ValueError(f'server_hostname: a host name was expected, not {name!r}') from None
    return name


def name_of(host: str) -> str:
    """Return the name that a host's certificate should have.

    :param host: a name, be it with the final dot of the root, or an IP address, be it with a scope
    """
    return host.partition('%')[0] if is_address(host) else host.removesuffix('.')


def shake_hands(conn: SSLSocket, deadline: float, what: str) -> None:
    """Do the handshake.

    :param conn: a connection in non-blocking mode
    :param deadline: until when
    :param what: what is being done, for the error
    :raises TimeoutError: when it is not done by then
    :raises ssl.SSLError: when it fails
    """
    while True:
        try:
            conn.do_handshake()
            return
        except SSLWantReadError:
            await_io(conn.fileno(), select.POLLIN, deadline, what)
        except SSLWantWriteError:
            await_io(conn.fileno(), select.POLLOUT, deadline, what)


def heard_no_data(conn: SSLSocket) -> bool:
    """Take in what an idle connection was sent; tell whether it was but TLS's own talk, such as session tickets.

    :param conn: a connection with something to be read
    :raises OSError: when it was an error
    """
    usual = conn.gettimeout()
    conn.settimeout(0)
    try:
        if not _is_whole(peek(conn.fileno(), MOST_TALK)):
            return False
        conn.recv(1)
    except SSLWantReadError:
        return True
    else:
        return False  # data, close_notify, or EOF
    finally:
        conn.settimeout(usual)


def say_goodbye(conn: SSLSocket, deadline: float) -> None:
    """Send a close_notify, without waiting for the peer's.

    :param conn: a connection
    :param deadline: until when
    :raises OSError: when it cannot be sent until then, or any more
    """
    conn.settimeout(0)
    while True:
        try:
            conn.unwrap()
            return
        except SSLWantReadError:
            return  # ours is out
        except SSLWantWriteError:
            await_io(conn.fileno(), select.POLLOUT, deadline, 'TLS goodbye')


def _is_whole(records: bytes) -> bool:
    """Tell whether only whole TLS records wait. The rest of one would come in the midst of the next user's talk.

    :param records: what waits to be read
    """
    start = 0
    while start + HEADER <= len(records):
        start += HEADER + int.from_bytes(records[start + 3:start + HEADER], 'big')
    return start == len(records)
