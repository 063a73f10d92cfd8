"""How a figure is written: three digits, and a unit of a fitting size."""

from __future__ import annotations

import math

from .measure import Load

NONE = 'n/a'


def digits(value: float) -> str:
    """Write three digits of a figure, and no exponent."""
    return f'{value:.3g}' if value < 100 else f'{float(f"{value:.3g}"):,.0f}'


def duration(nanoseconds: float) -> str:
    if nanoseconds < 1000:
        return f'{nanoseconds:.0f} ns'
    return f'{digits(nanoseconds / 1000)} µs'


def hit(nanoseconds: float | None, unit: float) -> str:
    """Write a time, and its multiple of the unit."""
    return NONE if nanoseconds is None else f'{duration(nanoseconds)}, {digits(nanoseconds / unit)} x'


def load(seen: Load) -> str:
    """Write the part served, the fairness, and the longest wait."""
    part = f'{100 * seen.part:.0f}' if seen.part >= 0.095 else f'{100 * seen.part:.2g}'
    told = f'{part} %, {seen.fairness:.2f}'
    if seen.wait is None:
        return told
    return f'{told}, {"never" if math.isinf(seen.wait) else f"{seen.wait:.1f} x"}'
