"""SQLAlchemy's own tests of pools, from its sdist, with gcp's pool in the place of `QueuePool`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sdists import unpack_sdist

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = """
import sqlalchemy.pool
from gcp.contrib.sqlalchemy import Pool
sqlalchemy.pool.QueuePool = Pool
"""

#: What is left out; docs/sqlalchemy.md says why.
LEFT_OUT = (
    'test_recreate_state[Pool-pool_args0]',
    'test_timeout_subsecond_precision',
    'test_connect_handler_not_called_for_recycled',
    'test_connect_checkout_handler_always_gets_info',
    'test_error_on_pooled_reconnect_cleanup_invalidate',
    'test_error_on_pooled_reconnect_cleanup_recycle',
    'test_error_on_pooled_reconnect_cleanup_wcheckout_event',
    'test_overflow_reset_on_failed_connect',
    'test_dispose_closes_pooled',
)


@pytest.fixture(scope='module')
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLAlchemy's sdist of the version that is installed; skips where it cannot be had."""
    return unpack_sdist('sqlalchemy', 'test', tmp_path_factory)


def test_the_tests_of_pools_pass(sdist: Path, tmp_path: Path) -> None:
    (tmp_path / 'queue_pool_is_gcp.py').write_text(PLUGIN)
    left_out = ' or '.join(name.partition('[')[0] for name in LEFT_OUT if '[' not in name)
    ran = subprocess.run(
        [
            *(
                sys.executable,
                '-s',
                '-m',
                'pytest',
                'test/engine/test_pool.py',
                '-p',
                'queue_pool_is_gcp',
                '--tb=short',
            ),
            *('-k', f'not ({left_out})'),
            *(f'--deselect=test/engine/test_pool.py::PoolTest::{name}' for name in LEFT_OUT if '[' in name),
        ],
        cwd=sdist,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr
    passed = int(ran.stdout.rpartition(' passed')[0].split()[-1])
    assert passed > 100, ran.stdout[-400:]
