"""Guarantees 17 and 18 (docs/guarantees.md): what a manager's `classify` says about an error, and what follows."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from typing import Any

import pytest
from fronts import Front, ThreadsFront
from gil import HAS_GIL, is_same

from gcp.exceptions import EndpointUnavailableError, ErrorClass
from gcp.limits import Retry
from gcp.testing import error as raises
from gcp.testing import never, ok


class BodyError(Exception):
    """What the block raises."""


def classifying(front: Front, answer: object, *, clean: bool | None = None, bare: bool = True) -> tuple[Any, list[Any]]:
    """Return a manager that answers so, and what it was asked.

    :param clean: what its `clean_after_error` says; ``None``: it has none
    """
    manager = front.manager(bare=bare)
    asked: list[Any] = []

    def classify(endpoint: object, error: BaseException) -> object:
        asked.append((endpoint, error))
        return answer

    def clean_after_error(endpoint: object, conn: object, error: BaseException) -> bool | None:
        asked.append('clean')
        return clean

    manager.classify = classify
    if clean is not None:
        manager.clean_after_error = clean_after_error
    return manager, asked


@pytest.mark.parametrize('bare', [True, False])
@pytest.mark.parametrize(
    ('answer', 'clean', 'kept'),
    [
        (ErrorClass.BROKEN, True, False),
        (ErrorClass.STALE, True, False),
        (ErrorClass.HARMLESS, False, True),
        (ErrorClass.TRANSIENT, True, True),
        (ErrorClass.TRANSIENT, False, False),
        (ErrorClass.TRANSIENT, None, True),
        (ErrorClass.PERMANENT, True, True),
        (ErrorClass.PERMANENT, False, False),
        (ErrorClass.PERMANENT, None, True),
    ],
)
async def test_the_class_decides_before_clean_after_error(
    front: Front, answer: ErrorClass, clean: bool | None, kept: bool, bare: bool
) -> None:
    manager, asked = classifying(front, answer, clean=clean, bare=bare)
    pool = front.pool(manager, max_size=1)
    error = BodyError()
    with pytest.raises(BodyError):
        async with pool.connection('db') as conn:
            raise error
    decides = answer in {ErrorClass.TRANSIENT, ErrorClass.PERMANENT}
    assert asked == [('db', error), *(['clean'] if decides and clean is not None else [])]
    async with pool.connection('db') as other:
        assert (other is conn) is kept
    assert pool.stats().closed['error'] == (not kept)


@pytest.mark.parametrize('error', [BodyError(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
async def test_release_takes_the_error(front: Front, error: BaseException) -> None:
    manager, asked = classifying(front, ErrorClass.BROKEN)
    pool = front.pool(manager)
    await pool.release(await pool.acquire('db'), 'db', error=error)
    assert asked == [('db', error)]
    assert pool.stats().closed['error'] == 1


async def test_no_error_asks_for_nothing(front: Front) -> None:
    manager, asked = classifying(front, ErrorClass.BROKEN)
    pool = front.pool(manager)
    async with pool.connection('db'):
        pass
    await pool.release(await pool.acquire('db'), 'db', error=None)
    assert asked == []


async def test_a_stale_error_expires_what_was_opened_before(front: Front) -> None:
    manager, _ = classifying(front, ErrorClass.STALE)
    pool = front.pool(manager, max_size=5)
    held = await front.fill(pool, 'db', 4)
    other = await front.fill(pool, 'other', 1)
    await front.give_back(pool, held[:2])
    await pool.release(held[2], 'db', error=BodyError())
    await front.until(lambda: not pool.stats().disposing)
    assert (pool.stats().closed['expired'], pool.stats().closed['error']) == (2, 1)
    await front.give_back(pool, [held[3], *other])
    await front.until(lambda: not pool.stats().disposing)
    assert pool.stats().closed['expired'] == 3
    assert (pool.stats().endpoints['other'].idle, pool.stats().size) == (1, 1)
    async with pool.connection('db') as fresh:
        assert fresh not in held
    assert pool.stats().endpoints['db'].idle == 1


async def test_a_connect_that_began_before_counts_as_opened_before(front: Front) -> None:
    manager, _ = classifying(front, ErrorClass.STALE)
    pool = front.pool(manager, max_size=5)
    failing = await pool.acquire('db')
    manager.create.does(never())
    begun = front.spawn(pool.acquire('db'))
    await front.until(lambda: pool.stats().creating)
    await front.until(lambda: len(manager.create.calls) == 2)
    await pool.release(failing, 'db', error=BodyError())
    manager.unblock()
    await pool.release(await begun, 'db')
    await front.until(lambda: not pool.stats().disposing)
    assert pool.stats().closed['expired'] == 1
    assert pool.stats().idle == 0


@pytest.mark.parametrize('answer', ['broken', None, LookupError('no table')])
async def test_without_an_answer_the_error_is_transient(
    front: Front, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    manager, _ = classifying(front, answer)
    if isinstance(answer, Exception):

        def classify(endpoint: object, error: BaseException) -> object:
            raise answer

        manager.classify = classify
    pool = front.pool(manager)
    with caplog.at_level(logging.WARNING, 'gcp'), pytest.raises(BodyError):
        async with pool.connection('db') as conn:
            raise BodyError
    assert 'classify failed' in caplog.text
    assert ('must return an ErrorClass' in caplog.text) is not isinstance(answer, Exception)
    async with pool.connection('db') as other:
        assert other is conn


@pytest.mark.parametrize('workers', [0, 3])
async def test_a_permanent_error_is_tried_once_and_reaches_every_waiter(front: Front, workers: int) -> None:
    manager, _ = classifying(front, ErrorClass.PERMANENT)
    pool = front.pool(
        manager, max_connecting=1, connect_retry=Retry(60, 60), acquire_timeout=20, connect_workers=workers
    )
    wrong = PermissionError('wrong password')
    manager.create.does(never(raises(wrong)))
    actors = [front.spawn(pool.acquire('db'))]
    await front.until(lambda: pool.stats().creating == 1)
    actors += await front.line_up(pool, 'db', 9)
    manager.create.does(raises(wrong))
    manager.unblock()
    for actor in actors:
        with pytest.raises(PermissionError) as caught:
            await actor
        assert is_same(caught.value, wrong) or caught.value is wrong and actor is actors[0]
    with pytest.raises(EndpointUnavailableError, match='wrong password') as refused:
        await pool.acquire('db')
    with pytest.raises(EndpointUnavailableError) as again:
        await pool.acquire('db')
    assert is_same(refused.value.__cause__, wrong) and is_same(again.value.__cause__, wrong)
    assert (again.value.__cause__ is refused.value.__cause__) is HAS_GIL
    assert len(manager.create.calls) == 1
    assert pool.stats().acquires['error'] == 10
    assert pool.stats().acquires['rejected'] == 2


async def test_a_permanent_error_that_is_mended_lets_the_next_probe_in(front: Front) -> None:
    manager, _ = classifying(front, ErrorClass.PERMANENT)
    pool = front.pool(manager, connect_retry=Retry(0.02, 0.02))
    manager.create.does(raises(PermissionError('wrong password')), ok())
    with pytest.raises(PermissionError):
        await pool.acquire('db')
    conn = None
    while conn is None:
        try:
            conn = await pool.acquire('db')
        except EndpointUnavailableError as refusal:
            assert refusal.phase == 'admission'
            await front.sleep(0.002)
    await pool.release(conn, 'db')
    assert pool.stats().endpoints['db'].breaker == 'closed'


class Refusing:
    """A manager whose servers refuse everybody."""

    def create(self, endpoint: int, timeout: float | None = None) -> object:
        time.sleep(0.0002)
        raise PermissionError('wrong password')

    def dispose(self, endpoint: int, conn: object, timeout: float | None = None) -> None:
        raise AssertionError('there is nothing to dispose of')

    def classify(self, endpoint: int, error: BaseException) -> ErrorClass:
        return ErrorClass.PERMANENT


async def test_threads_raise_the_error_of_one_connect_at_a_time(threads_front: ThreadsFront) -> None:
    """Without the GIL, a traceback that two threads change is released twice, and the interpreter crashes."""
    pool: Any = threads_front.pool_class(Refusing(), max_size=8, max_connecting=1)
    entries: list[int] = []

    def use() -> None:
        for endpoint in range(200):
            try:
                pool.acquire(endpoint)
            except (PermissionError, EndpointUnavailableError) as error:
                told = error if error.__cause__ is None else error.__cause__
                entries.append(len(list(traceback.walk_tb(told.__traceback__))))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert len(entries) == 8 * 200
    if not HAS_GIL:
        assert max(entries) <= 4  # from the hook to the caller, and not through other threads
