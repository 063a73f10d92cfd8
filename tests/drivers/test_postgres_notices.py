"""What an idle PostgreSQL connection is told, in any language and in pieces of any length, decides about it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from peers import Proxy, await_input
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, each_driver, run
from starvation import SOON

from gcp.contrib._database import Verdict
from gcp.contrib._postgres import MessageReader, error_message, judge_notices
from gcp.demo.server import Server
from gcp.exceptions import DiscardConnection


def message(kind: bytes, **fields: str) -> bytes:
    body = b''.join(name.encode() + value.encode() + b'\0' for name, value in fields.items()) + b'\0'
    return kind + (len(body) + 4).to_bytes(4, 'big') + body


NOTICE = message(b'N', S='NOTICE', V='NOTICE', C='00000', M='by the way')
HINWEIS = message(b'N', S='HINWEIS', C='00000', M='nebenbei')
GOODBYES = {
    'english': message(b'E', S='FATAL', C='57P01', M='terminating connection'),
    'russian': message(b'E', S='ВАЖНО', C='57P01', M='закрытие подключения'),
    'chinese': message(b'E', S='致命错误', C='57P01', M='终止连接'),
}


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


async def hear(pg: Driver, conn: Any) -> None:
    if pg.name == 'asyncpg':
        await asyncio.sleep(0.05)  # the event loop reads by itself, and does not report it
    else:
        await_input(conn.fileno())


@each_driver
@pytest.mark.parametrize('language', GOODBYES)
@pytest.mark.parametrize('before', [b'', NOTICE], ids=['alone', 'after a notice'])
def test_a_goodbye_in_any_language_is_understood_before_the_end_of_the_stream(
    make: type[Driver], proxy: Proxy, proxied: dict[str, Any], language: str, before: bytes
) -> None:
    """The proxy keeps the connection open."""

    async def body() -> None:
        pg = make()
        async with pg.connected(proxied, check_timeout=0.2, reset='rollback') as (manager, conn):
            await pg.release(manager, conn)
            proxy.say(before + GOODBYES[language])
            proxy.silent = True  # as of a session that has ended
            await hear(pg, conn)
            assert not await pg.check(manager, conn)

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg, AsyncPsycopg])
def test_a_notice_in_another_language_is_asked_about_once(
    make: type[Driver], proxy: Proxy, proxied: dict[str, Any]
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied) as (manager, conn):
            before = proxy.questions
            proxy.say(HINWEIS)
            await hear(pg, conn)
            assert await pg.check(manager, conn)
            assert proxy.questions == before + 1
            assert await pg.check(manager, conn)
            assert proxy.questions == before + 1
            proxy.say(NOTICE)
            await hear(pg, conn)
            assert await pg.check(manager, conn)
            assert proxy.questions == before + 1

    run(body())


def test_psycopg2_reads_notices_whatever_its_user_keeps_them_in(proxy: Proxy, proxied: dict[str, Any]) -> None:
    class Log:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def append(self, notice: str) -> None:
            self.heard.append(notice)

    async def body() -> None:
        pg = Psycopg2()
        async with pg.connected(proxied) as (manager, conn):
            log = conn.notices = Log()
            proxy.say(NOTICE)
            await hear(pg, conn)
            assert await pg.check(manager, conn)
            assert log.heard == ['NOTICE:  by the way\n']
            assert conn.notices is log

    run(body())


def test_severities_decide() -> None:
    assert judge_notices([]) is Verdict.ALIVE
    assert judge_notices(['NOTICE', 'DEBUG', 'LOG:  x']) is Verdict.ALIVE
    assert judge_notices(['NOTICE', 'HINWEIS']) is Verdict.ASK
    assert judge_notices(['HINWEIS', 'FATAL:  x']) is Verdict.DEAD


@pytest.mark.parametrize('size', range(1, 12))
def test_messages_are_read_in_pieces(size: int) -> None:
    def reads(stream: bytes) -> bool:
        reader = MessageReader()
        return all(reader.are_async(stream[at : at + size]) for at in range(0, len(stream), size))

    news = NOTICE + HINWEIS + NOTICE
    assert reads(news)
    assert reads(news[:-3])
    for goodbye in GOODBYES.values():
        assert not reads(news + goodbye)


def test_the_servers_words_are_found_in_what_it_sent() -> None:
    assert error_message(NOTICE + GOODBYES['english'] + b'E') == 'terminating connection'
    assert error_message(NOTICE) is None
    assert error_message(b'E\0\0\0\0nonsense') is None


def test_asyncpg_hears_a_goodbye_in_pieces(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        pg = Asyncpg()
        async with pg.connected(proxied) as (manager, conn):
            await pg.release(manager, conn)
            stream = NOTICE + GOODBYES['russian']
            for piece in (stream[:3], stream[3:20], stream[20:]):
                proxy.say(piece)
                await hear(pg, conn)
            assert not await pg.check(manager, conn)

    run(body())


@each_driver
def test_a_release_does_not_wait_for_the_end_of_a_session_that_has_ended(
    make: type[Driver], proxy: Proxy, proxied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('gcp.contrib._database.RESET_TIMEOUT', 60.0)

    async def body() -> None:
        pg = make()
        async with pg.connected(proxied) as (manager, conn):
            await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            proxy.say(GOODBYES['english'])
            proxy.silent = True
            await hear(pg, conn)
            began = time.monotonic()
            with pytest.raises(DiscardConnection, match='terminating connection'):
                await pg.release(manager, conn)
            assert time.monotonic() - began < SOON

    run(body())
