"""Smoke tests of an installed gcpool: needs nothing but Python and the package, and no folder of the project.

    python -I -W error tests/packaging/smoke.py

Each check is a function. What fails shows its traceback; the last line is "N passed, M failed", and the exit status is
1 when one failed.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

CHECKS: list[Callable[[], None]] = []

#: module of gcp.contrib -> the package that it needs
DRIVERS = {
    'asyncpg': 'asyncpg',
    'http_async': 'h11',
    'mysql': 'pymysql',
    'mysql_async': 'aiomysql',
    'psycopg': 'psycopg',
    'psycopg2': 'psycopg2',
    'redis': 'redis',
    'sqlalchemy': 'sqlalchemy',
}
#: the extra, where it is not called like the module
EXTRAS = {'http_async': 'http', 'mysql_async': 'mysql'}
OTHERS = ('django', 'http', 'socket', 'socket_async', 'unix', 'unix_async')


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS.append(function)
    return function


@check
def everything_comes_from_the_environment() -> None:
    import gcp  # noqa: F401

    where = [Path(sysconfig.get_path(name)).resolve() for name in ('platlib', 'purelib')]
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] == 'gcp':
            assert module.__file__ is not None
            file = Path(module.__file__).resolve()
            assert any(folder in file.parents for folder in where), f'{name} is {file}'


@check
def the_core_is_the_one_of_this_python() -> None:
    import gcp._core

    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    cores = [path.name for path in Path(gcp.__file__).parent.glob('_core.*') if path.suffix in ('.so', '.pyd')]
    assert cores == [f'_core{suffix}'], cores


@check
def the_metadata_is_that_of_the_package() -> None:
    import gcp

    distribution = importlib.metadata.distribution('gcpool')
    assert distribution.version == gcp.__version__
    assert distribution.metadata['Requires-Python'] == '>=3.10'
    assert Path(gcp.__file__).with_name('py.typed').exists()
    assert 'dev' not in (distribution.metadata.get_all('Provides-Extra') or ())


@check
def threads_share_a_pool() -> None:
    from gcp import AcquireTimeoutError
    from gcp.testing import FakeManager
    from gcp.threading import ConnectionPool

    with ConnectionPool(FakeManager(), max_size=2, name='smoke-threads') as pool:

        def use() -> None:
            for _ in range(100):
                with pool.connection('a', timeout=30.0):
                    pass

        users = [threading.Thread(target=use) for _ in range(8)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert sum(pool.stats().acquires.values()) == 800
        assert pool.stats().created <= 2
        with pool.connection('a'), pool.connection('a'):
            try:
                pool.acquire('a', timeout=0.0)
            except AcquireTimeoutError as error:
                assert 'max_size' in str(error)
            else:
                raise AssertionError('a third connection beside max_size=2')


@check
def tasks_share_a_pool() -> None:
    from gcp import AcquireTimeoutError
    from gcp.asyncio import ConnectionPool
    from gcp.testing import AsyncFakeManager

    async def main() -> None:
        async with ConnectionPool(AsyncFakeManager(), max_size=2, name='smoke-tasks') as pool:

            async def use() -> None:
                for _ in range(100):
                    async with pool.connection('a', timeout=30.0):
                        await asyncio.sleep(0)

            await asyncio.gather(*(use() for _ in range(8)))
            assert sum(pool.stats().acquires.values()) == 800
            async with pool.connection('a'), pool.connection('a'):
                try:
                    await pool.acquire('a', timeout=0.0)
                except AcquireTimeoutError:
                    pass
                else:
                    raise AssertionError('a third connection beside max_size=2')

    asyncio.run(main())


@check
def prometheus_shows_a_pool() -> None:
    import prometheus_client

    from gcp.testing import FakeManager
    from gcp.threading import ConnectionPool

    with ConnectionPool(FakeManager(), name='smoke-metrics') as pool:
        with pool.connection('a'):
            page = prometheus_client.generate_latest().decode()
    assert 'pool="smoke-metrics"' in page
    assert 'gcpool_acquires_total' in page


@check
def the_old_name_leads_here() -> None:
    import gcp.dropin
    import gcp.threading

    module = importlib.import_module('generic_connection_pool.threading')
    assert module.ConnectionPool is gcp.threading.ConnectionPool


@check
def managers_are_there_or_name_their_extra() -> None:
    for name in OTHERS:
        importlib.import_module(f'gcp.contrib.{name}')
    for name, driver in DRIVERS.items():
        if importlib.util.find_spec(driver) is None:
            try:
                importlib.import_module(f'gcp.contrib.{name}')
            except ImportError as error:
                assert f'gcpool[{EXTRAS.get(name, name)}]' in str(error)
            else:
                raise AssertionError(f'gcp.contrib.{name} can be imported without {driver}')


@check
def the_command_line_has_its_files() -> None:
    for command, expected in ((['--version'], 'gcpool '), (['grafana'], '"panels"'), (['rules'], 'groups:')):
        done = subprocess.run([sys.executable, '-I', '-m', 'gcp', *command], capture_output=True, text=True)
        assert done.returncode == 0 and expected in done.stdout, (command, done.stdout[-500:], done.stderr[-500:])


def main() -> int:
    """Run the checks; return the exit status."""
    failed = 0
    for function in CHECKS:
        try:
            function()
        except BaseException:
            failed += 1
            print(f'{function.__name__}:', file=sys.stderr)
            traceback.print_exc()
    print(f'{len(CHECKS) - failed} passed, {failed} failed')

    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
