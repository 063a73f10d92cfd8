"""Who may import whom (docs/design.md, "The shape"): read from the sources, and seen in fresh interpreters."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gcp

ROOT = Path(gcp.__file__).resolve().parent.parent
PACKAGE = ROOT / 'gcp'

#: what both fronts stand on
FRONT = {
    'gcp._core',
    'gcp.background',
    'gcp.connection',
    'gcp.disposal',
    'gcp.exceptions',
    'gcp.holders',
    'gcp.inspection',
    'gcp.limits',
    'gcp.listener',
    'gcp.managers',
    'gcp.observe',
    'gcp.options',
    'gcp.protocols',
    'gcp.stats',
    'gcp.waiting',
}

#: what each module may import of gcp; a name stands for its submodules too
ALLOWED = {
    'gcp.exceptions': set(),
    'gcp.error_copies': {'gcp.exceptions'},
    'gcp._core': {'gcp.core', 'gcp.error_copies', 'gcp.exceptions'},
    'gcp.checks': set(),
    'gcp.limits': {'gcp._core', 'gcp.checks'},
    'gcp.stats': {'gcp._core', 'gcp.exceptions', 'gcp.limits'},
    'gcp.managers': {'gcp._core', 'gcp.exceptions'},
    'gcp.explanation': {'gcp._core', 'gcp.exceptions'},
    'gcp.inspection': {'gcp._core', 'gcp.explanation', 'gcp.holders', 'gcp.managers'},
    'gcp.hints': set(),
    'gcp.protocols': set(),
    'gcp.options': {'gcp._core', 'gcp.checks', 'gcp.exceptions', 'gcp.hints', 'gcp.limits'},
    'gcp.connection': {'gcp._core'},
    'gcp.waiting': {'gcp._core'},
    'gcp.background': {
        'gcp._core',
        'gcp.background',
        'gcp.disposal',
        'gcp.exceptions',
        'gcp.managers',
        'gcp.waiting',
    },
    'gcp.disposal': {'gcp._core', 'gcp.disposal', 'gcp.exceptions', 'gcp.waiting'},
    'gcp.holders': {'gcp._core', 'gcp.disposal', 'gcp.holders', 'gcp.options', 'gcp.waiting'},
    'gcp.core_error': set(),
    'gcp.listener': {'gcp.holders', 'gcp.listener_thread'},
    'gcp.listener_thread': {'gcp._core', 'gcp.disposal', 'gcp.listener', 'gcp.waiting'},
    'gcp': {
        'gcp._core',
        'gcp.core_error',
        'gcp.exceptions',
        'gcp.explanation',
        'gcp.limits',
        'gcp.listener',
        'gcp.stats',
    },
    'gcp.threading': FRONT,
    'gcp.asyncio': FRONT,
    'gcp.observe': {'gcp._core', 'gcp.exceptions', 'gcp.observe', 'gcp.options', 'gcp.stats'},
    'gcp.debug': {
        'gcp._core',
        'gcp.debug',
        'gcp.explanation',
        'gcp.holders',
        'gcp.listener',
        'gcp.observe',
        'gcp.stats',
    },
    'gcp.dropin': {'gcp', 'gcp.managers'},
    'gcp.pytest_plugin': {'gcp.asyncio', 'gcp.observe', 'gcp.threading'},
    'gcp.testing': {
        'gcp',
        'gcp._core',
        'gcp.asyncio',
        'gcp.error_copies',
        'gcp.exceptions',
        'gcp.managers',
        'gcp.stats',
        'gcp.testing',
        'gcp.threading',
    },
    'gcp.contrib': {
        'gcp._core',
        'gcp.asyncio',
        'gcp.contrib',
        'gcp.exceptions',
        'gcp.limits',
        'gcp.managers',
        'gcp.stats',
        'gcp.threading',
        'gcp.waiting',
    },
}

#: programs that use the library like anybody else; nothing imports them
PROGRAMS = ('gcp.__main__', 'gcp.advise', 'gcp.demo', 'gcp.top')

#: what the core must not know
OUTSIDE_THE_CORE = {'asyncio', 'concurrent', 'logging', 'opentelemetry', 'prometheus_client', 'threading'}


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its file; the included parts of the core count as the core."""
    for directory, _, files in os.walk(PACKAGE, followlinks=True):
        for file in sorted(files):
            path = Path(directory, file)
            if path.suffix in ('.pxd', '.pyx'):
                yield 'gcp._core', path
            elif path.suffix == '.py':
                parts = path.relative_to(ROOT).with_suffix('').parts
                yield '.'.join(parts[:-1] if parts[-1] == '__init__' else parts), path


CYTHON_IMPORT = re.compile(r'^[ \t]*(?:from[ \t]+(\S+)[ \t]+c?import\b|c?import[ \t]+([^#\n(]+))', re.MULTILINE)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Names that a file imports, wherever in it, and whether the import is relative. When `from a import b` means the
    module `a.b`, that is the name."""
    text = path.read_text()
    if path.suffix in ('.pxd', '.pyx'):
        for match in CYTHON_IMPORT.finditer(text):
            for name in (match[1] or match[2]).split(','):
                yield name.split()[0], name.lstrip().startswith('.')
        return

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ''
            for alias in node.names:
                yield (f'{module}.{alias.name}' if is_module(f'{module}.{alias.name}') else module), node.level > 0


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split('.'))
    return name.startswith('gcp.') and (path.is_dir() or any(path.parent.glob(f'{path.name}.py*')))


def within(name: str, parents: set[str] | tuple[str, ...]) -> bool:
    """Whether a module is one of these or inside one. `gcp` itself has no inside here."""
    return any(name == parent or (parent != 'gcp' and name.startswith(parent + '.')) for parent in parents)


SOURCES = [pytest.param(module, path, id=path.relative_to(ROOT).as_posix()) for module, path in sources()]


@pytest.mark.parametrize('module, path', SOURCES)
def test_imports_only_what_its_layer_may(module: str, path: Path) -> None:
    if within(module, PROGRAMS):
        return

    layers = [layer for layer in ALLOWED if within(module, (layer,))]
    assert layers, f'{module} belongs to no layer: give it one here and in docs/design.md'

    for name, _ in imports(path):
        if name == 'gcp' or name.startswith('gcp.'):
            assert within(name, ALLOWED[layers[0]]), f'{module} must not import {name}'


@pytest.mark.parametrize('module, path', SOURCES)
def test_imports_are_absolute(module: str, path: Path) -> None:
    # gcp.threading, gcp.asyncio and gcp.contrib.socket are named like modules of the standard library
    assert [name for name, relative in imports(path) if relative] == []


CORE = [path for module, path in sources() if module == 'gcp._core']


@pytest.mark.parametrize('path', CORE, ids=lambda path: path.name)
def test_core_knows_no_front_and_no_telemetry(path: Path) -> None:
    assert {name.split('.')[0] for name, _ in imports(path)} & OUTSIDE_THE_CORE == set()


def test_walk_sees_what_it_should() -> None:
    modules = {module for module, _ in sources()}
    assert {'gcp', 'gcp._core', 'gcp.asyncio', 'gcp.contrib.socket', 'gcp.threading'} <= modules
    assert 'gcp.exceptions' in {name for name, _ in imports(PACKAGE / '__init__.py')}
    assert 'gcp._core' in {name for name, _ in imports(PACKAGE / 'threading.py')}


def new_modules(statement: str) -> set[str]:
    """The modules that a statement loads in a fresh interpreter."""
    code = f'import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))'
    result = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr

    return set(result.stdout.split())


DRIVERS = {'asyncpg', 'prometheus_client', 'psycopg2', 'rich'}


@pytest.mark.parametrize(
    'statement, others',
    [
        ('import gcp', {'asyncio', 'gcp.asyncio', 'gcp.contrib', 'gcp.threading'}),
        ('import gcp.threading', {'asyncio', 'gcp.asyncio', 'gcp.contrib'}),
        ('import gcp.asyncio', {'gcp.contrib', 'gcp.threading'}),
        ('import gcp.dropin', {'asyncio', 'gcp.asyncio', 'gcp.contrib', 'gcp.threading'}),
        ('import gcp.contrib.socket', {'asyncio', 'gcp.asyncio'}),
        ('import gcp.testing', {'asyncio', 'gcp.asyncio', 'gcp.contrib', 'gcp.threading', 'pytest'}),
    ],
)
def test_import_costs_no_other_front_driver_or_telemetry(statement: str, others: set[str]) -> None:
    loaded = new_modules(statement)
    assert 'gcp._core' in loaded
    assert {name for name in loaded if within(name, others | DRIVERS) or name.startswith('opentelemetry')} == set()


#: what takes long to import, and is not needed before the first pool
HEAVY = {
    'ast',
    'ctypes',
    'dataclasses',
    'difflib',
    'dis',
    'email',
    'gcp.hints',
    'gcp.observe.aggregation',
    'gcp.observe.labels',
    'gcp.observe.names',
    'gcp.stats',
    'http',
    'importlib.metadata',
    'inspect',
    'ipaddress',
    'json',
    'pathlib',
    'socket',
    'ssl',
    'subprocess',
    'tempfile',
    'urllib',
    'uuid',
}


@pytest.mark.parametrize(
    'statement, needed',
    [
        ('import gcp', 'import typing'),
        ('import gcp.threading', 'import threading, logging, typing'),
        ('import gcp.asyncio', 'import asyncio, logging, typing'),
    ],
)
def test_import_is_light(statement: str, needed: str) -> None:
    loaded = new_modules(f'{needed}; {statement}') - new_modules(needed)
    assert 'gcp._core' in loaded
    assert {name for name in loaded if within(name, HEAVY)} == set()
    assert len(loaded) < 40, sorted(loaded)


def test_first_pool_brings_what_a_look_at_it_needs() -> None:
    pool = 'import gcp.threading, gcp.testing; pool = gcp.threading.ConnectionPool(gcp.testing.FakeManager())'
    assert {'gcp.observe.aggregation', 'gcp.stats'} <= new_modules(pool)
    assert new_modules(f'{pool}; pool.stats()') == new_modules(pool)


def test_records_come_when_they_are_asked_for() -> None:
    assert 'gcp.stats' in new_modules('from gcp import PoolStats, EndpointStats')
    with pytest.raises(AttributeError, match="module 'gcp' has no attribute 'PoolStat'"):
        gcp.PoolStat  # type: ignore[attr-defined]  # noqa: B018


def test_contrib_is_not_a_package_of_its_own() -> None:
    directory = (PACKAGE / 'contrib').resolve()
    if directory.name != 'contrib' or directory.parent == PACKAGE:
        pytest.skip('installed: there is no top-level contrib')

    result = subprocess.run([sys.executable, '-c', 'import contrib'], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: this directory is the package gcp.contrib; it cannot be imported as 'contrib'" in result.stderr


def test_version_has_one_source() -> None:
    assert re.fullmatch(r'\d+\.\d+\.\d+\S*', gcp.__version__)
    assert gcp.__all__ == sorted(gcp.__all__)
    for name in gcp.__all__:
        assert getattr(gcp, name) is not None
