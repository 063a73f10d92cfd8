"""HTTP connections of `http.client` for the threading pool.

Sees to it that each response belongs to the request of the one who reads it: a connection is reused only when its last
request was sent in full, its response was read to the end, nothing came behind that, and neither side means to close.
`http.client` itself connects anew behind one's back; here a connection that has ended stays so.

A connection is used in the way of `http.client`::

    with pool.connection('https://example.org') as conn:
        conn.request('GET', '/')
        response = conn.getresponse()
        page = response.read()"""

from __future__ import annotations

import functools
import http.client
import io
import math
import re
import socket
import time
from ssl import SSLContext, create_default_context
from typing import Any
from urllib.parse import urlsplit

from gcp.contrib.socket import KeepAlive, SslSocketConnectionManager, TcpEndpoint, TcpSocketConnectionManager
from gcp.threading import BaseConnectionManager

__all__ = ['HttpConnection', 'HttpConnectionManager', 'HttpResponse', 'HttpsConnection', 'KeepAlive', 'Origin']

Origin = str

#: How long before the end that a server has announced for an idle connection it is no longer used, at most: a request
#: on its way at that moment would be lost.
MARGIN = 1.0

LAST_CHUNK = b'0\r\n\r\n'


# ---- what goes over a connection


class _Source(io.RawIOBase):
    """Bytes of a socket, until it is told that all that concerns one has come."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.is_over:
            return None
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    """Reads ahead, as readers do, and does not forget what it has read ahead when it is closed.

    :ivar has_rest: something was left
    """

    has_rest = False

    def __init__(self, source: _Source) -> None:
        super().__init__(source)
        self._source = source

    def close(self) -> None:
        if not self.closed:
            self._source.is_over = True  # from here on, a look ahead never waits
            self.has_rest = bool(self.peek(1))
        super().close()


def _watched(name: str) -> Any:
    """Return a way of reading a response that notes whether it failed: `http.client` then closes some, as if read."""
    read = getattr(http.client.HTTPResponse, name)

    @functools.wraps(read)
    def watched(response: HttpResponse, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(response, *args, **kwargs)
        except BaseException:
            response.is_cut_short = True
            raise

    return watched


class HttpResponse(http.client.HTTPResponse):
    """A response that knows whether it was read to its end, where `http.client` only knows whether it was closed.

    :ivar is_cut_short: it was closed, or broke off, before its end
    """

    is_cut_short = False
    _reader: _Reader | None = None

    read, read1, readinto = _watched('read'), _watched('read1'), _watched('readinto')
    readline, peek = _watched('readline'), _watched('peek')

    def __init__(
            self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._has_no_body = method == 'HEAD'
        self.fp: Any = _Reader(_Source(self.fp.detach()))
        self._reader = self.fp

    def close(self) -> None:
        """Close it; before its end, at the cost of its connection."""
        self.is_cut_short = not self.is_complete()
        super().close()

    def cut_off(self) -> None:
        """Have it read no more: whoever tries gets a ``ValueError``, and not, as of one that was closed, nothing."""
        self.close()
        self.fp = self._reader

    def is_complete(self) -> bool:
        """Tell whether it was read to the end, or has nothing to read, and nothing came behind it."""
        if self._reader is None or self.is_cut_short or self._reader.has_rest:
            return False
        return self.isclosed() or (self.length == 0 and (self._has_no_body or not self.chunked))

    def ends_connection(self, method: str) -> bool:
        """Tell whether no other response can follow it.

        :param method: of the request
        """
        if self.status < 200 or (method == 'CONNECT' and self.status < 300):
            return True  # another protocol from here on; or a word ahead of the response, which nobody has read
        return bool(self.will_close)

    def patience(self) -> float:
        """For how many seconds the server will wait for the next request, as far as it says so."""
        hint = re.search(r'\btimeout *= *"?(\d+)', self.headers.get('Keep-Alive', ''))
        if hint is None:
            return math.inf
        seconds = float(hint[1])
        return seconds - min(MARGIN, seconds / 2)


class HttpConnection(http.client.HTTPConnection):
    """A connection that keeps the books of its requests and responses, by the public methods that each has to pass.

    :ivar dialer: the manager of its socket
    :ivar address: the socket's endpoint
    :ivar wire: the socket, also once `http.client` has let go of it and a response still reads from it
    :ivar expires: when the server will close it, as far as it says so; on the monotonic clock
    """

    auto_open = 0
    response_class = HttpResponse
    dialer: Any
    address: TcpEndpoint
    wire: Any
    expires = math.inf

    _is_answered = True
    _is_spoilt = False
    _method = ''
    _response: HttpResponse | None = None
    # of the request: the length announced, or -1 for chunks; the body's bytes sent; the last of them
    _announced: int | None = None
    _sent = 0
    _tail = b''
    _is_in_body = False

    def connect(self) -> None:
        """Refuse: a pooled connection is connected when it is created, and never again.

        :raises http.client.NotConnected: always
        """
        raise http.client.NotConnected('the connection is closed; acquire another one')

    def putrequest(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Begin a request. `request` sends a whole one, and is what one mostly wants.

        :param method: of the request
        :raises http.client.NotConnected: when the connection has ended
        """
        if self._response is not None and self._response.isclosed() and not self._response.is_complete():
            self.close()  # its rest would be read as the next response
        if self.sock is None:
            self.connect()
        self._is_spoilt = self._is_spoilt or not self.is_reusable()
        super().putrequest(method, *args, **kwargs)
        self._is_answered, self._response, self._method = False, None, method
        self._announced, self._sent, self._tail, self._is_in_body = None, 0, b'', False

    def putheader(self, header: Any, *values: Any) -> None:
        """Add a header to the request.

        :param header: its name
        :param values: a line of its value each
        """
        super().putheader(header, *values)
        name = header.decode('latin-1') if isinstance(header, bytes) else header
        if name.lower() == 'transfer-encoding':
            self._announce(-1)
        elif name.lower() == 'content-length':
            self._announce(_number(values[0]))

    def send(self, data: Any) -> None:
        """Send a part of the request's body.

        :param data: bytes, or what `http.client` takes else; of that, nobody can tell how long it was
        """
        self._is_spoilt = self._is_spoilt or self._is_answered  # part of no request
        super().send(data)
        if not self._is_in_body:  # what `endheaders` sends first are the headers
            self._is_in_body = True
            return
        try:
            words = memoryview(data).cast('B')
        except TypeError:  # a file, or an iterable: of a length that only `http.client` saw
            self._is_spoilt = True
        else:
            self._sent += words.nbytes
            self._tail = (self._tail + bytes(words[-7:]))[-7:]

    def getresponse(self) -> HttpResponse:
        """Return the response to the request, when its headers are there."""
        response: HttpResponse = super().getresponse()  # type: ignore[assignment]
        self._is_answered, self._response = True, response
        self.expires = time.monotonic() + response.patience()
        return response

    def is_reusable(self) -> bool:
        """Tell whether the next request will be understood as one, and the next response be its own."""
        if self.sock is None or self._is_spoilt or not self._is_answered:
            return False
        response = self._response
        if response is None:
            return True
        return self._is_sent() and response.is_complete() and not response.ends_connection(self._method)

    def settle(self) -> None:
        """Close a response of which nothing is left to read, which `http.client` leaves to the user."""
        if self._response is not None and self._response.is_complete():
            self._response.close()

    def let_go(self) -> None:
        """Close it, and part from the response, so that nobody who holds that reads here any more."""
        response = self._response
        is_read = response is None or response.isclosed()
        self.close()
        if response is not None and not is_read:
            response.cut_off()

    def _announce(self, length: int | None) -> None:
        self._is_spoilt = self._is_spoilt or length is None or self._announced not in (None, length)
        self._announced = length

    def _is_sent(self) -> bool:
        """Tell whether the body is as long as was announced: else the server takes the next request for its rest."""
        if self._announced == -1:
            return self._tail == LAST_CHUNK or self._tail.endswith(b'\r\n' + LAST_CHUNK)
        return self._sent == (self._announced or 0)


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None


class HttpsConnection(HttpConnection, http.client.HTTPSConnection):
    """The same, over TLS."""


# ---- the manager


class HttpConnectionManager(BaseConnectionManager[Origin, HttpConnection]):
    """Connects to HTTP servers. An endpoint is an origin: ``'http://host'``, ``'https://host:port'``.

    A connection that comes back in the middle of a request or a response, or that the server means to close, is closed
    at once. A response that is still held then reads no more.

    :param ssl: what ``https`` trusts and speaks; ``None``: a default context, which verifies certificate and name
    :param server_hostname: the name to ask for (SNI) and to verify; ``None``: the endpoint's host
    :param session_reuse: resume the last TLS session with the endpoint, which saves most of a handshake's work
    :param request_timeout: how long the socket may take for a single read or write, unless the user sets another;
        ``None``: no limit
    :param keepalive: how the kernel finds out that an idle peer is gone without a word; ``None``: not at all
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for one that is impossible
    """

    def __init__(
            self,
            ssl: SSLContext | None = None,
            *,
            server_hostname: str | None = None,
            session_reuse: bool = True,
            request_timeout: float | None = None,
            keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008  # it is frozen
            nodelay: bool = True,
            source_address: tuple[str, int] | None = None,
    ) -> None:
        if ssl is not None and not isinstance(ssl, SSLContext):
            raise TypeError(f'ssl: an SSLContext or None was expected, not {ssl!r}')
        if request_timeout is not None:
            if isinstance(request_timeout, bool) or not isinstance(request_timeout, (int, float)):
                raise TypeError(f'request_timeout: seconds were expected, not {request_timeout!r}')
            if not 0 < request_timeout < math.inf:
                raise ValueError(f'request_timeout: more than 0 seconds were expected, not {request_timeout!r}')
        self._request_timeout = request_timeout
        self._plain = TcpSocketConnectionManager(
            keepalive=keepalive, nodelay=nodelay, source_address=source_address)
        self._make_secure = functools.partial(
            SslSocketConnectionManager, server_hostname=server_hostname, alpn_protocols=['http/1.1'],
            session_reuse=session_reuse, keepalive=keepalive, nodelay=nodelay, source_address=source_address)
        self._context = ssl
        self._secure: SslSocketConnectionManager | None = None
        if ssl is not None or server_hostname is not None:
            self._prepare_tls()  # finds fault with options at once

    def create(self, endpoint: Origin, timeout: float | None = None) -> HttpConnection:
        """Connect to the first address of a host that accepts, and, with ``https``, shake hands.

        :param endpoint: the origin
        :param timeout: how long it may take in all, the look-up of the name, all addresses tried and the handshake
            included; ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises ssl.SSLError: when the handshake fails, `ssl.SSLCertVerificationError` when the server is not who it
            ought to be
        :raises OSError: what the last address answered, or the look-up
        :raises TypeError: when the endpoint is no string
        :raises ValueError: when it is no origin
        """
        scheme, host, port = _taken_apart(endpoint)
        conn: HttpConnection
        if scheme == 'http':
            conn = HttpConnection(host, port)
            conn.dialer = self._plain
        else:
            context, dialer = self._prepare_tls()
            conn = HttpsConnection(host, port, context=context)
            conn.dialer = dialer
        conn.address = (host, port)
        conn.wire = conn.sock = conn.dialer.create(conn.address, timeout)
        conn.sock.settimeout(self._request_timeout)
        return conn

    def dispose(self, endpoint: Origin, conn: HttpConnection, timeout: float | None = None) -> None:
        """Close a connection, also in the hands of another thread that waits on it. HTTP needs no goodbye.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long TLS may take to say its own
        """
        try:
            conn.dialer.dispose(conn.address, conn.wire, timeout)
        finally:
            conn.let_go()

    def check_aliveness(self, endpoint: Origin, conn: HttpConnection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: not needed: this never waits
        """
        if not conn.is_reusable() or time.monotonic() >= conn.expires:
            return False
        alive: bool = conn.dialer.check_aliveness(conn.address, conn.sock)
        return alive

    def on_acquire(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Take note that somebody uses a connection.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        conn.dialer.on_acquire(conn.address, conn.wire)

    def on_release(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Close a connection that cannot be used again; see that no other setting of its user's stays.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        conn.dialer.on_release(conn.address, conn.wire)
        conn.settle()
        if conn.is_reusable():
            conn.sock.settimeout(self._request_timeout)
        else:
            self.dispose(endpoint, conn, 0)

    def _prepare_tls(self) -> tuple[SSLContext, SslSocketConnectionManager]:
        """Return what `https` needs. Not before it does: to load what a default context trusts takes milliseconds."""
        if self._context is None:
            self._context = create_default_context()
        if self._secure is None:
            self._secure = self._make_secure(self._context)
        return self._context, self._secure


def _taken_apart(endpoint: Origin) -> tuple[str, str, int]:
    """Return scheme, host and port of an origin. Errors do not repeat what may hold a secret."""
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint: an origin such as 'https://example.org' was expected, not {endpoint!r}")
    expected = "endpoint: an origin, 'http://host[:port]' or 'https://host[:port]', was expected"
    if '@' in endpoint:
        raise ValueError(f'{expected}, without user name and password: those belong in a header of the request')
    place = re.split('[?#]', endpoint)[0]
    try:
        parts = urlsplit(endpoint)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        raise ValueError(f'{expected}, not {place!r}') from None
    if scheme not in ('http', 'https') or not host or endpoint != endpoint.strip():
        raise ValueError(f'{expected}, not {place!r}')
    if parts.path or place != endpoint:
        raise ValueError(f'{expected}, without path and query, unlike that for {host!r}')
    return scheme, host, (80 if scheme == 'http' else 443) if port is None else port
