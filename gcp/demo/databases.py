"""The three databases: made where missing, unmade at the end, and how each driver is told of them."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from gcp.contrib._wire import within

__all__ = ['ENDPOINTS', 'Databases', 'connect', 'prepared']

ENDPOINTS = ('primary', 'replica-1', 'replica-2')
ROWS = 1000
CONNECT_TIMEOUT = 5
CLEAN_UP_TIMEOUT = 1.0

#: What asyncpg understands of libpq's parameters, in a URI.
SHARED = ('host', 'port', 'user', 'password', 'passfile', 'sslmode', 'sslcert', 'sslkey', 'sslrootcert')


class Databases:
    """Where the endpoints are.

    :ivar table: the workload's table, of the same name in each
    """

    def __init__(self, parameters: Mapping[str, Mapping[str, str]]) -> None:
        self.table = f'gcp_demo_{os.getpid()}'
        self._parameters = parameters

    def for_psycopg2(self, who: str) -> dict[str, dict[str, Any]]:
        """Connect parameters by endpoint.

        :param who: which pool connects
        """
        return {
            endpoint: {**parameters, 'application_name': self.application_name(who, endpoint)}
            for endpoint, parameters in self._parameters.items()
        }

    def for_asyncpg(self, who: str) -> dict[str, dict[str, Any]]:
        """Connect parameters by endpoint.

        :param who: which pool connects
        """
        return {
            endpoint: {
                'dsn': _uri(parameters),
                'server_settings': {'application_name': self.application_name(who, endpoint)},
            }
            for endpoint, parameters in self._parameters.items()
        }

    def application_name(self, who: str, endpoint: str) -> str:
        """By what name the server knows the connections of one pool to one endpoint."""
        return f'{self.table} {who} {endpoint}'

    def in_each(self, statement: sql.Composable) -> None:
        """Execute a statement in each database, once where endpoints share one."""
        for parameters in {parameters['dbname']: parameters for parameters in self._parameters.values()}.values():
            with contextlib.closing(connect(parameters)) as conn:
                _execute(conn, statement)


@contextlib.contextmanager
def prepared(server: Mapping[str, str], *, keep: bool) -> Iterator[Databases]:
    """Make the databases and the table in each, and unmake at the end what was made.

    :param server: connect parameters of a database that exists
    :param keep: leave all as it is: the server does not outlive the demo
    :raises psycopg2.Error: when the server cannot be reached or refuses
    """
    made: list[str] = []
    databases = Databases(_place(server, made))
    try:
        databases.in_each(sql.SQL(
            'CREATE UNLOGGED TABLE {0} (id int PRIMARY KEY, balance bigint NOT NULL); '
            'INSERT INTO {0} SELECT id, 100 FROM generate_series(1, {1}) AS id',
        ).format(sql.Identifier(databases.table), sql.Literal(ROWS)))
        yield databases
    finally:
        if not keep:
            with contextlib.suppress(TimeoutError, psycopg2.Error):
                within(CLEAN_UP_TIMEOUT, lambda: _clean_up(server, databases, made), what='clean-up')


def connect(parameters: Mapping[str, Any]) -> Connection:
    """Open a session that is not a pool's."""
    conn: Connection = psycopg2.connect(**{'connect_timeout': CONNECT_TIMEOUT, **parameters})
    conn.autocommit = True
    return conn


def _place(server: Mapping[str, str], made: list[str]) -> dict[str, dict[str, str]]:
    """Find or make a database for each endpoint; where that is not allowed, all are the one that was given."""
    with contextlib.closing(connect(server)) as conn:
        own = {**server, 'dbname': conn.info.dbname}
        try:
            for endpoint in ENDPOINTS:
                _find_or_make(conn, endpoint, made)
        except psycopg2.errors.InsufficientPrivilege:
            return dict.fromkeys(ENDPOINTS, own)
    return {endpoint: {**own, 'dbname': endpoint} for endpoint in ENDPOINTS}


def _find_or_make(conn: Connection, name: str, made: list[str]) -> None:
    with conn.cursor() as cursor:
        cursor.execute('SELECT 1 FROM pg_database WHERE datname = %s', [name])
        if cursor.fetchone():
            return
        with contextlib.suppress(psycopg2.errors.DuplicateDatabase):  # another demo was quicker
            cursor.execute(sql.SQL('CREATE DATABASE {}').format(sql.Identifier(name)))
            made.append(name)


def _clean_up(server: Mapping[str, str], databases: Databases, made: list[str]) -> None:
    databases.in_each(sql.SQL('DROP TABLE IF EXISTS {}').format(sql.Identifier(databases.table)))
    with contextlib.closing(connect(server)) as conn:
        for name in made:
            with contextlib.suppress(psycopg2.errors.ObjectInUse):  # another demo found it useful
                _execute(conn, sql.SQL('DROP DATABASE IF EXISTS {}').format(sql.Identifier(name)))


def _execute(conn: Connection, statement: sql.Composable) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)


def _uri(parameters: Mapping[str, str]) -> str:
    known = {name: parameters[name] for name in SHARED if name in parameters}
    return f'postgresql:///{urllib.parse.quote(parameters["dbname"])}?{urllib.parse.urlencode(known)}'
