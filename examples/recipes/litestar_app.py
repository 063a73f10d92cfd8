"""Litestar: the lifespan opens the pool, and a dependency holds a connection for one request.

uvicorn litestar_app:app                       PGHOST, PGUSER, PGDATABASE, PGPASSWORD say where the server is"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import Dependency

from gcp import AcquireTimeoutError, Retry
from gcp.asyncio import ConnectionPool
from gcp.contrib.asyncpg import Connection, DbConnectionManager


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    """Open the pool in the event loop that uses it, and close it there."""
    manager = DbConnectionManager({'orders': {}})
    async with ConnectionPool(manager, name='orders', max_size=10, acquire_timeout=5.0, connect_retry=Retry()) as pool:
        app.state.pool = pool
        yield


async def connection(state: State) -> AsyncIterator[Connection]:
    """Hold a connection while the request is served."""
    pool: ConnectionPool[str, Connection] = state.pool
    async with pool.connection('orders') as conn:
        yield conn


@get('/orders/{customer:int}')
async def orders(customer: int, conn: Annotated[Any, Dependency(skip_validation=True)]) -> list[int]:
    return [row['id'] for row in await conn.fetch('SELECT generate_series(1, $1) AS id', customer)]


def busy(request: Request[Any, Any, Any], error: AcquireTimeoutError) -> Response[dict[str, str]]:
    """Tell the client to come back, instead of an error 500."""
    return Response({'error': 'no connection in time'}, status_code=503, headers={'Retry-After': '1'})


app = Litestar(
    [orders],
    lifespan=[lifespan],
    dependencies={'conn': Provide(connection)},
    exception_handlers={AcquireTimeoutError: busy},
)
