"""The pages: what they point to is there, and nothing is left out. (`make docs` builds them; a warning is an error.)"""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

import pytest

import gcp
import gcp.contrib

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason='no docs beside the tests: this is not a checkout')

PAGES = sorted(DOCS.glob('*.md'))

#: Modules that users have no business with, or that are told of under the name of another.
INNER = {
    'gcp.__main__', 'gcp._core', 'gcp.demo', 'gcp.disposal', 'gcp.hints', 'gcp.observe', 'gcp.options', 'gcp.top',
    'gcp.waiting',
}


def read(name: str) -> str:
    return (DOCS / name).read_text()


def toctree() -> list[str]:
    found = re.search(r'^```\{toctree\}\n(?::.*\n)*\n(.*?)```', read('index.md'), flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1].split()


def test_each_page_is_in_the_index() -> None:
    assert sorted(toctree()) == sorted(page.stem for page in PAGES if page.stem != 'index')
    for name in toctree():
        assert f'[]({name}.md)' in read('index.md'), name


def test_each_example_is_shown() -> None:
    shown = re.findall(r'^```\{literalinclude\} \.\./examples/(\S+)$', read('examples.md'), flags=re.MULTILINE)
    listed = re.findall(r'^\| \[([\w.]+\.py)\]\(#', read('examples.md'), flags=re.MULTILINE)
    assert shown == listed
    assert sorted([*shown, 'quickstart.py']) == sorted(path.name for path in (ROOT / 'examples').glob('*.py'))
    assert '{literalinclude} ../examples/quickstart.py' in read('index.md')


def test_each_public_module_is_in_the_reference() -> None:
    described = re.findall(r'^\.\. automodule:: (\S+)$', read('api.md'), flags=re.MULTILINE)
    modules = {f'gcp.{module.name}' for module in pkgutil.iter_modules(gcp.__path__)} - INNER
    modules |= {f'gcp.contrib.{module.name}' for module in pkgutil.iter_modules(gcp.contrib.__path__)
                if not module.name.startswith('_')}
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
            assert (DOCS / target).exists(), target
