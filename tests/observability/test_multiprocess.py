"""Several processes behind one page: forked, killed, served by gunicorn; read by the client's own collector."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pages import Page, check
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from gcp.observe.aggregation import Aggregation
from gcp.observe.multiprocess import File, PoolValues, mark_process_dead
from gcp.observe.process_files import STALE_SERIES, process_start, prune
from gcp.testing import FakeManager
from gcp.threading import ConnectionPool

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')

HERE = Path(__file__).parent
PRELUDE = f"""
import gc, os, signal, sys, threading, time
sys.path.append({str(HERE)!r})
from gcp.testing import BareFakeManager, FakeManager
from gcp.threading import ConnectionPool
"""
PATIENCE = 60.0


def merged(path: object) -> Page:
    """The page of all processes, as the client's own collector shows it."""
    own = CollectorRegistry()
    MultiProcessCollector(own, path=str(path))  # type: ignore[no-untyped-call]
    return Page(generate_latest(own).decode())


def until(predicate: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < deadline, 'in vain'
        time.sleep(0.05)


Story = Callable[[str], str]


@pytest.fixture
def story(script: Callable[..., Any], tmp_path: Path) -> Story:
    """Run a source text in a process that is one of several."""

    def run(source: str) -> str:
        ended = script(
            PRELUDE + dedent(source),
            '-W',
            'ignore::DeprecationWarning',
            env={'PROMETHEUS_MULTIPROC_DIR': str(tmp_path)},
        )
        out: str = ended.quietly()
        return out

    return run


def test_everything_but_endpoints_is_shown(story: Story, tmp_path: Path) -> None:
    story("""
        from test_multiprocess import merged
        from pages import check
        pool = ConnectionPool(FakeManager(), name='orders')
        first = merged(os.environ['PROMETHEUS_MULTIPROC_DIR'])
        assert first.value('gcpool_acquires_total', pool='orders', result='hit') == 0
        with pool.connection('a'), pool.connection('b'):
            while merged(os.environ['PROMETHEUS_MULTIPROC_DIR']).sum('gcpool_connections', state='used') != 2:
                time.sleep(0.01)
            page = merged(os.environ['PROMETHEUS_MULTIPROC_DIR'])
        from gcp.observe.names import METRICS
        shown = {name for name, _ in page.series}
        assert {sample for metric in METRICS for sample in metric.samples} == shown, shown
        assert page.value('gcpool_info', pool='orders', frontend='threading') == 1
        assert page.value('gcpool_max_connections') == 100
        assert page.value('gcpool_oldest_checkout_seconds') > 0
        assert not page.labels('pool_endpoint')
        check(page)
    """)
    page = merged(tmp_path)  # after its end: what it counted, and nothing of its present
    assert page.by('result', 'gcpool_acquires_total') == {'created': 2}
    assert not list(page.find('gcpool_connections'))


def test_connecting_is_summed_over_processes_and_the_longest_delay_shown(story: Story, tmp_path: Path) -> None:
    story("""
        from test_multiprocess import merged
        from gcp.testing import error
        from gcp import EndpointUnavailableError, Retry
        manager = FakeManager()
        manager.create.does(error(OSError()))
        pool = ConnectionPool(manager, name='orders', breaker_threshold=1, connect_retry=Retry(60, 60), max_size=3)
        for endpoint in 'ab':
            for kind in (OSError, EndpointUnavailableError):
                try:
                    pool.acquire(endpoint, timeout=0)
                except kind:
                    pass
        where = os.environ['PROMETHEUS_MULTIPROC_DIR']
        while merged(where).sum('gcpool_breaker_open') != 2:
            time.sleep(0.01)
        page = merged(where)
        assert page.value('gcpool_endpoint_max_connections') == 6
        assert 0 <= page.value('gcpool_retry_delay_seconds') <= 60
        assert page.value('gcpool_connect_waiters') == page.value('gcpool_missing_connections') == 0
    """)
    page = merged(tmp_path)
    assert page.by('class', 'gcpool_connect_failures_total') == {'transient': 2}
    assert page.by('result', 'gcpool_acquires_total') == {'error': 2, 'rejected': 2}
    assert page.value('gcpool_limits_errors_total') == 0
    assert not list(page.find('gcpool_breaker_open'))


def test_exact_at_exit_and_summed_with_those_before(story: Story, tmp_path: Path) -> None:
    for _ in range(3):
        story("""
            pool = ConnectionPool(FakeManager(), name='orders')
            for _ in range(100):
                with pool.connection('a'):
                    pass
        """)
    page = merged(tmp_path)
    assert page.by('result', 'gcpool_acquires_total') == {'created': 3, 'hit': 297}
    assert page.value('gcpool_use_seconds_count') == 300
    assert page.value('gcpool_hook_seconds_count', hook='on_release', result='ok') == 300


def test_a_fork_after_the_pool_was_made(story: Story, tmp_path: Path) -> None:
    story("""
        pool = ConnectionPool(FakeManager(), name='orders')
        for _ in range(10):
            with pool.connection('a'):
                pass
        children = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                for _ in range(100 * (number + 1)):
                    with pool.connection('a'):
                        pass
                sys.exit()
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
    """)
    page = merged(tmp_path)
    assert page.by('result', 'gcpool_acquires_total') == {'created': 4, 'hit': 606}


def test_a_child_that_never_uses_the_pool_leaves_nothing(story: Story, tmp_path: Path) -> None:
    out = story("""
        pool = ConnectionPool(FakeManager(), name='orders')
        with pool.connection('a'):
            pass
        pid = os.fork()
        if pid == 0:
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        print(pid)
    """)
    assert not list(tmp_path.glob(f'*_{out.strip()}.db'))
    assert merged(tmp_path).sum('gcpool_acquires_total') == 1


def test_children_of_multiprocessing_write_their_last_counts(story: Story, tmp_path: Path) -> None:
    story("""
        import multiprocessing

        def work():
            for _ in range(100):
                with pool.connection('a'):
                    pass

        pool = ConnectionPool(FakeManager(), name='orders')
        work()
        child = multiprocessing.get_context('fork').Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0
    """)
    assert merged(tmp_path).sum('gcpool_acquires_total') == 200


def test_no_thread_stays_where_nothing_happens(story: Story) -> None:
    story("""
        def threads():
            return len(os.listdir('/proc/self/task'))

        def until(predicate):
            deadline = time.monotonic() + 60
            while not predicate():
                assert time.monotonic() < deadline
                time.sleep(0.01)

        pool = ConnectionPool(FakeManager(), name='orders')
        assert threads() == 1
        for _ in range(3):
            with pool.connection('a'):
                pass
            assert threads() == 2
            until(lambda: threads() == 1)
        with pool.connection('a'):
            until(lambda: threads() == 2)
        until(lambda: threads() == 1)
    """)


def test_what_dead_processes_show_of_their_present_is_removed(story: Story, tmp_path: Path) -> None:
    story("""
        pool = ConnectionPool(FakeManager(), name='orders')
        with pool.connection('a'):
            time.sleep(1)
            from test_multiprocess import merged
            assert merged(os.environ['PROMETHEUS_MULTIPROC_DIR']).sum('gcpool_connections') == 1
            pid = os.fork()
            if pid == 0:
                held = pool.acquire('a')
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(pid, 0)
            os.kill(os.getpid(), 0)
            os._exit(0)
    """)
    page = merged(tmp_path)
    assert page.sum('gcpool_connections', state='used') == 2  # the files were not written since
    story("pool = ConnectionPool(FakeManager(), name='orders')")
    page = merged(tmp_path)
    assert page.sum('gcpool_connections') == 0
    assert page.sum('gcpool_acquires_total') == 2


def test_a_process_can_be_told_to_be_dead(tmp_path: Path) -> None:
    for name in (
        'gauge_livesum_gcpool_7.db',
        'gauge_livemax_gcpool_7.db',
        'gauge_livesum_gcpool_77.db',
        'counter_gcpool_7.db',
        'gauge_livesum_7.db',
    ):
        (tmp_path / name).touch()
    mark_process_dead(7, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'counter_gcpool_7.db',
        'gauge_livesum_7.db',
        'gauge_livesum_gcpool_77.db',
    ]


def test_a_process_id_that_is_used_again(story: Story, tmp_path: Path) -> None:
    """What is in the file of a dead process is added to, not overwritten."""
    story("""
        pool = ConnectionPool(FakeManager(), name='orders')
        with pool.connection('a'):
            pass
    """)
    (before,) = tmp_path.glob('counter_gcpool_*.db')
    (histograms,) = tmp_path.glob('histogram_gcpool_*.db')
    out = story(f"""
        directory = os.environ['PROMETHEUS_MULTIPROC_DIR']
        os.rename({str(before)!r}, f'{{directory}}/counter_gcpool_{{os.getpid()}}.db')
        os.rename({str(histograms)!r}, f'{{directory}}/histogram_gcpool_{{os.getpid()}}.db')
        pool = ConnectionPool(FakeManager(), name='orders')
        with pool.connection('a'):
            pass
    """)
    assert not out
    page = merged(tmp_path)
    assert page.by('result', 'gcpool_acquires_total') == {'created': 2}
    assert page.value('gcpool_use_seconds_count') == 2


def test_pools_that_come_and_go_keep_their_totals_and_the_files_small(story: Story, tmp_path: Path) -> None:
    story("""
        from gcp.observe import multiprocess
        multiprocess.START_DELAY = multiprocess.PERIOD = 3600   # written at the begin and at the end
        for _ in range(100):
            pool = ConnectionPool(BareFakeManager())
            with pool.connection('a'):
                pass
    """)
    page = merged(tmp_path)
    assert page.sum('gcpool_acquires_total') == 100
    assert len(page.by('pool', 'gcpool_acquires_total')) <= 13
    assert len(page.labels('pool')) <= 50  # the others are 0, until the file is written anew
    (file,) = tmp_path.glob('histogram_*.db')
    series = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
    assert len(series) < 2 * 13 * 200 + 2000


def test_pools_that_come_and_go_between_writes_keep_the_files_small(story: Story, tmp_path: Path) -> None:
    story("""
        from gcp.observe import multiprocess
        writer = multiprocess.writers.of(os.environ['PROMETHEUS_MULTIPROC_DIR'])
        for _ in range(100):
            pool = ConnectionPool(BareFakeManager())
            with pool.connection('a'):
                pass
            writer.flush()
    """)
    assert merged(tmp_path).sum('gcpool_acquires_total') == 100
    for file in tmp_path.glob('*.db'):
        series = [json.loads(key) for key, *_ in MmapedDict.read_all_values_from_file(str(file))]  # type: ignore[no-untyped-call]
        of_pools = Counter(labels['pool'] for _, _, labels, _ in series if 'pool' in labels)
        assert len(series) <= 2 * 13 * max(of_pools.values()) + STALE_SERIES, (file, of_pools)


def test_a_directory_that_is_not_there(script: Callable[..., Any], tmp_path: Path) -> None:
    ended = script(
        PRELUDE
        + dedent("""
        pool = ConnectionPool(FakeManager(), name='orders')
        for _ in range(10):
            with pool.connection('a'):
                pass
        assert pool.stats().acquires['hit'] == 9
    """),
        env={'PROMETHEUS_MULTIPROC_DIR': str(tmp_path / 'none')},
    )
    assert ended.status == 0
    assert ended.err.count('multiprocess failed: FileNotFoundError') == 1, ended


def test_many_pools_are_not_written_by_their_constructors(story: Story) -> None:
    """Each wrote all pools: the last of 150 took 40 ms."""
    story("""
        from gcp.observe import multiprocess
        from test_multiprocess import merged, until
        flush, threads = multiprocess.Writer.flush, []

        def counted(writer):
            threads.append(threading.get_ident())
            return flush(writer)

        multiprocess.Writer.flush = counted
        pools = [ConnectionPool(FakeManager(), name=f'pool {number}') for number in range(50)]
        assert threads.count(threading.get_ident()) == 1, threads
        path = os.environ['PROMETHEUS_MULTIPROC_DIR']
        until(lambda: len(merged(path).by('pool', 'gcpool_max_connections')) == 50)
        assert merged(path).sum('gcpool_max_connections') == 5_000
        assert threads.count(threading.get_ident()) == 1, threads
    """)


def test_values_are_made_again_only_when_figures_have_changed() -> None:
    pool = ConnectionPool(FakeManager(), name='orders', registry=None)
    aggregation, values = Aggregation(labelled=False), PoolValues('orders')
    aggregation.add(pool._telemetry.telemetry)

    def shown(only_forks: bool = False) -> dict[str, dict[str, float]]:
        (reading,) = aggregation.read()
        return values.update(reading, only_forks)

    first = shown()
    assert shown() is first
    assert shown(True) is not first and shown() == first
    with pool.connection('a'):
        assert shown() != first


def test_limits_of_workers_that_have_not_used_their_pool(story: Story, tmp_path: Path) -> None:
    """Each can open connections. The process that only forks them does not."""
    story("""
        from test_multiprocess import merged, until
        path = os.environ['PROMETHEUS_MULTIPROC_DIR']
        pool = ConnectionPool(FakeManager(), name='orders', max_size=5, min_idle=2)
        page = merged(path)
        assert page.value('gcpool_max_connections') == 100
        assert page.value('gcpool_max_connections_per_endpoint') == 5
        end, keep = os.pipe()
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os.close(keep)
                os.read(end, 1)
                sys.exit()
            children.append(pid)
        until(lambda: merged(path).value('gcpool_max_connections') == 300)
        page = merged(path)
        assert page.value('gcpool_max_connections_per_endpoint') == 15
        assert page.value('gcpool_min_idle_connections') == 6
        with pool.connection('a'):
            until(lambda: merged(path).value('gcpool_max_connections') == 400)
        os.close(keep)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        until(lambda: merged(path).value('gcpool_max_connections') == 100)
    """)


# --- files in trouble ---


def test_files_that_vanish_are_made_again(script: Callable[..., Any], tmp_path: Path) -> None:
    ended = script(
        PRELUDE
        + dedent("""
        import shutil
        from pathlib import Path
        from gcp.observe import multiprocess
        from test_multiprocess import merged, until
        path = os.environ['PROMETHEUS_MULTIPROC_DIR']
        between, flush = threading.Lock(), multiprocess.Writer.flush

        def flush_alone(writer):
            with between:
                return flush(writer)

        multiprocess.Writer.flush = flush_alone
        pool = ConnectionPool(FakeManager(), name='orders')

        def use(times):
            for _ in range(times):
                with pool.connection('a'):
                    pass

        use(10)
        until(lambda: merged(path).sum('gcpool_acquires_total') == 10)
        for file in Path(path).iterdir():
            file.unlink()
        use(5)
        # the files are made one after the other
        until(lambda: merged(path).sum('gcpool_acquires_total') == 15)
        until(lambda: merged(path).sum('gcpool_max_connections') == 100)
        until(lambda: merged(path).sum('gcpool_use_seconds_count') == 15)

        shutil.rmtree(path)
        use(5)
        time.sleep(0.7)  # the writer meets a directory that is gone
        os.mkdir(path)
        use(5)
        until(lambda: merged(path).sum('gcpool_acquires_total') == 25)

        with between:  # a write to what was mapped, and is cut off in the middle of it, ends the process
            for file in Path(path).iterdir():
                os.truncate(file, 0)
        use(5)
        until(lambda: all(file.stat().st_size for file in Path(path).iterdir()))
        until(lambda: merged(path).sum('gcpool_acquires_total') == 30)
        """),
        env={'PROMETHEUS_MULTIPROC_DIR': str(tmp_path)},
    )
    assert ended.status == 0, ended
    assert ended.err.count('multiprocess failed: FileNotFoundError') == 1, ended
    assert len(ended.err.splitlines()) == 1, ended


def test_a_counter_of_a_dead_process_stays_when_its_file_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / 'counter_gcpool_1.db'
    before = File(str(path), lasting=True)
    before.write({'a': 1.0, 'gone': 2.0})
    before.close()
    file = File(str(path), lasting=True)
    file.write({'a': 3.0})
    path.unlink()
    file.write({'a': 4.0})
    file.close()
    found = {key: value for key, value, *_ in MmapedDict.read_all_values_from_file(str(path))}  # type: ignore[no-untyped-call]
    assert found == {'a': 5.0, 'gone': 2.0}


def test_space_is_reserved_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full is an error. The values that are there are written on, and the rest when there is space."""
    path = tmp_path / 'counter_gcpool_1.db'
    file = File(str(path), lasting=True)
    assert path.stat().st_blocks * 512 >= path.stat().st_size

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, 'full')

    many = {f'key {number}' * 10: 1.0 for number in range(2000)}
    file.write({'first': 1.0})
    with monkeypatch.context() as context:
        context.setattr(os, 'posix_fallocate', full)
        with pytest.raises(OSError, match='full'):
            file.write({'first': 2.0, **many})
        with pytest.raises(OSError, match='full'):
            File(str(tmp_path / 'counter_gcpool_2.db'), lasting=True)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    values = {key: value for key, value, *_ in MmapedDict.read_all_values_from_file(str(path))}  # type: ignore[no-untyped-call]
    assert values['first'] == 2.0
    file.write({'first': 3.0, **many})
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    file.close()
    values = {key: value for key, value, *_ in MmapedDict.read_all_values_from_file(str(path))}  # type: ignore[no-untyped-call]
    assert values == {'first': 3.0, **many}


def test_a_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, 'unable')

    monkeypatch.setattr(os, 'posix_fallocate', unable)
    path = tmp_path / 'counter_gcpool_1.db'
    file = File(str(path), lasting=True)
    file.write({f'key {number}' * 10: 1.0 for number in range(2000)})
    file.close()
    assert path.stat().st_blocks * 512 >= path.stat().st_size


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='needs root, to mount')
def test_a_disk_that_is_full(script: Callable[..., Any], tmp_path: Path) -> None:
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=160k', 'tmpfs', str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(mounted.stderr)
    try:
        ended = script(
            PRELUDE
            + dedent("""
            pools = [ConnectionPool(FakeManager(), name=f'pool {number}') for number in range(20)]
            for pool in pools:
                with pool.connection('a'):
                    pass
            time.sleep(1)
            assert pools[0].stats().acquires['created'] == 1
            """),
            env={'PROMETHEUS_MULTIPROC_DIR': str(tmp_path)},
        )
        assert ended.status == 0, ended
        assert ended.err.count('multiprocess failed') == ended.err.count('No space left on device') == 1, ended
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_a_process_id_that_another_process_uses(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    assert other.stdin is not None
    start = process_start(other.pid)
    assert start is not None
    dead, alive = (
        f'gauge_livesum_gcpool_{int(start) - 1}_{other.pid}.db',
        f'gauge_livesum_gcpool_{start}_{other.pid}.db',
    )
    for name in (dead, alive, f'counter_gcpool_{other.pid}.db'):
        (tmp_path / name).touch()
    prune(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f'counter_gcpool_{other.pid}.db', alive]
    other.stdin.close()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and its parent has not asked for it
    prune(str(tmp_path))
    assert not (tmp_path / alive).exists()
    other.wait()


def test_a_pool_that_is_not_to_be_seen(story: Story, tmp_path: Path) -> None:
    story('ConnectionPool(FakeManager(), registry=None)')
    assert not list(tmp_path.iterdir())


# --- gunicorn ---

SERVICE = (
    PRELUDE
    + """
pool = ConnectionPool(FakeManager(), name='orders')

def app(environ, start_response):
    if environ['PATH_INFO'] == '/metrics':
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        body = generate_latest(registry)
    elif environ['PATH_INFO'] == '/pid':
        body = str(os.getpid()).encode()
    else:
        with pool.connection('db'):
            body = b'done'
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
"""
)


class Gunicorn:
    """A service with several workers."""

    def __init__(self, port: int, master: int) -> None:
        self.address = f'http://127.0.0.1:{port}'
        self.master = master

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as response:
            text: str = response.read().decode()
            return text

    def load(self, requests: int) -> None:
        with ThreadPoolExecutor(8) as executor:
            assert list(executor.map(self.get, ['/'] * requests)) == ['done'] * requests

    def workers(self) -> set[int]:
        children = Path(f'/proc/{self.master}/task/{self.master}/children').read_text()
        return {int(pid) for pid in children.split()}

    def page(self) -> Page:
        return Page(self.get('/metrics'))


def answers(service: Gunicorn) -> bool:
    try:
        return bool(service.get('/pid'))
    except OSError:
        return False


@contextmanager
def gunicorn(directory: Path, *options: str) -> Iterator[Gunicorn]:
    pytest.importorskip('gunicorn')
    (directory / 'service.py').write_text(SERVICE)
    (directory / 'metrics').mkdir()
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            '-W',
            'ignore',
            '-m',
            'gunicorn',
            '--bind',
            f'127.0.0.1:{port}',
            '--workers',
            '3',
            '--log-level',
            'warning',
            '--chdir',
            str(directory),
            *options,
            'service:app',
        ],
        env={
            **os.environ,
            'PROMETHEUS_MULTIPROC_DIR': str(directory / 'metrics'),
            'PYTHONPATH': os.pathsep.join(sys.path),
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    service = Gunicorn(port, process.pid)
    try:
        until(lambda: answers(service))
        yield service
        process.terminate()
        process.wait(PATIENCE)
        assert process.stderr is not None
        assert 'Traceback' not in process.stderr.read()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize('options', [(), ('--preload',), ('--threads', '4')], ids=' '.join)
def test_workers_of_gunicorn(tmp_path: Path, options: tuple[str, ...]) -> None:
    with gunicorn(tmp_path, *options) as service:
        until(lambda: len(service.workers()) == 3)
        until(lambda: service.page().value('gcpool_max_connections') == 300)  # before any worker has used its pool
        service.load(300)
        until(lambda: service.page().sum('gcpool_acquires_total') == 300)
        page = service.page()
        check(page)
        assert page.sum('gcpool_connections', state='used') == 0

        victim = int(service.get('/pid'))
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in service.workers() and len(service.workers()) == 3)
        service.load(300)
        until(lambda: service.page().sum('gcpool_acquires_total') == 600)
        until(lambda: not list((tmp_path / 'metrics').glob(f'gauge_*_{victim}.db')))
        page = service.page()
        assert page.value('gcpool_use_seconds_count') == page.sum('gcpool_releases_total') == 600
        assert page.sum('gcpool_connections_closed_total') == 0
        killed_had = page.sum('gcpool_hook_calls_total', hook='create', outcome='ok') - page.sum('gcpool_connections')
        assert killed_had >= 0
        until(lambda: service.page().value('gcpool_max_connections') == 300)
    page = merged(tmp_path / 'metrics')
    assert page.sum('gcpool_acquires_total') == 600
    assert not list(page.find('gcpool_connections'))


def test_a_page_that_is_asked_for_while_a_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's code makes a file empty at first, and its collector cannot read an empty file: a worker that began
    while another was scraped cost the scrape."""
    import builtins

    from prometheus_client import mmap_dict

    looks = []

    def look(name: str, mode: str) -> Any:
        file = builtins.open(name, mode)  # noqa: SIM115
        if mode == 'a+b':
            looks.append(merged(tmp_path))
        return file

    monkeypatch.setattr(mmap_dict, 'open', look, raising=False)
    for kind, lasting in (('counter', True), ('gauge_livesum', False)):
        File(str(tmp_path / f'{kind}_gcpool_1.db'), lasting=lasting).close()
    assert len(looks) == 2
