"""A test that hangs fails, by its name, and the others run: with the settings and plugins of this suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PYPROJECT = TESTS.parent / 'pyproject.toml'

pytest.importorskip('xdist')
pytest.importorskip('pytest_timeout')
if not PYPROJECT.exists() or sys.platform == 'win32':
    pytest.skip('needs the settings of a checkout, and signals', allow_module_level=True)

MODULE = """
import asyncio, threading

def test_before():
    pass

def test_of_threads():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Event().wait()

def test_of_tasks():
    async def main():
        await asyncio.Event().wait()
    asyncio.run(main())

def test_that_catches_the_error():
    while True:
        try:
            threading.Event().wait()
        except BaseException:
            pass

def test_behind():
    pass

def test_last():
    pass
"""


def test_the_run_ends(tmp_path: Path) -> None:
    module = tmp_path / 'test_some.py'
    module.write_text(MODULE)
    plugins = ['-p', 'selection', '-p', 'spreading', '-p', 'no:cacheprovider']
    times = ['-o', 'timeout=3', '-o', 'faulthandler_timeout=8']
    env = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    ended = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-c',
            PYPROJECT,
            '--rootdir',
            tmp_path,
            '--numprocesses=2',
            *plugins,
            *times,
            module,
        ],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=tmp_path,
        env={**env, 'PYTHONPATH': str(TESTS / 'support')},
    )
    failed = sorted(re.findall(r'^FAILED \S+::(\w+)', ended.stdout, re.MULTILINE))
    assert failed == ['test_of_tasks', 'test_of_threads', 'test_that_catches_the_error'], ended.stdout + ended.stderr
    assert re.search(r'\b3 failed, 3 passed\b', ended.stdout), ended.stdout
    assert "crashed while running '" in ended.stdout
