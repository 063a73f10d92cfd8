"""Source distributions of packages that bring tests of their own."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from peers import driver

PIP = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary=:all:', '--no-build-isolation']


def unpack_sdist(name: str, tests: str, factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a package's sdist, of the version that is installed. Skips where it cannot be had.

    :param name: the package
    :param tests: the folder of its tests
    """
    version = driver(name).__version__
    folder = factory.mktemp(name)
    got = subprocess.run([*PIP, f'--dest={folder}', f'{name}=={version}'], capture_output=True, text=True)
    archives = list(folder.glob('*.tar.gz'))
    if got.returncode or not archives:
        pytest.skip(f'no sdist of {name} {version}: {got.stderr.strip()[-200:]}')
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter='data')
    return next(folder.glob(f'*/{tests}')).parent
