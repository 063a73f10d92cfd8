"""The demo's page of metrics: what the two pools say of themselves, for whoever wants to watch from outside."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

from prometheus_client import MetricsHandler

__all__ = ['published']

POLL = 0.1  # what it may take to end, seconds


class Server(ThreadingHTTPServer):
    """Serves this host."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # does not look up this host's name, which may take long


@contextlib.contextmanager
def published() -> Iterator[str | None]:
    """Serve the page on a free port of 127.0.0.1.

    :return: its URL; None: there is no port to be had, and no page
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
