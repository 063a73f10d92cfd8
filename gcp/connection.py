"""`connection` for pools whose class overrides `acquire` or `release`: written in terms of these."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any

from gcp._core import chain, is_clean


@contextmanager
def connection_of(self: Any, endpoint: Any, timeout: float | None = None, **options: Any) -> Iterator[Any]:
    """Acquire a connection, and release it at the end. An error of the release never hides that of the block."""
    conn = self.acquire(endpoint, timeout=timeout, **options)
    try:
        yield conn
    except BaseException as body:
        try:
            release_after(self, conn, endpoint, body)
        except Exception as error:
            chain(body, error)
        raise
    else:
        self.release(conn, endpoint)


@asynccontextmanager
async def async_connection_of(
    self: Any, endpoint: Any, timeout: float | None = None, **options: Any
) -> AsyncIterator[Any]:
    """Acquire a connection, and release it at the end. An error of the release never hides that of the block."""
    conn = await self.acquire(endpoint, timeout=timeout, **options)
    try:
        yield conn
    except BaseException as body:
        try:
            await release_after(self, conn, endpoint, body)
        except Exception as error:
            chain(body, error)
        raise
    else:
        await self.release(conn, endpoint)


def release_after(self: Any, conn: Any, endpoint: Any, error: BaseException) -> Any:
    """Release a connection after an error. A `release` that does not take the error sees only clean connections."""
    if takes_error(type(self).release):
        return self.release(conn, endpoint, error=error)
    return self.release(conn, endpoint) if is_clean(self, endpoint, conn, error) else self.discard(conn, endpoint)


@lru_cache
def takes_error(release: Any) -> bool:
    """Whether a `release` takes the argument ``error``."""
    from inspect import Parameter, signature  # it takes long to import, and only such a subclass needs it

    try:
        parameters = signature(release).parameters
    except ValueError:  # of a function that does not tell
        return False
    return 'error' in parameters or any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
