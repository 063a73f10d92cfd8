"""The pages in a browser, in a wide window and in a narrow one: nothing is cut off. Programs are wrapped; a
table that is wider than the window scrolls by itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browser_or_skip

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
if not DOCS.exists():
    pytest.skip('no docs beside the tests: this is not a checkout', allow_module_level=True)

WIDTHS = (1440, 390)

#: elements of the article that are wider than what they are in, where that does not scroll; and the width of the page
LOOK = """
(() => {
    const overflow = (element) => getComputedStyle(element).overflowX;
    const scrolls = (element) => ['auto', 'scroll'].includes(overflow(element));
    const all = (kinds) => document.querySelectorAll(kinds.split(' ').map((kind) => 'article ' + kind).join());
    const seen = document.documentElement.clientWidth;
    const cut = [];
    for (const element of all('pre'))
        if (element.scrollWidth > element.clientWidth + 1) cut.push('PRE ' + element.textContent.slice(0, 60));
    for (const element of all('table img p dt li')) {
        let box = element;
        while (box && box.tagName !== 'ARTICLE' && !scrolls(box)) box = box.parentElement;
        if (box && scrolls(box)) continue;
        const found = element.getBoundingClientRect();
        const hides = overflow(element) === 'hidden' && element.scrollWidth > element.clientWidth + 1;
        if (found.width && (found.right > seen + 1 || found.left < -1 || hides))
            cut.push(element.tagName + ' ' + element.textContent.slice(0, 60));
    }
    return {cut, width: document.documentElement.scrollWidth, window: seen, tables: all('table').length};
})()
"""


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages."""
    for name in ('sphinx', 'myst_parser', 'furo', 'psycopg', 'psycopg2', 'asyncpg', 'redis', 'sqlalchemy'):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name}')
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'sphinx', '--quiet', '--fail-on-warning', '--keep-going', '--fresh-env']
    done = subprocess.run(
        [*command, '--doctree-dir', folder / 'doctrees', DOCS, folder / 'html'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': os.fspath(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / 'html'


@pytest.fixture(scope='module')
def tab() -> Iterator[Tab]:
    with browser_or_skip() as browser:
        yield browser.open()


@pytest.mark.timeout(900)
@pytest.mark.parametrize('width', WIDTHS)
def test_no_page_is_cut_off(width: int, site: Path, tab: Tab) -> None:
    pages = sorted(path for path in site.rglob('*.html') if '_modules' not in path.parts)
    assert len(pages) > 40
    tab.look_like(width)
    problems = {}
    tables = 0
    for page in pages:
        tab.go(page.as_uri())
        found = tab.evaluate(LOOK)
        tables += found['tables']
        if found['cut'] or found['width'] > found['window']:
            problems[page.relative_to(site).as_posix()] = found
    assert problems == {}
    assert tables > 60
