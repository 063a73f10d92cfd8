"""Guarantee 25 (docs/guarantees.md): the debug page in a browser, with and without scripts, wide and narrow."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from browser import Browser, Tab, browser_or_skip

import gcp.debug
import gcp.threading
from gcp import Retry
from gcp.testing import FakeManager
from gcp.testing import error as raises

HOSTILE = '<script>window.taken = 1</script><img src=x onerror="window.taken = 1">\'"'


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Do not log requests."""


class Holder:
    """Stands for what a pool says of a holder."""

    endpoint, age, thread_name, thread_ident, task_name = 'db', 12.5, HOSTILE, 77, None
    file, line, function, trace_id, tag, alive = '/srv/app/views.py', 12, HOSTILE, None, HOSTILE, True

    def stack(self) -> str:
        return f'  File "/srv/app/views.py", line 40, in {HOSTILE}\n    cursor.execute(query)'


class Pool(gcp.threading.ConnectionPool[Any, Any]):
    """A pool that notes what it is told."""

    told: list[Any]

    def expire(self, endpoint: Any = None) -> None:
        self.told.append(endpoint)


@pytest.fixture(scope='module')
def chromium() -> Iterator[Browser]:
    with browser_or_skip() as browser:
        yield browser


@pytest.fixture
def tab(chromium: Browser) -> Tab:
    chromium.events.clear()
    tab = chromium.open()
    tab.look_like(1280)
    return tab


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool with connections in use, an endpoint that fails, and names that are no text but tags."""
    gc.collect()
    monkeypatch.setattr('gcp.debug.facts.find_holders', lambda pool, endpoint, most: [Holder()])
    manager = FakeManager()
    retry = Retry(600, 600)
    with Pool(manager, name='orders', max_size=2, total_max_size=8, breaker_threshold=1, connect_retry=retry) as made:
        made.told = []
        manager.create.does(raises(OSError(HOSTILE)), endpoint=HOSTILE)
        with pytest.raises(OSError):
            made.acquire(HOSTILE, timeout=0)
        with made.connection('db'), made.connection(('replica', 5432)):
            yield made


@contextlib.contextmanager
def serving(**arguments: Any) -> Iterator[str]:
    app = gcp.debug.wsgi(**arguments)
    with make_server('127.0.0.1', 0, app, Server, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/'
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def url(pool: Pool) -> Iterator[str]:
    with serving() as address:
        yield address


def test_it_shows_everything_and_breaks_no_rule_of_its_own(tab: Tab, url: str) -> None:
    tab.go(url)
    text = tab.text()
    for word in (
        'orders',
        "'db'",
        "('replica', 5432)",
        'breaker open',
        'app/views.py:12',
        'Who waits',
        'Times',
        'live',
    ):
        assert word in text, word
    assert HOSTILE[:30] in text, 'shown as text'
    assert tab.evaluate('window.taken') is None
    assert tab.evaluate("document.querySelectorAll('img, iframe, [onerror], [style]').length") == 0
    bars = 'Math.min(...[...document.querySelectorAll(".bar")].map(one => one.getBoundingClientRect().width))'
    assert tab.evaluate(bars) > 50, 'the style sheet is in force'
    assert tab.complaints() == []


def test_it_follows_what_happens(tab: Tab, url: str, pool: Pool) -> None:
    tab.go(url)
    tab.evaluate('window.same = 1')
    tab.click('#holders summary')
    with pool.connection('new endpoint'):
        tab.until("document.querySelector('#endpoints').innerText.includes('new endpoint')")
    assert tab.evaluate('window.same') == 1, 'it was not loaded anew'
    assert tab.evaluate("document.querySelector('#holders details').open"), 'what was unfolded stays so'
    tab.click('#pause')
    assert 'paused' in tab.text('#live')
    assert tab.complaints() == []


def test_it_says_so_when_the_process_is_gone(tab: Tab, pool: Pool) -> None:
    with serving() as address:
        tab.go(address)
    tab.until("document.querySelector('#live').innerText.includes('no answer')")
    assert 'orders' in tab.text('#pools'), 'the last answer is still to be read'


def test_it_is_read_without_scripts(tab: Tab, url: str) -> None:
    tab.call('Emulation.setScriptExecutionDisabled', value=True)
    tab.go(url)
    tab.call('Emulation.setScriptExecutionDisabled', value=False)  # for the questions asked here
    text = tab.text()
    for word in ('orders', "'db'", 'breaker open', 'app/views.py:12', 'Refresh', 'JSON'):
        assert word in text, word
    assert tab.evaluate("document.querySelectorAll('table').length") >= 4
    assert not tab.evaluate("document.querySelector('#pause').offsetParent"), 'nothing that would not work'


@pytest.mark.parametrize('width', [360, 700, 1024, 1600])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_it_fits_every_window(tab: Tab, url: str, width: int, dark: bool) -> None:
    tab.look_like(width, dark=dark)
    tab.go(url)
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    back = 'getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]'
    assert (tab.evaluate(back) < 100) == dark


@pytest.mark.parametrize('scripts', [True, False], ids=['with scripts', 'without'])
def test_a_button_acts(tab: Tab, pool: Pool, scripts: bool) -> None:
    with serving(allow_actions=True) as address:
        tab.call('Emulation.setScriptExecutionDisabled', value=not scripts)
        tab.go(address)
        tab.call('Emulation.setScriptExecutionDisabled', value=False)
        if scripts:
            tab.click('#pause')
        tab.click('#pools summary')
        tab.click('#pools button[value=expire]', loads=True)
        assert 'pool orders: expired' in tab.text()
        assert pool.told == [None]
        tab.click('a', loads=True)
        tab.until("document.querySelector('#events').innerText.includes('expired by request')")
        assert tab.complaints() == []


def test_another_site_cannot_act(tab: Tab, pool: Pool) -> None:
    """A page on another port has the token, and sends a form."""
    from gcp.debug.application import TOKEN

    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response('200 OK', [('Content-Type', 'text/html')])
        form = f'<form method=post action="{address}"><input name=token value="{TOKEN.value()}">'
        rest = '<input name=pool value=orders><input name=action value=expire></form>'
        rest += '<script>document.forms[0].submit()</script>'
        return [(form + rest).encode()] if environ['PATH_INFO'] == '/' else [b'']

    with serving(allow_actions=True) as address, make_server('127.0.0.1', 0, other, Server, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        tab.go(f'http://127.0.0.1:{server.server_port}/')
        tab.until("document.body && document.body.innerText.includes('another')")
        server.shutdown()
    assert pool.told == []


def test_another_site_cannot_frame_it(tab: Tab, url: str) -> None:
    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response('200 OK', [('Content-Type', 'text/html')])
        return [f'<iframe src="{url}"></iframe>'.encode()]

    with make_server('127.0.0.1', 0, other, Server, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        tab.go(f'http://127.0.0.1:{server.server_port}/')
        server.shutdown()
    assert any('frame' in said for said in tab.complaints()), tab.complaints()
