"""Serves the metrics of the demo's two pools, for `gcp top` or a Prometheus, and the page that shows the pools."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from gcp import debug

__all__ = ['PAGE', 'published']

POLL = 0.1  # how long the server may take to stop, seconds
PAGE = '/debug/pools'


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """An HTTP server on this host."""

    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look up the host's name, which may take long
        self.server_name, self.server_port = '127.0.0.1', self.server_address[1]
        self.setup_environ()


class Handler(WSGIRequestHandler):
    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, *args: Any) -> None:
        """Do not log requests."""


def application() -> Callable[..., Iterable[bytes]]:
    """Return what answers requests: the page at its place, metrics everywhere else."""
    metrics, page = make_wsgi_app(), debug.wsgi(allow_actions=True)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        chosen = page if environ['PATH_INFO'].rstrip('/') == PAGE else metrics
        answered: Iterable[bytes] = chosen(environ, start_response)
        return answered

    return answer


@contextlib.contextmanager
def published() -> Iterator[str | None]:
    """Serve both on a free port of 127.0.0.1.

    :return: the URL of the metrics; None if no port is available, and nothing is served
    """
    try:
        server = make_server('127.0.0.1', 0, application(), Server, Handler)
    except OSError:
        yield None
        return
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL,), name='demo-metrics', daemon=True)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/metrics'
        finally:
            server.shutdown()
            thread.join()
