"""The examples as their reader meets them: programs that run, with a server of their own or one that they are told of,
say what is expected, and leave nothing behind, after a Ctrl-C neither."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import select
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from processes import processes_in

from gcp.demo.server import Server, ServerError, serve
from gcp.testing import check_manager

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / 'examples'
PREDECESSOR = Path(__file__).with_name('predecessor')
REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason='no examples beside the tests: this is not a checkout')

SERVED = r'\d+ connections served {} acquires\n'
WEB = r'<ConnectionPool web: [23] idle, 0 used, 0 creating, 0 waiting; closed=False>\n'
POSTGRES = r'squares: 0 1 4 .* 225\norders: 100\nfailed: division by zero\n{}orders: 100\n'
REDIS = r"database 0: b'15'\ndatabase 1: b'15'\n[2-4] connections served 32 acquires\n"
HOOKS = (
    r'(\S+:\d+ connected: \d+ in \S+ s\n\S+:\d+ disposed of: \d+\n(\S+:\d+ found dead: \d+\n)?'
    r'\S+:\d+ used: {} in \S+ s\n){{{}}}acquires: .*\nclosed: .*\n'
)

#: What each says that starts its own server.
SAID = {
    'async_pg_pool.py': POSTGRES.format('cancelled: a query that took too long\n') + SERVED.format(20),
    'async_pool.py': r'(\S+ says HTTP/1\.1 200 OK and (16|22) bytes, 20 times\n){2}' + SERVED.format(40) + WEB,
    'custom_manager.py': REDIS,
    'manager_hooks.py': HOOKS.format(10, 2),
    'pg_pool.py': POSTGRES.format('') + SERVED.format(19),
    'quickstart.py': r'hello 0, .*, hello 7\n<ConnectionPool echo: .*>\n[12] connections served 8 acquires\n',
    'ssl_pool.py': r'localhost:\d+ \(TLSv1\.3, ALPN http/1\.1\) says 200 OK and 19 bytes\n' + SERVED.format(12),
    'tcp_pool.py': r'(\S+ says 200 OK and (16|22) bytes, 10 times\n){2}' + SERVED.format(20) + WEB,
}

#: How to run Python so that it complains of whatever is not closed. (Development mode does, too; but in it, asyncio
#: complains of a slow machine.)
STRICT = ('-W', 'error')

WITH_POSTGRES = ('async_pg_pool.py', 'pg_pool.py')


@pytest.fixture
def base() -> Iterator[Path]:
    """A place for temporary files in which nothing may be left, nor any process."""
    directory = Path(tempfile.mkdtemp(prefix='t', dir='/tmp'))
    directory.chmod(0o755)
    yield directory
    left = list(directory.iterdir()), processes_in(directory)
    for pid in left[1]:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)
    assert left == ([], {})


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the end of an example. One that hangs shows the stacks of its threads."""
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        _, err = process.communicate(timeout=120)
        pytest.fail(f'the example does not end:\n{err}')


@contextlib.contextmanager
def running(
    base: Path,
    example: str,
    *options: object,
    mode: Sequence[str] = STRICT,
    **env: str,
) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    process = subprocess.Popen(
        [sys.executable, '-X', 'faulthandler', *mode, EXAMPLES / example, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=base,
        start_new_session=True,
        env={**os.environ, 'TMPDIR': str(base), 'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1', **env},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()  # not read to the end: a server that was left behind may hold it open


def run(base: Path, example: str, *options: object, **env: str) -> tuple[int, str, str]:
    """Give an example's exit status, and what it said on stdout and stderr."""
    with running(base, example, *options, **env) as process:
        out, err = ended(process)
        return process.returncode, out, err


def says(base: Path, example: str, expected: str, *options: object, **env: str) -> re.Match[str]:
    status, out, err = run(base, example, *options, **env)
    assert (status, err) == (0, ''), (status, out, err)
    said = re.fullmatch(expected, out)
    assert said, out
    return said


def missing(reason: str) -> None:
    pytest.fail(reason) if REQUIRED else pytest.skip(reason)


@pytest.fixture(scope='module')
def postgres() -> Iterator[Server]:
    for name in ('psycopg2', 'asyncpg'):
        if not REQUIRED:
            pytest.importorskip(name)
    try:
        with serve() as server:
            yield server
    except ServerError as error:
        missing(str(error))


@pytest.fixture
def redis(base: Path) -> Iterator[int]:
    """The port of a Redis server."""
    if shutil.which('redis-server') is None:
        missing('no redis-server')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port: int = free.getsockname()[1]
    command = ['redis-server', '--bind', '127.0.0.1', '--port', str(port), '--save', '', '--requirepass', 'swordfish']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=base) as process:
        try:
            assert process.stdout is not None
            assert any('eady to accept connections' in line for line in process.stdout)
            yield port
        finally:
            process.kill()


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Web(BaseHTTPRequestHandler):
    """As the standard library has it, with a header here and a flush there."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'.' * 1000)

    def log_message(self, *args: Any) -> None:
        pass


class LenientWeb(Web):
    """Overlooks an empty line before a request: RFC 9112, section 2.2."""

    def parse_request(self) -> bool:
        while self.raw_requestline == b'\r\n':
            self.raw_requestline = self.rfile.readline()
        return super().parse_request()


class ChunkedWeb(Web):
    """Does not know beforehand how much it has to say."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        self.wfile.write(b'%x\r\n%s\r\n' % (500, b'.' * 500) * 2 + b'0\r\n\r\n')


class OldWeb(Web):
    """Ends each connection after its answer."""

    protocol_version = 'HTTP/1.0'


@contextlib.contextmanager
def web(handler: type[Web], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve a port."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with served(server) as port:
        yield port


@contextlib.contextmanager
def served(server: socketserver.TCPServer) -> Iterator[int]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """Certificates to trust, and the context of a server that has one of theirs."""
    trustme = pytest.importorskip('trustme')
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(tmp_path / 'ca.pem')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert('localhost', '127.0.0.1').configure_cert(context)
    return tmp_path / 'ca.pem', context


class TestWithAServerOfItsOwn:
    @pytest.mark.parametrize('example', [name for name in SAID if name not in WITH_POSTGRES])
    def test_it_says_what_it_should(self, base: Path, example: str) -> None:
        says(base, example, SAID[example])

    @pytest.mark.parametrize('example', WITH_POSTGRES)
    def test_postgres(self, base: Path, example: str, postgres: Server) -> None:
        says(base, example, SAID[example])

    def test_a_stand_in_where_there_is_no_redis(self, base: Path) -> None:
        says(base, 'custom_manager.py', REDIS, PATH='')

    def test_a_certificate_where_there_is_no_openssl(self, base: Path) -> None:
        pytest.importorskip('trustme')
        says(base, 'ssl_pool.py', SAID['ssl_pool.py'], PATH='')

    def test_a_word_where_no_certificate_can_be_made(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv('PATH', '')
        monkeypatch.setitem(sys.modules, 'trustme', None)
        make_certificate = runpy.run_path(str(EXAMPLES / 'ssl_pool.py'))['make_certificate']
        with pytest.raises(SystemExit, match='neither openssl nor trustme here'):
            make_certificate(tmp_path / 'certificate.pem')


class TestWithHost:
    @pytest.mark.parametrize('kind', [Web, ChunkedWeb, OldWeb])
    @pytest.mark.parametrize(
        'example, expected',
        [
            (
                'tcp_pool.py',
                r'(\S+ says 200 OK and 1000 bytes, 10 times\n){2}(\d+) connections served (20) acquires\n.*\n',
            ),
            (
                'async_pool.py',
                r'(\S+ says .* and 1000 bytes, 20 times\n){2}(\d+) connections served (40) acquires\n.*\n',
            ),
            ('manager_hooks.py', HOOKS.format(10, 2)),
        ],
        ids=['tcp_pool.py', 'async_pool.py', 'manager_hooks.py'],
    )
    def test_http(self, base: Path, example: str, expected: str, kind: type[Web]) -> None:
        with web(kind) as port:
            said = says(base, example, expected, '--host', '127.0.0.1', 'localhost', '--port', port)
        if example != 'manager_hooks.py':
            connections, requests = int(said[2]), int(said[3])
            assert (connections == requests) is (kind is OldWeb)

    @pytest.mark.parametrize('kind', [Web, OldWeb])
    def test_https(self, base: Path, kind: type[Web], authority: tuple[Path, ssl.SSLContext]) -> None:
        cafile, context = authority
        with web(kind, context) as port:
            says(
                base,
                'ssl_pool.py',
                r'\S+ \(TLSv1\.3, ALPN None\) says 200 OK and 1000 bytes\n' + SERVED.format(12),
                '--host',
                'localhost',
                '--port',
                port,
                '--cafile',
                cafile,
            )

    def test_streams_through_tls(self, base: Path, authority: tuple[Path, ssl.SSLContext]) -> None:
        cafile, context = authority
        with web(Web, context) as port:
            says(
                base,
                'async_pool.py',
                r'\S+ says .*, 40 times\n' + SERVED.format(40) + '.*\n',
                '--host',
                'localhost',
                '--port',
                port,
                '--tls',
                SSL_CERT_FILE=str(cafile),
            )

    @pytest.mark.parametrize('example', ['ssl_pool.py', 'async_pool.py'])
    def test_a_certificate_that_nobody_vouches_for(
        self,
        base: Path,
        example: str,
        authority: tuple[Path, ssl.SSLContext],
    ) -> None:
        _, context = authority
        with web(Web, context) as port:
            options = ['--tls'] if example == 'async_pool.py' else []
            status, out, err = run(base, example, '--host', 'localhost', '--port', port, *options)
        assert (status, out) == (1, '')
        assert re.fullmatch('SSLCertVerificationError: .*certificate verify failed.*\n', err), err

    @pytest.mark.parametrize('example', WITH_POSTGRES)
    def test_postgres(self, base: Path, example: str, postgres: Server) -> None:
        says(base, example, SAID[example], '--host', postgres.directory)

    def test_redis(self, base: Path, redis: int) -> None:
        says(base, 'custom_manager.py', REDIS, '--host', '127.0.0.1', '--port', redis, REDIS_PASSWORD='swordfish')

    def test_redis_with_a_wrong_password(self, base: Path, redis: int) -> None:
        status, out, err = run(
            base, 'custom_manager.py', '--host', '127.0.0.1', '--port', redis, REDIS_PASSWORD='sword-fish'
        )
        assert (status, out) == (1, '')
        assert err.startswith('RedisError: WRONGPASS') and 'sword-fish' not in err

    @pytest.mark.parametrize('example', [name for name in SAID if name != 'quickstart.py'])
    def test_that_refuses(self, base: Path, example: str) -> None:
        if example in WITH_POSTGRES and not REQUIRED:
            pytest.importorskip('psycopg2' if example == 'pg_pool.py' else 'asyncpg')
        with socket.socket() as unheard:
            unheard.bind(('127.0.0.1', 0))
            status, out, err = run(base, example, '--host', '127.0.0.1', '--port', unheard.getsockname()[1])
        assert (status, out) == (1, '')
        assert re.match(r'\w+Error: .*(refused|failed)', err), err


class TestCtrlC:
    @pytest.mark.parametrize('example', [name for name in SAID if name != 'quickstart.py'])
    def test_while_a_server_does_not_answer(self, base: Path, example: str) -> None:
        if example in WITH_POSTGRES and not REQUIRED:
            pytest.importorskip('psycopg2' if example == 'pg_pool.py' else 'asyncpg')
        with (
            socket.create_server(('127.0.0.1', 0)) as silent,
            running(base, example, '--host', '127.0.0.1', '--port', silent.getsockname()[1]) as process,
        ):
            silent.settimeout(20)
            with silent.accept()[0]:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                out, err = ended(process)
        assert (process.returncode, out) == (130, '')
        # where the signal comes in the middle of a task, asyncio complains of its own way to end it, up to 3.10
        # and asyncpg of a connection that it is about to make
        assert (
            err == ''
            or 'unexpected connection_lost() call' in err
            or (sys.version_info < (3, 11) and 'Task exception was never retrieved' in err)
        )

    @pytest.mark.parametrize('example', ['ssl_pool.py', 'custom_manager.py'])
    def test_while_its_own_server_starts(self, base: Path, example: str) -> None:
        with running(base, example, mode=()) as process:  # an interrupted Popen complains of itself
            while process.poll() is None and len(processes_in(base)) < 2:
                pass
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.killpg(process.pid, signal.SIGINT)
            _, err = ended(process)
        assert process.returncode in (0, 130) and err == ''

    @pytest.mark.parametrize('example', WITH_POSTGRES)
    def test_while_its_own_postgres_starts(self, base: Path, example: str, postgres: Server) -> None:
        self.test_while_its_own_server_starts(base, example)


def test_the_manager_from_scratch_keeps_what_a_pool_builds_on(redis: int) -> None:
    example = runpy.run_path(str(EXAMPLES / 'custom_manager.py'))
    manager = example['RedisConnectionManager']('swordfish')
    endpoint = example['Database']('127.0.0.1', redis, 1)

    def kill() -> None:
        conn = manager.create(endpoint._replace(number=0), 5.0)
        conn.ask('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
        conn.close()

    def use(conn: Any) -> None:
        assert conn.ask('ECHO', 'hello') == b'hello'

    with socket.create_server(('127.0.0.1', 0)) as silent, socket.socket() as unheard:
        unheard.bind(('127.0.0.1', 0))
        check_manager(
            manager,
            endpoint,
            kill=kill,
            use=use,
            fork=True,
            silent=endpoint._replace(port=silent.getsockname()[1]),
            refused=endpoint._replace(port=unheard.getsockname()[1]),
        )
    assert 'swordfish' not in repr(manager)


def test_an_answer_that_nobody_waited_for_is_not_the_next_one_s(redis: int) -> None:
    example = runpy.run_path(str(EXAMPLES / 'custom_manager.py'))
    manager = example['RedisConnectionManager']('swordfish')
    endpoint = example['Database']('127.0.0.1', redis)
    conn = manager.create(endpoint)
    assert manager.check_aliveness(endpoint, conn)
    conn.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        conn.ask('BLPOP', 'nothing', '60')
    assert not manager.check_aliveness(endpoint, conn)
    conn.close()
    assert not manager.check_aliveness(endpoint, conn)

    conn = manager.create(endpoint)
    conn.sock.sendall(b'PING\r\n')
    assert select.select([conn.sock], [], [], 10)[0]
    assert not manager.check_aliveness(endpoint, conn)
    conn.ask('PING')  # gives the answer to the first
    assert conn._received or select.select([conn.sock], [], [], 10)[0]  # and that to the second is here, or comes
    assert not manager.check_aliveness(endpoint, conn)
    conn.close()


def for_gcp(program: str) -> str:
    """Replace the import name: the whole migration."""
    return (PREDECESSOR / program).read_text().replace('generic_connection_pool', 'gcp')


def as_it_stands(program: str) -> str:
    """For a program that cannot be edited."""
    path = str(PREDECESSOR / program)
    return f'import gcp.dropin, runpy; runpy.run_path({path!r}, run_name="__main__")'


@pytest.mark.parametrize('source', [for_gcp, as_it_stands])
class TestProgramsForThePredecessor:
    """What its quickstart shows, in other words: the same calls, run against servers of this host."""

    def says(
        self,
        base: Path,
        source: Callable[[str], str],
        program: str,
        expected: str,
        argument: object,
        **env: str,
    ) -> None:
        with tempfile.NamedTemporaryFile('w', suffix='.py') as file:
            file.write(source(program))
            file.flush()
            says(base, file.name, expected, argument, **env)

    @pytest.mark.parametrize('program', ['tcp_pool.py', 'async_plain_pool.py'])
    def test_tcp(self, base: Path, source: Callable[[str], str], program: str) -> None:
        with served(socketserver.ThreadingTCPServer(('127.0.0.1', 0), Echo)) as port:
            self.says(base, source, program, 'PING\nECHO hello\n1\n', port)

    @pytest.mark.parametrize('program', ['ssl_pool.py', 'async_pool.py'])
    def test_ssl(
        self,
        base: Path,
        source: Callable[[str], str],
        program: str,
        authority: tuple[Path, ssl.SSLContext],
    ) -> None:
        cafile, context = authority
        with web(LenientWeb, context) as port:
            self.says(base, source, program, r"(.*200.* b'\.{1000}'\n){2}1\n", port, SSL_CERT_FILE=str(cafile))

    @pytest.mark.parametrize('program', WITH_POSTGRES)
    def test_postgres(self, base: Path, source: Callable[[str], str], program: str, postgres: Server) -> None:
        self.says(base, source, program, 'master\nreplica-1\nmaster\n2\n', postgres.directory)

    def test_custom_manager(self, base: Path, source: Callable[[str], str], redis: int) -> None:
        with socket.create_connection(('127.0.0.1', redis)) as sock:
            sock.sendall(b'AUTH swordfish\r\nACL SETUSER ann on >secret +@all ~*\r\n')
            assert sock.makefile('rb').read(10) == b'+OK\r\n+OK\r\n'
        self.says(base, source, 'custom_manager.py', r'\+PONG\n\$5\r?\nhello\n1\n', redis)

    def test_hooks(
        self,
        base: Path,
        source: Callable[[str], str],
        authority: tuple[Path, ssl.SSLContext],
    ) -> None:
        pytest.importorskip('prometheus_client')
        cafile, context = authority
        with web(Web, context) as port:
            self.says(
                base,
                source,
                'manager_hooks.py',
                r'acquires_total 4\.0\ndead_total 1\.0\nuse_time_count 4\.0\n',
                port,
                SSL_CERT_FILE=str(cafile),
            )


def test_each_program_for_the_predecessor_is_run() -> None:
    text = Path(__file__).read_text()
    programs = sorted(path.name for path in PREDECESSOR.glob('*.py'))
    assert len(programs) == 8
    assert [name for name in programs if f"'{name}'" not in text] == []


def test_each_file_is_run() -> None:
    elsewhere = {'service.py', 'gunicorn.conf.py'}
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == '.py'} == {*SAID, *elsewhere}
    text = Path(__file__).with_name('test_service.py').read_text()
    assert [name for name in elsewhere if f"'{name}'" not in text] == []
