"""Where the core cannot be built or imported, the error says why, and what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_core(tmp_path: Path) -> Path:
    """A copy of the package without a core that this Python can import."""
    shutil.copytree(
        ROOT / 'gcp', tmp_path / 'gcp', ignore=shutil.ignore_patterns('_core*.so', '__pycache__', 'contrib')
    )
    return tmp_path


def import_from(folder: Path) -> str:
    """Import gcp from a folder, in another process that must fail to do so."""
    process = subprocess.run(
        [sys.executable, '-P' if sys.version_info >= (3, 11) else '-B', '-c', 'import gcp'],
        env={'PYTHONPATH': str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    return process.stderr.splitlines()[-1] if 'No module named' not in process.stderr else process.stderr


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('_core.cpython-37m-x86_64-linux-gnu.so', 'for CPython 3.7, m, x86_64-linux-gnu'),
        ('_core.cpython-399-aarch64-linux-musl.so', 'for CPython 3.99, aarch64-linux-musl'),
        ('_core.cpython-399t-darwin.so', 'for CPython 3.99, free-threaded, darwin'),
        ('_core.pypy310-pp73-x86_64-linux-gnu.so', 'for pypy310-pp73-x86_64-linux-gnu'),
    ],
)
def test_a_core_for_another_python_is_named(without_core: Path, name: str, words: str) -> None:
    (without_core / 'gcp' / name).touch()
    said = import_from(without_core)
    assert said.startswith('ModuleNotFoundError: the compiled core of gcp in ')
    assert f'was built for another Python: {name} ({words}); this is CPython ' in said
    assert f'which needs _core{EXTENSION_SUFFIXES[0]}. ' in said
    assert 'make dev' in said


def test_a_missing_core_is_told(without_core: Path) -> None:
    said = import_from(without_core)
    assert said.startswith('ModuleNotFoundError: the compiled core of gcp is missing in ')
    assert 'pip install' in said


def test_another_error_stays_what_it_is(without_core: Path) -> None:
    (without_core / 'gcp' / f'_core{EXTENSION_SUFFIXES[0]}').write_bytes(b'this is no library')
    said = import_from(without_core)
    assert said.startswith('ImportError: ')
    assert 'another Python' not in said


def test_a_subinterpreter_is_told_the_reason_and_what_to_do(script: Any) -> None:
    out = script("""
        import sys
        import gcp
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        other = interpreters.create()
        source = f'import sys; sys.path[:] = {sys.path!r}; import gcp'
        try:
            failed = interpreters.run_string(other, source)
        except Exception as error:
            failed = error
        print(getattr(failed, 'msg', failed))
        interpreters.destroy(other)
    """).quietly()
    assert 'gcp cannot be imported in a subinterpreter' in out
    assert 'WSGIApplicationGroup %{GLOBAL}' in out


@pytest.mark.parametrize(
    ('change', 'this'),
    [
        ('sys.version_info = (3, 9, 18, "final", 0)', 'CPython'),
        ('sys.version_info = (3, 16, 0, "final", 0)', 'CPython'),
        ('sys.platform = "win32"', 'on win32'),
        ('sys.implementation.name = "pypy"', 'CPython'),
    ],
)
def test_the_build_says_what_is_supported_before_it_compiles(script: Any, change: str, this: str) -> None:
    ended = script(f"""
        import platform, runpy, sys
        sys.modules['Cython'] = sys.modules['setuptools'] = None
        {change}
        runpy.run_path({str(ROOT / 'setup.py')!r})
    """)
    assert ended.status == 1
    assert ended.err.startswith('gcp is built for CPython 3.10 to 3.15 on Linux or macOS; this is ')
    assert this in ended.err


def test_the_supported_versions_are_those_of_the_classifiers() -> None:
    tomllib = pytest.importorskip('tomllib')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    prefix = 'Programming Language :: Python :: 3.'
    minors = [int(line[len(prefix) :]) for line in project['classifiers'] if line.startswith(prefix)]
    assert minors == list(range(10, 16))
    assert 'OLDEST, NEWEST = (3, 10), (3, 15)' in (ROOT / 'setup.py').read_text()
