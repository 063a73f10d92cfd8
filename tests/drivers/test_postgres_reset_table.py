"""The table of docs/postgres.md on what each reset leaves and costs, held against the drivers and a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from peers import Proxy
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, done, run

from gcp.demo.server import Server

GUIDE = Path(__file__).parents[2] / 'docs' / 'postgres.md'
TEXT = GUIDE.read_text() if GUIDE.exists() else ''

pytestmark = pytest.mark.skipif(not TEXT, reason='no docs beside the tests: this is not a checkout')

#: How a session is left with something, and a question that is true where it still is.
STATES = {
    '`SET ROLE`': ('SET ROLE pg_monitor', 'SELECT current_user <> session_user'),
    '`SET SESSION AUTHORIZATION`': (
        'SET SESSION AUTHORIZATION pg_monitor',
        "SELECT session_user = 'pg_monitor'",
    ),
    '`SET search_path`': ('SET search_path TO pg_temp', "SELECT current_setting('search_path') = 'pg_temp'"),
    '`SET client_encoding`': (
        "SET client_encoding TO 'LATIN1'",
        "SELECT current_setting('client_encoding') = 'LATIN1'",
    ),
    'advisory lock': (
        'SELECT pg_advisory_lock(1)',
        "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    '`LISTEN`': ('LISTEN orders', 'SELECT count(*) > 0 FROM pg_listening_channels()'),
    'temporary table': ('CREATE TEMP TABLE left_behind (id int)', "SELECT to_regclass('left_behind') IS NOT NULL"),
    'prepared statement': (
        'PREPARE mine AS SELECT 1',
        "SELECT count(*) > 0 FROM pg_prepared_statements WHERE name = 'mine'",
    ),
    'cursor `WITH HOLD`': (
        'DECLARE mine CURSOR WITH HOLD FOR SELECT 1',
        "SELECT count(*) > 0 FROM pg_cursors WHERE name = 'mine'",
    ),
    'open transaction': ('CREATE TABLE left_open (id int)', "SELECT to_regclass('left_open') IS NOT NULL"),
}
COSTS = {'round trips of a clean release': False, 'round trips with an open transaction': True}
MAKES: dict[str, tuple[type[Driver], ...]] = {
    'psycopg2': (Psycopg2,),
    'psycopg': (Psycopg, AsyncPsycopg),
    'asyncpg': (Asyncpg,),
    'each driver': (Psycopg2, Psycopg, AsyncPsycopg, Asyncpg),
}


def table() -> list[list[str]]:
    lines = re.search(r'^\| session state .*?\n\n', TEXT, flags=re.MULTILINE | re.DOTALL)
    assert lines is not None
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[0].strip().splitlines()]


def cases() -> list[tuple[type[Driver], str, str, str]]:
    head, _, *rows = table()
    for column, title in enumerate(head[1:], 1):
        match = re.fullmatch(r'([\w ]+) `([\w ]+)`', title)
        assert match is not None
        yield from ((make, match[2], row[0], row[column]) for make in MAKES[match[1]] for row in rows)  # type: ignore[misc]


CASES = list(cases()) if TEXT else []


def test_the_table_is_complete() -> None:
    assert {row[0] for row in table()[2:]} == {*STATES, *COSTS}


@pytest.mark.parametrize(
    ('make', 'reset', 'state', 'told'), [case for case in CASES if case[2] in STATES], ids=lambda each: str(each)
)
def test_a_reset_leaves_what_the_table_says(
    make: type[Driver], reset: str, state: str, told: str, postgres: Server
) -> None:
    async def body() -> None:
        pg = make()
        leave, ask = STATES[state]
        async with pg.connected(postgres.parameters, reset=reset) as (manager, conn):
            if state == 'open transaction' and pg.name == 'asyncpg':
                await conn.execute('BEGIN')
            await pg.ask(conn, leave)
            if state != 'open transaction' and pg.name != 'asyncpg':
                await done(conn.commit())
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, ask) is (told == 'left')

    run(body())


@pytest.mark.parametrize(
    ('make', 'reset', 'state', 'told'), [case for case in CASES if case[2] in COSTS], ids=lambda each: str(each)
)
def test_a_reset_costs_what_the_table_says(
    make: type[Driver], reset: str, state: str, told: str, proxy: Proxy, postgres: Server
) -> None:
    async def body() -> None:
        pg = make()
        proxied: dict[str, Any] = {
            **postgres.parameters,
            'host': '127.0.0.1',
            'port': proxy.port,
            'sslmode': 'disable',
        }
        async with pg.connected(proxied, reset=reset) as (manager, conn):
            if COSTS[state]:
                await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            before = proxy.questions
            await pg.release(manager, conn)
            assert proxy.questions - before == int(told)

    run(body())
