"""Django's own tests of backends and transactions, from its sdist, with gcp's backend on a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peers import driver
from sdists import unpack_sdist

from gcp.demo.server import Server

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """
common = {{
    'ENGINE': 'gcp.contrib.django',
    'USER': {user!r},
    'HOST': {host!r},
    'OPTIONS': {{'pool': {{'max_size': 15, 'acquire_timeout': 60}}}},
}}
DATABASES = {{'default': {{**common, 'NAME': 'first'}}, 'other': {{**common, 'NAME': 'second'}}}}
SECRET_KEY = 'none'
PASSWORD_HASHERS = ['django.contrib.auth.hashers.MD5PasswordHasher']
DEFAULT_AUTO_FIELD = 'django.db.models.AutoField'
USE_TZ = False
"""

SUITES = ('backends', 'transactions', 'transaction_hooks', 'servers')

#: What is left out; docs/django.md says why.
LEFT_OUT = {
    'test_connect_pool',
    'test_pool_check_can_be_overridden',
    'test_pool_options_not_mutated',
    'test_pooling_health_checks',
}


@pytest.fixture(scope='module')
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Django's sdist of the version that is installed; skips where it cannot be had."""
    return unpack_sdist('django', 'tests', tmp_path_factory)


@pytest.mark.timeout(900)
def test_the_tests_of_backends_and_transactions_pass(sdist: Path, tmp_path: Path, postgres: Server) -> None:
    driver('psycopg')
    settings = SETTINGS.format(user=postgres.parameters['user'], host=str(postgres.parameters['host']))
    (tmp_path / 'gcp_settings.py').write_text(settings)
    ran = subprocess.run(
        [sys.executable, 'runtests.py', '--settings=gcp_settings', '--parallel=1', '--noinput', *SUITES],
        cwd=sdist / 'tests',
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=800,
    )
    failed = set(re.findall(r'^(?:ERROR|FAIL): (\w+)', ran.stderr, flags=re.MULTILINE))
    assert failed <= LEFT_OUT, ran.stderr[-6000:]
    (count,) = re.findall(r'^Ran (\d+) tests', ran.stderr, flags=re.MULTILINE)
    assert int(count) > 300, ran.stderr[-600:]
