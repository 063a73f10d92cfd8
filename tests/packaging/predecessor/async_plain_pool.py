"""Two commands over one stream without TLS."""

import asyncio
import sys

from generic_connection_pool.asyncio import ConnectionPool
from generic_connection_pool.contrib.socket_async import TcpStreamConnectionManager


async def main() -> None:
    pool = ConnectionPool[tuple[str, int], tuple[asyncio.StreamReader, asyncio.StreamWriter]](
        TcpStreamConnectionManager(ssl=None), min_idle=3, background_collector=True
    )
    try:
        for line in (b'PING', b'ECHO hello'):
            async with pool.connection(endpoint=('127.0.0.1', int(sys.argv[1])), timeout=5.0) as (reader, writer):
                writer.write(line + b'\n')
                await writer.drain()
                print((await reader.readline()).decode().strip())
        print(await pool.get_endpoint_pool_size(('127.0.0.1', int(sys.argv[1]))))
    finally:
        await pool.close()


asyncio.run(main())
