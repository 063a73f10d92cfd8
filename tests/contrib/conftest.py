"""A PostgreSQL server for the managers' tests: one for the session, with a fresh directory, gone at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peers import Proxy, missing

from gcp.demo.server import Server, ServerError, serve


@pytest.fixture(scope='session')
def postgres() -> Iterator[Server]:
    try:
        with serve(max_connections=50) as server:
            yield server
    except ServerError as error:
        missing(str(error))


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    with Proxy(postgres.directory / '.s.PGSQL.5432') as proxy:
        yield proxy
