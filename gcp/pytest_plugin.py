"""A plugin of pytest: fails a test that leaves a connection acquired or a pool open, and makes pools for tests.

pytest loads it when gcpool is installed. As long as a program does not create a pool, it does nothing but to look
whether one exists."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial, wraps
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

__all__ = ['gcp_async_pool', 'gcp_pool']

MARK = 'gcp_leaks'
CHOICES = ('fail', 'off')
PACKAGE = str(Path(__file__).parent) + os.sep

#: How far a lease's time of acquire, which is told as an age, may be off, seconds.
BLUR = 0.001


class Origin:
    """A pool that was created while a test ran.

    :param pool: the pool: kept until the test has ended, since one that is dropped cannot be looked at any more
    :ivar file: the file with the line that created it
    :ivar line: the line
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        self.file, self.line = ('?', 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


class Watch:
    """What one test did with pools.

    :param function: the code of the test's function, if it is known
    :ivar is_over: whether the test has failed, so that what it leaves behind is not told
    """

    def __init__(self, function: CodeType | None) -> None:
        self.made: list[Origin] = []
        self.is_over = False
        self._function = function
        self._began = time.monotonic()
        self._exempt: list[tuple[float, float]] = []

    def note(self, pool: Any) -> None:
        """Note a pool that was created. (`gcp.observe` calls it.)"""
        self.made.append(Origin(pool))

    def forget(self, pool: Any) -> None:
        """Leave it to a fixture to close a pool."""
        for origin in self.made.copy():
            if origin.pool is pool:
                self.made.remove(origin)  # in place: other threads may make pools

    def exempt(self, began: float, made: int) -> None:
        """Overlook what was acquired and created since: it belongs to a fixture that outlives the test.

        :param began: when its set-up began
        :param made: how many pools there were then
        """
        self._exempt.append((began - BLUR, time.monotonic() + BLUR))
        del self.made[made:]

    def leaks(self, *, own: bool) -> list[str]:
        """Describe what was left behind.

        :param own: only what the test's function acquired or created itself: no fixture knows of it
        """
        told = [
            f'pool {origin.pool.name} is left open; it was created at {origin.file}:{origin.line}'
            for origin in self.made.copy()
            if not origin.pool._core.closed and (not own or self._is_own(origin.file, origin.line))
        ]
        for pool in _living():
            told += [_describe(pool, holder) for holder in pool.holders() if self._is_leak(holder, own)]
        return told

    def _is_own(self, file: str | None, line: int | None) -> bool:
        function = self._function
        return function is not None and file == function.co_filename and line in _lines_of(function)

    def _is_leak(self, holder: Any, own: bool) -> bool:
        acquired = time.monotonic() - holder.age
        if acquired < self._began - BLUR or any(began <= acquired <= ended for began, ended in self._exempt):
            return False
        return not own or self._is_own(holder.file, holder.line)


def _lines_of(code: CodeType) -> set[int]:
    """Return the lines of a function, with those of the functions in it."""
    lines = {line for _, _, line in code.co_lines() if line is not None}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            lines |= _lines_of(inner)
    return lines


def _living() -> list[Any]:
    telemetry = sys.modules.get('gcp.observe.telemetry')
    return [] if telemetry is None else telemetry.living()


def _describe(pool: Any, holder: Any) -> str:
    where = f'{holder.file}:{holder.line}, in {holder.function}' if holder.file else 'an unknown place'
    who = holder.task_name or holder.thread_name
    return f'a connection of pool {pool.name} to {holder.endpoint!r} was not released; it was acquired at {where}' + (
        f', by {who}' if who else ''
    )


# --- the hooks of pytest ---

_watch = pytest.StashKey[Watch]()
_running: list[Watch] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the setting."""
    told = "'fail' a test that leaves a connection of gcp acquired or a pool open, or 'off'"
    parser.addini(MARK, told, default='fail')


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, and check the setting."""
    config.addinivalue_line('markers', f"{MARK}(choice): 'fail' the test for what it leaves in pools of gcp, or 'off'")
    _check(config.getini(MARK), f'the setting {MARK}')


def _check(choice: Any, what: str) -> str:
    if choice not in CHOICES:
        raise pytest.UsageError(f"{what} must be 'fail' or 'off', not {choice!r}")
    return str(choice)


def _is_watched(item: pytest.Item) -> bool:
    mark = item.get_closest_marker(MARK)
    if mark is None:
        return bool(item.config.getini(MARK) == 'fail')
    return _check(mark.args[0] if mark.args else None, f'the mark {MARK} of {item.nodeid}') == 'fail'


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch a test with its fixtures."""
    if not _is_watched(item):
        return (yield)
    from gcp.observe import telemetry

    watch = Watch(getattr(inspect.unwrap(getattr(item, 'function', _is_watched)), '__code__', None))
    item.stash[_watch] = watch
    telemetry.on_new_pool.append(watch.note)
    _running.append(watch)
    try:
        return (yield)
    finally:
        _running.remove(watch)
        telemetry.on_new_pool.remove(watch.note)
        del item.stash[_watch]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, Any, Any]:
    """Overlook what belongs to a fixture of a class, a module or the session."""
    watch = _running[-1] if _running and fixturedef.scope != 'function' else None
    began, made = time.monotonic(), len(watch.made) if watch else 0
    try:
        return (yield)
    finally:
        if watch is not None:
            watch.exempt(began, made)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that has itself left something behind."""
    watch = item.stash.get(_watch, None)
    try:
        result = yield
    except BaseException:
        if watch is not None:
            watch.is_over = True  # the traceback holds what the test held
        raise
    if watch is not None and (told := watch.leaks(own=True)):
        watch.is_over = True
        pytest.fail('\n'.join(told), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test whose fixtures or helpers have left something behind."""
    result = yield
    watch = item.stash.get(_watch, None)
    if watch is not None and not watch.is_over and (told := watch.leaks(own=False)):
        pytest.fail('\n'.join(told), pytrace=False)
    return result


# --- fixtures ---


@pytest.fixture
def gcp_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Make threading pools that are closed after the test: ``gcp_pool(manager, max_size=2)``."""
    from gcp.threading import ConnectionPool

    made: list[Any] = []

    yield partial(_make, request, ConnectionPool, made)
    told = _held(made)
    for pool in made:
        pool.close(timeout=0)
    _fail(request, told)


@pytest.fixture
def gcp_async_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Make asyncio pools that are closed when the test's function ends. One that is no coroutine function may close its
    event loop before: then it is to close its pools, too."""
    from gcp.asyncio import ConnectionPool

    made: list[Any] = []
    if inspect.iscoroutinefunction(getattr(request.node, 'obj', None)):
        request.node.obj = _closing(request, request.node.obj, made)
    yield partial(_make, request, ConnectionPool, made)
    told = _held(made)
    for pool in made:
        if not pool._core.closed and not _close_in_its_loop(pool):
            told.append(f'pool {pool.name} is left open, and its event loop has ended: close it in the test')
    _fail(request, told)


def _closing(request: pytest.FixtureRequest, function: Callable[..., Any], made: list[Any]) -> Callable[..., Any]:
    """Have a test close its pools when it ends, while its event loop runs."""

    @wraps(function)
    async def closing(*args: Any, **kwargs: Any) -> Any:
        told: list[str] = []
        try:
            result = await function(*args, **kwargs)
            told = _held(made)
        finally:
            for pool in made:
                await pool.close(timeout=0)
        _fail(request, told)
        return result

    return closing


def _make(request: pytest.FixtureRequest, kind: Any, made: list[Any], connection_manager: Any, **options: Any) -> Any:
    made.append(kind(connection_manager, **options))
    if (watch := request.node.stash.get(_watch, None)) is not None:
        watch.forget(made[-1])
    return made[-1]


def _held(pools: list[Any]) -> list[str]:
    return [_describe(pool, holder) for pool in pools for holder in pool.holders()]


def _close_in_its_loop(pool: Any) -> bool:
    """Close a pool. Returns False if that is not possible any more, and the pool still has connections."""
    import asyncio

    loop = pool._loop or asyncio.new_event_loop()
    if loop.is_closed():
        pool._core.close()
        return bool(pool._core.size == 0)
    loop.run_until_complete(pool.close(timeout=0))
    if pool._loop is None:
        loop.close()
    return True


def _fail(request: pytest.FixtureRequest, told: list[str]) -> None:
    watch = request.node.stash.get(_watch, None)
    if told and watch is not None and not watch.is_over:
        watch.is_over = True
        pytest.fail('\n'.join(told), pytrace=False)
