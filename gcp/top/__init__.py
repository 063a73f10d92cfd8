"""`top` for pools: how they are, from any page of metrics, live in a terminal or once for a pipe. Conducts: asks,
waits, shows. Knows the pools from what they export only: they can be in any process, on any host."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

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
    """Show one frame after another."""
    from gcp.top.view import open_view

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with open_view() as show:
            while True:
                began = time.monotonic()
                for watch in watches:
                    watch.look()
                show(watches)
                time.sleep(max(0.0, interval - (time.monotonic() - began)))
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave the terminal as it was before the process ends."""
    raise SystemExit(128 + number)
