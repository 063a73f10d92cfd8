"""What the tests of error classes share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pg_drivers import done
from servers import free_port

import gcp.asyncio
import gcp.threading
from gcp import ErrorClass, Retry
from gcp.exceptions import EndpointUnavailableError

TRANSIENT, PERMANENT = ErrorClass.TRANSIENT, ErrorClass.PERMANENT
BROKEN, STALE = ErrorClass.BROKEN, ErrorClass.STALE

UNKNOWN = 'unknown.invalid'


def refused() -> tuple[str, int]:
    """An address at which nothing listens."""
    return '127.0.0.1', free_port()


async def failure(manager: Any, endpoint: Any) -> ErrorClass:
    """Return the class of the error of a create."""
    with pytest.raises(Exception) as caught:
        if inspect.iscoroutinefunction(manager.create):
            await asyncio.wait_for(manager.create(endpoint), 60)
        else:
            await asyncio.to_thread(manager.create, endpoint, 10)
    found: ErrorClass = manager.classify(endpoint, caught.value)
    return found


async def attempts(manager: Any, endpoint: Any, workers: int) -> tuple[int, list[BaseException]]:
    """Let eight acquires retry a connect that cannot succeed; return how many connects there were, and their errors."""
    is_async = inspect.iscoroutinefunction(manager.create)
    pools: Any = gcp.asyncio if is_async else gcp.threading
    pool = pools.ConnectionPool(
        manager, connect_retry=Retry(60, 60), max_connecting=1, connect_workers=workers, acquire_timeout=60, name='shop'
    )
    acquire = pool.acquire if is_async else functools.partial(asyncio.to_thread, pool.acquire)
    errors = await asyncio.wait_for(asyncio.gather(*(acquire(endpoint) for _ in range(8)), return_exceptions=True), 120)
    made = pool.stats().hook_calls['create']
    await done(pool.close())
    return sum(made.values()), [error for error in errors if isinstance(error, BaseException)]


def check_permanent(manager: Any, endpoint: Any) -> None:
    for workers in (0, 2):
        made, errors = asyncio.run(attempts(manager, endpoint, workers))
        assert (made, len(errors)) == (1, 8), workers
        for error in errors:
            cause = error.__cause__ if isinstance(error, EndpointUnavailableError) else error
            assert cause is not None and manager.classify(endpoint, cause) is PERMANENT


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext) -> Iterator[int]:
    def serve_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True):
                    pass

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=serve_all, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@contextlib.contextmanager
def answering(words: bytes) -> Iterator[dict[str, Any]]:
    """A server that refuses TLS, and answers each start of a session with some words, and an EOF; its parameters."""

    def serve_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(60)
                    if client.recv(8)[4:] == b'\x04\xd2\x16\x2f':  # SSLRequest
                        client.sendall(b'N')
                        client.recv(8)
                    client.recv(1000)
                    client.sendall(words)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(1000):  # a close with unread data would be a reset, and the words be lost
                        pass

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=serve_all, daemon=True)
        thread.start()
        yield {'host': '127.0.0.1', 'port': listener.getsockname()[1], 'user': 'me', 'dbname': 'shop'}
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
