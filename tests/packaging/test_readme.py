"""The README: all of its examples run, and its figures, links and names are those of the project."""

from __future__ import annotations

import ftplib
import importlib.metadata
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gcp.threading

ROOT = next(path for path in Path(__file__).resolve().parents if (path / 'pyproject.toml').exists())
README = (ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else ''
EXAMPLES = re.findall(r'^```python\n(.*?)^```', README, flags=re.MULTILINE | re.DOTALL)
DATABASE_EXAMPLES = [code for code in EXAMPLES if '.internal' in code]

pytestmark = pytest.mark.skipif(not README, reason='no README beside the tests: this is not a checkout')


# --- the examples ---


@pytest.fixture(scope='module')
def orders() -> Iterator[str]:
    """Start a PostgreSQL with the database of the examples; yield the directory of its socket."""
    psycopg = pytest.importorskip('psycopg')
    from gcp.demo.server import ServerError, serve

    try:
        with serve() as server:
            with psycopg.connect(**server.parameters, autocommit=True) as conn:
                conn.execute('CREATE DATABASE orders')
            with psycopg.connect(**{**server.parameters, 'dbname': 'orders'}, autocommit=True) as conn:
                conn.execute('CREATE TABLE orders AS SELECT generate_series(1, 42) AS id')
            yield str(server.directory)
    except ServerError as error:
        (pytest.fail if os.environ.get('GCP_REQUIRE_SERVERS') else pytest.skip)(str(error))


@pytest.mark.parametrize('code', DATABASE_EXAMPLES, ids=range(len(DATABASE_EXAMPLES)))
def test_the_database_examples_run_on_a_real_server(code: str, orders: str, script: Callable[..., Any]) -> None:
    if 'asyncpg' in code:
        pytest.importorskip('asyncpg')
    local, replaced = re.subn(r'db-\d\.internal', orders, code)
    assert replaced == 2
    shown = script(local, env={'PGUSER': 'postgres'}).quietly()
    assert shown.strip() in ('(42,)', '42')


def test_the_asyncio_example_passes_mypy(tmp_path: Path) -> None:
    pytest.importorskip('mypy')
    pytest.importorskip('asyncpg')
    try:
        importlib.metadata.version('asyncpg-stubs')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('asyncpg-stubs is not installed')
    example = tmp_path / 'example.py'
    example.write_text(next(code for code in DATABASE_EXAMPLES if 'asyncpg' in code))
    checked = subprocess.run(
        [sys.executable, '-m', 'mypy', '--strict', '--config-file', ROOT / 'pyproject.toml', example],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


class FtpServer(socketserver.StreamRequestHandler):
    """Answer what a login and a NOOP need."""

    def handle(self) -> None:
        self.wfile.write(b'220 ready\r\n')
        for line in self.rfile:
            self.wfile.write(b'230 logged in\r\n' if line.startswith(b'USER') else b'200 ok\r\n')


def test_the_manager_in_the_example_connects_and_is_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {}
    exec(EXAMPLES[-1], namespace)
    pool = namespace['pool']
    assert isinstance(pool, gcp.threading.ConnectionPool)
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), FtpServer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(ftplib.FTP, 'port', server.server_address[1])
        with pool:
            for _ in range(2):
                with pool.connection('127.0.0.1', timeout=10.0) as ftp:
                    assert ftp.voidcmd('NOOP') == '200 ok'
            assert pool.stats().created == 1
        server.shutdown()


def test_no_example_is_left_out() -> None:
    assert [*DATABASE_EXAMPLES, EXAMPLES[-1]] == EXAMPLES
    assert len(EXAMPLES) == 3


# --- the rest ---


def test_the_figures_of_speed_are_those_of_the_tables() -> None:
    page = (ROOT / 'docs' / 'performance.md').read_text()
    tables = re.search('<!-- made by .*: begin -->(.*)<!-- made by .*: end -->', page, flags=re.DOTALL)
    assert tables
    section = re.search(r'^## Speed\n(.*?)^## ', README, flags=re.MULTILINE | re.DOTALL)
    assert section
    figures = re.findall(r'\d[\d.,]* (?:ns|µs|%)|\d+\.\d+ times|(?<=index )\d\.\d\d', section[1])
    assert len(figures) >= 8
    for figure in figures:
        assert re.search(rf'(?<![\d.]){re.escape(figure.replace("times", "x"))}', tables[1]), figure


def test_the_commands_for_a_fresh_clone_are_targets_of_make() -> None:
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)
    named = re.findall(r'(?:\$ |`)make ([a-z-]+)', README)
    assert {'demo', 'test'} <= set(named) <= set(targets)


def test_the_extras_that_it_installs_are_those_of_the_package() -> None:
    extras = re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text(), flags=re.MULTILINE)
    named = re.findall(r"pip install '(?:\.|gcpool)\[([\w,]+)\]'", README)
    assert named
    assert set(','.join(named).split(',')) <= set(extras)


def test_all_modules_of_contrib_are_in_the_table() -> None:
    named = {
        name
        for cell in re.findall(r'^\| (`\w+`[^|]*) \|', README, flags=re.MULTILINE)
        for name in re.findall(r'`(\w+)`', cell)
    }
    assert named == {path.stem for path in (ROOT / 'contrib').glob('[!_]*.py')}


def test_all_files_it_points_to_are_there() -> None:
    for target in re.findall(r'\]\(([\w./-]+)', README):
        assert (ROOT / target).exists(), target
