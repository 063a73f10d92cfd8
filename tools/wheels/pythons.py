"""Which Pythons this machine has: those of pyenv and of PATH, one for each version, C library and kind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROBE = """
import json, os, platform, sys, sysconfig
print(json.dumps({
    'path': sys.executable,
    'implementation': sys.implementation.name,
    'version': platform.python_version(),
    'free_threaded': bool(sysconfig.get_config_var('Py_GIL_DISABLED')),
    'suffix': sysconfig.get_config_var('EXT_SUFFIX'),
    'headers': os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')),
    'venv': sys.prefix != sys.base_prefix,
}))
"""


class Python(NamedTuple):
    """An interpreter."""

    path: Path
    #: such as ``3.13.0``
    version: str
    free_threaded: bool
    #: how the file of a compiled module ends: names version, C library and processor
    suffix: str
    #: whether a C compiler finds ``Python.h``
    headers: bool

    @property
    def minor(self) -> str:
        """Such as ``3.13``, or ``3.13t`` for a free-threaded one."""
        return '.'.join(self.version.split('.')[:2]) + ('t' if self.free_threaded else '')

    @property
    def name(self) -> str:
        """What the table calls it: ``3.13.0``, ``3.13.0t``, ``3.13.5 musl``."""
        return self.version + ('t' if self.free_threaded else '') + (' musl' if 'musl' in self.suffix else '')


class NoPythonError(Exception):
    """A Python that was asked for is not there or cannot be used."""


def find(supported: Iterable[str], asked: Iterable[str] = ()) -> list[Python]:
    """Find interpreters.

    :param supported: versions such as ``3.13``; the free-threaded ones of each are looked for, too
    :param asked: paths or commands; when there are any, only these are taken
    :raises NoPythonError: one that was asked for is not there, is not CPython or is not supported
    """
    supported = list(supported)
    if asked := list(asked):
        return [_asked(command, supported) for command in asked]

    found: dict[str, Python] = {}
    for version in supported:
        for minor in (version, f'{version}t'):
            for path in _candidates(minor):
                python = probe(path)
                if python is not None and python.minor == minor:
                    found.setdefault(python.suffix, python)

    return list(found.values())


def probe(command: str | Path) -> Python | None:
    """Ask an interpreter what it is; ``None`` if it cannot be run or is not CPython."""
    try:
        done = subprocess.run([command, '-I', '-c', PROBE], capture_output=True, text=True, timeout=60)
        said = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if said is None or said['implementation'] != 'cpython' or said['suffix'] is None:
        return None

    return Python(Path(said['path']), said['version'], said['free_threaded'], said['suffix'], said['headers'])


def _asked(command: str, supported: list[str]) -> Python:
    path = shutil.which(command)
    python = probe(path) if path is not None else None
    if python is None:
        raise NoPythonError(f'{command} is no CPython that can be run')
    if python.minor.rstrip('t') not in supported:
        raise NoPythonError(f'{command} is Python {python.version}; supported are {", ".join(supported)}')

    return python


def _candidates(minor: str) -> Iterator[Path]:
    root = Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv') / 'versions'
    match = re.compile(re.escape(minor.rstrip('t')) + r'\.(\d+)' + ('t' if minor.endswith('t') else '') + '$')
    versions = [(int(named[1]), path) for path in root.glob('*') if (named := match.match(path.name))]
    for _, path in sorted(versions, reverse=True):
        yield path / 'bin' / 'python'
    for folder in os.environ.get('PATH', '').split(os.pathsep):
        path = Path(folder) / f'python{minor}'
        if os.access(path, os.X_OK):
            yield path
