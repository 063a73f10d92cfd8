"""Each predefined manager in each kind of trouble, through the real pools: one body per case, whatever the manager.

After each case there are as many descriptors as before. What came of it is shown as a table, here and in
docs/managers.md; `GCP_WRITE_MATRIX=1` writes that one anew."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fronts import Front, Pool, ThreadsFront
from matrix_kinds import GARBAGE, KINDS, SECRET, Kind
from matrix_peers import Address, Identities, Proxy, TcpServer, deaf_path, echo, http
from matrix_table import BEGIN, BROKEN, END, KEPT, TABLE
from peers import deaf_server, missing, open_descriptors
from redis_peers import RedisServer
from starvation import SOON

from gcp.testing import check_manager

GUIDE = Path(__file__).resolve().parent.parent.parent / 'docs' / 'managers.md'

TIMEOUT = 0.2
LATE = 20.0  # by how much an error may be late: the machine is shared
SETTLING = 60.0

Case = Callable[['World'], Awaitable[None]]


class World:
    """A manager, its peer behind a proxy, and the means of a case.

    :ivar kind: the manager's kind
    :ivar front: the front that the case runs on
    :ivar proxy: in the middle
    :ivar directory: an empty one
    :ivar identities: certificates
    :ivar patch: changes what is to be as before in the end
    """

    def __init__(
        self,
        kind: Kind,
        front: Front,
        proxy: Proxy,
        directory: Path,
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.kind = kind
        self.front = front
        self.proxy = proxy
        self.directory = directory
        self.identities = kind.identities
        self.patch = patch

    @contextlib.asynccontextmanager
    async def pool(self, address: Address | None = None, **variant: Any) -> AsyncIterator[Served]:
        """A pool of connections to an address, by default the proxy's; all descriptors are closed in the end."""
        manager, endpoint = self.kind.target(self.proxy.address if address is None else address, **variant)
        before = open_descriptors()
        pool = self.front.pool(manager, max_size=20, total_max_size=200, dispose_timeout=TIMEOUT)
        try:
            yield Served(self, manager, endpoint, pool)
            assert pool.stats().creating == 0
        finally:
            started = time.monotonic()
            await pool.close(timeout=1.0)
            took = time.monotonic() - started
        assert took < TIMEOUT + LATE, f'close took {took:.2f} s'
        if self.kind.lingers:
            self.proxy.close()
        await self.settled(before)

    async def settled(self, before: int) -> None:
        """Wait until there are as many descriptors as before."""
        deadline = time.monotonic() + SETTLING
        while open_descriptors() > before:
            assert time.monotonic() < deadline, f'{open_descriptors() - before} descriptors more than before'
            await self.front.sleep(0.002)

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """Shorten the limits that are constants of a module."""
        with self.patch.context() as patch:
            for name in self.kind.limits:
                patch.setattr(name, TIMEOUT)
            yield


class Served:
    """A pool, and what a case asks of it."""

    def __init__(self, world: World, manager: Any, endpoint: Any, pool: Pool) -> None:
        self.world = world
        self.manager = manager
        self.endpoint = endpoint
        self.pool = pool

    async def serves(self) -> Any:
        """Use a connection, and give it back."""
        async with self.pool.connection(self.endpoint, timeout=60) as conn:
            await self.world.kind.ask(conn)
        return conn

    async def dies(self, conn: Any) -> None:
        """Wait until an idle connection is found dead.

        What the peer did is here already, or about to be. An event loop has had no turn to notice: a busy one has none
        between that and the check, either."""
        deadline = time.monotonic() + SETTLING
        while await self.world.kind.check(self.manager, self.endpoint, conn):
            assert time.monotonic() < deadline, 'taken for alive'
            time.sleep(0.001)

    async def fails(self, timeout: float = 5.0) -> Exception:
        """Fail to acquire; return the error, which shows no secret."""
        with pytest.raises(Exception) as caught:  # which, is for the case to see
            await self.pool.acquire(self.endpoint, timeout)
        error: Exception = caught.value
        links = list(chain(error))
        assert not isinstance(error, AssertionError), error
        assert SECRET not in ' '.join(f'{link} {link!r}' for link in links)
        for link in links:
            link.__traceback__ = None  # what it keeps alive is no leak of the manager's
        return error

    async def runs_out_of_time(self) -> None:
        """Fail to acquire for lack of time, at the right moment."""
        started = time.monotonic()
        error = await self.fails(TIMEOUT)
        took = time.monotonic() - started
        assert isinstance(error, TimeoutError), repr(error)
        assert TIMEOUT * 0.95 <= took < TIMEOUT + LATE, f'{took:.2f} s'


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# ---- the cases


CASES: dict[str, Case] = {}
WORDS: dict[str, str] = {}


def case(name: str, words: str) -> Callable[[Case], Case]:
    def enter(body: Case) -> Case:
        CASES[name], WORDS[name] = body, words
        return body

    return enter


@case('create', 'a connection works, and closing the pool closes it')
async def create(world: World) -> None:
    async with world.pool() as it:
        await it.serves()
        assert world.proxy.accepted == 1


@case('reuse', 'the next caller gets the same connection, and it works')
async def reuse(world: World) -> None:
    async with world.pool() as it:
        first = await it.serves()
        assert await it.serves() is first
        assert await it.serves() is first
        assert world.proxy.accepted == 1


async def _is_replaced(world: World, lapse: Callable[[], None]) -> None:
    async with world.pool() as it:
        first = await it.serves()
        lapse()
        await it.dies(first)
        assert await it.serves() is not first
        assert it.pool.stats().created == 2


@case('peer closes', 'an idle connection is found dead and replaced; the caller gets a working one')
async def peer_closes(world: World) -> None:
    await _is_replaced(world, world.proxy.close)


@case('peer resets', 'the same')
async def peer_resets(world: World) -> None:
    await _is_replaced(world, world.proxy.reset)


@case('half-close', 'the same')
async def half_close(world: World) -> None:
    await _is_replaced(world, world.proxy.half_close)


@case('garbage on idle', 'the same; unsolicited data is not taken for a response')
async def garbage_on_idle(world: World) -> None:
    await _is_replaced(world, lambda: world.proxy.say(GARBAGE))


@case('hangs at connect', 'a peer that does not accept: the acquire ends at its time-out')
async def hangs_at_connect(world: World) -> None:
    with deaf(world) as address:
        async with world.pool(address) as it:
            await it.runs_out_of_time()


@contextlib.contextmanager
def deaf(world: World) -> Iterator[Address]:
    if world.kind.over == 'unix':
        with deaf_path(world.directory / 'deaf') as path:
            yield path
    else:
        with deaf_server() as port:
            yield ('127.0.0.1', port)


@case('hangs at TLS', 'a peer that stops answering in the TLS handshake: the same')
async def hangs_at_tls(world: World) -> None:
    world.proxy.mode, world.proxy.replies = 'talk', world.kind.opening
    async with world.pool(secure=True) as it:
        await it.runs_out_of_time()


@case('hangs at login', 'a peer that stops answering during authentication: the same')
async def hangs_at_login(world: World) -> None:
    world.proxy.mode = 'silent'
    async with world.pool() as it:
        await it.runs_out_of_time()


@case('hangs at query', 'a check that makes a round trip ends at its time-out, and the connection is disposed of')
async def hangs_at_query(world: World) -> None:
    async with world.pool(asks=True) as it:
        first = await it.serves()
        world.proxy.hush()
        await it.runs_out_of_time()
        world.proxy.hush(False)
        assert await it.serves() is not first


@case('hangs at release', 'a reset that does not end in time costs the connection; the next caller gets another')
async def hangs_at_release(world: World) -> None:
    async with world.pool() as it:
        conn = await it.pool.acquire(it.endpoint, 60)
        await world.kind.leave_open(conn)
        world.proxy.hush()
        started = time.monotonic()
        with world.hurry():
            try:
                await it.pool.release(conn, it.endpoint)
            except Exception as error:
                assert not isinstance(error, AssertionError), error
        assert time.monotonic() - started < 2 * TIMEOUT + LATE
        world.proxy.hush(False)
        assert await it.serves() is not conn


@case('hangs at dispose', 'a peer that does not read delays the close for a bounded time; the descriptor is closed')
async def hangs_at_dispose(world: World) -> None:
    async with world.pool() as it:
        await it.serves()
        world.proxy.hush()


@case('handshake fails', 'an invalid handshake is an error at once')
async def handshake_fails(world: World) -> None:
    world.proxy.mode, world.proxy.replies = 'talk', (*world.kind.opening, GARBAGE)
    async with world.pool(secure=True) as it:
        assert not isinstance(await it.fails(), TimeoutError)


@case('wrong certificate', 'an untrusted certificate is refused')
async def wrong_certificate(world: World) -> None:
    with TcpServer(echo, world.identities.wrong, b''.join(world.kind.opening)) as impostor:
        async with world.pool(impostor.address, secure=True) as it:
            error = await it.fails()
            assert 'certificate verify failed' in ' '.join(map(str, chain(error))), repr(error)


@case('wrong password', 'the error does not contain the password')
async def wrong_password(world: World) -> None:
    if world.kind.denial:
        world.proxy.mode, world.proxy.replies = 'talk', (*world.kind.denial, b'')
    async with world.pool(wrong_password=True) as it:
        error = await it.fails()
        assert 'password' in str(error), repr(error)


@case('port unreachable', 'a refused connection is an error at once')
async def port_unreachable(world: World) -> None:
    async with world.pool(unused_address(world)) as it:
        started = time.monotonic()
        assert not isinstance(await it.fails(), TimeoutError)
        assert time.monotonic() - started < SOON


def unused_address(world: World) -> Address:
    """An address without a listener."""
    if world.kind.over == 'unix':
        return str(world.directory / 'unused')
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return listener.getsockname()


@case('name unknown', 'an unknown host name is an error')
async def name_unknown(world: World) -> None:
    async with world.pool(('no-such-host.invalid', 5432)) as it:
        assert not isinstance(await it.fails(), AttributeError)


@case('timeout 0.2 s', 'eight acquires fail in time; once the peer answers again, all succeed')
async def timeout(world: World) -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(deaf(world)) if 'hangs at login' in world.kind.cannot else world.proxy.address
        world.proxy.mode = 'silent'
        async with world.pool(address) as it:
            for actor in [world.front.spawn(it.runs_out_of_time()) for _ in range(8)]:
                await actor
    world.proxy.mode = 'relay'
    async with world.pool() as it:
        for actor in [world.front.spawn(it.serves()) for _ in range(8)]:
            await actor


@case('200 failures', 'of all these kinds leak no descriptor')
async def many_failures(world: World) -> None:
    shakes_hands = 'handshake fails' not in world.kind.cannot
    before = open_descriptors()
    for mode, replies in (('close', ()), ('reset', ()), ('talk', (GARBAGE,)), ('silent', ())):
        world.proxy.mode, world.proxy.replies = mode, (*replies, b'')
        async with world.pool(None if shakes_hands else unused_address(world)) as it:
            for _ in range(10):
                for actor in [world.front.spawn(it.fails(0.02 if mode == 'silent' else 5.0)) for _ in range(5)]:
                    await actor
    await world.settled(before)


@case('check_manager', 'the manager passes every rule')
async def check(world: World) -> None:
    manager, endpoint = world.kind.target(world.proxy.address)
    with contextlib.ExitStack() as stack:
        others: dict[str, Any] = {}
        if endpoint != world.kind.target(unused_address(world))[1]:  # else it goes by names of its own
            others['refused'] = world.kind.target(unused_address(world))[1]
            others['silent'] = world.kind.target(stack.enter_context(deaf(world)))[1]
        is_async = world.front.name == 'asyncio'
        report: Any = check_manager(
            manager, endpoint, kill=world.proxy.close, use=world.kind.ask, fork=not is_async, **others
        )
        if is_async:
            report = await report
    assert [skipped.name for skipped in report.skipped if skipped.name not in ('hooks', 'refusal', 'timeout')] == []


# ---- the run


TABLE.rows = [kind.title() for kind in KINDS]
TABLE.columns = WORDS
TABLE.reasons = {
    (kind.title(), name): reason for kind in KINDS for name, reason in kind.cannot.items() if name in CASES
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('matrix')


@pytest.fixture(scope='module')
def identities(directory: Path) -> Identities:
    return Identities(directory)


@pytest.fixture(scope='module')
def servers(
    identities: Identities,
    directory: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[str], Address]]:
    """Find a server by its name; started when it is first asked for."""
    addresses: dict[str, Address] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str) -> Address:
            if name == 'postgres':
                return str(request.getfixturevalue('postgres').directory / '.s.PGSQL.5432')
            if name == 'redis':
                home = directory / 'redis'
                home.mkdir(exist_ok=True)
                return ('127.0.0.1', stack.enter_context(RedisServer(home).running()).port)
            if name == 'mariadb':
                return ('127.0.0.1', request.getfixturevalue('mariadb').port)
            serve = echo if name.endswith('echo') else http
            context = identities.sound if name in ('tls echo', 'https') else None
            return stack.enter_context(TcpServer(serve, context)).address

        def find(name: str) -> Address:
            if name not in addresses:
                addresses[name] = start(name)
            return addresses[name]

        yield find


@pytest.fixture
def world(
    kind: type[Kind],
    identities: Identities,
    servers: Callable[[str], Address],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    try:
        kind.load()
    except ImportError as error:
        missing(str(error))
    with Proxy(servers(kind.upstream), tmp_path / 'proxy' if kind.over == 'unix' else None) as proxy:
        yield World(kind(identities), kind.front(), proxy, tmp_path, monkeypatch)


CELLS = [
    pytest.param(kind, name, id=f'{kind.title()}-{name}') for kind in KINDS for name in CASES if name not in kind.cannot
]


@pytest.mark.parametrize(('kind', 'name'), CELLS)
def test_each_manager_in_each_case(world: World, kind: type[Kind], name: str) -> None:
    TABLE.cells[kind.title(), name] = BROKEN
    world.front.run(CASES[name](world))
    TABLE.cells[kind.title(), name] = KEPT


# ---- limits beyond what the system counts


async def _works_with(world: World, seconds: float) -> None:
    manager, endpoint = world.kind.target(world.proxy.address, asks=True)
    pool = world.front.pool(manager, dispose_timeout=seconds)
    for _ in range(2):
        conn = await pool.acquire(endpoint, seconds)
        await world.kind.ask(conn)
        await pool.release(conn, endpoint)
    assert pool.stats().created == 1
    await pool.close(timeout=seconds)
    if world.kind.front is ThreadsFront:  # the pool may clamp what it passes on
        conn = manager.create(endpoint, seconds)
        await world.kind.ask(conn)
        manager.on_release(endpoint, conn)
        assert manager.check_aliveness(endpoint, conn, seconds)
        manager.dispose(endpoint, conn, seconds)


@pytest.mark.parametrize('seconds', [3e6, 1e10, sys.maxsize, 1e300, math.inf], ids='{:g} s'.format)
@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.title())
def test_a_huge_time_out_is_as_good_as_none(world: World, kind: type[Kind], seconds: float) -> None:
    world.front.run(_works_with(world, seconds))


def test_the_guide_shows_the_matrix_as_it_is() -> None:
    if not TABLE.is_complete() or BROKEN in TABLE.cells.values():
        pytest.skip('not every case was run, or not every one is as it should be')
    text = GUIDE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if os.environ.get('GCP_WRITE_MATRIX') == '1':
        GUIDE.write_text(head + BEGIN + TABLE.markdown() + END + tail)
        return
    assert rest.partition(END)[0] == TABLE.markdown()
