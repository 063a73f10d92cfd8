"""A FastAPI service whose clients disconnect at random, while all cores are busy: a yield dependency, a middleware, and
responses that stream from a cursor. With ``reclaim_abandoned=True`` no place is gone for longer than 10 s; without it,
`holders()` names each lease that was left behind as one whose task is done.

``GCP_DISCONNECT_RUNS=50`` runs it as often as `make must-show` does."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / 'asv_bench'
RUNS = int(os.environ.get('GCP_DISCONNECT_RUNS', '4'))

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')


@pytest.fixture
def disconnects(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The service, and what visits it."""
    monkeypatch.setenv('GCP_BENCH', 'full')
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module('cases.disconnects')


def test_no_place_is_gone_for_long_where_the_pool_reclaims(disconnects: Any) -> None:
    outcome = disconnects.measure(True, RUNS)
    assert outcome.runs == RUNS and outcome.cut > 0
    assert outcome.lost == 0, outcome
    assert max(outcome.gone, default=0.0) <= 3 * 10.0, outcome  # three times as long as on a machine of its own


def test_what_is_left_behind_is_named_as_that_of_a_task_that_is_done(disconnects: Any) -> None:
    outcome = disconnects.measure(False, RUNS)
    assert outcome.runs == RUNS and outcome.cut > 0
    assert (outcome.unnamed, outcome.lost) == (0, 0), outcome
