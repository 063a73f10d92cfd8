"""Starlette: the lifespan yields the pool, and each request has it in its state.

uvicorn starlette_app:app                      PGHOST, PGUSER, PGDATABASE, PGPASSWORD say where the server is"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import gcp.debug
from gcp import AcquireTimeoutError, Retry
from gcp.asyncio import ConnectionPool
from gcp.contrib.asyncpg import Connection, DbConnectionManager

Pool = ConnectionPool[str, Connection]


class State(TypedDict):
    pool: Pool


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[State, None]:
    """Open the pool in the event loop that uses it, and close it there."""
    manager = DbConnectionManager({'orders': {}})
    async with ConnectionPool(manager, name='orders', max_size=10, acquire_timeout=5.0, connect_retry=Retry()) as pool:
        yield {'pool': pool}


async def orders(request: Request) -> Response:
    pool: Pool = request.state.pool
    async with pool.connection('orders') as conn:
        rows = await conn.fetch('SELECT generate_series(1, $1) AS id', int(request.path_params['customer']))
    return JSONResponse([row['id'] for row in rows])  # the connection is free before the response is sent


async def busy(request: Request, error: Exception) -> Response:
    """Tell the client to come back, instead of an error 500."""
    return JSONResponse({'error': 'no connection in time'}, 503, headers={'Retry-After': '1'})


app = Starlette(
    routes=[Route('/orders/{customer:int}', orders), Mount('/debug/pools', gcp.debug.asgi())],
    lifespan=lifespan,
    exception_handlers={AcquireTimeoutError: busy},
)
