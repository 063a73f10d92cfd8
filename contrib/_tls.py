"""TLS over sockets: handshakes with a deadline, checks of idle connections, close_notify, session resumption.

All of it runs in non-blocking mode: a socket's own time-out starts anew with each packet, so a peer that sends a byte
now and then could make a handshake last for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import select
import signal
from collections.abc import Iterator, Sequence
from ssl import (
    PROTOCOL_TLS_SERVER,
    SSLCertVerificationError,
    SSLContext,
    SSLError,
    SSLSession,
    SSLSocket,
    SSLWantReadError,
    SSLWantWriteError,
    create_default_context,
)

from gcp.contrib._tcp import Port, is_address
from gcp.contrib._wire import has_ended, peek, wait_ready

__all__ = [
    'ConnectionState',
    'Sessions',
    'certificate_name',
    'check_context',
    'check_server_hostname',
    'close_notify',
    'handshake',
    'may_be_refusal',
    'only_tls_messages',
]

#: How many sessions a manager keeps at most; some kilobytes each.
MAX_SESSIONS = 1024

#: More than a server sends to an idle connection: two session tickets are 600 bytes.
MAX_PENDING = 65536

HEADER = 5  # of a TLS record: type, version, version, length, length


class Sessions:
    """The last TLS session with each endpoint, for the next connection to resume. Keeps the most recent ones.

    A ticket is used for several connections, although RFC 8446 (C.4) recommends one use each, so that observers cannot
    link connections to one client: those of a pool can be linked anyway.

    No lock: each access is a single operation on a dict, so a fork at any moment does no harm."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, Port], SSLSession] = {}

    def find(self, endpoint: tuple[str, Port]) -> SSLSession | None:
        """Return the session to resume with an endpoint."""
        return self._sessions.get(endpoint)

    def forget(self, endpoint: tuple[str, Port]) -> None:
        """Drop an endpoint's session: it may be what made a handshake fail."""
        self._sessions.pop(endpoint, None)

    def keep(self, endpoint: tuple[str, Port], conn: SSLSocket) -> None:
        """Keep a connection's session if it can be resumed; with TLS 1.3, only once the server's tickets were read."""
        session = conn.session
        if session is None or (conn.version() == 'TLSv1.3' and not session.has_ticket):
            return
        self._sessions.pop(endpoint, None)  # most recent last
        self._sessions[endpoint] = session
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread does the same
            while len(self._sessions) > MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]


@dataclasses.dataclass(slots=True)
class ConnectionState:
    """What a manager remembers of a connection.

    :ivar endpoint: its endpoint
    :ivar in_use: whether it is in use; set by two hooks, because a subclass may override one without calling it
    :ivar session_seen: whether its session was looked at after its first use
    """

    endpoint: tuple[str, Port]
    in_use: bool = False
    session_seen: bool = False


def check_context(context: SSLContext | None, alpn_protocols: Sequence[str]) -> SSLContext:
    """Check a client's context and return it.

    :param context: the context; ``None``: a new one, which verifies peers
    :param alpn_protocols: protocols to set on it; empty: leave them as they are
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for a server's context, or an impossible protocol name
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
                f'alpn_protocols: names of 1 to 255 ASCII characters were expected, not {alpn_protocols!r}'
            ) from None
    return context


def check_server_hostname(name: str | None) -> str | None:
    """Check the argument `server_hostname` and return it.

    :param name: the name; ``None``: the endpoint's host
    :raises TypeError: when it is neither
    :raises ValueError: when it cannot be a host name
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f'server_hostname: a host name, or None for that of the endpoint, was expected, not {name!r}')
    try:
        # the ssl module would reject these only once it owns the socket, which would leak
        if not name or name[0] == '.' or '\0' in name:
            raise ValueError
        name.encode('idna')
    except ValueError:
        raise ValueError(f'server_hostname: a host name was expected, not {name!r}') from None
    return name


def certificate_name(host: str) -> str:
    """Return the name that a host's certificate must have.

    :param host: a name, perhaps with the root's final dot, or an IP address, perhaps with a scope
    """
    return host.partition('%')[0] if is_address(host) else host.removesuffix('.')


def handshake(conn: SSLSocket, deadline: float, what: str) -> None:
    """Do the handshake.

    :param conn: a connection in non-blocking mode
    :param deadline: when to give up, on the monotonic clock
    :param what: the operation, for the error
    :raises TimeoutError: when it is not done by then
    :raises ssl.SSLError: when it fails
    """
    while True:
        try:
            with _sigpipe_blocked():
                conn.do_handshake()
            return
        except SSLWantReadError:
            wait_ready(conn.fileno(), select.POLLIN, deadline, what)
        except SSLWantWriteError:
            wait_ready(conn.fileno(), select.POLLOUT, deadline, what)


def may_be_refusal(error: BaseException) -> bool:
    """Tell whether a handshake that offered a session may have failed because of the session.

    :param error: the handshake's error
    """
    return isinstance(error, OSError) and not isinstance(error, (TimeoutError, SSLCertVerificationError))


def only_tls_messages(conn: SSLSocket) -> bool:
    """Read what an idle connection has received; tell whether that is nothing but TLS's own, such as session tickets.

    :param conn: a connection with something to read
    :raises OSError: when the connection has failed
    """
    usual = conn.gettimeout()
    conn.settimeout(0)
    try:
        if not _are_whole_records(peek(conn.fileno(), MAX_PENDING)):
            return False
        with _sigpipe_blocked():  # at an EOF, OpenSSL sends an alert
            conn.recv(1)
    except SSLWantReadError:
        return True
    else:
        return False  # data, close_notify, or EOF
    finally:
        conn.settimeout(usual)


def close_notify(conn: SSLSocket, deadline: float) -> None:
    """Send a close_notify, without waiting for the peer's. Where the connection has failed or the peer has closed it,
    send nothing: no one would read it.

    :param conn: the connection
    :param deadline: when to give up, on the monotonic clock
    :raises OSError: when it cannot be sent by then, or at all
    :raises ValueError: when the connection is closed
    """
    if has_ended(conn.fileno()):
        return
    conn.settimeout(0)
    while True:
        try:
            with _sigpipe_blocked():  # the connection may fail at this moment
                conn.unwrap()
            return
        except SSLWantReadError:
            return  # ours is sent
        except SSLWantWriteError:
            wait_ready(conn.fileno(), select.POLLOUT, deadline, 'TLS close_notify')


@contextlib.contextmanager
def _sigpipe_blocked() -> Iterator[None]:
    """Keep this thread's writes to a peer that has reset the connection from ending the process, where a program has
    set SIGPIPE to its default, as command-line tools do. (Python ignores the signal unless told otherwise; `ssl` cannot
    send with MSG_NOSIGNAL.) The block must not switch greenlets: the mask is the thread's."""
    if signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            signal.sigwait([signal.SIGPIPE])
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _are_whole_records(records: bytes) -> bool:
    """Tell whether only whole TLS records were received. The rest of one would arrive during the next use.

    :param records: what there is to read
    """
    start = 0
    while start + HEADER <= len(records):
        start += HEADER + int.from_bytes(records[start + 3 : start + HEADER], 'big')
    return start == len(records)
