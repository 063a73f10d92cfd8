"""Prometheus metrics of several processes on one page (gunicorn, uWSGI): the multiprocess mode of `prometheus_client`.

If `PROMETHEUS_MULTIPROC_DIR` names a directory, each process writes its pools' figures to files of its own there, with
the client's code and in the client's format. The client's `MultiProcessCollector` adds up the files of all processes.
The counts of a killed process stay. There are no endpoint labels in this mode.

A thread writes the files twice a second while figures change. It ends when nothing has changed; the next call of a
pool, a new pool or a fork starts another. Only the first pool of a process is written by its constructor.

A process that forks others before it uses its pools, as gunicorn does with `--preload`, writes 0 for their limits: it
will open no connections. A forked child writes them at once, whether it uses its pools or not."""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from time import monotonic, perf_counter
from typing import Any, Final

from prometheus_client import mmap_dict

from gcp.observe.aggregation import Aggregation, Reading
from gcp.observe.names import BY_NAME, METRICS, Metric
from gcp.observe.process_files import File, mark_process_dead, process_start, prune
from gcp.observe.prometheus import HISTOGRAMS, SeriesLabels, histogram_of, samples_of
from gcp.observe.telemetry import Telemetry

__all__ = ['File', 'Writer', 'attach', 'mark_process_dead']

#: interval of the writing thread, seconds
PERIOD: Final = 0.5
#: for how long the thread of a new pool, or of a forked child, waits before it writes, seconds: for further pools, and
#: for a child that soon executes another program
START_DELAY: Final = 0.05
#: how long to wait at exit for a thread that is starting, seconds
START_TIMEOUT: Final = 1.0
#: interval between searches for files of dead processes, seconds
PRUNE_INTERVAL: Final = 5.0

#: the gauges that a process which only forks others writes as 0
LIMITS: Final = ('gcpool_max_connections', 'gcpool_max_connections_per_endpoint', 'gcpool_min_idle_connections')


def directory() -> str | None:
    """Return the directory of the files, or None if this mode is off."""
    return os.environ.get('PROMETHEUS_MULTIPROC_DIR') or None


def attach(telemetry: Telemetry) -> None:
    """Export a pool to the files, if this mode is on."""
    path = directory()
    if path is not None:
        writers.of(path).add(telemetry)


# --- the contents of the files ---


def file_of(metric: Metric) -> str:
    """Return the type of the file for a metric. The client derives from it how to merge values."""
    return metric.kind if metric.kind in ('counter', 'histogram') else f'gauge_live{metric.merge}'


def entries_of(
    metric: Metric,
    reading: Reading,
    series_labels: SeriesLabels,
    only_forks: bool,
) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield one pool's samples of a metric. In the files, buckets are not cumulative, and there is no ``_count``.

    :param only_forks: whether this process has forked others: the limits of a pool that it has not used are 0
    """
    if metric.kind == 'histogram':
        for labels, buckets in series_labels.histograms[metric.name]:
            counts, total = histogram_of(reading, HISTOGRAMS[metric.name], labels)
            for bucket, value in zip(buckets, counts, strict=True):
                yield f'{metric.name}_bucket', bucket, value
            yield f'{metric.name}_sum', labels, total
    else:
        is_shown = not only_forks or metric.name not in LIMITS or is_used(reading)
        for sample in samples_of(metric, reading, series_labels):
            yield sample.name, sample.labels, sample.value if is_shown else 0


def is_used(reading: Reading) -> bool:
    """Tell whether any of a pool's acquires has ended, or has created a connection."""
    return bool(reading.total['created'] or any(reading.total['acquires'].values()))


def key_of(metric: Metric, name: str, labels: dict[str, str]) -> str:
    """Return the key of a series in a file."""
    family = metric.name if metric.kind == 'info' else metric.family  # in the files it is a gauge
    return str(mmap_dict.mmap_key(family, name, list(labels), list(labels.values()), metric.help))


class PoolValues:
    """One pool's values by file and key. They are made again only when its figures have changed.

    :param pool: its name
    """

    def __init__(self, pool: str) -> None:
        self._series_labels = SeriesLabels(pool)
        self._keys: dict[tuple[str, ...], str] = {}
        self._shown: tuple[Reading, bool] | None = None
        self._values: dict[str, dict[str, float]] = {}

    def update(self, reading: Reading, only_forks: bool) -> dict[str, dict[str, float]]:
        """Return the values of a reading."""
        if self._shown != (reading, only_forks):
            self._series_labels = self._series_labels.of(reading.rows)
            known, self._keys, self._values = self._keys, {}, {}
            for metric in METRICS:
                values = self._values.setdefault(file_of(metric), {})
                for name, labels, value in entries_of(metric, reading, self._series_labels, only_forks):
                    series = name, *labels.values()
                    key = self._keys[series] = known.get(series) or key_of(metric, name, labels)
                    values[key] = value
            self._shown = reading, only_forks
        return self._values


# --- the writer ---


class Writer:
    """Writes this process's files in one directory.

    :param path: the directory
    """

    def __init__(self, path: str) -> None:
        self.aggregation: Final = Aggregation(labelled=False)
        self._path = path
        self._alarm = self._wake  # one object: a bound method is a new one at each access
        self._armed: list[weakref.ref[Any]] = []
        self._files: dict[str, File] = {}
        self._start()
        atexit.register(self.finish)
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_parent=self._after_fork, after_in_child=self._start_anew)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._begun = False  # whether a pool was added
        self._forks = False  # whether this process has forked others
        self._lock = threading.RLock()
        self._busy = False
        self._running = threading.Lock()  # held by the thread
        self._called = False  # whether a pool was called
        self._starting = False  # whether a thread is starting
        self._is_over = False  # whether no further thread may start
        self._pools: dict[str, PoolValues] = {}
        self._pruned = -PRUNE_INTERVAL

    def add(self, telemetry: Telemetry) -> None:
        """Add a pool. The first one is written at once, so that the process is seen from its start. The thread writes
        the others: to write each at once would take longer with each."""
        self.aggregation.add(telemetry)
        if self._begun:
            self._start_thread(START_DELAY)
        else:
            self._begun = True
            self.flush()
            self._arm()

    def flush(self) -> bool:
        """Write the values that have changed.

        :return: whether any has, or may change without a call of a pool
        """
        with self._lock:
            if self._busy:  # called by a finalizer
                return False
            self._busy = True
            try:
                if self._pid != os.getpid():
                    self._reset_after_fork()
                if monotonic() - self._pruned > PRUNE_INTERVAL:
                    self._pruned = monotonic()
                    prune(self._path)
                return self._write()
            except Exception as error:
                self.aggregation.record_error('multiprocess', error)
                return False
            finally:
                self._busy = False

    def _write(self) -> bool:
        began = perf_counter()
        readings = self.aggregation.read()
        changed = False
        for name, values in self._values(readings).items():
            changed = self._file(name).write(values) or changed
        if changed:
            took = BY_NAME['gcpool_collect_seconds']
            self._file(file_of(took)).put(key_of(took, took.name, {}), perf_counter() - began)
        return changed or any(
            reading.total[state] for reading in readings for state in ('used', 'creating', 'disposing', 'waiting')
        )

    def _values(self, readings: list[Reading]) -> dict[str, dict[str, float]]:
        """Return all values by file and key."""
        before, self._pools = self._pools, {}
        found: dict[str, dict[str, float]] = {}
        for reading in readings:
            pool = self._pools[reading.pool] = before.get(reading.pool) or PoolValues(reading.pool)
            for name, values in pool.update(reading, self._forks).items():
                found.setdefault(name, {}).update(values)
        return found

    def _file(self, name: str) -> File:
        file = self._files.get(name)
        if file is None:
            is_gauge = name.startswith('gauge')
            start = process_start(self._pid) if is_gauge else None
            process = f'{self._pid}' if start is None else f'{start}_{self._pid}'
            path = os.path.join(self._path, f'{name}_gcpool_{process}.db')
            file = self._files[name] = File(path, lasting=not is_gauge)
        return file

    # --- the thread ---

    def _arm(self) -> None:
        """Set the callbacks by which the next call of a pool starts the thread."""
        for telemetry in self.aggregation.telemetries():
            pool = telemetry.pool()
            if pool is not None and pool._core.on_transition is None:
                pool._core.on_transition = self._alarm
                self._armed.append(telemetry.pool)  # last: `_wake` clears the callbacks of listed pools only

    def _wake(self, verb: str) -> None:
        """Start the thread, if there is none. A pool's core calls this, at any point of the caller's code."""
        self._called = True
        while self._armed:
            try:
                pool = self._armed.pop()()
            except IndexError:  # another thread has taken the last one
                break
            if pool is not None and pool._core.on_transition is self._alarm:
                pool._core.on_transition = None
        self._start_thread(PERIOD)

    def _start_thread(self, delay: float) -> None:
        """Start the thread, unless it runs.

        :param delay: how long it waits before it writes, seconds
        """
        running = self._running
        if not self._is_over and running.acquire(blocking=False):
            self._starting = True
            if self._is_over:  # looked at again: from here on, `finish` waits
                self._starting = False
                running.release()
                return
            try:
                _thread.start_new_thread(self._run, (delay, running))
            except RuntimeError:
                self._starting = False
                running.release()  # the interpreter is exiting: `finish` writes the last values

    def _run(self, delay: float, running: threading.Lock) -> None:
        """Write until nothing changes any more.

        :param running: the lock that was acquired for this thread; a fork replaces that of the writer
        """
        self._starting = False
        while True:
            time.sleep(delay)  # looked up here: gevent may have replaced it meanwhile
            delay = PERIOD
            if self.flush():
                continue
            self._arm()
            running.release()
            # a call between the last flush and `_arm` has started no thread
            if not self.flush() or not running.acquire(blocking=False):
                return

    # --- exit and fork ---

    def finish(self) -> None:
        """Write the last counts, and remove the gauges. Does nothing if no pool was used.

        Waits for a thread that is starting: CPython 3.10 was seen to crash when a thread starts during finalization."""
        self._is_over = True
        deadline = monotonic() + START_TIMEOUT
        while self._starting and monotonic() < deadline:
            time.sleep(0.001)
        if self._pid == os.getpid():
            if self._files or self._called:
                self.flush()
            with self._lock:
                for name in [name for name in self._files if name.startswith('gauge')]:
                    self._files.pop(name).remove()
                self._busy = True  # no further writes

    def _after_fork(self) -> None:
        """Write the limits of unused pools as 0, now that this process forks others."""
        if self._forks or self._pid != os.getpid():
            return
        self._forks = True
        if self._files:
            self.flush()

    def _start_anew(self) -> None:
        """Continue in a forked child, and have its limits written even if it uses no pool."""
        self._reset_after_fork()
        if self.aggregation.telemetries():
            self._start_thread(START_DELAY)

    def _reset_after_fork(self) -> None:
        """Continue in a forked child with other files, and without the thread."""
        for file in self._files.values():
            file.close()
        self._files = {}
        self._start()
        self._arm()
        util = sys.modules.get('multiprocessing.util')
        if util is not None:  # children of multiprocessing exit without calling `atexit`
            util.register_after_fork(self, Writer._finish_last)

    def _finish_last(self) -> None:
        sys.modules['multiprocessing.util'].Finalize(None, self.finish, exitpriority=0)


class Writers:
    """The writers of this process, by directory: in practice one."""

    def __init__(self) -> None:
        self._made: dict[str, Writer] = {}
        self.reset_after_fork()
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_child=self.reset_after_fork)

    def of(self, path: str) -> Writer:
        with self._lock:
            if path not in self._made:
                self._made[path] = Writer(path)
            return self._made[path]

    def reset_after_fork(self) -> None:
        """Replace the lock in a forked child: another thread may have held it at the fork."""
        self._lock = threading.RLock()


writers: Final = Writers()
