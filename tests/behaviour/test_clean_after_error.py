"""Guarantee 17 (docs/guarantees.md): what becomes of a connection after an error in the block of its holder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fronts import Front

from gcp.exceptions import ConnectionNotAcquiredError, DiscardConnection
from gcp.testing import error as raises
from gcp.threading import ConnectionPool


class BodyError(Exception):
    """What the block raises."""


def deciding(front: Front, decide: Callable[..., object], *, bare: bool = True) -> tuple[Any, list[Any]]:
    """Return a manager that decides so, and what it was asked."""
    manager = front.manager(bare=bare)
    asked: list[Any] = []

    def clean_after_error(endpoint: object, conn: object, error: BaseException) -> object:
        asked.append((endpoint, conn, error))
        return decide(error)

    manager.clean_after_error = clean_after_error
    return manager, asked


def disposed_of(manager: Any) -> list[Any]:
    return [call.connection for call in manager.dispose.calls]


@pytest.mark.parametrize('bare', [True, False])
async def test_a_connection_that_is_not_clean_is_discarded(front: Front, bare: bool) -> None:
    manager, asked = deciding(front, lambda error: False, bare=bare)
    pool = front.pool(manager, max_size=1)
    error = BodyError()
    with pytest.raises(BodyError):
        async with pool.connection('db') as conn:
            raise error
    assert asked == [('db', conn, error)]
    assert pool.stats().closed['error'] == 1
    assert disposed_of(manager) == [conn]
    async with pool.connection('db') as other:
        assert other is not conn


@pytest.mark.parametrize('bare', [True, False])
async def test_one_that_is_clean_is_kept(front: Front, bare: bool) -> None:
    manager, asked = deciding(front, lambda error: True, bare=bare)
    pool = front.pool(manager, max_size=1)
    with pytest.raises(BodyError):
        async with pool.connection('db') as conn:
            raise BodyError
    async with pool.connection('db') as other:
        assert other is conn
    assert len(asked) == 1


async def test_a_manager_that_does_not_say_keeps_it(front: Front) -> None:
    pool = front.pool(front.manager(bare=True))
    with pytest.raises(BodyError):
        async with pool.connection('db') as conn:
            raise BodyError
    async with pool.connection('db') as other:
        assert other is conn


async def test_a_block_without_an_error_asks_for_nothing(front: Front) -> None:
    manager, asked = deciding(front, lambda error: False)
    pool = front.pool(manager)
    async with pool.connection('db'):
        pass
    conn = await pool.acquire('db')
    await pool.release(conn, 'db')
    await pool.release(await pool.acquire('db'), 'db', error=None)
    assert asked == []
    assert pool.stats().idle == 1


@pytest.mark.parametrize('error', [BodyError(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
async def test_release_takes_the_error(front: Front, error: BaseException) -> None:
    manager, asked = deciding(front, lambda error: False)
    pool = front.pool(manager)
    conn = await pool.acquire('db')
    await pool.release(conn, 'db', error=error)
    assert asked == [('db', conn, error)]
    assert pool.stats().closed['error'] == 1
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.release(conn, 'db', error)


async def test_an_exit_stack_and_a_generator_that_is_closed_are_blocks_too(front: Front) -> None:
    manager, asked = deciding(front, lambda error: False)
    pool = front.pool(manager)
    with pytest.raises(BodyError):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(pool.connection('db'))
            raise BodyError

    async def rows() -> AsyncIterator[int]:
        async with pool.connection('db'):
            yield 1
            yield 2

    generator: Any = rows()
    assert await generator.__anext__() == 1
    await generator.aclose()
    assert [type(error) for _, _, error in asked] == [BodyError, GeneratorExit]
    assert pool.stats().closed['error'] == 2


@pytest.mark.parametrize('answer', [BodyError('no idea'), None, 1, 'clean'])
async def test_without_an_answer_it_is_discarded(
    front: Front, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    def decide(error: BaseException) -> object:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    pool = front.pool(deciding(front, decide)[0])
    with pytest.raises(ZeroDivisionError):
        async with pool.connection('db'):
            1 / 0  # noqa: B018
    assert pool.stats().closed['error'] == 1
    assert 'clean_after_error failed for' in caplog.text


async def test_an_interrupt_while_it_is_asked_loses_nothing(front: Front) -> None:
    def decide(error: BaseException) -> object:
        raise KeyboardInterrupt

    pool = front.pool(deciding(front, decide)[0], max_size=1)
    conn = await pool.acquire('db')
    with pytest.raises(KeyboardInterrupt):
        await pool.release(conn, 'db', BodyError())
    async with pool.connection('db', timeout=10) as other:
        assert other is not conn


async def test_a_waiter_gets_the_place_of_what_is_discarded(front: Front) -> None:
    pool = front.pool(deciding(front, lambda error: False)[0], max_size=1)
    conn = await pool.acquire('db')
    waiter = front.spawn(pool.acquire('db', timeout=30))
    await front.until(lambda: pool.stats().waiting == 1)
    await pool.release(conn, 'db', BodyError())
    other = await waiter
    assert other is not conn
    await pool.release(other, 'db')


@pytest.mark.parametrize('bare', [True, False])
async def test_discard_disposes_of_a_connection(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager)
    conn = await pool.acquire('db')
    await pool.discard(conn, 'db')
    assert disposed_of(manager) == [conn]
    assert pool.stats().closed['discarded'] == 1
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.discard(conn, 'db')
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.discard(object(), 'db')


@pytest.mark.parametrize('error', [None, BodyError()])
async def test_a_lease_discards_its_connection(front: Front, error: Exception | None) -> None:
    manager, asked = deciding(front, lambda error: True)
    pool = front.pool(manager)
    lease: Any = pool.connection('db')
    with contextlib.nullcontext() if error is None else pytest.raises(BodyError):
        async with lease as conn:
            await lease.discard()
            assert disposed_of(manager) == [conn]
            if error is not None:
                raise error
    assert asked == []
    assert pool.stats().closed['discarded'] == 1
    with pytest.raises(RuntimeError, match='holds no connection'):
        await lease.discard()


async def test_on_release_may_have_a_connection_discarded(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    manager = front.manager()
    manager.on_release.does(raises(DiscardConnection('terminating connection due to idle timeout')))
    pool = front.pool(manager)
    with caplog.at_level(logging.WARNING):
        async with pool.connection('db') as conn:
            pass
    assert disposed_of(manager) == [conn]
    assert pool.stats().closed['error'] == 1
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'terminating connection due to idle timeout' in caplog.text


class Old(ConnectionPool[str, Any]):
    """Overrides `release` as the predecessor's users did."""

    released = 0

    def release(self, conn: Any, endpoint: str) -> None:  # type: ignore[override]
        self.released += 1
        super().release(conn, endpoint)


class New(ConnectionPool[str, Any]):
    """Overrides `release` and knows of errors."""

    released = 0

    def release(self, conn: Any, endpoint: str, error: BaseException | None = None) -> None:
        self.released += 1
        super().release(conn, endpoint, error)


@pytest.mark.parametrize(('kind', 'released'), [(Old, 0), (New, 1)])
def test_overridden_releases_hear_of_it_if_they_can(kind: type[Any], released: int) -> None:
    from gcp.testing import BareFakeManager

    class Manager(BareFakeManager):
        def clean_after_error(self, endpoint: object, conn: object, error: BaseException) -> bool:
            return False

    with kind(Manager()) as pool:
        with pytest.raises(BodyError), pool.connection('db'):
            raise BodyError
        assert pool.released == released
        closed = pool.stats().closed
        assert (closed['error'], closed['discarded']) == ((1, 0) if kind is New else (0, 1))
