"""Every program in the README and in the pages passes the type checkers, with the stubs of asyncpg and without."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from snippets import ROOT, snippets

if not (ROOT / 'docs').exists():
    pytest.skip('no docs beside the tests: this is not a checkout', allow_module_level=True)

pytestmark = pytest.mark.timeout(900)

#: packages of types that users of a driver may have or not
STUBS = ('asyncpg-stubs', 'asyncpg_stubs')

#: what a user would write to annotate a pool
ANNOTATED = """
import socket

import gcp.asyncio
from gcp.contrib.socket import TcpSocketConnectionManager
from gcp.contrib.socket_async import TcpSocketConnectionManager as AsyncTcpSocketConnectionManager
from gcp.threading import ConnectionPool, Lease

pool: ConnectionPool[tuple[str, int], socket.socket] = ConnectionPool(TcpSocketConnectionManager(), max_size=4)


def ask(pool: ConnectionPool[tuple[str, int], socket.socket], host: str) -> bytes:
    lease: Lease[socket.socket] = pool.connection((host, 7))
    with lease as conn:
        return conn.recv(100)


async def ask_there(pool: gcp.asyncio.ConnectionPool[tuple[str, int], socket.socket], host: str) -> int:
    lease: gcp.asyncio.Lease[socket.socket] = pool.connection((host, 7))
    async with lease as conn:
        return conn.fileno()


ask(pool, 'localhost')
ask(ConnectionPool(TcpSocketConnectionManager()), 'localhost')
there: gcp.asyncio.ConnectionPool[tuple[str, int], socket.socket] = gcp.asyncio.ConnectionPool(
    AsyncTcpSocketConnectionManager()
)
pool.reconfigure(max_size=5, idle_timeout=None)
"""

#: what the checkers must refuse, one line each
WRONG = """
from gcp.contrib.socket import TcpSocketConnectionManager
from gcp.threading import ConnectionPool
pool = ConnectionPool(TcpSocketConnectionManager())
ConnectionPool(TcpSocketConnectionManager(), max_sizes=5)
ConnectionPool(TcpSocketConnectionManager(), registry='default')
pool.reconfigure(max_sizes=5)
pool.acquire('localhost')
"""
REFUSED = (5, 6, 7, 8)


@pytest.fixture(scope='module')
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write each program to a file of its own."""
    folder = tmp_path_factory.mktemp('programs')
    for snippet in snippets():
        (folder / f'{snippet.name}.py').write_text(snippet.code, encoding='utf-8')
    (folder / 'annotated.py').write_text(ANNOTATED, encoding='utf-8')
    assert len(list(folder.iterdir())) > 50
    return folder


@pytest.fixture(scope='module', params=['with stubs', 'without stubs'])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment of links to the packages that are installed, with the stubs of drivers or without them."""
    folder = tmp_path_factory.mktemp('environment')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    packages = folder.joinpath('lib', f'python3.{sys.version_info[1]}', 'site-packages')
    for name in {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}:
        for path in Path(name).iterdir():
            if path.suffix != '.pth' and (request.param == 'with stubs' or not path.name.startswith(STUBS)):
                packages.joinpath(path.name).symlink_to(path)
    packages.joinpath('gcp').symlink_to(ROOT / 'gcp')
    folder.joinpath('mypy.ini').write_text('[mypy]\npython_version = 3.10\n')
    return folder


def mypy(environment: Path, *files: Path) -> list[str]:
    pytest.importorskip('mypy')
    done = subprocess.run(
        [
            *(
                sys.executable,
                '-m',
                'mypy',
                '--strict',
                '--config-file',
                environment / 'mypy.ini',
                '--no-error-summary',
            ),
            *('--python-executable', environment / 'bin' / 'python', '--cache-dir', environment / 'mypy', *files),
        ],
        cwd=environment,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ': note: ' not in line]


def pyright(environment: Path, *files: Path) -> list[str]:
    """Run basedpyright, which brings its own Node.js, as pyright in strict mode."""
    program = shutil.which('basedpyright', path=os.fspath(Path(sys.executable).parent))
    if program is None:
        pytest.skip('needs basedpyright')
    settings = environment / 'pyrightconfig.json'
    settings.write_text(
        json.dumps(
            {
                'typeCheckingMode': 'strict',
                'pythonVersion': '3.10',
                'venvPath': str(environment.parent),
                'venv': environment.name,
                'include': [str(file) for file in files],
            }
        )
    )
    done = subprocess.run([program, '--project', settings, '--outputjson'], cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report['summary']['filesAnalyzed'] == len(files), done
    return [
        f'{Path(one["file"]).name}:{one["range"]["start"]["line"] + 1}: {one["severity"]}: {one["message"]}'
        for one in report['generalDiagnostics']
    ]


def test_each_program_passes_mypy(environment: Path, programs: Path) -> None:
    assert mypy(environment, *sorted(programs.iterdir())) == []


def test_each_program_passes_pyright(environment: Path, programs: Path) -> None:
    files = sorted(programs.iterdir())
    if not list(environment.glob('lib/*/site-packages/asyncpg-stubs')):
        # pyright infers the types of asyncpg from its source then, as far as it gets: its methods are partially unknown
        files = [file for file in files if 'gcp.contrib.asyncpg import' not in file.read_text(encoding='utf-8')]
    assert pyright(environment, *files) == []


@pytest.mark.parametrize('check', [mypy, pyright])
def test_what_is_wrong_is_refused(environment: Path, check: object, tmp_path: Path) -> None:
    file = tmp_path / 'wrong.py'
    file.write_text(WRONG)
    assert callable(check)
    found = {int(match[1]) for line in check(environment, file) if (match := re.search(r'wrong\.py:(\d+)', line))}
    assert found == set(REFUSED)
