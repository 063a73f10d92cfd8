"""`make wheels`: which Pythons it finds, what it tells; and the smoke tests that it runs on what was installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = next(path for path in Path(__file__).resolve().parents if (path / 'pyproject.toml').exists())
if not (ROOT / 'tools' / 'wheels').exists():
    pytest.skip('this is not a checkout', allow_module_level=True)

SMOKE = ROOT / 'tests' / 'packaging' / 'smoke.py'


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the modules of the tool."""
    monkeypatch.syspath_prepend(str(ROOT))
    from tools.wheels import __main__, build, pythons

    class Modules:
        main, building, finding = __main__, build, pythons

    return Modules


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts an interpreter on a machine that has no other."""
    monkeypatch.setenv('PATH', os.pathsep.join([str(tmp_path / 'first'), str(tmp_path / 'second')]))
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path / 'pyenv'))

    def add(place: str, version: str, *, kind: str = 'gnu', status: int = 0, **said: object) -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        free_threaded = version.endswith('t')
        major, minor, _ = version.rstrip('t').split('.')
        answer = {
            'path': str(path),
            'implementation': 'cpython',
            'version': version.rstrip('t'),
            'free_threaded': free_threaded,
            'suffix': f'.cpython-{major}{minor}{"t" if free_threaded else ""}-x86_64-linux-{kind}.so',
            'headers': True,
            **said,
        }
        path.write_text(
            f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\nexit {status}\n".replace('cat', '/bin/cat')
        )
        path.chmod(0o755)
        return path

    return add


# --- which Pythons ---


def test_it_finds_the_newest_of_pyenv_and_those_of_the_path(wheels: Any, machine: Any) -> None:
    machine('pyenv/versions/3.12.9/bin/python', '3.12.9')
    newest = machine('pyenv/versions/3.12.10/bin/python', '3.12.10')
    machine('pyenv/versions/3.8.2/bin/python', '3.8.2')
    free_threaded = machine('pyenv/versions/3.13.1t/bin/python', '3.13.1t')
    machine('second/python3.12', '3.12.4')
    first = machine('first/python3.13', '3.13.2')
    machine('second/python3.13', '3.13.3')
    found = wheels.finding.find(['3.12', '3.13', '3.14'])
    assert [(python.path, python.name) for python in found] == [
        (newest, '3.12.10'),
        (first, '3.13.2'),
        (free_threaded, '3.13.1t'),
    ]


def test_a_python_on_another_c_library_is_another_python(wheels: Any, machine: Any) -> None:
    machine('first/python3.13', '3.13.2')
    machine('second/python3.13', '3.13.5', kind='musl')
    assert [python.name for python in wheels.finding.find(['3.13'])] == ['3.13.2', '3.13.5 musl']


@pytest.mark.parametrize(
    'said', [{'status': 1}, {'implementation': 'pypy'}, {'suffix': None}, {'free_threaded': True}], ids=str
)
def test_what_is_no_such_python_is_passed_over(said: dict[str, Any], wheels: Any, machine: Any) -> None:
    machine('first/python3.13', '3.13.2', **said)
    assert wheels.finding.find(['3.13']) == []
    good = machine('second/python3.13', '3.13.3')
    assert [python.path for python in wheels.finding.find(['3.13'])] == [good]


def test_those_that_are_asked_for_are_the_only_ones(wheels: Any, machine: Any) -> None:
    machine('first/python3.12', '3.12.1')
    elsewhere = machine('elsewhere/python', '3.13.1')
    assert [python.path for python in wheels.finding.find(['3.12', '3.13'], [str(elsewhere)])] == [elsewhere]
    for asked, expected in (
        ('nowhere', 'nowhere is no CPython'),
        ('python3.12', 'is Python 3.12.1; supported are 3.13'),
    ):
        with pytest.raises(wheels.finding.NoPythonError, match=expected):
            wheels.finding.find(['3.13'], [asked])


def test_an_interpreter_says_what_it_is(wheels: Any) -> None:
    python = wheels.finding.probe(sys.executable)
    assert python.version == '{}.{}.{}'.format(*sys.version_info)
    assert python.suffix == sysconfig.get_config_var('EXT_SUFFIX')
    assert wheels.finding.probe('/no/such/python') is None


def test_nothing_to_build_with_is_an_error(wheels: Any, machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheels.main.main([]) == 2
    assert 'no CPython 3.10 to 3.' in capsys.readouterr().err
    machine('first/python3.12', '3.12.1', headers=False)
    assert wheels.main.main(['--pythons=python3.12']) == 2
    assert wheels.main.main(['--pythons=python3.9']) == 2
    assert 'python3.9 is no CPython that can be run' in capsys.readouterr().err


# --- what it tells ---


def test_the_table_has_a_row_for_each_file(wheels: Any) -> None:
    row = wheels.building.Row('3.13.0', 'gcpool-1-cp313.whl', 568_000, 'manylinux_2_17_x86_64', 31.04, 2.5, '10 passed')
    lines = wheels.main.table([row]).splitlines()
    assert [re.split('  +', line) for line in lines] == [
        ['Python', 'file', 'size', 'tag', 'build', 'install', 'tests'],
        ['3.13.0', 'gcpool-1-cp313.whl', '0.57 MB', 'manylinux_2_17_x86_64', '31.0 s', '2.5 s', '10 passed'],
    ]


def test_it_says_what_is_absent_and_that_no_address_is_set(wheels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    python = wheels.finding.Python(Path('python'), '3.12.1', False, '.so', True)
    without = python._replace(version='3.13.1')
    monkeypatch.setattr(wheels.main, 'repository', lambda project: None)
    said = '\n'.join(wheels.main.notes(['3.12', '3.13', '3.14'], [python], [without], 12.3))
    assert 'Not found on this machine: Python 3.14.' in said
    assert 'No wheel for Python 3.13.1: its headers (Python.h) are not installed.' in said
    assert '[tool.gcpool] repository is not set in pyproject.toml' in said
    monkeypatch.setattr(wheels.main, 'repository', lambda project: 'https://code.example/owner/gcpool')
    assert 'repository' not in '\n'.join(wheels.main.notes(['3.12'], [python], [], 12.3))


def test_the_environment_of_a_developer_decides_nothing(
    wheels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('CC', 'CFLAGS', 'PYTHONPATH', 'GCP_SANITIZE'):
        monkeypatch.setenv(name, 'theirs')
    said = wheels.building.run(
        sys.executable, '-c', 'import os; print(sorted(os.environ))', cwd=tmp_path, CFLAGS='ours'
    )
    assert not {"'CC'", "'PYTHONPATH'", "'GCP_SANITIZE'"} & set(re.findall(r"'\w+'", said))
    with pytest.raises(wheels.building.StepError, match='exit status 3\nwhy'):
        wheels.building.run(sys.executable, '-c', 'print("why"); raise SystemExit(3)', cwd=tmp_path)


# --- the smoke tests ---


def test_the_smoke_tests_pass_and_see_that_this_is_no_installed_package(tmp_path: Path) -> None:
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, SMOKE], cwd=tmp_path, env=env, capture_output=True, text=True)
    in_place = 'the_metadata_is_that_of_the_package:' in done.stderr  # no distribution is installed beside a clone
    failed = [line for line in done.stderr.splitlines() if re.fullmatch(r'\w+:', line)]
    expected = ['everything_comes_from_the_environment:', *['the_metadata_is_that_of_the_package:'] * in_place]
    # a clone may have the cores of several Pythons
    others = ('the_command_line_has_its_files:', 'the_core_is_the_one_of_this_python:')
    assert [line for line in failed if line not in others] == expected, done.stderr
    assert done.returncode == 1
