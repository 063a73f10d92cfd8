"""For tests: fake managers whose hooks can be told to fail (`FakeManager` and its variants), and `check_manager`, which
checks that a manager follows the rules that a pool relies on. Needs no test framework."""

from __future__ import annotations

from gcp.testing.conformance import check_manager
from gcp.testing.fakes import (
    AsyncBareFakeManager,
    AsyncFakeManager,
    BareFakeManager,
    Behaviour,
    Call,
    FakeConnection,
    FakeHook,
    FakeManager,
    calling,
    dead,
    error,
    never,
    ok,
    slow,
)
from gcp.testing.report import BrokenRule, ManagerCheckError, ManagerReport, PassedRule, SkippedRule

__all__ = [
    'AsyncBareFakeManager',
    'AsyncFakeManager',
    'BareFakeManager',
    'Behaviour',
    'BrokenRule',
    'Call',
    'FakeConnection',
    'FakeHook',
    'FakeManager',
    'ManagerCheckError',
    'ManagerReport',
    'PassedRule',
    'SkippedRule',
    'calling',
    'check_manager',
    'dead',
    'error',
    'never',
    'ok',
    'slow',
]
