"""`gcp top`: the health of all pools on a page of metrics, live in a terminal or once for a pipe.

The pools are known by their exported metrics only, so they can be in any process, on any host."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
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

    with Interrupts() as interrupts, open_view() as show, contextlib.suppress(KeyboardInterrupt):
        while interrupts.signal is None:
            began = time.monotonic()
            interrupts.interruptible(refresh)
            show(watches)
            rest = max(0.0, interval - (time.monotonic() - began))
            interrupts.interruptible(partial(time.sleep, rest))
    return 0 if interrupts.signal in (None, signal.SIGINT) else 128 + interrupts.signal


class Interrupts:
    """Lets SIGINT and SIGTERM interrupt waiting and reading, but not drawing.

    The signal is also kept as an attribute, because an exception raised while Python runs a finalizer is lost.

    :ivar signal: the number of the first signal received, or None
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interruptible(self, work: Callable[[], object]) -> None:
        """Call a function that a signal may interrupt."""
        try:
            self._waits = True
            if self.signal is None:
                work()
        except KeyboardInterrupt:
            pass
        finally:
            self._waits = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if self._waits:
            raise KeyboardInterrupt
