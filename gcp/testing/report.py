"""The result of `check_manager`: which rules a manager passed, which were skipped, which it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['BrokenRule', 'ManagerCheckError', 'ManagerReport', 'PassedRule', 'SkippedRule']


@dataclass(frozen=True, slots=True)
class PassedRule:
    """A rule that the manager follows.

    :ivar name: the rule's name
    :ivar rule: what the rule requires
    :ivar seconds: how long the check took, seconds
    """

    name: str
    rule: str
    seconds: float

    def __str__(self) -> str:
        return f'  passed   {self.name:<13} {self.seconds:7.3f} s  {self.rule}'


@dataclass(frozen=True, slots=True)
class SkippedRule:
    """A rule that could not be checked.

    :ivar name: the rule's name
    :ivar reason: why it was skipped
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f'  skipped  {self.name:<13}            {self.reason}'


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that the manager breaks.

    :ivar name: the rule's name
    :ivar rule: what the rule requires
    :ivar observed: what happened instead
    :ivar fix: what to change in the manager
    """

    name: str
    rule: str
    observed: str
    fix: str

    def __str__(self) -> str:
        return f'  {self.name}: {self.rule}\n    observed: {self.observed}\n    fix: {self.fix}'


@dataclass(frozen=True, slots=True)
class ManagerReport:
    """The rules that were checked. Its `str` is a table.

    :ivar manager: the name of the manager's class
    :ivar endpoint: the endpoint as log messages show it, without credentials
    :ivar passed: the rules that the manager follows, in the order in which they were checked
    :ivar skipped: the rules that could not be checked
    :ivar seconds: how long all checks took together, seconds
    """

    manager: str
    endpoint: str
    passed: tuple[PassedRule, ...]
    skipped: tuple[SkippedRule, ...]
    seconds: float

    def __str__(self) -> str:
        title = f'{self.manager}, {self.endpoint}: {len(self.passed)} rules passed, {len(self.skipped)} skipped'
        return '\n'.join([f'{title} ({self.seconds:.1f} s)', *map(str, self.passed), *map(str, self.skipped)])


class ManagerCheckError(AssertionError):
    """The manager breaks at least one rule. The message names each rule, what was observed and how to fix it.

    :ivar broken: all rules that the manager breaks
    :ivar report: the rules that it passed, and those that were skipped
    """

    def __init__(self, broken: Sequence[BrokenRule], report: ManagerReport) -> None:
        self.broken = tuple(broken)
        self.report = report
        super().__init__(self.broken, report)

    def __str__(self) -> str:
        count = f'{len(self.broken)} rule{"s" if len(self.broken) > 1 else ""}'
        return '\n'.join([f'{self.report.manager} breaks {count}:', *map(str, self.broken)])
