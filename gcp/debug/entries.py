"""The entry points: what WSGI and ASGI say of a request, and how they are told the response."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from gcp.debug.application import Application, Response
from gcp.debug.requests import LONGEST_BODY, Request

__all__ = ['AsgiApplication', 'WsgiApplication']

logger = logging.getLogger('gcp.debug')

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class WsgiApplication(Application):
    """The page as a WSGI application."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        response = self.respond(request_of_environ(environ))
        start_response(response.line, response.headers)
        return [response.body]


def request_of_environ(environ: Environ) -> Request:
    """Return a request as WSGI describes it."""
    headers = {name[5:].replace('_', '-').lower(): value for name, value in environ.items() if name.startswith('HTTP_')}
    headers['content-type'] = environ.get('CONTENT_TYPE', '')
    method = environ['REQUEST_METHOD'].upper()
    try:
        length = int(environ.get('CONTENT_LENGTH') or 0)
    except ValueError:
        length = 0
    body = environ['wsgi.input'].read(min(length, LONGEST_BODY + 1)) if method == 'POST' and length > 0 else b''
    return Request(
        method,
        environ.get('REMOTE_ADDR') or '',
        environ.get('wsgi.url_scheme', 'http'),
        headers,
        environ.get('QUERY_STRING', ''),
        body,
    )


class AsgiApplication(Application):
    """The page as an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'lifespan':
            await live(receive, send)
            return
        if scope['type'] != 'http':
            raise ValueError(f'the debug page answers to http, not to {scope["type"]}')
        body = await body_of(receive) if scope['method'].upper() == 'POST' else b''
        response = await in_thread(self, request_of_scope(scope, body))
        headers = [(name.lower().encode(), value.encode('latin-1')) for name, value in response.headers]
        await send({'type': 'http.response.start', 'status': response.status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': response.body})


def request_of_scope(scope: Scope, body: bytes) -> Request:
    """Return a request as ASGI describes it."""
    headers: dict[str, str] = {}
    for name, value in scope['headers']:
        key, text = name.decode('latin-1').lower(), value.decode('latin-1')
        headers[key] = f'{headers[key]}, {text}' if key in headers else text
    client = scope.get('client')
    return Request(
        scope['method'].upper(),
        client[0] if client else '',
        scope.get('scheme', 'http'),
        headers,
        scope.get('query_string', b'').decode('latin-1'),
        body,
    )


async def body_of(receive: Receive) -> bytes:
    """Read a body, as far as it may be long."""
    parts, length = [], 0
    while True:
        found = await receive()
        if found['type'] == 'http.disconnect':
            break
        parts.append(found.get('body', b''))
        length += len(parts[-1])
        if length > LONGEST_BODY or not found.get('more_body', False):
            break
    return b''.join(parts)


async def live(receive: Receive, send: Send) -> None:
    """Take part in the life of a server that runs this application alone."""
    while True:
        kind = (await receive())['type']
        await send({'type': f'{kind}.complete'})
        if kind == 'lifespan.shutdown':
            return


async def in_thread(application: Application, request: Request) -> Response:
    """Answer in a thread of its own: those of the event loop's executor may all wait for a connection."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Response] = loop.create_future()

    def tell(response: Response | None, error: BaseException | None) -> None:
        if answered.done():
            return
        if error is not None:
            answered.set_exception(error)
        elif response is not None:
            answered.set_result(response)

    def answer() -> None:
        try:
            result: tuple[Response | None, BaseException | None] = application.respond(request), None
        except BaseException as error:
            result = None, error
        try:
            loop.call_soon_threadsafe(tell, *result)
        except RuntimeError:
            logger.debug('the event loop has ended before the page was made')

    threading.Thread(target=answer, name='gcp-debug-page', daemon=True).start()
    return await answered
