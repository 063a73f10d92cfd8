"""How gunicorn runs examples/service.py: several processes, one page of metrics.

    cd examples && PGHOST=db.internal gunicorn

The processes share their metrics by files in a directory. It is named before anything of Prometheus is imported, empty
when the service starts, and not kept on a disk if there is something better. On /metrics, each process shows the sum of
all; what a process has counted stays when it is gone, and what it holds goes with it."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

bind = os.environ.get('SERVICE_BIND', '127.0.0.1:8000')
wsgi_app = 'service:make_wsgi()'
chdir = str(Path(__file__).parent)
workers = int(os.environ.get('SERVICE_WORKERS', '2'))
threads = 8  # more than the pool has connections: there may be a line
preload_app = True  # the pool is made once, before the fork; each process has its own connections
graceful_timeout = 5
control_socket_disable = True  # newer versions would put a socket into the home directory

given = os.environ.get('PROMETHEUS_MULTIPROC_DIR')
if given is None:
    in_memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    os.environ['PROMETHEUS_MULTIPROC_DIR'] = tempfile.mkdtemp(prefix='service-', dir=in_memory)
directory = Path(os.environ['PROMETHEUS_MULTIPROC_DIR'])


def on_starting(server: Any) -> None:
    """What another run has counted is not this one's. Called before the service is loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.glob('*.db'):
        file.unlink()


def post_fork(server: Any, worker: Any) -> None:
    """Exporters have threads, and threads do not survive a fork: each process has its own."""
    import service

    service.trace_to(os.environ.get('SERVICE_SPANS'))


def child_exit(server: Any, worker: Any) -> None:
    """Of a process that is gone, nothing is held any more: not what the pool knows, nor what others' gauges do."""
    import prometheus_client.multiprocess

    import gcp.observe.multiprocess

    gcp.observe.multiprocess.mark_process_dead(worker.pid)
    prometheus_client.multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """Leave nothing behind."""
    if given is None:
        shutil.rmtree(directory, ignore_errors=True)
