"""The threading pool in a process whose `threading` was patched by gevent or eventlet: a greenlet that waits stops no
other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from peers import Proxy

from gcp.demo.server import Server

Script = Callable[..., Any]

PATCHES = {
    'gevent': 'from gevent import monkey; monkey.patch_all()',
    'eventlet': 'import eventlet; eventlet.monkey_patch()',
    'gevent, late': """
import gcp.threading, gcp.contrib.socket, gcp.contrib._watchdog, gcp.contrib._libpq
from gevent import monkey; monkey.patch_all()
""",
}

HEAD = """
import socket, threading, time
from gcp.threading import BaseConnectionManager, ConnectionPool
from gcp.exceptions import AcquireTimeoutError

ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)

threading.Thread(target=tick, daemon=True).start()

def ticking(work, *args, **named):
    '''Do some work, which other greenlets must not be stopped by.'''
    before = ticks
    result = work(*args, **named)
    assert ticks - before >= 5, ticks - before
    return result

def later(work, *args):
    '''Do some work once other greenlets have run for a while.'''
    after = ticks + 20
    def run():
        while ticks < after:
            time.sleep(0.005)
        work(*args)
    thread = threading.Thread(target=run)
    thread.start()
    return thread

class Manager(BaseConnectionManager):
    '''Connections are numbers.'''
    slow = 0
    made = 0
    disposed = []

    def create(self, endpoint, timeout=None):
        self.made += 1
        return [self.made]

    def dispose(self, endpoint, conn, timeout=None):
        time.sleep(self.slow)
        self.disposed.append(conn)
"""


@pytest.fixture(params=PATCHES)
def greenlets(request: pytest.FixtureRequest, script: Script) -> Callable[[str], None]:
    """Run a source text with greenlets for threads."""
    name = request.param.partition(',')[0]
    if importlib.util.find_spec(name) is None:  # not imported here: eventlet has each later fork of the process warn
        pytest.skip(f'{name} is not installed')

    def run(source: str) -> None:
        ended = script(PATCHES[request.param] + HEAD + source, '-W', 'ignore', timeout=240)
        assert ended.status == 0, ended
        assert 'Traceback' not in ended.err, ended

    return run


def test_a_waiter_stops_no_other_greenlet(greenlets: Callable[[str], None]) -> None:
    greenlets("""
for timeout in (None, 30):
    pool = ConnectionPool(Manager(), max_size=1)
    conn = pool.acquire('a')
    thread = later(pool.release, conn, 'a')
    assert ticking(pool.acquire, 'a', timeout) is conn
    thread.join()
    try:
        ticking(pool.acquire, 'a', 1)
        raise AssertionError
    except AcquireTimeoutError:
        pass
    thread = later(pool.release, conn, 'a')
    with pool.connection('a'):
        pass
    thread.join()
    pool.close()
""")


def test_ten_greenlets_share_two_connections(greenlets: Callable[[str], None]) -> None:
    greenlets("""
pool = ConnectionPool(Manager(), max_size=1, total_max_size=2)
done = []

def use(number):
    for turn in range(20):
        with pool.connection('abc'[(number + turn) % 3], timeout=30):
            time.sleep(0.001)
    done.append(number)

threads = [threading.Thread(target=use, args=(number,)) for number in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(done) == 10
pool.close()
""")


def test_close_waits_for_its_users_without_stopping_them(greenlets: Callable[[str], None]) -> None:
    greenlets("""
for timeout in (None, 30):
    pool = ConnectionPool(Manager())
    thread = later(pool.release, pool.acquire('a'), 'a')
    ticking(pool.close, timeout)
    thread.join()
    assert pool.stats().size == 0
""")


def test_disposals_and_the_collector_stop_no_other_greenlet(greenlets: Callable[[str], None]) -> None:
    greenlets("""
Manager.slow = 0.5
pool = ConnectionPool(Manager(), max_size=1, total_max_size=1, dispose_timeout=5)
for endpoint in 'abc':
    with pool.connection(endpoint, timeout=10):  # evicts the one before
        pass
ticking(pool.close, 10)
assert len(Manager.disposed) == 3

pool = ConnectionPool(Manager(), min_idle=0, idle_timeout=0.02, background_collector=True)
with pool.connection('a'):
    pass
while len(Manager.disposed) < 4:
    time.sleep(0.005)
pool.close()
assert pool.stats().size == 0
""")


def test_a_disposal_past_its_time_is_given_up(greenlets: Callable[[str], None]) -> None:
    greenlets("""
Manager.slow = 30
pool = ConnectionPool(Manager(), max_size=1, dispose_timeout=1, idle_timeout=0, min_idle=0)
conn = pool.acquire('a')
ticking(pool.release, conn, 'a')
pool.close(1)
assert pool.stats().size == 0
""")


def test_a_watchdog_stops_no_other_greenlet(greenlets: Callable[[str], None]) -> None:
    greenlets("""
from gcp.contrib._watchdog import Watchdog
ours, theirs = socket.socketpair()
def wait():
    with Watchdog(ours.fileno(), 1, what='nap'):
        ours.recv(1)
try:
    ticking(wait)
    raise AssertionError
except TimeoutError:
    pass
except AssertionError:
    raise
""")


def test_tcp_and_http_stop_no_other_greenlet(greenlets: Callable[[str], None]) -> None:
    greenlets("""
from gcp.contrib.http import HttpConnectionManager
from gcp.contrib.socket import TcpSocketConnectionManager

def serve(conn):
    with conn:
        while data := conn.recv(1000):
            time.sleep(0.5)
            conn.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok' if b'HTTP' in data else data)

def accept():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

listener = socket.create_server(('127.0.0.1', 0))
port = listener.getsockname()[1]
threading.Thread(target=accept, daemon=True).start()

pool = ConnectionPool(TcpSocketConnectionManager(), max_size=2)
def talk():
    with pool.connection(('localhost', port), timeout=10) as conn:
        conn.sendall(b'ping')
        assert conn.recv(10) == b'ping'
started = time.monotonic()
threads = [threading.Thread(target=talk) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    ticking(thread.join) if thread is threads[0] else thread.join()
talk()
assert pool.stats().size == 2
pool.close()

pool = ConnectionPool(HttpConnectionManager(), max_size=1)
def ask():
    with pool.connection(f'http://localhost:{port}', timeout=10) as conn:
        conn.request('GET', '/')
        assert conn.getresponse().read() == b'ok'
for _ in range(2):
    ticking(ask)
assert pool.stats().size == 1
pool.close()
""")


POSTGRES = """
import psycopg2, select
from psycopg2 import extensions

def wait(conn):
    '''As psycogreen's.'''
    while (state := conn.poll()) != extensions.POLL_OK:
        if state == extensions.POLL_READ:
            select.select([conn.fileno()], [], [])
        else:
            select.select([], [conn.fileno()], [])

extensions.set_wait_callback(wait)
from gcp.contrib.psycopg2 import DbConnectionManager
"""


def test_psycopg2_stops_no_other_greenlet(greenlets: Callable[[str], None], postgres: Server, proxy: Proxy) -> None:
    pytest.importorskip('psycopg2')
    parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port}
    greenlets(f"""
{POSTGRES}
manager = DbConnectionManager({{'db': {parameters!r}}}, aliveness='query')
pool = ConnectionPool(manager, max_size=2, acquire_timeout=20)
answers = []
def ask():
    with pool.connection('db') as conn:
        with conn.cursor() as cursor:
            cursor.execute('SELECT pg_sleep(1), 7')
            answers.append(cursor.fetchone()[1])
threads = [threading.Thread(target=ask) for _ in range(6)]
for thread in threads:
    thread.start()
ticking(threads[0].join)
for thread in threads:
    thread.join()
assert answers == [7] * 6 and pool.stats().size == 2
pool.close()

# a server that does not answer
listener = socket.create_server(('127.0.0.1', 0))
silent = DbConnectionManager({{'db': {{'host': '127.0.0.1', 'port': listener.getsockname()[1], 'user': 'me'}}}})
try:
    ticking(silent.create, 'db', 1)
    raise AssertionError
except TimeoutError:
    pass
""")
