"""Guarantees 14 and 15 (docs/guarantees.md): endpoint labels: what they show, how many there are, and that their
series never decrease."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from ipaddress import ip_address
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pytest
from fronts import Front
from gil import collect
from pages import check, check_no_step_back, registry, scrape
from prometheus_client import generate_latest

from gcp.exceptions import EndpointUnavailableError
from gcp.limits import EndpointLimits, Retry
from gcp.observe.labels import clean, default_label
from gcp.testing import BareFakeManager, error
from gcp.threading import ConnectionPool


class Address(NamedTuple):
    host: str
    port: int
    password: str = 'secret'


class Server:
    host = 'db1'
    port = 5432


class Colour(Enum):
    RED = 'secret'


@pytest.mark.parametrize(
    ('endpoint', 'label'),
    [
        ('orders', 'orders'),
        ('db-1.example.com', 'db-1.example.com'),
        ('db1:5432', 'db1:5432'),
        ('[::1]:5432', '[::1]:5432'),
        ('::1', '::1'),
        (('db1', 5432), 'db1:5432'),
        (['db1', 5432], 'db1:5432'),
        (('::1', 5432), '[::1]:5432'),
        ((ip_address('::1'), 5432), '[::1]:5432'),
        ((ip_address('10.0.0.1'), 5432), '10.0.0.1:5432'),
        (('db1', 5432, 'me', 'secret'), 'db1:5432'),
        (Address('db1', 5432), 'db1:5432'),
        (Server(), 'db1:5432'),
        (ip_address('10.0.0.1'), '10.0.0.1'),
        ('/run/postgresql/.s.PGSQL.5432', '/run/postgresql/.s.PGSQL.5432'),
        (PurePosixPath('/run/redis.sock'), '/run/redis.sock'),
        (b'/run/redis.sock', '/run/redis.sock'),
        ('postgresql://me:secret@db1:5432/orders?password=secret', 'db1:5432'),
        ('https://me:secret@example.com/secret', 'example.com'),
        ('redis://:secret@[::1]:6379/0', '[::1]:6379'),
        ('unix:///run/secret', '<a string>'),
        ('redis://me:12/secret@db1:6379', '<a string>'),
        ('redis://me:12?secret@db1:6379', '<a string>'),
        ('redis://me:12#secret@db1:6379', '<a string>'),
        ('host=db1;password=secret', '<a string>'),
        ('a=' * 50_000 + "'", '<a string>'),
        ('http://db1:port/secret', '<a string>'),
        ('http://[secret', '<a string>'),
        ('host=db1 port=5432 user=me password=secret', 'db1:5432'),
        ('host=/run/postgresql user=me password=secret', '/run/postgresql'),
        ("host=db1 password='secret host=secret'", '<a string>'),
        ('user=me password=secret', '<a string>'),
        ('me:secret@db1', '<a string>'),
        ('me:secret', '<a string>'),
        ('me/secret', '<a string>'),
        ('AccountKey=secret;x', '<a string>'),
        ('/run/x?password=secret', '<a string>'),
        ('x' * 81, '<a string>'),
        ('http://[fe80::1%25eth0]:80', '[fe80::1%eth0]:80'),
        ('http://[fe80::1%eth0]:80', '[fe80::1%eth0]:80'),
        ('', '<a string>'),
        (('me', 'secret'), '<tuple>'),
        (('me:secret', 1), '<tuple>'),
        (('db1',), '<tuple>'),
        (frozenset({'secret'}), '<frozenset>'),
        (Colour.RED, 'RED'),
        (7, '7'),
        (None, 'None'),
        (object(), '<object>'),
    ],
)
def test_an_endpoint_is_shown_without_credentials(endpoint: object, label: str) -> None:
    assert default_label(endpoint) == label
    assert 'secret' not in label


def test_a_label_can_always_be_written() -> None:
    assert clean('\udcff') == '?'
    assert len(clean('x' * 1000)) == 120
    assert clean('') == '_other'
    with pytest.raises(TypeError, match='must return a string, not bytes'):
        clean(b'x')


async def use(pool: Any, *endpoints: object) -> None:
    for endpoint in endpoints:
        async with pool.connection(endpoint):
            pass


async def test_first_come_and_the_rest_is_other(front: Front) -> None:
    own = registry()
    pool = front.pool(front.manager(bare=True), name='orders', registry=own, endpoint_labels=2, max_lifetime=60)
    await use(pool, 'a', 'b', 'c', 'c', 'd')
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'a': 1, 'b': 1, '_other': 3}
    assert page.by('pool_endpoint', 'gcpool_connections') == {'a': 1, 'b': 1, '_other': 2}
    assert page.value('gcpool_endpoint_label_overflow_total') == 2
    assert page.value('gcpool_endpoints') == 4
    assert scrape(own).value('gcpool_endpoint_label_overflow_total') == 2
    await use(pool, 'a', 'c')
    check_no_step_back(page, scrape(own))
    check(scrape(own))


async def test_a_label_is_freed_with_its_endpoint(front: Front) -> None:
    own = registry()
    pool = front.pool(
        front.manager(bare=True),
        name='orders',
        registry=own,
        endpoint_labels=1,
        min_idle=0,
        max_size=1,
        total_max_size=1,
    )
    await use(pool, 'a', 'a')
    pages = [scrape(own)]
    await use(pool, 'b')  # the only place: `a` is evicted, and with its last connection forgotten
    pages.append(scrape(own))
    assert pages[1].by('pool_endpoint', 'gcpool_acquires_total') == {'b': 1, '_other': 2}
    assert pages[1].by('pool_endpoint', 'gcpool_connections') == {'b': 1}
    await use(pool, 'a')
    pages.append(scrape(own))
    assert pages[2].by('pool_endpoint', 'gcpool_acquires_total') == {'a': 1, '_other': 3}
    for page in pages:
        assert page.labels('pool_endpoint') <= {'a', 'b', '_other'}
        assert page.value('gcpool_endpoint_label_overflow_total') == 0
        check(page)


async def test_a_label_that_returns_goes_on(front: Front) -> None:
    own = registry()
    pool = front.pool(
        front.manager(bare=True),
        name='orders',
        registry=own,
        endpoint_labels=5,
        min_idle=0,
        max_size=1,
        total_max_size=1,
    )
    await use(pool, 'a', 'a', 'b')
    before = scrape(own)
    assert before.by('pool_endpoint', 'gcpool_acquires_total') == {'b': 1, '_other': 2}  # `a` was gone before this
    for expected in ({'a': 1, 'b': 1, '_other': 2}, {'a': 1, 'b': 2, '_other': 2}, {'a': 2, 'b': 2, '_other': 2}):
        await use(pool, 'b' if expected['a'] == 1 and expected['b'] == 2 else 'a')
        page = scrape(own)
        assert page.by('pool_endpoint', 'gcpool_acquires_total') == expected
        check(page)
        check_no_step_back(before, page)
        before = page
    assert before.by('pool_endpoint', 'gcpool_connections') == {'a': 1}
    assert not list(before.find('gcpool_connections', pool_endpoint='b'))  # no ghosts among the gauges


async def test_forgotten_and_listed_again_between_two_looks(front: Front) -> None:
    own = registry()
    pool = front.pool(front.manager(bare=True), name='orders', registry=own, min_idle=0, max_size=1, total_max_size=1)
    await use(pool, 'a', 'a', 'a')
    before = scrape(own)
    await use(pool, 'b', 'a')
    page = scrape(own)
    check_no_step_back(before, page)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'a': 4, '_other': 1}
    check(page)


async def test_two_endpoints_under_one_label_are_summed(front: Front) -> None:
    own = registry()
    pool = front.pool(
        front.manager(bare=True),
        name='orders',
        registry=own,
        endpoint_labels=1,
        endpoint_label=lambda endpoint: endpoint[0],
    )
    await use(pool, ('db1', 1), ('db1', 2), ('db1', 2), ('db2', 1))
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'db1': 3, '_other': 1}
    assert page.by('pool_endpoint', 'gcpool_connections', state='idle') == {'db1': 2, '_other': 1}
    check(page)


async def test_no_labels_at_all(front: Front) -> None:
    own = registry()
    asked: list[object] = []
    pool = front.pool(
        front.manager(bare=True), name='orders', registry=own, endpoint_labels=0, endpoint_label=asked.append
    )
    await use(pool, 'a', 'b')
    assert scrape(own).labels('pool_endpoint') == {'_other'}
    assert not asked


@pytest.mark.parametrize('limit', [0, 1])
def test_fewer_labels_than_a_pool_of_this_name_had(limit: int) -> None:
    own = registry()
    for arguments, endpoints in (({}, 'ab'), ({'endpoint_labels': limit}, 'bc')):
        pool = ConnectionPool[str, Any](BareFakeManager(), name='orders', registry=own, **arguments)
        for endpoint in endpoints:
            with pool.connection(endpoint):
                pass
        page = scrape(own)
        check(page)
    assert page.sum('gcpool_acquires_total') == 4
    assert page.labels('pool_endpoint') == ({'b', '_other'} if limit else {'_other'})
    pool.close()


def no_string(endpoint: object) -> Any:
    return 7


def raising(endpoint: object) -> Any:
    raise ValueError(f'cannot show {endpoint}')


@pytest.mark.parametrize('function', [no_string, raising])
async def test_a_label_function_that_fails_is_counted_and_logged_once(
    front: Front, function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own = registry()
    pool = front.pool(front.manager(bare=True), name='orders', registry=own, endpoint_label=function)
    await use(pool, 'me:secret@a', 'me:secret@b', 'me:secret@b')
    for _ in range(3):
        page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'_other': 3}
    assert page.value('gcpool_telemetry_errors_total', pool='orders') == 2  # once for each endpoint
    records = [record for record in caplog.records if record.name == 'gcp.observe']
    assert len(records) == 1
    assert 'secret' not in records[0].getMessage()
    check(page)


async def test_a_label_function_that_is_interrupted(front: Front) -> None:
    own = registry()
    interrupted = []

    def interrupting(endpoint: str) -> str:
        if endpoint == 'b' and not interrupted:
            interrupted.append(endpoint)
            raise KeyboardInterrupt
        return endpoint

    pool = front.pool(front.manager(bare=True), name='orders', registry=own, endpoint_label=interrupting)
    await use(pool, 'a')
    before = scrape(own)
    await use(pool, 'a', 'b')
    with pytest.raises(KeyboardInterrupt):
        scrape(own)
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'a': 2, 'b': 1}
    check_no_step_back(before, page)


async def test_a_label_function_that_scrapes(front: Front) -> None:
    own = registry()
    pool = front.pool(
        front.manager(bare=True),
        name='orders',
        registry=own,
        endpoint_label=lambda endpoint: str(len(scrape(own).series)),
    )
    await use(pool, 'a')
    assert scrape(own).sum('gcpool_acquires_total', pool='orders') == 1


def test_10_000_endpoints_through_20_labels() -> None:
    own = registry()
    pool = ConnectionPool[Any, Any](
        BareFakeManager(), name='orders', registry=own, min_idle=0, max_size=1, total_max_size=50
    )
    sizes = []
    for round_ in range(10):
        for number in range(1000):
            with pool.connection(f'db-{round_}-{number}'):
                pass
            if number % 100 == 0:
                page = scrape(own)
                assert len(page.labels('pool_endpoint')) <= 21
                check(page)
        pool._manager._log.clear()
        collect()
        sizes.append(len(gc.get_objects()))
    page = scrape(own)
    assert page.sum('gcpool_acquires_total') == 10_000
    assert page.sum('gcpool_connections') == 50
    assert page.sum('gcpool_connections_closed_total', reason='evicted') == 9_950
    assert sizes[-1] < sizes[2] + 2000
    pool.close()


def test_10_000_endpoints_at_a_time() -> None:
    own = registry()
    pool = ConnectionPool[Any, Any](BareFakeManager(), name='orders', registry=own, total_max_size=10_000)
    for number in range(10_000):
        with pool.connection(f'db-{number}'):
            pass
    page = scrape(own)
    assert len(page.labels('pool_endpoint')) == 21
    assert page.value('gcpool_endpoint_label_overflow_total') == 9_980
    assert page.value('gcpool_connections', pool_endpoint='_other', state='idle') == 9_980
    check(page)
    pool.close()
    page = scrape(own)
    assert page.sum('gcpool_connections_closed_total', reason='pool_closed') == 10_000
    assert page.sum('gcpool_connections') == 0
    check(page)


def test_an_endpoint_is_not_kept_alive_after_the_next_look() -> None:
    class Endpoint:
        pass

    own = registry()
    pool = ConnectionPool[Any, Any](
        BareFakeManager(), name='orders', registry=own, min_idle=0, max_size=1, total_max_size=1
    )
    pool.release(pool.acquire(endpoint := Endpoint()), endpoint)
    gone = weakref.ref(endpoint)
    del endpoint
    scrape(own)
    pool.release(pool.acquire('other'), 'other')
    pool._manager._log.clear()
    scrape(own)
    assert collect(gone) == [None]
    pool.close()


class Model:
    """What labels show, by the rules: one count for each endpoint."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.overflow = 0
        self.base: dict[str, int] = {}  # counts of endpoints that had the label and are gone
        self.unused: list[str] = []  # labels without endpoints, longest unused first
        self.seen: dict[object, tuple[str | None, int]] = {}

    def read(self, present: Mapping[Any, tuple[str, int]]) -> dict[str, tuple[int, int]]:
        """Take the endpoints with their labels and counts; return count and number of endpoints by label."""
        for endpoint in [endpoint for endpoint in self.seen if endpoint not in present]:
            label, count = self.seen.pop(endpoint)
            if label is not None:
                self.base[label] += count
                if not any(label == other for other, _ in self.seen.values()):
                    self.unused.append(label)
        fresh = [endpoint for endpoint in present if endpoint not in self.seen]
        for endpoint in sorted(fresh, key=lambda endpoint: present[endpoint][0] not in self.base):
            self.seen[endpoint] = self.labelled(present[endpoint][0]), 0
        for endpoint, (label, _) in self.seen.items():
            self.seen[endpoint] = label, present[endpoint][1]
        return {
            label: (base + sum(counts := [count for own, count in self.seen.values() if own == label]), len(counts))
            for label, base in self.base.items()
        }

    def labelled(self, label: str) -> str | None:
        if label not in self.base:
            if len(self.base) >= self.limit:
                if not self.unused:
                    self.overflow += 1
                    return None
                del self.base[self.unused.pop(0)]
            self.base[label] = 0
        if label in self.unused:
            self.unused.remove(label)
        return label


@pytest.mark.parametrize('seed', range(10))
def test_no_label_ever_shows_less_or_more_than_there_was(seed: int) -> None:
    """Endpoints of two pools of one name come, count, go and come again, seen or unseen, with more of them than labels;
    some share a label."""
    chance = random.Random(seed)
    own = registry()
    pools = [
        ConnectionPool[str, Any](
            BareFakeManager(), name='orders', registry=own, endpoint_labels=3, endpoint_label=lambda key: key[0]
        )
        for _ in range(2)
    ]
    model, present = Model(3), dict[tuple[int, str, int], tuple[str, int]]()
    generation, before = 0, dict[str, float]()
    for _ in range(60):
        for _ in range(chance.randrange(8)):
            number, endpoint = chance.randrange(2), chance.choice('abcdef') + chance.choice('12')
            found = [each for each in present if each[:2] == (number, endpoint)]
            if found and chance.random() < 0.5:
                pools[number].retire(endpoint)
                del present[found[0]]
            else:
                with pools[number].connection(endpoint):
                    pass
                if not found:
                    generation += 1
                    found = [(number, endpoint, generation)]
                present[found[0]] = endpoint[0], present.get(found[0], ('', 0))[1] + 1
        page = scrape(own)
        in_order = dict(sorted(present.items(), key=lambda item: (item[0][0], item[0][2])))  # by pool, then as listed
        shown = model.read(in_order)
        acquires = page.by('pool_endpoint', 'gcpool_acquires_total')
        idle = page.by('pool_endpoint', 'gcpool_connections', state='idle')
        assert {label: acquires.get(label, 0) for label in shown} == {
            label: count for label, (count, _) in shown.items()
        }
        assert {label: idle.get(label, 0) for label in shown} == {label: size for label, (_, size) in shown.items()}
        assert page.labels('pool_endpoint') == {*shown, '_other'}
        sizes = [sum(number == each for number, *_ in in_order) for each in (0, 1)]
        assert page.sum('gcpool_endpoint_max_connections') == 10 * sum(sizes)
        assert page.value('gcpool_capacity') == sum(min(100, 10 * size) for size in sizes)
        assert page.value('gcpool_endpoint_label_overflow_total') == model.overflow
        assert page.sum('gcpool_acquires_total') == sum(
            pool.stats().acquires[how] for pool in pools for how in ('hit', 'created')
        )
        check(page)
        assert all(acquires.get(label, 0) >= count for label, count in before.items() if label in {*shown, '_other'})
        before = acquires
    for pool in pools:
        pool.close()


def test_labels_of_a_pool_that_is_gone() -> None:
    """Its labels keep their counts, and a later pool of its name goes on under them."""
    own = registry()
    pages = []
    for round_ in range(3):
        pool = ConnectionPool[str, Any](BareFakeManager(), name='orders', registry=own)
        for endpoint in ('kept', f'db-{round_}', f'more-{round_}'):
            with pool.connection(endpoint):
                pass
        pages.append(scrape(own))
        pool.close()
        del pool
        collect()
        pages.append(scrape(own))
    for before, page in pairwise(pages):
        check_no_step_back(before, page)
        check(page)
    assert pages[-1].value('gcpool_acquires_total', pool_endpoint='kept', result='created') == 3
    assert pages[-1].sum('gcpool_acquires_total') == 9


def test_a_thousand_endpoints_share_a_label() -> None:
    """They are counted one by one: what some have counted stays when they go, and the others count on."""
    own = registry()
    pool = ConnectionPool[int, Any](
        BareFakeManager(),
        name='orders',
        registry=own,
        total_max_size=3000,
        endpoint_label=lambda key: 'even' if key % 2 == 0 else 'odd',
    )
    pages = [scrape(own)]
    for gone in (0, 700, 1999, 2000):
        for endpoint in range(gone):
            pool.retire(endpoint)
        for endpoint in range(2000):
            with pool.connection(endpoint):
                pass
        pages.append(page := scrape(own))
        assert page.by('pool_endpoint', 'gcpool_connections', state='idle') == {'even': 1000, 'odd': 1000}
        check(page)
        check_no_step_back(pages[-2], page)
    # what was seen of an endpoint before it was retired stays under its label: nothing has happened between
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'even': 4000, 'odd': 4000}
    pool.close()


def test_an_interrupted_reading_loses_nothing() -> None:
    """Of two pools of a name, the second one's labels fail: neither has lost what it counted, at the next reading."""
    own, trouble = registry(), [KeyboardInterrupt]

    def interrupting(endpoint: str) -> str:
        if trouble:
            raise trouble.pop()
        return endpoint

    pools = [
        ConnectionPool[str, Any](BareFakeManager(), name='orders', registry=own, endpoint_label=function)
        for function in (None, interrupting)
    ]
    for pool in pools:
        with pool.connection('a'), pool.connection('b'):
            pass
    with pytest.raises(KeyboardInterrupt):
        scrape(own)
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'a': 2, 'b': 2}
    check(page)
    for pool in pools:
        pool.retire('a')
    assert scrape(own).by('pool_endpoint', 'gcpool_acquires_total') == {'a': 2, 'b': 2}
    for pool in pools:
        pool.close()


def python_calls(function: Callable[[], object]) -> int:
    """Count the Python functions that a call enters."""
    calls = []
    gc.disable()  # a collection may call finalizers
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == 'call' else None)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return len(calls)


def test_endpoints_without_a_label_cost_no_python_code() -> None:
    """A page takes as many calls for thousands of endpoints as for a hundred, and so does a snapshot."""
    seen = []
    for endpoints in (100, 3000):
        own, asked = registry(), list[object]()
        pool = ConnectionPool[int, Any](
            BareFakeManager(),
            name='orders',
            registry=own,
            total_max_size=endpoints,
            endpoint_label=lambda key, asked=asked: str(asked.append(key) or key),  # type: ignore[misc]
        )
        for endpoint in range(endpoints):
            with pool.connection(endpoint):
                pass
        scrape(own)
        page = python_calls(partial(generate_latest, own))
        assert len(asked) == endpoints  # once for each
        seen.append((page, python_calls(pool.stats)))
        pool.close()
    assert seen[0] == seen[1]


async def test_states_of_endpoints_with_and_without_a_label(front: Front) -> None:
    """They are added up; of delays, the greatest is shown."""
    own = registry()
    manager = front.manager()
    pool = front.pool(
        manager,
        name='orders',
        registry=own,
        endpoint_labels=1,
        connect_retry=Retry(initial=1000, maximum=3000, factor=3, jitter=0),
        breaker_threshold=1,
        limits={'b': EndpointLimits(max_size=3), 'c': EndpointLimits(max_size=sys.maxsize)},
        total_max_size=sys.maxsize,
    )
    await use(pool, 'a', 'b', 'd')
    manager.create.does(*[error(OSError())] * 4)
    for endpoint in ('c', 'a'):
        held = [await pool.acquire('a')] if endpoint == 'a' else []
        with pytest.raises(EndpointUnavailableError):
            await pool.acquire(endpoint, timeout=20)
        for connection in held:
            await pool.release(connection, endpoint)
    page = scrape(own)
    endpoints = pool.stats().endpoints
    assert page.by('pool_endpoint', 'gcpool_breaker_open') == {'a': 1, '_other': 1}
    for label, shown in (('a', ('a',)), ('_other', ('b', 'c', 'd'))):
        delay = page.value('gcpool_retry_delay_seconds', pool_endpoint=label)
        assert 0 < max(endpoints[key].retry_delay for key in shown) <= delay <= 3000
    assert page.value('gcpool_endpoint_max_connections', pool_endpoint='a') == 10
    assert page.value('gcpool_endpoint_max_connections', pool_endpoint='_other') == float(sys.maxsize)
    assert page.value('gcpool_capacity') == float(sys.maxsize)
    await pool.close()
