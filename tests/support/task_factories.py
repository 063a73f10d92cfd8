"""A pytest plugin: run the tests of asyncio, and no others, under a task factory.

GCP_TASK_FACTORY=eager      tasks begin within `create_task`, and may end there (Python 3.12 and newer)
GCP_TASK_FACTORY=wrapping   each task's coroutine is awaited by another one, as instrumentations of asyncio do

Every event loop of the test process gets the factory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar

import pytest
from fronts import AsyncioFront

T = TypeVar('T')


def wrapping_task_factory(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], **given: Any
) -> asyncio.Task[T]:
    async def wrapped() -> T:
        return await coro

    return asyncio.Task(wrapped(), loop=loop, **given)


FACTORIES: dict[str, Any] = {
    'eager': getattr(asyncio, 'eager_task_factory', None),
    'wrapping': wrapping_task_factory,
}

begins_at_once = os.environ.get('GCP_TASK_FACTORY') == 'eager'


def set_for_all_loops(factory: Any) -> None:
    """Have each event loop made from now on use a task factory."""
    make: Callable[..., None] = asyncio.BaseEventLoop.__init__

    @wraps(make)
    def made(loop: asyncio.BaseEventLoop) -> None:
        make(loop)
        loop.set_task_factory(factory)

    asyncio.BaseEventLoop.__init__ = made  # type: ignore[method-assign]


def pytest_configure(config: pytest.Config) -> None:
    kind = os.environ.get('GCP_TASK_FACTORY')
    if kind:
        if FACTORIES.get(kind) is None:
            raise pytest.UsageError(
                f'GCP_TASK_FACTORY={kind}: not one of {", ".join(FACTORIES)}, or not on this Python'
            )
        set_for_all_loops(FACTORIES[kind])
    if kind == 'wrapping':  # what a task that is cancelled before it begins was to wrap
        config.addinivalue_line('filterwarnings', 'ignore:coroutine .* was never awaited:RuntimeWarning')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get('GCP_TASK_FACTORY'):
        others = [item for item in items if not is_of_asyncio(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


def is_of_asyncio(item: pytest.Item) -> bool:
    """Whether a test runs on the asyncio front, or runs an event loop itself."""
    fixtures = getattr(item, 'fixturenames', ())
    if 'front' in fixtures:
        return getattr(item, 'callspec').params.get('front') is AsyncioFront  # noqa: B009
    if 'asyncio_front' in fixtures:
        return True
    return 'threads_front' not in fixtures and hasattr(getattr(item, 'module', None), 'asyncio')
