"""Guarantee 25 (docs/guarantees.md): the debug page: what it shows, to whom, and what it may change."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode
from wsgiref.validate import validator

import pytest
from steered import Steered

import gcp.asyncio
import gcp.debug
import gcp.threading
from gcp import Retry
from gcp.debug import application
from gcp.debug.events import Events
from gcp.debug.facts import shares
from gcp.observe import telemetry
from gcp.testing import AsyncFakeManager, FakeManager, ok
from gcp.testing import error as raises

HOSTILE = '<script>alert("x")</script>\'"&\u2028\u202e</style>'
SECRET = 'sesame'
PATIENCE = 30.0


class Answer:
    """What the page has answered."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks the page: what both entry points have in common."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def ask(self, method: str, query: str, headers: Mapping[str, str], client: str | None, body: bytes) -> Answer:
        raise NotImplementedError

    def __call__(
        self,
        query: str = '',
        method: str = 'GET',
        *,
        client: str | None = '127.0.0.1',
        body: bytes = b'',
        **headers: str | None,
    ) -> Answer:
        named = {name.replace('_', '-'): value for name, value in {'host': 'localhost:8000', **headers}.items()}
        return self.ask(
            method, query, {name: value for name, value in named.items() if value is not None}, client, body
        )

    def post(self, fields: Mapping[str, str], query: str = 'format=json', **options: Any) -> Answer:
        kind = {'content_type': 'application/x-www-form-urlencoded'}
        return self(query, 'POST', body=urlencode(fields).encode(), **{**kind, **options})

    def token(self) -> str:
        return str(self('format=json').json['actions']['token'])

    def pool(self, name: str, query: str = '') -> Any:
        """Return the facts of a pool."""
        [found] = [pool for pool in self(f'format=json{query}').json['pools'] if pool['name'] == name]
        return found


class WsgiClient(Client):
    """Asks by WSGI, through the validator of the standard library."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.app = validator(gcp.debug.wsgi(**arguments))

    def ask(self, method: str, query: str, headers: Mapping[str, str], client: str | None, body: bytes) -> Answer:
        environ: dict[str, Any] = {
            'REQUEST_METHOD': method,
            'SCRIPT_NAME': '/debug/pools',
            'PATH_INFO': '',
            'QUERY_STRING': query,
            'SERVER_NAME': 'localhost',
            'SERVER_PORT': '8000',
            'SERVER_PROTOCOL': 'HTTP/1.1',
            'wsgi.version': (1, 0),
            'wsgi.url_scheme': 'http',
            'wsgi.input': io.BytesIO(body),
            'wsgi.errors': io.StringIO(),
            'wsgi.multithread': True,
            'wsgi.multiprocess': False,
            'wsgi.run_once': False,
        }
        if client is not None:
            environ['REMOTE_ADDR'] = client
        if body:
            environ['CONTENT_LENGTH'] = str(len(body))
        for name, value in headers.items():
            key = name.upper().replace('-', '_')
            environ[key if key == 'CONTENT_TYPE' else f'HTTP_{key}'] = value
        told: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> Callable[[bytes], object]:
            told.extend([int(status.split(maxsplit=1)[0]), dict(headers)])
            return lambda data: None

        result = self.app(environ, start_response)
        try:
            data = b''.join(result)
        finally:
            result.close()  # type: ignore[attr-defined]
        return Answer(told[0], told[1], data)


class AsgiClient(Client):
    """Asks by ASGI, in an event loop of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.app = gcp.debug.asgi(**arguments)

    def ask(self, method: str, query: str, headers: Mapping[str, str], client: str | None, body: bytes) -> Answer:
        return asyncio.run(self.ask_in_loop(method, query, headers, client, body))

    async def ask_in_loop(
        self, method: str, query: str, headers: Mapping[str, str], client: str | None, body: bytes
    ) -> Answer:
        parts = [body[i : i + 1000] for i in range(0, len(body), 1000)] or [b'']
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {'type': 'http.request', 'body': parts.pop(0), 'more_body': bool(parts)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            'type': 'http',
            'method': method,
            'scheme': 'http',
            'path': '/debug/pools',
            'query_string': query.encode(),
            'headers': [(name.lower().encode(), value.encode('latin-1')) for name, value in headers.items()],
            'client': None if client is None else (client, 12345),
        }
        await self.app(scope, receive, send)
        start, end = sent
        found = {name.decode().title(): value.decode() for name, value in start['headers']}
        return Answer(start['status'], found, end['body'])


@pytest.fixture(params=[WsgiClient, AsgiClient], ids=['wsgi', 'asgi'])
def client(request: pytest.FixtureRequest) -> type[Client]:
    """The class of a client."""
    made: type[Client] = request.param
    return made


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    made = FakeManager()
    yield made
    made.unblock()


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Hide the pools of tests before: some are kept by what pytest remembers of them."""
    gc.collect()
    others = dict(telemetry.pools)
    telemetry.pools.clear()
    yield
    telemetry.pools.update(others)


@pytest.fixture
def pool(manager: FakeManager) -> Iterator[gcp.threading.ConnectionPool[Any, Any]]:
    made = gcp.threading.ConnectionPool(manager, name='orders', max_size=2, total_max_size=5, acquire_timeout=300)
    yield made
    made.close(timeout=0)


def until(predicate: Callable[[], object]) -> None:
    """Wait until something is so."""
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if predicate():
            return
        done.wait(0.005)
    raise AssertionError('in vain')


class Waiting:
    """Threads that wait for a connection, until its holder releases it."""

    def __init__(self, pool: gcp.threading.ConnectionPool[Any, Any], endpoint: Any, count: int) -> None:
        self.pool, self.endpoint = pool, endpoint
        before = pool.stats().waiting
        self.threads = []
        for i in range(count):
            self.threads.append(threading.Thread(target=self.use, name=f'waiter {i}', daemon=True))
            self.threads[-1].start()
            until(lambda i=i: pool.stats().waiting == before + i + 1)  # type: ignore[misc]

    def use(self) -> None:
        with self.pool.connection(self.endpoint):
            pass

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *error: object) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


# --- what is shown ---


def test_pools_endpoints_and_limits(client: type[Client], pool: gcp.threading.ConnectionPool[Any, Any]) -> None:
    held = pool.acquire(('db.internal', 5432))
    with pool.connection('other'):
        pass
    shown = client().pool('orders')
    assert (shown['frontend'], shown['idle'], shown['used'], shown['waiting']) == ('threading', 1, 1, 0)
    assert (shown['limits']['max_size'], shown['limits']['total_max_size']) == (2, 5)
    one, other = sorted(shown['endpoints'], key=lambda one: -one['used'])
    assert (one['endpoint'], one['used'], one['limits']['max_size']) == ("('db.internal', 5432)", 1, 2)
    assert (other['endpoint'], other['idle'], other['blocked_by']) == ("'other'", 1, None)
    assert shown['times']['wait']['count'] == 2

    page = client()()
    assert (page.status, page.headers['Content-Type']) == (200, 'text/html; charset=utf-8')
    text = text_of(page.body)
    for word in ('orders', "('db.internal', 5432)", "'other'", '1 used, 1 idle of 5', 'Nothing: no acquire waits'):
        assert word in text, word
    pool.release(held, ('db.internal', 5432))


def test_the_queue_and_what_blocks(client: type[Client], pool: gcp.threading.ConnectionPool[Any, Any]) -> None:
    held = [pool.acquire('db'), pool.acquire('db')]
    with Waiting(pool, 'db', 3):
        shown = client().pool('orders')
        assert [(one['position'], one['cap'], one['blocked_by']) for one in shown['queue']] == [
            (1, 'max_size=2', 'endpoint cap'),
            (2, 'max_size=2', 'endpoint cap'),
            (3, 'max_size=2', 'endpoint cap'),
        ]
        assert shown['queue'][0]['age'] >= shown['queue'][2]['age'] > 0
        assert 0 < shown['queue'][0]['remaining'] <= 300
        until(lambda: client()('format=json').json['problems'])
        [problem] = client()('format=json').json['problems']
        assert problem['text'].startswith('3 acquires wait, the oldest for ') and 'max_size=2' in problem['text']
        assert '3 acquires wait, the oldest for' in text_of(client()().body)
        for conn in held:
            pool.release(conn, 'db')


def test_breakers_and_last_errors(client: type[Client], manager: FakeManager) -> None:
    gc.collect()
    retry = Retry(60, 60)
    with gcp.threading.ConnectionPool(manager, name='failing', breaker_threshold=1, connect_retry=retry) as pool:
        manager.create.does(raises(OSError(HOSTILE)))
        with pytest.raises(OSError):
            pool.acquire('db', timeout=0)
        [one] = client().pool('failing')['endpoints']
        assert (one['breaker'], one['failures']) == ('open', 1)
        assert one['last_error'].startswith('OSError: <script>')
        assert 0 < one['retry_delay'] <= 60
        page = client()().body
        assert 'unavailable: breaker open' in text_of(page)
        assert '<script>alert' not in page


def test_events_tell_what_has_happened_between_looks(
    client: type[Client], pool: gcp.threading.ConnectionPool[Any, Any]
) -> None:
    ask = client()
    ask.pool('orders')
    held = [pool.acquire('db'), pool.acquire('db')]
    for _ in range(2):
        with pytest.raises(gcp.AcquireTimeoutError):
            pool.acquire('db', timeout=0)
    events = ask('format=json').json['events']
    assert {'2 acquires timed out', 'connections opened: 2'} <= {e['what'] for e in events if e['pool'] == 'orders'}
    assert '2 acquires timed out' in text_of(ask().body)
    for conn in held:
        pool.release(conn, 'db')


def told_of(ask: Client, name: str) -> list[dict[str, Any]]:
    """Return the events of a pool, the oldest first."""
    return [event for event in ask('format=json').json['events'][::-1] if event['pool'] == name]


def heard(name: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many events of a pool are known, without a look at it. Return them, the oldest first."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [event for event in application.EVENTS.latest(1000)[::-1] if event['pool'] == name]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.005)


@pytest.mark.parametrize('mounted', ['before', 'after'])
def test_events_are_heard_of_as_they_happen(client: type[Client], manager: FakeManager, mounted: str) -> None:
    ask = client() if mounted == 'before' else None
    pool = gcp.threading.ConnectionPool(manager, max_size=1, name=f'{client.__name__}, mounted {mounted}')
    try:
        ask = ask or client()
        pool.acquire('db')
        with pytest.raises(gcp.AcquireTimeoutError):
            pool.acquire('db', timeout=0)
        [event] = heard(pool.name, 1)
        assert (event['what'], event['endpoint'], event['level']) == ('1 acquire timed out', "'db'", 'bad')
        told_of(ask, pool.name)
        with pytest.raises(gcp.AcquireTimeoutError):
            pool.acquire('db', timeout=0)
        for _ in range(2):
            told = [event['what'] for event in told_of(ask, pool.name) if 'timed out' in event['what']]
            assert sum(int(what.split()[0]) for what in told) == 2  # each once, whoever tells of it first
    finally:
        pool.close(0)


def test_what_a_look_has_counted_first_is_told_of_once() -> None:
    events = Events()
    assert events.begin(1) and not events.begin(1)
    counts = {
        'acquires': dict.fromkeys(('timeout', 'rejected', 'error', 'cancelled'), 0),
        'connect_failures': {'transient': 0, 'permanent': 0},
        'closed': {},
        'leaks': 0,
        'created': 0,
    }
    events.compare(1, 'p', counts)
    events.compare(1, 'p', counts | {'leaks': 2})
    events.heard(1, 'p', 'leaks', 'a')
    events.heard(1, 'p', 'leaks', 'a')
    assert [event['what'] for event in events.latest(9)] == ['2 connections are held for longer than leak_threshold']
    events.heard(1, 'p', 'leaks', 'b', 'acquired at x.py:1')
    events.compare(1, 'p', counts | {'leaks': 3})
    assert [event['what'][:2] for event in events.latest(9)] == ['3 ']
    events.breaker(1, 'p', 'ab', 'b', 'open', 'OSError')
    events.breaker(1, 'p', 'ab', 'b', 'open', None)
    events.breaker(1, 'p', 'ab', 'b', 'closed', None)
    assert [event['level'] for event in events.latest(9)] == ['info', 'bad', 'bad']
    events.forget(1)
    events.compare(1, 'p', counts)
    assert len(events.latest(9)) == 3


def test_a_breaker_that_closes_between_two_looks_is_heard_of(client: type[Client], manager: FakeManager) -> None:
    ask = client()
    manager.create.does(raises(OSError('refused')), ok())
    with gcp.threading.ConnectionPool(
        manager, breaker_threshold=1, connect_retry=Retry(0.001, 0.001), name=f'flaps, {client.__name__}'
    ) as pool:
        told_of(ask, pool.name)
        with pytest.raises(gcp.EndpointUnavailableError):
            pool.acquire('db', timeout=5)
        deadline = time.monotonic() + PATIENCE
        while pool.stats().endpoints and time.monotonic() < deadline:
            try:
                pool.release(pool.acquire('db', timeout=5), 'db')
                break
            except gcp.EndpointUnavailableError:
                time.sleep(0.005)
        found = heard(pool.name, 2)
        assert [event['what'] for event in found if 'breaker' in event['what']] == [
            'unavailable: its breaker is open (OSError: refused)',
            'available again: its breaker is closed',
        ]
        assert sum('breaker' in event['what'] for event in told_of(ask, pool.name)) == 2


def test_what_was_seen_of_a_pool_that_is_gone_is_forgotten() -> None:
    """Another one may get its number."""
    events = Events()
    for _ in range(2):
        assert events.begin(7)
        events.breaker(7, 'orders', 'ab12', "'db'", 'open', None)
        events.forget(7)
    assert [event['what'] for event in events.latest(9)] == ['unavailable: its breaker is open'] * 2


def test_without_a_page_no_pool_has_a_listener() -> None:
    code = """
import gcp.threading, gcp.testing
make = lambda: gcp.threading.ConnectionPool(gcp.testing.FakeManager())
first = make()
assert first._core.listener_thread is None
import gcp.debug
assert first._core.listener_thread is None
gcp.debug.wsgi(); gcp.debug.asgi()
assert first._core.listener_thread is not None and len(first._core.listener_thread._listeners) == 1
second = make()
assert second._core.listener_thread is not None and len(second._core.listener_thread._listeners) == 1
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=PATIENCE * 4)


def test_a_pool_that_is_gone_is_not_shown(client: type[Client], manager: FakeManager) -> None:
    pool = gcp.threading.ConnectionPool(manager, name='short-lived')
    assert 'short-lived' in [one['name'] for one in client()('format=json').json['pools']]
    pool.close()
    del pool
    gc.collect()
    assert 'short-lived' not in [one['name'] for one in client()('format=json').json['pools']]


def test_pools_without_any_telemetry_are_shown_and_asyncio_pools_too(client: type[Client]) -> None:
    kept = gcp.threading.ConnectionPool(FakeManager(), name='quiet', registry=None, meter_provider=None)
    other = gcp.asyncio.ConnectionPool(AsyncFakeManager(), name='tasks')
    shown = {one['name']: one['frontend'] for one in client()('format=json').json['pools']}
    assert shown['quiet'] == 'threading' and shown['tasks'] == 'asyncio'
    kept.close()
    asyncio.run(other.close())


def test_one_pool_is_shown_by_its_name(client: type[Client], pool: gcp.threading.ConnectionPool[Any, Any]) -> None:
    other = gcp.threading.ConnectionPool(FakeManager(), name='other & more')
    found = client()('format=json&pool=other+%26+more').json
    assert [one['name'] for one in found['pools']] == ['other & more']
    assert 'other &amp; more' in client()('pool=other+%26+more').body
    assert client()('format=json&pool=none').json['pools'] == []
    other.close()


class Holder:
    """Stands for what a pool says of a holder."""

    endpoint, age, thread_name, thread_ident, task_name = 'db', 12.5, HOSTILE, 77, None
    file, line, function, trace_id, tag, alive = '/srv/app/views.py', 12, HOSTILE, 'f' * 32, HOSTILE, False

    def stack(self) -> str:
        return f'  File "/srv/app/views.py", line 40, in {HOSTILE}\n    time.sleep(1)'


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each pool say that its connections are held by a `Holder`."""
    monkeypatch.setattr('gcp.debug.facts.find_holders', lambda pool, endpoint, most: [Holder()])


def test_holders_with_their_stacks(client: type[Client], manager: FakeManager, holding: None) -> None:
    gc.collect()
    with gcp.threading.ConnectionPool(manager, name='held') as pool, pool.connection('db'):
        [one] = client().pool('held')['holders']
        assert (one['file'], one['line'], one['age'], one['alive']) == ('/srv/app/views.py', 12, 12.5, False)
        assert 'time.sleep(1)' in one['stack']
        page = client()().body
        assert 'held by a thread or task that has ended; acquired at app/views.py:12' in text_of(page)
        assert 'time.sleep(1)' in page


def test_the_line_that_acquired_and_where_it_is_now(client: type[Client], manager: FakeManager) -> None:
    gc.collect()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.connection('db', tag='report'):
            entered.set()
            leave.wait(PATIENCE)

    with gcp.threading.ConnectionPool(manager, name='held') as pool:
        thread = threading.Thread(target=hold, name='exporter')
        thread.start()
        assert entered.wait(PATIENCE)
        [one] = client().pool('held')['holders']
        assert (one['thread_name'], one['function'].rpartition('.')[2], one['tag']) == ('exporter', 'hold', 'report')
        assert one['file'] == __file__ and 'leave.wait(PATIENCE)' in one['stack']
        assert 'thread exporter' in text_of(client()().body)
        leave.set()
        thread.join()


# --- hostile values ---


class Tags(HTMLParser):
    """Collects the tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def text_of(page: str) -> str:
    return ' '.join(''.join(parsed(page.partition('<body>')[2].partition('<script>')[0]).text).split())


class Liar(str):
    """An endpoint that shows what it likes."""

    def __repr__(self) -> str:
        return HOSTILE


class Broken:
    """An endpoint that cannot be shown, and has no equal."""

    def __repr__(self) -> str:
        raise RuntimeError('no')

    __str__ = __repr__


ENDPOINTS = [HOSTILE, Liar('liar'), Broken(), ('<img src=x onerror=alert(1)>', 1), '\x00\x1b[31m', '\ud800', 'x' * 5000]


def test_hostile_values_are_text(client: type[Client], manager: FakeManager, holding: None) -> None:
    gc.collect()
    with gcp.threading.ConnectionPool(manager, name=HOSTILE, max_size=1, total_max_size=100, endpoint_labels=0) as pool:
        held = [(pool.acquire(endpoint), endpoint) for endpoint in ENDPOINTS]
        for allowed in (False, True):
            ask = client(allow_actions=allowed)
            page = ask().body
            tags = parsed(page).tags
            assert [tag for tag, _ in tags if tag in ('script', 'style', 'img', 'iframe', 'b "')] == ['style', 'script']
            assert not [name for _, found in tags for name in found if name.startswith('on') or name == 'style']
            assert '<script>alert' not in page and '<img' not in page
            assert '\u202e' not in page and '\x1b' not in page and '\x00' not in page
            answer = ask('format=json')
            assert '<' not in answer.body and '\u2028' not in answer.body and '&' not in answer.body
            assert [one['name'] for one in answer.json['pools'] if one['name'].startswith('<script>alert')]
        for conn, endpoint in held:
            pool.release(conn, endpoint)


def test_credentials_are_not_shown(client: type[Client], pool: gcp.threading.ConnectionPool[Any, Any]) -> None:
    secrets = [f'redis://user:{SECRET}@one', f'redis://user:{SECRET}@two', ('host', f'password={SECRET}')]
    held = [(pool.acquire(endpoint), endpoint) for endpoint in secrets]
    assert SECRET not in client()().body + client()('format=json').body
    shown = [one['endpoint'] for one in client().pool('orders')['endpoints']]
    assert len(set(shown)) == 3, 'what looks alike is told apart'
    assert all(re.fullmatch(r'(<a string>|\(\'host\', <a string>\)) #[0-9a-f]{4}', one) for one in shown)
    for conn, endpoint in held:
        pool.release(conn, endpoint)


# --- the answer ---


@pytest.mark.parametrize('query', ['', 'format=json'])
def test_headers(client: type[Client], query: str) -> None:
    headers = client()(query).headers
    policy = headers['Content-Security-Policy']
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
    assert 'unsafe' not in policy and policy.count("'sha256-") == 2
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert headers['Referrer-Policy'] == 'same-origin'
    assert headers['Cache-Control'] == 'no-store'


def test_the_page_has_no_external_asset(client: type[Client]) -> None:
    found = parsed(client(allow_actions=True)().body).tags
    links = [
        value for _, attributes in found for name, value in attributes.items() if name in ('src', 'href', 'action')
    ]
    assert links and not [link for link in links if link and not link.startswith(('?', '#', 'data:,'))]


def test_head_has_no_body(client: type[Client]) -> None:
    answer = client()('', 'HEAD')
    assert (answer.status, answer.body) == (200, '') and int(answer.headers['Content-Length']) > 1000


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'OPTIONS', 'PATCH'])
def test_other_methods_are_refused(client: type[Client], method: str) -> None:
    answer = client(allow_actions=True)('', method)
    assert (answer.status, answer.headers['Allow']) == (405, 'GET, HEAD, POST')


def test_an_unknown_format_is_refused(client: type[Client]) -> None:
    assert client()('format=xml').status == 400


@pytest.mark.parametrize('top', [0, -1, 1001])
def test_a_top_out_of_range(top: int) -> None:
    for make in (gcp.debug.wsgi, gcp.debug.asgi):
        with pytest.raises(ValueError, match=f'top must be from 1 to 1000, not {top}'):
            make(top=top)


@pytest.mark.parametrize('arguments', [{'top': '5'}, {'top': True}, {'allow_actions': 1}, {'allow_remote': 'no'}])
def test_arguments_of_a_wrong_type(arguments: Any) -> None:
    for make in (gcp.debug.wsgi, gcp.debug.asgi):
        with pytest.raises(TypeError, match=next(iter(arguments))):
            make(**arguments)


def test_tables_have_so_many_rows_and_the_rest_is_counted(client: type[Client], manager: FakeManager) -> None:
    gc.collect()
    pools = [gcp.threading.ConnectionPool(FakeManager(), name=f'pool {i}', max_size=1) for i in range(5)]
    with gcp.threading.ConnectionPool(manager, name='big', max_size=1, total_max_size=20) as pool:
        held = [(pool.acquire(number), number) for number in range(9)]
        with Waiting(pool, 3, 4):
            found = client(top=3)('format=json').json
            assert len(found['pools']) == 3 and found['other_pools']['count'] >= 3
            big = found['pools'][0]
            assert (big['name'], len(big['endpoints']), big['other_endpoints']['count']) == ('big', 3, 6)
            assert big['other_endpoints']['used'] == 6
            assert big['endpoints'][0]['endpoint'] == '3', 'the one that has waiters comes first'
            assert (len(big['queue']), big['other_waiters']) == (3, 1)
            text = text_of(client(top=3)().body)
            assert '6 more endpoints' in text and '1 more acquires wait' in text and 'more pools' in text
            for conn, number in held:
                pool.release(conn, number)
    for one in pools:
        one.close()


def test_shares_of_a_table() -> None:
    assert shares([], 5) == []
    assert shares([10], 5) == [5]
    assert shares([1, 1, 1], 50) == [1, 1, 1]
    assert shares([100, 2, 100], 9) == [4, 2, 3]
    assert shares([1, 1, 1], 2) == [1, 1, 0]


# --- who asks ---


@pytest.mark.parametrize('address', ['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1', '', None])
@pytest.mark.parametrize(
    'host', ['localhost', 'localhost:80', '127.0.0.1:8000', '[::1]:8000', 'app.localhost', 'LOCALHOST.']
)
def test_this_host_is_served(client: type[Client], address: str | None, host: str) -> None:
    assert client()('', client=address, host=host).status == 200


@pytest.mark.parametrize(
    'address', ['10.0.0.1', '192.0.2.7', '2001:db8::1', '::ffff:192.0.2.7', 'testclient', '0.0.0.0']
)
@pytest.mark.parametrize('method', ['GET', 'HEAD', 'POST'])
def test_other_hosts_are_refused(client: type[Client], address: str, method: str) -> None:
    answer = client()('', method, client=address)
    assert answer.status == 403 and 'Python' not in answer.body
    assert client(allow_remote=True)('', client=address).status == 200


@pytest.mark.parametrize(
    'host', ['evil.example', 'evil.example:8000', '192.0.2.7', 'localhost.evil.example', '', None, '[', 'a b']
)
def test_another_name_for_this_host_is_refused(client: type[Client], host: str | None) -> None:
    assert client()('', host=host).status == 403
    assert client(allow_remote=True)('', host=host).status == 200


@pytest.mark.parametrize(
    'headers',
    [
        {'x_forwarded_for': '192.0.2.7'},
        {'x_forwarded_for': '127.0.0.1, 192.0.2.7'},
        {'x_real_ip': '192.0.2.7'},
        {'forwarded': 'for=192.0.2.7'},
    ],
)
def test_what_a_proxy_forwards_for_others_is_refused(client: type[Client], headers: Any) -> None:
    assert client()('', **headers).status == 403
    assert client(allow_remote=True)('', **headers).status == 200
    assert client()('', x_forwarded_for='127.0.0.1').status == 200


def test_refusals_are_json_where_json_is_asked_for(client: type[Client]) -> None:
    assert 'this host only' in client()('format=json', client='192.0.2.7').json['error']
    assert 'token' not in client()('format=json').json['actions']


# --- actions ---


@pytest.fixture
def steered(manager: FakeManager) -> Iterator[Steered]:
    gc.collect()
    with Steered(manager, name='orders', max_size=2) as made, made.connection('db'), made.connection(('host', 1)):
        yield made


def allowed(client: type[Client]) -> tuple[Client, dict[str, str]]:
    ask = client(allow_actions=True)
    return ask, {'pool': 'orders', 'token': ask.token()}


@pytest.mark.parametrize('action', ['expire', 'suspend', 'resume'])
def test_actions(client: type[Client], steered: Steered, action: str) -> None:
    ask, fields = allowed(client)
    shown = {one['endpoint']: one['id'] for one in ask.pool('orders')['endpoints']}
    for more, endpoint in (
        ({}, None),
        ({'endpoint': 'db'}, 'db'),
        ({'endpoint': "('host', 1)"}, ('host', 1)),
        ({'id': shown["'db'"]}, 'db'),
    ):
        answer = ask.post({**fields, 'action': action, **more})
        assert (answer.status, answer.json['done']) == (200, True), answer.body
        assert steered.told.pop() == (action, endpoint)
    assert any(f'{action}' in event['what'] for event in ask('format=json').json['events'])


def test_an_endpoint_is_retired(client: type[Client], manager: FakeManager) -> None:
    gc.collect()
    with gcp.threading.ConnectionPool(manager, name='orders') as pool:
        with pool.connection('db'):
            pass
        ask, fields = allowed(client)
        assert ask.post({**fields, 'action': 'retire'}).status == 400
        assert ask.post({**fields, 'action': 'retire', 'endpoint': 'none'}).status == 404
        answer = ask.post({**fields, 'action': 'retire', 'endpoint': 'db'})
        assert answer.json['message'] == "pool orders endpoint 'db': retired"
        assert pool.stats().closed['retired'] == 1


def test_an_action_that_takes_long_goes_on(
    client: type[Client], manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('gcp.debug.actions.WAIT', 0.01)
    gc.collect()
    with gcp.threading.ConnectionPool(manager, name='orders') as pool:
        held = pool.acquire('db')
        ask, fields = allowed(client)
        answer = ask.post({**fields, 'action': 'retire', 'endpoint': 'db'})
        assert (answer.status, answer.json['done']) == (200, False)
        assert 'goes on' in answer.json['message']
        pool.release(held, 'db')
        until(lambda: pool.stats().closed['retired'] == 1)


def test_a_form_and_its_answer(client: type[Client], steered: Steered) -> None:
    ask, fields = allowed(client)
    forms = [found for tag, found in parsed(ask().body).tags if tag == 'form']
    assert forms and all(form['method'] == 'post' for form in forms)
    answer = ask.post(
        {**fields, 'action': 'expire'}, query='', sec_fetch_site='same-origin', origin='http://localhost:8000'
    )
    assert (answer.status, answer.headers['Content-Type']) == (200, 'text/html; charset=utf-8')
    assert 'pool orders: expired' in text_of(answer.body)
    assert steered.told == [('expire', None)]


def test_json_with_the_token_as_header(client: type[Client], steered: Steered) -> None:
    ask, fields = allowed(client)
    body = json.dumps({'action': 'expire', 'pool': 'orders', 'endpoint': None}).encode()
    answer = ask('format=json', 'POST', body=body, content_type='application/json', x_gcp_token=fields['token'])
    assert (answer.status, steered.told) == (200, [('expire', None)])


@pytest.mark.parametrize(
    'change',
    [
        {'token': ''},
        {'token': 'x' * 32},
        {'token': 'é'},
        {'origin': 'http://evil.example'},
        {'origin': 'null'},
        {'origin': 'http://localhost:9999'},
        {'sec_fetch_site': 'cross-site'},
        {'sec_fetch_site': 'same-site'},
        {'sec_fetch_site': 'none'},
        {'host': 'evil.example'},
        {'client': '192.0.2.7'},
        {'x_forwarded_for': '192.0.2.7'},
    ],
    ids=str,
)
def test_what_may_come_from_elsewhere_changes_nothing(client: type[Client], steered: Steered, change: Any) -> None:
    ask, fields = allowed(client)
    options = {name: value for name, value in change.items() if name != 'token'}
    answer = ask.post(
        {**fields, 'action': 'expire', **({'token': change['token']} if 'token' in change else {})}, **options
    )
    assert (answer.status, steered.told) == (403, [])
    assert 'error' in answer.json


def test_without_allow_actions_nothing_changes(client: type[Client], steered: Steered) -> None:
    _, fields = allowed(client)
    ask = client()
    answer = ask.post({**fields, 'action': 'expire'})
    assert (answer.status, steered.told) == (403, [])
    assert 'allow_actions=True' in answer.json['error']
    assert fields['token'] not in ask().body + ask('format=json').body
    assert '<form' not in ask().body


def test_get_does_nothing(client: type[Client], steered: Steered) -> None:
    ask, fields = allowed(client)
    assert ask(urlencode({**fields, 'action': 'expire'})).status == 200
    assert steered.told == []


@pytest.mark.parametrize(
    'fields, status',
    [
        ({'action': 'close'}, 400),
        ({'action': '__init__'}, 400),
        ({}, 400),
        ({'action': 'expire', 'pool': 'none'}, 404),
        ({'action': 'suspend', 'endpoint': 'none'}, 404),
        ({'action': 'retire', 'endpoint': 'db', 'timeout': 'soon'}, 400),
        ({'action': 'retire', 'endpoint': 'db', 'timeout': '-1'}, 400),
    ],
    ids=str,
)
def test_bad_fields(client: type[Client], steered: Steered, fields: dict[str, str], status: int) -> None:
    ask, good = allowed(client)
    answer = ask.post({**good, **fields})
    assert (answer.status, steered.told) == (status, []), answer.body
    assert answer.json['error']


@pytest.mark.parametrize('action', ['expire', 'resume'])
def test_an_unknown_endpoint_is_no_error(client: type[Client], steered: Steered, action: str) -> None:
    ask, fields = allowed(client)
    answer = ask.post({**fields, 'action': action, 'endpoint': 'none'})
    assert (answer.status, answer.json['message']) == (200, 'pool orders has no endpoint none: nothing to do')
    assert steered.told == []


def test_bad_bodies(client: type[Client], steered: Steered) -> None:
    ask, fields = allowed(client)
    for kind, body, status in (
        ('text/plain', b'x', 415),
        ('application/json', b'{', 400),
        ('application/json', b'[1]', 400),
        ('application/x-www-form-urlencoded', b'\xff=\xff', 400),
        ('application/x-www-form-urlencoded', b'a' * 70_000, 413),
        ('application/json', b'[' * 60_000, 400),
    ):
        answer = ask('format=json', 'POST', body=body, content_type=kind, x_gcp_token=fields['token'])
        assert (answer.status, steered.told) == (status, []), (kind, body[:20])


def test_an_error_of_the_pool_is_told(client: type[Client], manager: FakeManager) -> None:
    class Failing(gcp.threading.ConnectionPool[Any, Any]):
        def expire(self, endpoint: Any = None) -> None:
            raise RuntimeError(HOSTILE)

    gc.collect()
    with Failing(manager, name='orders'):
        ask, fields = allowed(client)
        answer = ask.post({**fields, 'action': 'expire'})
        assert answer.status == 409 and 'RuntimeError' in answer.json['error']
        page = ask.post({**fields, 'action': 'expire'}, query='')
        assert page.status == 409 and '<script>alert' not in page.body


def test_pools_of_asyncio_are_told_in_their_event_loop() -> None:
    told: list[Any] = []

    class SteeredTasks(gcp.asyncio.ConnectionPool[Any, Any]):
        def expire(self, endpoint: Any = None) -> None:
            told.append(('expire', asyncio.get_running_loop()))

        async def suspend(self, endpoint: Any = None) -> None:
            await asyncio.sleep(0)
            told.append(('suspend', asyncio.get_running_loop()))

    async def serve() -> None:
        async with SteeredTasks(AsyncFakeManager(), name='orders') as pool:
            async with pool.connection('db'):
                pass
            ask = AsgiClient(allow_actions=True)

            async def post(fields: dict[str, str]) -> Answer:
                headers = {'host': 'localhost', 'content-type': 'application/x-www-form-urlencoded'}
                body = urlencode({**fields, 'pool': 'orders', 'token': token}).encode()
                return await ask.ask_in_loop('POST', 'format=json', headers, '::1', body)

            answer = await ask.ask_in_loop('GET', 'format=json', {'host': 'localhost'}, '::1', b'')
            token = answer.json['actions']['token']
            for action in ('expire', 'suspend'):
                assert (await post({'action': action})).json['done'] is True
            assert (await post({'action': 'retire', 'endpoint': 'db'})).json['done'] is True
            assert pool.stats().closed['retired'] == 1
        assert told == [('expire', asyncio.get_running_loop()), ('suspend', asyncio.get_running_loop())]

    gc.collect()
    asyncio.run(serve())


def test_a_pool_whose_event_loop_has_ended_is_left_alone(client: type[Client]) -> None:
    async def use(pool: Any) -> None:
        async with pool.connection('db'):
            pass

    gc.collect()
    pool = gcp.asyncio.ConnectionPool(AsyncFakeManager(), name='orders', background_collector=False)
    asyncio.run(use(pool))
    ask, fields = allowed(client)
    answer = ask.post({**fields, 'action': 'retire', 'endpoint': 'db'})
    assert answer.status == 409 and 'event loop' in answer.json['error']


# --- in an event loop ---


def test_the_event_loop_goes_on_while_the_page_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()

    def collect(*arguments: Any, **options: Any) -> Any:
        entered.set()
        assert leave.wait(PATIENCE)
        raise RuntimeError('enough')

    monkeypatch.setattr('gcp.debug.application.collect', collect)

    async def serve() -> None:
        ask = AsgiClient()
        asking = asyncio.ensure_future(ask.ask_in_loop('GET', '', {'host': 'localhost'}, '::1', b''))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        leave.set()
        with pytest.raises(RuntimeError, match='enough'):
            await asking

    asyncio.run(serve())


def test_lifespan() -> None:
    messages = [{'type': 'lifespan.startup'}, {'type': 'lifespan.shutdown'}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message['type'])

    work: Coroutine[Any, Any, None] = gcp.debug.asgi()({'type': 'lifespan'}, receive, send)
    asyncio.run(work)
    assert sent == ['lifespan.startup.complete', 'lifespan.shutdown.complete']
    with pytest.raises(ValueError, match='websocket'):
        asyncio.run(gcp.debug.asgi()({'type': 'websocket'}, receive, send))


def test_a_forked_child_has_another_token(script: Any) -> None:
    code = """
    import os
    from gcp.debug.application import TOKEN
    mine = TOKEN.value()
    assert mine == TOKEN.value() and len(mine) >= 32
    pid = os.fork()
    if pid == 0:
        os._exit(TOKEN.value() == mine)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert script(code).quietly() == '0\n'
