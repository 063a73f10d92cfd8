"""`python -m gcp advise`: what it advises for pages of real pools, and for pages written by hand, and from where it
reads them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gcp.__main__ import main
from gcp.advise import rules, source
from gcp.advise.rules import connections_for, share_that_waits
from gcp.testing import FakeManager
from gcp.threading import ConnectionPool

START = 1_000_000.0


def spread(name: str, labels: str, observed: dict[float, int]) -> list[str]:
    """Return the series of a histogram of these observations and their numbers."""
    bounds = [1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, math.inf]
    lines, joined = [], labels + ',' if labels else ''
    for bound in bounds:
        count = sum(number for value, number in observed.items() if value <= bound)
        lines.append(f'{name}_bucket{{{joined}le="{"+Inf" if bound == math.inf else bound}"}} {count}')
    lines.append(f'{name}_sum{{{labels}}} {sum(value * number for value, number in observed.items())}')
    lines.append(f'{name}_count{{{labels}}} {sum(observed.values())}')
    return lines


def page(
    *,
    acquires: dict[str, int] | None = None,
    endpoints: dict[str, dict[str, int]] | None = None,
    waits: dict[float, int] | None = None,
    uses: dict[float, int] | None = None,
    creates: dict[float, int] | None = None,
    checks: dict[float, int] | None = None,
    closed: dict[str, int] | None = None,
    max_size: int = 10,
    total_max_size: int = 100,
    min_idle: int = 1,
    idle: int = 1,
    used: int = 0,
    oldest: float = 0.0,
    leaks: int = 0,
    failed_creates: int = 0,
    capacity: int | None = None,
    pool: str = 'orders',
    started: float | None = START,
) -> str:
    """Write a page: counts by result, reason or duration."""
    by_endpoint = endpoints or {'db': acquires or {}}
    served = {sum(each.get(result, 0) for each in by_endpoint.values()) for result in ('hit',)}
    own = f'pool="{pool}"'
    lines = [
        f'gcpool_max_connections{{{own}}} {total_max_size}',
        f'gcpool_max_connections_per_endpoint{{{own}}} {max_size}',
        f'gcpool_min_idle_connections{{{own}}} {min_idle}',
        f'gcpool_endpoints{{{own}}} {len(by_endpoint)}',
        f'gcpool_connections{{{own},pool_endpoint="db",state="idle"}} {idle}',
        f'gcpool_connections{{{own},pool_endpoint="db",state="used"}} {used}',
        f'gcpool_oldest_checkout_seconds{{{own}}} {oldest}',
        f'gcpool_leaks_detected_total{{{own},pool_endpoint="db"}} {leaks}',
    ]
    if capacity is not None:
        lines.append(f'gcpool_capacity{{{own}}} {capacity}')
    lines.append(f'gcpool_hook_calls_total{{{own},hook="create",outcome="error"}} {failed_creates}')
    for endpoint, results in by_endpoint.items():
        for result, count in results.items():
            lines.append(f'gcpool_acquires_total{{{own},pool_endpoint="{endpoint}",result="{result}"}} {count}')
    for reason, count in (closed or {}).items():
        lines.append(f'gcpool_connections_closed_total{{{own},pool_endpoint="db",reason="{reason}"}} {count}')
    lines += spread('gcpool_acquire_wait_seconds', own, waits or {0.0: sum(served)})
    lines += spread('gcpool_use_seconds', own, uses or {})
    lines += spread('gcpool_hook_seconds', f'{own},hook="create",result="ok"', creates or {})
    lines += spread('gcpool_hook_seconds', f'{own},hook="check_aliveness",result="ok"', checks or {})
    if started is not None:
        lines.append(f'process_start_time_seconds {started}')
    return '\n'.join([*lines, ''])


@pytest.fixture
def advised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Write a page after some seconds, by default 1,000; return what is advised for its only pool."""

    def run(text: str, *, seconds: float = 1000.0, before: str | None = None) -> Any:
        files = [tmp_path / 'before.txt', tmp_path / 'now.txt'] if before is not None else [tmp_path / 'now.txt']
        for file, written, at in zip(files[::-1], (text, before), (START + seconds, START), strict=False):
            file.write_text(written or '')
            os.utime(file, (at, at))
        assert main(['advise', '--json', *map(str, files)]) == 0
        (found,) = json.loads(capsys.readouterr().out)['pools']
        return found

    return run


NOTHING = page(acquires={})


def between(advised: Callable[..., Any], seconds: float = 1000.0, **figures: Any) -> Any:
    """Return what is advised for an interval in which these figures were added."""
    return advised(page(**figures), before=NOTHING, seconds=seconds)


# ---- verdicts


def test_a_pool_in_little_use_is_fine(advised: Callable[..., Any]) -> None:
    found = between(advised, acquires={'hit': 10_000}, uses={0.01: 10_000})
    assert (found['verdict'], found['findings'], found['recommended']) == ('fine', [], {})
    assert found['in_use'] == pytest.approx(0.1)
    assert found['acquires_per_second'] == pytest.approx(10)
    assert found['hit_ratio'] == 1.0


def test_a_pool_whose_cap_is_used_up_is_too_small(advised: Callable[..., Any]) -> None:
    figures = {'acquires': {'hit': 5_000, 'waited': 44_000, 'timeout': 1_000}, 'uses': {0.2: 49_000}, 'used': 10}
    found = between(advised, waits={0.0: 5_000, 0.4: 44_000, 5.0: 1_000}, **figures)
    assert found['verdict'] == 'too small'
    assert found['in_use'] == pytest.approx(9.8)
    assert found['recommended']['max_size'] == connections_for(10.0) > 10
    (finding,) = found['findings']
    assert '98% of max_size=10' in finding['reason'] and '90% of the acquires wait or time out' in finding['reason']


def test_the_busiest_endpoint_counts(advised: Callable[..., Any]) -> None:
    endpoints = {'db': {'hit': 10_000, 'waited': 35_000}, 'other': {'hit': 5_000}}
    found = between(advised, endpoints=endpoints, waits={0.0: 15_000, 0.4: 35_000}, uses={0.2: 50_000})
    assert (found['busiest_endpoint'], found['busiest_share']) == ('db', 0.9)
    assert '9.0 connections of endpoint' in found['findings'][0]['reason']


def test_a_total_cap_that_is_used_up_is_too_small(advised: Callable[..., Any]) -> None:
    endpoints = {f'db-{number}': {'hit': 1_000, 'waited': 4_000} for number in range(10)}
    found = between(
        advised, endpoints=endpoints, total_max_size=12, waits={0.0: 10_000, 0.4: 40_000}, uses={0.2: 50_000}
    )
    assert found['verdict'] == 'too small'
    assert list(found['recommended']) == ['total_max_size'] and found['recommended']['total_max_size'] > 12


@pytest.mark.parametrize('started', [None, START - 100_000])
def test_a_page_since_the_start_shows_a_cap_that_is_used_up_while_there_is_work(
    advised: Callable[..., Any], started: float | None
) -> None:
    """Though the process has been idle for most of its time, or it is not known for how long it has run."""
    figures: Any = {'acquires': {'hit': 100, 'waited': 900}, 'waits': {0.0: 100, 0.3: 900}, 'uses': {0.1: 1000}}
    found = advised(page(started=started, max_size=2, idle=2, creates={0.001: 2}, **figures))
    assert found['verdict'] == 'too small'
    assert found['recommended'] == {'max_size': 8}  # a wait is as long as three uses


def test_a_cap_far_above_what_is_needed_is_too_large(advised: Callable[..., Any]) -> None:
    found = between(advised, acquires={'hit': 10_000}, uses={0.05: 10_000}, max_size=100)
    assert found['verdict'] == 'too large'
    assert found['recommended'] == {'max_size': connections_for(0.5)}


def test_a_cap_that_was_needed_is_not_too_large(advised: Callable[..., Any]) -> None:
    found = between(advised, acquires={'hit': 10_000}, uses={0.05: 10_000}, max_size=100, idle=60)
    assert found['verdict'] == 'fine'


def test_too_many_that_are_kept_idle(advised: Callable[..., Any]) -> None:
    found = between(advised, acquires={'hit': 10_000}, uses={0.05: 10_000}, max_size=50, min_idle=50, idle=50)
    assert (found['verdict'], found['recommended']) == ('too large', {'min_idle': connections_for(0.5)})


@pytest.mark.parametrize(
    'reason, words',
    [
        ('idle_timeout', 'Raise idle_timeout, or min_idle'),
        ('evicted', 'Raise total_max_size'),
        ('dead', 'keepalive_interval'),
        ('max_lifetime', 'Raise max_lifetime'),
        ('error', 'see the errors'),
    ],
)
def test_too_many_creations(advised: Callable[..., Any], reason: str, words: str) -> None:
    found = between(
        advised,
        acquires={'hit': 600, 'created': 400},
        waits={0.0: 600, 0.05: 400},
        uses={0.01: 1000},
        creates={0.05: 400},
        closed={reason: 390, 'pool_closed': 5},
    )
    assert found['verdict'] == 'too many creations'
    assert words in found['findings'][0]['action']
    assert '40% of the acquires' in found['findings'][0]['reason']
    assert ('total_max_size' in found['recommended']) == (reason == 'evicted')


def test_the_first_connections_are_not_too_many(advised: Callable[..., Any]) -> None:
    found = advised(
        page(
            acquires={'hit': 40, 'created': 10}, waits={0.0: 40, 1e-4: 10}, uses={1e-4: 50}, creates={1e-4: 10}, idle=10
        )
    )
    assert found['creations_per_acquire'] == 0
    assert found['verdict'] == 'fine'


def test_slow_creates_are_not_cured_by_a_size(advised: Callable[..., Any]) -> None:
    found = between(
        advised,
        acquires={'hit': 9_500, 'created': 500},
        waits={0.0: 9_500, 1.0: 500},
        uses={0.01: 10_000},
        creates={1.0: 500},
    )
    assert found['verdict'] == 'waits that no size cures'
    assert 'creates take 1 s on average' in found['findings'][0]['reason']
    assert 'warm_up' in found['findings'][0]['action']


def test_slow_checks_are_not_cured_by_a_size(advised: Callable[..., Any]) -> None:
    found = between(
        advised, acquires={'hit': 10_000}, waits={0.005: 10_000}, uses={0.01: 10_000}, checks={0.005: 10_000}
    )
    assert found['verdict'] == 'waits that no size cures'
    assert 'checks take 5 ms' in found['findings'][0]['reason']
    assert 'check_interval' in found['findings'][0]['action']


@pytest.mark.parametrize('figures', [{'leaks': 3}, {'oldest': 4000.0}])
def test_leaks_are_not_cured_by_a_size(advised: Callable[..., Any], figures: dict[str, float]) -> None:
    found = between(
        advised,
        acquires={'hit': 500, 'timeout': 500},
        waits={0.0: 500, 5.0: 500},
        uses={0.01: 500},
        used=10,
        **figures,
    )
    assert found['verdict'] == 'waits that no size cures'
    assert 'leak_threshold' in found['findings'][0]['action']
    assert found['recommended'] == {}


def test_bursts_are_not_cured_by_a_size(advised: Callable[..., Any]) -> None:
    found = between(
        advised, acquires={'hit': 1_000, 'waited': 4_000}, waits={0.0: 1_000, 0.05: 4_000}, uses={0.01: 5_000}
    )
    assert found['verdict'] == 'waits that no size cures'
    assert 'bursts' in found['findings'][0]['reason'] and '0.1 connections' in found['findings'][0]['reason']
    assert '60 connections' in found['findings'][0]['action']


def test_connects_that_fail_are_not_cured_by_a_size(advised: Callable[..., Any]) -> None:
    found = between(
        advised, acquires={'hit': 100, 'timeout': 50}, waits={0.0: 100, 5.0: 50}, uses={0.01: 100}, failed_creates=80
    )
    assert found['verdict'] == 'waits that no size cures'
    assert '80 connects failed and 0 succeeded' in found['findings'][0]['reason']


def test_a_breaker_that_opens_is_not_cured_by_a_size(advised: Callable[..., Any]) -> None:
    found = between(
        advised,
        acquires={'hit': 10_000, 'created': 30, 'waited': 50, 'rejected': 900},
        waits={0.0: 10_000, 0.05: 80},
        uses={0.01: 10_080},
        creates={0.05: 30},
        failed_creates=12,
    )
    assert found['verdict'] == 'waits that no size cures'
    assert '12 connects failed and 30 succeeded' in found['findings'][0]['reason']


def test_acquires_that_were_refused_count_as_those_that_wait(advised: Callable[..., Any]) -> None:
    acquires = {'hit': 100, 'waited': 40_000, 'rejected': 10_000}
    found = between(advised, acquires=acquires, waits={0.0: 100, 0.3: 40_000}, uses={0.25: 40_000})
    assert found['verdict'] == 'too small'
    assert found['recommended']['max_size'] == connections_for(10 * 50_100 / 40_100)


def test_the_own_limit_of_a_single_endpoint_counts(advised: Callable[..., Any]) -> None:
    acquires = {'hit': 100, 'waited': 9_900}
    found = between(advised, acquires=acquires, waits={0.0: 100, 0.3: 9_900}, uses={0.19: 10_000}, capacity=2)
    assert (found['verdict'], found['max_size']) == ('too small', 2)


def test_the_own_limit_of_the_busiest_endpoint_counts(advised: Callable[..., Any]) -> None:
    endpoints = {'db': {'hit': 100, 'waited': 9_900}, 'other': {'hit': 100}}
    own = 'gcpool_endpoint_max_connections{pool="orders",pool_endpoint="db"} 2\n'
    own += 'gcpool_endpoint_max_connections{pool="orders",pool_endpoint="other"} 10\n'
    text = page(endpoints=endpoints, waits={0.0: 200, 0.3: 9_900}, uses={0.19: 10_100}, capacity=12)
    found = advised(text + own, before=NOTHING)
    assert (found['verdict'], found['max_size']) == ('too small', 2)


def test_limits_of_connects_that_hold_acquires_up(advised: Callable[..., Any]) -> None:
    text = page(acquires={'hit': 100, 'waited': 50}, waits={0.0: 100, 0.5: 50}, uses={0.01: 150}, creates={0.2: 4})
    waiting = 'gcpool_waiters{pool="orders",pool_endpoint="db"} 20\n'
    waiting += 'gcpool_connect_waiters{pool="orders",pool_endpoint="db"} 15\n'
    found = advised(text + waiting, before=NOTHING)
    assert found['verdict'] == 'waits that no size cures'
    assert '15 of 20 acquires' in found['findings'][0]['reason']
    assert 'max_connecting' in found['findings'][0]['action']


def test_own_limits_of_several_endpoints_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endpoints = {'db': {'hit': 100}, 'other': {'hit': 100}}
    for capacity, is_told in ((20, False), (12, True)):
        (tmp_path / 'page').write_text(page(endpoints=endpoints, capacity=capacity))
        assert main(['advise', str(tmp_path / 'page')]) == 0
        assert ('limits of their own' in capsys.readouterr().out) is is_told


@pytest.mark.parametrize('acquires', [{}, {'hit': 5}])
def test_a_pool_in_no_use(advised: Callable[..., Any], acquires: dict[str, int]) -> None:
    assert between(advised, acquires=acquires, uses={0.01: 5})['verdict'] == 'not enough data'


def test_a_process_that_was_restarted_counts_from_its_start(advised: Callable[..., Any]) -> None:
    before = page(acquires={'hit': 1_000_000}, uses={0.01: 1_000_000}, started=START - 500)
    found = advised(page(acquires={'hit': 1_000}, uses={0.01: 1_000}), before=before)
    assert found['acquires'] == 1_000


# ---- Erlang's formula


@pytest.mark.parametrize(
    'size, in_use, share', [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.4092), (3, 3.0, 1.0), (5, 0.0, 0.0)]
)
def test_erlangs_formula(size: int, in_use: float, share: float) -> None:
    assert share_that_waits(size, in_use) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize('in_use', [0.0, 0.01, 1.0, 9.9, 100.0, 5_000.0])
def test_the_size_lets_hardly_any_wait(in_use: float) -> None:
    size = connections_for(in_use)
    assert size >= max(2, in_use) and share_that_waits(size, in_use) <= 0.01
    if 1 <= in_use <= 100:
        assert share_that_waits(size - 1, in_use) > 0.01


# ---- real pools


def test_a_real_pool_that_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = CollectorRegistry()
    gate = threading.Barrier(9)
    with ConnectionPool(FakeManager(), max_size=1, name='orders', registry=registry) as pool:

        def work() -> None:
            gate.wait(60)
            for _ in range(20):
                with pool.connection('db'):
                    threading.Event().wait(0.002)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        gate.wait(60)
        for thread in threads:
            thread.join(60)
        (tmp_path / 'page').write_bytes(generate_latest(registry))
    assert main(['advise', str(tmp_path / 'page')]) == 0
    out = capsys.readouterr().out
    assert out.startswith('orders: too small\n  160 acquires since the pool was built')
    assert 'max_size=' in out


# ---- where it reads from


class Site:
    """Serves texts by path; a path may be a function of the query."""

    def __init__(self) -> None:
        self.texts: dict[str, Any] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                text = site.texts.get(parts.path)
                if callable(text):
                    text = text(parse_qs(parts.query))
                self.send_response(200 if text is not None else 404)
                self.end_headers()
                self.wfile.write((text or '').encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join(60)


BUSY = {'acquires': {'hit': 500, 'waited': 4_500}, 'waits': {0.0: 500, 0.4: 4_500}, 'uses': {0.2: 5_000}}


def test_a_url_is_read_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.texts['/metrics'] = page(**BUSY)  # type: ignore[arg-type]
    for target in (site.url, site.url + '/metrics', site.url.removeprefix('http://')):
        assert main(['advise', target]) == 0
        assert capsys.readouterr().out.startswith('orders: too small')


def test_a_url_is_read_twice(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    pages = iter([page(acquires={'hit': 100}), page(acquires={'hit': 200}, uses={0.001: 100})])
    site.texts['/metrics'] = lambda query: next(pages)
    assert main(['advise', site.url, '--interval', '0.05', '--json']) == 0
    (found,) = json.loads(capsys.readouterr().out)['pools']
    assert (found['acquires'], found['since_start']) == (100, False)
    assert found['acquires_per_second'] == pytest.approx(100 / 0.05, rel=0.5)


def prometheus(now: str, before: str) -> Callable[[dict[str, list[str]]], str]:
    """Answer as Prometheus' API for instant queries does."""

    def answer(query: dict[str, list[str]]) -> str:
        at, wanted = float(query['time'][0]), query['query'][0]
        text = now if at > time.time() - 300 else before
        result = [
            {'metric': {**sample.labels, '__name__': sample.name, 'job': 'shop'}, 'value': [at, str(sample.value)]}
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith('gcpool_') == ('gcpool_' in wanted)
        ]
        return json.dumps({'status': 'success', 'data': {'resultType': 'vector', 'result': result}})

    return answer


@pytest.mark.parametrize('own', [None, 'prometheus_build_info 1\n', '<html>'])
@pytest.mark.parametrize('prefix', ['', '/prometheus'])
def test_a_prometheus_server_is_asked(
    site: Site, own: str | None, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = page(acquires={'hit': 1_000}), page(acquires={'hit': 4_600}, uses={0.01: 3_600})
    site.texts['/metrics'] = own
    site.texts[f'{prefix}/api/v1/query'] = prometheus(now, before)
    assert main(['advise', site.url + prefix, '--json']) == 0
    (found,) = json.loads(capsys.readouterr().out)['pools']
    assert (found['pool'], found['target']) == ('orders', {'job': 'shop'})
    assert (found['seconds'], found['acquires']) == (pytest.approx(3600), 3_600)
    assert main(['advise', site.url + prefix, '--json', '--interval', '600']) == 0
    assert json.loads(capsys.readouterr().out)['pools'][0]['seconds'] == pytest.approx(600)


def test_a_prometheus_server_without_pools(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.texts['/api/v1/query'] = prometheus('', '')
    assert main(['advise', site.url]) == 1
    assert 'this Prometheus has no metrics of a gcp pool' in capsys.readouterr().err


@pytest.mark.parametrize(
    'text, words',
    [
        ('', 'not a page of metrics'),
        ('<html><body>It works!</body></html>', 'not a page of metrics'),
        ('# TYPE up gauge\nup 1\n', 'no metrics of a gcp pool on this page'),
        ('gcpool_connections{pool="x" 1\n', 'not a page of metrics'),
    ],
)
def test_what_is_no_page_of_a_pool_is_told(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'page').write_text(text)
    assert main(['advise', str(tmp_path / 'page')]) == 1
    seen = capsys.readouterr()
    assert seen.out == '' and words in seen.err and seen.err.startswith(f'gcp advise: {tmp_path}/page: ')
    assert seen.err.count('\n') == 1


@pytest.mark.parametrize(
    'target, words',
    [
        ('/no/such/file', 'No such file or directory'),
        ('127.0.0.1:1', 'Connection refused'),
        ('http://127.0.0.1:1/metrics', 'Connection refused'),
        ('http://user:secret@127.0.0.1:1/', 'Connection refused'),
        ('ftp://example.org', 'neither http:// nor https://'),
        ('http://unknown.invalid', 'not known'),
    ],
)
def test_what_cannot_be_read_is_told(target: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['advise', target]) == 1
    err = capsys.readouterr().err
    assert words in err and 'secret' not in err and err.count('\n') == 1


def test_a_page_that_is_not_there(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['advise', site.url + '/nothing']) == 1
    assert '404' in capsys.readouterr().err


def test_pages_in_the_wrong_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, at in (('old', START), ('new', START + 10)):
        (tmp_path / name).write_text(page(acquires={'hit': 100}))
        os.utime(tmp_path / name, (at, at))
    assert main(['advise', str(tmp_path / 'new'), str(tmp_path / 'old')]) == 1
    assert 'name the earlier one first' in capsys.readouterr().err
    assert main(['advise', str(tmp_path / 'new'), str(tmp_path / 'old'), '--interval', '5']) == 0


def test_pages_of_different_pools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ('one', 'other'):
        (tmp_path / name).write_text(page(acquires={'hit': 100}, pool=name))
    assert main(['advise', str(tmp_path / 'one'), str(tmp_path / 'other'), '--interval', '5']) == 1
    assert 'no pool is on both pages' in capsys.readouterr().err


@pytest.mark.parametrize('arguments', [[], ['a', 'b', 'c'], ['a', '--interval', '0'], ['a', '--interval', 'x']])
def test_a_bad_argument_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(['advise', *arguments])
    assert stopped.value.code == 2
    assert 'usage' in capsys.readouterr().err


def test_standard_input_and_a_reader_that_leaves() -> None:
    command = [sys.executable, '-m', 'gcp', 'advise', '-']
    text = page(**BUSY)  # type: ignore[arg-type]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('orders: too small')
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(text.encode())
        process.stdin.close()
        assert process.stderr.read() == b''
        assert process.wait(30) == 1


def test_names_do_not_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'page').write_text(page(acquires={'hit': 100}, pool='a\x1b[31m'))
    assert main(['advise', str(tmp_path / 'page')]) == 0
    assert '\x1b' not in capsys.readouterr().out


# ---- the guide

GUIDE = Path(__file__).parents[2] / 'docs' / 'sizing.md'


def blocks(language: str) -> list[str]:
    text = GUIDE.read_text() if GUIDE.exists() else ''
    return re.findall(rf'^```{language}\n(.*?)^```', text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not GUIDE.exists(), reason='no docs beside the tests: this is not a checkout')
def test_the_guide_shows_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    acquires = {'hit': 5_000, 'waited': 44_000, 'timeout': 1_000}
    after = page(acquires=acquires, waits={0.0: 5_000, 0.4: 44_000, 5.0: 1_000}, uses={0.2: 49_000}, used=10)
    for name, text, at in (('before.txt', NOTHING, START), ('after.txt', after, START + 1000)):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (at, at))
    monkeypatch.chdir(tmp_path)
    command, _, shown = blocks('console')[0].partition('\n')
    assert main(command.removeprefix('$ python -m gcp ').split()) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize('code', blocks('python'), ids=range(len(blocks('python'))))
def test_each_example_of_the_guide_runs(code: str) -> None:
    exec(code, {})


@pytest.mark.skipif(not GUIDE.exists(), reason='no docs beside the tests: this is not a checkout')
def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    text = ' '.join(GUIDE.read_text().split())
    assert 'less than 1 in 100' in text and 'at least 1 acquire in 100' in text and rules.TARGET == 0.01
    assert 'of a millisecond or more' in text and rules.SHORT_WAIT == 0.001
    assert 'at least 70 % of a cap' in text and rules.BUSY == 0.7
    assert 'take half of the time' in text and rules.MAIN_CAUSE == 0.5
    assert 'at least 20 % of the acquires' in text and rules.MOST_WAIT == 0.2
    assert 'at least 1 acquire in 10' in text and rules.MANY_CREATIONS == 0.1
    assert 'five times what is needed or open, and 15 more' in text and rules.LARGE_FACTOR == 5
    assert rules.LARGE_EXCESS == 15
    assert '100 times the mean use and more than 10 s' in text and (rules.LONG_FACTOR, rules.LONG_USE) == (100, 10)
    assert 'Fewer than 20 acquires' in text and rules.ENOUGH == 20
    assert 'the last hour' in text and source.LOOK_BACK == 3600
    for reason in rules.CURES:
        assert f'`{reason}`' in text
    for verdict in (*rules.ORDER, rules.FINE):
        assert verdict in text, verdict
