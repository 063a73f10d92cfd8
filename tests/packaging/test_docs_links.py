"""Links in the README, in the pages and in the project's other texts: each leads to a file that is there, and to a
heading that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from snippets import ROOT, pages

if not (ROOT / 'docs').exists():
    pytest.skip('no docs beside the tests: this is not a checkout', allow_module_level=True)

TEXTS = [*pages(), *sorted({*ROOT.glob('*.md')} - {*pages()}), *sorted((ROOT / 'tests').rglob('README.md'))]

LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\)|\[[^\]]*\])*\]\(<?([^\s()<>]*)')
FENCE = re.compile(r'^(`{3,}|~{3,}).*?^\1`*$', re.MULTILINE | re.DOTALL)
#: headings of this level and above have anchors: `myst_heading_anchors` in docs/conf.py
DEEPEST = 3


def prose(path: Path) -> str:
    """Return a text without its programs and without code in the lines."""
    return re.sub(r'(`+)(?!`).+?(?<!`)\1(?!`)', '', FENCE.sub('', path.read_text(encoding='utf-8')))


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').replace('*', '')
    return re.sub(r'[^\w\- ]', '', text.strip().lower()).replace(' ', '-')


@lru_cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a text. A heading that was there before has a number."""
    found: dict[str, int] = {}
    made = set()
    for level, heading in re.findall(r'^(#+) +(.*?) *#*$', FENCE.sub('', path.read_text(encoding='utf-8')), re.M):
        name = slug(heading)
        number = found[name] = found.get(name, -1) + 1
        if len(level) <= DEEPEST:
            made.add(f'{name}-{number}' if number else name)
    return frozenset(made)


def links(path: Path) -> Iterator[str]:
    for target in LINK.findall(prose(path)):
        if not re.match(r'[a-z][a-z0-9+.-]*:', target, re.I):
            yield unquote(target)


@pytest.mark.parametrize('path', TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_link_leads_to_what_is_there(path: Path) -> None:
    for target in links(path):
        file, _, anchor = target.partition('#')
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), target
        assert other.is_relative_to(ROOT), target
        if anchor:
            assert other.suffix == '.md' and anchor in anchors(other), target


def test_links_are_found() -> None:
    assert sum(1 for path in TEXTS for _ in links(path)) > 150


@pytest.mark.parametrize(
    ('heading', 'anchor'),
    [
        ('Warm-up, refill and retire', 'warm-up-refill-and-retire'),
        ('`max_uses`', 'max_uses'),
        ('Differences from generic-connection-pool 0.8.1', 'differences-from-generic-connection-pool-081'),
        ('[Redis](x.md): what is it?', 'redis-what-is-it'),
    ],
)
def test_anchors_are_made_as_the_pages_have_them(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor
