"""The descriptors and threads that a process has open, compared before and after a check."""

from __future__ import annotations

import os
import socket
import stat
import threading
from dataclasses import dataclass

__all__ = ['OpenResources']

#: Directories that list the open descriptors of the process: Linux, macOS and the BSDs.
DIRECTORIES = ('/proc/self/fd', '/dev/fd')

#: Prefixes of the names of threads that do not count as leaks: those of the pool and of gcp.contrib that are shared by
#: connections, those of the event loop's default executor, which asyncio keeps, and those of the check itself.
SHARED_THREADS = ('gcp-collector', 'gcp-disposer', 'gcp-monitor', 'gcp-watch', 'gcp-check', 'asyncio_')


@dataclass(frozen=True, slots=True)
class OpenResources:
    """What the process had open at one moment.

    :ivar descriptors: the open descriptors, without the sockets that a server in this process has accepted; ``None``
        where the platform does not list them
    :ivar threads: the running threads, without `SHARED_THREADS`
    """

    descriptors: frozenset[int] | None
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> OpenResources:
        """List what is open now."""
        return cls(
            _open_descriptors(),
            frozenset(thread for thread in threading.enumerate() if not thread.name.startswith(SHARED_THREADS)),
        )

    def new_descriptors(self, later: OpenResources) -> list[str]:
        """Describe the descriptors that were opened and not closed: as many as the total has grown by.

        :param later: what was open afterwards
        """
        if self.descriptors is None or later.descriptors is None:
            return []
        growth = max(0, len(later.descriptors) - len(self.descriptors))
        return [_describe(fd) for fd in sorted(later.descriptors - self.descriptors)[:growth]]

    def new_threads(self, later: OpenResources) -> list[str]:
        """Return the names of the threads that were started and still run.

        :param later: what was open afterwards
        """
        return sorted(thread.name for thread in later.threads - self.threads if thread.is_alive())


def _open_descriptors() -> frozenset[int] | None:
    for directory in DIRECTORIES:
        if os.path.isdir(directory):
            modes = {fd: mode for fd in map(int, os.listdir(directory)) if (mode := _mode(fd))}
            sockets = {fd: _local_address(fd) for fd, mode in modes.items() if stat.S_ISSOCK(mode)}
            listening = {address for address, listens in sockets.values() if listens and address}
            return frozenset(fd for fd in modes if fd not in sockets or not _is_accepted(*sockets[fd], listening))
    return None


def _mode(fd: int) -> int:
    """Return the file mode of a descriptor; 0 if it is closed, as is the one that has listed the directory."""
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return 0


def _local_address(fd: int) -> tuple[object, bool]:
    """Return the local port or path of a socket, and whether it listens."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            name = sock.getsockname()
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:  # the address family has no such address or option
        return None, False
    return (name[1] if isinstance(name, tuple) else name), bool(listens)


def _is_accepted(address: object, listens: bool, listening: set[object]) -> bool:
    """Tell whether a server in this process has accepted a socket: it then has the local address of a listener."""
    return not listens and address in listening


def _describe(fd: int) -> str:
    try:
        return f'{fd} ({os.readlink(f"/proc/self/fd/{fd}")})'
    except OSError:
        return str(fd)
