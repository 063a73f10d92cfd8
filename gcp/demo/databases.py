"""The three databases: creates those that are missing, drops them at the end, and returns connect parameters."""

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
CLEAN_UP_TIMEOUT = 10.0

#: libpq's parameters that asyncpg accepts in a URI
SHARED = ('host', 'port', 'user', 'password', 'passfile', 'sslmode', 'sslcert', 'sslkey', 'sslrootcert')


class Databases:
    """The databases of the endpoints.

    :ivar table: the name of the workload's table in each database
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
        """Return the application name of one pool's connections to one endpoint."""
        return f'{self.table} {who} {endpoint}'

    def in_each(self, statement: sql.Composable) -> None:
        """Execute a statement in each database; once, if endpoints share a database."""
        for parameters in {parameters['dbname']: parameters for parameters in self._parameters.values()}.values():
            with contextlib.closing(connect(parameters)) as conn:
                _execute(conn, statement)


@contextlib.contextmanager
def prepared(server: Mapping[str, str], *, keep: bool) -> Iterator[Databases]:
    """Create the databases and a table in each, and drop at the end what was created.

    :param server: connect parameters of a database that exists
    :param keep: drop nothing, because the server ends with the demo
    :raises psycopg2.Error: when the server cannot be reached or refuses
    """
    created: list[str] = []
    databases = Databases(_assign(server, created))
    try:
        databases.in_each(
            sql.SQL(
                'CREATE UNLOGGED TABLE {0} (id int PRIMARY KEY, balance bigint NOT NULL); '
                'INSERT INTO {0} SELECT id, 100 FROM generate_series(1, {1}) AS id',
            ).format(sql.Identifier(databases.table), sql.Literal(ROWS))
        )
        yield databases
    finally:
        if not keep:
            with contextlib.suppress(TimeoutError, psycopg2.Error):
                within(CLEAN_UP_TIMEOUT, lambda: _clean_up(server, databases, created), what='clean-up')


def connect(parameters: Mapping[str, Any]) -> Connection:
    """Open a connection outside the pools."""
    conn: Connection = psycopg2.connect(**{'connect_timeout': CONNECT_TIMEOUT, **parameters})
    conn.autocommit = True
    return conn


def _assign(server: Mapping[str, str], created: list[str]) -> dict[str, dict[str, str]]:
    """Find or create a database for each endpoint. Without the privilege, all endpoints share the given database."""
    with contextlib.closing(connect(server)) as conn:
        own = {**server, 'dbname': conn.info.dbname}
        try:
            for endpoint in ENDPOINTS:
                _find_or_create(conn, endpoint, created)
        except psycopg2.errors.InsufficientPrivilege:
            return dict.fromkeys(ENDPOINTS, own)
    return {endpoint: {**own, 'dbname': endpoint} for endpoint in ENDPOINTS}


def _find_or_create(conn: Connection, name: str, created: list[str]) -> None:
    with conn.cursor() as cursor:
        cursor.execute('SELECT 1 FROM pg_database WHERE datname = %s', [name])
        if cursor.fetchone():
            return
        with contextlib.suppress(psycopg2.errors.DuplicateDatabase):  # another demo has created it
            cursor.execute(sql.SQL('CREATE DATABASE {}').format(sql.Identifier(name)))
            created.append(name)


def _clean_up(server: Mapping[str, str], databases: Databases, created: list[str]) -> None:
    databases.in_each(sql.SQL('DROP TABLE IF EXISTS {}').format(sql.Identifier(databases.table)))
    with contextlib.closing(connect(server)) as conn:
        for name in created:
            with contextlib.suppress(psycopg2.errors.ObjectInUse):  # another demo uses it
                _execute(conn, sql.SQL('DROP DATABASE IF EXISTS {}').format(sql.Identifier(name)))


def _execute(conn: Connection, statement: sql.Composable) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)


def _uri(parameters: Mapping[str, str]) -> str:
    known = {name: parameters[name] for name in SHARED if name in parameters}
    return f'postgresql:///{urllib.parse.quote(parameters["dbname"])}?{urllib.parse.urlencode(known)}'
