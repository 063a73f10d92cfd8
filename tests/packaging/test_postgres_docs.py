"""What docs/postgres.md shows is what there is."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
from peers import driver
from servers import BOUNCER

from gcp.demo.server import Server

GUIDE = Path(__file__).parents[2] / 'docs' / 'postgres.md'
TEXT = GUIDE.read_text() if GUIDE.exists() else ''

pytestmark = pytest.mark.skipif(not TEXT, reason='no docs beside the tests: this is not a checkout')


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize('code', blocks('python'), ids=range(len(blocks('python'))))
def test_each_example_runs(code: str, postgres: Server, script: Any) -> None:
    for name in ('psycopg2', 'psycopg', 'asyncpg'):
        driver(name)
    script(code, env={'PGHOST': str(postgres.directory), 'PGUSER': 'postgres'}).quietly()


def test_the_tests_run_a_bouncer_that_is_set_up_as_shown() -> None:
    shown, tested = configparser.ConfigParser(), configparser.ConfigParser()
    shown.read_string(blocks('ini')[0])
    tested.read_string(BOUNCER)
    assert set(shown['pgbouncer']) <= set(tested['pgbouncer'])
    assert shown['pgbouncer']['pool_mode'] == tested['pgbouncer']['pool_mode'] == 'transaction'


def test_the_numbers_are_those_of_the_code() -> None:
    from gcp.contrib import _database

    assert '`check_timeout` (1 second' in TEXT and _database.CHECK_TIMEOUT == 1
    assert 'within five seconds' in TEXT and _database.RESET_TIMEOUT == 5


@pytest.mark.parametrize('name', ['psycopg2', 'psycopg', 'asyncpg'])
def test_all_modules_have_the_arguments_that_are_described(name: str) -> None:
    import importlib
    import inspect

    driver(name)
    module = importlib.import_module(f'gcp.contrib.{name}')
    for manager in (getattr(module, each) for each in module.__all__ if each.endswith('ConnectionManager')):
        assert list(inspect.signature(manager).parameters) == ['dsn_params', 'aliveness', 'reset', 'check_timeout']
        assert manager.__name__ in TEXT
