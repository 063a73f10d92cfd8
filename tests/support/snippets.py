"""The programs in the README and in the pages of `docs/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ['ROOT', 'Snippet', 'pages', 'snippets']

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """A program that a page shows.

    :ivar page: the path of the page, from the root of the project
    :ivar line: the line of the page in which it begins
    """

    page: str
    line: int
    code: str

    @property
    def name(self) -> str:
        """A name for a module."""
        return re.sub(r'\W+', '_', self.page.removesuffix('.md')) + f'_{self.line}'


def pages() -> list[Path]:
    """Return the README and the pages; none where there are no docs beside the tests."""
    found = sorted(path for path in (ROOT / 'docs').rglob('*.md') if '_build' not in path.parts)
    return [ROOT / 'README.md', *found] if found else []


def snippets() -> Iterator[Snippet]:
    """Yield each program, with as many empty lines before it as make its lines those of the page."""
    for path in pages():
        text = path.read_text(encoding='utf-8')
        for found in FENCE.finditer(text):
            yield Snippet(path.relative_to(ROOT).as_posix(), text.count('\n', 0, found.start()) + 2, found[1])
