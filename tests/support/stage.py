"""A real Prometheus that watches real pools on a real PostgreSQL, first in peace, then in trouble, then in peace again.

Each pool has trouble of one kind; one has none. Minutes are seconds here: ranges and waits of the rules are shortened
alike. Used by the tests, and by tools/pictures/dashboard.py."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boards
from prometheus_client import CollectorRegistry, start_http_server

from gcp.demo.server import Server
from gcp.exceptions import EndpointUnavailableError
from gcp.limits import Retry
from gcp.observe import grafana
from gcp.threading import ConnectionPool

SCRAPE = 0.5
WINDOW = '5s'

#: endpoints that are used so seldom that each use needs a new connection
SHARDS = ('shard1', 'shard2', 'shard3', 'shard4')

#: pools whose server is away in their trouble
UNSTEADY = ('payments', 'carts', 'catalog')

#: which alerts the trouble of each pool is to raise
EXPECTED: dict[str, set[str]] = {
    'orders': set(),
    'reports': {'GcpoolSaturated', 'GcpoolSlowAcquire'},
    'search': {'GcpoolAcquireTimeouts'},
    'mail': {'GcpoolConnectionLeakSuspected'},
    'sessions': {'GcpoolChurn'},
    'billing': {'GcpoolCreateErrors'},
    'stock': {'GcpoolDeadConnections'},
    'payments': {'GcpoolBreakerOpen', 'GcpoolCreateErrors'},
    'catalog': {'GcpoolBelowMinIdle', 'GcpoolCreateErrors'},
    'carts': {'GcpoolSaturated', 'GcpoolSlowAcquire', 'GcpoolAcquireTimeouts', 'GcpoolCreateErrors'},
}

CONFIGURATION = """
global:
  scrape_interval: {interval}ms
  scrape_timeout: {interval}ms
  evaluation_interval: {interval}ms
rule_files: [rules.yml]
scrape_configs:
  - job_name: shop
    static_configs:
      - targets: ['127.0.0.1:{port}']
        labels: {{ {target} }}
"""

#: labels that service discovery gives to the target, as in Kubernetes with the Prometheus operator
TARGET = {
    'cluster': 'test',
    'container': 'app',
    'endpoint': 'web',
    'namespace': 'shop',
    'pod': 'shop-0',
    'service': 'shop',
}

#: what was seen, for the end of the test run
TABLE: list[str] = []


# --- Prometheus ---


def shorten(rules: str) -> str:
    """Make minutes seconds."""
    return re.sub(r"(\[|for: ')(\d+)m(?=[\]'])", r'\1\2s', rules)


@dataclasses.dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, as its interface knows it."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """Ask its interface; return what it says."""
        with urllib.request.urlopen(f'{self.url}{path}?{urllib.parse.urlencode(parameters)}', timeout=10) as answer:
            said = json.load(answer)
        assert said['status'] == 'success', said
        return said['data']

    def series(self, query: str, start: float, end: float, step: float = SCRAPE) -> list[Series]:
        """Ask for a query's values over a time."""
        said = self.ask('/api/v1/query_range', query=query, start=start, end=end, step=step)
        return [
            Series(each['metric'], [(float(at), float(value)) for at, value in each['values']])
            for each in said['result']
        ]


@dataclasses.dataclass(frozen=True)
class Series:
    """A series' labels, and its samples with their times."""

    labels: dict[str, str]
    samples: list[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        return [(at, value) for at, value in self.samples if math.isfinite(value)]


@contextlib.contextmanager
def prometheus(directory: Path, scraped: int) -> Iterator[Prometheus]:
    """Run Prometheus with the shortened rules.

    :param directory: for its files
    :param scraped: the port to scrape
    """
    with socket.create_server(('127.0.0.1', 0)) as found:
        port = found.getsockname()[1]
    (directory / 'rules.yml').write_text(shorten(grafana.read(grafana.RULES)))
    (directory / 'prometheus.yml').write_text(
        CONFIGURATION.format(
            interval=int(SCRAPE * 1000), port=scraped, target=', '.join(f'{name}: {TARGET[name]}' for name in TARGET)
        )
    )
    with (directory / 'log').open('wb') as log:
        process = subprocess.Popen(
            [
                boards.program('prometheus'),
                f'--config.file={directory}/prometheus.yml',
                f'--storage.tsdb.path={directory}/data',
                f'--web.listen-address=127.0.0.1:{port}',
                '--enable-feature=exemplar-storage',
            ],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(f'http://127.0.0.1:{port}')
        wait_until(lambda: is_ready(running.url) or process.poll() is not None)
        assert process.poll() is None, (directory / 'log').read_text()
        yield running
    finally:
        process.terminate()
        process.wait(20)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f'{url}/-/ready', timeout=5):
            return True
    except OSError:
        return False


def wait_until(happened: Callable[[], object], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.05)


# --- pools and their users ---


class Users:
    """Threads that take connections, again and again, until they are told to stop."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(
        self,
        pool: ConnectionPool[str, Any],
        endpoint: str = 'db',
        *,
        hold: float,
        pause: float,
        timeout: float = 30.0,
        number: int = 1,
    ) -> None:
        """Let some take a connection for a while, and pause for a while."""
        self._begin(lambda: use(pool, endpoint, hold, timeout), pause, number)

    def repeat(self, what: Callable[[], object], pause: float) -> None:
        """Let one do something else."""
        self._begin(what, pause, 1)

    def stop(self) -> None:
        """Tell them to stop, and wait until they have."""
        self._stop.set()
        while self._threads:
            thread = self._threads.pop()
            thread.join(60)
            assert not thread.is_alive()

    def _begin(self, what: Callable[[], object], pause: float, number: int) -> None:
        for _ in range(number):
            thread = threading.Thread(target=self._run, args=(what, pause), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, what: Callable[[], object], pause: float) -> None:
        while not self._stop.is_set():
            what()
            self._stop.wait(pause)


def use(pool: ConnectionPool[str, Any], endpoint: str, hold: float, timeout: float) -> None:
    """Take a connection, ask it something, keep it for a while. What goes wrong is the pool's to count."""
    import psycopg2

    try:
        with pool.connection(endpoint, timeout=timeout) as conn, conn.cursor() as cursor:
            cursor.execute('SELECT 1')
            time.sleep(hold)
    except (TimeoutError, EndpointUnavailableError, psycopg2.Error):
        pass


def unsteady(manager: type[Any]) -> type[Any]:
    """Derive a manager that can be told that the server is away: it connects no more, and keeps what it has."""
    import psycopg2

    class Unsteady(manager):  # type: ignore[misc]
        is_away = False

        def create(self, endpoint: str, timeout: float | None = None) -> Any:
            if self.is_away:
                raise psycopg2.OperationalError('the server is away')
            return super().create(endpoint, timeout)

    return Unsteady


class Cast:
    """The pools, and what their users do.

    :param server: a PostgreSQL server
    :param options: of all pools: where they are seen
    """

    def __init__(self, server: Server, **options: Any) -> None:
        from gcp.contrib.psycopg2 import DbConnectionManager

        self._parameters = server.parameters
        self._pools: dict[str, ConnectionPool[str, Any]] = {}
        self._managers: dict[str, Any] = {}
        retry = Retry(initial=0.2, maximum=1.0)  # some connect fails within each range of the rules
        limits: dict[str, dict[str, Any]] = {
            'orders': {'max_size': 6, 'total_max_size': 10},
            'reports': {'max_size': 2, 'total_max_size': 2, 'reclaim_abandoned': True},
            'search': {'max_size': 1, 'total_max_size': 1},
            'mail': {'max_size': 4, 'total_max_size': 4, 'leak_threshold': 1.0},
            'sessions': {'max_size': 2, 'total_max_size': 8, 'min_idle': 0, 'idle_timeout': 0.1},
            'billing': {'max_size': 2, 'total_max_size': 4},
            'stock': {'max_size': 4, 'total_max_size': 4},
            'payments': {'max_size': 2, 'total_max_size': 4, 'breaker_threshold': 3, 'connect_retry': retry},
            'catalog': {'max_size': 4, 'total_max_size': 4, 'min_idle': 3, 'refill': True, 'connect_retry': retry},
            'carts': {
                'max_size': 4,
                'total_max_size': 8,
                'max_connecting': 1,
                'connect_retry': retry,
            },
        }
        for name, own in limits.items():
            parameters = {**self._parameters, 'application_name': name}
            manager = self._managers[name] = unsteady(DbConnectionManager)(
                {**dict.fromkeys(('db', 'replica', *SHARDS), parameters), 'gone': {**parameters, 'host': '/nowhere'}}
            )
            self._pools[name] = ConnectionPool(manager, name=name, background_collector=True, **own, **options)
        self._lost: list[Any] = []
        self._operated = contextlib.ExitStack()

    def live(self) -> Users:
        """What goes on all the time."""
        users = Users()
        users.add(self._pools['orders'], hold=0.01, pause=0.02, number=4)
        users.add(self._pools['orders'], 'replica', hold=0.01, pause=0.05)
        users.add(self._pools['reports'], hold=0.02, pause=0.05)
        users.add(self._pools['search'], hold=0.005, pause=0.1, timeout=0.01)
        users.add(self._pools['mail'], hold=0.01, pause=0.05)
        users.add(self._pools['sessions'], hold=0.005, pause=0.05)
        users.add(self._pools['billing'], hold=0.01, pause=0.05)
        users.add(self._pools['stock'], hold=0.005, pause=0.02, number=2)
        users.add(self._pools['payments'], hold=0.01, pause=0.05)
        users.add(self._pools['payments'], 'replica', hold=0.005, pause=0.1)
        users.add(self._pools['carts'], hold=0.01, pause=0.1)
        self._pools['catalog'].warm_up('db', timeout=10)
        users.add(self._pools['catalog'], hold=0.005, pause=0.1)
        return users

    def suffer(self) -> Users:
        """Trouble, of one kind each. The pool that is called orders has none."""
        users = Users()
        self._abandon('reports', 'db')
        users.add(self._pools['reports'], hold=0.3, pause=0, number=6)
        users.add(self._pools['search'], hold=0.4, pause=0.02)
        self._lost.append(self._pools['mail'].acquire('db'))
        self._operate('orders', users)
        for shard in SHARDS:
            users.add(self._pools['sessions'], shard, hold=0.005, pause=0.2)
        users.add(self._pools['billing'], 'gone', hold=0, pause=0.1)
        users.repeat(self._kill, 0.25)
        for name in UNSTEADY:
            self._managers[name].is_away = True
        self._discard('payments', 'replica')
        for _ in range(2):
            self._discard('catalog', 'db')
        users.add(self._pools['carts'], 'replica', hold=0, pause=0.02, timeout=1, number=3)
        return users

    def recover(self) -> None:
        """Give back what was kept, and what was away."""
        for name in UNSTEADY:
            self._managers[name].is_away = False
        while self._lost:
            self._pools['mail'].release(self._lost.pop(), 'db')
        self._operated.close()

    def close(self) -> None:
        self.recover()
        for pool in self._pools.values():
            pool.close(5)

    def _discard(self, name: str, endpoint: str) -> None:
        """Close a connection of an endpoint."""
        self._pools[name].discard(self._pools[name].acquire(endpoint, timeout=5), endpoint)

    def _abandon(self, name: str, endpoint: str) -> None:
        """Lose a lease in a thread that ends, where only the garbage collector finds it."""

        def lose() -> None:
            lease = self._pools[name].connection(endpoint, timeout=5)
            lease.__enter__()
            cycle: list[Any] = [lease]
            cycle.append(cycle)
            gc.collect()  # of the oldest generation now: it is not found by chance

        thread = threading.Thread(target=lose)
        thread.start()
        thread.join()

    def _operate(self, name: str, users: Users) -> None:
        """What is done to a pool without trouble: more endpoints are used than fit beside each other, one is suspended,
        and the connections of another one are replaced while they are in use."""
        pool = self._pools[name]
        for shard in SHARDS:
            with pool.connection(shard, timeout=5), pool.connection(shard, timeout=5):
                pass
        pool.suspend(SHARDS[0])
        self._operated.callback(pool.resume, SHARDS[0])
        users.add(pool, SHARDS[1], hold=2, pause=0.1)
        users.repeat(lambda: pool.expire(SHARDS[1]), 1)

    def _kill(self) -> None:
        """End one session that is idle."""
        import psycopg2

        conn = psycopg2.connect(**self._parameters)
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(
                'SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
                "WHERE application_name = 'stock' AND state = 'idle' LIMIT 1"
            )
        conn.close()


# --- the play ---


@dataclasses.dataclass(frozen=True)
class Play:
    """What was played, while Prometheus still runs.

    :ivar began: when each act began, and when the last one ended
    :ivar alerts: what was firing at the end of the trouble, as Prometheus tells it
    """

    prometheus: Prometheus
    began: tuple[float, float, float, float]
    alerts: list[dict[str, Any]]

    def series(self, query: str, act: int | None = None, step: float = SCRAPE) -> list[Series]:
        """Ask for a query's values during an act: 0: peace, 1: trouble, 2: peace again; or during all of them."""
        start, end = (self.began[0], self.began[-1]) if act is None else self.began[act : act + 2]
        return self.prometheus.series(query, start, end, step)

    def firing(self, act: int) -> dict[str, set[str]]:
        """Tell which alerts fired during an act, by pool."""
        found: dict[str, set[str]] = {name: set() for name in EXPECTED}
        for each in self.series('ALERTS{alertstate="firing"}', act):
            found[each.labels['pool']].add(each.labels['alertname'])
        return found


def all_fired(running: Prometheus, since: float) -> bool:
    """Whether each expected alert has fired. A busy machine takes longer than the ranges of the rules say."""
    found = running.series('ALERTS{alertstate="firing"}', since, time.time())
    fired = {(each.labels['pool'], each.labels['alertname']) for each in found}
    return all((pool, alert) in fired for pool, alerts in EXPECTED.items() for alert in alerts)


@contextlib.contextmanager
def play(server: Server, directory: Path, acts: tuple[float, float, float], **options: Any) -> Iterator[Play]:
    """Play it, and let Prometheus run on for questions.

    :param acts: how long peace, trouble and peace last at least, seconds; trouble until each of its alerts has fired,
                 the last one until none does
    :param options: of all pools
    """
    registry = CollectorRegistry()
    page, thread = start_http_server(0, '127.0.0.1', registry)
    cast = Cast(server, registry=registry, **options)
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join, 10)
        stack.callback(page.server_close)
        stack.callback(page.shutdown)
        stack.callback(cast.close)
        running = stack.enter_context(prometheus(directory, page.server_port))
        users = cast.live()
        stack.callback(users.stop)
        began = [time.time()]
        time.sleep(acts[0])
        began.append(time.time())
        trouble = cast.suffer()
        stack.callback(trouble.stop)
        time.sleep(acts[1])
        wait_until(lambda: all_fired(running, began[1]), 60)
        alerts = running.ask('/api/v1/alerts')['alerts']
        began.append(time.time())
        trouble.stop()
        cast.recover()
        time.sleep(acts[2])
        wait_until(lambda: not running.ask('/api/v1/query', query='ALERTS{alertstate="firing"}')['result'])
        began.append(time.time())
        users.stop()
        yield Play(running, (began[0], began[1], began[2], began[3]), alerts)
