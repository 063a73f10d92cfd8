"""Draw docs/debug-page.png: the debug page of a process whose pools are in trouble, by Chromium. Run it with
`python -m tools.pictures.debug_page`."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from PIL import Image

import gcp.debug
import gcp.threading
from gcp.managers import SyncConnectionManager

PICTURE = Path(__file__).resolve().parents[2] / 'docs' / 'debug-page.png'
SECONDS = 25.0  # of load before the picture is taken
SIZE = 1180, 1750
COLOURS = 255


class Connection:
    """Stands for a connection."""


class Manager(SyncConnectionManager[Any, Connection]):
    """Connects after a while, and never to `db-3`."""

    def create(self, endpoint: Any, timeout: float | None = None) -> Connection:
        time.sleep(random.uniform(0.002, 0.03))
        if 'db-3' in str(endpoint):
            raise ConnectionRefusedError('connection to server at "db-3" (10.0.4.13), port 5432 failed')
        return Connection()

    def dispose(self, endpoint: Any, conn: Connection, timeout: float | None = None) -> None:
        """Nothing is open."""


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Do not log requests."""


def serve_customers(pool: Any, endpoint: Any, hold: float) -> None:
    """Use connections for ever."""
    while True:
        try:
            with pool.connection(endpoint):
                run_query(random.expovariate(1 / hold))
            time.sleep(random.uniform(0, 0.05))
        except Exception:
            time.sleep(1.0)


def run_query(seconds: float) -> None:
    time.sleep(seconds)


def export_everything(pool: Any, endpoint: Any) -> None:
    """Hold a connection for longer than `leak_threshold`."""
    with pool.connection(endpoint):
        run_query(3600.0)


def load() -> list[Any]:
    """Start the pools and their users."""
    orders = gcp.threading.ConnectionPool(
        Manager(),
        name='orders',
        max_size=4,
        total_max_size=12,
        acquire_timeout=5,
        leak_threshold=20,
        breaker_threshold=2,
    )
    sessions = gcp.threading.ConnectionPool(Manager(), name='sessions', max_size=8, total_max_size=40)
    start(export_everything, 1, 'export', orders, ('db-1.internal', 5432))
    time.sleep(0.5)
    start(serve_customers, 8, 'request', orders, ('db-1.internal', 5432), 0.5)
    start(serve_customers, 2, 'report', orders, ('db-2.internal', 5432), 0.3)
    start(serve_customers, 1, 'archive', orders, ('db-3.internal', 5432), 0.3)
    for number in range(3):
        start(serve_customers, 3, 'session', sessions, f'cache-{number}', 0.02)
    return [orders, sessions]


def start(target: Any, count: int, name: str, *arguments: Any) -> None:
    for number in range(1, count + 1):
        threading.Thread(target=target, args=arguments, name=f'{name}-{number}', daemon=True).start()


def take_picture(url: str, path: Path) -> None:
    """Have Chromium draw a page."""
    program = shutil.which('chromium') or shutil.which('google-chrome')
    if program is None:
        sys.exit('needs Chromium')
    with tempfile.TemporaryDirectory() as profile:
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', f'--user-data-dir={profile}']
        window = f'--window-size={SIZE[0]},{SIZE[1]}'
        subprocess.run([program, *flags, window, f'--screenshot={path}', url], check=True, capture_output=True)


def main() -> None:
    pools = load()
    app = gcp.debug.wsgi(allow_actions=True)
    with make_server('127.0.0.1', 0, app, Server, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/'
        for _ in range(3):  # the first looks make events of the following ones
            time.sleep(SECONDS / 3)
            take_picture(url, PICTURE)
    Image.open(PICTURE).convert('RGB').quantize(COLOURS).save(PICTURE, optimize=True)
    print(f'{PICTURE}: {PICTURE.stat().st_size:,} bytes, {len(pools)} pools')


if __name__ == '__main__':
    main()
