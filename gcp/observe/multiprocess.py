"""Several processes behind one page (gunicorn, uWSGI): what Prometheus' client calls its multiprocess mode.

Where `PROMETHEUS_MULTIPROC_DIR` names a directory, each process keeps its pools' figures there in files of its own, in
the client's format, written by the client's own code; the client's `MultiProcessCollector` adds up the files of all
processes. What a killed process has counted stays. Endpoints are not told apart.

The files are written by a thread that looks twice a second, and only while there is something to see: when nothing has
changed it ends, and the next call of a pool starts another. A forked child has its files as soon as it calls a pool."""

from __future__ import annotations

import _thread
import atexit
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from time import monotonic, perf_counter, sleep
from typing import Any, Final

from prometheus_client import mmap_dict

from gcp.observe.accounts import Books, Reading
from gcp.observe.names import BY_NAME, METRICS, Metric
from gcp.observe.prometheus import HISTOGRAMS, Marks, histogram_of, samples_of
from gcp.observe.telemetry import Telemetry

__all__ = ['Writer', 'join', 'mark_process_dead']

#: how often to look while there is something to see, seconds
PERIOD: Final = 0.5
#: how many series of the past may stay in a file, beside as many as there are now
ROOM: Final = 2000
#: how long a thread may take to be born, seconds
BIRTH: Final = 1.0
#: how often to look for files of processes that are gone, seconds
ROUNDS: Final = 5.0

#: a file as a dictionary; the client's own
MappedFile: Final[Any] = mmap_dict.MmapedDict
GAUGE_FILES: Final = re.compile(r'gauge_live(?:sum|max)_gcpool_(\d+)\.db')
LIMITS: Final = ('gcpool_max_connections', 'gcpool_max_connections_per_endpoint', 'gcpool_min_idle_connections')



def directory() -> str | None:
    """Return where the processes' files are, or None for a process that is seen by itself."""
    return os.environ.get('PROMETHEUS_MULTIPROC_DIR') or None


def join(telemetry: Telemetry) -> None:
    """Let a pool be seen beside those of other processes, if that is wanted."""
    path = directory()
    if path is not None:
        writers.of(path).add(telemetry)


def mark_process_dead(pid: int, path: str | None = None) -> None:
    """Remove what a process that has ended shows of its present; what it counted stays. The same is done by other
    processes sooner or later. For gunicorn's `child_exit`, beside the function of this name in `prometheus_client`.

    :param pid: its process id
    :param path: the directory; by default that of the environment
    """
    path = path or directory()
    for name in files_in(path) if path else ():
        found = GAUGE_FILES.fullmatch(name)
        if found and int(found[1]) == pid:
            remove(os.path.join(str(path), name))


def prune(path: str) -> None:
    """Remove what processes show of their present that have none."""
    for name in files_in(path):
        found = GAUGE_FILES.fullmatch(name)
        if found and not is_running(int(found[1])):
            remove(os.path.join(path, name))


def files_in(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        pass


def is_running(pid: int) -> bool:
    if os.name != 'posix':
        return True         # a signal 0 would be none there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# --- what is in the files ---

def file_of(metric: Metric) -> str:
    """Return what kind of file a metric is in: its name tells the client how to add it up."""
    return metric.kind if metric.kind in ('counter', 'histogram') else f'gauge_live{metric.merge}'


def entries_of(metric: Metric, reading: Reading, marks: Marks) -> Iterator[tuple[str, dict[str, str], float]]:
    """Tell one pool's part in a metric. Buckets are not cumulative there, and their count is not said.

    A process that has a pool and never used it, such as one that only forks others, has none of its limits."""
    if metric.kind == 'histogram':
        for labels, buckets in marks.histograms[metric.name]:
            counts, total = histogram_of(reading, HISTOGRAMS[metric.name], labels.get('hook'))
            for bucket, value in zip(buckets, counts, strict=True):
                yield f'{metric.name}_bucket', bucket, value
            yield f'{metric.name}_sum', labels, total
    else:
        is_used = metric.name not in LIMITS or reading.total['created'] or any(reading.total['acquires'].values())
        for sample in samples_of(metric, reading, marks):
            yield sample.name, sample.labels, sample.value if is_used else 0


def key_of(metric: Metric, name: str, labels: dict[str, str]) -> str:
    """Write a series as the client does."""
    family = metric.name if metric.kind == 'info' else metric.family    # there it is a gauge
    return str(mmap_dict.mmap_key(family, name, list(labels), list(labels.values()), metric.help))


def opened(path: str) -> Any:
    """Open a file. One that is not there yet is found by readers when it can be read: the client's code makes it empty,
    and its collector cannot read such a file."""
    if os.path.exists(path):
        return MappedFile(path)
    new = f'{path}.new'
    remove(new)
    file = MappedFile(new)
    os.replace(new, path)
    return file


class File:
    """One file of this process.

    :param path: where it is
    :param lasting: whether what a dead process of the same id has left there is to be kept
    """

    def __init__(self, path: str, *, lasting: bool) -> None:
        self._path = path
        self._lasting = lasting
        if not lasting:
            remove(path)
        self._values = opened(path)
        self._written: dict[str, float] = {}
        self._base = {key: value for key, value, *_ in self._values.read_all_values()} if lasting else {}

    def write(self, values: dict[str, float]) -> bool:
        """Write what has changed. What is not there any more is 0: the present of a pool that is gone, or a name that
        the books have forgotten, whose totals are under another now.

        :return: whether anything has changed
        """
        now = {**dict.fromkeys(self._written, 0.0), **values}
        changed = [(key, value) for key, value in now.items() if self._written.get(key) != value]
        for key, value in changed:
            self.put(key, value + self._base.get(key, 0.0))
        self._written.update(changed)
        if len(self._written) > 2 * len(values) + ROOM:
            self._rewrite(values)
        return bool(changed)

    def put(self, key: str, value: float) -> None:
        """Write one value."""
        self._values.write_value(key, value, 0.0)

    def _rewrite(self, values: dict[str, float]) -> None:
        """Write the file anew, without the keys of the past. Who reads it finds the old one or the new one."""
        new = f'{self._path}.new'
        remove(new)
        self._values.close()
        self._values = MappedFile(new)
        self._written = {}
        self.write(dict.fromkeys(self._base, 0.0) | values)
        os.replace(new, self._path)

    def close(self) -> None:
        self._values.close()

    def remove(self) -> None:
        self.close()
        remove(self._path)


# --- the writer ---

class Writer:
    """This process's files in one directory.

    :param path: the directory
    """

    def __init__(self, path: str) -> None:
        self.books: Final = Books(labelled=False)
        self._path = path
        self._alarm = self._wake     # one object, to be known again
        self._armed: list[weakref.ref[Any]] = []
        self._keys: dict[tuple[str, ...], str] = {}
        self._files: dict[str, File] = {}
        self._start()
        atexit.register(self.finish)
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_child=self._start_anew)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._busy = False
        self._running = threading.Lock()        # held by the thread
        self._stirred = False       # whether a pool was called
        self._starting = False      # a thread that has not come to its first line yet
        self._is_over = False       # no thread is started any more
        self._marks: dict[str, Marks] = {}
        self._pruned = -ROUNDS

    def add(self, telemetry: Telemetry) -> None:
        """Let a pool be seen."""
        self.books.add(telemetry)
        self.flush()
        self._arm()

    def flush(self) -> bool:
        """Write what has changed.

        :return: whether something has, or will by itself
        """
        with self._lock:
            if self._busy:      # a finalizer has come in between
                return False
            self._busy = True
            try:
                if self._pid != os.getpid():
                    self._start_anew()
                if monotonic() - self._pruned > ROUNDS:
                    self._pruned = monotonic()
                    prune(self._path)
                return self._write()
            except Exception as error:
                self.books.note('multiprocess', error)
                return False
            finally:
                self._busy = False

    def _write(self) -> bool:
        began = perf_counter()
        readings = self.books.read()
        changed = False
        for name, values in self._values(readings).items():
            changed = self._file(name).write(values) or changed
        if changed:
            took = BY_NAME['gcpool_collect_seconds']
            self._file(file_of(took)).put(key_of(took, took.name, {}), perf_counter() - began)
        return changed or any(
            reading.total[state] for reading in readings for state in ('used', 'creating', 'disposing', 'waiting'))

    def _values(self, readings: list[Reading]) -> dict[str, dict[str, float]]:
        """Lay out what there is, by file."""
        marks = {reading.pool: self._marks.get(reading.pool) or Marks(reading.pool) for reading in readings}
        self._marks = marks
        known, self._keys = self._keys, {}
        found: dict[str, dict[str, float]] = {}
        for reading in readings:
            marks[reading.pool].update(reading.rows)
            for metric in METRICS:
                values = found.setdefault(file_of(metric), {})
                for name, labels, value in entries_of(metric, reading, marks[reading.pool]):
                    series = name, *labels.values()
                    key = self._keys[series] = known.get(series) or key_of(metric, name, labels)
                    values[key] = value
        return found

    def _file(self, name: str) -> File:
        file = self._files.get(name)
        if file is None:
            path = os.path.join(self._path, f'{name}_gcpool_{self._pid}.db')
            file = self._files[name] = File(path, lasting=not name.startswith('gauge'))
        return file

    # --- the thread ---

    def _arm(self) -> None:
        """Have the next call of each pool start the thread."""
        for telemetry in self.books.telemetries():
            pool = telemetry.pool()
            if pool is not None and pool._core.on_transition is None:
                pool._core.on_transition = self._alarm
                self._armed.append(telemetry.pool)      # in this order: an alarm that is not listed is listed soon

    def _wake(self, verb: str) -> None:
        """Called by a pool's core, in the midst of anything: see to it that there is a thread."""
        self._stirred = True
        while self._armed:
            pool = self._armed.pop()()
            if pool is not None and pool._core.on_transition is self._alarm:
                pool._core.on_transition = None
        if not self._is_over and self._running.acquire(blocking=False):
            self._starting = True
            try:
                _thread.start_new_thread(self._run, ())
            except RuntimeError:
                self._starting = False
                self._running.release()     # no thread can be started any more: `finish` is yet to come, or was

    def _run(self) -> None:
        """Look, until there is nothing to see."""
        running = self._running
        self._starting = False
        while True:
            sleep(PERIOD)
            if self.flush():
                continue
            self._arm()
            running.release()
            # whatever came before that may have found nobody to wake
            if not self.flush() or not running.acquire(blocking=False):
                return

    # --- the ends ---

    def finish(self) -> None:
        """Write the last figures, and take away those of the present. For a process that has shown nothing: nothing.

        A thread that is being born while CPython takes itself apart may crash it (seen on 3.10)."""
        self._is_over = True
        deadline = monotonic() + BIRTH
        while self._starting and monotonic() < deadline:
            sleep(0.001)
        if self._pid == os.getpid() and (self._files or self._stirred):
            self.flush()
            with self._lock:
                for name in [name for name in self._files if name.startswith('gauge')]:
                    self._files.pop(name).remove()
                self._busy = True       # it was the last time

    def _start_anew(self) -> None:
        """In a forked child: other files, and no thread."""
        for file in self._files.values():
            file.close()
        self._files = {}
        self._start()
        self._arm()
        util = sys.modules.get('multiprocessing.util')
        if util is not None:        # its children end without a word to `atexit`
            util.register_after_fork(self, Writer._finish_last)

    def _finish_last(self) -> None:
        sys.modules['multiprocessing.util'].Finalize(None, self.finish, exitpriority=0)


class Writers:
    """This process's writers: one for each directory, which is to say one."""

    def __init__(self) -> None:
        self._made: dict[str, Writer] = {}
        self.start_anew()
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_child=self.start_anew)

    def of(self, path: str) -> Writer:
        with self._lock:
            if path not in self._made:
                self._made[path] = Writer(path)
            return self._made[path]

    def start_anew(self) -> None:
        """In a forked child nobody holds the lock."""
        self._lock = threading.RLock()


writers: Final = Writers()
