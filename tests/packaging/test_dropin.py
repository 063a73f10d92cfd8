"""`import gcp.dropin` makes the predecessor's name an alias of gcp. The tests run in subprocesses: it is final."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gcp

ROOT = Path(gcp.__file__).resolve().parent.parent
OLD = 'generic_connection_pool'


@pytest.fixture
def predecessor(tmp_path: Path) -> Path:
    """Make a directory with a package of the predecessor's name, as if the predecessor were installed."""
    package = tmp_path / 'site' / OLD
    (package / 'threading').mkdir(parents=True)
    (package / '__init__.py').write_text('genuine = True\n')
    (package / 'threading' / '__init__.py').write_text('class ConnectionPool: pass\n')
    (package / 'rankmap.py').write_text('class RankMap: pass\n')

    return package.parent


def run(code: str, *path: Path) -> None:
    """Run code in a new interpreter that finds gcp and the packages in the given directories. Check that it succeeds.

    The directories come before gcp in the path."""
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*path, ROOT]))},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''


@pytest.mark.parametrize(
    'alias, name',
    [
        ('generic_connection_pool', 'gcp'),
        ('generic_connection_pool.exceptions', 'gcp.exceptions'),
        ('generic_connection_pool.threading', 'gcp.threading'),
        ('generic_connection_pool.threading.pool', 'gcp.threading'),
        ('generic_connection_pool.asyncio', 'gcp.asyncio'),
        ('generic_connection_pool.asyncio.pool', 'gcp.asyncio'),
        ('generic_connection_pool.contrib', 'gcp.contrib'),
        ('generic_connection_pool.contrib.socket', 'gcp.contrib.socket'),
    ],
)
def test_a_name_is_the_same_module(alias: str, name: str) -> None:
    run(f"""
        import sys
        import gcp.dropin
        import {alias} as through_alias
        import {name} as genuine

        assert through_alias is genuine
        assert sys.modules['{alias}'] is genuine
        assert genuine.__name__ == genuine.__spec__.name == '{name}'
    """)


@pytest.mark.parametrize('front', ['threading', 'asyncio'])
def test_predecessors_import_lines(front: str) -> None:
    run(f"""
        import gcp.dropin
        import generic_connection_pool
        import generic_connection_pool.{front}
        from generic_connection_pool import {front}, BaseConnectionPool, ConnectionPoolClosedError, common, exceptions
        from generic_connection_pool.{front} import BaseConnectionManager, ConnectionPool, ConnectionT, EndpointT
        from generic_connection_pool.{front} import pool
        from generic_connection_pool.{front}.pool import ConnectionPool as SamePool
        from generic_connection_pool.common import BaseConnectionPool as SameBase
        from generic_connection_pool.exceptions import BaseError, ConnectionPoolIsFull, ConnectionPoolNotFound
        import gcp.{front}

        assert ConnectionPool is SamePool is gcp.{front}.ConnectionPool
        assert generic_connection_pool.{front}.ConnectionPool is ConnectionPool
        assert generic_connection_pool.{front}.pool.BaseConnectionManager is BaseConnectionManager
        assert BaseConnectionPool is SameBase is common.BaseConnectionPool is gcp.BaseConnectionPool
        assert issubclass(ConnectionPool, BaseConnectionPool)
        assert generic_connection_pool.common is common
        assert common.EndpointT is EndpointT and common.ConnectionT is ConnectionT
        assert exceptions.ConnectionPoolClosedError is ConnectionPoolClosedError is gcp.ConnectionPoolClosedError
    """)


def test_modules_are_imported_on_demand() -> None:
    run("""
        import sys
        before = set(sys.modules)
        import gcp.dropin
        import generic_connection_pool
        new = set(sys.modules) - before
        assert not new & {'asyncio', 'gcp.threading', 'gcp.asyncio', 'gcp.contrib'}, sorted(new)

        import generic_connection_pool.threading
        new = set(sys.modules) - before
        assert 'gcp.threading' in new
        assert not new & {'asyncio', 'gcp.asyncio', 'gcp.contrib'}, sorted(new)
    """)


@pytest.mark.parametrize('name', sorted(path.stem for path in (ROOT / 'gcp' / 'contrib').glob('[!_]*.py')))
def test_every_contrib_module_is_found_without_its_driver(name: str) -> None:
    run(f"""
        import sys
        before = set(sys.modules)
        import importlib.util
        import gcp.dropin

        assert importlib.util.find_spec('generic_connection_pool.contrib.{name}') is not None
        assert not (set(sys.modules) - before) & {{'asyncio', 'asyncpg', 'gcp.contrib.{name}', 'psycopg2'}}
    """)


@pytest.mark.parametrize('first', ['', 'import generic_connection_pool.threading, generic_connection_pool.asyncio'])
@pytest.mark.parametrize('name', ['rankmap', 'threading.locks', 'asyncio.locks', 'asyncio.utils', 'contrib.nosuch'])
def test_module_without_counterpart_is_named(name: str, first: str) -> None:
    run(f"""
        import gcp.dropin
        {first}
        for _ in range(2):
            try:
                import generic_connection_pool.{name}
            except ModuleNotFoundError as e:
                assert e.name == 'generic_connection_pool.{name}'
                assert str(e).startswith('gcp has no counterpart of generic_connection_pool.{name};'), e
            else:
                raise AssertionError('imported')
    """)


def test_missing_driver_is_reported_as_such() -> None:
    run("""
        import sys
        sys.modules['psycopg2'] = None
        import gcp.dropin
        try:
            import generic_connection_pool.contrib.psycopg2
        except ImportError as e:
            assert e.name == 'psycopg2', e
        else:
            raise AssertionError('imported')
        assert 'generic_connection_pool.contrib.psycopg2' not in sys.modules
    """)


def test_gcp_wins_over_an_installed_predecessor(predecessor: Path) -> None:
    run(
        """
        import gcp.dropin
        import generic_connection_pool
        from generic_connection_pool.threading import ConnectionPool
        assert not hasattr(generic_connection_pool, 'genuine')
        assert ConnectionPool.__module__ == 'gcp.threading'
        try:
            import generic_connection_pool.rankmap
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError('imported')
        """,
        predecessor,
    )


@pytest.mark.parametrize('name', [OLD, f'{OLD}.threading'])
def test_too_late_is_refused_and_changes_nothing(name: str, predecessor: Path) -> None:
    run(
        f"""
        import sys
        import {name}
        import generic_connection_pool
        finders = list(sys.meta_path)
        for _ in range(2):
            try:
                import gcp.dropin
            except ImportError as e:
                assert 'imported too late: generic_connection_pool' in str(e), e
            else:
                raise AssertionError('imported')
        assert sys.meta_path == finders
        assert sys.modules['generic_connection_pool'] is generic_connection_pool and generic_connection_pool.genuine
        import generic_connection_pool.rankmap
        """,
        predecessor,
    )


def test_again_is_harmless() -> None:
    run("""
        import importlib, sys
        import gcp.dropin
        import generic_connection_pool.threading as first
        finders = len(sys.meta_path)

        importlib.reload(gcp.dropin)
        del sys.modules['gcp.dropin']
        import gcp.dropin
        import generic_connection_pool.threading as second

        assert len(sys.meta_path) == finders
        assert first is second is sys.modules['gcp.threading']
        import generic_connection_pool.common, generic_connection_pool.asyncio.pool
    """)


def test_gcp_alone_leaves_the_name_alone(predecessor: Path) -> None:
    run(
        """
        import gcp, gcp.threading
        import generic_connection_pool
        assert generic_connection_pool.genuine
        """,
        predecessor,
    )


def test_patching_through_the_alias_patches_gcp() -> None:
    run("""
        import gcp.dropin
        import gcp.threading
        from unittest import mock
        with mock.patch('generic_connection_pool.threading.pool.ConnectionPool') as fake:
            assert gcp.threading.ConnectionPool is fake
    """)


def test_pickled_errors_of_the_predecessor_load() -> None:
    run("""
        import gcp.dropin
        import gcp, pickle
        error = pickle.loads(b'cgeneric_connection_pool.exceptions\\nConnectionPoolClosedError\\n.')
        assert error is gcp.ConnectionPoolClosedError
    """)


def test_threads_that_import_at_once_get_the_same() -> None:
    run("""
        import importlib, sys, threading
        import gcp.dropin
        sys.setswitchinterval(1e-6)
        names = ['threading', 'asyncio', 'contrib.socket', 'threading.pool', 'asyncio.pool']
        barrier, found = threading.Barrier(16), []

        def work(turn):
            barrier.wait()
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                found.append((name, importlib.import_module('generic_connection_pool.' + name)))

        threads = [threading.Thread(target=work, args=(turn,)) for turn in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 16 * len(names)
        assert len({(name, id(module)) for name, module in found}) == len(names)
    """)
