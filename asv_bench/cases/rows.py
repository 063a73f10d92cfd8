"""The rows of the table: what was measured, the value, and whether it meets the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A row of the table.

    :ivar what: what was measured, how, and against what
    :ivar value: the measured value; None when it could not be measured
    :ivar unit: of the value and of the bound
    :ivar bound: the limit of the value; None for a row that only informs
    :ivar is_ceiling: whether the bound is an upper limit; else it is a lower one
    :ivar medians: the medians that the value was computed from, by name and unit
    :ivar missing: why it could not be measured
    """

    what: str
    value: float | None
    unit: str = ''
    bound: float | None = None
    is_ceiling: bool = True
    medians: Mapping[str, float] = field(default_factory=dict)
    missing: str = ''

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None where there is none, or where it could not be measured."""
        if self.bound is None or self.value is None:
            return None
        return self.value <= self.bound if self.is_ceiling else self.value >= self.bound

    @property
    def target(self) -> str:
        return '' if self.bound is None else f'{"<=" if self.is_ceiling else ">="} {self.bound:g}{self.unit}'

    @property
    def seen(self) -> str:
        if self.value is None:
            return self.missing
        digits = 4 if not self.unit or abs(self.value) >= 100 else 3
        return f'{self.value:.{digits}g}{self.unit}' if abs(self.value) < 1e4 else f'{self.value:,.0f}{self.unit}'

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {
            'what': self.what,
            'target': self.target,
            'bound': self.bound,
            'value': self.value,
            'unit': self.unit.strip(),
            'ok': self.ok,
            'medians': dict(self.medians),
            'missing': self.missing,
        }


def at_most(what: str, bound: float, value: float, unit: str = '', **medians: float) -> Row:
    return Row(what, value, unit, bound, True, medians)


def at_least(what: str, bound: float, value: float, unit: str = '', **medians: float) -> Row:
    return Row(what, value, unit, bound, False, medians)


def inform(what: str, value: float, unit: str = '', **medians: float) -> Row:
    return Row(what, value, unit, medians=medians)


def unmeasured(what: str, bound: float, unit: str, missing: str, is_ceiling: bool = True) -> Row:
    """Make the row of a target that cannot be measured here, because the peer is not installed, say."""
    return Row(what, None, unit, bound, is_ceiling, missing=missing)
