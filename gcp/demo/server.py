"""A private PostgreSQL server: its data and its unix socket are in a temporary directory that only this account can
access and that is removed at the end. `gcp.demo.programs` finds the programs."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gcp.demo.programs import ServerError, account, find_base, find_programs
from gcp.demo.stop import hold_back

__all__ = ['Server', 'ServerError', 'serve']

START_TIMEOUT = 30.0
STOP_TIMEOUT = 0.7

#: the data is removed with the server, so durability is turned off
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


class Server:
    """A server that can be started, stopped and restarted.

    :ivar directory: the directory of its data and its socket
    """

    def __init__(self, launch: _Launch, command: Sequence[str | Path]) -> None:
        self.directory = launch.data
        self._launch = launch
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """Connect parameters, in libpq's names."""
        return {'host': str(self.directory), 'user': 'postgres', 'dbname': 'postgres'}

    def start(self) -> None:
        """Start it, and wait until it is ready. Call this in a thread that outlives it.

        :raises ServerError: when it does not start
        """
        (self.directory / 'postmaster.pid').unlink(missing_ok=True)  # after a kill, it still says: ready
        with hold_back():
            self._process = self._launch.start(self._command)
        self._launch.await_ready(self._process)

    def stop(self, *, kindly: bool = True) -> None:
        """Stop it: fast shutdown, then immediate shutdown, then SIGKILL, each if the one before takes too long.

        :param kindly: True to begin with a fast shutdown, as ``pg_ctl stop -m fast`` does; False to begin with an
            immediate one
        """
        signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
        for number in signals if kindly else signals[1:]:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT)

    def restart(self, *, kindly: bool = True) -> None:
        """Stop it and start it again with the same data.

        :param kindly: see `stop`
        :raises ServerError: when it does not start
        """
        self.stop(kindly=kindly)
        self.start()


@contextlib.contextmanager
def serve(
    max_connections: int = 100,
    *,
    settings: Mapping[str, object] = MappingProxyType({}),
    files: Mapping[str, bytes] = MappingProxyType({}),
    programs: Path | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Iterator[Server]:
    """Start a server, and stop it at the end. Call this in the main thread.

    :param max_connections: the number of connections that it accepts
    :param settings: settings in addition to `SETTINGS`
    :param files: files for its data directory, such as certificates and keys, readable by the server only
    :param programs: the folder of ``initdb`` and ``postgres``; by default those that `find_programs`
        finds
    :param given_up: called repeatedly while the server starts; True aborts
    :raises ServerError: when it does not start
    """
    other = account()
    base = find_base(to_all=other is not None)
    with tempfile.TemporaryDirectory(prefix='gcp-', dir=base, ignore_cleanup_errors=True) as made:
        directory = Path(made)
        programs = programs or find_programs(other is not None, directory, given_up)
        data = directory / 'data'
        data.mkdir(mode=0o700)
        if other is not None:
            directory.chmod(0o711)  # the other account needs access to the data directory
            os.chown(data, other.pw_uid, other.pw_gid)
        launch = _Launch(other, data, directory / 'log', given_up)
        launch.run(
            [
                programs / 'initdb',
                '-D',
                data,
                '-U',
                'postgres',
                '--auth=trust',
                '--encoding=UTF8',
                '--locale=C',
                '--no-sync',
                '--no-instructions',
            ]
        )
        for name, content in files.items():
            launch.write(name, content)
        chosen = {**SETTINGS, 'max_connections': max_connections, 'unix_socket_directories': data, **settings}
        server = Server(launch, [programs / 'postgres', '-D', data, *(f'--{key}={chosen[key]}' for key in chosen)])
        try:
            server.start()
            yield server
        finally:
            server.stop()


@dataclass(frozen=True)
class _Launch:
    """Runs programs with an account and a working directory, until `given_up` says to abort."""

    account: pwd.struct_passwd | None
    data: Path
    log: Path
    given_up: Callable[[], bool]

    def start(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        setpriv = shutil.which('setpriv')
        with open(self.log, 'ab') as log:
            return subprocess.Popen(
                # if this process is killed, the kernel stops the server
                [setpriv, '--pdeathsig', 'INT', '--', *command] if setpriv else command,
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=None if self.account is None else self.account.pw_uid,
                group=None if self.account is None else self.account.pw_gid,
                extra_groups=None if self.account is None else [],
                start_new_session=True,  # Ctrl-C in the terminal must not stop the server before its clients
            )

    def run(self, command: Sequence[str | Path]) -> None:
        process: subprocess.Popen[bytes] | None = None
        try:
            with hold_back():
                process = self.start(command)
            self._await(lambda: process.poll() is not None)
        except BaseException:
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # after SIGTERM, initdb would finish its current phase first
                process.wait()
                self._await_end(process.pid)
            raise
        self._check(process)

    def _await_end(self, group: int) -> None:
        """Wait, for a moment, until no process of a killed group is left: those that initdb has started."""
        deadline = time.monotonic() + STOP_TIMEOUT
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, of zombies
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.001)

    def write(self, name: str, content: bytes) -> None:
        path = self.data / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def await_ready(self, process: subprocess.Popen[bytes]) -> None:
        self._await(lambda: process.poll() is not None or self._is_ready())
        self._check(process)

    def _await(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not happened():
            if self.given_up():
                raise ServerError('stopped while the server was starting')
            if time.monotonic() > deadline:
                raise ServerError(f'the server was not ready within {START_TIMEOUT:g} s{self._log_tail()}')
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        try:
            return (self.data / 'postmaster.pid').read_text().splitlines()[7].strip() == 'ready'
        except (OSError, IndexError):  # not written yet, or not completely
            return False

    def _check(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode:
            raise ServerError(f'the server ended with status {process.returncode}{self._log_tail()}')

    def _log_tail(self) -> str:
        return ''.join(f'\n  {line}' for line in self.log.read_text(errors='replace').strip().splitlines()[-5:])
