"""The pages: their links lead somewhere, and nothing is left out. (`make docs` builds them; a warning is an error.)"""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import pkgutil
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gcp
import gcp.contrib
from gcp import options

ROOT = next(path for path in Path(__file__).resolve().parents if (path / 'pyproject.toml').exists())
DOCS = ROOT / 'docs'

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason='no docs beside the tests: this is not a checkout')

PAGES = sorted(path for path in DOCS.rglob('*.md') if '_build' not in path.parts)
RECIPES = ROOT / 'examples' / 'recipes'
DECISIONS = sorted(path.stem for path in DOCS.glob('decisions/[0-9]*.md'))

#: Modules that users never import, or that are documented under the name of another.
INNER = {
    'gcp.__main__',
    'gcp.advise',
    'gcp._core',
    'gcp.background',
    'gcp.checks',
    'gcp.connection',
    'gcp.core_error',
    'gcp.demo',
    'gcp.disposal',
    'gcp.error_copies',
    'gcp.hints',
    'gcp.inspection',
    'gcp.listener_thread',
    'gcp.observe',
    'gcp.options',
    'gcp.pytest_plugin',
    'gcp.top',
    'gcp.waiting',
}


def read(name: str) -> str:
    return (DOCS / name).read_text()


def toctree(page: str) -> list[str]:
    """Return what the trees of contents of a page lead to, from the root of the pages."""
    found = re.findall(r'^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)```', read(page), flags=re.MULTILINE | re.DOTALL)
    return [name for tree in found for name in tree.split()]


@pytest.mark.parametrize('index', ['index.md', *(f'{path.parent.name}/index.md' for path in DOCS.glob('*/index.md'))])
def test_each_page_is_in_the_index(index: str) -> None:
    folder = (DOCS / index).parent
    there = [path.stem for path in folder.glob('*.md') if path.stem != 'index']
    there += [f'{path.parent.name}/index' for path in folder.glob('*/index.md') if path.parent.name != '_build']
    assert sorted(toctree(index)) == sorted(there)
    for name in toctree(index) if 'decisions' not in index else []:
        assert f'[]({name}.md)' in read(index), name


def test_each_page_says_what_it_is_about() -> None:
    titles = [path.read_text().splitlines()[0] for path in PAGES if path.stem != 'changelog']
    assert all(title.startswith('# ') for title in titles)
    assert len(set(titles)) == len(titles)


def test_each_recipe_is_shown_on_one_page() -> None:
    shown = [
        name
        for path in DOCS.glob('recipes/*.md')
        for name in re.findall(
            r'^```\{literalinclude\} \.\./\.\./examples/recipes/(\S+)$', path.read_text(), re.MULTILINE
        )
    ]
    assert sorted(shown) == sorted(path.name for path in RECIPES.glob('*.py'))


def test_all_public_names_of_the_pools_are_in_the_reference() -> None:
    for front in ('threading', 'asyncio'):
        part = read('api.md').partition(f'automodule:: gcp.{front}\n')[2].partition('## ')[0]
        listed = re.findall(r'auto(?:method|attribute):: (\w+)', part)
        pool = importlib.import_module(f'gcp.{front}').ConnectionPool
        public = [name for name in dir(pool) if not name.startswith('_')]
        assert sorted(listed) == sorted({*public} - {'open_acquire', 'open_release'})
        assert listed[0] == 'acquire'


def test_each_example_is_shown() -> None:
    shown = re.findall(r'^```\{literalinclude\} \.\./examples/(\S+)$', read('examples.md'), flags=re.MULTILINE)
    listed = re.findall(r'^\| \[([\w.]+\.py)\]\(#', read('examples.md'), flags=re.MULTILINE)
    assert shown == listed
    assert sorted([*shown, 'quickstart.py']) == sorted(path.name for path in (ROOT / 'examples').glob('*.py'))
    assert '{literalinclude} ../examples/quickstart.py' in read('index.md')


def test_the_quickstart_runs(script: Callable[..., Any]) -> None:
    greetings, pool, summary = script((ROOT / 'examples' / 'quickstart.py').read_text()).quietly().splitlines()
    assert greetings == ', '.join(f'hello {number}' for number in range(8))
    assert re.fullmatch('<ConnectionPool echo: [12] idle, 0 used, 0 creating, 0 waiting; closed=False>', pool)
    assert re.fullmatch('[12] connections served 8 acquires', summary)


def test_all_arguments_and_methods_of_a_pool_are_on_its_page() -> None:
    cells = re.findall(r'^\| (`[\w(`][^|]*) \|', read('pool.md'), flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r'`(\w+)', cell)]
    assert set(options.NAMES) <= set(named)
    assert {'connection', 'acquire', 'release', 'close', 'stats', 'get_size', 'get_endpoint_pool_size'} <= set(named)
    assert len(named) == len(set(named))


def test_each_public_module_is_in_the_reference() -> None:
    described = re.findall(r'^\.\. automodule:: (\S+)$', read('api.md'), flags=re.MULTILINE)
    modules = {f'gcp.{module.name}' for module in pkgutil.iter_modules(gcp.__path__)} - INNER
    modules |= {
        f'gcp.contrib.{module.name}'
        for module in pkgutil.iter_modules(gcp.contrib.__path__)
        if not module.name.startswith('_')
    }
    assert sorted(described) == sorted(modules)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_python(page: Path) -> None:
    for code in re.findall(r'^```python\n(.*?)^```', page.read_text(), flags=re.MULTILINE | re.DOTALL):
        compile(code, page.name, 'exec', flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r'\]\(([\w./-]+)', text):
        if not target.startswith('http'):
            assert (page.parent / target).exists(), target


# --- decisions ---


def test_each_decision_is_in_their_index_and_has_a_number_of_its_own() -> None:
    assert toctree('decisions/index.md') == DECISIONS
    assert [name[:4] for name in DECISIONS] == [f'{number:04}' for number in range(1, len(DECISIONS) + 1)]
    shown = re.findall(r'^\| \[(\d{4})\]\((\S+)\.md\) \|', read('decisions/index.md'), flags=re.MULTILINE)
    assert shown == [(name[:4], name) for name in DECISIONS]


@pytest.mark.parametrize('name', DECISIONS)
def test_a_decision_is_a_short_record(name: str) -> None:
    text = read(f'decisions/{name}.md')
    assert re.findall('^## (.*)$', text, flags=re.MULTILINE) == ['Context', 'Decision', 'Consequences']
    assert text.startswith(f'# {int(name[:4])}. ')
    assert re.search(r'^\*\*Status:\*\* (accepted|replaced by \[\d{4}\])', text, flags=re.MULTILINE)
    assert 15 <= len(text.splitlines()) <= 40


# --- the picture of the architecture ---


def test_the_picture_shows_what_its_source_says() -> None:
    source = re.sub('//.*', '', read('architecture.dot'))
    picture = html.unescape(read('architecture.svg'))
    nodes = re.findall(r'^ *(\w+) \[label="', source, flags=re.MULTILINE)
    edges = re.findall(r'^ *(\w+) -> (\w+)', source, flags=re.MULTILINE)
    drawn = re.findall('class="(node|edge)">\n<title>(.*)</title>', picture)
    assert sorted(name for kind, name in drawn if kind == 'node') == sorted(nodes)
    assert sorted(name for kind, name in drawn if kind == 'edge') == sorted(f'{one}->{other}' for one, other in edges)
    texts = ' '.join(re.findall('<text [^>]*>([^<]*)</text>', picture))
    for label in re.findall('label="([^"]*)"', source):
        for line in label.split('\\n'):
            assert line in texts, line


def test_the_picture_is_made_by_its_program() -> None:
    if shutil.which('dot') is None:
        pytest.skip('Graphviz is not installed')
    spec = importlib.util.spec_from_file_location('architecture', ROOT / 'tools' / 'pictures' / 'architecture.py')
    assert spec and spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert re.findall('<title>.*', program.draw(program.SOURCE)) == re.findall('<title>.*', read('architecture.svg'))
