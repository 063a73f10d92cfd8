"""A MariaDB server for the managers' tests, with TLS, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import driver, is_served, missing

from gcp.demo.programs import account

USER, PASSWORD = 'app', 'hunter2-of-the-server'

SETUP = f"""
CREATE DATABASE gcp;
CREATE USER {USER} IDENTIFIED BY '{PASSWORD}';
CREATE USER {USER}@localhost IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON *.* TO {USER};
GRANT ALL ON *.* TO {USER}@localhost;
DROP USER IF EXISTS ''@localhost;
"""


class MariaDb:
    """A running server.

    :ivar port: its TCP port
    :ivar path: its unix socket
    :ivar authority: the file of the authority of its certificate
    """

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.path = directory / 'socket'
        self.authority = directory / 'ca.pem'

    @property
    def parameters(self) -> dict[str, Any]:
        """To connect to it, by the words of PyMySQL and aiomysql."""
        return {'host': '127.0.0.1', 'port': self.port, 'user': USER, 'password': PASSWORD, 'db': 'gcp'}


def _find(*names: str) -> str:
    for name in names:
        if (path := shutil.which(name, path=f'{os.environ.get("PATH", "")}:/usr/sbin:/usr/local/sbin')) is not None:
            return path
    missing(f'no {names[0]} (apt-get install mariadb-server)')
    raise AssertionError


@contextlib.contextmanager
def running(port: int) -> Iterator[MariaDb]:
    """Start a server with an empty database `gcp` and a user."""
    install, program = _find('mariadb-install-db', 'mysql_install_db'), _find('mariadbd', 'mysqld')
    other = account()
    with tempfile.TemporaryDirectory(prefix='gcp-mariadb-', dir='/tmp', ignore_cleanup_errors=True) as made:
        server = MariaDb(Path(made), port)
        authority = driver('trustme').CA()
        issued = authority.issue_cert('localhost', '127.0.0.1')
        authority.cert_pem.write_to_path(server.authority)
        issued.private_key_pem.write_to_path(server.directory / 'key.pem')
        issued.cert_chain_pems[0].write_to_path(server.directory / 'cert.pem')
        (server.directory / 'setup.sql').write_text(SETUP)
        (server.directory / 'data').mkdir()
        if other is not None:
            for path in (server.directory, *server.directory.iterdir()):
                os.chown(path, other.pw_uid, other.pw_gid)
        common: dict[str, Any] = {
            'stdin': subprocess.DEVNULL,
            'cwd': '/',
            'user': other and other.pw_uid,
            'group': other and other.pw_gid,
            'extra_groups': None if other is None else [],
        }
        data = f'--datadir={server.directory}/data'
        prepared = subprocess.run(
            [install, '--no-defaults', data, '--auth-root-authentication-method=normal', '--skip-test-db'],
            capture_output=True,
            text=True,
            **common,
        )
        if prepared.returncode:
            missing(f'{install}: {prepared.stdout[-500:]} {prepared.stderr[-500:]}')
        log = server.directory / 'log'
        with open(log, 'wb') as said:
            process = subprocess.Popen(
                [
                    *(program, '--no-defaults', data, f'--socket={server.path}', f'--port={port}'),
                    *('--bind-address=127.0.0.1', f'--pid-file={server.directory}/pid', '--max-connections=200'),
                    *(f'--init-file={server.directory}/setup.sql', '--skip-name-resolve', '--skip-log-bin'),
                    *(f'--ssl-ca={server.authority}', f'--ssl-cert={server.directory}/cert.pem'),
                    *(f'--ssl-key={server.directory}/key.pem', '--innodb-flush-log-at-trx-commit=0'),
                    '--innodb-buffer-pool-size=16M',
                ],
                stdout=said,
                stderr=said,
                **common,
            )
        try:
            if not is_served(('127.0.0.1', port), process, timeout=60):
                missing(f'{program} does not start: {log.read_text()[-1000:]}')
            yield server
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope='session')
def mariadb() -> Iterator[MariaDb]:
    from servers import free_port

    with running(free_port()) as server:
        yield server
