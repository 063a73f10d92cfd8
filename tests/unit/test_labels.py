"""Guarantees 14 and 15 (docs/guarantees.md): endpoint labels: what they show, how many there are, and that their
series never decrease."""

from __future__ import annotations

import gc
import random
import weakref
from enum import Enum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pytest
from fronts import Front
from pages import check, check_no_step_back, registry, scrape

from gcp.observe.labels import Labels, clean, default_label
from gcp.testing import BareFakeManager
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
        gc.collect()
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
    gc.collect()
    assert gone() is None
    pool.close()


def counts(acquires: int) -> dict[str, Any]:
    return {
        'idle': 0,
        'used': 0,
        'creating': 0,
        'waiting': 0,
        'leaks': 0,
        'acquires': {'hit': acquires},
        'releases': {},
        'closed': {},
        'connect_failures': {},
    }


@pytest.mark.parametrize('seed', range(20))
def test_no_label_ever_shows_less_or_more_than_there_was(seed: int) -> None:
    """Endpoints come, count, go and come again, seen or unseen, with more of them than labels."""
    chance = random.Random(seed)
    labels, listed, shown = Labels(), dict[str, int](), dict[str, int]()
    total = rest = 0
    for _ in range(300):
        for _ in range(chance.randrange(5)):
            endpoint = chance.choice('abcdef')
            if chance.random() < 0.4:
                listed.pop(endpoint, None)
            else:
                listed[endpoint] = listed.get(endpoint, 0) + 1
                total += 1
        rows = dict(
            labels.assign(
                [(0, key, counts(count)) for key, count in listed.items()], lambda number, key: key.upper()[0], 3
            )
        )
        now = {label: row[4] for label, row in rows.items()}
        assert len(now) <= 3
        assert all(now[label] >= count for label, count in shown.items() if label in now)
        assert total - sum(now.values()) >= rest
        rest, shown = total - sum(now.values()), now
