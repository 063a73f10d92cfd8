"""`top` for pools: how they are, from any page of metrics, live in a terminal or once for a pipe. Conducts: asks,
waits, shows. Knows the pools from what they export only: they can be in any process, on any host."""

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
    from gcp.top.sight import Watch

__all__ = ['main']

FAILED, UNUSABLE = 1, 2


def main(targets: Sequence[str], once: bool, interval: float) -> int:
    """Show the pools.

    :param targets: where the pages are: URLs, files, or ``-`` for standard input
    :param once: show one frame and end, as is done with standard input anyway; else go on until Ctrl-C
    :param interval: how often to look, seconds
    :return: the exit status: 0; 1: `once`, and a page could not be read or none has a pool; 2: a package is missing;
        128 + signal number: stopped by SIGTERM
    """
    if importlib.util.find_spec('rich') is None:
        print('gcp top needs rich: pip install "gcpool[demo]"', file=sys.stderr)
        return UNUSABLE
    from gcp.top.sight import Watch

    watches = [Watch(target) for target in targets]
    try:
        return show_once(watches) if once or '-' in targets else show_live(watches, interval)
    except KeyboardInterrupt:
        return 0    # how one leaves it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end
        return FAILED


def show_once(watches: Sequence[Watch]) -> int:
    """Show one frame; what could not be read is told on stderr."""
    from gcp.top.view import console, frame

    for watch in watches:
        watch.look()
        if watch.trouble:
            print(f'gcp top: {watch.trouble}', file=sys.stderr)
    seen = [watch for watch in watches if not watch.trouble]
    if seen:
        screen = console()
        screen.print(frame(seen, screen))
    return FAILED if any(watch.trouble for watch in watches) else 0


def show_live(watches: Sequence[Watch], interval: float) -> int:
    """Show one frame after another, until a signal asks to end."""
    from gcp.top.view import open_view

    def look() -> None:
        for watch in watches:
            watch.look()

    with Leave() as leave, open_view() as show, contextlib.suppress(KeyboardInterrupt):
        while leave.signal is None:
            began = time.monotonic()
            leave.can_end(look)
            show(watches)
            rest = max(0.0, interval - (time.monotonic() - began))
            leave.can_end(partial(time.sleep, rest))
    return 0 if leave.signal in (None, signal.SIGINT) else 128 + leave.signal


class Leave:
    """Ctrl-C and SIGTERM: end what waits, and nothing else half-way, least of all what is being drawn. A flag tells as
    well, for an exception that comes while Python finalizes something is lost.

    :ivar signal: the number of the signal that came
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Leave:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def can_end(self, work: Callable[[], object]) -> None:
        """Do something that a signal ends."""
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
