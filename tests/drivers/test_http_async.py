"""The HTTP manager for asyncio: what is reused, and what is not. Troubles of connecting are in `test_matrix.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from http_peers import Scripted, contexts, http_server
from peers import driver

from gcp.asyncio import ConnectionPool
from gcp.testing import check_manager

driver('h11')

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'


@pytest.fixture(scope='module')
def origin() -> Iterator[str]:
    with http_server() as port:
        yield f'http://127.0.0.1:{port}'


def manager(*args: Any, **options: Any) -> Any:
    from gcp.contrib.http_async import HttpConnectionManager

    return HttpConnectionManager(*args, **options)


def with_pool(body: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with ConnectionPool(manager()) as pool:
            await body(pool)

    asyncio.run(main())


async def peer(pool: Any, origin: str, *, path: str = '/peer', method: str = 'GET') -> bytes:
    """The client's port, by which the server knows the connection."""
    async with pool.connection(origin) as conn:
        response = await conn.request(method, path)
        return bytes(await response.read())


def test_a_connection_is_reused_when_its_response_was_read(origin: str) -> None:
    async def body(pool: Any) -> None:
        first = await peer(pool, origin)
        assert await peer(pool, origin) == first
        for path in ('/chunked', '/nothing', '/not-modified', '/large', '/patiently'):
            await peer(pool, origin, path=path)
            await peer(pool, origin, path=path, method='HEAD')
            assert await peer(pool, origin) == first, path

    with_pool(body)


@pytest.mark.parametrize('path', ['/close', '/briefly'])
def test_a_connection_that_the_server_closes_is_not_reused(origin: str, path: str) -> None:
    async def body(pool: Any) -> None:
        first = await peer(pool, origin)
        await peer(pool, origin, path=path)
        assert await peer(pool, origin) != first

    with_pool(body)


def test_what_was_not_read_costs_the_connection_and_reading_it_raises(origin: str) -> None:
    async def body(pool: Any) -> None:
        async with pool.connection(origin) as conn:
            response = await conn.request('GET', '/large')
            assert len(await response.__aiter__().__anext__()) > 0
            with pytest.raises(RuntimeError, match='not read to its end'):
                await conn.request('GET', '/peer')
        with pytest.raises(RuntimeError, match='was released'):
            await response.read()
        assert pool.stats().idle <= 1
        await peer(pool, origin)
        assert pool.stats().created == 2

    with_pool(body)


def test_a_body_is_sent_by_its_length_or_in_chunks(origin: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'hel'
        yield b'lo'

    async def body(pool: Any) -> None:
        async with pool.connection(origin) as conn:
            response = await conn.request('POST', '/echo', body=b'hello', headers=[('X-Test', 'yes')])
            assert (response.status, await response.read()) == (200, b'hello')
            assert response.header('content-length') == '5'
            assert response.header('X-None', 'no') == 'no'
            response = await conn.request('POST', '/echo', body=parts(), headers=[('Content-Length', '5')])
            assert await response.read() == b'hello'
            assert await response.read() == b''
        assert pool.stats().idle == 1

    with_pool(body)


@pytest.mark.parametrize(
    'words',
    [
        pytest.param(OK + OK, id='two responses'),
        pytest.param(OK + b'x', id='a byte more'),
        pytest.param(b'HTTP/1.0 200 OK\r\n\r\nok', id='to the end'),
    ],
)
def test_what_follows_a_response_costs_the_connection(words: bytes) -> None:
    async def body(pool: Any) -> None:
        for _ in range(2):
            async with pool.connection(server.origin) as conn:
                response = await conn.request('GET', '/')
                part = await response.__aiter__().__anext__()
                assert part.startswith(b'o')
            assert pool.stats().idle <= 1
        assert pool.stats().created == 2

    with Scripted(words, words) as server:
        with_pool(body)


@pytest.mark.parametrize('words', [b'', b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok', b'garbage\r\n\r\n'])
def test_a_server_that_breaks_off_is_told_and_costs_the_connection(words: bytes) -> None:
    import h11

    from gcp.exceptions import ErrorClass

    async def body(pool: Any) -> None:
        with pytest.raises((OSError, h11.RemoteProtocolError)) as caught:
            async with pool.connection(endpoint) as conn:
                await (await conn.request('GET', '/')).read()
        assert manager().classify(endpoint, caught.value) is ErrorClass.BROKEN
        assert pool.get_size() == 0

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b'\r\n\r\n')
            writer.write(words)
            writer.close()

        nonlocal endpoint
        server = await asyncio.start_server(serve, '127.0.0.1', 0)
        endpoint = f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}'
        async with ConnectionPool(manager()) as pool:
            await body(pool)
        server.close()

    endpoint = ''
    asyncio.run(main())


def test_a_cancelled_request_costs_the_connection() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b'\r\n\r\n')
            asked.set()
            await reader.read()
            writer.close()

        async def use(pool: Any) -> None:
            async with pool.connection(endpoint) as conn:
                await conn.request('GET', '/')

        server = await asyncio.start_server(serve, '127.0.0.1', 0)
        endpoint = f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}'
        async with ConnectionPool(manager()) as pool:
            task = asyncio.create_task(use(pool))
            await asked.wait()
            task.cancel()
            await asyncio.wait([task])
            assert pool.get_size() == 0
        server.close()

    asyncio.run(main())


def test_tls_is_verified() -> None:
    serving, trusting = contexts('localhost')

    async def main() -> None:
        async with ConnectionPool(manager(trusting)) as pool:
            first = await peer(pool, origin)
            assert await peer(pool, origin) == first
            with pytest.raises(OSError, match='certificate'):
                await peer(pool, origin.replace('localhost', '127.0.0.1'))

    with http_server(serving) as port:
        origin = f'https://localhost:{port}'
        asyncio.run(main())


def test_it_follows_the_rules_of_managers(origin: str) -> None:
    asyncio.run(check_manager(manager(), origin))  # raises what is broken


@pytest.mark.parametrize('endpoint', ['ftp://host', 'http://host/path', 'http://user@host', 'host', 5])
def test_an_endpoint_is_an_origin(endpoint: Any) -> None:
    with pytest.raises((TypeError, ValueError), match='endpoint'):
        asyncio.run(manager().create(endpoint))


def test_without_h11_the_extra_is_named(script: Any) -> None:
    script("""
        import sys
        sys.modules['h11'] = None
        try:
            import gcp.contrib.http_async
        except ImportError as error:
            assert 'pip install gcpool[http]' in str(error), error
            assert error.name == 'h11'
        else:
            raise SystemExit('imported')
    """).quietly()
