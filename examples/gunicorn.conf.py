"""gunicorn's configuration for examples/service.py: several processes, one page of metrics.

    cd examples && PGHOST=db.internal gunicorn

The processes share their metrics through files in a directory. Its name must be set before prometheus_client is
imported, it must be empty at the start, and it should be in memory. /metrics of any process shows the sum of all. The
counters of a process that has ended remain in the sum; its gauges do not."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

bind = os.environ.get('SERVICE_BIND', '127.0.0.1:8000')
wsgi_app = 'service:make_wsgi()'
chdir = str(Path(__file__).parent)
workers = int(os.environ.get('SERVICE_WORKERS', '2'))
threads = 8  # more than the pool has connections, so requests may have to wait
preload_app = True  # the pool is built once, before the fork; each process opens its own connections
graceful_timeout = 5
control_socket_disable = True  # newer versions create a socket in the home directory

given = os.environ.get('PROMETHEUS_MULTIPROC_DIR')
if given is None:
    in_memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    os.environ['PROMETHEUS_MULTIPROC_DIR'] = tempfile.mkdtemp(prefix='service-', dir=in_memory)
directory = Path(os.environ['PROMETHEUS_MULTIPROC_DIR'])


def on_starting(server: Any) -> None:
    """Delete the metrics of an earlier run. Called before the service is loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.glob('*.db'):
        file.unlink()


def post_fork(server: Any, worker: Any) -> None:
    """Start the exporters in each process: their threads do not survive a fork."""
    import service

    service.trace_to(os.environ.get('SERVICE_SPANS'))


def child_exit(server: Any, worker: Any) -> None:
    """Drop the gauges of a process that has ended, the pool's and others'."""
    import prometheus_client.multiprocess

    import gcp.observe.multiprocess

    gcp.observe.multiprocess.mark_process_dead(worker.pid)
    prometheus_client.multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """Delete the directory."""
    if given is None:
        shutil.rmtree(directory, ignore_errors=True)
