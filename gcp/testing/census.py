"""What a process has open: descriptors and threads, counted before and after. Blames nobody but the manager."""

from __future__ import annotations

import os
import socket
import stat
import threading
from dataclasses import dataclass

__all__ = ['Census']

DIRECTORIES = ('/proc/self/fd', '/dev/fd')

#: Threads that are no leak: those of the pool and of gcp.contrib that linger for a while and serve all connections,
#: those of the event loop's default executor, which stay, and those of the check itself.
OTHERS = ('gcp-collector', 'gcp-disposer', 'gcp-watch', 'gcp-check', 'asyncio_')


@dataclass(frozen=True, slots=True)
class Census:
    """What there was at one moment.

    :ivar descriptors: the open descriptors, but not the ends that a server in this very process has accepted;
        ``None`` where they cannot be counted
    :ivar threads: the threads that may be a manager's
    """

    descriptors: frozenset[int] | None
    threads: frozenset[threading.Thread]

    @classmethod
    def take(cls) -> Census:
        return cls(
            _descriptors(),
            frozenset(thread for thread in threading.enumerate() if not thread.name.startswith(OTHERS)),
        )

    def new_descriptors(self, later: Census) -> list[str]:
        """Describe the descriptors that came to stay: as many as there are more than before.

        :param later: what there was later
        """
        if self.descriptors is None or later.descriptors is None:
            return []
        more = max(0, len(later.descriptors) - len(self.descriptors))
        return [_describe(fd) for fd in sorted(later.descriptors - self.descriptors)[:more]]

    def new_threads(self, later: Census) -> list[str]:
        """Tell the names of the threads that came to stay.

        :param later: what there was later
        """
        return sorted(thread.name for thread in later.threads - self.threads if thread.is_alive())


def _descriptors() -> frozenset[int] | None:
    for directory in DIRECTORIES:
        if os.path.isdir(directory):
            modes = {fd: mode for fd in map(int, os.listdir(directory)) if (mode := _mode(fd))}
            sockets = {fd: _bound(fd) for fd, mode in modes.items() if stat.S_ISSOCK(mode)}
            listening = {place for place, listens in sockets.values() if listens and place}
            return frozenset(fd for fd in modes if fd not in sockets or not _is_accepted(*sockets[fd], listening))
    return None


def _mode(fd: int) -> int:
    """What kind of file a descriptor is of; 0: of none, it is closed, as is now the one that has read the directory."""
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return 0


def _bound(fd: int) -> tuple[object, bool]:
    """Where a socket is bound, its port or its path, and whether it listens there."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            name = sock.getsockname()
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:  # of a family that knows no such things
        return None, False
    return (name[1] if isinstance(name, tuple) else name), bool(listens)


def _is_accepted(place: object, listens: bool, listening: set[object]) -> bool:
    """What a server has accepted is bound where it listens."""
    return not listens and place in listening


def _describe(fd: int) -> str:
    try:
        return f'{fd} ({os.readlink(f"/proc/self/fd/{fd}")})'
    except OSError:
        return str(fd)
