"""Two requests over one stream through TLS."""

import asyncio
import sys

from generic_connection_pool.asyncio import ConnectionPool
from generic_connection_pool.contrib.socket_async import TcpStreamConnectionManager

Endpoint = tuple[str, int]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def main() -> None:
    pool = ConnectionPool[Endpoint, Connection](
        TcpStreamConnectionManager(ssl=True),
        idle_timeout=30.0,
        max_lifetime=600.0,
        min_idle=3,
        max_size=20,
        total_max_size=100,
        background_collector=True,
    )

    async def get(hostname: str, port: int, path: str) -> tuple[bytes, bytes]:
        async with pool.connection(endpoint=(hostname, port), timeout=5.0) as (reader, writer):
            writer.write(f'GET {path} HTTP/1.1\r\nHost: {hostname}\r\n\r\n'.encode())
            await writer.drain()
            status = await reader.readuntil(b'\r\n')
            headers = (await reader.readuntil(b'\r\n\r\n')).lower().splitlines()
            length = next(int(line.split(b':')[1]) for line in headers if line.startswith(b'content-length'))
            return status.strip(), await reader.readexactly(length)

    try:
        for path in ('/one', '/two'):
            print(*await get('localhost', int(sys.argv[1]), path))
        print(pool.get_size())
    finally:
        await pool.close()


asyncio.run(main())
