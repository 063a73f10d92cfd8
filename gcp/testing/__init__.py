"""For tests: managers that can be told to fail (`FakeManager` and its kin), and `check_manager`, which tells whether a
manager keeps the promises that a pool builds on. Needs no test framework."""

from __future__ import annotations

from gcp.testing.conformance import check_manager
from gcp.testing.double import (
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
from gcp.testing.report import Breach, Check, ManagerCheckError, ManagerReport, Skipped

__all__ = [
    'AsyncBareFakeManager',
    'AsyncFakeManager',
    'BareFakeManager',
    'Behaviour',
    'Breach',
    'Call',
    'Check',
    'FakeConnection',
    'FakeHook',
    'FakeManager',
    'ManagerCheckError',
    'ManagerReport',
    'Skipped',
    'calling',
    'check_manager',
    'dead',
    'error',
    'never',
    'ok',
    'slow',
]
