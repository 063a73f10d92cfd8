"""Files for contributors and services: they can be read, and what they name is there."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = next(path for path in Path(__file__).resolve().parents if (path / 'pyproject.toml').exists())
if not (ROOT / '.github').exists():
    pytest.skip('this is not a checkout', allow_module_level=True)

yaml = pytest.importorskip('yaml')

WORKFLOWS = ['ci', 'release']
YAML = sorted([*ROOT.glob('.github/**/*.yml'), ROOT / '.pre-commit-config.yaml'])
PAGES = sorted([*ROOT.glob('[A-Z]*.md'), *ROOT.glob('.github/*.md')])
TARGETS = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)
PYPROJECT = (ROOT / 'pyproject.toml').read_text()
#: versions such as 3.13, by the classifiers
SUPPORTED = re.findall(r'Python :: (3\.\d+)"', PYPROJECT)


def cibuildwheel(setting: str) -> list[str]:
    """A list of [tool.cibuildwheel]; Python 3.10 has no reader of TOML."""
    (section,) = re.findall(r'^\[tool\.cibuildwheel\]\n(.*?)^\[', PYPROJECT, flags=re.MULTILINE | re.DOTALL)
    (listed,) = re.findall(rf'^{setting} = \[(.*?)^\]', section, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r'^ *"(.*)",', listed, flags=re.MULTILINE)


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize('path', YAML, ids=lambda path: path.name)
def test_yaml_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize('name', WORKFLOWS)
def test_a_workflow_has_jobs_that_end(name: str) -> None:
    workflow = load(f'.github/workflows/{name}.yml')
    assert workflow['permissions'] == {'contents': 'read'}
    assert workflow[True]  # YAML 1.1 reads the key `on` as a boolean
    for job in workflow['jobs'].values():
        assert job['runs-on'] and job['steps']
        assert 'timeout-minutes' in job
        needed = job.get('needs', [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(workflow['jobs'])


@pytest.mark.parametrize('name', WORKFLOWS)
def test_an_action_is_named_by_its_commit(name: str) -> None:
    text = (ROOT / '.github' / 'workflows' / f'{name}.yml').read_text()
    used = re.findall(r'uses: *(.*)', text)
    assert used
    assert [line for line in used if not re.fullmatch(r'[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+', line)] == []
    assert text.count('actions/checkout@') == text.count('persist-credentials: false')


def test_ci_tests_each_python_that_the_package_supports() -> None:
    assert load('.github/workflows/ci.yml')['jobs']['test']['strategy']['matrix']['python'] == SUPPORTED


@pytest.mark.parametrize('page', ['README.md', 'docs/index.md'])
def test_the_pages_name_the_pythons_that_the_package_supports(page: str) -> None:
    named = re.findall(r'CPython (3\.\d+) to (3\.\d+)', (ROOT / page).read_text())
    assert named == [(SUPPORTED[0], SUPPORTED[-1])]


def test_wheels_are_built_for_each_python_that_the_package_supports() -> None:
    built = set(cibuildwheel('build'))
    assert built == {f'cp3{minor}-*' for minor in range(10, 16)} | {'cp313t-*', 'cp314t-*'}
    assert {f'cp{version.replace(".", "")}-*' for version in SUPPORTED} <= built


def test_the_test_of_a_wheel_is_there() -> None:
    for command in cibuildwheel('test-command'):
        (script,) = re.findall(r'\{project\}/([\w./-]+)', command)
        assert (ROOT / script).is_file()


def test_wheels_are_published_by_trusted_publishing_alone() -> None:
    text = (ROOT / '.github' / 'workflows' / 'release.yml').read_text()
    jobs = load('.github/workflows/release.yml')['jobs']
    assert {name for name, job in jobs.items() if 'permissions' in job} == {'publish'}
    assert jobs['publish']['permissions'] == {'id-token': 'write'}
    assert jobs['publish']['environment'] and 'tag' in jobs['publish']['if']
    assert 'secrets.' not in text and 'password' not in text
    assert len(jobs['wheels']['strategy']['matrix']['os']) == 4


def test_the_workflows_run_targets_of_make() -> None:
    run = [step.get('run', '') for job in load('.github/workflows/ci.yml')['jobs'].values() for step in job['steps']]
    named = re.findall(r'^make ([a-z-]+)', '\n'.join(run), flags=re.MULTILINE)
    assert named and set(named) <= set(TARGETS)


@pytest.mark.parametrize('template', ['bug', 'feature'])
def test_an_issue_template_has_what_github_asks_for(template: str) -> None:
    form = load(f'.github/ISSUE_TEMPLATE/{template}.yml')
    assert form['name'] and form['description']
    fields = [field for field in form['body'] if field['type'] != 'markdown']
    assert all(field['attributes']['label'] for field in fields)
    assert len({field['id'] for field in fields}) == len(fields)


def test_the_hooks_check_what_make_lint_checks() -> None:
    hooks = {hook['id']: hook for repo in load('.pre-commit-config.yaml')['repos'] for hook in repo['hooks']}
    assert {'ruff-check', 'ruff-format', 'cython-lint'} <= set(hooks)
    for path in ROOT.glob('gcp/**/*.px*'):
        assert re.search(hooks['cython-lint']['files'], str(path.relative_to(ROOT)))


def test_the_editor_and_the_formatter_agree() -> None:
    config = configparser.ConfigParser()
    config.read_string('[top]\n' + (ROOT / '.editorconfig').read_text())
    assert config['*']['max_line_length'] == '120'
    assert '\nline-length = 120\n' in PYPROJECT
    assert '\n[tool.ruff.format]\nquote-style = "single"\n' in PYPROJECT


def test_blame_ignores_commits_that_are_there() -> None:
    lines = (ROOT / '.git-blame-ignore-revs').read_text().splitlines()
    hashes = [line for line in lines if line and not line.startswith('#')]
    assert all(re.fullmatch('[0-9a-f]{40}', line) for line in hashes)
    if (ROOT / '.git').exists():
        for commit in hashes:
            git = ['git', '-c', 'safe.directory=*', '-C', ROOT, 'cat-file', '-e', commit]
            assert subprocess.run(git, capture_output=True).returncode == 0, commit


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    for target in re.findall(r'\]\((?!https?:)([\w./-]+)', page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_the_commands_that_a_page_names_are_targets_of_make(page: Path) -> None:
    for words in re.findall(r'(?:^\$ |`)make ((?:[a-z-]+ ?)+)', page.read_text(), flags=re.MULTILINE):
        assert set(words.split()) <= set(TARGETS), words


def test_the_files_that_the_guide_names_are_there() -> None:
    guide = (ROOT / 'CONTRIBUTING.md').read_text()
    named = re.findall(r'`((?:gcp|contrib|tests|docs|asv_bench|changes|tools)/[\w./-]*)`', guide)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists(), name


def test_all_packages_are_installed() -> None:
    (listed,) = re.findall(r'^packages = \[("gcp", .*)\]$', PYPROJECT, flags=re.MULTILINE)
    packages = {'.'.join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob('gcp/**/__init__.py')}
    assert set(re.findall(r'"([\w.]+)"', listed)) == packages | {'gcp.contrib', 'gcp.contrib.django'}
