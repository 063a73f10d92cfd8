"""FastAPI: the pool lives as long as the application, and a dependency holds a connection for one request.

uvicorn fastapi_app:app                        PGHOST, PGUSER, PGDATABASE, PGPASSWORD say where the server is"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import make_asgi_app

import gcp.debug
from gcp import AcquireTimeoutError, Retry
from gcp.asyncio import ConnectionPool
from gcp.contrib.asyncpg import Connection, DbConnectionManager

Pool = ConnectionPool[str, Connection]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Open the pool in the event loop that uses it, and close it there."""
    manager = DbConnectionManager({'orders': {}})
    async with ConnectionPool(manager, name='orders', max_size=10, acquire_timeout=5.0, connect_retry=Retry()) as pool:
        app.state.pool = pool
        yield


async def connection(request: Request) -> AsyncIterator[Connection]:
    """Hold a connection while the request is served."""
    pool: Pool = request.app.state.pool
    async with pool.connection('orders', tag=request.url.path) as conn:
        yield conn


app = FastAPI(lifespan=lifespan)
app.mount('/metrics', make_asgi_app())
app.mount('/debug/pools', gcp.debug.asgi())


@app.get('/orders/{customer}')
async def orders(customer: int, conn: Annotated[Connection, Depends(connection)]) -> list[int]:
    return [row['id'] for row in await conn.fetch('SELECT generate_series(1, $1) AS id', customer)]


@app.exception_handler(AcquireTimeoutError)
async def busy(request: Request, error: Exception) -> JSONResponse:
    """Tell the client to come back, instead of an error 500."""
    return JSONResponse({'error': 'no connection in time'}, 503, headers={'Retry-After': '1'})
