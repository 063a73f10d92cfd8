"""Print what a dependency group, an extra or the build needs, one requirement a line: a file for ``pip install -r``.

    python tools/requirements.py test

It resolves the groups of ``pyproject.toml`` itself, since ``pip install --group`` takes pip 25.1 or newer, and the pip
of a new environment is the one that its Python brought. A group that names an extra of this package, as
``gcpool[psycopg]``, gets that extra's requirements, so the package itself is not looked up in an index.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10: pip brings a reader
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

PYPROJECT = Path(__file__).resolve().parents[1] / 'pyproject.toml'


def read(path: Path = PYPROJECT) -> dict[str, Any]:
    """Return the tables of ``pyproject.toml``."""
    with path.open('rb') as file:
        return tomllib.load(file)


def requirements(name: str, project: dict[str, Any]) -> list[str]:
    """List what is needed, without repetitions.

    :param name: a dependency group, an extra, or ``build``: what building the package needs
    :param project: the tables of ``pyproject.toml``
    :raises LookupError: there is no such group or extra, or a group includes itself
    """
    if name == 'build':
        return list(project['build-system']['requires'])

    return list(dict.fromkeys([*_expand(name, project, ()), *project['project']['dependencies']]))


def _expand(name: str, project: dict[str, Any], outer: tuple[str, ...]) -> Iterator[str]:
    if name in outer:
        raise LookupError(f'the dependency group {name!r} includes itself: {" -> ".join([*outer, name])}')
    groups = project.get('dependency-groups', {})
    extras = project['project'].get('optional-dependencies', {})
    if name not in groups and name not in extras:
        raise LookupError(f'pyproject.toml has no dependency group and no extra {name!r}')
    own = re.compile(re.escape(project['project']['name']) + r'\[([\w,\s-]+)\]$')
    for line in groups.get(name, extras.get(name)):
        if isinstance(line, dict):
            yield from _expand(line['include-group'], project, (*outer, name))
        elif named := own.match(line):
            for extra in named[1].split(','):
                yield from _expand(extra.strip(), project, (*outer, name))
        else:
            yield line


if __name__ == '__main__':
    print(*requirements(sys.argv[1], read()), sep='\n')
