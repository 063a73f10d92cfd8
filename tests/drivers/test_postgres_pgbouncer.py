"""A fleet behind PgBouncer in transaction mode: two processes of six workers each share three sessions."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bouncer_load import TURNS, WORKERS
from peers import driver
from pg_drivers import Driver, each_driver, run

from gcp.demo.server import Server

SUPPORT = Path(__file__).parents[1] / 'support'
#: One process each, told how to check.
FLEET = ({'aliveness': 'socket'}, {'aliveness': 'query'})

#: What must be told to drivers that prepare statements on their own; and a name to know their sessions by.
SETTINGS: dict[str, dict[str, Any]] = {
    'psycopg2': {'application_name': 'fleet'},
    'psycopg': {'application_name': 'fleet', 'prepare_threshold': None},
    'asyncpg': {'server_settings': {'application_name': 'fleet'}, 'statement_cache_size': 0},
}


@each_driver
def test_a_fleet_shares_a_few_sessions(make: type[Driver], bouncer: Any, postgres: Server) -> None:
    pg = make()
    parameters = {**pg.keywords(bouncer.parameters), **SETTINGS[pg.name]}
    admin = driver('psycopg2').connect(**postgres.parameters)
    admin.autocommit = True
    cursor = admin.cursor()
    question = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fleet'"
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    processes = [
        subprocess.Popen(
            [sys.executable, SUPPORT / 'bouncer_load.py', make.__name__, json.dumps(parameters), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': path},
        )
        for options in FLEET
    ]
    try:
        most = 0
        while any(process.poll() is None for process in processes):
            cursor.execute(question)
            most = max(most, cursor.fetchone()[0])
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[0].wait(0.01)
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert (out, err) == (f'{WORKERS * TURNS}\n', '')
        assert 1 <= most <= bouncer.size
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        admin.close()


@each_driver
def test_an_open_transaction_does_not_keep_its_session_from_others(make: type[Driver], bouncer: Any) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.make({'orders': {**pg.keywords(bouncer.parameters), **SETTINGS[pg.name]}})
        conns = [await pg.create(manager) for _ in range(3 * bouncer.size)]
        for conn in conns:
            await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            await pg.release(manager, conn)
        for conn in conns:
            assert await pg.check(manager, conn)
            await pg.dispose(manager, conn)

    run(body())
