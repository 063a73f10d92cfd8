"""Managers of fake connections, derived from the base class of gcp or of the predecessor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

HOOKS = ('check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead')


def blocking(library: ModuleType, create_time: float = 0.0, hooks: Iterable[str] = ()) -> Any:
    """Make a manager for a threading pool.

    :param library: where its base class is
    :param create_time: what a creation takes, seconds
    :param hooks: which hooks to override, by a method that does nothing
    """

    class Manager(library.BaseConnectionManager[Any, Any]):  # type: ignore[misc, name-defined]
        def create(self, endpoint: object, timeout: float | None = None) -> object:
            if create_time:
                time.sleep(create_time)
            return object()

        def dispose(self, endpoint: object, conn: object, timeout: float | None = None) -> None:
            pass

    return overriding(Manager, hooks, nothing, alive)()


def asynchronous(library: ModuleType, create_time: float = 0.0, hooks: Iterable[str] = ()) -> Any:
    """Make a manager for an asyncio pool.

    :param library: where its base class is
    :param create_time: what a creation takes, seconds
    :param hooks: which hooks to override, by a method that does nothing
    """

    class Manager(library.BaseConnectionManager[Any, Any]):  # type: ignore[misc, name-defined]
        async def create(self, endpoint: object) -> object:
            if create_time:
                await asyncio.sleep(create_time)
            return object()

        async def dispose(self, endpoint: object, conn: object) -> None:
            pass

    return overriding(Manager, hooks, nothing_awaited, alive_awaited)()


Hook = Callable[..., Any]


def overriding(manager: type[Any], hooks: Iterable[str], nothing: Hook, alive: Hook) -> type[Any]:
    """Derive a manager that overrides hooks."""
    if unknown := set(hooks) - set(HOOKS):
        raise ValueError(f'hooks must be of {", ".join(HOOKS)}, not {", ".join(sorted(unknown))}')
    return type('Manager', (manager,), {name: alive if name == 'check_aliveness' else nothing for name in hooks})


def nothing(self: object, endpoint: object, conn: object) -> None:
    pass


def alive(self: object, endpoint: object, conn: object, timeout: float | None = None) -> bool:
    return True


async def nothing_awaited(self: object, endpoint: object, conn: object) -> None:
    pass


async def alive_awaited(self: object, endpoint: object, conn: object) -> bool:
    return True
