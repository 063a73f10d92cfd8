"""What the guide to Redis and HTTP shows runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_peers import http_server
from peers import driver
from redis_peers import PASSWORD, RedisServer, redis_server

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / 'docs' / 'redis-http.md').read_text() if (ROOT / 'docs').exists() else ''

pytestmark = pytest.mark.skipif(not GUIDE, reason='no docs beside the tests: this is not a checkout')


@pytest.fixture(scope='module')
def server() -> Iterator[RedisServer]:
    driver('redis')
    with redis_server() as server:
        yield server


def example(word: str, **replacements: str) -> dict[str, Any]:
    """Run the only example that has a word in it, with some words of its own replaced."""
    (code,) = [code for code in re.findall(r'^```python\n(.*?)^```', GUIDE, re.MULTILINE | re.DOTALL) if word in code]
    for words, others in replacements.items():
        code = code.replace(words, others)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('REDIS_URL', 'redis://localhost/0')
    monkeypatch.setenv('REDIS_PASSWORD', PASSWORD)


def test_http_with_asyncio() -> None:
    driver('h11')
    namespace = example('download')

    async def body(origin: str) -> None:
        assert await namespace['download'](origin, '/peer')
        await namespace['async_pool'].close()

    with http_server() as port:
        asyncio.run(body(f'http://127.0.0.1:{port}'))


def test_redis_with_threads(server: RedisServer) -> None:
    namespace = example('greeting', **{'6379': str(server.port)})
    assert (namespace['length'], namespace['greeting']) == (5, b'hello')
    namespace['pool'].close()


def test_redis_with_asyncio(server: RedisServer) -> None:
    namespace = example('count_visit', **{'6379': str(server.port)})

    async def body() -> None:
        assert [await namespace['count_visit']('index') for _ in range(2)] == [1, 2]
        await namespace['pool'].close()

    asyncio.run(body())


def test_http() -> None:
    namespace = example('fetch')
    with http_server() as port:
        origin = f'http://127.0.0.1:{port}'
        peers = {namespace['fetch'](origin, '/peer') for _ in range(3)}
        assert len(peers) == 1
        with pytest.raises(LookupError, match='304 Not Modified'):
            namespace['fetch'](origin, '/not-modified')
        namespace['pool'].close()
