"""Guarantee 25 (docs/guarantees.md): `python -m gcp expire`, `suspend`, `resume` and `retire`, by the debug page."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from steered import Steered

import gcp.debug
from gcp.__main__ import main
from gcp.debug.actions import ACTIONS
from gcp.testing import FakeManager


class Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Do not log requests."""


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port."""
    with make_server('127.0.0.1', 0, app, handler_class=Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/debug/pools'
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pool() -> Iterator[Steered]:
    gc.collect()
    with Steered(FakeManager(), name='orders') as made, made.connection('db'), made.connection(('host', 1)):
        yield made


@pytest.fixture
def url(pool: Steered) -> Iterator[str]:
    with serving(gcp.debug.wsgi(allow_actions=True)) as address:
        yield address


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command, and return its exit status and what it says."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        return status, *capsys.readouterr()

    return run_command


@pytest.mark.parametrize('action', ['expire', 'suspend', 'resume'])
def test_a_whole_pool_and_one_endpoint(url: str, pool: Steered, run: Any, action: str) -> None:
    assert run(action, url, 'orders') == (0, f'pool orders: {ACTIONS[action]}\n', '')
    assert run(action, url, 'orders', 'db')[0] == 0
    assert run(action, url, 'orders', "('host', 1)")[0] == 0
    assert pool.told == [(action, None), (action, 'db'), (action, ('host', 1))]


def test_retire(url: str, pool: Steered, run: Any) -> None:
    assert run('retire', url, 'orders', 'db') == (0, "pool orders endpoint 'db': retired\n", '')
    assert run('retire', url, 'orders', "'db'", '--timeout', '5')[0] == 0
    assert pool.told == [('retire', 'db', None), ('retire', 'db', 5.0)]
    with pytest.raises(SystemExit) as caught:
        main(['retire', url, 'orders'])
    assert caught.value.code == 2


def test_an_address_without_a_scheme_and_with_a_query(url: str, pool: Steered, run: Any) -> None:
    assert run('expire', url.removeprefix('http://'), 'orders')[0] == 0
    assert run('expire', f'{url}?pool=other&format=html', 'orders')[0] == 0
    assert run('expire', url.removeprefix('http://').partition('/')[0], 'orders')[0] == 0
    assert pool.told == [('expire', None)] * 3


def test_it_is_refused_unless_the_page_allows_it(pool: Steered, run: Any) -> None:
    with serving(gcp.debug.wsgi()) as url:
        for action in ('expire', 'suspend', 'resume', 'retire'):
            status, out, err = run(action, url, 'orders', 'db')
            assert (status, out) == (3, '')
            assert err == f'gcp {action}: actions are not allowed there: its page was made without allow_actions=True\n'
    assert pool.told == []


def test_what_the_process_says_is_told(url: str, pool: Steered, run: Any) -> None:
    status, out, err = run('expire', url, 'none')
    assert (status, out) == (1, '')
    assert err.startswith("gcp expire: this process has no pool 'none': it has ")  # and those that other tests keep
    assert run('retire', url, 'orders', 'none') == (1, '', 'gcp retire: pool orders has no endpoint none\n')
    assert run('expire', url, 'orders', 'none') == (0, 'pool orders has no endpoint none: nothing to do\n', '')
    assert pool.told == []


def test_a_slash_that_a_framework_adds(pool: Steered, run: Any) -> None:
    page = gcp.debug.wsgi(allow_actions=True)

    def mounted(environ: Any, start_response: Any) -> Any:
        if environ['PATH_INFO'].endswith('/'):
            return page(environ, start_response)
        address = f'http://{environ["HTTP_HOST"]}{environ["PATH_INFO"]}/?{environ["QUERY_STRING"]}'
        start_response('307 Temporary Redirect', [('Location', address)])
        return [b'']

    with serving(mounted) as url:
        assert run('expire', url, 'orders')[0] == 0
    assert pool.told == [('expire', None)]


def test_a_proxy_is_not_asked_for_this_host(url: str, pool: Steered, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:1')
    assert run('expire', url, 'orders')[0] == 0


def answer(status: str, body: bytes, **headers: str) -> Any:
    """Make an application that always answers the same."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, list(headers.items()))
        return [body]

    return app


@pytest.mark.parametrize(
    'app, said',
    [
        (answer('200 OK', b'<html>'), 'is no debug page of gcp'),
        (answer('200 OK', b'[]'), 'is no debug page of gcp'),
        (answer('200 OK', b'{}'), 'is no debug page of gcp'),
        (answer('404 Not Found', b'\x1b[31m'), '404 Not Found'),
        (answer('302 Found', b'', Location='http://127.0.0.1:1/'), '302 Found'),
        (answer('403 Forbidden', b'{"error": "no\\u001b[31m"}'), 'no\ufffd[31m'),
    ],
    ids=['html', 'list', 'empty', 'not found', 'elsewhere', 'forbidden'],
)
def test_other_answers(run: Any, app: Any, said: str) -> None:
    with serving(app) as url:
        status, out, err = run('expire', url, 'orders')
    assert (out, '\x1b' in err) == ('', False) and said in err
    assert status == (3 if said.startswith('no') else 1)


@pytest.mark.parametrize('url', ['ftp://localhost/', 'http://', 'http://[', 'file:///etc/passwd'])
def test_addresses_that_are_none(run: Any, url: str) -> None:
    assert run('expire', url, 'orders') == (
        1,
        '',
        'gcp expire: an address such as http://127.0.0.1:8000/debug/pools was expected\n',
    )


def test_credentials_of_the_address_are_sent_and_not_shown(run: Any) -> None:
    seen: list[str] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ.get('HTTP_AUTHORIZATION', ''))
        start_response('401 Unauthorized', [])
        return [b'']

    with serving(app) as url:
        status, _, err = run('expire', url.replace('http://', 'http://me:sesame@'), 'orders')
    assert (status, seen) == (1, ['Basic bWU6c2VzYW1l'])
    assert 'sesame' not in err and '401 Unauthorized' in err


def test_no_server(run: Any) -> None:
    with serving(answer('200 OK', b'')) as url:
        pass
    status, out, err = run('expire', url, 'orders')
    assert (status, out) == (1, '') and 'refused' in err
