"""The files of Prometheus' multiprocess mode: memory-mapped, one of each type for each process, in the client's format.

The space of a file is reserved before it is written. Otherwise a full disk would end the process with SIGBUS at the
first write to a page without a block."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

from prometheus_client import mmap_dict

__all__ = ['File', 'mark_process_dead', 'process_start', 'prune', 'remove']

#: the size of a new file; it is doubled when it is full
FIRST_SIZE: Final = 1 << 16
#: what an entry takes beside its key, at most: its length, padding, value and timestamp
ENTRY_SIZE: Final = 40
#: a file is rewritten when it has this many stale series more than current ones
STALE_SERIES: Final = 2000

#: the files of gauges: the start time of their process, where it is known, and its id
GAUGE_FILES: Final = re.compile(r'gauge_live(?:sum|max)_gcpool_(?:(\d+)_)?(\d+)\.db')
#: how file systems tell that they cannot reserve space
CANNOT_RESERVE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


# --- processes ---


def mark_process_dead(pid: int, path: str | None = None) -> None:
    """Remove the gauges of a dead process; its counters stay.

    Other processes of the service do the same within seconds. Call it in gunicorn's `child_exit`, along with the
    function of this name in `prometheus_client`.

    :param pid: the process id
    :param path: the directory; by default the one that the environment names
    """
    path = path or os.environ.get('PROMETHEUS_MULTIPROC_DIR')
    for name in files_in(path) if path else ():
        found = GAUGE_FILES.fullmatch(name)
        if found and int(found[2]) == pid:
            remove(os.path.join(str(path), name))


def prune(path: str) -> None:
    """Remove the gauges of all dead processes."""
    for name in files_in(path):
        found = GAUGE_FILES.fullmatch(name)
        if found and not is_running(int(found[2]), found[1]):
            remove(os.path.join(path, name))


def files_in(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.remove(path)
    except FileNotFoundError:
        pass


def process_state(pid: int) -> tuple[str, str] | None:
    """Return a process's state and its start time in clock ticks since the boot; None where /proc does not show it."""
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            fields = file.read().rpartition(b')')[2].split()  # its name may contain spaces and parentheses
    except OSError:
        return None
    return (fields[0].decode(), fields[19].decode()) if len(fields) > 19 else None


def process_start(pid: int) -> str | None:
    """Return when a process started: with its id, this identifies it, since ids are used again."""
    state = process_state(pid)
    return None if state is None else state[1]


def is_running(pid: int, start: str | None) -> bool:
    """Tell whether a process runs.

    :param start: its start time; None if it is not known
    """
    if os.name != 'posix':
        return True  # on Windows, os.kill(pid, 0) ends the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    state = process_state(pid)
    return state is None or (state[0] not in ('Z', 'X') and start in (None, state[1]))


# --- files ---


def reserve(file: int, size: int) -> None:
    """Allocate a file's space up to a size.

    :param file: a descriptor in append mode
    :raises OSError: the disk or a quota is full
    """
    if hasattr(os, 'posix_fallocate'):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in CANNOT_RESERVE:
                raise
    while (missing := size - os.fstat(file).st_size) > 0:
        os.write(file, bytes(min(missing, FIRST_SIZE)))


class MappedFile(mmap_dict.MmapedDict):
    """A memory-mapped file as a dictionary of the client, with reserved space.

    :param path: its path; a missing file is created
    """

    def __init__(self, path: str) -> None:
        with open(path, 'ab') as file:
            reserve(file.fileno(), max(FIRST_SIZE, os.fstat(file.fileno()).st_size))
        super().__init__(path)  # type: ignore[no-untyped-call]

    @property
    def identity(self) -> tuple[int, int]:
        """The device and the inode."""
        found = os.fstat(self._f.fileno())
        return found.st_dev, found.st_ino

    @property
    def capacity(self) -> int:
        """The size of what is mapped. A write to a page beyond the file's end would end the process."""
        return int(self._capacity)

    def contents(self) -> dict[str, float]:
        """Return all values."""
        return {key: value for key, value, *_ in self.read_all_values()}  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        """Add a key. The client enlarges the file where it has to, but leaves a hole."""
        wanted = self._used + len(key.encode()) + ENTRY_SIZE
        capacity = self._capacity
        while wanted > capacity:
            capacity *= 2
        if capacity > self._capacity:
            reserve(self._f.fileno(), capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def created(path: str, values: dict[str, float]) -> MappedFile:
    """Create a file with these values. It gets its name when it is complete: the client's collector fails at an empty
    file, and readers of a replaced file find either the old one or the new one."""
    new = f'{path}.new'
    remove(new)
    try:
        file = MappedFile(new)
        for key, value in values.items():
            file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        os.replace(new, path)
    except BaseException:
        remove(new)
        raise
    return file


class File:
    """One file of this process. If it vanishes, the next write creates it again, with all its values.

    :param path: its path
    :param lasting: whether to keep, and add to, the values that a dead process with the same id left there
    """

    def __init__(self, path: str, *, lasting: bool) -> None:
        self._path = path
        if not lasting:
            remove(path)
        self._values = MappedFile(path) if os.path.exists(path) else created(path, {})
        self._identity = self._values.identity
        self._written: dict[str, float] = {}
        self._base = self._values.contents()

    def write(self, values: dict[str, float]) -> bool:
        """Write the values that have changed. Series that are gone become 0: gauges of closed pools, and names of pools
        whose totals the aggregation has merged under another name.

        :return: whether anything has changed
        :raises OSError: the disk is full, or the directory is gone
        """
        if not self._is_intact():
            self._rewrite(values)
            return True
        now = {**dict.fromkeys(self._written, 0.0), **values}
        changed = [(key, value) for key, value in now.items() if self._written.get(key) != value]
        for key, value in changed:
            self.put(key, value + self._base.get(key, 0.0))
        self._written.update(changed)
        if len(self._written) > 2 * len(values) + STALE_SERIES:
            self._rewrite(values)
        return bool(changed)

    def put(self, key: str, value: float) -> None:
        """Write one value."""
        self._values.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]

    def _is_intact(self) -> bool:
        """Tell whether the path still leads to this file, and the file has not been cut."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity and found.st_size >= self._values.capacity

    def _rewrite(self, values: dict[str, float]) -> None:
        """Replace the file by one without stale series."""
        written = dict.fromkeys(self._base, 0.0) | values
        new = created(self._path, {key: value + self._base.get(key, 0.0) for key, value in written.items()})
        self._values.close()  # type: ignore[no-untyped-call]
        self._values, self._identity, self._written = new, new.identity, written

    def close(self) -> None:
        """Unmap it."""
        self._values.close()  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Unmap it, and remove it."""
        self.close()
        remove(self._path)
