"""Fixtures: `front` runs one body on both fronts, `script` runs a source text in an interpreter of its own."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fronts import AsyncioFront, Front, ThreadsFront

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

#: What `make test` leaves to the night; what a worker gets; the fixtures for servers; what tests say at the end.
pytest_plugins = ['selection', 'spreading', 'servers', 'mysql_peers', 'summary', 'task_factories']

# A shell starts jobs in the background with Ctrl-C ignored, which they and all their children inherit. Tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=[AsyncioFront, ThreadsFront], ids=lambda front: front.name)
def front(request: pytest.FixtureRequest) -> Front:
    """The front that an `async def` test runs on."""
    made: Front = request.param()
    return made


@pytest.fixture
def asyncio_front() -> Front:
    return AsyncioFront()


@pytest.fixture
def threads_front() -> Front:
    return ThreadsFront()


@pytest.fixture(autouse=True)
def unmounted() -> Iterator[None]:
    """After a test that has mounted the debug page: have it listen to no pool of other tests."""
    yield
    application = sys.modules.get('gcp.debug.application')
    if application is not None and application.EVENTS.watcher is not None:
        sys.modules['gcp.observe.telemetry'].on_new_pool.remove(application.EVENTS.watcher)
        application.EVENTS.watcher = None


class Heap:
    """Hides pytest, the collected tests and what other modules of tests left from the collector: a `gc.collect()` in a
    test then takes 1 ms, not 100."""

    def __init__(self) -> None:
        self._module: Path | None = None

    def pytest_collection_finish(self) -> None:
        self._freeze()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.path != self._module:
            self._module = item.path
            self._freeze()

    def _freeze(self) -> None:
        gc.collect()
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Heap())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Release what the fixtures made. The collected test is hidden from the collector: a cycle through its dict, by the
    traceback of an error say, would never be freed."""
    made = getattr(item, 'funcargs', None)
    try:
        return (yield)
    finally:
        if made:
            made.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Run an `async def` test on the front among its fixtures."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    front = next(argument for argument in arguments.values() if isinstance(argument, Front))
    front.run(pyfuncitem.obj(**arguments))
    return True


class Ended:
    """How a script ended."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr

    def __repr__(self) -> str:
        return f'status {self.status}\n-- stdout\n{self.out}\n-- stderr\n{self.err}'

    def quietly(self, *, status: int = 0) -> str:
        """Check that it ended as it should, without a word on stderr, and give its output."""
        assert self.status == status and not self.err, self
        return self.out


@pytest.fixture
def script() -> Callable[..., Ended]:
    """Run a source text in an interpreter of its own: `script(source, '-X', 'dev').quietly()`."""

    def run(source: str, *options: str, timeout: float = 120.0, env: dict[str, Any] | None = None) -> Ended:
        path = os.pathsep.join([*map(str, (ROOT, TESTS / 'support', TESTS / 'unit')), os.environ.get('PYTHONPATH', '')])
        process = subprocess.run(
            [sys.executable, *options, '-c', textwrap.dedent(source)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd='/',
            env={**os.environ, 'PYTHONPATH': path, 'PYTHONDEVMODE': '', **(env or {})},
        )
        return Ended(process)

    return run
