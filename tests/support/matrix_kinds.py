"""The rows of the matrix: one small class for each predefined manager, that says how to make one, how to ask something
over one of its connections, and which cases do not concern it, and why."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any

from fronts import AsyncioFront, Front, ThreadsFront
from matrix_peers import Address, Identities

SECRET = 'hunter2-of-no-one'
GARBAGE = b'\x07garbage\r\n\r\n' * 3


class Kind:
    """A manager, as the cases see it.

    :cvar module: where it is, in `gcp.contrib`
    :cvar manager: its class
    :cvar front: its frontend
    :cvar note: which variant of it this is
    :cvar upstream: which server is behind the proxy
    :cvar over: what it connects by: ``tcp`` or ``unix``
    :cvar opening: what its protocol expects before TLS begins
    :cvar cannot: the cases that do not concern it, and why
    :cvar limits: constants, by their full names, that bound what a user's time-out does not
    :cvar lingers: whether a thread that was left behind may hold a descriptor until the peer ends
    """

    module: str
    manager: str
    front: type[Front]
    note = ''
    upstream = 'echo'
    over = 'tcp'
    opening: Sequence[bytes] = ()
    limits: Sequence[str] = ()
    lingers = False
    cannot: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, identities: Identities) -> None:
        self.identities = identities

    @classmethod
    def title(cls) -> str:
        return f'{cls.module}.{cls.manager}' + (f' ({cls.note})' if cls.note else '')

    @classmethod
    def load(cls) -> Any:
        """Its module; `ImportError` without its driver."""
        return importlib.import_module(f'gcp.contrib.{cls.module}')

    def target(self, address: Address, **variant: bool) -> tuple[Any, Any]:
        """A manager, and its endpoint for an address.

        :param variant: ``secure``: speak TLS; ``asks``: have aliveness asked of the server; ``wrong_password``
        """
        return getattr(self.load(), self.manager)(**self.options()), address

    def options(self) -> dict[str, Any]:
        return {}

    async def ask(self, conn: Any) -> None:
        """Ask something, and look at the answer."""
        raise NotImplementedError

    async def leave_open(self, conn: Any) -> None:
        """Leave something that a release has to take back, with a word to the server."""
        raise NotImplementedError

    async def check(self, manager: Any, endpoint: Any, conn: Any) -> bool:
        if self.front is AsyncioFront:
            return await manager.check_aliveness(endpoint, conn)  # type: ignore[no-any-return]
        return manager.check_aliveness(endpoint, conn, 1.0)  # type: ignore[no-any-return]


# ---- what does not concern a kind, and why

NO_TLS = dict.fromkeys(('hangs at TLS', 'wrong certificate'), 'has no TLS')
NO_LOGIN = dict.fromkeys(('hangs at login', 'wrong password'), 'has no authentication')
ASKS_NOTHING = {
    'hangs at query': 'its check makes no round trip',
    'hangs at release': 'its release sends nothing',
}
NO_HANDSHAKE = {'handshake fails': 'has no handshake'}
UNIX = {'name unknown': 'a path is not a host name'}
PLAIN_SOCKET = {**NO_TLS, **NO_LOGIN, **NO_HANDSHAKE, **ASKS_NOTHING}


# ---- sockets


class Sockets(Kind):
    """Blocking sockets."""

    front = ThreadsFront

    async def ask(self, conn: Any) -> None:
        conn.settimeout(5)
        conn.sendall(b'ping')
        assert conn.recv(64) == b'ping'
        conn.settimeout(None)


class LoopSockets(Kind):
    """Non-blocking sockets."""

    front = AsyncioFront

    async def ask(self, conn: Any) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(conn, b'ping')
        assert await asyncio.wait_for(loop.sock_recv(conn, 64), 60) == b'ping'


class Streams(Kind):
    front = AsyncioFront

    async def ask(self, conn: Any) -> None:
        reader, writer = conn
        writer.write(b'ping')
        assert await asyncio.wait_for(reader.readexactly(4), 60) == b'ping'


class Tcp(Sockets):
    module, manager, cannot = 'socket', 'TcpSocketConnectionManager', PLAIN_SOCKET


class Ssl(Sockets):
    module, manager, cannot = 'socket', 'SslSocketConnectionManager', {**NO_LOGIN, **ASKS_NOTHING}
    upstream = 'tls echo'

    def options(self) -> dict[str, Any]:
        return {'ssl': self.identities.trusting()}


class AsyncTcp(LoopSockets):
    module, manager, cannot = 'socket_async', 'TcpSocketConnectionManager', PLAIN_SOCKET


class TcpStream(Streams):
    module, manager, cannot = 'socket_async', 'TcpStreamConnectionManager', PLAIN_SOCKET
    note = 'plain'


class TlsStream(Streams):
    module, manager, cannot = 'socket_async', 'TcpStreamConnectionManager', {**NO_LOGIN, **ASKS_NOTHING}
    note = 'TLS'
    upstream = 'tls echo'

    def options(self) -> dict[str, Any]:
        return {'ssl': self.identities.trusting()}


class Unix(Sockets):
    module, manager, cannot = 'unix', 'UnixSocketConnectionManager', {**PLAIN_SOCKET, **UNIX}
    over = 'unix'


class AsyncUnix(LoopSockets):
    module, manager, cannot = 'unix_async', 'UnixSocketConnectionManager', {**PLAIN_SOCKET, **UNIX}
    over = 'unix'


class UnixStream(Streams):
    module, manager, cannot = 'unix_async', 'UnixSocketStreamConnectionManager', {**PLAIN_SOCKET, **UNIX}
    over = 'unix'


# ---- databases


def _message(kind: bytes, body: bytes) -> bytes:
    """A message as a PostgreSQL server sends it."""
    return kind + (len(body) + 4).to_bytes(4, 'big') + body


ASK_PASSWORD = _message(b'R', (3).to_bytes(4, 'big'))
DENY = _message(b'E', b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "app"\0\0')


class Postgres(Kind):
    upstream = 'postgres'
    opening = (b'S',)
    limits = ('gcp.contrib._database.RESET_TIMEOUT',)
    denial: Sequence[bytes] = (ASK_PASSWORD, DENY)

    def target(self, address: Address, **variant: bool) -> tuple[Any, Any]:
        host, port = address
        parameters = {
            'host': host,
            'port': port,
            'user': 'postgres',
            **self.database('postgres'),
            **(self.secured() if variant.get('secure') else self.plain()),
            **({'password': SECRET} if variant.get('wrong_password') else {}),
        }
        manager = getattr(self.load(), self.manager)
        return manager({'db': parameters}, aliveness='query' if variant.get('asks') else 'socket'), 'db'

    def database(self, name: str) -> dict[str, Any]:
        return {'dbname': name}

    def plain(self) -> dict[str, Any]:
        return {'sslmode': 'disable', 'gssencmode': 'disable'}

    def secured(self) -> dict[str, Any]:
        return {'sslmode': 'verify-ca', 'sslrootcert': str(self.identities.file), 'gssencmode': 'disable'}


class Psycopg2(Postgres):
    module, manager, front = 'psycopg2', 'DbConnectionManager', ThreadsFront
    lingers = True

    async def ask(self, conn: Any) -> None:
        with conn.cursor() as cursor:
            cursor.execute('SELECT 1')
            assert cursor.fetchone() == (1,)

    leave_open = ask


class Psycopg(Postgres):
    module, manager, front = 'psycopg', 'DbConnectionManager', ThreadsFront

    async def ask(self, conn: Any) -> None:
        assert conn.execute('SELECT 1').fetchone() == (1,)

    leave_open = ask


class AsyncPsycopg(Postgres):
    module, manager, front = 'psycopg', 'AsyncDbConnectionManager', AsyncioFront

    async def ask(self, conn: Any) -> None:
        assert await (await conn.execute('SELECT 1')).fetchone() == (1,)

    leave_open = ask


class Asyncpg(Postgres):
    module, manager, front = 'asyncpg', 'DbConnectionManager', AsyncioFront

    def database(self, name: str) -> dict[str, Any]:
        return {'database': name}

    def plain(self) -> dict[str, Any]:
        return {'ssl': False}

    def secured(self) -> dict[str, Any]:
        return {'ssl': self.identities.trusting()}

    async def ask(self, conn: Any) -> None:
        assert await conn.fetchval('SELECT 1') == 1

    async def leave_open(self, conn: Any) -> None:
        await conn.execute('BEGIN')


class Redis(Kind):
    module, manager, front = 'redis', 'RedisConnectionManager', ThreadsFront
    upstream = 'redis'
    limits = ('gcp.contrib.redis.RESET_TIMEOUT',)
    denial = ()  # the server's own

    def target(self, address: Address, **variant: bool) -> tuple[Any, Any]:
        from redis_peers import PASSWORD

        manager = getattr(self.load(), self.manager)(
            password=SECRET if variant.get('wrong_password') else PASSWORD,
            aliveness='ping' if variant.get('asks') else 'socket',
            ssl=self.identities.trusting() if variant.get('secure') else None,
        )
        return manager, address

    async def ask(self, conn: Any) -> None:
        assert self.load().client(conn).ping()

    async def leave_open(self, conn: Any) -> None:
        self.load().client(conn).execute_command('WATCH', 'key')


class AsyncRedis(Redis):
    manager, front = 'AsyncRedisConnectionManager', AsyncioFront

    async def ask(self, conn: Any) -> None:
        assert await self.load().client(conn).ping()

    async def leave_open(self, conn: Any) -> None:
        await self.load().client(conn).execute_command('WATCH', 'key')


def _packet(number: int, body: bytes) -> bytes:
    """A packet as a MySQL server sends it."""
    return len(body).to_bytes(3, 'little') + bytes([number]) + body


#: The words with which a MySQL server begins: it can do TLS, and has 41 and newer authentications.
GREETING = _packet(
    0,
    b'\x0a10.11.0-MariaDB\0' + (7).to_bytes(4, 'little') + b'saltsalt\0' + (0xFEFF).to_bytes(2, 'little')
    + b'\x21\x02\0' + (0x000F).to_bytes(2, 'little') + bytes([21]) + bytes(10) + b'saltsaltsalt\0'
    + b'mysql_native_password\0',
)  # fmt: skip


class MySql(Kind):
    module, manager, front = 'mysql', 'DbConnectionManager', ThreadsFront
    upstream = 'mariadb'
    limits = ('gcp.contrib._database.RESET_TIMEOUT',)
    denial: Sequence[bytes] = ()  # the server's own
    database = 'database'
    cannot = {  # noqa: RUF012
        'hangs at TLS': 'its server speaks before TLS begins: tested apart',
        'handshake fails': 'its server speaks before TLS begins: tested apart',
        'wrong certificate': 'its server speaks before TLS begins: tested apart',
    }

    def target(self, address: Address, **variant: bool) -> tuple[Any, Any]:
        from mysql_peers import PASSWORD, USER

        host, port = address
        parameters = {
            'host': host,
            'port': port,
            'user': USER,
            'password': SECRET if variant.get('wrong_password') else PASSWORD,
            self.database: 'gcp',
            'ssl': self.identities.trusting() if variant.get('secure') else None,
        }
        manager = getattr(self.load(), self.manager)
        return manager({'db': parameters}, aliveness='query' if variant.get('asks') else 'socket'), 'db'

    async def ask(self, conn: Any) -> None:
        with conn.cursor() as cursor:
            cursor.execute('SELECT 1')
            assert cursor.fetchone() == (1,)

    async def leave_open(self, conn: Any) -> None:
        conn.begin()


class AsyncMySql(MySql):
    module, front, database = 'mysql_async', AsyncioFront, 'db'

    async def ask(self, conn: Any) -> None:
        async with conn.cursor() as cursor:
            await cursor.execute('SELECT 1')
            assert await cursor.fetchone() == (1,)

    async def leave_open(self, conn: Any) -> None:
        await conn.begin()


# ---- HTTP


class Http(Kind):
    module, manager, front = 'http', 'HttpConnectionManager', ThreadsFront
    note = 'http'
    upstream = 'http'
    scheme = 'http'
    cannot = {**PLAIN_SOCKET}  # noqa: RUF012

    def target(self, address: Address, **variant: bool) -> tuple[Any, Any]:
        host, port = address
        return getattr(self.load(), self.manager)(**self.options()), f'{self.scheme}://{host}:{port}'

    async def ask(self, conn: Any) -> None:
        conn.request('GET', '/')
        assert conn.getresponse().read() == b'ok'


class Https(Http):
    note = 'https'
    upstream = 'https'
    scheme = 'https'
    cannot = {**NO_LOGIN, **ASKS_NOTHING}  # noqa: RUF012

    def options(self) -> dict[str, Any]:
        return {'ssl': self.identities.trusting()}


class AsyncHttp(Http):
    module, manager, front = 'http_async', 'HttpConnectionManager', AsyncioFront

    async def ask(self, conn: Any) -> None:
        assert await (await conn.request('GET', '/')).read() == b'ok'


class AsyncHttps(AsyncHttp):
    note = 'https'
    upstream = 'https'
    scheme = 'https'
    cannot = {**NO_LOGIN, **ASKS_NOTHING}  # noqa: RUF012

    def options(self) -> dict[str, Any]:
        return {'ssl': self.identities.trusting()}


KINDS: tuple[type[Kind], ...] = (
    Tcp,
    Ssl,
    AsyncTcp,
    TcpStream,
    TlsStream,
    Unix,
    AsyncUnix,
    UnixStream,
    Psycopg2,
    Psycopg,
    AsyncPsycopg,
    Asyncpg,
    Redis,
    AsyncRedis,
    Http,
    Https,
    AsyncHttp,
    AsyncHttps,
    MySql,
    AsyncMySql,
)
