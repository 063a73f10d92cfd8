"""What the guide to managers shows is what there is."""

from __future__ import annotations

import importlib
import inspect
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gcp.testing.rules import RULES

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / 'docs' / 'managers.md').read_text() if (ROOT / 'docs').exists() else ''

pytestmark = pytest.mark.skipif(not GUIDE, reason='no docs beside the tests: this is not a checkout')


class Memcached(socketserver.ThreadingTCPServer):
    """Tells its version, as often as it is asked."""

    daemon_threads = True
    allow_reuse_address = True

    class RequestHandlerClass(socketserver.BaseRequestHandler):  # type: ignore[assignment]
        def handle(self) -> None:
            self.server.conns[self.client_address] = self.request  # type: ignore[attr-defined]
            while self.request.recv(1024):
                self.request.sendall(b'VERSION 1.6.18\r\n')

    def __init__(self) -> None:
        self.conns: dict[Any, socket.socket] = {}
        super().__init__(('127.0.0.1', 0), self.RequestHandlerClass)

    def kill(self, conn: socket.socket) -> None:
        self.conns[conn.getsockname()].shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    with Memcached() as memcached, socket.create_server(('127.0.0.1', 0)) as silent:
        threading.Thread(target=memcached.serve_forever, kwargs={'poll_interval': 0.01}).start()
        with socket.create_server(('127.0.0.1', 0)) as refused:
            nobody = refused.getsockname()
        yield SimpleNamespace(
            address=memcached.server_address, kill=memcached.kill, silent=silent.getsockname(), refused=nobody
        )
        memcached.shutdown()


def examples() -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', GUIDE, flags=re.MULTILINE | re.DOTALL)


def test_the_example_keeps_what_a_pool_builds_on(
    server: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    namespace: dict[str, Any] = {}
    for code in examples():
        exec(code, namespace)
    namespace['test_my_manager'](namespace['MemcachedConnectionManager'](), server)
    assert '12 rules passed, 2 skipped' in capsys.readouterr().out
    with namespace['pool'].connection(server.address, timeout=5) as conn:
        namespace['ask'](conn)
    namespace['pool'].close()


def test_the_example_is_no_longer_than_promised() -> None:
    body = examples()[0].partition('class ')[2].partition('\n\n\n')[0]
    assert len([line for line in body.splitlines() if line]) <= 30


def test_all_rules_are_in_the_table() -> None:
    section = GUIDE.partition('## Check it with check_manager')[2].partition('\n## ')[0]
    firsts = [line.split('|')[1] for line in section.splitlines() if line.startswith('| `')]
    names = re.findall(r'`(\w+)`', ' '.join(firsts))
    assert names == [rule.name for rule in RULES] + ['descriptors', 'threads']


def rows() -> list[list[str]]:
    section = GUIDE.partition('## Managers in this package')[2].partition('\n## ')[0]
    lines = [line for line in section.splitlines() if line.startswith('| `')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


@pytest.mark.parametrize('row', rows(), ids=lambda row: f'{row[0]}.{row[1]}'.replace('`', ''))
def test_each_manager_is_as_the_table_says(row: list[str]) -> None:
    name, cls, extra, _, _, options = row
    try:
        module = importlib.import_module(f'gcp.contrib.{name.strip("`")}')
    except ImportError as error:
        assert extra and f'pip install gcpool[{extra.strip("`")}]' in str(error)
        pytest.skip(str(error))
    assert list(inspect.signature(getattr(module, cls.strip('`'))).parameters) == re.findall(r'`(\w+)`', options)


def test_no_manager_is_missing_from_the_table() -> None:
    listed = {(row[0].strip('`'), row[1].strip('`')) for row in rows()}
    for path in (ROOT / 'contrib').glob('[a-z]*.py'):
        for cls in re.findall(r'^class ([A-Z]\w*ConnectionManager)\b', path.read_text(), flags=re.MULTILINE):
            assert (path.stem, cls) in listed


def test_all_files_it_points_to_are_there() -> None:
    for target in re.findall(r'\]\(([\w./-]+)', GUIDE):
        assert (ROOT / 'docs' / target).exists(), target
