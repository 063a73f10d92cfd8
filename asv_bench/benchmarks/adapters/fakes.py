"""Fake connections, as each library needs them: their methods cost as little as possible."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class DbApi:
    """A DB-API module and a connection in one: it is always connected, and has nothing to do."""

    threadsafety = 2
    Error = OperationalError = InterfaceError = InternalError = DatabaseError = Exception

    @staticmethod
    def connect() -> DbApi:
        return DbApi()

    def rollback(self) -> None:
        pass

    commit = close = rollback

    def cursor(self) -> None:
        raise AssertionError('no cursor is needed')


def psycopg_connection() -> type:
    """Make a class for `psycopg_pool.ConnectionPool`: its state is always idle, and a transaction does nothing."""
    from psycopg.pq import TransactionStatus

    class Connection:
        closed = False
        pgconn = SimpleNamespace(transaction_status=TransactionStatus.IDLE)

        @classmethod
        def connect(cls, conninfo: str, **options: Any) -> Connection:
            return cls()

        def close(self) -> None:
            pass

        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    return Connection


def psycopg_async_connection() -> type:
    """Make a class for `psycopg_pool.AsyncConnectionPool`."""
    blocking = psycopg_connection()

    class Connection(blocking):  # type: ignore[misc, valid-type]
        @classmethod
        async def connect(cls, conninfo: str, **options: Any) -> Connection:
            return cls()

        async def close(self) -> None:
            pass

        async def __aenter__(self) -> Connection:
            return self

        async def __aexit__(self, *error: object) -> None:
            pass

    return Connection


class RedisConnection:
    """What redis-py's pool needs: connected, with nothing to read."""

    def __init__(self, **options: Any) -> None:
        self.pid = 0

    def connect(self) -> None:
        pass

    disconnect = connect

    def can_read(self) -> bool:
        return False

    should_reconnect = can_read


class AsyncRedisConnection:
    """The same for its asyncio pool."""

    def __init__(self, **options: Any) -> None:
        pass

    async def connect(self) -> None:
        pass

    disconnect = re_auth = connect

    async def can_read(self) -> bool:
        return False

    can_read_destructive = can_read  # its name before redis-py 8

    def should_reconnect(self) -> bool:
        return False
