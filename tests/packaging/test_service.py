"""examples/service.py as those who deploy it meet it: under real servers, in several processes, with many requests at
once, a process that is killed, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gcp.demo.programs import is_installed
from gcp.demo.server import Server, ServerError, serve

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / 'examples'
REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason='no examples beside the tests: this is not a checkout')

REQUESTS = 40
PATIENCE = 60.0


def missing(reason: str) -> None:
    pytest.fail(reason) if REQUIRED else pytest.skip(reason)


def needed(*names: str) -> None:
    """Skip without these packages."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        missing(f'needs {", ".join(absent)}')


@pytest.fixture(scope='module')
def postgres() -> Iterator[Server]:
    needed('psycopg2', 'asyncpg')
    try:
        with serve() as server:
            yield server
    except ServerError as error:
        missing(str(error))


@pytest.fixture
def base() -> Iterator[Path]:
    """A place for temporary files in which nothing may be left, nor any process."""
    directory = Path(tempfile.mkdtemp(prefix='t', dir='/tmp'))
    directory.chmod(0o755)
    yield directory
    left = list(directory.iterdir()), processes_in(directory)
    shutil.rmtree(directory, ignore_errors=True)
    assert left == ([], [])


def processes_in(directory: Path) -> list[str]:
    """The processes whose temporary files are in a directory."""
    found, mark = [], f'TMPDIR={directory}\0'
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if mark in (process / 'environ').read_text(errors='replace'):
                found.append((process / 'cmdline').read_text().replace('\0', ' '))
    return found


@contextlib.contextmanager
def running(base: Path, *command: str | Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(('PG', 'OTEL_', 'SERVICE_'))}
    process = subprocess.Popen(
        [sys.executable, '-X', 'dev', *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd='/',
        env={**inherited, 'TMPDIR': str(base), 'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1', **env},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too: they hold the pipes that are read to their end
        process.communicate()


def await_line(stream: Any, pattern: str) -> re.Match[str]:
    seen = []
    for line in stream:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f'ended without a line like {pattern}: {seen}')


def without_slow_steps(err: str) -> str:
    """Leave out that asyncio in development mode tells of what took more than 0.1 s: the machine is shared."""
    return re.sub(r'^Executing <.*> took \d+\.\d+ seconds\n', '', err, flags=re.MULTILINE)


def get(url: str) -> tuple[int, str]:
    """Return the status and the body of a page."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answers(root: str) -> bool:
    try:
        return get(f'{root}/health')[0] == 200
    except urllib.error.URLError:
        return False


def ask_for_orders(root: str) -> None:
    """Ask at the same time for as much as there are customers, and check each answer."""
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: get(f'{root}/orders?customer={number}'), range(REQUESTS)))
    assert [(status, json.loads(body)) for status, body in answers] == [
        (200, [[id, id * 100] for id in range(1, number + 1)]) for number in range(REQUESTS)
    ]


def metrics(root: str, **where: str) -> dict[str, float]:
    """Add the series of each name up that have these labels."""
    found: dict[str, float] = {}
    status, page = get(f'{root}/metrics')
    assert status == 200, page
    for family in text_string_to_metric_families(page):
        for name, labels, value, *_ in family.samples:
            if all(labels.get(label) == wanted for label, wanted in where.items()):
                found[name] = found.get(name, 0) + value
    return found


def await_that(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, 'it never was'
        time.sleep(0.05)


def check_metrics(page: str) -> None:
    """Have Prometheus judge a page."""
    if shutil.which('promtool') is None:
        return
    done = subprocess.run(['promtool', 'check', 'metrics'], input=ours(page), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def ours(page: str) -> str:
    """Return the lines of the pools."""
    return ''.join(line + '\n' for line in page.splitlines() if 'gcpool_' in line)


def check_the_service(root: str) -> None:
    """Check what any of the servers has to answer."""
    ask_for_orders(root)
    for wrong in ('', '?customer=x', '?customer=-1'):
        assert get(f'{root}/orders{wrong}')[0] == 400
    assert get(f'{root}/nothing') == (404, '{"error": "not found"}')
    status, body = get(f'{root}/health')
    health = json.loads(body)
    assert (status, health['status'], health['waiting']) == (200, 'ok', 0)
    assert 1 <= health['connections']['idle'] <= 4
    status, body = get(f'{root}/debug/pools?format=json')
    [pool] = json.loads(body)['pools']
    assert (status, pool['name'], pool['limits']['max_size']) == (200, 'orders', 4)
    assert get(f'{root}/debug/pools')[0] == 200


@pytest.mark.parametrize('kind', ['wsgi', 'asgi'])
def test_it_runs_by_itself(base: Path, kind: str) -> None:
    needed('psycopg2', 'asyncpg', *['uvicorn'] * (kind == 'asgi'))
    if not is_installed():
        missing('needs PostgreSQL')
    with running(base, '-W', 'error', EXAMPLES / 'service.py', kind, '--port', '0') as process:
        root = await_line(process.stdout, r'(http://127.0.0.1:\d+)/orders')[1]
        check_the_service(root)
        assert metrics(root, pool='orders')['gcpool_acquires_total'] == REQUESTS
        check_metrics(get(f'{root}/metrics')[1])
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, without_slow_steps(err)) == (0, '')


@pytest.mark.parametrize('kind', ['wsgi', 'asgi'])
def test_spans_of_the_pool_are_children_of_the_request(base: Path, postgres: Server, kind: str) -> None:
    needed('opentelemetry.sdk', *['uvicorn'] * (kind == 'asgi'))
    with running(
        base,
        EXAMPLES / 'service.py',
        kind,
        '--port',
        '0',
        '--host',
        str(postgres.directory),
        PGUSER='postgres',
        PGDATABASE='postgres',
        SERVICE_SPANS='console',
    ) as process:
        root = await_line(process.stdout, r'(http://127.0.0.1:\d+)/orders')[1]
        assert get(f'{root}/orders?customer=1') == (200, '[[1, 100]]')
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    spans = {span['name']: span for span in decoded(err)}
    request = spans['GET /orders']['context']['span_id']
    for name in ('wait_for_connection orders', 'create orders'):
        assert spans[name]['parent_id'] == request
    assert [link['context']['span_id'] for link in spans['wait_for_connection orders']['links']] == [
        spans['create orders']['context']['span_id']
    ]


def decoded(text: str) -> Iterator[dict[str, Any]]:
    """Read one JSON object after another."""
    decoder, at = json.JSONDecoder(), text.find('{')
    while at >= 0:
        found, end = decoder.raw_decode(text, at)
        yield found
        at = text.find('{', end)


@pytest.mark.parametrize('kind', ['wsgi', 'asgi'])
def test_without_a_server_it_says_so_and_stays_healthy(base: Path, kind: str) -> None:
    needed('psycopg2', 'asyncpg', *['uvicorn'] * (kind == 'asgi'))
    with running(base, EXAMPLES / 'service.py', kind, '--port', '0', '--host', str(base / 'none')) as process:
        root = await_line(process.stdout, r'(http://127.0.0.1:\d+)/orders')[1]
        status, body = get(f'{root}/orders?customer=1')
        assert status == 503 and 'Error' in json.loads(body)['error']
        assert get(f'{root}/health')[0] == 200
        assert metrics(root, hook='create', outcome='error')['gcpool_hook_calls_total'] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@contextlib.contextmanager
def gunicorn(base: Path, postgres: Server, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    needed('gunicorn')
    with running(
        base,
        '-m',
        'gunicorn',
        '-c',
        EXAMPLES / 'gunicorn.conf.py',
        SERVICE_BIND='127.0.0.1:0',
        PGHOST=str(postgres.directory),
        PGUSER='postgres',
        PGDATABASE='postgres',
        **env,
    ) as process:
        root = await_line(process.stderr, r'Listening at: (http://127.0.0.1:\d+)')[1]
        await_that(lambda: len(workers(root)) == 2)  # before, they might not hear that it is over
        yield process, root


def workers(root: str) -> set[int]:
    """Ask which processes answer."""
    with ThreadPoolExecutor(8) as threads:
        return {json.loads(body)['pid'] for _, body in threads.map(get, [f'{root}/health'] * 16)}


def test_several_processes_show_one_page_that_outlives_each_of_them(base: Path, postgres: Server) -> None:
    with gunicorn(base, postgres) as (process, root):
        ask_for_orders(root)
        await_that(lambda: metrics(root).get('gcpool_releases_total') == REQUESTS)
        seen = metrics(root)
        for name in ('acquires_total', 'acquire_wait_seconds_count', 'use_seconds_count'):
            assert seen[f'gcpool_{name}'] == REQUESTS
        created = metrics(root, hook='create', outcome='ok')['gcpool_hook_calls_total']
        assert metrics(root, state='idle')['gcpool_connections'] == created <= 8
        assert seen['gcpool_max_connections_per_endpoint'] in (4, 8)  # of each process that was asked
        assert not any('pool_endpoint=' in line for line in get(f'{root}/metrics')[1].splitlines())
        check_metrics(get(f'{root}/metrics')[1])

        victim = next(iter(workers(root)))
        os.kill(victim, signal.SIGKILL)
        await_that(lambda: len(workers(root) - {victim}) == 2)
        assert metrics(root)['gcpool_acquires_total'] == REQUESTS
        ask_for_orders(root)
        await_that(lambda: metrics(root)['gcpool_releases_total'] == 2 * REQUESTS)
        await_that(lambda: metrics(root, state='idle')['gcpool_connections'] == backends(postgres))

        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert not re.search(r'Traceback|Warning', err), err  # what gunicorn says of the kill is well
    await_that(lambda: backends(postgres) == 0)


def backends(postgres: Server) -> int:
    """Ask the server how many connections it has from the service."""
    from gcp.demo.databases import connect

    with contextlib.closing(connect(postgres.parameters)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'service'")
        return int(cursor.fetchone()[0])


def test_workers_of_uvicorn(base: Path, postgres: Server, tmp_path: Path) -> None:
    needed('uvicorn')
    with running(
        base,
        '-m',
        'uvicorn',
        '--app-dir',
        EXAMPLES,
        '--factory',
        'service:make_asgi',
        '--workers',
        '2',
        '--port',
        '0',
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
        PGHOST=str(postgres.directory),
        PGUSER='postgres',
        PGDATABASE='postgres',
    ) as process:
        root = await_line(process.stderr, r'running on (http://127.0.0.1:\d+)')[1]
        for _ in range(2):
            await_line(process.stderr, 'startup complete')
        await_that(lambda: answers(root))  # a worker says so before it listens
        await_that(lambda: len(workers(root)) == 2)
        ask_for_orders(root)
        await_that(lambda: metrics(root).get('gcpool_releases_total') == REQUESTS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_directory_of_one_s_own_is_emptied_and_kept(base: Path, postgres: Server, tmp_path: Path) -> None:
    (tmp_path / 'counter_1.db').write_bytes(b'of another run')
    (tmp_path / 'mine').touch()
    with gunicorn(base, postgres, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as (process, root):
        assert get(f'{root}/orders?customer=1')[0] == 200
        await_that(lambda: metrics(root).get('gcpool_acquires_total') == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert (tmp_path / 'mine').exists() and not (tmp_path / 'counter_1.db').exists()
    assert not list(tmp_path.glob('gauge_live*'))


def test_spans_are_recorded_in_each_process(base: Path, postgres: Server) -> None:
    needed('opentelemetry.sdk')
    with gunicorn(base, postgres, SERVICE_SPANS='console') as (process, root):
        assert get(f'{root}/orders?customer=1')[0] == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    for name in ('GET /orders', 'wait_for_connection orders', 'create orders'):
        assert f'"name": "{name}"' in err
