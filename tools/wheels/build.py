"""The sdist, the wheels, and their tests: each function runs the tools of the PyPA and returns a row of the table.

Environments are kept under ``build/wheels/``: those in which wheels are built are used again, those in which they are
tested are made anew and have nothing but the wheel and what it asks for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tools.requirements import read, requirements
from tools.wheels.pythons import Python

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / 'tests' / 'packaging' / 'smoke.py'
QUICKSTART = ROOT / 'examples' / 'quickstart.py'

#: what the environment of a developer may say and must not decide here
FOREIGN = re.compile(r'(CC|CXX|CFLAGS|CPPFLAGS|LDFLAGS|GCP_\w+|PYTHON(HOME|PATH|STARTUP)|VIRTUAL_ENV|MAKE\w*|MFLAGS)$')


class Row(NamedTuple):
    """One line of the table."""

    python: str
    file: str
    size: int
    tag: str
    #: seconds
    build: float
    #: seconds, with the packages that gcpool needs
    install: float
    #: what the smoke tests said
    tests: str


class StepError(Exception):
    """A command failed; the message has what it said."""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command without what a developer's environment may say.

    :param cwd: where
    :param variables: of its environment
    :return: what it said
    :raises StepError: its exit status is not 0
    """
    env = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    if done.returncode != 0:
        raise StepError(f'{" ".join(map(str, command))}: exit status {done.returncode}\n{done.stdout[-6000:]}')

    return done.stdout


class Workshop:
    """The folders, and what is done in them."""

    def __init__(self, dist: Path, work: Path, root: Path = ROOT, flags: str = '-g0'):
        """Make the folders.

        :param dist: where the sdist and the wheels go; those of before are removed
        :param work: where environments and trees are kept
        :param root: the checkout
        :param flags: ``CFLAGS``; debug information would make a wheel five times as large
        """
        self.dist, self.work, self.root = dist, work, root
        self.elsewhere = work / 'elsewhere'
        #: a folder with nothing in it: no compiler on the PATH
        self.nothing = work / 'nothing'
        self.variables = {'CFLAGS': flags, **_epoch(root)}
        for folder in (dist, self.elsewhere, self.nothing):
            folder.mkdir(parents=True, exist_ok=True)
        for old in (*dist.glob('gcpool-*.whl'), *dist.glob('gcpool-*.tar.gz')):
            old.unlink()

    # --- environments ---

    def environment(self, name: str, python: Path, *, anew: bool) -> Path:
        """Make an environment without pip; return its interpreter."""
        folder = self.work / name
        interpreter = folder / 'bin' / 'python'
        if anew or not interpreter.exists():
            run(python, '-m', 'venv', '--clear', '--without-pip', folder, cwd=self.work)

        return interpreter

    def install(self, interpreter: Path, *what: str | Path, path: Path | None = None) -> float:
        """Install into an environment.

        :param interpreter: that of the environment
        :param what: options of ``pip install``, files, requirements
        :param path: what PATH is; by default that of this process
        :return: how long it took, seconds
        """
        started = time.monotonic()
        variables = {} if path is None else {'PATH': str(path)}
        pip = (sys.executable, '-m', 'pip', '--python', interpreter)
        run(*pip, 'install', '--quiet', '--disable-pip-version-check', *what, cwd=self.elsewhere, **variables)

        return time.monotonic() - started

    def smoke(self, interpreter: Path) -> str:
        """Run the smoke tests and the quickstart, from elsewhere, with nothing on the PATH; return what they said."""
        python = (interpreter, '-I', '-W', 'error')
        said = run(*python, SMOKE, cwd=self.elsewhere, PATH=str(self.nothing)).splitlines()[-1]
        run(*python, QUICKSTART, cwd=self.elsewhere, PATH=str(self.nothing))

        return f'{said}; quickstart runs'

    # --- products ---

    def sdist(self) -> Path:
        """Build the sdist from the checkout."""
        run(
            *(sys.executable, '-m', 'build', '--sdist', '--no-isolation', '--outdir', self.dist, self.root),
            cwd=self.root,
            **self.variables,
        )
        (sdist,) = self.dist.glob('gcpool-*.tar.gz')

        return sdist

    def wheel(self, python: Python, sdist: Path) -> Row:
        """Build a wheel from the sdist, repair it, and test it in an empty environment."""
        name = python.name.replace(' ', '-')
        started = time.monotonic()
        interpreter = self.environment(f'build-{name}', python.path, anew=False)
        self.install(interpreter, 'build', *requirements('build', read()))
        tree = self._unpack(sdist, self.work / f'tree-{name}')
        raw = self.work / f'raw-{name}'
        shutil.rmtree(raw, ignore_errors=True)
        build = (interpreter, '-m', 'build', '--wheel', '--no-isolation', '--outdir', raw, tree)
        run(*build, cwd=self.elsewhere, **self.variables)
        (made,) = raw.glob('*.whl')
        wheel = self._repair(made, self.work / f'repaired-{name}')
        built = time.monotonic() - started

        interpreter = self.environment(f'empty-{name}', python.path, anew=True)
        installed = self.install(interpreter, '--only-binary', ':all:', wheel, path=self.nothing)
        # the newer spelling comes last: manylinux2014_x86_64.manylinux_2_17_x86_64
        tag = wheel.stem.split('-', 4)[-1].split('.')[-1]

        return Row(python.name, wheel.name, wheel.stat().st_size, tag, built, installed, self.smoke(interpreter))

    def rebuilt(self, python: Python, sdist: Path) -> Row:
        """Install the sdist with ``--no-binary :all:``, and test what was built from it."""
        interpreter = self.environment('sdist', python.path, anew=True)
        self.install(interpreter, *requirements('build', read()), *read()['project']['dependencies'])
        source = ('--no-deps', '--no-build-isolation', '--no-binary', ':all:', sdist)
        started = time.monotonic()
        run(
            *(sys.executable, '-m', 'pip', '--python', interpreter, 'install', '--quiet', *source),
            cwd=self.elsewhere,
            **self.variables,
        )
        built = time.monotonic() - started

        return Row(python.name, sdist.name, sdist.stat().st_size, 'sdist', built, built, self.smoke(interpreter))

    def check(self) -> None:
        """Let twine and check-wheel-contents read what was built."""
        wheels = sorted(self.dist.glob('gcpool-*.whl'))
        run(sys.executable, '-m', 'twine', 'check', '--strict', *sorted(self.dist.glob('gcpool-*')), cwd=self.root)
        run(sys.executable, '-m', 'check_wheel_contents', *wheels, cwd=self.root)

    def _unpack(self, sdist: Path, to: Path) -> Path:
        """Unpack the sdist, and add the C that Cython has made of the same sources: it is the same for each Python."""
        shutil.rmtree(to, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(to, filter='data') if hasattr(tarfile, 'data_filter') else archive.extractall(to)
        (tree,) = to.iterdir()
        made = self.root / 'build' / 'cython'
        if made.exists():
            shutil.copytree(made, tree / 'build' / 'cython')

        return tree

    def _repair(self, raw: Path, to: Path) -> Path:
        """Let auditwheel decide which platforms the wheel is for; elsewhere than on Linux it stays as it is."""
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        if sys.platform == 'linux':
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
            auditwheel = (sys.executable, '-m', 'auditwheel', 'repair', '--plat', 'auto', '--wheel-dir', to)
            run(*auditwheel, raw, cwd=self.elsewhere, PATH=path)
        else:
            shutil.copy2(raw, to)
        (wheel,) = to.glob('*.whl')

        return Path(shutil.copy2(wheel, self.dist))


def _epoch(root: Path) -> Mapping[str, str]:
    """The time of the last commit, for archives that are the same whenever they are built."""
    if epoch := os.environ.get('SOURCE_DATE_EPOCH'):
        return {'SOURCE_DATE_EPOCH': epoch}
    try:
        return {'SOURCE_DATE_EPOCH': run('git', 'log', '-1', '--format=%ct', cwd=root).strip()}
    except (OSError, StepError):
        return {}
