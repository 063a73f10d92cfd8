"""The plugin of pytest, by pytests of their own: what it fails, what it overlooks, and the fixtures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ['pytester']

Run = Callable[..., str]

HEAD = """
import asyncio
import pytest
from gcp.testing import AsyncFakeManager, FakeManager
import gcp.asyncio, gcp.threading
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run tests with the plugin, in a process of their own."""
    monkeypatch.setenv('PYTEST_DISABLE_PLUGIN_AUTOLOAD', '1')
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).resolve().parents[2]))

    def run(source: str, *options: str, **outcomes: int) -> str:
        pytester.makepyfile(test_it=HEAD + source)
        ran = pytester.runpytest_subprocess('-p', 'gcp.pytest_plugin', '-W', 'error', '--strict-markers', *options)
        ran.assert_outcomes(**outcomes)
        return ran.stdout.str()

    return run


def line_of(part: str) -> int:
    """The number of the line of the tests that has a word in it."""
    lines = Path('test_it.py').read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if part in line)


SHARED = """
pool = gcp.threading.ConnectionPool(FakeManager())
"""


def test_a_lease_that_is_not_released_fails_the_test_and_names_its_line(run: Run) -> None:
    source = f"""
{SHARED}
def test_leaks():
    pool.acquire('orders')  # here

def test_does_not():
    with pool.connection('orders'):
        pass
"""
    out = run(source, passed=1, failed=1)
    assert "to 'orders' was not released; it was acquired at " in out
    assert f'test_it.py:{line_of("# here")}, in test_leaks' in out


def test_a_lease_of_a_helper_fails_the_test_after_its_fixtures(run: Run) -> None:
    source = f"""
{SHARED}
def helper():
    return pool.acquire('orders')  # here

@pytest.fixture
def conn():
    conn = helper()
    yield conn
    pool.release(conn, 'orders')

def test_is_released_by_its_fixture(conn):
    pass

def test_leaks():
    helper()
"""
    out = run(source, passed=2, errors=1)
    assert f'test_it.py:{line_of("# here")}, in helper' in out
    assert 'ERROR at teardown of test_leaks' in out


def test_a_pool_that_is_left_open_fails_the_test_and_names_its_line(run: Run) -> None:
    source = """
def test_leaks():
    gcp.threading.ConnectionPool(FakeManager(), name='mine')  # here

def test_closes():
    with gcp.threading.ConnectionPool(FakeManager()):
        pass
"""
    out = run(source, passed=1, failed=1)
    assert 'pool mine is left open; it was created at ' in out
    assert f'test_it.py:{line_of("# here")}' in out


def test_a_pool_of_a_helper_may_be_closed_by_a_fixture(run: Run) -> None:
    source = """
made = []

def make():
    made.append(gcp.threading.ConnectionPool(FakeManager()))
    return made[-1]

@pytest.fixture
def closing():
    yield
    made.pop().close()

def test_is_closed(closing):
    make()

def test_is_not():
    make()
"""
    run(source, passed=2, errors=1)


def test_what_belongs_to_a_longer_life_is_overlooked(run: Run) -> None:
    run(
        """
@pytest.fixture(scope='module')
def pool():
    with gcp.threading.ConnectionPool(FakeManager()) as pool:
        conn = pool.acquire('kept')
        yield pool
        pool.release(conn, 'kept')

def test_one(pool):
    with pool.connection('orders'):
        pass

def test_two(pool):
    pass
""",
        passed=2,
    )


def test_a_test_that_fails_is_not_told_of_its_leaks(run: Run) -> None:
    out = run(
        f"""
{SHARED}
def test_fails():
    conn = pool.acquire('orders')
    assert False
""",
        failed=1,
    )
    assert 'was not released' not in out


def test_it_can_be_switched_off_for_a_test_and_for_all(run: Run) -> None:
    source = f"""
{SHARED}
def test_one():
    pool.acquire('orders')

@pytest.mark.gcp_leaks('off')
def test_two():
    pool.acquire('orders')
"""
    run(source, passed=1, failed=1)
    run(source, '-o', 'gcp_leaks=off', passed=2)


def test_another_word_is_refused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).resolve().parents[2]))
    ran = pytester.runpytest_subprocess('-p', 'gcp.pytest_plugin', '-o', 'gcp_leaks=maybe')
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    assert "the setting gcp_leaks must be 'fail' or 'off', not 'maybe'" in ran.stderr.str()


def test_tasks_are_watched_as_threads_are(run: Run) -> None:
    source = """
def test_leaks():
    async def main():
        async with gcp.asyncio.ConnectionPool(AsyncFakeManager()) as pool:
            async with pool.connection('orders'):
                pass
        kept.append(gcp.asyncio.ConnectionPool(AsyncFakeManager()))
        await kept[-1].acquire('users')  # here

    asyncio.run(main())

kept = []
"""
    out = run(source, failed=1)
    assert f'test_it.py:{line_of("# here")}, in ' in out
    assert 'main' in out


def test_the_fixtures_make_pools_and_close_them(run: Run) -> None:
    run(
        """
seen = []

def test_threads(gcp_pool):
    seen.append(gcp_pool(FakeManager(), max_size=2))
    with seen[0].connection('orders'):
        pass

def test_it_is_closed():
    assert seen[0].stats().is_closed

@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

def test_asyncio(loop, gcp_async_pool):
    async def main():
        async with pool.connection('orders'):
            pass
    pool = gcp_async_pool(AsyncFakeManager(), max_size=2)
    loop.run_until_complete(main())
    seen.append(pool)
    seen.append(gcp_async_pool(AsyncFakeManager()))

def test_they_are_closed():
    assert seen[1].stats().is_closed and seen[2].stats().is_closed
""",
        passed=4,
    )


def test_a_coroutine_function_has_its_pools_closed_in_its_loop(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import asyncio, inspect
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        names = inspect.signature(pyfuncitem.obj).parameters
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True
""")
    source = """
seen = []

async def test_asyncio(gcp_async_pool):
    seen.append(gcp_async_pool(AsyncFakeManager()))
    async with seen[0].connection('orders'):
        pass

def test_it_is_closed():
    assert seen[0].stats().is_closed

async def test_leaks(gcp_async_pool):
    await gcp_async_pool(AsyncFakeManager()).acquire('orders')  # here
"""
    out = run(source, passed=2, failed=1)
    assert f'test_it.py:{line_of("# here")}, in test_leaks' in out


def test_the_fixtures_tell_what_was_not_released(run: Run) -> None:
    source = """
def helper(pool):
    pool.acquire('orders')  # here

def test_threads(gcp_pool):
    helper(gcp_pool(FakeManager()))

def test_asyncio(gcp_async_pool):
    async def main():
        pool = gcp_async_pool(AsyncFakeManager())
        async with pool.connection('orders'):
            pass
    asyncio.run(main())
"""
    out = run(source, passed=2, errors=2)
    assert f'test_it.py:{line_of("# here")}, in helper' in out
    assert 'its event loop has ended: close it in the test' in out


def test_no_front_is_imported_for_those_who_do_not_use_it() -> None:
    program = """
import sys, pytest
before = set(sys.modules)
import gcp.pytest_plugin
new = set(sys.modules) - before
assert not new & {'asyncio', 'gcp.asyncio', 'gcp.threading', 'gcp.contrib', 'gcp.testing', 'gcp.stats'}, sorted(new)
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, '-c', program], check=True, cwd=root)
