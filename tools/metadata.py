"""What a distribution says of the project's pages, made from one address: ``[tool.gcpool] repository`` in
``pyproject.toml``.

``setup.py`` asks for the Project-URLs and for the README with absolute links. While the address is not set there are no
Project-URLs, and the links stay relative: a page of an index then does not lead anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: [text](target), ![text](target "title"), [name]: target; what is in front, and the target
LINK = re.compile(
    r'(?P<front>!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\)|\[[^\]]*\])*\]\(<?|^ {0,3}\[[^\]]+\]:\s+<?)(?P<target>[^\s()<>]+)',
    re.M,
)
#: <img src="target">, <a href="target">
TAG = re.compile(r'(?P<front><(?P<tag>img|a|source)\b[^>]*?\b(?:src|href|srcset)=["\'])(?P<target>[^"\'>\s]+)')
FENCE = re.compile(r'^( {0,3}(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^ {0,3}(?P=fence)[`~]*[ \t]*$)', re.M | re.S)
CODE = re.compile(r'(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)', re.S)
IMAGE = re.compile(r'\.(?:png|svg|gif|jpe?g|webp)$', re.I)


def repository(project: dict[str, Any]) -> str | None:
    """Return the address of the repository without a slash at its end, or ``None`` when it is not set.

    :param project: the tables of ``pyproject.toml``
    :raises ValueError: it is set and is no address of a page
    """
    value = project.get('tool', {}).get('gcpool', {}).get('repository', '')
    if not isinstance(value, str):
        raise ValueError(f'[tool.gcpool] repository in pyproject.toml is a string, not {value!r}')
    if not value.strip():
        return None
    parts = urlsplit(value.strip())
    if parts.scheme != 'https' or not parts.hostname or not parts.path.strip('/') or parts.query or parts.fragment:
        accepted = 'an address such as "https://HOST/OWNER/gcpool"'
        raise ValueError(f'[tool.gcpool] repository in pyproject.toml is {accepted}, not {value!r}')

    return value.strip().rstrip('/').removesuffix('.git')


def project_urls(base: str | None) -> dict[str, str]:
    """Return the Project-URLs: label to address."""
    if base is None:
        return {}

    return {
        'Homepage': base,
        'Documentation': f'{base}/blob/HEAD/docs/index.md',
        'Changelog': f'{base}/blob/HEAD/CHANGELOG.md',
        'Issues': f'{base}/issues',
        'Source': base,
    }


def absolute_links(text: str, base: str | None, version: str) -> str:
    """Return the README with absolute links: to the pages as the tag of the version has them.

    Code and links to other sites are left as they are. A link to a heading leads to the README in the repository.

    :param text: the README
    :param base: the address of the repository; ``None``: nothing is changed
    :param version: the version, whose tag is ``v<version>``
    """
    if base is None:
        return text
    kept: list[str] = []

    def keep(code: re.Match[str]) -> str:
        kept.append(code[0])
        return f'\0{len(kept) - 1}\0'

    def absolute(link: re.Match[str]) -> str:
        return link['front'] + _absolute(link['target'], base, version)

    for code in (FENCE, CODE):
        text = code.sub(keep, text)
    # twice: an image that is the text of a link is inside that link
    for pattern in (LINK, re.compile(r'(?P<front>!\[[^\]]*\]\(<?)(?P<target>[^\s()<>]+)'), TAG):
        text = pattern.sub(absolute, text)
    while '\0' in text:
        text = re.sub('\0(\\d+)\0', lambda place: kept[int(place[1])], text)

    return text


def _absolute(target: str, base: str, version: str) -> str:
    if re.match(r'[a-z][a-z0-9+.-]*:|//', target, re.I):
        return target
    if target.startswith('#'):  # an index names the anchors of headings otherwise
        target = f'README.md{target}'
    path, _, fragment = target.removeprefix('./').lstrip('/').partition('#')
    kind = 'raw' if IMAGE.search(path) else 'blob'

    return f'{base}/{kind}/v{version}/{path}' + (f'#{fragment}' if fragment else '')


def description(root: Path, base: str | None, version: str) -> str:
    """Return the README as an index shows it."""
    return absolute_links((root / 'README.md').read_text(encoding='utf-8'), base, version)
