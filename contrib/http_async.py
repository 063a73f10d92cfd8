"""HTTP connections for the asyncio pool, on streams, with h11 for the protocol.

Reuses a connection only when the next response is sure to belong to the next request: the last request was sent in
full, its response was read to the end, nothing followed it, and neither side is about to close::

    async with pool.connection('https://example.org') as conn:
        response = await conn.request('GET', '/')
        page = await response.read()"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from ssl import SSLContext, create_default_context
from typing import Any

try:
    import h11
except ImportError as error:
    raise ImportError('gcp.contrib.http_async needs h11: pip install gcpool[http]', name='h11') from error

from gcp.asyncio import BaseConnectionManager
from gcp.contrib._errors import BROKEN, classify_error, look_at_socket
from gcp.contrib._origin import Origin, keep_alive, split_origin
from gcp.contrib.socket_async import KeepAlive, Stream, TcpStreamConnectionManager, TcpStreamEndpoint
from gcp.exceptions import ErrorClass

__all__ = ['HttpConnection', 'HttpConnectionManager', 'HttpResponse', 'KeepAlive', 'Origin']

#: How much to read at a time, bytes.
CHUNK = 65536


class HttpResponse:
    """A response whose headers have arrived. Read its body, by `read` or in an ``async for``, before the next request.

    :ivar status: the status code
    :ivar headers: names, in lower case, and values, in order
    """

    def __init__(self, conn: HttpConnection, head: h11.Response) -> None:
        self._conn: HttpConnection | None = conn
        self.status: int = head.status_code
        self.headers = tuple((name.decode('ascii'), value.decode('latin-1')) for name, value in head.headers)

    def header(self, name: str, default: str = '') -> str:
        """Return the values of a header, joined by commas.

        :param name: its name, in any case
        :param default: what to return if there is none
        """
        found = [value for key, value in self.headers if key == name.lower()]
        return ', '.join(found) if found else default

    async def read(self) -> bytes:
        """Return the body, or what is left of it."""
        return b''.join([part async for part in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._conn is not None and (part := await self._conn.read_part(self)) is not None:
            yield part
        self._conn = None


class HttpConnection:
    """A connection to a server: one request at a time.

    :param origin: the origin, for the ``Host`` header
    :param stream: a connected stream
    :ivar address: the stream's endpoint
    :ivar stream: its reader and writer
    :ivar expires: when the server will close it, if it says so, on the monotonic clock
    :ivar is_released: whether it was released before its response was read
    """

    def __init__(self, origin: Origin, address: TcpStreamEndpoint, stream: Stream) -> None:
        self.address, self.stream = address, stream
        self.expires = math.inf
        self.is_released = False
        self._host = origin.partition('://')[2]
        self._protocol = h11.Connection(h11.CLIENT)
        self._response: HttpResponse | None = None

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | AsyncIterable[bytes] = b'',
    ) -> HttpResponse:
        """Send a request, and return the response once its headers have arrived.

        :param method: ``'GET'``, ``'POST'`` and so on
        :param target: path and query
        :param headers: names and values; ``Host`` and the length of the body are added
        :param body: bytes; or an asynchronous iterator of bytes, which is sent in chunks unless a header has its length
        :raises RuntimeError: if the last response was not read to its end
        :raises h11.ProtocolError: for a request that HTTP does not allow, or a response that is none
        :raises OSError: if the connection is lost
        """
        if not self.is_reusable():
            raise RuntimeError('the last response was not read to its end, or the connection is about to be closed')
        self._send(h11.Request(method=method, target=target, headers=self._complete(headers, method, body)))
        if isinstance(body, bytes):
            if body:
                self._send(h11.Data(data=body))
        else:
            async for part in body:
                self._send(h11.Data(data=part))
                await self.stream[1].drain()
        self._send(h11.EndOfMessage())
        await self.stream[1].drain()
        self._response = response = HttpResponse(self, await self._head())
        self.expires = time.monotonic() + keep_alive(response.header('keep-alive'))
        if method == 'HEAD' or response.status in (204, 304) or response.header('content-length') == '0':
            await response.read()  # there is nothing but its end
        return response

    async def read_part(self, response: HttpResponse) -> bytes | None:
        """Return the next part of a response's body; ``None``: it is at its end.

        :param response: the response
        :raises RuntimeError: if the connection was released before, or serves another request
        """
        if self.is_released or response is not self._response:
            raise RuntimeError('the connection was released before its response was read to the end')
        event = await self._next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._response = None
        return None

    def is_reusable(self) -> bool:
        """Tell whether request and response are complete, so that the next ones will be understood."""
        protocol = self._protocol
        if protocol.our_state is h11.DONE and protocol.their_state is h11.DONE:
            protocol.start_next_cycle()
        return protocol.our_state is h11.IDLE and protocol.their_state is h11.IDLE and protocol.trailing_data[0] == b''

    def abort(self) -> None:
        """Close it at once; a response that was not read raises when it is read."""
        self.is_released = True
        self.stream[1].transport.abort()

    def _complete(self, headers: Iterable[tuple[str, str]], method: str, body: object) -> list[tuple[str, str]]:
        complete = list(headers)
        names = {name.lower() for name, _ in complete}
        if 'host' not in names:
            complete.insert(0, ('Host', self._host))
        if not names & {'content-length', 'transfer-encoding'}:
            if not isinstance(body, bytes):
                complete.append(('Transfer-Encoding', 'chunked'))
            elif body or method in ('POST', 'PUT', 'PATCH'):
                complete.append(('Content-Length', str(len(body))))
        return complete

    def _send(self, event: Any) -> None:
        if data := self._protocol.send(event):
            self.stream[1].write(data)

    async def _head(self) -> h11.Response:
        while not isinstance(event := await self._next_event(), h11.Response):
            if isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError('the server has closed the connection without a response')
        return event

    async def _next_event(self) -> Any:
        ended = False
        while True:
            try:
                event = self._protocol.next_event()
            except h11.RemoteProtocolError as error:
                if not ended:
                    raise
                raise ConnectionResetError('the server has closed the connection within a response') from error
            if event is h11.PAUSED:
                raise h11.RemoteProtocolError('the server has switched protocols, or sent more than the response')
            if event is not h11.NEED_DATA:
                return event
            data = await self.stream[0].read(CHUNK)
            self._protocol.receive_data(data)
            ended = not data


class HttpConnectionManager(BaseConnectionManager[Origin, HttpConnection]):
    """Connects to HTTP servers. An endpoint is an origin: ``'http://host'``, ``'https://host:port'``.

    A connection released in the middle of a request or a response, or that the server is about to close, is closed at
    once. Reading from its response raises then.

    :param ssl: the context for ``https``; ``None``: a default one, which verifies certificate and name
    :param server_hostname: the name to send (SNI) and to verify; ``None``: the endpoint's host
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
        keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008  # it is frozen
        nodelay: bool = True,
        source_address: tuple[str, int] | None = None,
        user_timeout: float | None = None,
    ) -> None:
        if ssl is not None and not isinstance(ssl, SSLContext):
            raise TypeError(f'ssl: an SSLContext or None was expected, not {ssl!r}')
        self._options: dict[str, Any] = {
            'keepalive': keepalive,
            'nodelay': nodelay,
            'source_address': source_address,
            'user_timeout': user_timeout,
        }
        self._context, self._server_hostname = ssl, server_hostname
        self._plain = TcpStreamConnectionManager(**self._options)
        self._secure: list[TcpStreamConnectionManager] = []
        if ssl is not None or server_hostname is not None:
            self._prepare_tls()  # reports wrong options now, not at the first acquire

    async def create(self, endpoint: Origin) -> HttpConnection:
        """Connect to the first address of a host that accepts, and, with ``https``, do the TLS handshake.

        :param endpoint: the origin
        :raises ssl.SSLError: when the handshake fails
        :raises OSError: when no address accepts, or the name cannot be looked up
        :raises TypeError: when the endpoint is not a text
        :raises ValueError: when it is no origin
        """
        scheme, host, port = split_origin(endpoint)
        streams = self._prepare_tls() if scheme == 'https' else self._plain
        return HttpConnection(endpoint, (host, port), await streams.create((host, port)))

    async def dispose(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Close a connection. Does nothing in a process forked since its creation.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        conn.is_released = True
        await self._plain_or_secure(endpoint).dispose(conn.address, conn.stream)

    async def check_aliveness(self, endpoint: Origin, conn: HttpConnection) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if not conn.is_reusable() or time.monotonic() >= conn.expires:
            return False
        return await self._plain_or_secure(endpoint).check_aliveness(conn.address, conn.stream)

    async def on_acquire(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Remember the write limits of a new connection.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        await self._plain_or_secure(endpoint).on_acquire(conn.address, conn.stream)

    async def on_release(self, endpoint: Origin, conn: HttpConnection) -> None:
        """Close a connection that cannot be reused.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if conn.is_reusable():
            await self._plain_or_secure(endpoint).on_release(conn.address, conn.stream)
        else:
            conn.abort()

    def clean_after_error(self, endpoint: Origin, conn: HttpConnection, error: BaseException) -> bool:
        """Tell whether a connection can be reused although an error left the block that used it: if no request is in
        progress, and the last response was read to its end.

        :param endpoint: its endpoint
        :param conn: the connection
        :param error: the error
        """
        return conn.is_reusable()

    def classify(self, endpoint: Origin, error: BaseException) -> ErrorClass:
        """Say what an error means, by the error of the system, of TLS or of h11 in it. It only looks.

        :param endpoint: the endpoint
        :param error: the error of a create, or one that leaves the block of a connection's holder
        """
        return classify_error(error, _look_at_error)

    def _plain_or_secure(self, endpoint: Origin) -> TcpStreamConnectionManager:
        return self._prepare_tls() if endpoint.lower().startswith('https:') else self._plain

    def _prepare_tls(self) -> TcpStreamConnectionManager:
        """Return the manager for `https`; created at its first use, as loading CA certificates takes time."""
        if not self._secure:
            context = create_default_context() if self._context is None else self._context
            secure = TcpStreamConnectionManager(
                context, server_hostname=self._server_hostname, alpn_protocols=['http/1.1'], **self._options
            )
            self._secure.append(secure)
        return self._secure[0]  # of several event loops that have made one, all use that of the first


def _look_at_error(error: BaseException) -> ErrorClass | None:
    if isinstance(error, (h11.RemoteProtocolError, asyncio.IncompleteReadError)):
        return BROKEN
    return look_at_socket(error)
