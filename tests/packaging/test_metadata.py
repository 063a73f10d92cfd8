"""What a distribution says of the project: its pages, made from one address, and what it asks to be installed."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = next(path for path in Path(__file__).resolve().parents if (path / 'pyproject.toml').exists())
if not (ROOT / 'tools' / 'metadata.py').exists():
    pytest.skip('this is not a checkout', allow_module_level=True)

METADATA = runpy.run_path(str(ROOT / 'tools' / 'metadata.py'))
REQUIREMENTS = runpy.run_path(str(ROOT / 'tools' / 'requirements.py'))
PROJECT: dict[str, Any] = REQUIREMENTS['read']()
BASE = 'https://code.example/owner/gcpool'


def absolute(text: str, base: str | None = BASE) -> str:
    return str(METADATA['absolute_links'](text, base, '1.2.3'))


#: runs setup.py without a compilation, and prints what it says. In a process of its own: setuptools replaces distutils
SETUP = """
import json, runpy, setuptools, Cython.Build
said = {}
setuptools.setup = lambda **arguments: said.update(arguments)
Cython.Build.cythonize = lambda *args, **options: []
runpy.run_path('setup.py')
print(json.dumps({name: value for name, value in said.items() if name != 'ext_modules'}))
"""


def setup_arguments(tmp_path: Path, repository: str) -> dict[str, Any]:
    """Return what `setup.py` says when the address in `pyproject.toml` is this, without a compilation."""
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'gcp/__init__.py', 'tools'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    pyproject = tmp_path / 'pyproject.toml'
    edited, count = re.subn(r'^repository = ".*"$', f'repository = "{repository}"', pyproject.read_text(), flags=re.M)
    assert count == 1
    pyproject.write_text(edited)
    done = subprocess.run([sys.executable, '-c', SETUP], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


# --- the address ---


def test_no_address_no_project_urls(tmp_path: Path) -> None:
    said = setup_arguments(tmp_path, '')
    assert said['project_urls'] == {}
    assert said['long_description'] == (ROOT / 'README.md').read_text()


def test_the_address_makes_the_project_urls_and_the_links_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = setup_arguments(tmp_path, BASE + '/')
    assert said['project_urls'].keys() == {'Homepage', 'Documentation', 'Changelog', 'Issues', 'Source'}
    assert all(url == BASE or url.startswith(f'{BASE}/') for url in said['project_urls'].values())
    assert said['project_urls']['Homepage'] == BASE
    targets = re.findall(r'\]\(([^)\s]+)', re.sub(r'```.*?```', '', said['long_description'], flags=re.S))
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith('https://')] == []
    assert said['long_description_content_type'] == 'text/markdown'


def test_the_pages_of_the_project_urls_are_there() -> None:
    for url in METADATA['project_urls'](BASE).values():
        if '/blob/HEAD/' in url:
            assert (ROOT / url.partition('/blob/HEAD/')[2]).is_file(), url


@pytest.mark.parametrize('value', ['', '  '])
def test_an_empty_address_is_not_set(value: str) -> None:
    assert METADATA['repository']({'tool': {'gcpool': {'repository': value}}}) is None
    assert METADATA['repository']({}) is None


@pytest.mark.parametrize('value', [BASE, BASE + '/', BASE + '.git', f' {BASE} '])
def test_an_address_is_taken_without_what_follows_it(value: str) -> None:
    assert METADATA['repository']({'tool': {'gcpool': {'repository': value}}}) == BASE


@pytest.mark.parametrize(
    'value',
    [
        'gcpool',
        'http://code.example/a/b',
        'git@code.example:a/b.git',
        'https://code.example',
        BASE + '?tab=1',
        7,
        [BASE],
    ],
)
def test_a_bad_address_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(value))) as caught:
        METADATA['repository']({'tool': {'gcpool': {'repository': value}}})
    assert '[tool.gcpool] repository' in str(caught.value)


# --- links ---


@pytest.mark.parametrize(
    ('markdown', 'expected'),
    [
        ('[a](docs/pool.md)', f'[a]({BASE}/blob/v1.2.3/docs/pool.md)'),
        ('[a](docs/pool.md#limits "title")', f'[a]({BASE}/blob/v1.2.3/docs/pool.md#limits "title")'),
        ('[a](#speed)', f'[a]({BASE}/blob/v1.2.3/README.md#speed)'),
        ('[a](./LICENSE)', f'[a]({BASE}/blob/v1.2.3/LICENSE)'),
        ('[two\nlines](docs/pool.md)', f'[two\nlines]({BASE}/blob/v1.2.3/docs/pool.md)'),
        ('![a](docs/top.png)', f'![a]({BASE}/raw/v1.2.3/docs/top.png)'),
        (
            '[![a](docs/top.png)](docs/top.md)',
            f'[![a]({BASE}/raw/v1.2.3/docs/top.png)]({BASE}/blob/v1.2.3/docs/top.md)',
        ),
        ('[`x` of [y]](CHANGELOG.md)', f'[`x` of [y]]({BASE}/blob/v1.2.3/CHANGELOG.md)'),
        ('[a](docs/a.md) · [b](docs/b.md)', f'[a]({BASE}/blob/v1.2.3/docs/a.md) · [b]({BASE}/blob/v1.2.3/docs/b.md)'),
        ('[a]: docs/a.md', f'[a]: {BASE}/blob/v1.2.3/docs/a.md'),
        ('<img alt="x" src="docs/a.svg">', f'<img alt="x" src="{BASE}/raw/v1.2.3/docs/a.svg">'),
        ('<a href="docs/a.md">a</a>', f'<a href="{BASE}/blob/v1.2.3/docs/a.md">a</a>'),
    ],
)
def test_a_relative_link_becomes_absolute(markdown: str, expected: str) -> None:
    assert absolute(markdown) == expected
    assert absolute(markdown, None) == markdown


@pytest.mark.parametrize(
    'markdown',
    [
        '[a](https://elsewhere.example/x)',
        '[a](mailto:someone@elsewhere.example)',
        '`[a](docs/pool.md)`',
        '``[a](docs/pool.md) ` ``',
        '```python\nvalues[0](argument)\n```',
        '~~~\n[a](docs/pool.md)\n~~~',
        'a [word] (in brackets)',
    ],
)
def test_what_is_no_relative_link_stays(markdown: str) -> None:
    assert absolute(markdown) == markdown
    assert absolute(f'[b](docs/b.md) {markdown}' if '\n' not in markdown else markdown).endswith(markdown)


# --- what is asked for ---


def test_only_users_extras_are_published() -> None:
    assert set(PROJECT['project']['optional-dependencies']) == {
        'asyncpg',
        'demo',
        'django',
        'http',
        'mysql',
        'psycopg',
        'psycopg2',
        'redis',
        'sqlalchemy',
        'top',
    }
    assert {'bench', 'dev', 'docs', 'release', 'test'} <= set(PROJECT['dependency-groups'])


@pytest.mark.parametrize('name', ['bench', 'build', 'demo', 'dev', 'docs', 'redis', 'release', 'test', 'test-core'])
def test_the_requirements_of_each_group_are_resolved(name: str) -> None:
    listed = REQUIREMENTS['requirements'](name, PROJECT)
    assert len(listed) == len(set(listed))
    assert not [line for line in listed if not isinstance(line, str) or line.startswith('gcpool')]
    if name != 'build':
        assert set(PROJECT['project']['dependencies']) <= set(listed)


def test_the_developers_group_has_all_others() -> None:
    listed = {
        name: set(REQUIREMENTS['requirements'](name, PROJECT))
        for name in ('bench', 'dev', 'docs', 'frameworks', 'release', 'test')
    }
    assert listed['dev'] == set.union(*listed.values())


def test_groups_and_extras_are_expanded() -> None:
    project = {
        'project': {'name': 'x', 'dependencies': ['d'], 'optional-dependencies': {'e': ['e1'], 'f': ['x[e]', 'f1']}},
        'dependency-groups': {'a': [{'include-group': 'b'}, 'x[e, f]', 'a1'], 'b': ['b1', 'xy[e]']},
    }
    assert REQUIREMENTS['requirements']('a', project) == ['b1', 'xy[e]', 'e1', 'f1', 'a1', 'd']


@pytest.mark.parametrize('groups', [{'a': [{'include-group': 'a'}]}, {'a': [{'include-group': 'none'}]}, {}])
def test_a_group_that_cannot_be_resolved_is_named(groups: dict[str, Any]) -> None:
    project = {'project': {'name': 'x', 'dependencies': []}, 'dependency-groups': groups}
    with pytest.raises(LookupError, match="'(a|none)'"):
        REQUIREMENTS['requirements']('a', project)


def test_the_requirements_are_printed_for_pip() -> None:
    command = [sys.executable, ROOT / 'tools' / 'requirements.py', 'redis']
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent).stdout
    assert printed.splitlines()[0].startswith('redis')
