"""Managers of connections to nowhere. Made for whichever library's base class, so that others can be measured too."""

from __future__ import annotations

import asyncio
import time
from types import ModuleType
from typing import Any


def blocking(library: ModuleType, create_time: float = 0.0) -> Any:
    """Make a manager for a threading pool.

    :param library: where its base class is
    :param create_time: what a creation takes, seconds
    """

    class Manager(library.BaseConnectionManager[Any, Any]):  # type: ignore[misc, name-defined]
        def create(self, endpoint: object, timeout: float | None = None) -> object:
            if create_time:
                time.sleep(create_time)
            return object()

        def dispose(self, endpoint: object, conn: object, timeout: float | None = None) -> None:
            pass

    return Manager()


def asynchronous(library: ModuleType, create_time: float = 0.0) -> Any:
    """Make a manager for an asyncio pool.

    :param library: where its base class is
    :param create_time: what a creation takes, seconds
    """

    class Manager(library.BaseConnectionManager[Any, Any]):  # type: ignore[misc, name-defined]
        async def create(self, endpoint: object) -> object:
            if create_time:
                await asyncio.sleep(create_time)
            return object()

        async def dispose(self, endpoint: object, conn: object) -> None:
            pass

    return Manager()
