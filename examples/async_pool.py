"""Streams for asyncio: forty tasks talk to two servers through the few connections of one pool.

    python async_pool.py                                               starts two servers of its own
    python async_pool.py --host example.org example.net                talks to these
    python async_pool.py --host example.org --port 443 --tls           ... through TLS

The same page as tcp_pool.py, in the other colour, and even more of HTTP by hand."""

import argparse
import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator

from gcp.asyncio import ConnectionPool
from gcp.contrib.socket_async import Stream, TcpStreamConnectionManager, TcpStreamEndpoint

Pool = ConnectionPool[TcpStreamEndpoint, Stream]

REQUESTS = 40
TIMEOUT = 3.0


async def fetch(pool: Pool, endpoint: TcpStreamEndpoint) -> str:
    async with pool.connection(endpoint, timeout=TIMEOUT) as stream:  # to wait, connect and shake hands: in all
        try:
            return await asyncio.wait_for(ask(endpoint, *stream), TIMEOUT)
        except BaseException:  # also a cancellation in the middle of an answer
            # The rest of an answer must not be taken for the next one's. What we close, the pool lends to nobody.
            stream[1].close()
            raise


async def ask(endpoint: TcpStreamEndpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    host, port = endpoint
    writer.write(f'GET / HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode())
    await writer.drain()
    status, *lines = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(':') for line in lines)}
    size = await skip_body(headers, reader)
    if not status.startswith('HTTP/1.1 ') or headers.get('connection', '').lower() == 'close':
        writer.close()  # the server does it, too; this the pool sees at once
    return f'{host}:{port} says {status} and {size} bytes'


async def skip_body(headers: dict[str, str], reader: asyncio.StreamReader) -> int:
    if 'content-length' in headers:
        return len(await reader.readexactly(int(headers['content-length'])))
    if headers.get('transfer-encoding', '').lower() != 'chunked':
        return len(await reader.read())
    total = 0
    while size := int((await reader.readline()).partition(b';')[0], 16):
        total += len(await reader.readexactly(size + 2)) - 2
    while (await reader.readline()).strip():
        pass
    return total


async def use(endpoints: list[TcpStreamEndpoint], tls: bool) -> None:
    pool: Pool = ConnectionPool(
        TcpStreamConnectionManager(ssl=tls),
        min_idle=1,  # of each endpoint, one connection is kept,
        idle_timeout=30.0,  # others for so long after their last use
        max_size=2,  # no endpoint has more than two,
        total_max_size=3,  # and all together no more than three
        background_collector=True,  # what has expired is disposed of in the background
        name='web',
    )
    try:
        requests = (fetch(pool, endpoints[number % len(endpoints)]) for number in range(REQUESTS))
        answers = Counter(await asyncio.gather(*requests))
        for answer, times in sorted(answers.items()):
            print(f'{answer}, {times} times')
        stats = pool.stats()
        print(f'{stats.created} connections served {sum(stats.acquires.values())} acquires')
        print(pool)
    finally:
        await pool.close(timeout=1.0)  # idle connections now, others when they come back, or then by force


async def main() -> None:
    parser = argparse.ArgumentParser(description='Forty tasks talk to HTTP servers through one pool.')
    parser.add_argument('--host', nargs='+', help='servers to talk to (default: start two)')
    parser.add_argument('--port', type=int, default=80, help='their port (default: %(default)s)')
    parser.add_argument('--tls', action='store_true', help='talk to them through TLS')
    options = parser.parse_args()
    if options.host:
        await use([(host, options.port) for host in options.host], options.tls)
    else:
        async with serve('one') as one, serve('the other') as other:
            await use([one, other], tls=False)


# --- a server, for those who have none at hand ---


@contextlib.asynccontextmanager
async def serve(name: str) -> AsyncIterator[TcpStreamEndpoint]:
    body = f'Hello from {name}.\n'.encode()
    head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n'.encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b'\r\n\r\n'):
                writer.write(head + body)
        writer.close()

    server = await asyncio.start_server(answer, '127.0.0.1', 0)
    async with server:
        yield server.sockets[0].getsockname()


if __name__ == '__main__':
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
