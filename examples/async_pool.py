"""Streams for asyncio: forty tasks share a few connections to two servers.

    python async_pool.py                                               starts two servers of its own
    python async_pool.py --host example.org example.net                talks to these
    python async_pool.py --host example.org --port 443 --tls           ... through TLS

The counterpart of tcp_pool.py."""

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
    async with pool.connection(endpoint, timeout=TIMEOUT) as stream:  # includes the wait, the connect and the handshake
        try:
            return await asyncio.wait_for(ask(endpoint, *stream), TIMEOUT)
        except BaseException:  # includes a cancellation in the middle of a response
            # The next user would read the rest of this response. The pool does not reuse a closed connection.
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
        writer.close()  # the server closes it, too, but perhaps after the next acquire
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
        min_idle=1,  # idle connections kept per endpoint
        idle_timeout=30.0,  # seconds until others are closed
        max_size=2,  # connections per endpoint
        total_max_size=3,  # connections of all endpoints together
        background_collector=True,  # close expired connections in the background
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
        await pool.close(timeout=1.0)  # used connections are closed at the time-out


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


# --- a server for this example ---


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
