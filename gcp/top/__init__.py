"""`gcp top`: the health of all pools on a page of metrics, live in a terminal or once for a pipe.

The pools are known by their exported metrics only, so they can be in any process, on any host."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gcp.top.watch import Watch

__all__ = ['main']

FAILED, UNUSABLE = 1, 2


def main(targets: Sequence[str], once: bool, interval: float) -> int:
    """Show the pools.

    :param targets: pages of metrics: URLs, files, or ``-`` for standard input
    :param once: show one frame and exit, as with standard input; otherwise continue until Ctrl-C
    :param interval: the interval between frames, seconds
    :return: the exit status: 0; 1: with `once`, a page could not be read or has no pool; 2: a package is missing;
        128 + signal number: stopped by SIGTERM
    """
    if importlib.util.find_spec('rich') is None:
        print('gcp top needs rich: pip install "gcpool[top]"', file=sys.stderr)
        return UNUSABLE
    from gcp.top.watch import Watch

    watches = [Watch(target) for target in targets]
    try:
        return show_once(watches) if once or '-' in targets else show_live(watches, interval)
    except KeyboardInterrupt:
        return 0  # Ctrl-C is the normal end
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        return FAILED


def show_once(watches: Sequence[Watch]) -> int:
    """Show one frame, and report unreadable pages on stderr."""
    from gcp.top.view import console, frame

    for watch in watches:
        watch.refresh()
        if watch.error:
            print(f'gcp top: {watch.error}', file=sys.stderr)
    seen = [watch for watch in watches if not watch.error]
    if seen:
        screen = console()
        screen.print(frame(seen, screen))
    return FAILED if any(watch.error for watch in watches) else 0


def show_live(watches: Sequence[Watch], interval: float) -> int:
    """Show a frame at each interval, until SIGINT or SIGTERM."""
    from gcp.top.view import open_view

    def refresh() -> None:
        for watch in watches:
            watch.refresh()

    with Interrupts() as interrupts, open_view() as show:
        while interrupts.signal is None:
            began = time.monotonic()
            interrupts.run(refresh)
            if interrupts.signal is not None:
                break
            show(watches)
            interrupts.sleep(max(0.0, interval - (time.monotonic() - began)))
    return 0 if interrupts.signal in (None, signal.SIGINT) else 128 + interrupts.signal


class Interrupts:
    """Lets SIGINT and SIGTERM interrupt waiting and reading, but not drawing.

    A handler does not raise: what it raises while Python runs a finalizer is lost, and a traceback is written to the
    terminal. So it only says that there was a signal, to a queue on which the main thread waits.

    :ivar signal: the number of the first signal received, or None
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()  # the only one that a handler may put into
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, work: Callable[[], object]) -> None:
        """Call a function in a thread, and wait until it returns, or there is a signal: nothing waits for it then."""

        def call() -> None:
            error = None
            try:
                work()
            except BaseException as raised:
                error = raised
            self._ended.put(error)

        if self.signal is None:
            threading.Thread(target=call, daemon=True).start()
            error = self._ended.get()
            if error is not None:
                raise error

    def sleep(self, seconds: float) -> None:
        """Wait until the time is over, or there is a signal."""
        if self.signal is None:
            with contextlib.suppress(Empty):
                self._ended.get(timeout=seconds)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        self._ended.put(None)
