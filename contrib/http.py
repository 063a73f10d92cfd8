"""HTTP connections of `http.client` for the threading pool.

Reuses a connection only when the next response is sure to belong to the next request: the last request was sent in
full, its response was read to the end, nothing followed it, and neither side is about to close. `http.client`'s
automatic reconnect is off: a closed connection stays closed, and the pool replaces it.

The connections are `http.client`'s::

    with pool.connection('https://example.org') as conn:
        conn.request('GET', '/')
        response = conn.getresponse()
        page = response.read()"""

from __future__ import annotations

import functools
import http.client
import io
import math
import socket
import time
from collections.abc import Callable, Mapping
from ssl import SSLContext, create_default_context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gcp.contrib._errors import BROKEN, classify_error, look_at_socket
from gcp.contrib._origin import Origin, keep_alive, split_origin
from gcp.contrib._wire import clamp, restore_timeout
from gcp.contrib.socket import KeepAlive, SslSocketConnectionManager, TcpEndpoint, TcpSocketConnectionManager
from gcp.exceptions import ErrorClass
from gcp.threading import BaseConnectionManager

__all__ = ['HttpConnection', 'HttpConnectionManager', 'HttpResponse', 'HttpsConnection', 'KeepAlive', 'Origin']

#: The attributes of a connection of `http.client` that change how it talks to the server.
CHANGEABLE = (
    'auto_open',
    'blocksize',
    'debuglevel',
    'default_port',
    'host',
    'max_response_headers',
    'port',
    'response_class',
    'source_address',
    'timeout',
    '_http_vsn',
    '_http_vsn_str',
)

#: Errors of `http.client` after which the position in the stream of responses is not known, or the connection closed.
LOST = (
    http.client.RemoteDisconnected,
    http.client.BadStatusLine,
    http.client.IncompleteRead,
    http.client.LineTooLong,
    http.client.NotConnected,
    http.client.UnknownProtocol,
    http.client.UnknownTransferEncoding,
)

LAST_CHUNK = b'0\r\n\r\n'


# ---- connections and responses


class _Source(io.RawIOBase):
    """A socket's bytes; once `is_at_end` is set, it returns ``None`` instead of waiting for more."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.is_at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.is_at_end:
            return None
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    """A buffered reader that notes, when it is closed, whether unread bytes were left in it.

    :ivar has_unread: whether bytes were left
    """

    has_unread = False

    def __init__(self, source: _Source) -> None:
        super().__init__(source)
        self._source = source

    def close(self) -> None:
        if not self.closed:
            self._source.is_at_end = True  # from here on, peek does not block
            self.has_unread = bool(self.peek(1))
        super().close()


def _tracking_failures(name: str) -> Any:
    """Wrap a method that reads a response, to note when it raises: `http.client` may close the response then, as at its
    end."""
    read = getattr(http.client.HTTPResponse, name)

    @functools.wraps(read)
    def tracked(response: HttpResponse, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(response, *args, **kwargs)
        except BaseException:
            response.is_truncated = True
            raise

    return tracked


class HttpResponse(http.client.HTTPResponse):
    """A response that knows whether it was read to its end; `http.client`'s only knows whether it is closed.

    :ivar is_truncated: whether it was closed, or failed, before its end
    """

    is_truncated = False
    _reader: _Reader | None = None

    if not TYPE_CHECKING:  # their types are those of the base class
        read, read1, readinto = map(_tracking_failures, ('read', 'read1', 'readinto'))
        readline, peek = map(_tracking_failures, ('readline', 'peek'))

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._has_no_body = method == 'HEAD'
        self.fp: Any = _Reader(_Source(self.fp.detach()))
        self._reader = self.fp

    def close(self) -> None:
        """Close it. Before its end, this costs the connection."""
        self.is_truncated = not self.is_complete()
        super().close()

    def invalidate(self) -> None:
        """Close it so that reading raises ``ValueError``; a closed response would return an empty result."""
        self.close()
        self.fp = self._reader

    def is_complete(self) -> bool:
        """Tell whether it was read to the end, or has no body, and nothing followed it."""
        if self._reader is None or self.is_truncated or self._reader.has_unread:
            return False
        return self.isclosed() or (self.length == 0 and (self._has_no_body or not self.chunked))

    def ends_connection(self, method: str) -> bool:
        """Tell whether no other response can follow on the connection.

        :param method: the request's method
        """
        if self.status < 200 or (method == 'CONNECT' and self.status < 300):
            return True  # an upgrade or tunnel, or an interim response whose final one is unread
        return bool(self.will_close)

    def keep_alive(self) -> float:
        """Return for how many seconds the connection can be reused, by the server's ``Keep-Alive`` header."""
        return keep_alive(self.headers.get('Keep-Alive', ''))


class HttpConnection(http.client.HTTPConnection):
    """A connection that tracks its requests and responses, in the public methods through which all of them go.

    :ivar socket_manager: the manager of its socket
    :ivar address: the socket's endpoint
    :ivar transport: the socket; kept after `http.client` has dropped it while a response still reads from it
    :ivar expires: when the server will close it, if it says so, on the monotonic clock
    """

    auto_open = 0
    response_class = HttpResponse
    socket_manager: Any
    address: TcpEndpoint
    transport: Any
    expires = math.inf

    _original: Mapping[str, Any] = MappingProxyType({})
    _is_answered = True
    _is_out_of_sync = False
    _method = ''
    _response: HttpResponse | None = None
    # of the request: its Content-Length, or -1 if chunked; how many bytes of its body were sent; the last of those
    _announced: int | None = None
    _sent = 0
    _tail = b''
    _is_in_body = False

    def connect(self) -> None:
        """Refuse: a pooled connection is connected once, when it is created.

        :raises http.client.NotConnected: always
        """
        raise http.client.NotConnected('the connection is closed; acquire another one')

    def putrequest(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Begin a request. (`request` sends a whole one.)

        :param method: the request's method
        :raises http.client.NotConnected: when the connection is closed
        """
        if self._response is not None and self._response.isclosed() and not self._response.is_complete():
            self.close()  # else its rest would be read as the next response
        if self.sock is None:
            self.connect()
        self._is_out_of_sync = self._is_out_of_sync or not self.is_reusable()
        self._is_answered, self._response, self._method = False, None, method  # also if it refuses the request
        super().putrequest(method, *args, **kwargs)
        self._announced, self._sent, self._tail, self._is_in_body = None, 0, b'', False

    def putheader(self, header: Any, *values: Any) -> None:
        """Add a header to the request.

        :param header: its name
        :param values: the lines of its value
        """
        super().putheader(header, *values)
        name = header.decode('latin-1') if isinstance(header, bytes) else header
        if name.lower() == 'transfer-encoding':
            self._set_announced(-1)
        elif name.lower() == 'content-length':
            self._set_announced(_number(values[0]))

    def send(self, data: Any) -> None:
        """Send a part of the request's body.

        :param data: bytes; or a file or an iterable, whose length is not known, so that the connection is not reused
        """
        self._is_out_of_sync = self._is_out_of_sync or self._is_answered  # not part of a request
        super().send(data)
        if not self._is_in_body:  # `endheaders` sends the headers first
            self._is_in_body = True
            return
        try:
            chunk = memoryview(data).cast('B')
        except TypeError:  # a file or an iterable: its length is not known here
            self._is_out_of_sync = True
        else:
            self._sent += chunk.nbytes
            self._tail = (self._tail + bytes(chunk[-7:]))[-7:]

    def getresponse(self) -> HttpResponse:
        """Return the response to the request, once its headers have arrived."""
        response: HttpResponse = super().getresponse()  # type: ignore[assignment]
        self._is_answered, self._response = True, response
        self.expires = time.monotonic() + response.keep_alive()
        return response

    def is_reusable(self) -> bool:
        """Tell whether request and response are complete, so that the next ones will be understood."""
        if self.sock is None or self._is_out_of_sync or not self._is_answered:
            return False
        response = self._response
        if response is None:
            return True
        return self._is_sent() and response.is_complete() and not response.ends_connection(self._method)

    def remember_attributes(self) -> None:
        """Remember the attributes that a user can change."""
        self._original = {name: getattr(self, name) for name in CHANGEABLE if hasattr(self, name)}

    def restore_attributes(self) -> None:
        """Restore the attributes that the user changed."""
        for name, value in self._original.items():
            if getattr(self, name) is not value:
                setattr(self, name, value)

    def close_completed_response(self) -> None:
        """Close a completed response, which `http.client` leaves to the user."""
        if self._response is not None and self._response.is_complete():
            self._response.close()

    def close_and_invalidate(self) -> None:
        """Close it, and invalidate an unread response, which could otherwise read on."""
        response = self._response
        is_read = response is None or response.isclosed()
        self.close()
        if response is not None and not is_read:
            response.invalidate()

    def _set_announced(self, length: int | None) -> None:
        self._is_out_of_sync = self._is_out_of_sync or length is None or self._announced not in (None, length)
        self._announced = length

    def _is_sent(self) -> bool:
        """Tell whether the body was sent in full: else the server would take the next request for its rest."""
        if self._announced == -1:
            return self._tail == LAST_CHUNK or self._tail.endswith(b'\r\n' + LAST_CHUNK)
        return self._sent == (self._announced or 0)


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None


class HttpsConnection(HttpConnection, http.client.HTTPSConnection):
    """A connection over TLS."""


# ---- the manager


class HttpConnectionManager(BaseConnectionManager[Origin, HttpConnection]):
    """Connects to HTTP servers. An endpoint is an origin: ``'http://host'``, ``'https://host:port'``.

    A connection released in the middle of a request or a response, or that the server is about to close, is closed at
    once. Reading from its response raises then.

    :param ssl: the context for ``https``; ``None``: a default one, which verifies certificate and name
    :param server_hostname: the name to send (SNI) and to verify; ``None``: the endpoint's host
    :param session_reuse: resume the last TLS session with the endpoint, which saves most of a handshake's cost
    :param request_timeout: how long a single read or write may take, seconds, unless the user sets another limit;
        ``None``: no limit
    :param keepalive: how the kernel detects that an idle peer has vanished; ``None``: no keepalive
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param user_timeout: how long sent data may stay unacknowledged before the kernel breaks the connection, seconds
        (``TCP_USER_TIMEOUT``, on Linux); ``None``: the kernel's default, about 15 minutes
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for an argument with an impossible value
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
        user_timeout: float | None = None,
    ) -> None:
        if ssl is not None and not isinstance(ssl, SSLContext):
            raise TypeError(f'ssl: an SSLContext or None was expected, not {ssl!r}')
        if request_timeout is not None:
            if isinstance(request_timeout, bool) or not isinstance(request_timeout, (int, float)):
                raise TypeError(f'request_timeout: seconds were expected, not {request_timeout!r}')
            if not request_timeout > 0:
                raise ValueError(f'request_timeout: more than 0 seconds were expected, not {request_timeout!r}')
        self._request_timeout = clamp(request_timeout)
        options: dict[str, Any] = {
            'keepalive': keepalive,
            'nodelay': nodelay,
            'source_address': source_address,
            'user_timeout': user_timeout,
        }
        self._plain = TcpSocketConnectionManager(**options)
        self._make_secure: Callable[..., SslSocketConnectionManager] = functools.partial(
            SslSocketConnectionManager,
            server_hostname=server_hostname,
            alpn_protocols=['http/1.1'],
            session_reuse=session_reuse,
            **options,
        )
        self._context = ssl
        self._secure: list[tuple[SSLContext, SslSocketConnectionManager]] = []
        if ssl is not None or server_hostname is not None:
            self._prepare_tls()  # reports wrong options now, not at the first acquire

    def create(self, endpoint: Origin, timeout: float | None = None) -> HttpConnection:
        """Connect to the first address of a host that accepts, and, with ``https``, do the TLS handshake.

        :param endpoint: the origin
        :param timeout: how long it may take in all, seconds, including the name's look-up, all addresses tried and the
            handshake; ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises ssl.SSLError: when the handshake fails; `ssl.SSLCertVerificationError` when the certificate does not
            verify
        :raises OSError: the error of the last address, or of the look-up
        :raises TypeError: when the endpoint is not a string
        :raises ValueError: when it is not an origin
        """
        scheme, host, port = split_origin(endpoint)
        conn: HttpConnection
        if scheme == 'http':
            conn = HttpConnection(host, port)
            conn.socket_manager = self._plain
        else:
            context, socket_manager = self._prepare_tls()
            conn = HttpsConnection(host, port, context=context)
            conn.socket_manager = socket_manager
        conn.address = (host, port)
        conn.transport = conn.sock = conn.socket_manager.create(conn.address, timeout)
        conn.sock.settimeout(self._request_timeout)
        conn.remember_attributes()
        return conn

    def dispose(self, endpoint: Origin, conn: HttpConnection, timeout: float | None = None) -> None:
        """Close a connection. A thread that waits on it returns at once.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: how long TLS may take to send its close_notify, seconds
        """
        try:
            conn.socket_manager.dispose(conn.address, conn.transport, timeout)
        finally:
            conn.close_and_invalidate()

    def check_aliveness(self, endpoint: Origin, conn: HttpConnection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: ignored: this does not wait
        """
        if not conn.is_reusable() or time.monotonic() >= conn.expires:
            return False
        alive: bool = conn.socket_manager.check_aliveness(conn.address, conn.sock)
        return alive

    def on_acquire(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Mark a connection as in use.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        conn.socket_manager.mark_in_use(conn.transport)

    def clean_after_error(self, endpoint: Origin, conn: HttpConnection, error: BaseException) -> bool:
        """Tell whether a connection can be reused although an error left the block that used it: if no request is in
        progress, and the last response was read to its end.

        :param endpoint: its endpoint
        :param conn: the connection
        :param error: the error
        """
        return conn.is_reusable()

    def classify(self, endpoint: Origin, error: BaseException) -> ErrorClass:
        """Say what an error means, by the error of the system, of TLS or of `http.client` in it. It only looks.

        :param endpoint: the endpoint
        :param error: the error of a create, or one that leaves the block of a connection's holder
        """
        return classify_error(error, _look_at_error)

    def on_release(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Close a connection that cannot be reused; otherwise restore its time-out and the attributes that its user
        changed, such as `debuglevel`.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        conn.socket_manager.mark_idle(conn.transport)
        conn.close_completed_response()
        if conn.is_reusable():
            restore_timeout(conn.sock, self._request_timeout)
            conn.restore_attributes()
        else:
            self.dispose(endpoint, conn, 0)

    def _prepare_tls(self) -> tuple[SSLContext, SslSocketConnectionManager]:
        """Return context and manager for `https`; created at its first use, as loading CA certificates takes time."""
        if not self._secure:
            context = create_default_context() if self._context is None else self._context
            self._secure.append((context, self._make_secure(context)))
        return self._secure[0]  # of several threads that have made one, all use that of the first


def _look_at_error(error: BaseException) -> ErrorClass | None:
    return BROKEN if isinstance(error, LOST) else look_at_socket(error)
