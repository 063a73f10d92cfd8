"""What the pages show is run as it stands: programs in the pages, and the recipes that need no web server. The tests of
some pages run their programs themselves, and look at what they do."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peers import driver
from snippets import ROOT, Snippet, snippets

from gcp.demo.server import Server

if not (ROOT / 'docs').exists():
    pytest.skip('no docs beside the tests: this is not a checkout', allow_module_level=True)

RECIPES = ROOT / 'examples' / 'recipes'

#: which test runs the programs of a page
ELSEWHERE = {
    'README.md': 'test_readme.py',
    'docs/managers.md': 'test_guide.py',
    'docs/operations.md': 'test_operations_guide.py',
    'docs/postgres.md': 'test_postgres_docs.py',
    'docs/redis-http.md': 'test_redis_http_guide.py',
}
HERE = [snippet for snippet in snippets() if snippet.page not in ELSEWHERE]

each_snippet = pytest.mark.parametrize('snippet', HERE, ids=lambda snippet: f'{snippet.page}:{snippet.line}')


@pytest.fixture
def place(postgres: Server) -> dict[str, str]:
    """Say where the server is."""
    driver('psycopg')
    driver('asyncpg')
    return {
        'PGHOST': str(postgres.directory),
        'PGUSER': 'postgres',
        'PGDATABASE': 'postgres',
        'DB_PASSWORD': 'unused',  # the page of MySQL makes a pool, but no connection
    }


def needs(code: str) -> None:
    """Skip without the packages that a program imports."""
    for name in sorted({*re.findall(r'^(?:from|import) (\w+)', code, re.MULTILINE)} - {*sys.stdlib_module_names}):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name}')


@each_snippet
def test_each_program_of_a_page_runs(snippet: Snippet, place: dict[str, str], script: Callable[..., Any]) -> None:
    needs(snippet.code)
    ended = script(snippet.code, env=place)
    assert ended.status == 0 and 'Traceback' not in ended.err, ended


def test_the_programs_of_the_other_pages_are_run() -> None:
    for page, test in ELSEWHERE.items():
        text = Path(__file__).with_name(test).read_text(encoding='utf-8')
        assert Path(page).name in text and 'python' in text, page


def run(script: Callable[..., Any], recipe: str, place: dict[str, str], **more: str) -> str:
    """Run a recipe as a program."""
    code = f'import runpy; runpy.run_path({str(RECIPES / recipe)!r}, run_name="__main__")'
    return str(script(code, env={**place, **more}).quietly())


def test_credentials(place: dict[str, str], script: Callable[..., Any], tmp_path: Path) -> None:
    secret = tmp_path / 'orders.json'
    secret.write_text('{"user": "postgres"}')
    assert run(script, 'credentials.py', place, DB_SECRET=str(secret)) == 'postgres\n'


def test_failover(place: dict[str, str], script: Callable[..., Any]) -> None:
    hosts = {'PRIMARY': place['PGHOST'], 'REPLICA_1': '/nowhere', 'REPLICA_2': place['PGHOST']}
    assert run(script, 'failover.py', place, **hosts) == '[(42,)]\n'


def test_tenants(place: dict[str, str], script: Callable[..., Any]) -> None:
    assert run(script, 'tenants.py', place) == 'acme\ninitech\numbrella\n2 connections\n'


def test_the_cells_of_a_notebook_can_be_run_again(place: dict[str, str], script: Callable[..., Any]) -> None:
    cells = (RECIPES / 'notebook.py').read_text(encoding='utf-8').split('\n# %%\n')[1:]
    assert len(cells) == 3
    code = ''.join([cells[0], cells[1], cells[0], cells[1], cells[2]])
    said = script(code, env=place).quietly().splitlines()
    assert said[:2] == ['[(1,), (2,), (3,)]'] * 2
    assert said[2].startswith('<ConnectionPool notebook: 1 idle, 0 used')


def test_the_fixtures_for_pytest(place: dict[str, str], script: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip('anyio')
    for name in ('conftest.py', 'test_orders.py'):
        shutil.copy(RECIPES / name, tmp_path)
    code = f'import pytest, sys; sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {os.fspath(tmp_path)!r}]))'
    assert '3 passed' in script(code, env=place).quietly()
