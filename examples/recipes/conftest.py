"""pytest: a pool belongs to the event loop in which it is first used, so each test with a loop of its own has a pool of
its own. A threading pool can serve the whole session."""

from collections.abc import AsyncIterator, Iterator

import pytest

import gcp.asyncio
import gcp.threading
from gcp.contrib import asyncpg, psycopg


@pytest.fixture(scope='session')
def pool() -> Iterator[gcp.threading.ConnectionPool[str, psycopg.Connection]]:
    manager = psycopg.DbConnectionManager({'orders': {}})
    with gcp.threading.ConnectionPool(manager, max_size=2, acquire_timeout=10.0, registry=None) as pool:
        yield pool
        assert pool.holders() == []  # a test that keeps a connection is found here


@pytest.fixture
def anyio_backend() -> str:
    return 'asyncio'


@pytest.fixture
async def apool(anyio_backend: str) -> AsyncIterator[gcp.asyncio.ConnectionPool[str, asyncpg.Connection]]:
    """Make a pool in the loop of the test: an `async` fixture of anyio or pytest-asyncio runs there."""
    manager = asyncpg.DbConnectionManager({'orders': {}})
    async with gcp.asyncio.ConnectionPool(manager, max_size=2, acquire_timeout=10.0, registry=None) as pool:
        yield pool
        assert pool.holders() == []
