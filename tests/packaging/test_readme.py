"""The README: all of its examples run, and its figures, links and names are those of the project."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = next(path for path in Path(__file__).resolve().parents if (path / 'pyproject.toml').exists())
README = (ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else ''
EXAMPLES = re.findall(r'^```python\n(.*?)^```', README, flags=re.MULTILINE | re.DOTALL)
DATABASE_EXAMPLES = [code for code in EXAMPLES if '.internal' in code]

pytestmark = pytest.mark.skipif(not README, reason='no README beside the tests: this is not a checkout')


# --- the examples ---


@pytest.fixture(scope='module')
def orders() -> Iterator[str]:
    """Start a PostgreSQL with the database of the examples; yield the directory of its socket."""
    psycopg = pytest.importorskip('psycopg')
    from gcp.demo.server import ServerError, serve

    try:
        with serve() as server:
            with psycopg.connect(**server.parameters, autocommit=True) as conn:
                conn.execute('CREATE DATABASE orders')
            with psycopg.connect(**{**server.parameters, 'dbname': 'orders'}, autocommit=True) as conn:
                conn.execute('CREATE TABLE orders AS SELECT generate_series(1, 42) AS id')
            yield str(server.directory)
    except ServerError as error:
        (pytest.fail if os.environ.get('GCP_REQUIRE_SERVERS') else pytest.skip)(str(error))


@pytest.mark.parametrize('code', DATABASE_EXAMPLES, ids=range(len(DATABASE_EXAMPLES)))
def test_the_database_examples_run_on_a_real_server(code: str, orders: str, script: Callable[..., Any]) -> None:
    if 'asyncpg' in code:
        pytest.importorskip('asyncpg')
    local, replaced = re.subn(r'db-\d\.internal', orders, code)
    assert replaced == 2
    shown = script(local, env={'PGUSER': 'postgres'}).quietly()
    assert shown.strip() in ('(42,)', '42')


def test_the_asyncio_example_passes_mypy(tmp_path: Path) -> None:
    pytest.importorskip('mypy')
    pytest.importorskip('asyncpg')
    try:
        importlib.metadata.version('asyncpg-stubs')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('asyncpg-stubs is not installed')
    example = tmp_path / 'example.py'
    example.write_text(next(code for code in DATABASE_EXAMPLES if 'asyncpg' in code))
    checked = subprocess.run(
        [sys.executable, '-m', 'mypy', '--strict', '--config-file', ROOT / 'pyproject.toml', example],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_first_program_says_what_the_readme_shows(script: Callable[..., Any]) -> None:
    shown = re.search(r'^```python\n(.*?)^```\n\n^```\n(.*?)^```', README, flags=re.MULTILINE | re.DOTALL)
    assert shown and shown[1] == EXAMPLES[0]
    expected = shown[2].splitlines()
    assert expected[-1] == '...'
    said = script(EXAMPLES[0]).quietly().splitlines()
    assert said[: len(expected) - 1] == expected[:-1]
    assert len(said) > len(expected)


def test_no_example_is_left_out() -> None:
    assert [EXAMPLES[0], *DATABASE_EXAMPLES] == EXAMPLES
    assert len(EXAMPLES) == 3


def test_it_says_that_the_distribution_has_another_name() -> None:
    assert '$ pip install gcpool ' in README
    assert '`pip install gcp` installs another project' in README


# --- the rest ---


def test_the_figures_of_speed_are_those_of_the_tables() -> None:
    page = (ROOT / 'docs' / 'performance.md').read_text()
    tables = re.search('<!-- made by .*: begin -->(.*)<!-- made by .*: end -->', page, flags=re.DOTALL)
    assert tables
    section = re.search(r'^## Speed\n(.*?)^## ', README, flags=re.MULTILINE | re.DOTALL)
    assert section
    figures = re.findall(r'\d[\d.,]* (?:ns|µs|%)|\d+\.\d+ times|(?<=index )\d\.\d\d', section[1])
    assert len(figures) >= 8
    for figure in figures:
        assert re.search(rf'(?<![\d.]){re.escape(figure.replace("times", "x"))}', tables[1]), figure


def test_the_commands_for_a_fresh_clone_are_targets_of_make() -> None:
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)
    named = re.findall(r'(?:\$ |`)make ([a-z-]+)', README)
    assert {'demo', 'test'} <= set(named) <= set(targets)


def test_the_extras_that_it_installs_are_those_of_the_package() -> None:
    extras = re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text(), flags=re.MULTILINE)
    named = re.findall(r"pip install '(?:\.|gcpool)\[([\w,]+)\]'", README)
    assert named
    assert set(','.join(named).split(',')) <= set(extras)


def test_all_modules_of_contrib_are_in_the_table() -> None:
    named = {
        name
        for cell in re.findall(r'^\| (`\w+`[^|]*) \|', README, flags=re.MULTILINE)
        for name in re.findall(r'`(\w+)`', cell)
    }
    assert named == {path.stem for path in (ROOT / 'contrib').glob('[!_]*.py')}


# --- as an index shows it ---


@pytest.mark.parametrize('base', [None, 'https://code.example/owner/gcpool'])
def test_it_is_rendered_as_it_stands(base: str | None) -> None:
    if not any(map(importlib.util.find_spec, ('comrak', 'cmarkgfm'))):
        pytest.skip('needs readme-renderer[md]')
    renderer = pytest.importorskip('readme_renderer.markdown')
    metadata = runpy.run_path(str(ROOT / 'tools' / 'metadata.py'))
    page = renderer.render(metadata['description'](ROOT, base, '1.2.3'), variant='GFM')
    assert page, 'it cannot be rendered'
    assert page.count('<table') == README.count('\n|---') + README.count('\n| ---')
    assert page.count('<img') == README.count('![')
    assert page.count('<h2') == len(re.findall(r'^## ', README, flags=re.MULTILINE))
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(links) > 30
    relative = [link for link in links if not link.startswith(('https://', '#user-content-'))]
    assert (relative == []) is (base is not None)
