"""The Redis managers, sync and async, against a real server, one that misbehaves, and one that falls silent.

One body for both frontends: `Frontend` runs a manager's hooks, and those of a connection, until they are done."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import Proxy, await_input, await_left_behind, driver, open_descriptors, silent_server
from redis_peers import (
    PASSWORD,
    USER,
    USER_PASSWORD,
    Misbehaving,
    RedisServer,
    free_ports,
    redis_server,
    settled_descriptors,
)
from starvation import SOON

redis = driver('redis')

import gcp.asyncio  # noqa: E402
import gcp.threading  # noqa: E402
from gcp.contrib.redis import (  # noqa: E402
    AsyncRedisConnectionManager,
    ClosedError,
    KeepAlive,
    RedisConnectionManager,
    UnknownEndpointError,
    client,
)

LIMIT = 60.0


class Frontend:
    """Runs the hooks of sync managers."""

    manager: Any = RedisConnectionManager
    pool: Any = gcp.threading.ConnectionPool

    def run(self, done: Any, timeout: float | None = LIMIT) -> Any:
        return done

    def create(self, manager: Any, endpoint: Any, timeout: float = LIMIT) -> Any:
        return manager.create(endpoint, timeout)

    def alive(self, manager: Any, conn: Any, timeout: float = LIMIT) -> bool:
        alive: bool = manager.check_aliveness('', conn, timeout)
        return alive

    def fd(self, conn: Any) -> int:
        fd: int = conn.transport.fileno()
        return fd

    def await_word(self, conn: Any) -> None:
        """Wait until the next word of the peer's is here."""
        await_input(self.fd(conn))

    def later(self, value: Any) -> Any:
        """What a function of a user of this frontend may return for a value."""
        return value

    def close(self) -> None:
        pass


class AsyncFrontend(Frontend):
    manager = AsyncRedisConnectionManager
    pool = gcp.asyncio.ConnectionPool

    def __init__(self) -> None:
        self.loop = self.new_loop()
        self.run(self._warm_up())

    async def _warm_up(self) -> None:
        """Have uvloop open what it keeps for itself, lest that be taken for a leak."""
        ours, theirs = socket.socketpair()
        with theirs:
            _, writer = await asyncio.open_connection(sock=ours)
            writer.transport.abort()
            await asyncio.sleep(0)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def run(self, done: Any, timeout: float | None = LIMIT) -> Any:
        async def body() -> Any:
            return await asyncio.wait_for(done, timeout) if inspect.isawaitable(done) else done

        return self.loop.run_until_complete(body())

    def create(self, manager: Any, endpoint: Any, timeout: float = LIMIT) -> Any:
        try:
            return self.run(manager.create(endpoint), timeout)
        except asyncio.TimeoutError:  # on 3.10 it is no TimeoutError
            raise TimeoutError from None

    def alive(self, manager: Any, conn: Any, timeout: float = LIMIT) -> bool:
        try:
            return bool(self.run(manager.check_aliveness('', conn), timeout))
        except asyncio.TimeoutError:
            return False  # the pool takes it for dead

    def fd(self, conn: Any) -> int:
        fd: int = conn.streams[1].get_extra_info('socket').fileno()
        return fd

    def await_word(self, conn: Any) -> None:
        fd = self.fd(conn)
        if fd >= 0:
            await_input(fd)
        for _ in range(3):
            self.run(asyncio.sleep(0))

    async def later(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class UvloopFrontend(AsyncFrontend):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = driver('uvloop').new_event_loop()
        return loop


FRONTENDS = {'threads': Frontend, 'asyncio': AsyncFrontend, 'uvloop': UvloopFrontend}


@pytest.fixture(params=list(FRONTENDS))
def frontend(request: pytest.FixtureRequest) -> Iterator[Frontend]:
    made = FRONTENDS[request.param]()
    yield made
    made.close()


@pytest.fixture(scope='session')
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.path) as proxy:
        yield proxy


@pytest.fixture
def endpoint(server: RedisServer) -> tuple[str, int]:
    return ('127.0.0.1', server.port)


class Connected:
    """A manager, and connections of its own."""

    def __init__(self, frontend: Frontend, endpoint: Any, options: dict[str, Any]) -> None:
        self.frontend, self.endpoint = frontend, endpoint
        self.manager = frontend.manager(**{'password': PASSWORD, **options})
        self.conn = frontend.create(self.manager, endpoint)

    def ask(self, *command: Any) -> Any:
        return self.frontend.run(self.conn.ask(*command))

    def send(self, *command: Any) -> None:
        self.frontend.run(self.conn.send_command(*command))

    def commands(self, use: Callable[[Any], Any]) -> Any:
        return self.frontend.run(use(client(self.conn)))

    def release(self) -> None:
        self.frontend.run(self.manager.on_release(self.endpoint, self.conn))

    def alive(self, timeout: float = LIMIT) -> bool:
        return self.frontend.alive(self.manager, self.conn, timeout)

    def dispose(self) -> None:
        self.frontend.run(self.manager.dispose(self.endpoint, self.conn))

    def await_word(self) -> None:
        self.frontend.await_word(self.conn)


@pytest.fixture
def connect(frontend: Frontend, endpoint: Any) -> Iterator[Callable[..., Connected]]:
    made: list[Connected] = []

    def connect(to: Any = endpoint, **options: Any) -> Connected:
        made.append(Connected(frontend, to, options))
        return made[-1]

    yield connect
    for connected in made:
        connected.dispose()


# ---- endpoints and sessions


@pytest.mark.parametrize('protocol', [2, 3])
def test_a_session_begins_as_it_was_ordered(connect: Callable[..., Connected], protocol: int) -> None:
    made = connect(protocol=protocol, db=2, client_name='orders', username=USER, password=USER_PASSWORD)
    info = made.ask('CLIENT', 'INFO').decode()
    assert f'resp={protocol}' in info
    assert 'db=2' in info and 'name=orders' in info and f'user={USER}' in info
    assert made.ask('ECHO', 'hello') == b'hello'


@pytest.mark.parametrize('kind', ['tcp', 'unix', 'tls', 'name', 'url', 'function', 'tls url'])
def test_each_kind_of_endpoint(
    frontend: Frontend,
    connect: Callable[..., Connected],
    server: RedisServer,
    kind: str,
) -> None:
    context = ssl.create_default_context(cafile=str(server.directory / 'ca.pem'))
    url = f'redis://{USER}:{USER_PASSWORD}@127.0.0.1:{server.port}/1'
    parameters = {'path': server.path, 'username': USER, 'password': USER_PASSWORD, 'db': 1}
    made = {
        'tcp': lambda: connect(db=1),
        'unix': lambda: connect(server.path, db=1),
        'tls': lambda: connect(('localhost', server.tls_port), ssl=context, db=1),
        'name': lambda: connect('orders', servers={'orders': parameters}),
        'url': lambda: connect('orders', servers={'orders': url}),
        'function': lambda: connect('orders', servers=lambda name: frontend.later(parameters)),
        'tls url': lambda: connect(
            'orders', servers={'orders': {'host': 'localhost', 'port': server.tls_port, 'ssl': context, 'db': 1}}
        ),
    }[kind]()
    assert 'db=1' in made.ask('CLIENT', 'INFO').decode()
    assert isinstance(made.conn, (redis.connection.AbstractConnection, redis.asyncio.connection.AbstractConnection))
    assert made.alive()
    made.release()
    assert made.alive()


def test_the_socket_has_the_options(connect: Callable[..., Connected]) -> None:
    made = connect(keepalive=KeepAlive(idle=7), nodelay=True)
    with socket.socket(fileno=os.dup(made.frontend.fd(made.conn))) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7


@pytest.mark.parametrize('kind', ['function', 'provider'])
def test_credentials_are_asked_for_each_connection(connect: Callable[..., Connected], kind: str) -> None:
    asked: list[str] = []

    class Provider(redis.CredentialProvider):  # type: ignore[misc]
        def get_credentials(self) -> tuple[str, str]:
            asked.append(kind)
            return USER, USER_PASSWORD

    provider = Provider()
    options: dict[str, Any] = (
        {'password': None, 'credential_provider': provider}
        if kind == 'provider'
        else {'username': USER, 'password': lambda: provider.get_credentials()[1]}
    )
    assert f'user={USER}' in connect(**options).ask('CLIENT', 'INFO').decode()
    connect(**options)
    assert len(asked) == 2


def test_an_async_password(endpoint: Any) -> None:
    frontend = AsyncFrontend()
    manager = AsyncRedisConnectionManager(password=lambda: frontend.later(PASSWORD))
    conn = frontend.create(manager, endpoint)
    assert frontend.run(conn.ask('PING')) == b'PONG'
    frontend.run(manager.dispose(endpoint, conn))
    frontend.close()


@pytest.mark.parametrize('decode', [False, True])
def test_the_pool_serves_commands(frontend: Frontend, endpoint: Any, decode: bool) -> None:
    if isinstance(frontend, AsyncFrontend):

        async def body() -> None:
            pool = gcp.asyncio.ConnectionPool(AsyncRedisConnectionManager(password=PASSWORD, decode_responses=decode))
            try:
                async with pool.connection(endpoint) as first:
                    await client(first).set('key', 'value')
                async with pool.connection(endpoint, timeout=5) as again:
                    assert again is first
                    assert await client(again).get('key') == ('value' if decode else b'value')
                    async with client(again).pipeline() as pipeline:
                        assert await pipeline.incr('count').delete('count').execute() == [1, 1]
            finally:
                await pool.close()
            assert not first.is_open()

        frontend.run(body())
        return
    pool = gcp.threading.ConnectionPool(RedisConnectionManager(password=PASSWORD, decode_responses=decode))
    try:
        with pool.connection(endpoint) as first:
            client(first).set('key', 'value')
        with pool.connection(endpoint, timeout=5) as again:
            assert again is first
            assert client(again).get('key') == ('value' if decode else b'value')
            with client(again).pipeline() as pipeline:
                assert pipeline.incr('count').delete('count').execute() == [1, 1]
    finally:
        pool.close()
    assert not first.is_open()


# ---- what a user leaves behind

LEFT: dict[str, list[tuple[str, ...]]] = {
    'transaction': [('MULTI',), ('SET', 'a', '1')],
    'watched keys': [('WATCH', 'a')],
    'other database': [('SELECT', '3')],
    'by one word': [('select 3',)],
    'transaction in another database': [('SELECT', '3'), ('WATCH', 'a'), ('MULTI',)],
}
DEEPER: dict[str, list[tuple[str, ...]]] = {
    'another user': [('AUTH', 'guest', '')],
    'another protocol': [('HELLO', '2')],
    'tracking': [('CLIENT', 'TRACKING', 'ON', 'BCAST')],
    'no eviction': [('client no-evict', 'ON')],
    'another name': [('CLIENT', 'SETNAME', 'another')],
}
BEYOND: dict[str, list[tuple[str, ...]]] = {
    'subscription': [('SUBSCRIBE', 'news')],
    'pattern': [('PSUBSCRIBE', 'n*')],
    'monitor': [('MONITOR',)],
}


def state(made: Connected) -> list[str]:
    info = made.ask('CLIENT', 'INFO').decode().split()
    told = ('db', 'flags', 'multi', 'name', 'resp', 'sub', 'user')
    return sorted(field for field in info if field.split('=')[0] in told)


@pytest.mark.parametrize('left', LEFT)
def test_what_can_be_taken_back_is(connect: Callable[..., Connected], left: str) -> None:
    made = connect(db=1, protocol=3, client_name='orders')
    fresh = state(made)
    for command in LEFT[left]:
        made.ask(*command)
    made.release()
    assert made.alive()
    assert state(made) == fresh


@pytest.mark.parametrize('left', [*LEFT, *(left for left in DEEPER if left != 'no eviction')])
def test_reset_takes_all_back(connect: Callable[..., Connected], left: str) -> None:
    made = connect(db=1, protocol=3, client_name='orders', username=USER, password=USER_PASSWORD, reset='reset')
    fresh = state(made)
    for command in {**LEFT, **DEEPER}[left]:
        made.ask(*command)
    made.release()
    assert made.alive()
    assert state(made) == fresh


@pytest.mark.parametrize('left', [*DEEPER, *BEYOND])
def test_what_cannot_be_taken_back_costs_the_connection_at_once(connect: Callable[..., Connected], left: str) -> None:
    made = connect()
    before = open_descriptors()
    for command in {**DEEPER, **BEYOND}[left]:
        made.ask(*command)
    made.release()
    made.frontend.run(None)
    assert open_descriptors() == before - 1
    assert not made.alive()


@pytest.mark.parametrize('left', BEYOND)
def test_no_reset_trusts_a_connection_that_is_told_things(connect: Callable[..., Connected], left: str) -> None:
    made = connect(reset='reset')
    for command in BEYOND[left]:
        made.ask(*command)
    made.release()
    assert not made.alive()


def test_a_function_resets(connect: Callable[..., Connected]) -> None:
    seen: list[Any] = []

    def reset(conn: Any) -> Any:
        seen.append(conn)
        return conn.ask('SELECT', 0)  # asyncio's: to be awaited

    made = connect(reset=reset)
    made.ask('SELECT', 3)
    made.release()
    assert seen == [made.conn] and made.alive()
    assert 'db=0' in state(made)


def test_a_function_that_leaves_an_answer_unread_costs_the_connection(connect: Callable[..., Connected]) -> None:
    made = connect(reset=lambda conn: conn.send_command('PING'))
    made.release()
    assert not made.conn.is_open()


@pytest.mark.parametrize('lapse', ['hang', 'close', b'-ERR unknown command\r\n'])
@pytest.mark.parametrize('reset', ['discard', 'reset'])
def test_a_reset_that_fails_costs_the_connection(
    connect: Callable[..., Connected],
    lapse: Any,
    reset: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('gcp.contrib.redis.RESET_TIMEOUT', 0.2)
    with Misbehaving('DISCARD' if reset == 'discard' else 'RESET', lapse) as peer:
        made = connect(('127.0.0.1', peer.port), password=None, reset=reset)
        made.ask('MULTI')
        started = time.monotonic()
        if isinstance(lapse, bytes):
            with pytest.raises(redis.ResponseError):  # upon which the pool disposes of it
                made.release()
        else:
            made.release()
            assert not made.alive()
        assert time.monotonic() - started < SOON


def test_a_plain_release_sends_nothing(connect: Callable[..., Connected], proxy: Proxy) -> None:
    made = connect(('127.0.0.1', proxy.port), db=1)
    made.ask('SET', 'a', '1')
    made.ask('CLIENT', 'GETNAME')
    before = proxy.questions
    made.release()
    assert made.alive()
    assert proxy.questions == before


def test_a_transaction_that_ended_leaves_nothing(connect: Callable[..., Connected], proxy: Proxy) -> None:
    made = connect(('127.0.0.1', proxy.port))
    for commands in (['WATCH', 'MULTI', 'EXEC'], ['MULTI', 'DISCARD'], ['WATCH', 'UNWATCH']):
        for name in commands:
            made.ask(*([name, 'a'] if name == 'WATCH' else [name]))
    before = proxy.questions
    made.release()
    assert made.alive() and proxy.questions == before


@pytest.mark.parametrize('answered', ['none', 'some', 'elsewhere', 'off'])
def test_an_answer_left_unread_never_reaches_the_next_user(
    connect: Callable[..., Connected],
    proxy: Proxy,
    answered: str,
) -> None:
    made = connect(('127.0.0.1', proxy.port))
    if answered != 'off':
        proxy.silent = True  # the answers are on their way: there is nothing to see yet
    if answered == 'elsewhere':
        made.frontend.run(made.conn.send_packed_command([b'*1\r\n$4\r\nPING\r\n']))
        made.conn.pending_replies = 0
    elif answered == 'off':
        made.send('CLIENT', 'REPLY', 'OFF')
    else:
        made.send('ECHO', 'mine')
    if answered == 'some':
        packed = made.conn.pack_commands([('ECHO', 'a'), ('ECHO', 'b')])
        made.frontend.run(made.conn.send_packed_command(packed))
    made.release()
    assert not made.alive()


def test_an_error_is_an_answer(connect: Callable[..., Connected]) -> None:
    made = connect()
    with pytest.raises(redis.ResponseError):
        made.ask('NONSENSE')
    with pytest.raises(redis.ResponseError):
        made.commands(lambda r: r.execute_command('LPUSH'))
    made.release()
    assert made.alive()


def test_an_answer_too_many_costs_the_connection(connect: Callable[..., Connected], proxy: Proxy) -> None:
    with Misbehaving('ECHO', b'+mine\r\n+and another\r\n') as peer:
        made = connect(('127.0.0.1', peer.port), password=None)
        assert made.ask('ECHO', 'mine') == b'mine'  # the other has come along with it, and no socket shows it
        made.release()
        assert not made.conn.is_open() and not made.alive()


PUSH = b'>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n'


def test_a_message_is_no_answer(connect: Callable[..., Connected], proxy: Proxy) -> None:
    made = connect(('127.0.0.1', proxy.port), protocol=3)
    proxy.silent = True
    made.send('ECHO', 'mine')
    proxy.say(PUSH)
    made.frontend.run(made.conn.read_response(push_request=True))
    made.release()
    assert not made.conn.is_open()


def test_to_wait_in_vain_is_no_answer(proxy: Proxy) -> None:
    frontend = AsyncFrontend()
    made = Connected(frontend, ('127.0.0.1', proxy.port), {})
    proxy.silent = True
    made.send('ECHO', 'mine')
    assert frontend.run(made.conn.read_response(timeout=0.05)) is None
    made.release()
    assert not made.conn.is_open()
    made.dispose()
    frontend.close()


def test_pipelines_and_transactions_of_the_client(connect: Callable[..., Connected]) -> None:
    made = connect()

    async def use_later(r: Any) -> Any:
        async with r.pipeline() as pipeline:
            await pipeline.watch('a')
            pipeline.multi()
            return await pipeline.set('a', 1).get('a').execute()

    def use(r: Any) -> Any:
        if isinstance(r, redis.asyncio.Redis):
            return use_later(r)
        with r.pipeline() as pipeline:
            pipeline.watch('a')
            pipeline.multi()
            return pipeline.set('a', 1).get('a').execute()

    assert made.commands(use) == [True, b'1']
    made.release()
    assert made.alive() and not made.conn.lasting_commands
    assert client(made.conn) is client(made.conn)


def test_closing_a_client_closes_nothing(connect: Callable[..., Connected]) -> None:
    made = connect()
    made.commands(lambda r: r.aclose() if isinstance(r, redis.asyncio.Redis) else r.close())
    assert made.ask('PING') == b'PONG'


# ---- aliveness


WORDS = {'garbage': b'\0', 'an answer': b'+PONG\r\n', 'error': b'-ERR max number of clients reached\r\n'}


@pytest.mark.parametrize('lapse', ['eof', *WORDS, 'killed', 'closed here', 'closed by redis-py'])
def test_dead_connections_are_seen(
    connect: Callable[..., Connected],
    server: RedisServer,
    proxy: Proxy,
    lapse: str,
) -> None:
    made = connect(('127.0.0.1', proxy.port))
    made.release()
    assert made.alive()
    if lapse == 'eof':
        proxy.cut()
    elif lapse == 'killed':
        with contextlib.closing(redis.Redis(unix_socket_path=str(server.path), password=PASSWORD)) as admin:
            admin.client_kill_filter(_id=made.ask('CLIENT', 'ID'))
    elif lapse == 'closed here':
        made.dispose()
    elif lapse == 'closed by redis-py':
        made.frontend.run(made.conn.disconnect())
    else:
        proxy.say(WORDS[lapse])
    if not lapse.startswith('closed'):
        made.await_word()
    assert not made.alive()


def test_no_connection_comes_back_to_life_behind_the_pools_back(connect: Callable[..., Connected]) -> None:
    made = connect()
    made.dispose()
    for use in (
        lambda: made.ask('PING'),
        lambda: made.frontend.run(made.conn.connect()),
        lambda: made.commands(lambda r: r.ping()),
    ):
        with pytest.raises(ClosedError, match='the connection is closed; acquire another one'):
            use()
    assert not made.alive()
    made.release()
    assert not made.alive()


def test_a_ping_sees_a_server_that_is_gone_without_a_word(connect: Callable[..., Connected], proxy: Proxy) -> None:
    made = connect(('127.0.0.1', proxy.port), aliveness='ping')
    before = proxy.questions
    assert made.alive()
    assert proxy.questions == before + 1
    proxy.silent = True
    started = time.monotonic()
    assert not made.alive(timeout=0.2)
    assert 0.199 <= time.monotonic() - started < SOON  # a timer of uvloop may be early by a millisecond


@pytest.mark.parametrize('answer', [b'garbage', b'+PING\r\n', b'-ERR\r\n', b'*-7\r\n', b':x\r\n', b'$3\r\nab'])
def test_a_wrong_answer_to_a_ping_means_dead(connect: Callable[..., Connected], answer: bytes) -> None:
    with Misbehaving('PING', answer) as peer:
        made = connect(('127.0.0.1', peer.port), password=None, aliveness='ping')
        assert not made.alive(timeout=0.2)


def test_messages_are_allowed_where_the_manager_is_told_so(
    connect: Callable[..., Connected],
    proxy: Proxy,
) -> None:
    made = connect(('127.0.0.1', proxy.port), protocol=3, unsolicited_data='allowed')
    proxy.say(PUSH)
    made.await_word()
    made.release()
    assert made.alive()
    assert made.ask('ECHO', 'x') == b'x'
    proxy.say(PUSH)
    proxy.cut()
    made.await_word()
    if isinstance(made.frontend, AsyncFrontend):
        made.frontend.run(asyncio.sleep(0.01))
    assert not made.alive()


# ---- failures


def test_a_read_has_its_own_time(connect: Callable[..., Connected], proxy: Proxy) -> None:
    made = connect(('127.0.0.1', proxy.port), socket_timeout=1.01)  # uvloop's timers end up to a millisecond early
    proxy.silent = True
    started = time.monotonic()
    with pytest.raises(redis.TimeoutError):
        made.ask('PING')
    assert 1 <= time.monotonic() - started < SOON
    made.release()
    assert not made.alive()


def test_no_time_at_all(endpoint: Any) -> None:
    manager = RedisConnectionManager(password=PASSWORD)
    with pytest.raises(TimeoutError):
        manager.create(endpoint, 0)
    conn = manager.create(endpoint, LIMIT)
    with pytest.raises(TimeoutError), conn.time_limit(0):
        conn.ask('PING')
    manager.dispose(endpoint, conn)


STEPS = {'AUTH': {}, 'HELLO': {'protocol': 3}, 'CLIENT': {'client_name': 'me'}, 'SELECT': {'db': 1}}


@pytest.mark.parametrize('step', STEPS)
@pytest.mark.parametrize('lapse', ['hang', 'drip', 'close', 'reset', b'garbage\r\n', b'-ERR no\r\n', b'-LOADING x\r\n'])
def test_a_server_that_misbehaves_at_a_step_costs_no_more_than_the_timeout_and_no_descriptor(
    frontend: Frontend,
    step: str,
    lapse: Any,
) -> None:
    # without redis-py's own limit, 5 s: where the machine stands still for as long, both would have passed
    manager = frontend.manager(password=PASSWORD, socket_timeout=None, **STEPS[step])
    with Misbehaving(step, lapse) as peer:
        before, started = open_descriptors(), time.monotonic()
        expected = TimeoutError if lapse in ('hang', 'drip') else Exception
        if (step, lapse) == ('CLIENT', b'-ERR no\r\n'):
            expected = redis.ResponseError
        with pytest.raises(expected) as caught:
            frontend.create(manager, ('127.0.0.1', peer.port), 0.2 if expected is TimeoutError else LIMIT)
        assert time.monotonic() - started < SOON
        assert PASSWORD not in str(caught.value) + repr(caught.value)
        assert settled_descriptors(before) <= before


@pytest.mark.parametrize('protocol', [2, 3])
@pytest.mark.parametrize('user', [None, USER])
def test_a_wrong_password_is_told_without_it(
    frontend: Frontend,
    endpoint: Any,
    protocol: int,
    user: str | None,
) -> None:
    manager = frontend.manager(username=user, password='wrong-secret', protocol=protocol)
    before = open_descriptors()
    with pytest.raises(redis.AuthenticationError) as caught:
        frontend.create(manager, endpoint)
    assert 'wrong-secret' not in str(caught.value) + repr(manager)
    assert open_descriptors() <= before


@pytest.mark.parametrize('protocol', [2, 3])
def test_a_server_that_repeats_the_password_does_not_make_an_error_of_it(frontend: Frontend, protocol: int) -> None:
    manager = frontend.manager(password=PASSWORD, protocol=protocol)
    with Misbehaving('AUTH' if protocol == 2 else 'HELLO', 'echo') as peer:
        with pytest.raises(redis.ResponseError) as caught:
            frontend.create(manager, ('127.0.0.1', peer.port))
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


def test_a_server_that_needs_a_password_without_one(frontend: Frontend, endpoint: Any) -> None:
    with pytest.raises(redis.AuthenticationError):
        frontend.create(frontend.manager(db=1), endpoint)


def test_a_silent_server_costs_the_timeout(frontend: Frontend) -> None:
    with silent_server() as port:
        before, started = open_descriptors(), time.monotonic()
        with pytest.raises(TimeoutError):
            frontend.create(frontend.manager(password=PASSWORD), ('127.0.0.1', port), 0.2)
        assert 0.199 <= time.monotonic() - started < SOON  # a timer of uvloop may be early by a millisecond
        assert open_descriptors() <= before


def test_an_unreachable_port_and_an_unresolvable_name(frontend: Frontend) -> None:
    manager, before = frontend.manager(), open_descriptors()
    for endpoint in [('127.0.0.1', free_ports(1)[0]), ('no-such-host.invalid', 6379), '/no/such/socket']:
        with pytest.raises(redis.ConnectionError):
            frontend.create(manager, endpoint)
    await_left_behind()
    assert open_descriptors() <= before


def test_a_certificate_for_another_name(frontend: Frontend, server: RedisServer) -> None:
    trusting = ssl.create_default_context(cafile=str(server.directory / 'ca.pem'))
    before = open_descriptors()
    for options, host in ((True, 'localhost'), (trusting, '127.0.0.2'), (trusting, 'localhost.localdomain')):
        manager = frontend.manager(password=PASSWORD, ssl=options)
        with pytest.raises((redis.ConnectionError, OSError)):
            frontend.create(manager, (host, server.tls_port))
    assert open_descriptors() <= before


def test_two_hundred_failures_leave_no_descriptor(frontend: Frontend, server: RedisServer, endpoint: Any) -> None:
    refused = ('127.0.0.1', free_ports(1)[0])
    manager = frontend.manager(password='wrong')
    tls = frontend.manager(password='wrong', ssl=True)
    before = open_descriptors()
    for turn in range(200):
        chosen, to = [
            (manager, refused),
            (manager, endpoint),
            (tls, ('localhost', server.tls_port)),
            (manager, server.path),
        ][turn % 4]
        with pytest.raises((redis.RedisError, OSError)):
            frontend.create(chosen, to)
    frontend.run(asyncio.sleep(0)) if isinstance(frontend, AsyncFrontend) else None
    assert open_descriptors() <= before


def test_a_password_function_that_takes_too_long_costs_the_timeout(endpoint: Any) -> None:
    gate = threading.Event()
    manager = RedisConnectionManager(password=lambda: str(gate.wait(LIMIT)))
    before, started = open_descriptors(), time.monotonic()
    with pytest.raises(TimeoutError):
        manager.create(endpoint, 0.2)
    assert time.monotonic() - started < SOON
    gate.set()
    await_left_behind()
    assert open_descriptors() <= before


def test_a_cancelled_create_leaves_no_descriptor(server: RedisServer, proxy: Proxy) -> None:
    frontend = AsyncFrontend()
    manager = AsyncRedisConnectionManager(password=PASSWORD)
    for turns in range(30):

        async def body(turns: int = turns) -> None:
            task = asyncio.ensure_future(manager.create(server.path))
            for _ in range(turns):
                await asyncio.sleep(0)
            before_cancel = task.done()
            task.cancel()
            try:
                conn = await task
            except asyncio.CancelledError:
                assert not before_cancel
            else:
                await manager.dispose(server.path, conn)

        before = open_descriptors()
        frontend.run(body())
        frontend.run(asyncio.sleep(0))
        assert open_descriptors() <= before
    frontend.close()


# ---- disposal


def test_dispose_does_not_wait(connect: Callable[..., Connected], proxy: Proxy) -> None:
    made = connect(('127.0.0.1', proxy.port))
    proxy.silent = True
    made.send('PING')
    started, fd = time.monotonic(), made.frontend.fd(made.conn)
    made.dispose()
    made.dispose()
    assert time.monotonic() - started < SOON
    with pytest.raises(OSError):
        os.fstat(fd)


def test_dispose_ends_a_read_in_another_thread(endpoint: Any) -> None:
    manager = RedisConnectionManager(password=PASSWORD)
    conn = manager.create(endpoint, LIMIT)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            conn.read_response()
        except BaseException as error:
            errors.append(error)

    conn.send_command('BLPOP', 'nothing', 0)
    thread = threading.Thread(target=wait)
    thread.start()
    manager.dispose(endpoint, conn)
    thread.join(LIMIT)
    assert not thread.is_alive() and len(errors) == 1


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
@pytest.mark.parametrize('tls', [False, True])
def test_a_forked_child_says_nothing_to_the_parents_server(server: RedisServer, tls: bool) -> None:
    context = ssl.create_default_context(cafile=str(server.directory / 'ca.pem'))
    manager = RedisConnectionManager(password=PASSWORD, aliveness='ping', ssl=context if tls else None)
    endpoint = ('localhost', server.tls_port if tls else server.port)
    conn = manager.create(endpoint, LIMIT)
    child = os.fork()
    if not child:
        alive = manager.check_aliveness(endpoint, conn, 1.0)
        manager.dispose(endpoint, conn)
        os._exit(alive)
    assert os.waitpid(child, 0)[1] == 0
    assert conn.ask('PING') == b'PONG'
    manager.dispose(endpoint, conn)


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_leaves_the_parents_streams_alone(endpoint: Any) -> None:
    frontend = AsyncFrontend()
    made = Connected(frontend, endpoint, {'aliveness': 'ping'})

    async def body() -> bool:
        alive: bool = await made.manager.check_aliveness(endpoint, made.conn)
        await made.manager.dispose(endpoint, made.conn)
        return alive

    child = os.fork()
    if not child:
        asyncio.set_event_loop(None)
        os._exit(asyncio.new_event_loop().run_until_complete(body()))
    assert os.waitpid(child, 0)[1] == 0
    assert made.ask('PING') == b'PONG'
    made.dispose()
    frontend.close()


@pytest.mark.parametrize('frontend', ['asyncio', 'uvloop'], indirect=True)
def test_what_the_server_does_not_take_in_keeps_no_descriptor(frontend: AsyncFrontend) -> None:
    with Misbehaving('ECHO', 'stall') as peer:
        made = Connected(frontend, ('127.0.0.1', peer.port), {'password': None})
        fd = frontend.fd(made.conn)
        made.send('ECHO', 'x')
        frontend.run(asyncio.sleep(0.01))

        async def write() -> None:
            made.conn.streams[1].write(b'x' * 50_000_000)

        frontend.run(write())
        made.release()
        frontend.run(asyncio.sleep(0))
        with pytest.raises(OSError):
            os.fstat(fd)


def test_close_notify_is_sent_only_by_idle_connections(
    server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads in one TLS connection would corrupt memory."""
    said: list[Any] = []
    monkeypatch.setattr('gcp.contrib._tls.close_notify', lambda *args: said.append(args))
    context = ssl.create_default_context(cafile=str(server.directory / 'ca.pem'))
    manager = RedisConnectionManager(password=PASSWORD, ssl=context)
    endpoint = ('localhost', server.tls_port)
    for released in (False, True):
        conn = manager.create(endpoint, LIMIT)
        manager.on_acquire(endpoint, conn)
        if released:
            manager.on_release(endpoint, conn)
        manager.dispose(endpoint, conn)
        assert len(said) == released


# ---- bad input


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        ({'protocol': 4}, ValueError, 'protocol: 2 or 3 was expected, not 4'),
        ({'aliveness': 'query'}, ValueError, "aliveness: 'socket' or 'ping' was expected, not 'query'"),
        ({'reset': 'no'}, ValueError, "reset: 'discard', 'reset' or a function was expected, not 'no'"),
        ({'unsolicited_data': 'allowed'}, ValueError, "unsolicited_data: 'allowed' needs protocol=3"),
        ({'db': -1}, ValueError, 'db: the number of a database was expected, not -1'),
        ({'db': 'one'}, TypeError, 'db: the number of a database was expected, not an instance of str'),
        ({'password': 7}, TypeError, 'password: a string or a function was expected, not an instance of int'),
        ({'ssl': 'yes'}, TypeError, 'ssl: a bool or an SSLContext was expected, not an instance of str'),
        ({'servers': 7}, TypeError, 'servers: a mapping of endpoint names to connect parameters'),
        ({'servers': {'orders': 7}}, TypeError, "servers: for endpoint 'orders', a mapping of parameters or a URL"),
        ({'servers': {'orders': {'hots': 'x'}}}, ValueError, "servers: for endpoint 'orders', 'hots' is not known"),
        ({'servers': {'orders': {}}}, ValueError, "servers: for endpoint 'orders', either host or path was expected"),
        ({'servers': {'orders': f'http://u:{PASSWORD}@h'}}, ValueError, "servers: for endpoint 'orders', a URL"),
        ({'servers': {'orders': f'redis://u:{PASSWORD}@h:port'}}, ValueError, "servers: for endpoint 'orders', a URL"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], error: type[Exception], words: str) -> None:
    for manager in (RedisConnectionManager, AsyncRedisConnectionManager):
        with pytest.raises(error) as caught:
            manager(**options)
        assert words in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    ('endpoint', 'error', 'words'),
    [
        ('odrers', UnknownEndpointError, "unknown endpoint 'odrers'; known: 'orders'"),
        (f'redis://me:{PASSWORD}@localhost', ValueError, 'endpoint: a name was expected; a URL'),
        (7, TypeError, 'endpoint: a (host, port) pair, a path or a name was expected, not 7'),
        (('localhost',), TypeError, "endpoint: a (host, port) pair was expected, not ('localhost',)"),
        (('localhost', '6379'), TypeError, "endpoint: a port number was expected, not '6379'"),
    ],
)
def test_wrong_endpoints_are_told(frontend: Frontend, endpoint: Any, error: type[Exception], words: str) -> None:
    manager = frontend.manager({'orders': {'host': 'h', 'password': PASSWORD}})
    with pytest.raises(error) as caught:
        frontend.create(manager, endpoint)
    assert words in str(caught.value)
    assert PASSWORD not in str(caught.value) + repr(manager) + repr(vars(manager))


# ---- errors in a block


def test_after_an_error_only_a_session_as_a_new_one_is_clean(connect: Callable[..., Connected]) -> None:
    def clean(*commands: str) -> bool:
        made = connect()
        for command in commands:
            made.ask(*command.split())
        is_clean: bool = made.manager.clean_after_error(made.endpoint, made.conn, ValueError())
        return is_clean

    assert clean()
    assert clean('SET key value', 'GET key')
    assert clean('MULTI', 'SET key value', 'EXEC')
    assert not clean('MULTI')
    assert not clean('MULTI', 'SET key value')
    assert not clean('WATCH key')
    assert not clean('SELECT 1')
    assert not clean('SUBSCRIBE news')
    assert not clean('CLIENT TRACKING ON')


def test_after_an_error_a_session_with_an_unread_reply_is_not_clean(connect: Callable[..., Connected]) -> None:
    made = connect()
    made.send('GET', 'key')
    assert not made.manager.clean_after_error(made.endpoint, made.conn, ValueError())
    made.frontend.run(made.conn.read_response())
    with pytest.raises(redis.ResponseError):
        made.ask('NO SUCH COMMAND')
    assert made.manager.clean_after_error(made.endpoint, made.conn, redis.ResponseError())
    made.frontend.run(made.conn.disconnect())
    assert not made.manager.clean_after_error(made.endpoint, made.conn, ValueError())


def test_no_thread_reads_the_reply_to_another(endpoint: Any, server: RedisServer) -> None:
    pool: Any = gcp.threading.ConnectionPool(RedisConnectionManager(password=PASSWORD, socket_timeout=2), max_size=1)
    with pytest.raises(redis.TimeoutError), pool.connection(endpoint, timeout=LIMIT) as conn:
        client(conn).blpop('nothing here', 30)
    with pytest.raises(KeyError), pool.connection(endpoint, timeout=LIMIT) as conn:
        conn.send_command('ECHO', 'alice')
        raise KeyError
    with pytest.raises(KeyError), pool.connection(endpoint, timeout=LIMIT) as kept:
        client(kept).execute_command('MULTI')
        raise KeyError
    with pytest.raises(KeyError), pool.connection(endpoint, timeout=LIMIT) as kept:
        assert client(kept).echo('bob') == b'bob'
        raise KeyError
    with pool.connection(endpoint, timeout=LIMIT) as conn:
        assert conn is kept
    assert pool.stats().created == 4
    pool.close()


def test_no_task_reads_the_reply_to_another(endpoint: Any) -> None:
    async def body() -> None:
        pool: Any = gcp.asyncio.ConnectionPool(AsyncRedisConnectionManager(password=PASSWORD), max_size=1)

        async def wait_for_news() -> None:
            async with pool.connection(endpoint, timeout=LIMIT) as conn:
                await client(conn).blpop('nothing here', 0)

        await pool.warm_up(endpoint, size=1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wait_for_news(), 0.1)
        async with pool.connection(endpoint, timeout=LIMIT) as kept:
            assert await client(kept).echo('bob') == b'bob'
        with pytest.raises(KeyError):
            async with pool.connection(endpoint, timeout=LIMIT) as conn:
                raise KeyError
        assert conn is kept and pool.stats().created == 2
        await pool.close()

    asyncio.run(body())


# ---- the client's side


def handler(message: Any) -> None:
    """A user's function for push messages."""


def test_what_a_user_changed_on_the_clients_side_is_restored(connect: Callable[..., Connected]) -> None:
    made = connect(protocol=3, db=1)
    conn, ours = made.conn, client(made.conn)
    parser = conn._parser
    before = {name: value for name, value in vars(parser).items() if name.endswith('handler_func')}
    assert before
    for name in before:
        setattr(parser, name, handler)
    limit = conn.socket_timeout
    conn.socket_timeout, conn.db, conn.client_name, conn.health_check_interval = 0.1, 3, 'mine', 1
    conn.encoder.decode_responses = True
    ours.set_response_callback('ECHO', lambda response: 'changed')
    made.commands(lambda commands: commands.select(2))
    made.release()
    assert {name: getattr(parser, name) for name in before} == before
    assert (conn.socket_timeout, conn.db, conn.client_name, conn.health_check_interval) == (limit, 1, None, 0)
    assert made.commands(lambda commands: commands.echo('hello')) == b'hello'
    assert 'db=1' in made.ask('CLIENT', 'INFO').decode()
    same = client(conn)
    made.release()
    assert client(conn) is same  # unchanged, so not made anew


def test_the_time_out_of_the_socket_is_restored(endpoint: Any) -> None:
    manager = RedisConnectionManager(password=PASSWORD, socket_timeout=7)
    conn = manager.create(endpoint, LIMIT)
    assert conn.transport is not None
    for change in (lambda sock: sock.settimeout(0.1), lambda sock: sock.setblocking(True)):
        change(conn.transport.sock)
        manager.on_release(endpoint, conn)
        assert conn.transport.gettimeout() == 7
    manager.dispose(endpoint, conn)


def test_the_limits_of_the_stream_are_restored(endpoint: Any) -> None:
    async def body() -> None:
        manager = AsyncRedisConnectionManager(password=PASSWORD)
        conn = await manager.create(endpoint)
        assert conn.streams is not None
        transport = conn.streams[1].transport
        limits = transport.get_write_buffer_limits()
        transport.set_write_buffer_limits(0)
        transport.pause_reading()
        await manager.on_release(endpoint, conn)
        assert transport.get_write_buffer_limits() == limits
        assert await client(conn).ping()
        await manager.dispose(endpoint, conn)

    asyncio.run(asyncio.wait_for(body(), LIMIT))


# ---- the user's functions, and other limits


class BlockingProvider(redis.CredentialProvider):  # type: ignore[misc]
    """Provides nothing before it is told to."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate

    def get_credentials(self) -> tuple[str, str]:
        self._gate.wait(LIMIT)
        return 'default', PASSWORD


@pytest.mark.parametrize('which', ['servers', 'password', 'credential_provider'])
def test_each_function_of_the_user_is_limited(frontend: Frontend, endpoint: Any, which: str) -> None:
    gate = threading.Event()
    host, port = endpoint
    server: dict[str, Any] = {'host': host, 'port': port}
    options: dict[str, Any] = {
        'servers': {'servers': lambda name: gate.wait(LIMIT) and server},
        'password': {'servers': {'orders': {**server, 'password': lambda: gate.wait(LIMIT) and PASSWORD}}},
        'credential_provider': {'servers': {'orders': {**server, 'credential_provider': BlockingProvider(gate)}}},
    }[which]
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        frontend.create(frontend.manager(**options), 'orders', 0.1)
    assert time.monotonic() - started < SOON
    gate.set()
    await_left_behind()


def test_the_functions_of_the_user_share_one_limit(endpoint: Any) -> None:
    host, port = endpoint
    gate = threading.Event()

    def slow(name: str) -> dict[str, Any]:
        gate.wait(0.3)
        return {'host': host, 'port': port, 'password': lambda: gate.wait(LIMIT) and PASSWORD}

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        RedisConnectionManager(slow).create('orders', 0.6)
    assert time.monotonic() - started < SOON
    gate.set()
    await_left_behind()


def test_a_function_of_the_user_sees_the_context_of_its_caller(frontend: Frontend, endpoint: Any) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar('password')
    variable.set(PASSWORD)
    conn = frontend.create(manager := frontend.manager(password=variable.get), endpoint)
    frontend.run(manager.dispose(endpoint, conn))


@pytest.mark.parametrize('seconds', [1e10, sys.maxsize])
def test_a_huge_socket_timeout_is_one(connect: Callable[..., Connected], seconds: float) -> None:
    made = connect(socket_timeout=seconds, user_timeout=seconds)
    assert made.commands(lambda commands: commands.echo('hello')) == b'hello'
    made.release()
    assert made.alive()


def test_redis_pys_own_limit_is_kept_unless_the_user_sets_another(frontend: Frontend, endpoint: Any) -> None:
    limits = inspect.signature(redis.connection.AbstractConnection.__init__).parameters
    for options in ({}, {'socket_timeout': None}, {'socket_timeout': 3.0}):
        manager = frontend.manager(password=PASSWORD, **options)
        conn = frontend.create(manager, endpoint)
        assert conn.socket_timeout == options.get('socket_timeout', limits['socket_timeout'].default)
        frontend.run(manager.dispose(endpoint, conn))


def test_redis_pys_own_limit_holds_without_a_time_out() -> None:
    manager = RedisConnectionManager(socket_timeout=0.1, protocol=3)
    with silent_server() as port, pytest.raises(TimeoutError):
        manager.create(('127.0.0.1', port), None)


def test_the_limit_of_unacknowledged_data_reaches_the_kernel(connect: Callable[..., Connected]) -> None:
    made = connect(user_timeout=1.5)
    with socket.socket(fileno=os.dup(made.frontend.fd(made.conn))) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500


# ---- addresses


def test_tracing_finds_the_address_of_the_server(connect: Callable[..., Connected], server: RedisServer) -> None:
    kwargs = client(connect(db=1).conn).connection_pool.connection_kwargs
    assert (kwargs['host'], kwargs['port'], kwargs['db']) == ('127.0.0.1', server.port, 1)
    local = client(connect(server.path).conn).connection_pool
    assert local.connection_kwargs['path'] == str(server.path)
    assert PASSWORD not in repr(kwargs) + repr(local) + repr(local.connection_kwargs)
    assert not {'password', 'username', 'credential_provider'} & {*kwargs, *local.connection_kwargs}


@pytest.mark.parametrize(
    ('url', 'host'),
    [
        ('redis://[fe80::1%25eth0]:6380/1', 'fe80::1%eth0'),
        ('redis://[fe80::1%eth0]:6380/1', 'fe80::1%eth0'),
        ('redis://[fe80::1%25eb0]', 'fe80::1%eb0'),
        ('redis://[fe80::1%eb0]', 'fe80::1%eb0'),
        ('rediss://[::1]:6380', '::1'),
        ('redis://cache.example.org', 'cache.example.org'),
        ('redis://', 'localhost'),
    ],
)
def test_scopes_of_addresses_in_urls(frontend: Frontend, url: str, host: str) -> None:
    manager = frontend.manager({'orders': url})
    conn = manager._prepare('orders', url)
    assert conn.host == host and conn.address[0] == host
