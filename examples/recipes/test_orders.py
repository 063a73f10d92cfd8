"""Tests that use the fixtures of conftest.py: run `pytest` in this directory."""

import pytest

import gcp.asyncio
import gcp.threading
from gcp.contrib import asyncpg, psycopg


def test_in_a_thread(pool: gcp.threading.ConnectionPool[str, psycopg.Connection]) -> None:
    with pool.connection('orders') as conn:
        assert conn.execute('SELECT 6 * 7').fetchone() == (42,)


@pytest.mark.anyio
@pytest.mark.parametrize('number', [1, 2])
async def test_in_a_task(apool: gcp.asyncio.ConnectionPool[str, asyncpg.Connection], number: int) -> None:
    async with apool.connection('orders') as conn:
        assert await conn.fetchval('SELECT $1::int', number) == number
