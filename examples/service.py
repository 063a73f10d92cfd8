"""A web service on PostgreSQL for WSGI (threads, psycopg2) and ASGI (asyncio, asyncpg), with metrics, health and spans.

    python service.py wsgi                      starts a PostgreSQL of its own: pip install gcpool[demo]
    python service.py asgi --host db.internal   uses this one; serves by uvicorn: pip install uvicorn
    gunicorn -c gunicorn.conf.py                several processes; PGHOST, PGUSER, PGDATABASE, PGPASSWORD say where
    uvicorn --factory service:make_asgi         the same variables

    /orders?customer=3    a query
    /health               the state of the pool; needs no connection, so it answers while none is free
    /debug/pools          what the pool does now, who holds its connections and who waits: for requests of this host
    /metrics              for Prometheus, and for `python -m gcp top localhost:8000`

SERVICE_SPANS=console writes the spans to stderr (pip install opentelemetry-sdk). The pool's metrics are always on. The
service adds spans of its requests, which become the parents of the pool's."""

import argparse
import asyncio
import atexit
import contextlib
import json
import os
import signal
import socketserver
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

import gcp.asyncio
import gcp.debug
import gcp.threading

SLOW = 1.0  # unhealthy when an acquire has waited for longer than this, seconds
MOST = 1000
QUERY = 'SELECT id, id * 100 FROM generate_series(1, {}::int) AS orders (id)'
OPTIONS: Mapping[str, Any] = {
    'name': 'orders',  # the label in the metrics
    'max_size': 4,  # per process
    'acquire_timeout': 2.0,
    'leak_threshold': 30.0,  # seconds after which a held connection counts as leaked
}

tracer = trace.get_tracer('service')

Answer = tuple[int, Any]


# --- shared ---


def metrics() -> CollectorRegistry:
    """Return the registry of this process, or of all processes that share the directory."""
    if 'PROMETHEUS_MULTIPROC_DIR' not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def health(stats: gcp.PoolStats[str]) -> Answer:
    """Judge the pool by its statistics. Needs no connection and does not wait."""
    is_well = not stats.is_closed and stats.oldest_waiter < SLOW
    return 200 if is_well else 503, {
        'status': 'ok' if is_well else 'no connections available',
        'pid': os.getpid(),
        'connections': {'idle': stats.idle, 'used': stats.used, 'creating': stats.creating},
        'waiting': stats.waiting,
        'oldest_waiter': stats.oldest_waiter,
        'oldest_checkout': stats.oldest_checkout,
        'acquires': dict(stats.acquires),
    }


def number_of(query: str) -> int:
    """Parse the customer's number."""
    number = int(parse_qs(query)['customer'][0])
    if not 0 <= number <= MOST:
        raise ValueError(number)
    return number


@contextlib.contextmanager
def request(path: str) -> Iterator[None]:
    """Open a span, the parent of the pool's: the wait for a connection, and its creation."""
    with tracer.start_as_current_span(f'GET {path}', kind=trace.SpanKind.SERVER):
        yield


def failure(error: Exception) -> Answer:
    """Return the response to an error."""
    if isinstance(error, (KeyError, ValueError)):
        return 400, {'error': f'customer: a number up to {MOST} was expected'}
    trace.get_current_span().set_status(trace.StatusCode.ERROR, type(error).__name__)
    return 503, {'error': type(error).__name__}  # no connection in time, or no server


# --- WSGI ---


class Wsgi:
    """The service for threads."""

    def __init__(self) -> None:
        from gcp.contrib.psycopg2 import Connection, DbConnectionManager

        self.pool: gcp.threading.ConnectionPool[str, Connection] = gcp.threading.ConnectionPool(
            DbConnectionManager({'orders': {'application_name': 'service'}}), **OPTIONS
        )
        self._pages: dict[str, Callable[..., Any]] = {
            '/metrics': make_wsgi_app(metrics()),
            '/debug/pools': gcp.debug.wsgi(),
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ['PATH_INFO']
        if path in self._pages:
            page: Iterable[bytes] = self._pages[path](environ, start_response)
            return page
        status, answer = self.answer(path, environ.get('QUERY_STRING', ''))
        body = json.dumps(answer).encode()
        start_response(
            f'{status} {"OK" if status == 200 else "Error"}',
            [('Content-Type', 'application/json'), ('Content-Length', str(len(body)))],
        )
        return [body]

    def answer(self, path: str, query: str) -> Answer:
        if path == '/health':
            return health(self.pool.stats())
        if path != '/orders':
            return 404, {'error': 'not found'}
        with request(path):
            try:
                return 200, self.orders(number_of(query))
            except Exception as error:
                return failure(error)

    def orders(self, customer: int) -> list[tuple[int, int]]:
        with self.pool.connection('orders') as conn, conn, conn.cursor() as cursor:  # `with conn`: a transaction
            cursor.execute(QUERY.format('%s'), [customer])
            return list(cursor.fetchall())


# --- ASGI ---

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Asgi:
    """The service for asyncio."""

    def __init__(self) -> None:
        from gcp.contrib.asyncpg import DbConnectionManager

        self.pool: gcp.asyncio.ConnectionPool[str, Any] = gcp.asyncio.ConnectionPool(
            DbConnectionManager({'orders': {'server_settings': {'application_name': 'service'}}}), **OPTIONS
        )
        self._pages: dict[str, Callable[..., Any]] = {
            '/metrics': make_asgi_app(metrics()),
            '/debug/pools': gcp.debug.asgi(),
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope['type'] == 'lifespan':
            await self.live(receive, send)
        elif scope['type'] == 'http' and scope['path'] in self._pages:
            await self._pages[scope['path']](scope, receive, send)
        elif scope['type'] == 'http':
            status, answer = await self.answer(scope['path'], scope['query_string'].decode())
            await send(
                {'type': 'http.response.start', 'status': status, 'headers': [(b'content-type', b'application/json')]}
            )
            await send({'type': 'http.response.body', 'body': json.dumps(answer).encode()})

    async def live(self, receive: Receive, send: Send) -> None:
        """Close the pool in the event loop that used it."""
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        await self.pool.close(timeout=1.0)
        await send({'type': 'lifespan.shutdown.complete'})

    async def answer(self, path: str, query: str) -> Answer:
        if path == '/health':
            return health(self.pool.stats())
        if path != '/orders':
            return 404, {'error': 'not found'}
        with request(path):
            try:
                return 200, await self.orders(number_of(query))
            except Exception as error:
                return failure(error)

    async def orders(self, customer: int) -> list[tuple[int, int]]:
        async with self.pool.connection('orders') as conn:
            return [tuple(row) for row in await conn.fetch(QUERY.format('$1'), customer)]


# --- servers ---


def make_wsgi() -> Wsgi:
    """Build the WSGI application. The pool connects at the first acquire, so a process may fork after this."""
    app = Wsgi()
    atexit.register(app.pool.close, timeout=1.0)
    return app


def make_asgi() -> Asgi:
    """Build the ASGI application."""
    trace_to(os.environ.get('SERVICE_SPANS'))
    return Asgi()


def trace_to(where: str | None) -> None:
    """Record spans, also of pools that were built before.

    :param where: ``'console'``; ``None``: do not record
    """
    if where == 'console':
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        trace.set_tracer_provider(provider)


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """The standard library's server, for a try; use gunicorn in production."""

    daemon_threads = True
    request_queue_size = 100

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = '127.0.0.1', self.server_address[1]  # avoids a look-up of the host name
        self.setup_environ()


class Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Do not log requests."""


def serve_wsgi(port: int) -> None:
    trace_to(os.environ.get('SERVICE_SPANS'))
    app = make_wsgi()
    with make_server('127.0.0.1', port, app, Server, Handler) as server, contextlib.closing(app.pool):
        announce(server.server_port)
        server.serve_forever(0.1)


def serve_asgi(port: int) -> None:
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            announce(self.servers[0].sockets[0].getsockname()[1])

    config = uvicorn.Config(make_asgi(), '127.0.0.1', port, log_level='warning', lifespan='on')
    asyncio.run(Announced(config).serve())


def announce(port: int) -> None:
    print(f'http://127.0.0.1:{port}/orders?customer=3, /health, /debug/pools, /metrics', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description='A small web service on PostgreSQL.')
    parser.add_argument('kind', choices=['wsgi', 'asgi'])
    parser.add_argument('--port', type=int, default=8000, help='where to serve (default: %(default)s)')
    parser.add_argument('--host', help='the PostgreSQL server; PGUSER, PGPASSWORD, ... as usual (default: start one)')
    options = parser.parse_args()
    serve = serve_wsgi if options.kind == 'wsgi' else serve_asgi
    with contextlib.ExitStack() as stack:
        if options.host:
            os.environ['PGHOST'] = options.host
        else:
            from gcp.demo import server

            own = stack.enter_context(server.serve()).parameters
            os.environ.update(PGHOST=own['host'], PGUSER=own['user'], PGDATABASE=own['dbname'])
        serve(options.port)


def leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, leave)  # as Ctrl-C: stop what was started
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
    except (OSError, RuntimeError, ImportError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
