"""What a check of a manager has found. Knows nothing of how it was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['Breach', 'Check', 'ManagerCheckError', 'ManagerReport', 'Skipped']


@dataclass(frozen=True, slots=True)
class Check:
    """A promise that was kept.

    :ivar name: its name
    :ivar promise: what it says
    :ivar seconds: how long it took to see
    """

    name: str
    promise: str
    seconds: float

    def __str__(self) -> str:
        return f'  kept     {self.name:<12} {self.seconds:7.3f} s  {self.promise}'


@dataclass(frozen=True, slots=True)
class Skipped:
    """A promise that was not looked at.

    :ivar name: its name
    :ivar reason: why
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f'  skipped  {self.name:<12}            {self.reason}'


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that was broken.

    :ivar name: its name
    :ivar promise: what it says
    :ivar observed: what was seen
    :ivar mend: what to do about it
    """

    name: str
    promise: str
    observed: str
    mend: str

    def __str__(self) -> str:
        return f'  {self.name}: {self.promise}\n    observed: {self.observed}\n    mend: {self.mend}'


@dataclass(frozen=True, slots=True)
class ManagerReport:
    """What was looked at. Its `str` is a table.

    :ivar manager: the manager's class
    :ivar endpoint: the endpoint, as messages show it: nothing that may carry credentials
    :ivar checks: the promises that were kept, in the order in which they were looked at
    :ivar skipped: those that were not looked at
    :ivar seconds: how long it took in all
    """

    manager: str
    endpoint: str
    checks: tuple[Check, ...]
    skipped: tuple[Skipped, ...]
    seconds: float

    def __str__(self) -> str:
        title = f'{self.manager}, {self.endpoint}: {len(self.checks)} promises kept, {len(self.skipped)} not looked at'
        return '\n'.join([f'{title} ({self.seconds:.1f} s)', *map(str, self.checks), *map(str, self.skipped)])


class ManagerCheckError(AssertionError):
    """A manager breaks promises. The message says which, what was seen, and how to mend it.

    :ivar breaches: the broken promises, all of them
    :ivar report: the others
    """

    def __init__(self, breaches: Sequence[Breach], report: ManagerReport) -> None:
        self.breaches = tuple(breaches)
        self.report = report
        super().__init__(self.breaches, report)

    def __str__(self) -> str:
        count = f'{len(self.breaches)} promise{"s" if len(self.breaches) > 1 else ""}'
        return '\n'.join([f'{self.report.manager} breaks {count}:', *map(str, self.breaches)])
