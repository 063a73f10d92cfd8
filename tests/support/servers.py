"""PostgreSQL servers for the managers' tests, and what stands before them: each with a fresh directory, gone at the
session's end."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Proxy, driver, is_served, missing

from gcp.demo.programs import account
from gcp.demo.server import Server, ServerError, serve

#: Where Debian puts a PostgreSQL that was built with TLS; the wheel's was not.
DEBIAN = Path('/usr/lib/postgresql')


@pytest.fixture(scope='session')
def postgres() -> Iterator[Server]:
    try:
        with serve(max_connections=50) as server:
            yield server
    except ServerError as error:
        missing(str(error))


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    with Proxy(postgres.directory / '.s.PGSQL.5432') as proxy:
        yield proxy


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclasses.dataclass(frozen=True)
class TlsServer:
    """A server that speaks TLS at ``localhost``.

    :ivar parameters: to connect to it by TLS, verified
    :ivar stranger: the file of another authority's certificate
    """

    parameters: dict[str, Any]
    stranger: Path


@pytest.fixture(scope='session')
def tls_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    trustme = driver('trustme')
    versions = sorted(DEBIAN.glob('*/bin/postgres'), key=lambda path: int(path.parts[-3]))
    if not versions:
        missing(f'no PostgreSQL with TLS in {DEBIAN}')
    folder = tmp_path_factory.mktemp('tls')
    authority, stranger = folder / 'authority.pem', folder / 'stranger.pem'
    ours = trustme.CA()
    ours.cert_pem.write_to_path(authority)
    trustme.CA().cert_pem.write_to_path(stranger)
    issued = ours.issue_cert('localhost')
    port = free_port()
    try:
        with serve(
            max_connections=20,
            settings={'listen_addresses': '127.0.0.1', 'port': port, 'ssl': 'on'},
            files={'server.key': issued.private_key_pem.bytes(), 'server.crt': issued.cert_chain_pems[0].bytes()},
            programs=versions[-1].parent,
        ) as server:
            yield TlsServer(
                {
                    **server.parameters,
                    'host': 'localhost',
                    'port': port,
                    'sslmode': 'verify-full',
                    'sslrootcert': str(authority),
                },
                stranger,
            )
    except ServerError as error:
        missing(str(error))


BOUNCER = """
[databases]
postgres = host={server} port=5432 dbname=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
logfile = {folder}/log
pidfile =
"""


@dataclasses.dataclass(frozen=True)
class Bouncer:
    """A PgBouncer in transaction mode.

    :ivar parameters: to connect through it, in libpq's words
    :ivar size: how many connections it keeps to the server
    """

    parameters: dict[str, Any]
    size: int


@pytest.fixture(scope='session')
def bouncer(postgres: Server) -> Iterator[Bouncer]:
    program = shutil.which('pgbouncer') or shutil.which('pgbouncer', path='/usr/sbin')
    if program is None:
        missing('no pgbouncer (apt-get install pgbouncer)')
        return
    folder = postgres.directory.parent / 'bouncer'
    folder.mkdir(exist_ok=True)
    other, port, size = account(), free_port(), 3
    (folder / 'users').write_text('"postgres" ""\n')
    (folder / 'ini').write_text(BOUNCER.format(server=postgres.directory, port=port, folder=folder, size=size))
    if other is not None:  # it does not run as root
        os.chown(folder, other.pw_uid, other.pw_gid)
    process = subprocess.Popen(
        [program, folder / 'ini'],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd='/',
        user=other and other.pw_uid,
        group=other and other.pw_gid,
        extra_groups=None if other is None else [],
    )
    try:
        if not is_served(('127.0.0.1', port), process):
            missing(f'pgbouncer does not start, its status is {process.poll()}')
        yield Bouncer({'host': '127.0.0.1', 'port': port, 'user': 'postgres', 'dbname': 'postgres'}, size)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
