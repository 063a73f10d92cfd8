"""The recipes that serve requests, under load, while their PostgreSQL is restarted: no client gets more than one error,
that of the request which was in progress, and all are served afterwards."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import driver, missing
from servers import free_port

from gcp.demo.server import Server, ServerError, serve

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / 'examples' / 'recipes'
if not RECIPES.exists():
    pytest.skip('no examples beside the tests: this is not a checkout', allow_module_level=True)

pytestmark = pytest.mark.timeout(900)

PATIENCE = 120.0
CLIENTS = 12
#: requests of each client before the restart, and after it
SOME = 20


@pytest.fixture(scope='module')
def server() -> Iterator[Server]:
    for name in ('psycopg', 'asyncpg'):
        driver(name)
    try:
        with serve(max_connections=100) as server:
            yield server
    except ServerError as error:
        missing(str(error))


@contextlib.contextmanager
def running(server: Server, *command: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in the folder of the recipes, and end it with a signal."""
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    place = {'PGHOST': str(server.directory), 'PGUSER': 'postgres', 'PGDATABASE': 'postgres', 'PYTHONPATH': path}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=RECIPES,
        env={**os.environ, **place, 'PYTHONDONTWRITEBYTECODE': '1', **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout or []))
    reader.start()
    try:
        yield process
    except BaseException:
        print(*said, sep='')
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        reader.join(PATIENCE)
        if process.stdout is not None:
            process.stdout.close()


class Client(threading.Thread):
    """Asks one thing after the other until it is told to stop.

    :ivar failed: what failed
    :ivar served: how many were answered
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self.failed: list[str] = []
        self.served = 0
        self._ask = ask
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._ask()
            except Exception as error:
                self.failed.append(repr(error))
            else:
                self.served += 1

    def stop(self) -> None:
        self._stopped.set()

    def until_served(self, more: int) -> None:
        wanted, deadline = self.served + more, time.monotonic() + PATIENCE
        while self.served < wanted:
            assert time.monotonic() < deadline, self.failed
            time.sleep(0.01)


def restart_under_load(server: Server, make_ask: Callable[[], Callable[[], object]]) -> None:
    """Restart the server while clients ask, and look at what they got."""
    clients = [Client(make_ask()) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for client in clients:
            client.until_served(SOME)
        server.restart()
        for client in clients:
            client.until_served(SOME)
    finally:
        for client in clients:
            client.stop()
        for client in clients:
            client.join(PATIENCE)
    for client in clients:
        assert len(client.failed) <= 1, client.failed


def asking(port: int) -> Callable[[], Callable[[], object]]:
    """Return what makes a function that asks a web server."""

    def make() -> Callable[[], object]:
        def ask() -> None:
            conn = http.client.HTTPConnection('127.0.0.1', port, timeout=PATIENCE)
            try:
                conn.request('GET', '/orders/3')
                response = conn.getresponse()
                body = response.read()
            finally:
                conn.close()
            if response.status != 200 or body.replace(b' ', b'').strip() != b'[1,2,3]':
                raise RuntimeError(f'{response.status} {body[:200]!r}')

        return ask

    return make


def await_port(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1.0):
            return
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def needs(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name}')


@pytest.mark.parametrize('framework', ['fastapi', 'starlette', 'litestar'])
def test_an_asgi_application(framework: str, server: Server) -> None:
    needs(framework, 'uvicorn')
    port = free_port()
    command = ('-m', 'uvicorn', f'{framework}_app:app', '--port', port, '--log-level', 'warning', '--lifespan', 'on')
    with running(server, *command) as process:
        await_port(port, process)
        restart_under_load(server, asking(port))


def test_flask_with_two_workers_of_gunicorn(server: Server) -> None:
    needs('flask', 'gunicorn')
    port = free_port()
    command = (
        '-m',
        'gunicorn',
        '--bind',
        f'127.0.0.1:{port}',
        '--workers',
        2,
        '--threads',
        8,
        '--preload',
        'flask_app:app',
    )
    with running(server, *command) as process:
        await_port(port, process)
        restart_under_load(server, asking(port))


def test_celery_with_prefork_workers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    needs('celery', 'redis')
    program = shutil.which('redis-server')
    if program is None:
        missing('no redis-server')
        return
    port = free_port()
    broker = f'redis://127.0.0.1:{port}/0'
    monkeypatch.setenv('BROKER_URL', broker)
    redis = subprocess.Popen(
        [program, '--port', str(port), '--save', '', '--appendonly', 'no'], stdout=subprocess.DEVNULL, cwd='/tmp'
    )
    try:
        await_port(port, redis)  # type: ignore[arg-type]
        command = ('-m', 'celery', '--app', 'celery_app', 'worker', '--concurrency', 4, '--loglevel', 'WARNING')
        with running(server, *command, BROKER_URL=broker):
            restart_under_load(server, tasks(broker))
    finally:
        redis.terminate()
        redis.wait(PATIENCE)


def tasks(broker: str) -> Callable[[], Callable[[], object]]:
    """Return what makes a function that sends a task and waits for its result."""
    from celery import Celery

    app = Celery('clients', broker=broker, backend=broker)

    def make() -> Callable[[], object]:
        def ask() -> None:
            found: Any = app.send_task('orders.count', [3]).get(timeout=PATIENCE)
            assert found == 3

        return ask

    return make


@pytest.mark.parametrize('recipe', ['credentials', 'failover', 'tenants'])
def test_a_module(recipe: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / 'orders.json'
    secret.write_text('{"user": "postgres"}')
    place = str(server.directory)
    for name, value in {
        'PGHOST': place,
        'PGUSER': 'postgres',
        'PGDATABASE': 'postgres',
        'DB_SECRET': str(secret),
        'PRIMARY': place,
        'REPLICA_1': '/nowhere',
        'REPLICA_2': '/nowhere',
    }.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location(f'recipe_{recipe}', RECIPES / f'{recipe}.py')
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ask: dict[str, Callable[[], object]] = {
        'credentials': lambda: module.whoami(),
        'failover': lambda: module.write('SELECT 1'),
        'tenants': lambda: module.search_path('initech'),
    }
    with contextlib.ExitStack() as stack:
        for pool in {'failover': ('reads', 'writes')}.get(recipe, ('pool',)):
            stack.enter_context(getattr(module, pool))
        restart_under_load(server, lambda: ask[recipe])


def test_reads_go_to_another_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is stopped for good costs no read more than its own error: the next endpoint answers."""
    driver('psycopg')
    try:
        with serve() as one, serve() as other:
            for name, value in {'PRIMARY': other, 'REPLICA_1': one, 'REPLICA_2': other}.items():
                monkeypatch.setenv(name, str(value.directory))
            monkeypatch.setenv('PGUSER', 'postgres')
            monkeypatch.setenv('PGDATABASE', 'postgres')
            spec = importlib.util.spec_from_file_location('recipe_reads', RECIPES / 'failover.py')
            assert spec and spec.loader
            module: Any = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            with module.reads, module.writes:
                clients = [Client(lambda: module.read('SELECT 6 * 7')) for _ in range(4)]
                for client in clients:
                    client.start()
                for client in clients:
                    client.until_served(SOME)
                one.stop()
                for client in clients:
                    client.until_served(SOME)
                for client in clients:
                    client.stop()
                for client in clients:
                    client.join(PATIENCE)
                assert [client.failed for client in clients] == [[]] * len(clients)
    except ServerError as error:
        missing(str(error))
