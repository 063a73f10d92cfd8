"""Serves the metrics of the demo's two pools, for `gcp top` or a Prometheus."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

from prometheus_client import MetricsHandler

__all__ = ['published']

POLL = 0.1  # how long the server may take to stop, seconds


class Server(ThreadingHTTPServer):
    """An HTTP server on this host."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look up the host's name, which may take long


@contextlib.contextmanager
def published() -> Iterator[str | None]:
    """Serve the page on a free port of 127.0.0.1.

    :return: its URL; None if no port is available, and there is no page
    """
    try:
        server = Server(('127.0.0.1', 0), MetricsHandler)
    except OSError:
        yield None
        return
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL,), name='demo-metrics', daemon=True)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_address[1]}/metrics'
        finally:
            server.shutdown()
            thread.join()
