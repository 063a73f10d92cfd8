"""What the README shows is what there is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gcp.asyncio
import gcp.threading
from gcp import options

ROOT = Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else ''

pytestmark = pytest.mark.skipif(not README, reason='no README beside the tests: this is not a checkout')


def examples() -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize('code', examples(), ids=range(len(examples())))
def test_each_example_is_python(code: str) -> None:
    ast.parse(code)


def test_the_quickstart_is_the_one_in_the_examples_and_runs() -> None:
    program = ROOT / 'examples' / 'quickstart.py'
    assert program.read_text().endswith('\n\n' + examples()[0])
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=30, cwd=ROOT, env={'PYTHONPATH': str(ROOT)})
    assert done.stderr == ''
    greetings, picture, summary = done.stdout.splitlines()
    assert greetings == ', '.join(f'hello {number}' for number in range(8))
    assert re.fullmatch('<ConnectionPool echo: [12] idle, 0 used, 0 creating, 0 waiting; closed=False>', picture)
    assert re.fullmatch('[12] connections served 8 acquires', summary)


def test_the_manager_of_one_s_own_can_be_pooled() -> None:
    namespace: dict[str, object] = {}
    exec(examples()[-1], namespace)
    assert isinstance(namespace['pool'], gcp.threading.ConnectionPool)


def test_all_options_are_in_the_table() -> None:
    table = [
        name for names in re.findall(r'^\| (`\w+`(?:, `\w+`)*) \|', README, flags=re.MULTILINE)
        for name in re.findall(r'\w+', names)
    ]
    assert sorted(set(table) & set(options.NAMES)) == sorted(options.NAMES)
    assert len(table) == len(set(table))


def test_all_files_it_points_to_are_there() -> None:
    for target in re.findall(r'\]\(([\w./-]+)', README):
        assert (ROOT / target).exists(), target
