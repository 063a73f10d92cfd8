"""SIGINT and SIGTERM as a flag, so that nothing is interrupted half-way."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ['Stop']


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
