"""Guarantee 14 (docs/guarantees.md): keys of endpoints are found by identity first, else by equality, as in a dict.

An equal key finds the same endpoint; a key that is not equal never does, even if it has the address of a key that
was freed. When an endpoint is gone, so is its key."""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fronts import Front
from gil import HAS_GIL, collect
from test_garbage import keepers_of_nothing

from gcp.exceptions import ConnectionNotAcquiredError
from gcp.testing import FakeConnection, calling, error


class Text(str):
    """Equal to plain text."""


class Key:
    """Equal by value; counts what it is asked."""

    def __init__(self, value: Any, hashed: int | None = None) -> None:
        self.value = value
        self.hashed = hash(value) if hashed is None else hashed
        self.asked = 0

    def __hash__(self) -> int:
        self.asked += 1
        return self.hashed

    def __eq__(self, other: object) -> bool:
        self.asked += 1
        return isinstance(other, Key) and self.value == other.value

    def __repr__(self) -> str:
        return f'Key({self.value})'


class Wild(Key):
    """Equal to every key with its hash."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key)

    __hash__ = Key.__hash__


MAKERS: dict[str, list[Callable[[], Any]]] = {
    'tuples': [lambda: (*['host'], 5432)] * 3,
    'texts': [lambda: 'data base', lambda: ' '.join(['data', 'base']), lambda: Text('data base')],
    'numbers': [lambda: 1, lambda: 1.0, lambda: True],
    'large numbers': [lambda: int('1' * 30), lambda: int('1' * 30), lambda: int('1' * 30)],
    'sets': [lambda: frozenset({'a', 'b'})] * 3,
    'nested': [lambda: (1, ('x', (True,))), lambda: (1.0, ('x', (1,))), lambda: (True, (Text('x'), (1.0,)))],
    'own': [lambda: Key('x')] * 3,
    'none': [lambda: None] * 3,
}


@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('bare', [True, False])
async def test_equal_keys_are_one_endpoint(front: Front, name: str, bare: bool) -> None:
    make = MAKERS[name]
    pool = front.pool(front.manager(bare=bare), max_size=2)
    conn = await pool.acquire(make[0]())
    await pool.release(conn, make[1]())
    for number in range(9):
        assert (await pool.acquire(make[number % 3]())) is conn
        assert await pool.get_endpoint_pool_size(make[(number + 1) % 3](), True) == 1
        await pool.release(conn, make[(number + 2) % 3]())
        async with pool.connection(make[number % 3]()) as same:
            assert same is conn
    assert len(pool.stats().endpoints) == 1
    assert pool.stats().acquires['hit'] == 18
    assert pool.stats().created == 1


async def test_one_s_own_key_is_asked_nothing(front: Front) -> None:
    pool = front.pool(front.manager(bare=True))
    key = Key('x')
    async with pool.connection(key):
        pass
    before = key.asked
    for _ in range(10):
        async with pool.connection(key):
            pass
        await pool.release(await pool.acquire(key), key)
    assert key.asked == before


async def test_a_key_that_is_equal_to_none_but_itself(front: Front) -> None:
    pool = front.pool(front.manager(bare=True))
    nans = [float('nan'), float('nan')]
    conns = [await pool.acquire(nan) for nan in nans]
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.release(conns[0], float('nan'))
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.release(conns[0], nans[1])
    for conn, nan in zip(conns, nans, strict=True):
        await pool.release(conn, nan)
        assert (await pool.acquire(nan)) is conn
        await pool.release(conn, nan)
    assert len(pool.stats().endpoints) == 2


@pytest.mark.parametrize('bare', [True, False])
async def test_the_wrong_key_releases_nothing(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), max_size=1)
    a, b = Key('a', hashed=7), Key('b', hashed=7)  # in one place of the dict
    held = [await pool.acquire(a), await pool.acquire(b)]
    for conn, wrong in zip(held, [b, a], strict=True):
        for key in wrong, Key(wrong.value, hashed=7), Key('c', hashed=7), 'c':
            with pytest.raises(ConnectionNotAcquiredError):
                await pool.release(conn, key)
    assert pool.stats().used == 2
    await pool.release(held[0], a)
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.release(held[0], a)
    await pool.release(held[1], Key('b', hashed=7))
    assert (pool.stats().used, pool.stats().idle) == (0, 2)


async def test_a_key_that_is_equal_to_several(front: Front) -> None:
    """Which one it means is the dict's business; nothing is lent twice, or lost."""
    pool = front.pool(front.manager(bare=True), max_size=1)
    keys = [Key(value, hashed=3) for value in 'abc']
    for key in keys:
        async with pool.connection(key):
            pass
    async with pool.connection(Wild('*', hashed=3)) as conn:
        owner = conn.endpoint
        assert owner in keys
        assert await pool.get_endpoint_pool_size(owner, True) == 1
        for key in keys:
            if key is not owner:
                async with pool.connection(key, timeout=5) as other:
                    assert other is not conn
    assert len(pool.stats().endpoints) == 3
    assert (pool.stats().idle, pool.stats().created) == (3, 3)


async def test_one_connection_for_two_endpoints(front: Front) -> None:
    """Two endpoints are two holders: a manager may not hand out one object for both."""
    manager = front.manager(bare=True)
    shared = FakeConnection('both', 0)
    manager.create.does(calling(lambda *_: shared))
    pool = front.pool(manager, max_size=1)
    manager.check = lambda **_: None  # the double knows no such managers
    a, b = Key('a', hashed=1), Key('b', hashed=1)
    assert await pool.acquire(a) is shared
    with pytest.raises(RuntimeError, match=r'create returned an object of type FakeConnection that is in the pool'):
        await pool.acquire(b)
    await pool.release(shared, a)
    with pytest.raises(RuntimeError, match='held or idle'):
        await pool.acquire(b)
    assert (pool.stats().used, pool.stats().idle, pool.stats().creating) == (0, 1, 0)


# --- keys that die ---


async def test_a_key_that_lies_where_a_dead_one_lay(front: Front) -> None:
    """Each endpoint is evicted by the next, and its key dies."""
    pool = front.pool(keepers_of_nothing(front), max_size=1, total_max_size=1)
    places, again = set(), 0
    alive: weakref.ref[Any] | None = None
    for number in range(300):
        key = Key(number, hashed=5)  # all in one place of the dict
        again += id(key) in places
        places.add(id(key))
        async with pool.connection(key) as conn:
            assert await pool.get_endpoint_pool_size(key, True) == 1
        assert alive is None or alive() is None, 'an endpoint that is gone keeps its connection'
        assert list(pool.stats().endpoints) == [key]
        alive = weakref.ref(conn)
        del key, conn
    assert again > 50 or not HAS_GIL  # an address is not used again so soon there
    assert pool.stats().created == 300


async def test_an_equal_key_after_the_endpoint_is_gone(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1, total_max_size=1)
    for number in range(100):
        key = Key('x') if number % 2 else Key('y')
        async with pool.connection(key) as conn:
            assert conn.endpoint is key
        assert [each for each in pool.stats().endpoints if each is key]
    assert pool.stats().created == 100


async def test_an_endpoint_lives_on_by_the_key_it_began_with(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    first = Key('x')
    seen = weakref.ref(first)
    async with pool.connection(first):
        pass
    del first
    for _ in range(50):
        async with pool.connection(Key('x')) as conn:
            assert conn.endpoint is seen()
    assert pool.stats().created == 1


async def test_keys_die_with_their_pool(front: Front) -> None:
    pool = front.pool_class(keepers_of_nothing(front), total_max_size=1000)
    face = front.face(pool)
    keys = [Key(number) for number in range(300)]
    seen = [weakref.ref(key) for key in keys]
    for key in keys:
        async with face.connection(key):
            pass
    del keys, key
    assert all(ref() is not None for ref in seen)
    await face.close()
    del pool, face
    assert not any(collect(*seen))


async def test_thousands_of_endpoints_at_once(front: Front) -> None:
    """The table grows, and shrinks, and finds all of them all the time."""
    pool = front.pool(keepers_of_nothing(front), max_size=1, total_max_size=3000, min_idle=0, idle_timeout=0)
    chance = random.Random(1)
    for count in 3000, 100, 1500:
        keys = [Key(number) for number in range(count)]
        held = [(key, await pool.acquire(key)) for key in keys]
        assert pool.stats().used == len(pool.stats().endpoints) == count
        chance.shuffle(held)
        for position, (key, conn) in enumerate(held):
            await pool.release(conn, key if position % 2 else Key(key.value))
        async with pool.connection('last'):
            await front.until(lambda: not pool.stats().idle and not pool.stats().disposing)
            assert len(pool.stats().endpoints) <= 2
        del keys, held, key, conn


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_endpoints_that_are_gone_leave_the_table(script: Callable[..., Any]) -> None:
    """Its memory is not Python's: only the system knows how much it is."""
    script("""
        import resource
        from gcp.threading import ConnectionPool

        class Manager:
            def create(self, endpoint, timeout=None):
                return object()
            def dispose(self, endpoint, conn, timeout=None):
                pass

        def memory():
            with open('/proc/self/statm') as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        pool = ConnectionPool(Manager(), max_size=1, total_max_size=4)

        def visit(count):
            for number in range(count):
                with pool.connection((number,)):
                    pass

        visit(5_000)
        before = memory()
        visit(60_000)
        grown = memory() - before
        assert grown < 400_000, grown  # less than 7 bytes for each
        assert len(pool.stats().endpoints) <= 4
    """).quietly()


# --- keys that misbehave ---


class Bad(Key):
    """Raises when it is asked."""

    def __init__(self, value: Any, hashed: int = 0) -> None:
        super().__init__(value, hashed)
        self.raises_at_hash: BaseException | None = None
        self.raises_at_eq: BaseException | None = None

    def __hash__(self) -> int:
        if self.raises_at_hash is not None:
            raise self.raises_at_hash
        return self.hashed

    def __eq__(self, other: object) -> bool:
        if self.raises_at_eq is not None:
            raise self.raises_at_eq
        return super().__eq__(other)


class KeyTroubleError(Exception):
    """Of a key."""


TROUBLE = [KeyTroubleError(), TypeError('none of its business'), KeyboardInterrupt(), MemoryError(), StopIteration()]


@pytest.mark.parametrize('trouble', TROUBLE, ids=lambda trouble: type(trouble).__name__)
@pytest.mark.parametrize('where', ['raises_at_hash', 'raises_at_eq'])
@pytest.mark.parametrize('bare', [True, False])
async def test_a_key_that_raises_changes_nothing(front: Front, trouble: BaseException, where: str, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), max_size=2)
    good = Key('x', hashed=9)
    held = await pool.acquire(good)
    await pool.release(await pool.acquire(good), good)
    bad = Bad('x', hashed=9)
    setattr(bad, where, trouble)
    before = pool.stats()
    kinds = (RuntimeError, type(trouble)) if isinstance(trouble, StopIteration) else (type(trouble),)
    for _ in range(3):
        with pytest.raises(kinds):
            await pool.acquire(bad)
        with pytest.raises(kinds):
            async with pool.connection(bad):
                pass
        with pytest.raises(kinds):
            await pool.release(held, bad)
        with pytest.raises(kinds):
            await pool.get_endpoint_pool_size(bad)
    now = pool.stats()
    assert (now.idle, now.used, now.waiting, now.creating) == (1, 1, 0, 0)
    assert now.created == before.created
    assert now.endpoints.keys() == before.endpoints.keys()
    setattr(bad, where, None)
    await pool.release(held, bad)
    assert pool.stats().idle == 2


async def test_a_held_key_that_raises_from_then_on(front: Front) -> None:
    """It is found by identity: nobody asks it."""
    pool = front.pool(front.manager(bare=True), max_size=1)
    key = Bad('x')
    conn = await pool.acquire(key)
    key.raises_at_hash = key.raises_at_eq = KeyTroubleError()
    await pool.release(conn, key)
    async with pool.connection(key) as again:
        assert again is conn
    key.raises_at_hash = key.raises_at_eq = None


async def test_a_key_that_cannot_be_found_any_more(front: Front) -> None:
    """Its hash changes while its endpoint lives, and while it is forgotten. Nothing breaks, for others least."""
    pool = front.pool(front.manager(bare=True), max_size=2, total_max_size=6)
    chance = random.Random(3)
    keys = [Bad(number, hashed=number % 3) for number in range(12)]
    held: list[tuple[Any, Any]] = []
    for _ in range(1500):
        key = chance.choice(keys)
        key.raises_at_hash = KeyTroubleError() if chance.random() < 0.05 else None
        if chance.random() < 0.2:
            key.hashed = chance.randrange(3)
        try:
            if held and (len(held) > 4 or chance.random() < 0.5):
                conn, owner = held.pop(chance.randrange(len(held)))
                await pool.release(conn, owner)  # by the very key that its endpoint knows
            else:
                conn = await pool.acquire(key, timeout=0)
                held.append((conn, conn.endpoint))
        except (KeyTroubleError, TimeoutError):
            pass
        key.raises_at_hash = None
        assert pool.stats().used == len(held)
    for conn, owner in held:
        await pool.release(conn, owner)
    assert pool.stats().used == 0


# --- against a dict ---

VALUES: list[Callable[[], Any]] = [
    lambda: 1,
    lambda: 1.0,
    lambda: True,
    lambda: 0,
    lambda: False,
    lambda: 'a',
    lambda: Text('a'),
    lambda: ''.join(['a', 'b']),
    lambda: Text('ab'),
    lambda: (*[1], 'a'),
    lambda: (True, Text('a')),
    lambda: Key('a', hashed=1),
    lambda: Key('b', hashed=1),
    lambda: Key('c', hashed=hash('a')),
    lambda: None,
]


class DiscardedError(Exception):
    """Raised in on_release, so that the connection goes."""


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('bare', [True, False])
async def test_as_a_dict_does(front: Front, seed: int, bare: bool) -> None:
    """Acquire, release and discard by keys that are made anew, kept, or dropped; a dict says what there is."""
    chance = random.Random(seed)
    manager = front.manager(bare=bare)
    pool = front.pool(manager, max_size=3, min_idle=3)
    kept = [make() for make in VALUES]
    idle: dict[Any, list[Any]] = {}
    used: dict[Any, list[Any]] = {}

    def some_key() -> Any:
        position = chance.randrange(len(VALUES))
        if chance.random() < 0.1:
            kept[position] = VALUES[position]()
        return kept[position] if chance.random() < 0.6 else VALUES[position]()

    for _ in range(400):
        key = some_key()
        there, lent = idle.setdefault(key, []), used.setdefault(key, [])
        if lent and chance.random() < 0.6:
            conn = lent.pop(chance.randrange(len(lent)))
            if not bare and chance.random() < 0.3:
                manager.on_release.does(error(DiscardedError))
                with pytest.raises(DiscardedError):
                    await pool.release(conn, key)
                manager.on_release.does(calling(lambda *_: None))
            else:
                await pool.release(conn, key)
                there.append(conn)
        elif len(lent) < 3:
            conn = await pool.acquire(key)
            assert conn.endpoint == key
            assert (conn in there) == bool(there)
            if there:
                there.remove(conn)
            assert conn not in lent
            lent.append(conn)
        elif conn_of_another := [conn for other in used if other != key for conn in used[other]]:
            with pytest.raises(ConnectionNotAcquiredError):
                await pool.release(chance.choice(conn_of_another), key)
        await front.until(lambda: not pool.stats().disposing)
        endpoints = pool.stats().endpoints
        assert {each: (counts.idle, counts.used) for each, counts in endpoints.items()} == {
            each: (len(idle[each]), len(used[each])) for each in idle if idle[each] or used[each]
        }
    for key, conns in used.items():
        for conn in conns:
            await pool.release(conn, key)
