"""Contenders that take turns: each runs for a slice, round after round, and their medians are compared.

On a shared machine, ratios within one run are reliable where times are not."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping

Contender = Callable[[int], float]
"""Does something so many times; returns how many seconds that took."""

AsyncContender = Callable[[int], Awaitable[float]]

clock = time.thread_time
"""Processor time: what this thread was busy for, whatever else the machine was busy with."""

SLICE = 0.005
"""For how long a contender runs before it is the next one's turn, seconds: fits between interruptions."""


def take_turns(contenders: Mapping[str, Contender], rounds: int) -> dict[str, float]:
    """Return the median time of each contender, nanoseconds a time."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    numbers = {name: calibrate(run) for name, run in contenders.items()}
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(run(numbers[name]) / numbers[name] * 1e9)
    return {name: statistics.median(seen) for name, seen in times.items()}


def calibrate(run: Contender) -> int:
    """Return how many times a contender can run in a slice."""
    number = 16
    run(number)
    while (took := run(number)) < SLICE / 4:
        number *= 2
    return max(1, round(number * SLICE / took))


def in_loop(loop: asyncio.AbstractEventLoop, run: AsyncContender) -> Contender:
    """Make a contender of one that is a coroutine function."""

    async def body(number: int) -> float:
        return await run(number)

    return lambda number: loop.run_until_complete(body(number))
