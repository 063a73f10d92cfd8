"""SIGINT and SIGTERM as a flag, or held back for a moment, so that nothing is interrupted half-way."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ['Stop', 'hold_back']


class Stop:
    """Set by SIGINT or SIGTERM. The main thread waits for nothing else for long.

    :ivar signal: the number of the first signal received
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Tell whether a signal was received."""
        return self._asked.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait for a signal.

        :param timeout: how long to wait, seconds
        :return: whether a signal was received
        """
        return self._asked.wait(max(0.0, timeout))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        self._asked.set()


@contextlib.contextmanager
def hold_back() -> Iterator[None]:
    """Have the handlers of SIGINT and SIGTERM called at the end of the block: what the block starts is known then.

    Only the main thread's block can be interrupted by a handler; elsewhere this does nothing."""
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for held in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(held)):
                before[held] = signal.signal(held, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
